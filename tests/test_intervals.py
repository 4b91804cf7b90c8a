"""Intervals for log p(x): mixtures of proposals, refined densities, and which method answers."""

import math

import pyro.distributions as dist
import pytest
import torch
from benchmarks import interval_coverage
from oracles import AffineEncoder, ExactEncoder, Ladder, LinearGaussian, wide_guide
from torch import nn

import pyrovae as pv
from pyrovae.core.draws import diagnosing
from pyrovae.core.joint import Unconstrained, joint_of
from pyrovae.core.proposals import of_guide, widening
from pyrovae.data import Batch
from pyrovae.errors import ConfigError
from pyrovae.evidence import AIS, IWAE, Auto, Importance, Refined
from pyrovae.evidence.interval import interval
from pyrovae.evidence.refined import Parameters, optimized

pytestmark = pytest.mark.usefixtures("float64")


def positive_vae() -> pv.VAE:
    """A VAE with one latent on the half-line: p(z) = Gamma(2, 1), q(z|x) log-normal."""

    class LogNormal(nn.Module):
        def forward(self, x):
            return dist.LogNormal(x[:, :1] - 0.2, torch.full_like(x[:, :1], 0.4)).to_event(1)

    class Decoder(nn.Module):
        def forward(self, z):
            return dist.Normal(z.log().expand(*z.shape[:-1], 2), 1.0).to_event(1)

    prior = pv.priors.Fixed(
        lambda a, b: dist.Gamma(a, b).to_event(1), a=torch.full((1,), 2.0), b=torch.ones(1)
    )
    return pv.VAE(prior, LogNormal(), Decoder())


# ---- mixtures of proposals


def test_every_component_is_a_density_and_draws_from_it():
    vae, x = positive_vae(), torch.tensor([[0.3, 0.1], [1.0, 1.5]])
    with diagnosing(vae, 0):
        mixture = of_guide(joint_of(vae, Batch(x)))
        u = torch.linspace(-25, 15, 8001)[:, None, None].expand(-1, 2, 1)
        log_prior = mixture.space.terms(u)[0]
        for component in mixture.components:
            density = component.log_prob(u, log_prior).exp()
            step = float(u[1, 0, 0] - u[0, 0, 0])
            torch.testing.assert_close(density.sum(0) * step, torch.ones(2), rtol=0, atol=1e-4)
            draws = component.draw(4000)[..., 0]
            # mean of draws: 5 standard errors
            mean = (density * u[..., 0]).sum(0) * step
            assert ((draws.mean(0) - mean).abs() < 5 * draws.std(0) / 4000**0.5).all()
    assert sum(component.share for component in mixture.components) == pytest.approx(1)
    assert mixture.is_widened


def test_weights_of_every_component_together_average_to_the_evidence():
    """E_r[w] = p(x), also where the guide is much too narrow."""
    truth = LinearGaussian()
    x = truth.sample(5)
    v = torch.linalg.solve(truth.m, truth.weight.T)
    vae = truth.vae(AffineEncoder(v, truth.mean, torch.full((2,), 1e-3)))
    found = pv.log_evidence(vae, x, num_samples=20_000)
    z = (found.log_px - truth.log_evidence(x)) / found.std_error
    assert z.abs().max() < 4.5
    assert (found.std_error < 0.1).all()
    alone = pv.log_evidence(vae, x, method="iwae", num_samples=20_000)  # negative control
    assert ((alone.log_px - truth.log_evidence(x)) / alone.std_error).abs().max() > 10


@pytest.mark.parametrize("dim", [1, 10, 200])
def test_widening_has_the_divergence_that_it_says(dim):
    s = widening(0.25, dim)
    narrow = dist.Normal(torch.zeros(dim), 1.0).to_event(1)
    wide = dist.Normal(torch.zeros(dim), s).to_event(1)
    assert torch.distributions.kl_divergence(narrow, wide).item() == pytest.approx(0.25)


def test_latents_without_a_map_from_the_line_have_no_widened_guides():
    vae = pv.build((3,), latent_dim=3, prior="HypersphericalUniform", guide="PowerSpherical")
    x = torch.eye(3)
    few, many = (pv.log_evidence(vae, x, num_samples=k) for k in (100, 1000))
    assert few.upper.isinf().all()  # guide and prior alone need more draws for an interval
    assert many.upper.isfinite().all()
    exact = pv.log_evidence(vae, x, method="iwae", num_samples=200_000).log_px
    assert ((many.log_px - exact).abs() < 4.5 * many.std_error).all()


