"""Parts that are not densities, and priors and guides that do not fit, are named in the error."""

import pyro.distributions as dist
import pytest
import torch
from contracts import LIKELIHOODS, all_parts
from helpers import unchanged, vae_of
from torch import nn
from torch.distributions import constraints

import pyrovae as pv
from pyrovae.contract.densities import check_densities, check_supports, plate_errors_explained
from pyrovae.contract.program import check_latents, trace_once
from pyrovae.errors import ConfigError


class Part(nn.Module):
    """A custom part: a function that returns a density, with one parameter to train."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, *inputs):
        return self.function(*inputs)


class Odd(dist.TorchDistribution):
    """A prior over two numbers with any log_prob and any draw."""

    support = constraints.independent(constraints.unit_interval, 1)

    def __init__(self, log_prob, draw=0.5, batch_shape=()):
        self.value, self.draw = log_prob, draw
        super().__init__(torch.Size(batch_shape), torch.Size([2]), validate_args=False)

    def expand(self, batch_shape, _instance=None):
        return Odd(self.value, self.draw, batch_shape)

    def sample(self, sample_shape=()):
        return torch.full((*sample_shape, *self.batch_shape, 2), self.draw)

    def log_prob(self, z):
        return self.value(z)


REAL_VECTOR = dist.MultivariateNormal(torch.zeros(2), torch.eye(2))


def traces(prior=None, encoder=None, decoder=None):
    vae = pv.build((3,), latent_dim=2, hidden=(4,), seed=0)
    vae = pv.VAE(prior or vae.prior, encoder or vae.encoder, decoder or vae.decoder)
    return trace_once(vae, torch.ones(1, 3))


def message_of(*pair) -> str:
    with pytest.raises(ConfigError) as caught:
        check_densities(*pair)
    text = str(caught.value)
    assert len(text.splitlines()) <= 6
    assert len(text) < 600
    return text


@all_parts
def test_every_part_passes(part):
    module = part.make()
    is_likelihood = part in LIKELIHOODS.values()
    model_trace, guide_trace = traces()
    if hasattr(module, "num_features"):
        density = module(torch.randn(1, module.num_features))
    else:
        density = module().expand([1])
    model_trace.nodes["x" if is_likelihood else "z"]["fn"] = density
    if not is_likelihood:
        guide_trace.nodes["z"]["fn"] = density
    check_densities(model_trace, guide_trace)


def test_wrong_latent_dim_names_both(float64):
    vae = vae_of(prior=pv.priors.GaussianMixture(3))
    with pytest.raises(ConfigError, match=r"over shape \(3,\).*over \(2,\).*\n?.*latent_dim"):
        check_latents(*trace_once(vae, torch.ones(1, 3)))


@pytest.mark.parametrize(
    ("p", "q", "is_fine"),
    [
        (dist.Normal(0.0, 1.0), dist.Uniform(0.0, 1.0), True),
        (dist.Normal(torch.zeros(2), 1.0).to_event(1), REAL_VECTOR, True),
        (dist.Gamma(1.0, 1.0), dist.LogNormal(0.0, 1.0), True),
        (dist.Gamma(1.0, 1.0), dist.Beta(1.0, 1.0), True),
        (dist.Uniform(0.0, 1.0), dist.Normal(0.0, 1.0), False),
        (dist.Uniform(0.0, 1.0), dist.Uniform(0.0, 2.5), False),
        (dist.Gamma(1.0, 1.0), dist.Normal(0.0, 1.0), False),
        (dist.Bernoulli(0.5), dist.Normal(0.0, 1.0), False),
        (dist.Normal(0.0, 1.0), dist.Bernoulli(0.5), False),
        (dist.Bernoulli(0.5), dist.Poisson(0.5), False),
        (dist.Poisson(0.5), dist.Bernoulli(0.5), True),
        (dist.Normal(torch.zeros(3), 1.0).to_event(1), dist.Dirichlet(torch.ones(3)), False),
        (dist.Dirichlet(torch.ones(3)), dist.Normal(torch.zeros(3), 1.0).to_event(1), False),
        (dist.Dirichlet(torch.ones(3)), dist.Dirichlet(torch.ones(3)), True),
        (dist.Normal(torch.zeros(3), 1.0).to_event(1), dist.VonMises3D(torch.eye(3)[0]), False),
    ],
)  # fmt: skip
def test_the_guide_must_stay_within_the_prior(p, q, is_fine):
    if is_fine:
        check_supports(p, q, "z")
    else:
        with pytest.raises(ConfigError, match=r"prior p\(z\) lives on .*KL\(q ‖ p\) is infinite"):
            check_supports(p, q, "z")


def test_a_uniform_prior_under_a_normal_guide():
    """A whole program with a guide that leaves the support of its prior."""
    box = pv.priors.Fixed(lambda a: dist.Uniform(-a, a).to_event(1), a=torch.ones(2))
    text = message_of(*traces(prior=box))
    assert "the encoder's q(z|x)" in text
    assert "at -10000, for example" in text


def test_priors_that_are_not_densities():
    text = message_of(*traces(prior=Part(lambda: Odd(lambda z: z.sum(-1) * torch.nan))))
    assert "the prior p(z), a Odd, returns log_prob = nan for 16 of 16" in text
    text = message_of(*traces(prior=Part(lambda: Odd(lambda z: z))))
    assert "log_prob of shape (16, 1, 2)" in text
    assert "one number per draw: (16, 1)" in text
    text = message_of(*traces(prior=Part(lambda: Odd(lambda z: z.sum(-1), draw=1.5))))
    assert "outside its own support" in text


@pytest.mark.parametrize(
    ("encoder", "expected"),
    [
        (lambda x: dist.Normal(x[:, :2], -x[:, :2]).to_event(1), "with scale = -1 and 1 more"),
        (lambda x: dist.Normal(x[:, :2], 0 * x[:, :2]).to_event(1), "with scale = 0 and 1 more"),
        (lambda x: dist.Normal(x[:, :2] * torch.nan, 1.0).to_event(1), "with loc = nan"),
        (
            lambda x: dist.MultivariateNormal(
                x[:, :2], scale_tril=-torch.eye(2).expand(len(x), 2, 2)
            ),
            "with scale_tril = an array",
        ),
    ],
)
def test_encoders_that_are_not_densities(encoder, expected):
    """Like torch's validation, but the message names the part."""
    text = message_of(*traces(encoder=Part(encoder)))
    assert "the encoder's q(z|x) is a " in text
    assert expected in text


