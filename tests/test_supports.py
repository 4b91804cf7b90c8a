"""Latents on other supports than the real line: every method against closed forms and quadrature.

The circle is periodic, a half-line has an edge at 0, a simplex couples its coordinates, and an
elementwise mixture lives on the real line.
"""

import math

import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyrovae as pv
from pyrovae.contract.densities import coordinate_of
from pyrovae.densities.supports import Wrap, support_of, transform_onto
from pyrovae.errors import ConfigError

AIS = {"num_samples": 64, "num_temperatures": 50}
X_ON_CIRCLE = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.1], [-1.0, -1.0]])


class Part(nn.Module):
    """A part from a function to a distribution, with a parameter so that the module has one."""

    def __init__(self, function):
        super().__init__()
        self.function, self.parameter = function, nn.Parameter(torch.zeros(()))

    def forward(self, *args):
        return self.function(*args)


def circular(concentration=3.0):
    """z ~ VonMises(0, 2), x ~ N((z, z)/2, 1/4): the decoder is not periodic, so ±π is an edge."""
    prior = pv.priors.Fixed(
        lambda loc, k: dist.VonMises(loc, k).to_event(1),
        loc=torch.zeros(1),
        k=torch.full((1,), 2.0),
    )
    encoder = Part(
        lambda x: dist.VonMises(
            torch.atan2(x[:, 1:], x[:, :1]), x.new_full((len(x), 1), concentration)
        ).to_event(1)
    )
    decoder = Part(lambda z: dist.Normal(torch.cat([z, z], -1) / 2, 0.5).to_event(1))
    return pv.VAE(prior, encoder, decoder)


def on_the_circle(vae, x, power=0):
    """log p(x), or E[z^power|x], by the midpoint rule over one period."""
    g = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000 * 2 * math.pi - math.pi
    z = g[:, None, None].expand(-1, len(x), 1)
    joint = vae.prior().log_prob(z) + vae.decode(z).log_prob(x)
    if power:
        return (joint.softmax(0)[..., None] * z**power).sum(0)[:, 0]
    return joint.logsumexp(0) + math.log(2 * math.pi / 20_000)


@pytest.mark.parametrize("method", ["iwae", "ais", "grid"])
def test_evidence_on_the_circle(method, float64):
    """Within five standard errors of quadrature; the grid within 1e-5 (an edge at ±π)."""
    vae, x = circular(), X_ON_CIRCLE.double()
    options = {"iwae": {"num_samples": 20_000}, "ais": AIS, "grid": {}}
    found = pv.log_evidence(vae, x, method=method, **options[method])
    error = (found.log_px - on_the_circle(vae, x)).abs()
    assert (error < 5 * found.std_error + 1e-5).all()
    assert method == "iwae" or found.std_error.max() < 0.05


@pytest.mark.parametrize("method", ["hmc", "grid"])
def test_posterior_on_the_circle(method, float64):
    """Draws stay on the circle, with the mean and the second moment of quadrature."""
    vae, x = circular(), X_ON_CIRCLE.double()
    options = {
        "hmc": {"num_samples": 80, "num_warmup": 60, "num_chains": 16},
        "grid": {"num_samples": 2000},
    }
    draws = getattr(pv.posterior, method)(vae, x, **options[method]).draws.flatten(0, 1)
    assert draws.abs().max() <= math.pi
    for power in (1, 2):
        exact = on_the_circle(vae, x, power)
        error = (draws**power).std(0)[:, 0] / math.sqrt(150)  # an ESS that both exceed
        assert ((draws**power).mean(0)[:, 0] - exact).abs().lt(5 * error).all()