def test_draws_per_datum_are_at_least_a_few_of_each_component():
    vae = pv.build((3,), latent_dim=1)
    with pytest.raises(ConfigError, match="num_samples = 5, but it must be at least 20"):
        pv.log_evidence(vae, torch.eye(3), num_samples=5)


# ---- intervals


def test_interval_of_equal_weights_is_a_point():
    log_px, std_error, lower, upper = interval(torch.full((50, 2), -3.0), [20, 30])
    for number in (log_px, lower, upper):
        torch.testing.assert_close(number, torch.full((2,), -3.0))
    assert (std_error == 0).all()


def test_weights_of_zero_have_no_interval():
    *_, lower, upper = interval(torch.full((50, 1), -math.inf), [50])
    assert lower.item() == -math.inf
    assert upper.isnan().item() or upper.item() == math.inf


def test_standard_error_is_that_of_strata():
    """Components whose weights differ only between them have no error."""
    log_weights = torch.cat([torch.zeros(40, 1), torch.ones(60, 1)])
    assert interval(log_weights, [40, 60])[1].item() == pytest.approx(0, abs=1e-12)
    assert interval(log_weights, [100])[1].item() > 0.01


def covered(vae, x, exact, method, repetitions: int) -> torch.Tensor:
    """1 where the interval contains log p(x), 0 where not, NaN without an interval."""
    every = [pv.log_evidence(vae, x, method=method, seed=seed) for seed in range(repetitions)]
    lower, upper = (torch.stack([getattr(e, end) for e in every]) for end in ("lower", "upper"))
    contains = ((lower <= exact) & (exact <= upper)).double()
    return contains.where(upper.isfinite(), torch.nan)


@pytest.mark.parametrize("num_samples", [100, 1000])
def test_intervals_cover_where_the_error_of_the_guide_alone_does_not(num_samples):
    """Untrained, two latents: the guide is narrower than the posterior."""
    x = (torch.rand(50, 12) > 0.5).double()
    vae = pv.build((12,), latent_dim=2, hidden=(16,), seed=0).double()
    exact = pv.log_evidence(vae, x, method="grid").log_px
    found = covered(vae, x, exact, Importance(num_samples), 20)
    assert found.isfinite().double().mean() > 0.95
    # 1000 intervals: the binomial error of 0.95 is 0.007
    assert 0.92 < found[found.isfinite()].mean() < 0.985
    alone = pv.log_evidence(vae, x, method=IWAE(num_samples))
    is_good = alone.pareto_k < pv.core.pareto.pareto_k_threshold(num_samples)
    naive = ((alone.log_px - exact).abs() < 1.96 * alone.std_error)[is_good]
    assert naive.double().mean() < 0.8  # negative control
    assert alone.upper.isinf().all()  # so it states no interval


@pytest.mark.slow
def test_intervals_cover_on_every_model_for_every_method():
    """Four models, untrained and trained; the numbers are printed by `pytest -s`."""
    torch.set_default_dtype(torch.float32)
    found = list(interval_coverage.cells())
    print(*found, sep="\n")
    stated = [cell for cell in found if not cell.method.startswith(interval_coverage.ALONE)]
    for cell in stated:
        # 2.5 binomial errors on top of 0.90 to 0.99
        slack = 2.5 * (0.05 * 0.95 / max(1, cell.num_intervals)) ** 0.5
        assert cell.num_intervals < 20 or 0.90 - slack < cell.coverage < 0.99 + slack, cell
    assert sum(cell.share > 0.5 for cell in stated) > 0.7 * len(stated)
    alone = [cell.coverage for cell in found if cell.method.startswith(interval_coverage.ALONE)]
    assert min(alone) < 0.7  # negative control


def correlated(num_features: int = 8, latent_dim: int = 5) -> LinearGaussian:
    return LinearGaussian(num_features, latent_dim, sigma=0.3)


