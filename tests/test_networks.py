"""Networks: shapes with leading dimensions, gradients, folding, covariates, the data's mean."""

import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyrovae as pv
from pyrovae import networks
from pyrovae.errors import ConfigError, DataError
from pyrovae.heads import split_features
from pyrovae.networks import (
    NETWORKS,
    Concat,
    FlattenBatch,
    GatedDense,
    Given,
    OneHot,
    Residual,
    concat,
    features_of,
    given,
    start_at_mean,
)

# name: (constructor of event (C, H, W) → 5 features, constructor of 2 latents → (C, H, W))
SHAPES = {"vector": (6,), "gray": (9, 7), "color": (3, 8, 5)}
PAIRS = [
    pytest.param(pair, event, id=f"{name}, {kind}")
    for name, pair in NETWORKS.items()
    for kind, event in SHAPES.items()
    if name != "conv" or len(event) > 1
]
pairs_table = pytest.mark.parametrize(("pair", "event"), PAIRS)
SMALL = (4, 3)


def both(pair, event):
    return pair.encoder(event, 5, hidden=SMALL), pair.decoder(2, event, hidden=SMALL[::-1])


# ---- every network


@pairs_table
@pytest.mark.parametrize("batch", [(), (7,), (3, 7), (2, 3, 7), (0,)])
def test_leading_dimensions_are_kept(pair, event, batch):
    encoder, decoder = both(pair, event)
    assert encoder(torch.zeros(*batch, *event)).shape == (*batch, 5)
    assert decoder(torch.zeros(*batch, 2)).shape == (*batch, torch.Size(event).numel())


@pairs_table
def test_rows_do_not_see_each_other(pair, event, float64):
    """The same numbers for a datum alone, in a batch and under particles."""
    for network, shape in zip(both(pair, event), (event, (2,)), strict=True):
        x = torch.randn(3, 4, *shape)
        together = network(x)
        for s, b in ((0, 1), (2, 0)):
            # float64: sums of the same terms in another order, at most a few hundred of them
            assert torch.allclose(network(x[s, b]), together[s, b], atol=1e-12)


@pairs_table
def test_gradient_reaches_every_parameter(pair, event, float64):
    for network, shape in zip(both(pair, event), (event, (2,)), strict=True):
        network(torch.randn(7, *shape)).square().sum().backward()
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None, name
            assert (parameter.grad != 0).any(), name


@pairs_table
def test_state_dict_round_trip_and_dtype(pair, event):
    for first, second, shape in zip(
        both(pair, event), both(pair, event), (event, (2,)), strict=True
    ):
        second.load_state_dict(first.state_dict())
        x = torch.randn(2, *shape)
        assert torch.equal(first(x), second(x))
        assert first.double()(x.double()).dtype == torch.float64


@pairs_table
def test_a_whole_vae_trains_through_fit(pair, event):
    q, p = pv.guides.DiagonalNormal(2), pv.likelihoods.Bernoulli(event)
    vae = pv.VAE(
        pv.priors.StandardNormal(2),
        nn.Sequential(pair.encoder(event, q.num_features, hidden=SMALL), q),
        nn.Sequential(pair.decoder(2, features_of(p), hidden=SMALL[::-1]), p),
    )
    x = (torch.rand(8, *event) < 0.2).float()
    history = pv.fit(vae, x, epochs=4, batch_size=8, learning_rate=1e-2)
    assert history[-1].elbo > history[0].elbo
    assert pv.elbo_terms(vae, x, num_samples=3).log_weights.shape == (3, 8)


# ---- perceptrons


def test_layer_equations(float64):
    x = torch.randn(7, 4)
    gated = GatedDense(4, 3)
    linear = x @ gated.linear.weight.T + gated.linear.bias
    gate = torch.sigmoid(x @ gated.gate.weight.T + gated.gate.bias)
    assert torch.allclose(gated(x), linear * gate, atol=1e-14)
    residual = Residual(4, 4, activation=nn.Tanh)
    first, second = residual.branch[1], residual.branch[3]
    inner = torch.tanh(x @ first.weight.T + first.bias)
    assert torch.allclose(residual(x), x + inner @ second.weight.T + second.bias, atol=1e-14)