def test_the_circle_in_words_and_maps():
    z = torch.tensor([3.0, -3.0, 0.5])
    assert torch.allclose(Wrap()(z + 2 * math.pi), z, atol=1e-6)
    assert support_of(circular().prior()).check(z[:, None]).all()
    angle = dist.VonMises(torch.zeros(1), 1.0)
    for wrapped in (angle.mask(True).expand([3, 1]), angle.expand([3, 1]).mask(True).to_event(1)):
        assert "Circle" in repr(coordinate_of(support_of(wrapped)))
    stretched = dist.TransformedDistribution(angle, [dist.transforms.AffineTransform(0.0, 2.0)])
    assert "Circle" not in repr(support_of(stretched))
    vae = circular()
    normal = Part(lambda x: dist.Normal(x[:, :1], 1.0).to_event(1))
    with pytest.raises(ConfigError, match="lives on the circle, but the encoder"):
        pv.elbo_terms(pv.VAE(vae.prior, normal, vae.decoder), X_ON_CIRCLE)


def test_an_angle_that_is_nearly_uniform_is_not_active():
    """The location of a flat density is uninformative, that of a concentrated one is not."""
    flat, sharp = circular(1e-4), circular(20.0)
    assert pv.diagnostics.active_units(flat, X_ON_CIRCLE, num_samples=400).num_active == 0
    found = pv.diagnostics.active_units(sharp, X_ON_CIRCLE, num_samples=400)
    points = torch.polar(torch.ones(4), torch.atan2(X_ON_CIRCLE[:, 1], X_ON_CIRCLE[:, 0]))
    resultant = 0.9746  # I₁(20) / I₀(20)
    exact = resultant**2 * float((points - points.mean()).abs().square().sum() / 3)
    assert found.variance[0] == pytest.approx(exact, abs=0.05)


@pytest.mark.parametrize("shape", [0.5, 1.0, 1.5, 2.0, 3.0])
@pytest.mark.parametrize("num", [1, 5])
def test_a_grid_on_the_half_line_is_exact_at_its_edge(shape, num):
    """z ~ Gamma(c, 1), x_j ~ Poisson(z): log p(x) in closed form, to 1e-6; z|x ~ Gamma(c + Σx)."""
    vae, x = poisson_gamma(shape, num)
    total = x.sum(-1).double()
    c, rate = torch.tensor(shape).double(), torch.tensor(num + 1.0).double()
    exact = torch.lgamma(total + c) - torch.lgamma(c) - (total + c) * rate.log()
    exact = exact - torch.lgamma(x.double() + 1).sum(-1)
    found = pv.log_evidence(vae, x, method="grid")
    assert torch.allclose(found.log_px, exact, atol=1e-6)
    draws = pv.posterior.grid(vae, x, num_samples=4000).draws[0, ..., 0]
    mean, variance = (total + c) / rate, (total + c) / rate**2
    assert ((draws.mean(0) - mean).abs() < 5 * (variance / 4000).sqrt()).all()
    assert (draws > 0).all()


def poisson_gamma(shape, num):
    prior = pv.priors.Fixed(
        lambda c, r: dist.Gamma(c, r).to_event(1), c=torch.tensor([shape]), r=torch.ones(1)
    )
    decoder = Part(lambda z: dist.Poisson(z.expand(*z.shape[:-1], num)).to_event(1))

    def encode(x):
        loc = ((x.sum(-1, keepdim=True) + shape) / (num + 1)).log() - 0.1
        return dist.LogNormal(loc, 0.4 * torch.ones_like(loc)).to_event(1)

    return pv.VAE(prior, Part(encode), decoder), torch.arange(4.0)[:, None].expand(4, num).clone()


