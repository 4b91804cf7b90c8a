"""Latents on the sphere: densities against mpmath and quadrature, the sampler, its gradient."""

import math

import mpmath
import numpy as np
import pytest
import torch
from scipy import stats
from torch.distributions import kl_divergence
from torch.nn.functional import normalize

import pyrovae as pv
from pyrovae import guides, priors
from pyrovae.densities.sphere import HypersphericalUniform, PowerSpherical, log_area
from pyrovae.errors import ConfigError

DIMS = (2, 3, 17, 1024)
KAPPAS = (1e-6, 1.0, 100.0, 1e4)


def bump(dim: int, kappa: float, dtype=torch.float64) -> PowerSpherical:
    direction = normalize(torch.randn(dim, dtype=torch.float64), dim=0).to(dtype)
    return PowerSpherical(direction, torch.tensor(kappa, dtype=dtype))


def exact_log_density(direction, kappa, z) -> float:
    """De Cao & Aziz, eqs 3 and 5, in 50 digits; the two vectors are read as directions."""
    with mpmath.workdps(50):
        mu, z = ([mpmath.mpf(float(c)) for c in v] for v in (direction, z))
        lengths = mpmath.sqrt(mpmath.fdot(mu, mu) * mpmath.fdot(z, z))
        beta = mpmath.mpf(len(mu) - 1) / 2
        alpha = beta + mpmath.mpf(float(kappa))
        log_normalizer = (alpha + beta) * mpmath.log(2) + beta * mpmath.log(mpmath.pi)
        log_normalizer += mpmath.loggamma(alpha) - mpmath.loggamma(alpha + beta)
        cosine = mpmath.fdot(mu, z) / lengths
        return float(mpmath.mpf(float(kappa)) * mpmath.log(1 + cosine) - log_normalizer)


# ---- density


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("kappa", KAPPAS)
def test_float32_log_density_is_that_of_mpmath(dim, kappa):
    q = bump(dim, kappa, torch.float32)
    anywhere = HypersphericalUniform(dim).sample((2,))
    near_antipode = normalize(-q.direction + 1e-4 * torch.randn(dim), dim=0)[None]
    for z in torch.cat([q.sample((3,)), q.direction[None], anywhere, near_antipode]):
        exact = exact_log_density(q.direction, q.concentration, z)
        assert q.log_prob(z).item() == pytest.approx(exact, rel=1e-4)


def test_antipode_and_extreme_concentration_are_finite():
    for kappa in (1e-6, 1e4, 1e6):
        q = bump(3, kappa, torch.float32)
        assert torch.isfinite(q.log_prob(-q.direction))
        assert q.log_prob(-q.direction) < q.log_prob(q.direction)


def along_a_meridian(dim: int):
    """Return z at Gauss-Legendre angles θ from e₁, and the log area of the ring of each."""
    node, weight = (torch.tensor(a) for a in np.polynomial.legendre.leggauss(600))
    theta = (1 + node) * math.pi / 2
    z = torch.zeros(len(theta), dim)
    z[:, 0], z[:, 1] = theta.cos(), theta.sin()
    log_ring = log_area(dim - 1) if dim > 2 else math.log(2.0)
    return z, log_ring + (dim - 2) * theta.sin().log() + (weight * math.pi / 2).log()


def at_first_axis(dim: int, kappa: float) -> PowerSpherical:
    return PowerSpherical(torch.eye(dim)[0], torch.tensor(kappa))


@pytest.mark.parametrize("dim", [2, 3, 5, 32])
@pytest.mark.parametrize("kappa", [0.3, 4.0, 60.0])
def test_density_entropy_and_kl_by_quadrature(dim, kappa, float64):
    q = at_first_axis(dim, kappa)
    z, log_volume = along_a_meridian(dim)
    log_q = q.log_prob(z)
    weight = (log_q + log_volume).exp()
    tolerance = 1e-7  # the density ~ (π − θ)^0.6 at κ = 0.3 costs 600 nodes 1e-9
    assert weight.sum().item() == pytest.approx(1.0, abs=tolerance)
    assert -(weight * log_q).sum().item() == pytest.approx(q.entropy().item(), abs=tolerance)
    kl = kl_divergence(q, HypersphericalUniform(dim)).item()
    assert (weight * (log_q + log_area(dim))).sum().item() == pytest.approx(kl, abs=tolerance)
    # negative control: the normalizer of a slightly different κ is seen
    wrong = log_q + q._log_normalizer() - at_first_axis(dim, 1.01 * kappa)._log_normalizer()
    assert (wrong + log_volume).exp().sum().item() != pytest.approx(1.0, abs=5 * tolerance)


