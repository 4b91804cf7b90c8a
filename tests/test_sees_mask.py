"""Parts that see the mask: every method gives them the same mask, and None is all observed."""

import itertools

import pyro.distributions as dist
import pytest
import torch
from contracts import PROGRAMS as CONTRACTS
from helpers import bits, small_vae
from oracles import LinearGaussian, Rewritten
from programs import Affine
from test_missing_data import log_marginal, some_mask
from test_missing_not_at_random import Posterior
from torch import nn

import pyrovae as pv
from pyrovae.errors import ConfigError, DataError
from pyrovae.networks import NETWORKS, Concat, Given, JoinMask, OneHot, SeesMask, joined_shape, mlp

pytestmark = pytest.mark.usefixtures("float64")

shapes = pytest.mark.parametrize(
    ("network", "event"),
    [*itertools.product([n for n in NETWORKS if n != "conv"], [(4,), (2, 3)]),
     ("conv", (4, 5)), ("conv", (3, 4, 5)), ("conv", (4, 5, 3))],
)  # fmt: skip


def zeros_and_mask(event):
    """Two equal rows of zeros; in the second, the last cell is missing."""
    x = torch.zeros(2, *event)
    mask = torch.ones_like(x, dtype=torch.bool)
    mask[1].view(-1)[-1] = False
    return x, mask


@shapes
def test_a_missing_zero_is_not_an_observed_zero(network, event):
    hidden = (3,) if network == "conv" else (8,)
    x, mask = zeros_and_mask(event)
    for sees_mask in (True, False):
        vae = pv.build(event, network=network, hidden=hidden, sees_mask=sees_mask, seed=0)
        mean = vae.encode(x, mask=mask).mean
        assert torch.equal(mean[0], mean[1]) != sees_mask
        assert torch.equal(vae.encode(x).mean[0], mean[0])


def test_the_joined_input_is_x_with_zeros_and_the_mask():
    x = torch.tensor([[2.0, torch.nan]])
    found = JoinMask(nn.Identity(), 2)(x, torch.tensor([[True, False]]))
    assert found.tolist() == [[[2.0, 0.0], [1.0, 0.0]]]
    for event in ((3,), (2, 3), (2, 3, 5)):
        x = torch.rand(5, 7, *event)
        joined = JoinMask(nn.Identity(), event)(x, x > 0.5)
        assert joined.shape[2:] == joined_shape(event)
        channels = joined.reshape(5, 7, 2, -1)
        assert torch.equal(channels[:, :, 0], torch.where(x > 0.5, x, 0.0).flatten(2))
        assert torch.equal(channels[:, :, 1], (x > 0.5).double().flatten(2))


def test_no_gradient_through_the_mask_nor_missing_cells():
    vae = small_vae(sees_mask=True).double()
    x, mask = bits(3).double().requires_grad_(), torch.tensor([[True, True, False, True]] * 3)
    weight = mask.double().requires_grad_()
    mean = vae.encoder(torch.where(mask, x, 0.0), weight > 0.5).mean.sum()
    by_x, by_mask = torch.autograd.grad(mean, [x, weight], allow_unused=True)
    assert by_mask is None
    assert torch.equal(by_x != 0, mask)


def test_channels_of_an_image_that_come_last_are_moved():
    x = torch.rand(2, 5, 6, 3)
    joined = JoinMask(nn.Identity(), (5, 6, 3))(x, x > 0.5)
    assert joined.shape[1:] == joined_shape((5, 6, 3))
    assert torch.equal(joined[:, :3].movedim(1, -1), torch.where(x > 0.5, x, 0.0))
    assert torch.equal(joined[:, 3:].movedim(1, -1), (x > 0.5).double())


@pytest.mark.parametrize("filler", [1e30, float("nan")])
def test_values_of_missing_cells_change_no_bit(filler):
    vae, x = small_vae(sees_mask=True).double(), bits(9).double()
    mask = some_mask((9, 4))
    dirty = torch.where(mask, x, filler)
    assert torch.equal(vae.encode(x, mask=mask).mean, vae.encode(dirty, mask=mask).mean)
    torch.manual_seed(0)
    first = vae.loss(x, mask=mask)
    torch.manual_seed(0)
    assert torch.equal(first, vae.loss(dirty, mask=mask))