def test_a_poor_proposal_gives_a_bound_without_an_interval():
    truth = correlated()
    x = truth.sample(20)
    vae = truth.vae(AffineEncoder(torch.zeros(5, 8), truth.mean, torch.full((5,), 0.01)))
    found = pv.log_evidence(vae, x, num_samples=200)
    assert found.upper.isinf().all()
    assert (found.lower <= truth.log_evidence(x)).all()  # each with probability 95 % at least
    torch.testing.assert_close(found.log_px - found.lower, torch.full((20,), math.log(20)))


# ---- densities refined per datum


def test_refined_density_is_a_normal_density():
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(3, 4, generator=generator) for _ in range(4)]
    below = torch.randn(3, 4, 4, generator=generator)
    found = Parameters(parts[0], parts[1].exp(), parts[2], parts[3], below)
    normal = found.density()
    factor = below.tril(-1) + torch.eye(4)
    factor = found.scale[..., None] * found.log_diagonal.exp()[..., None] * factor
    mean = found.center + found.scale * found.loc
    expected = dist.MultivariateNormal(mean, scale_tril=factor)
    u = expected.sample((6,))
    torch.testing.assert_close(normal.log_prob(u), expected.log_prob(u), rtol=0, atol=1e-9)
    draws = normal.sample((20_000,))
    z = (draws.mean(0) - mean) / (expected.stddev / 20_000**0.5)
    assert z.abs().max() < 5
    covariance = torch.einsum("sni,snj->nij", draws - mean, draws - mean) / len(draws)
    torch.testing.assert_close(covariance, expected.covariance_matrix, rtol=0.1, atol=0.1)


def test_refined_density_is_the_posterior_where_that_is_normal():
    """From a guide that is far off, with correlated latents."""
    truth = correlated()
    x = truth.sample(6)
    vae = truth.vae(AffineEncoder(torch.zeros(5, 8), truth.mean, torch.ones(5)))
    with diagnosing(vae, 0):
        space = Unconstrained(joint_of(vae, Batch(x)), method="")
        found = optimized(space, 1500, 0.2)
        draws = found.sample((4000,))
    posterior = truth.posterior(x)
    sd = posterior.stddev.expand_as(posterior.loc)
    assert ((draws.mean(0) - posterior.loc) / sd).abs().max() < 0.15
    torch.testing.assert_close(draws.std(0), sd, rtol=0.15, atol=0)
    kept = pv.log_evidence(vae, x, method=Refined(1000))
    assert kept.upper.isfinite().all()
    assert ((kept.log_px - truth.log_evidence(x)).abs() < 4.5 * kept.std_error).all()
    assert (kept.std_error < 0.05).all()
    plain = pv.log_evidence(vae, x)  # negative control: the guide's own mixture says nothing
    assert plain.upper.isinf().any()


def test_refined_takes_any_program_on_the_line():
    x = torch.tensor([[1.0, 0.5], [-2.0, -1.0], [0.0, 3.0]])
    exact = dist.MultivariateNormal(torch.zeros(2), Ladder.covariance).log_prob(x)
    found = pv.log_evidence(Ladder(), x, method="refined")
    assert ((found.log_px - exact).abs() < 4.5 * found.std_error).all()
    half_line = positive_vae()
    found = pv.log_evidence(half_line, x, method="refined")
    exact = pv.log_evidence(half_line, x, method="grid").log_px
    assert ((found.log_px - exact).abs() < 4.5 * found.std_error).all()


# ---- targets, and the method that answers


def test_draws_double_until_the_error_is_below_the_target():
    truth = LinearGaussian()
    vae, x = truth.vae(wide_guide(truth)), truth.sample(5)
    found = pv.log_evidence(vae, x, num_samples=100, std_error=0.01)
    assert (found.std_error <= 0.01).all()
    assert ((found.log_px - truth.log_evidence(x)).abs() < 4.5 * found.std_error).all()
    by_ess = pv.log_evidence(vae, x, num_samples=100, ess=2000)
    assert (by_ess.ess >= 2000).all()
    stopped = pv.log_evidence(vae, x, num_samples=100, std_error=1e-6, max_samples=500)
    assert (stopped.std_error > 1e-6).all()
    assert (stopped.ess <= 400).all()


def test_auto_is_the_grid_in_two_dimensions():
    vae, x = pv.build((3,), latent_dim=2, seed=0), torch.eye(3)
    found = pv.log_evidence(vae, x, method="auto")
    assert found.methods == ("grid",) * 3
    assert torch.equal(found.log_px, pv.log_evidence(vae, x, method="grid").log_px)