def test_kl_at_extremes(float64):
    """0 for κ → 0, growing with κ, and the Monte-Carlo mean of log q − log p."""
    for dim in DIMS:
        kl = [kl_divergence(bump(dim, k), HypersphericalUniform(dim)).item() for k in KAPPAS]
        assert abs(kl[0]) < 1e-10
        assert kl == sorted(kl)
        q = bump(dim, 100.0)
        values = q.log_prob(q.sample((10_000,))) + log_area(dim)
        standard_error = values.std().item() / 100
        assert abs(values.mean().item() - kl[2]) < 5 * standard_error
        assert 8 * standard_error < 0.25  # else it could not see a quarter of a nat


def test_uniform_density_is_one_over_the_area():
    for dim, area in ((2, 2 * math.pi), (3, 4 * math.pi), (4, 2 * math.pi**2)):
        p = HypersphericalUniform(dim)
        assert p.log_prob(p.sample((5,))).tolist() == pytest.approx([-math.log(area)] * 5)
        assert p.entropy().item() == pytest.approx(math.log(area))


# ---- sampler


@pytest.mark.parametrize("dim", [2, 3, 17])
@pytest.mark.parametrize("kappa", [1e-6, 1.0, 1e4])
def test_sampler_follows_the_density(dim, kappa, float64):
    """(1 + μᵀz)/2 ~ Beta(α, β) by Kolmogorov-Smirnov, and all moments of first and second order."""
    q = bump(dim, kappa)
    z = q.sample((20_000,))
    beta = (dim - 1) / 2
    b = ((1 + z @ q.direction) / 2).clamp(0, 1)
    p_value = stats.kstest(b.numpy(), stats.beta(beta + kappa, beta).cdf).pvalue
    assert p_value > 1e-6
    for mean, exact in ((z, q.mean), ((z - q.mean) ** 2, q.variance)):
        error = (mean.mean(0) - exact).abs() / (mean.std(0) / math.sqrt(len(z)))
        assert error.max() < 5
    # around μ no direction is preferred: the tangent parts average to 0
    tangent = z - (z @ q.direction)[:, None] * q.direction
    assert (tangent.mean(0).abs() / (tangent.std(0) / math.sqrt(len(z)))).max() < 5


def test_kolmogorov_smirnov_sees_a_wrong_concentration(float64):
    """Negative control of the test above."""
    q = at_first_axis(3, 1.2)
    b = (1 + q.sample((20_000,))[:, 0]) / 2
    assert stats.kstest(b.numpy(), stats.beta(2.0, 1.0).cdf).pvalue < 1e-6


@pytest.mark.parametrize("dim", [2, 3, 17])
@pytest.mark.parametrize("kappa", [0.5, 5.0, 1e4])
def test_pathwise_gradient_in_concentration_and_direction(dim, kappa, float64):
    """E[μᵀz] = κ/(κ + D − 1): its derivative in κ, and in an unnormalized direction."""
    copies = 20_000
    raw = torch.randn(dim).expand(copies, dim).clone().requires_grad_()
    kappas = torch.full((copies,), kappa, requires_grad=True)
    q = PowerSpherical(normalize(raw, dim=-1), kappas)
    fixed = torch.randn(dim)
    z = q.rsample()
    (d_kappa,) = torch.autograd.grad((z * q.direction.detach()).sum(), kappas, retain_graph=True)
    (d_raw,) = torch.autograd.grad((z @ fixed).sum(), raw)

    exact = (dim - 1) / (dim - 1 + kappa) ** 2
    standard_error = d_kappa.std().item() / math.sqrt(copies)
    # 1.5e-3 relative is what torch's derivative of the Beta draw is off by (traced to mpmath)
    assert abs(d_kappa.mean().item() - exact) < 5 * standard_error + 1.5e-3 * exact
    assert 8 * standard_error < 0.2 * exact

    one = raw[:1].detach().requires_grad_()
    mean = kappa / (kappa + dim - 1) * normalize(one, dim=-1)
    (exact_raw,) = torch.autograd.grad((mean @ fixed).sum(), one)
    error = (d_raw.mean(0) - exact_raw[0]).abs()
    assert (error / (d_raw.std(0) / math.sqrt(copies) + 1e-12)).max() < 5


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("kappa", [1e-6, 1e-5, 1.0, 1e4, 1e6])
def test_float32_draws_and_gradients_are_finite_and_on_the_sphere(dim, kappa):
    direction = normalize(torch.randn(200, dim), dim=-1)
    direction[:2] = torch.eye(dim)[0] * torch.tensor([[1.0], [-1.0]])  # where reflections fail
    direction.requires_grad_()
    concentration = torch.full((200,), kappa, requires_grad=True)
    q = PowerSpherical(direction, concentration)
    z = q.rsample()
    assert z.dtype == torch.float32
    assert q.support.check(z).all()
    # 5 standard deviations of μᵀz, whose mean is κ/(κ + D − 1) with variance below 1/dim + 1/κ²
    assert abs((z * direction).sum(-1).mean() - kappa / (kappa + dim - 1)) < 5 / math.sqrt(200)
    (z.sum() + q.log_prob(z).sum()).backward()
    for gradient in (direction.grad, concentration.grad):
        assert torch.isfinite(gradient).all()