@pytest.fixture
def exact():
    """A linear-Gaussian VAE whose encoder is p(z|x_o), and data with a mask per row."""
    truth = LinearGaussian()
    x, mask = truth.sample(12), some_mask((12, 5))
    return truth.vae(SeesMask(Posterior(truth))), x, mask, log_marginal(truth, x, mask)


def same(program):
    """The VAE, and any program, which takes other ways through the package."""
    return program, Rewritten(program)


def test_every_estimate_of_log_p_is_exact(exact):
    """With p(z|x_o) as guide, each draw has log w = log p(x_o), wherever the weights are taken."""
    vae, x, mask, log_px = exact
    for program in same(vae):
        found = pv.log_evidence(program, x, mask=mask, method="iwae", num_samples=30).log_px
        torch.testing.assert_close(found, log_px, rtol=0, atol=1e-9)
        log_w = pv.elbo_terms(program, x, mask=mask, num_samples=5).log_weights
        torch.testing.assert_close(log_w, log_px.expand(5, -1), rtol=0, atol=1e-9)
        ais = {"method": "ais", "num_samples": 4, "num_temperatures": 3, "start": "guide"}
        found = pv.log_evidence(program, x, mask=mask, **ais).log_px
        torch.testing.assert_close(found, log_px, rtol=0, atol=1e-9)
        sir = pv.posterior.sir(program, x, mask=mask, num_samples=10, num_proposals=200)
        torch.testing.assert_close(sir.ess, torch.full((12,), 200.0), rtol=1e-6, atol=0)
        found = pv.impute(program, x, mask=mask, num_samples=10, num_proposals=200)
        torch.testing.assert_close(found.ess, torch.full((12,), 200.0), rtol=1e-6, atol=0)


def test_the_grid_agrees(exact):
    vae, x, mask, log_px = exact
    found = pv.log_evidence(vae, x[:4], mask=mask[:4], method="grid").log_px
    torch.testing.assert_close(found, log_px[:4], rtol=0, atol=1e-5)


def test_imputed_means_and_intervals_are_the_conditional_normal(exact):
    """E[x_m|x_o] and 90 % intervals of p(x_m|x_o), with another mask in each row."""
    vae, x, mask, _ = exact
    found = pv.impute(vae, x, mask=mask, num_samples=4000, num_proposals=8000)
    low, high = found.draws.quantile(torch.tensor([0.05, 0.95]), 0)
    truth = vae.encoder.part.truth
    for row, o in enumerate(mask):
        assert torch.equal(found.mean[row, o], x[row, o])
        if o.all():
            continue
        c = truth.covariance
        gain = c[~o][:, o] @ torch.linalg.inv(c[o][:, o])
        mean = truth.mean[~o] + gain @ (x[row, o] - truth.mean[o])
        sd = (c[~o][:, ~o] - gain @ c[o][:, ~o]).diag().sqrt()
        # resampling with replacement from 8000: at most √1.5 times the error of 4000 free draws
        error = 1.23 / 4000**0.5
        assert ((found.draws[:, row, ~o].mean(0) - mean) / sd).abs().max() < 5 * error
        # the density of a standard normal at ±1.645 is 0.103
        of_quantile = 1.23 * (0.05 * 0.95 / 4000) ** 0.5 / 0.103
        for value, z in ((low, -1.6449), (high, 1.6449)):
            assert ((value[row, ~o] - mean) / sd - z).abs().max() < 5 * of_quantile