def test_a_grid_on_the_simplex_is_exact():
    """z ~ Dirichlet, x ~ Multinomial(z): the Dirichlet-multinomial, over three classes."""
    prior = pv.priors.Fixed(dist.Dirichlet, concentration=torch.tensor([1.5, 2.0, 3.0]))
    encoder = Part(lambda x: dist.Dirichlet(x + 2.0))
    decoder = Part(lambda z: dist.Multinomial(4, probs=z, validate_args=False))
    x = torch.tensor([[4.0, 0.0, 0.0], [1.0, 2.0, 1.0]])
    exact = dist.DirichletMultinomial(torch.tensor([1.5, 2.0, 3.0]), 4).log_prob(x).double()
    vae = pv.VAE(prior, encoder, decoder)
    assert torch.allclose(pv.log_evidence(vae, x, method="grid").log_px, exact, atol=1e-5)
    found = pv.log_evidence(vae, x, method="ais", **AIS)
    assert ((found.log_px - exact).abs() < 5 * found.std_error + 1e-3).all()


def test_an_elementwise_mixture_is_on_the_real_line():
    """Spike and slab: AIS and HMC agree with the grid."""

    def spike_and_slab(w, s):
        mixture = dist.MixtureSameFamily(dist.Categorical(w), dist.Normal(torch.zeros_like(s), s))
        return mixture.to_event(1)

    prior = pv.priors.Fixed(spike_and_slab, w=torch.ones(1, 2), s=torch.tensor([[0.05, 1.5]]))
    torch.manual_seed(1)
    x, base = (torch.rand(3, 6) > 0.5).float(), pv.build(6, latent_dim=1, seed=0)
    vae = pv.VAE(prior, base.encoder, base.decoder)
    exact = pv.log_evidence(vae, x, method="grid").log_px
    found = pv.log_evidence(vae, x, method="ais", **AIS)
    assert ((found.log_px - exact).abs() < 5 * found.std_error + 1e-3).all()
    draws = pv.posterior.hmc(vae, x, num_samples=20, num_warmup=9).draws
    assert draws.shape == (4, 20, 3, 1)
    assert draws.isfinite().all()


def interval_vae(guide):
    """z ~ Uniform(−1, 2), x ~ N(z, 1/4), by a guide of one number."""
    prior = pv.priors.Fixed(
        lambda a, b: dist.Uniform(a, b).to_event(1), a=-torch.ones(1), b=torch.full((1,), 2.0)
    )
    return pv.VAE(prior, Part(guide), Part(lambda z: dist.Normal(z, 0.5).to_event(1)))


@pytest.mark.parametrize("loc_scale", [(-1.0, 3.0), (2.0, -3.0)], ids=["rising", "falling"])
def test_a_guide_by_an_affine_map_onto_an_interval(loc_scale, float64):
    """Beta stretched onto (−1, 2): accepted, and the evidence is [Φ(b) − Φ(a)] / 3."""

    def stretched(x):
        maps = [dist.transforms.AffineTransform(*loc_scale)]
        return dist.TransformedDistribution(
            dist.Beta(x.new_full((len(x), 1), 1.5), 1.5), maps
        ).to_event(1)

    vae, x = interval_vae(stretched), torch.tensor([[0.0], [1.9], [-0.8]]).double()
    normal = dist.Normal(x[:, 0], 0.5)
    exact = ((normal.cdf(torch.tensor(2.0)) - normal.cdf(torch.tensor(-1.0))) / 3).log()
    for method in ("iwae", "grid"):
        found = pv.log_evidence(vae, x, method=method)
        assert ((found.log_px - exact).abs() < 5 * found.std_error + 1e-6).all()


def test_a_guide_stretched_too_far_is_refused():
    def stretched(x):
        maps = [dist.transforms.AffineTransform(-2.0, 4.0)]
        return dist.TransformedDistribution(dist.Uniform(x.new_zeros(len(x), 1), 1.0), maps)

    vae = interval_vae(lambda x: stretched(x).to_event(1))
    with pytest.raises(ConfigError, match=r"at -2, for example"):
        pv.elbo_terms(vae, torch.zeros(3, 1))


def test_supports_without_a_map_are_refused():
    for density in (dist.Bernoulli(0.5), dist.Poisson(2.0)):
        with pytest.raises(NotImplementedError):
            transform_onto(support_of(density))