@pytest.mark.parametrize("make", [networks.mlp, networks.gated_mlp, networks.residual_mlp])
def test_layer_norm_is_in_every_layer_and_batch_norm_in_none(make):
    normalized = make(6, 2, hidden=(5, 4), norm=nn.LayerNorm)
    assert sum(isinstance(m, nn.LayerNorm) for m in normalized.modules()) == 2
    plain = make(6, 2, hidden=(5, 4))
    assert not any("Norm" in type(m).__name__ for m in plain.modules())


@pytest.mark.parametrize("make", [networks.mlp, networks.gated_mlp, networks.residual_mlp])
@pytest.mark.parametrize("hidden", [(0,), (2.5,), (8, -1)])
def test_widths_are_checked(make, hidden):
    with pytest.raises(ConfigError, match=r"hidden width = .*whole number ≥ 1"):
        make(6, 2, hidden=hidden)


def test_no_hidden_layer_is_an_affine_map():
    assert isinstance(networks.mlp(6, 2, hidden=())[0], nn.Linear)


# ---- convolutions


@pytest.mark.parametrize("event", [(1, 1), (2, 3), (28, 20), (105, 105), (1, 28, 28), (3, 17, 33)])
def test_convolutions_reach_any_size(event):
    encoder = networks.conv_encoder(event, 4, hidden=(2, 3, 2))
    decoder = networks.conv_decoder(2, event, hidden=(2, 3, 2))
    assert encoder(torch.zeros(2, *event)).shape == (2, 4)
    assert decoder(torch.zeros(2, 2)).unflatten(-1, event).shape == (2, *event)


def same_weights(*pair):
    first, last = pair
    with torch.no_grad():
        for a, b in zip(last.parameters(), first.parameters(), strict=True):
            a.copy_(b)
    return pair


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_channels_last_are_transposed_inside_the_networks(channels):
    shapes = (channels, 9, 7), (9, 7, channels)
    first, last = same_weights(*(networks.conv_encoder(s, 4, hidden=(2, 3)) for s in shapes))
    x = torch.randn(5, channels, 9, 7)
    torch.testing.assert_close(last(x.movedim(1, -1)), first(x))
    decoders = (networks.conv_decoder(2, (2, *s), hidden=(3, 2)) for s in shapes)
    first, last = same_weights(*decoders)
    z = torch.randn(4, 5, 2)
    images = first(z).unflatten(-1, (2, *shapes[0])).movedim(-3, -1)  # (S, B, count, H, W, C)
    torch.testing.assert_close(last(z).unflatten(-1, (2, *shapes[1])), images)


def test_images_with_channels_last_are_learned_from_the_start():
    x = torch.rand(1, 6, 5, 3).expand(8, 6, 5, 3)
    vae = pv.build((6, 5, 3), network="conv", likelihood="Normal", hidden=(4, 4), seed=0)
    start_at_mean(vae.decoder, x)
    (first,) = [m for m in vae.encoder.modules() if isinstance(m, nn.Conv2d)][:1]
    assert first.in_channels == 3
    torch.testing.assert_close(vae.reconstruct(x, seed=0), x, atol=0.3, rtol=0)
    bias = vae.decoder[0].module[-1].bias
    assert torch.equal(bias, x[0].flatten()) or torch.allclose(bias, x[0].flatten())