def test_reading_functions_run_alike_for_none_and_all_true():
    vae, x = small_vae(sees_mask=True), bits(20)
    whole = torch.ones_like(x)
    calls = {
        "encode": lambda m: vae.encode(x, mask=m).mean,
        "reconstruct": lambda m: vae.reconstruct(x, mask=m, seed=0),
        "log_evidence": lambda m: pv.log_evidence(vae, x, mask=m, num_samples=50).log_px,
        "ais": lambda m: (
            pv.log_evidence(vae, x, mask=m, method="ais", num_samples=4, num_temperatures=4).log_px
        ),
        "refine": lambda m: pv.posterior.refine(vae, x, mask=m, num_steps=3).elbo,
        "decompose": lambda m: pv.diagnostics.decompose_elbo(vae, x, mask=m, num_samples=5).kl,
        "prune": lambda m: pv.prune(vae, x, mask=m, dimensions=[0]).vae.encode(x, mask=m).mean,
    }
    for name, call in calls.items():
        torch.testing.assert_close(call(None), call(whole), msg=name)


def test_a_pruned_one_sees_the_mask():
    vae, x, mask = small_vae(sees_mask=True), bits(20), some_mask((20, 4))
    smaller = pv.prune(vae, x, mask=mask, dimensions=[0]).vae
    kept = vae.encode(x, mask=mask).mean[:, [1]]
    torch.testing.assert_close(smaller.encode(x, mask=mask).mean, kept)


@pytest.mark.parametrize("compile", ["graph", "eager"])
def test_engines_give_the_same_bits(compile):
    vae = small_vae(sees_mask=True)
    history = pv.fit(vae, bits(), mask=some_mask((37, 4)), epochs=3, batch_size=8, compile=compile)
    other = small_vae(sees_mask=True)
    again = pv.fit(other, bits(), mask=some_mask((37, 4)), epochs=3, batch_size=8, compile="auto")
    assert history["elbo"] == again["elbo"]
    first = vae.encoder.part.part[0][1][0].weight
    assert not torch.equal(first, small_vae(sees_mask=True).encoder.part.part[0][1][0].weight)
    assert torch.equal(first, other.encoder.part.part[0][1][0].weight)


def test_saved_and_loaded(tmp_path):
    vae, x, mask = small_vae(sees_mask=True), bits(), some_mask((37, 4))
    pv.save(vae, tmp_path / "vae.safetensors")
    again = pv.load(tmp_path / "vae.safetensors")
    assert again.spec["sees_mask"] is True
    assert torch.equal(again.encode(x, mask=mask).mean, vae.encode(x, mask=mask).mean)


def test_exported_with_the_mask_as_an_input(tmp_path):
    vae, x, mask = small_vae(sees_mask=True), bits(5), some_mask((5, 4))
    path = pv.export(vae, tmp_path / "encoder.pt2", x)
    mean, _ = torch.export.load(path).module()(torch.where(mask, x, 0.0).double(), mask)
    torch.testing.assert_close(mean, vae.encode(x, mask=mask).mean)
    pv.export(vae, tmp_path / "decoder.pt2", x, part="decoder")


def test_with_covariates():
    """Given(SeesMask(part)): the part is called as part(x, mask, y)."""
    torch.manual_seed(0)
    q, p = pv.guides.DiagonalNormal(2), pv.likelihoods.Bernoulli(4)
    network = Concat(
        nn.Sequential(mlp(8 + 3, q.num_features), q), of_x=nn.Flatten(-2), of_y=OneHot(3)
    )
    encoder = Given(SeesMask(JoinMask(network, 4)))
    decoder = nn.Sequential(mlp(2, p.num_features), p)
    vae = pv.VAE(pv.priors.StandardNormal(2), encoder, decoder)
    x, mask = zeros_and_mask((4,))
    y = torch.tensor([1, 1])
    pv.fit(vae, x, y, mask=mask, epochs=1, batch_size=2)
    mean = vae.encode(x, y, mask).mean
    assert not torch.equal(mean[0], mean[1])
    assert not torch.equal(vae.encode(x, y - 1, mask).mean[0], mean[0])
    assert torch.equal(vae.encode(x, y).mean[0], mean[0])
    with pytest.raises(ConfigError, match=r"Given\(SeesMask\(part\)\)"):
        SeesMask(Given(network))
    with pytest.raises(DataError, match="y was not given"):
        vae.encode(x, mask=mask)


