"""The contract tables: each invariant once, over every prior, guide family and likelihood."""

import itertools
import math

import pytest
import torch
from contracts import GUIDES, LIKELIHOODS, PRIORS, Part, all_parts, features_for
from helpers import vae_of
from oracles import all_binary, grid
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch.nn.functional import logsigmoid

from pyrovae import VAE, guides, likelihoods, priors
from pyrovae.errors import ConfigError

pytestmark = pytest.mark.usefixtures("float64")

priors_table = pytest.mark.parametrize("part", PRIORS.values(), ids=PRIORS)
guides_table = pytest.mark.parametrize("part", GUIDES.values(), ids=GUIDES)
likelihoods_table = pytest.mark.parametrize("part", LIKELIHOODS.values(), ids=LIKELIHOODS)
heads_table = pytest.mark.parametrize(
    "part", [*GUIDES.values(), *LIKELIHOODS.values()], ids=[*GUIDES, *LIKELIHOODS]
)


def density(part: Part):
    """Return one density of the part, batch_shape (): of a prior, or of a head at one feature."""
    module = part.make()
    return module(features_for(module)) if hasattr(module, "num_features") else module()


def points(part: Part, event_shape: torch.Size) -> tuple[torch.Tensor, float]:
    """Return points that cover the density's space, and the log of the volume of each."""
    size = event_shape.numel()
    if part.space == "binary":
        return all_binary(size).reshape(-1, *event_shape), 0.0
    if part.space in ("counts", "levels"):
        axis = torch.arange(float(part.reach))
        axis = axis / axis[-1] if part.space == "levels" else axis
        return torch.cartesian_prod(*[axis] * size).reshape(-1, *event_shape), 0.0
    if part.space == "unit":
        z, log_volume = grid(0.5 - 0.5 / 1000, 1000, size)
        return z.reshape(-1, *event_shape) + 0.5, log_volume
    if part.space == "one-hot":
        codes = torch.eye(int(part.reach)).unbind()
        blocks = itertools.product(codes, repeat=size // int(part.reach))
        return torch.stack([torch.cat(z) for z in blocks]), 0.0
    if part.space in ("logit", "pair", "simplex"):
        y, log_volume = grid(part.reach, 801, size if part.space == "logit" else 1)
        log_volume = log_volume + (logsigmoid(y) + logsigmoid(-y)).sum(-1)
        return (y if part.space == "logit" else torch.cat([y, -y], -1)).sigmoid(), log_volume
    if part.space == "half-line":
        y, log_volume = grid(part.reach, part.points, size)
        return y.exp(), log_volume + y.sum(-1)
    if part.space == "sphere":
        angle = torch.arange(1600) * (2 * math.pi / 1600)
        return torch.stack([angle.cos(), angle.sin()], -1), math.log(2 * math.pi / 1600)
    z, log_volume = grid(part.reach, part.points, size)
    return z.reshape(-1, *event_shape), log_volume


@pytest.mark.parametrize(
    ("family", "table"),
    [(priors, PRIORS), (guides, GUIDES), (likelihoods, LIKELIHOODS)],
    ids=["priors", "guides", "likelihoods"],
)
def test_every_public_part_is_in_its_table(family, table):
    assert {type(part.make()).__name__ for part in table.values()} == set(family.__all__)


# ---- densities


@all_parts
def test_density_integrates_to_one_and_the_sampler_follows_it(part):
    """Mean of log p and of a cosine over draws against their integrals, 5 standard errors."""
    p = density(part)
    x, log_volume = points(part, p.event_shape)
    log_p = p.log_prob(x).detach()
    weight = (log_p + log_volume).exp()
    assert weight.sum().item() == pytest.approx(1.0, abs=1e-4)
    draws = p.sample((20_000,))

    def cosine(t):
        return (t.flatten(1) * torch.arange(1.0, 1 + t[0].numel())).sum(-1).cos()

    for values, at_x in ((p.log_prob(draws), log_p), (cosine(draws), cosine(x))):
        exact = (weight * torch.nan_to_num(at_x, neginf=0.0)).sum()
        standard_error = values.std() / math.sqrt(len(values))
        # |z| < 5; the second line refuses a test that could not see a shift of 0.1
        assert abs(values.mean() - exact) < 5 * standard_error + 2e-4
        assert 8 * standard_error < 0.15


# ---- shapes


@priors_table
def test_prior_is_one_density_over_the_latent_vector(part):
    p_z = part.make()()
    assert p_z.batch_shape == ()
    assert len(p_z.event_shape) == 1
    assert p_z.expand([7]).sample().shape == (7, *p_z.event_shape)


@guides_table
def test_guide_has_one_density_a_datum(part):
    head = part.make()
    q_z = head(features_for(head, 7))
    assert q_z.batch_shape == (7,)
    assert len(q_z.event_shape) == 1
    z = q_z.sample((3,))
    assert z.shape == (3, 7, *q_z.event_shape)
    assert q_z.log_prob(z).shape == (3, 7)


@likelihoods_table
@pytest.mark.parametrize("batch", [(7,), (3, 7), (2, 3, 7)])
def test_likelihood_keeps_leading_sample_dimensions(part, batch):
    head = part.make()
    p_x = head(features_for(head, *batch))
    assert p_x.batch_shape == batch
    assert p_x.event_shape == head.event_shape
    assert p_x.log_prob(p_x.sample()).shape == batch


@heads_table
def test_wrong_width_names_both_widths(part):
    head = part.make()
    with pytest.raises(ConfigError, match=rf"needs {head.num_features} features.*returns 1\b"):
        head(torch.zeros(3, 1))


HAVE_LATENT_DIM = [
    *(priors.StandardNormal, priors.LearnedNormal, priors.GaussianMixture, priors.FlowPrior),
    *(guides.DiagonalNormal, guides.FullNormal, guides.LowRankNormal, guides.Laplace),
    *(guides.StudentT, guides.FlowGuide),
]


@pytest.mark.parametrize("latent_dim", [0, -1, 2.0, "2"])
@pytest.mark.parametrize("make", HAVE_LATENT_DIM)
def test_latent_dim_must_be_a_count(make, latent_dim):
    with pytest.raises(ConfigError, match=r"latent_dim = .*whole number ≥ 1"):
        make(latent_dim)


# ---- modules


@all_parts
def test_gradient_reaches_every_parameter_and_feature(part):
    module = part.make()
    inputs = ()
    if hasattr(module, "num_features"):
        inputs = (features_for(module, 7).requires_grad_(),)
    p = module(*inputs)
    tensors = (*module.parameters(), *inputs)
    if tensors:
        p.log_prob(p.sample()).sum().backward()
    for tensor in tensors:
        assert tensor.grad is not None
        assert torch.isfinite(tensor.grad).all()
        assert (tensor.grad != 0).any()


@all_parts
def test_dtype_follows_the_module(part):
    torch.set_default_dtype(torch.float32)
    module = part.make().to(torch.float64)
    inputs = ()
    if hasattr(module, "num_features"):
        inputs = (features_for(module, 7).to(torch.float64),)
    p = module(*inputs)
    assert p.log_prob(p.sample().double()).dtype == torch.float64


@all_parts
def test_state_dict_round_trip(part):
    torch.manual_seed(1)
    first = part.make()
    torch.manual_seed(2)
    second = part.make()
    second.load_state_dict(first.state_dict())
    inputs = (features_for(first, 7),) if hasattr(first, "num_features") else ()
    x = first(*inputs).sample()
    assert torch.equal(first(*inputs).log_prob(x), second(*inputs).log_prob(x))


@all_parts
def test_repr_is_one_readable_line(part):
    text = repr(part.make()).splitlines()[0]
    assert text[0].isupper()
    assert len(text) < 100


@heads_table
@pytest.mark.parametrize("size", [-1e6, 1e6])
def test_extreme_features_stay_finite_in_float32(part, size):
    torch.set_default_dtype(torch.float32)
    head = part.make()
    p = head(torch.full((2, head.num_features), size))
    assert torch.isfinite(p.log_prob(p.sample())).all()


# ---- the two readings: Pyro program and network


def assert_readings_agree(vae: VAE):
    x = vae.sample(6)
    readings = [(False, Trace_ELBO())]
    if vae.encode(x).has_rsample:  # TraceMeanField_ELBO takes no other guide
        readings.append((True, TraceMeanField_ELBO()))
    for analytic, elbo in readings:
        torch.manual_seed(5)
        neural = vae.loss(x, analytic_kl=analytic).sum().item()
        torch.manual_seed(5)
        probabilistic = elbo.loss(vae.model, vae.guide, x)
        assert neural == pytest.approx(probabilistic, abs=1e-10, rel=1e-12)


# between other spaces the KL is infinite
PAIRS = [(p, q) for p in PRIORS for q in GUIDES if PRIORS[p].space == GUIDES[q].space]


@pytest.mark.parametrize(("prior", "guide"), PAIRS)
def test_two_readings_agree_for_every_prior_and_guide(prior, guide):
    assert_readings_agree(vae_of(prior=PRIORS[prior].make(), guide=GUIDES[guide].make()))


@likelihoods_table
def test_two_readings_agree_for_every_likelihood(part):
    assert_readings_agree(vae_of(likelihood=part.make()))


def test_the_comparison_of_readings_can_fail():
    """Negative control: a reconstruction term off by a factor of 0.99 is seen."""
    vae = vae_of()
    x = vae.sample(6)
    torch.manual_seed(5)
    terms = vae.loss_terms(x)
    torch.manual_seed(5)
    elbo = TraceMeanField_ELBO().loss(vae.model, vae.guide, x)
    assert (0.99 * terms.reconstruction + terms.kl).sum().item() != pytest.approx(elbo, abs=1e-3)