def test_auto_leaves_a_grid_that_would_need_too_many_cells(monkeypatch):
    vae, x = pv.build((3,), latent_dim=2, seed=0), torch.eye(3)
    with pytest.raises(ConfigError, match="has not converged"):
        pv.log_evidence(vae, x, method="grid", max_cells=1000)
    monkeypatch.setattr(pv.evidence.auto, "GRID_CELLS", 1000)
    exact = pv.log_evidence(vae, x, method="grid").log_px
    found = pv.log_evidence(vae, x, method="auto")
    assert "grid" not in found.methods
    assert ((found.log_px - exact).abs() < 4.5 * found.std_error).all()


def test_auto_answers_each_datum_by_the_first_method_that_can():
    """A guide that is right for some data, and far off for the others."""
    truth = correlated(latent_dim=3)
    x = truth.sample(8)
    x[4:] = truth.mean + 3 * (x[4:] - truth.mean)

    class Partly(nn.Module):
        def __init__(self):
            super().__init__()
            self.exact = ExactEncoder(truth)

        def forward(self, x):
            posterior = self.exact(x)
            is_far = ((x - truth.mean).norm(dim=-1, keepdim=True) > 6).double()
            factor = posterior.scale_tril * (1 - 0.7 * is_far)[..., None]
            return dist.MultivariateNormal(posterior.loc + 0.3 * is_far, scale_tril=factor)

    vae = truth.vae(Partly())
    is_far = (x - truth.mean).norm(dim=-1) > 6
    assert 0 < is_far.sum() < 8
    found = pv.log_evidence(vae, x, method="auto")
    assert [m == "importance" for m in found.methods] == (~is_far).tolist()
    assert {found.methods[i] for i in is_far.nonzero()[:, 0]} <= {"refined", "ais"}
    assert ((found.log_px - truth.log_evidence(x)).abs() < 4.5 * found.std_error).all()
    assert found.rows.tolist() == list(range(8))
    cheap = pv.log_evidence(vae, x, method="auto", max_evaluations=2000)
    assert set(cheap.methods) == {"importance"}
    assert cheap.upper[is_far].isinf().all()


def test_auto_draws_more_towards_a_target_within_its_budget():
    truth = correlated(latent_dim=3)
    vae, x = truth.vae(AffineEncoder(torch.zeros(3, 8), truth.mean, torch.ones(3))), truth.sample(5)
    fine = pv.log_evidence(vae, x, method="auto", std_error=0.01)
    assert (fine.std_error <= 0.01).all()
    assert ((fine.log_px - truth.log_evidence(x)).abs() < 4.5 * fine.std_error).all()
    assert fine.methods == ("refined",) * 5
    unreachable = pv.log_evidence(vae, x, method="auto", std_error=1e-9, max_evaluations=8000)
    assert (unreachable.ess < 8000).all()
    assert ((unreachable.log_px - truth.log_evidence(x)).abs() < 4.5 * unreachable.std_error).all()


def test_auto_skips_methods_that_the_program_does_not_support():
    vae = pv.build((3,), latent_dim=3, prior="HypersphericalUniform", guide="PowerSpherical")
    found = pv.log_evidence(vae, torch.eye(3), method=Auto(num_samples=100))
    assert found.methods == ("importance",) * 3
    assert found.upper.isinf().all()


def test_auto_keeps_the_data_in_blocks_in_order(monkeypatch):
    truth = LinearGaussian(5, 3)
    vae, x = truth.vae(wide_guide(truth)), truth.sample(7)
    monkeypatch.setattr(pv.evidence.auto, "DATA_AT_A_TIME", 3)
    found = pv.log_evidence(vae, x, method="auto")
    assert ((found.log_px - truth.log_evidence(x)).abs() < 4.5 * found.std_error + 1e-3).all()
    assert found.rows.tolist() == list(range(7))
    assert len(found.methods) == 7


def test_few_chains_state_a_bound_and_several_an_interval():
    truth = LinearGaussian()
    vae, x = truth.vae(wide_guide(truth)), truth.sample(3)
    few, several = (
        pv.log_evidence(vae, x, method=AIS(num_samples=s, num_temperatures=60)) for s in (4, 16)
    )
    assert few.upper.isinf().all()
    assert several.upper.isfinite().all()
    assert (several.lower < several.upper).all()