@pytest.mark.parametrize("event", [(6, 5), (3, 6, 5)])
def test_decoder_features_are_in_the_order_of_the_heads(event):
    """Channels of the last convolution = (parameter, color), as `split_features` cuts them."""
    count = 2
    decoder = networks.conv_decoder(2, (count, *event), hidden=(4,))
    maps = []
    convolution = [m for m in decoder.modules() if isinstance(m, nn.Conv2d)][-1]
    convolution.register_forward_hook(lambda module, inputs, output: maps.append(output))
    parts = split_features(decoder(torch.randn(7, 2)), torch.Size(event), count)
    colors = maps[0].shape[1] // count
    for k, part in enumerate(parts):
        expected = maps[0][:, k * colors : (k + 1) * colors].reshape(part.shape)
        assert torch.equal(part, expected)


@pytest.mark.parametrize(
    "make",
    [lambda shape: networks.conv_encoder(shape, 4), lambda shape: networks.conv_decoder(2, shape)],
)
def test_convolution_of_a_vector_is_refused(make):
    with pytest.raises(ConfigError, match=r"needs images of shape \(H, W\).*\n.*networks\.mlp"):
        make(784)


def test_convolution_needs_a_block():
    with pytest.raises(ConfigError, match="hidden"):
        networks.conv_encoder((8, 8), 4, hidden=())


def test_folding_refuses_too_few_dimensions():
    with pytest.raises(ConfigError, match=r"events of 3 dimensions.*\(8, 8\)"):
        FlattenBatch(nn.Conv2d(1, 1, 3), event_dims=3)(torch.zeros(8, 8))
    with pytest.raises(ConfigError, match="event_dims"):
        FlattenBatch(nn.Conv2d(1, 1, 3), event_dims=0)


# ---- covariates


def given_concat(inputs: int, head: nn.Module, **of) -> Given:
    network = networks.mlp(inputs, head.num_features, hidden=(8,))
    return Given(Concat(nn.Sequential(network, head), **of))


def test_given_passes_y_on_and_a_plain_part_never_sees_it():
    part = nn.Linear(2, 2)
    y = torch.zeros(3, 1)
    assert given(y, part) == ()
    assert given(y, Given(part)) == (y,)


@pytest.mark.parametrize(
    ("x", "y", "batch"),
    [
        ((7, 3), (7,), (7,)),
        ((5, 7, 3), (7,), (5, 7)),  # particles
        ((7, 3), (4, 1), (4, 7)),  # enumerated labels
        ((4, 7, 3), (4, 1), (4, 7)),  # a latent drawn under them
        ((5, 1, 3), (7,), (5, 7)),  # grid points
    ],
)
def test_joined_broadcasts_batches(x, y, batch):
    part = given_concat(3 + 4, pv.guides.DiagonalNormal(2), of_y=OneHot(4))
    labels = torch.randint(4, y)
    assert part(torch.randn(x), labels).batch_shape == batch


def test_joined_is_concatenation(float64):
    x, y = torch.randn(5, 7, 3), torch.randint(4, (7,))
    out = concat(x, OneHot(4)(y))
    assert torch.equal(out[..., :3], x)
    assert torch.equal(out[2, :, 3:], torch.eye(4)[y])


def test_joined_takes_whole_number_covariates_and_needs_a_feature_dimension():
    assert concat(torch.zeros(7, 3), torch.ones(7, 1, dtype=torch.long)).dtype == torch.float
    with pytest.raises(ConfigError, match=r"\(7, 3\) and \(7,\) cannot be concatenated.*\n?.*\n?"):
        concat(torch.zeros(7, 3), torch.ones(7))
    with pytest.raises(ConfigError, match=r"of_x=nn\.Flatten\(-2\)"):
        given_concat(68, pv.guides.DiagonalNormal(2), of_y=OneHot(4))(
            torch.zeros(7, 8, 8), torch.zeros(7, dtype=torch.long)
        )