# ---- the parts


def test_no_direction_is_the_first_axis_without_gradient():
    head = guides.PowerSpherical(3)
    features = torch.tensor([[0.0, 0.0, 0.0, 1.0], [0.0, -3.0, 4.0, 1.0]], requires_grad=True)
    q = head(features)
    assert torch.allclose(q.direction, torch.tensor([[1.0, 0.0, 0.0], [0.0, -0.6, 0.8]]))
    (q.rsample().sum() + q.log_prob(torch.eye(3)[:2]).sum()).backward()
    assert torch.isfinite(features.grad).all()
    assert (features.grad[0, :3] == 0).all()
    assert (features.grad[1] != 0).all()


@pytest.mark.parametrize("size", [-1e6, 1e6])
def test_extreme_features_have_finite_gradients(size):
    head = guides.PowerSpherical(4)
    features = torch.full((3, 5), size, requires_grad=True)
    q = head(features)
    (q.rsample().sum() + kl_divergence(q, priors.HypersphericalUniform(4)()).sum()).backward()
    assert torch.isfinite(features.grad).all()


@pytest.mark.parametrize("part", [priors.HypersphericalUniform, guides.PowerSpherical])
def test_the_sphere_in_one_dimension_is_refused(part):
    with pytest.raises(ConfigError, match=r"latent_dim = 1.*\n.*latent_dim=2"):
        part(1)
    with pytest.raises(ConfigError, match="latent_dim"):
        part(2.0)


def test_a_spherical_vae_trains_and_its_kl_is_analytic():
    x = pv.datasets.binarize(pv.datasets.digits().train)[:300]
    vae = pv.build(
        (8, 8), latent_dim=3, prior="HypersphericalUniform", guide="PowerSpherical", seed=0
    )
    history = pv.fit(vae, x, epochs=8, learning_rate=5e-3, progress=False)
    assert history[-1].elbo > history[0].elbo + 10
    assert vae.loss_terms(x).is_kl_analytic
    terms = pv.elbo_terms(vae, x, num_samples=3)
    assert torch.allclose(terms.latents["z"].norm(dim=-1), torch.ones(()))


def test_elbo_on_the_circle_is_that_of_quadrature(float64):
    """The ELBO by 2,000 angles, and below log p(x)."""
    vae = pv.build(
        (3,), latent_dim=2, prior="HypersphericalUniform", guide="PowerSpherical", seed=0
    )
    x = torch.tensor([[1.0, 0.0, 1.0]])
    angle = torch.arange(2000) * (2 * math.pi / 2000)
    z = torch.stack([angle.cos(), angle.sin()], -1)[:, None]
    log_volume = math.log(2 * math.pi / 2000)
    with torch.no_grad():
        q_z, log_joint = vae.encode(x), vae.decode(z).log_prob(x) + vae.prior().log_prob(z)
        log_q = q_z.log_prob(z)
        exact = ((log_q + log_volume).exp() * (log_joint - log_q)).sum().item()
        log_evidence = (log_joint + log_volume).logsumexp(0).item()
        terms = pv.elbo_terms(vae, x, num_samples=20_000)
    standard_error = terms.log_weights.std().item() / math.sqrt(20_000)
    assert abs(terms.log_weights.mean().item() - exact) < 5 * standard_error
    assert 8 * standard_error < 0.05
    assert exact < log_evidence