def test_a_decoder_of_impossible_probabilities():
    decoder = Part(lambda z: dist.Bernoulli(probs=torch.full((len(z), 3), 1.7)).to_event(1))
    text = message_of(*traces(decoder=decoder))
    assert "the decoder's p(x|z) is a Bernoulli with probs = 1.7 and 2 more" in text


@pytest.mark.parametrize(
    "wrong",
    [
        {"encoder": Part(lambda x: dist.Normal(x[:, :2], 1.0))},
        {"prior": Part(lambda: dist.Normal(torch.zeros(2), 1.0))},
    ],
    ids=["encoder", "prior"],
)
def test_a_part_without_event_dimensions(wrong):
    with pytest.raises(ConfigError, match=r"'z' has batch size 2 .*\n.*\.to_event\(1\)"):
        with plate_errors_explained():
            traces(**wrong)


def test_other_errors_pass_unchanged():
    with pytest.raises(ValueError, match="mine"), plate_errors_explained():
        raise ValueError("mine")


def test_the_callers_generators_and_store_do_not_change():
    pair = traces(prior=pv.priors.GaussianMixture(2))
    validates = torch.distributions.Distribution._validate_args
    with unchanged():
        check_densities(*pair)
    assert torch.distributions.Distribution._validate_args == validates
    assert torch.is_grad_enabled()