def test_joined_without_covariates_says_so():
    with pytest.raises(DataError, match="y was not given"):
        given_concat(5, pv.guides.DiagonalNormal(2))(torch.zeros(7, 3), None)


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (torch.tensor([0, 4]), r"label 4 \(position 1.*4 classes"),
        (torch.tensor([-1, 0]), r"label -1 \(position 0.*4 classes"),
        (torch.tensor([0.0, 1.0]), r"float32, but class labels are the whole numbers"),
    ],
)
def test_labels_outside_the_classes_are_refused(y, message):
    with pytest.raises(DataError, match=message):
        OneHot(4)(y)


def test_conditional_vae_end_to_end():
    """p(x|z, y), q(z|x, y) and p(z|y) on digits by class: labels explain data that x's code did."""
    data = pv.datasets.digits()
    x, y = pv.datasets.binarize(data.train), data.train_labels
    q, prior_head = pv.guides.DiagonalNormal(2), pv.guides.DiagonalNormal(2)
    p = pv.likelihoods.Bernoulli((8, 8))
    flat = nn.Flatten(-2)
    vae = pv.VAE(
        Given(nn.Sequential(OneHot(10), networks.mlp(10, 4, hidden=(8,)), prior_head)),
        given_concat(64 + 10, q, of_x=flat, of_y=OneHot(10)),
        given_concat(2 + 10, p, of_y=OneHot(10)),
    )
    before = {n: t.clone() for n, t in vae.named_parameters()}
    history = pv.fit(vae, x, y, epochs=20, learning_rate=1e-2, validation=(x[:100], y[:100]))
    assert history[-1].elbo > history[0].elbo
    assert all((t != before[n]).any() for n, t in vae.named_parameters())
    # generated zeros are nearer to the mean zero than to the mean of any other class
    means = torch.stack([x[y == k].mean(0) for k in range(10)])
    drawn = vae.sample(200, torch.zeros(200, dtype=torch.long), seed=0).mean(0)
    assert (means - drawn).flatten(1).norm(dim=-1).argmin() == 0
    right, wrong = (
        pv.elbo_terms(vae, data.test.round(), labels).log_weights.mean()
        for labels in (data.test_labels, (data.test_labels + 1) % 10)
    )
    assert right > wrong + 1.0
    exact = pv.log_evidence(vae, x[:3], y[:3], method="grid").log_px
    estimate = pv.log_evidence(vae, x[:3], y[:3], num_samples=2000)
    assert ((estimate.log_px - exact) / estimate.std_error).abs().max() < 5


# ---- the data's mean


def decoder_for(head: nn.Module, pair=NETWORKS["mlp"]) -> nn.Sequential:
    return nn.Sequential(pair.decoder(2, features_of(head), hidden=(4,)), head)


def last_bias(decoder: nn.Sequential) -> torch.Tensor:
    return [m.bias for m in decoder[0].modules() if getattr(m, "bias", None) is not None][-1]


@pytest.mark.parametrize("name", NETWORKS)
def test_bernoulli_starts_at_the_pixel_means(name, float64):
    event = (3, 4)
    decoder = decoder_for(pv.likelihoods.Bernoulli(event), NETWORKS[name])
    x = (torch.rand(50, *event) < 0.3).double()
    x[:, 0, 0], x[:, 0, 1] = 0.0, 1.0
    assert start_at_mean(decoder, x) is decoder
    expected = x.mean(0).clamp(0.001, 0.999).logit().flatten()
    # bisection to the last bit, then |dlogit| = |dmean| / (p (1 − p)) ≤ 1e3 · 2e-16
    assert torch.allclose(last_bias(decoder), expected, atol=1e-9)


def test_discretized_logistic_starts_inside_where_a_pixel_is_constant(float64):
    """At 0.001, not at an underflow: 8 bits of gray would cost thousands of nats there."""
    x = torch.randint(17, (50, 3)) / 16
    x[:, 0], x[:, 1] = 0.0, 1.0
    likelihood = {"name": "DiscretizedLogistic", "num_levels": 17}
    vae = pv.build((3,), latent_dim=2, likelihood=likelihood, data=x, seed=0)
    bias = vae.decoder[0][-1].bias[:3]
    assert bias.abs().max() < 10
    assert vae.decode(torch.zeros(1, 2)).log_prob(torch.full((1, 3), 1 / 16)) > -30