def test_a_vamp_prior_of_it_has_whole_pseudo_inputs():
    vae = small_vae(prior="VampPrior", data=bits(10), sees_mask=True)
    log_prob = vae.prior().log_prob(torch.zeros(2))
    u = vae.prior.pseudo_inputs
    q = vae.encoder(u, torch.ones_like(u).bool())
    expected = q.log_prob(torch.zeros(2)).logsumexp(0) - torch.tensor(10.0).log()
    torch.testing.assert_close(log_prob, expected)


class Seeing(nn.Module):
    """A module of x whose output tells how many cells were observed."""

    def __init__(self, part):
        super().__init__()
        self.part, self.seen = part, []

    def forward(self, x, mask, *others):
        self.seen.append(mask.double().mean().item())
        return self.part(x, *others)


def seeing_programs():
    """Programs with a SeesMask in the place of each part of x."""
    from programs import ladder, markov, mixture, multimodal

    made = {"mixture": (mixture(), "encoder"), "ladder": (ladder(), "networks.0")}
    made |= {"markov": (markov(), "rnn"), "multimodal": (multimodal(), "encoders.a")}
    for name, parts in (
        ("semi-supervised", ("encoder", "classifier")),
        ("global latents", ("encoder",)),
        ("VAE", ("encoder",)),
    ):
        made |= {f"{name}, {part}": (CONTRACTS[name].make(), part) for part in parts}
    return made


@pytest.mark.parametrize("name", list(seeing_programs()))
def test_every_program_gives_its_parts_the_mask(name):
    program, where = seeing_programs()[name]
    part = program.get_submodule(where)
    inner = part.part if isinstance(part, Given) else part
    spy = Seeing(inner)
    seeing = SeesMask(spy)
    program.set_submodule(where, Given(seeing) if isinstance(part, Given) else seeing)
    x = torch.rand(6, 4).round()
    if name in ("mixture", "ladder"):
        x = x[:, :3]
    if name == "markov":
        x = x[:, :3, None]
    if name == "multimodal":
        x = {"a": x[:, :2], "b": x[:, 2:3]}
    first = x["a"] if name == "multimodal" else x
    mask = torch.ones_like(first, dtype=torch.bool)
    mask[0] = False
    for given in (None, mask):
        spy.seen.clear()
        pv.elbo_terms(
            program, x, mask={"a": given} if name == "multimodal" and given is not None else given
        )
        assert spy.seen
        assert set(spy.seen) <= ({1.0} if given is None else {5 / 6, 0.0, 0.5, 1.0})
        assert given is None or spy.seen[-1] == pytest.approx(5 / 6)


def test_a_sequence_gives_its_encoder_the_mask():
    spy = Seeing(Affine(0.6 * torch.eye(1)))
    program = pv.programs.SequenceVAE(
        pv.programs.GaussianProcess(1), SeesMask(spy), Affine(torch.eye(1))
    )
    x, times = torch.rand(4, 3, 1), torch.arange(3.0).expand(4, 3)
    mask = torch.ones_like(x)
    mask[0, :2] = 0
    pv.elbo_terms(program, x, times, mask=mask)
    assert spy.seen[-1] == pytest.approx(10 / 12)


def test_a_mask_of_whole_data_is_spread():
    program = seeing_programs()["multimodal"][0]
    spy = Seeing(program.encoders["a"])
    program.encoders["a"] = SeesMask(spy)
    x = {"a": torch.zeros(4, 2), "b": torch.zeros(4, 1)}
    pv.elbo_terms(program, x, mask={"a": torch.tensor([True, False, True, True])})
    assert spy.seen[-1] == 0.75


def test_its_density_is_a_distribution_of_z_alone():
    vae = small_vae(sees_mask=True)
    assert isinstance(vae.encode(bits(3)), dist.Independent)
    assert not pv.build((3,)).spec["sees_mask"]