def test_normal_starts_at_the_means(float64):
    x = torch.randn(50, 3) * 0.1 + torch.tensor([-5e4, 0.0, 3.0])
    decoder = start_at_mean(decoder_for(pv.likelihoods.Normal(3)), x)
    assert torch.allclose(last_bias(decoder), x.mean(0), rtol=1e-12, atol=1e-12)


class LogRate(nn.Module):
    """A head of two parameters, of which the second is the log mean, and a half-line support."""

    event_shape, num_features = torch.Size([3]), 6

    def forward(self, features):
        _, log_rate = split_features(features, self.event_shape, 2)
        return dist.Poisson(log_rate.exp()).to_event(1)


def test_the_right_one_of_several_parameters_is_set(float64):
    x = torch.tensor([[0.0, 100.0, 2.0], [0.0, 300.0, 3.0]])
    decoder = decoder_for(LogRate())
    untouched = last_bias(decoder)[:3].clone()
    start_at_mean(decoder, x)
    rates = last_bias(decoder)[3:].exp()
    expected = torch.tensor([1e-3 * 202.5 / 3, 200.0, 2.5])
    assert torch.allclose(rates, expected, rtol=1e-9)
    assert torch.equal(last_bias(decoder)[:3], untouched)


def test_masked_cells_do_not_count(float64):
    x = torch.tensor([[1.0, torch.nan, torch.nan], [3.0, 5.0, torch.nan]])
    decoder = start_at_mean(decoder_for(pv.likelihoods.Normal(3)), x, mask=~x.isnan())
    assert torch.allclose(last_bias(decoder), torch.tensor([2.0, 5.0, 3.0]))


def test_starting_at_the_mean_raises_the_first_elbo():
    x = pv.datasets.binarize(pv.datasets.digits().train)
    vae = pv.build((8, 8), seed=0)
    before = pv.elbo_terms(vae, x).log_weights.mean()
    start_at_mean(vae.decoder, x)
    assert pv.elbo_terms(vae, x).log_weights.mean() > before + 5


@pytest.mark.parametrize(
    ("decoder", "message"),
    [
        (nn.Linear(2, 3), r"Linear that does not end in a likelihood head"),
        (nn.Sequential(nn.Linear(2, 3)), "does not end in a likelihood head"),
        (
            nn.Sequential(nn.Linear(2, 3, bias=False), pv.likelihoods.Bernoulli(3)),
            "no layer of the decoder has one bias for each of 3 features",
        ),
    ],
)
def test_a_decoder_without_such_a_bias_is_refused(decoder, message):
    with pytest.raises(ConfigError, match=message):
        start_at_mean(decoder, torch.ones(5, 3))


def test_a_likelihood_without_a_mean_is_refused():
    class Levels(nn.Module):
        event_shape, num_features = torch.Size([3]), 6

        def forward(self, features):
            return dist.Categorical(logits=features.unflatten(-1, (3, 2))).to_event(1)

    decoder = decoder_for(Levels())
    before = last_bias(decoder).clone()
    with pytest.raises(ConfigError, match="none of its parameters moves its mean"):
        start_at_mean(decoder, torch.ones(5, 3))
    assert torch.equal(last_bias(decoder), before)


def test_data_that_do_not_fit_the_decoder_are_refused():
    with pytest.raises(DataError, match=r"shape \(4,\)"):
        start_at_mean(decoder_for(pv.likelihoods.Bernoulli(3)), torch.ones(5, 4))


# ---- names


def test_every_public_name_exists_and_every_pair_is_built_of_them():
    assert all(hasattr(networks, name) for name in networks.__all__)
    public = [getattr(networks, name) for name in networks.__all__]
    assert all(part in public for pair in NETWORKS.values() for part in pair[:2])
