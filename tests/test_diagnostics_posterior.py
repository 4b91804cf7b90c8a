"""Does the guide cover the posterior: k̂, gaps, calibration, sensitivity; closed forms."""

import math
import warnings

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from oracles import AffineEncoder, ExactEncoder, LinearGaussian
from torch import nn

import pyrovae as pv
from pyrovae import diagnostics
from pyrovae.diagnostics.simulation import _band, _ecdf
from pyrovae.errors import ConfigError

pytestmark = pytest.mark.usefixtures("float64")


class ScaleOfX(nn.Module):
    """q(z|x) = N(0, x²): the posterior is N(0, 1) for every x, so that k = 1 − x²."""

    def forward(self, x):
        return dist.Normal(torch.zeros_like(x), x.abs()).to_event(1)


def uninformative() -> pv.VAE:
    """p(z|x) = p(z) = N(0, 1): the decoder does not see z."""
    truth = LinearGaussian(1, 1)
    truth.weight = torch.zeros(1, 1)
    return truth.vae(ScaleOfX())


class TestParetoK:
    @property
    def x(self):
        return torch.tensor([0.3, 0.5, 0.8, 1.2])[:, None]

    def test_equals_the_known_shape_and_names_the_data_that_fail(self):
        found = diagnostics.pareto_k(uninformative(), self.x, num_samples=200_000)
        exact = 1 - self.x[:3, 0] ** 2  # q = N(0, s²), p = N(0, 1): 0.91, 0.75, 0.36
        # M = 1342 weights in the tail: sd (1 + k)/√M ≤ 0.052; and the fit's bias of second order
        torch.testing.assert_close(found.pareto_k[:3], exact, atol=0.2, rtol=0)
        assert found.failed[0] == 0
        assert set(found.failed.tolist()) <= {0, 1}
        assert found.is_reliable[2:].all()
        assert found.threshold == 0.7
        assert "row" in found.message

    def test_the_exact_guide_fails_on_nothing(self):
        truth = LinearGaussian()
        found = diagnostics.pareto_k(truth.vae(ExactEncoder(truth)), truth.sample(5))
        assert found.pareto_k.isneginf().all()
        assert len(found.failed) == 0
        assert "covers the posterior of all 5" in found.message

    def test_too_few_draws(self):
        with pytest.raises(ConfigError, match="num_samples = 20"):
            diagnostics.pareto_k(uninformative(), self.x, num_samples=20)

    @pytest.mark.parametrize(
        ("method", "options"),
        [
            ("hmc", {"num_warmup": 60, "num_samples": 80, "num_chains": 32}),
            ("refine", {"num_steps": 150, "num_samples": 1000}),
        ],
    )
    def test_escalation_repairs_the_failed_rows(self, method, options):
        vae = uninformative()
        rows = torch.tensor([0, 1])
        found = diagnostics.escalate(vae, self.x, rows=rows, method=method, **options)
        assert found.draws.shape[2:] == (2, 1)
        # var 1, where the guide's is 0.09 and 0.25; 1000+ draws: sd of the variance ≤ 0.1
        assert ((found.covariance[:, 0, 0] - 1).abs() < 0.3).all()

    def test_escalation_by_more_proposals(self):
        found = diagnostics.escalate(
            uninformative(), self.x, rows=torch.tensor([2]), method="sir", num_samples=2000
        )
        assert found.covariance.item() == pytest.approx(1, abs=0.2)

    def test_escalation_refuses(self):
        with pytest.raises(ConfigError, match="rows is empty"):
            diagnostics.escalate(uninformative(), self.x, rows=torch.tensor([], dtype=torch.long))
        with pytest.raises(ConfigError, match="must be 'sir'"):
            diagnostics.escalate(uninformative(), self.x, rows=torch.tensor([0]), method="mcmc")


class TestGaps:
    def test_the_draws_asked_for_are_those_of_log_px(self):
        vae, x = pv.build((4,), latent_dim=2, seed=0), torch.ones(3, 4)
        settings = {"method": "iwae", "num_samples": 300}
        gaps = diagnostics.inference_gaps(vae, x, num_steps=2, **settings)
        assert torch.equal(gaps.log_px, pv.log_evidence(vae, x, **settings).log_px)

    def test_exact_guide_has_none(self):
        truth = LinearGaussian()
        x = truth.sample(6)
        gaps = diagnostics.inference_gaps(truth.vae(ExactEncoder(truth)), x, num_samples=50)
        # refinement wanders: Adam scales even the gradients of rounding; it ends within 1e-3 nat
        torch.testing.assert_close(gaps.elbo, truth.log_evidence(x), rtol=1e-10, atol=0)
        torch.testing.assert_close(gaps.log_px, truth.log_evidence(x), rtol=0, atol=1e-3)
        assert gaps.approximation.abs().max() < 1e-3
        assert gaps.amortization.abs().max() < 1e-3
        assert "not the bottleneck" in gaps.advice

    def best_diagonal(self, truth, factor=1.0):
        v = torch.linalg.solve(truth.m, truth.weight.T)
        return v, factor * truth.sigma**2 / truth.m.diagonal()

    @pytest.mark.parametrize("factor", [1.0, 0.3])
    def test_both_gaps_of_a_diagonal_guide(self, factor):
        truth = LinearGaussian()
        x = truth.sample(12)
        v, best = self.best_diagonal(truth)
        d = factor * best
        gaps = diagnostics.inference_gaps(
            truth.vae(AffineEncoder(v, truth.mean, d)), x, num_samples=4000
        )
        approximation = truth.log_evidence(x) - truth.elbo(x, v, best)
        amortization = truth.elbo(x, v, best) - truth.elbo(x, v, d)
        assert (gaps.approximation >= 0).all()
        # refinement stops within 0.01 nat of the best member of the family
        torch.testing.assert_close(
            gaps.approximation,
            approximation,
            atol=0.01 + 5 * gaps.approximation_std_error.max().item(),
            rtol=0,
        )
        torch.testing.assert_close(
            gaps.amortization,
            amortization,
            atol=0.01 + 5 * gaps.amortization_std_error.max().item(),
            rtol=0,
        )
        # the effect that a swap of the two would have is larger than that noise
        if factor < 1:
            assert (amortization - approximation).abs().min() > 0.1
        assert gaps.mean_total.value == pytest.approx((gaps.log_px - gaps.elbo).mean().item())

    def test_errors_are_those_that_repetitions_show(self):
        truth = LinearGaussian()
        x = truth.sample(4)
        v, best = self.best_diagonal(truth)
        vae = truth.vae(AffineEncoder(v, truth.mean, 0.3 * best))
        runs = [
            diagnostics.inference_gaps(vae, x, num_samples=300, num_steps=100, seed=seed)
            for seed in range(15)
        ]
        for name in ("approximation", "amortization"):
            values = torch.stack([getattr(run, name) for run in runs])
            claimed = torch.stack([getattr(run, f"{name}_std_error") for run in runs]).mean()
            # 60 values, 14 degrees of freedom a datum: the ratio's own sd is about 0.1
            assert values.std(0).mean() / claimed == pytest.approx(1, abs=0.5), name

    @pytest.mark.parametrize(
        ("family", "unit"),
        [(dist.Normal, 0.01), (dist.Normal, 1.0), (dist.Normal, 100.0), (dist.LogNormal, 1.0)],
    )
    def test_the_encoders_part_is_the_kl_in_any_unit_of_the_latents(self, family, unit):
        """z ~ N(0, u²), x ~ N(z/u, ½²); q is off by 0.3 in mean and by 1.3 in scale."""
        variance = 1 / (1 + 4)
        scale = 1.3 * variance**0.5

        class Off(nn.Module):
            def forward(self, x):
                center, width = 4 * variance * x + 0.3, torch.full_like(x, scale)
                if family is dist.Normal:
                    center, width = unit * center, unit * width
                return family(center, width).to_event(1)

        class Decoder(nn.Module):
            def forward(self, z):
                u = z / unit if family is dist.Normal else z.log()
                return dist.Normal(u, 0.5).to_event(1)

        spread = torch.tensor([unit if family is dist.Normal else 1.0])
        prior = pv.priors.Fixed(
            lambda loc, scale: family(loc, scale).to_event(1), loc=torch.zeros(1), scale=spread
        )
        vae = pv.VAE(prior, Off(), Decoder())
        gaps = diagnostics.inference_gaps(vae, torch.randn(100, 1) * 1.25**0.5)
        kl = -math.log(1.3) + (1.3**2 + 0.09 / variance) / 2 - 0.5
        network = gaps.mean_amortization
        assert abs(network.value - kl) < 5 * network.std_error
        assert gaps.mean_approximation.value < 0.003

    def test_advice_names_the_larger_gap(self):
        truth = LinearGaussian(sigma=0.4)
        truth.weight = torch.tensor([[1.0, 0.95], [0.9, 1.0], [1.1, 1.0], [1.0, 1.0], [0.8, 0.9]])
        truth.m = truth.weight.T @ truth.weight + truth.sigma**2 * torch.eye(2)
        x = truth.sample(10)
        v, best = self.best_diagonal(truth)

        def advice(d):
            vae = truth.vae(AffineEncoder(v, truth.mean, d))
            return diagnostics.inference_gaps(vae, x, num_samples=500, num_steps=150).advice

        assert "guide family" in advice(best)
        assert "encoder network" in advice(20 * best)

    def test_generalization_is_the_difference_of_mean_elbos(self):
        truth = LinearGaussian()
        x, held_out = truth.sample(30), truth.sample(30, seed=1) + 1.5
        vae = truth.vae(ExactEncoder(truth))
        gaps = diagnostics.inference_gaps(vae, x, validation=held_out, num_samples=30, num_steps=5)
        exact = truth.log_evidence(x).mean() - truth.log_evidence(held_out).mean()
        assert gaps.generalization.value == pytest.approx(exact.item(), abs=1e-6)
        assert "overfits" in gaps.advice

    def test_another_method_for_the_evidence(self):
        truth = LinearGaussian(3, 1)
        x = truth.sample(4)
        v, best = self.best_diagonal(truth)
        vae = truth.vae(AffineEncoder(v, truth.mean, 0.5 * best))
        gaps = diagnostics.inference_gaps(vae, x, method="grid", num_samples=500)
        torch.testing.assert_close(gaps.log_px, truth.log_evidence(x), atol=1e-6, rtol=0)
        # in one dimension the family holds the posterior: no approximation gap
        assert (gaps.approximation.abs() < 5 * gaps.approximation_std_error + 0.01).all()

    def test_only_a_program(self):
        with pytest.raises(ConfigError, match="a Linear has no model, so it is not a program"):
            diagnostics.inference_gaps(nn.Linear(1, 1), torch.ones(2, 1))


class TestCalibration:
    """2000 simulations, 99 draws, 20 bins."""

    def found(self, sd_factor, n=2000):
        truth = LinearGaussian()
        return diagnostics.calibration(truth.vae(ExactEncoder(truth, sd_factor)), n)

    def test_the_exact_guide_passes(self):
        found = self.found(1.0)
        assert found.p_value.min() > 1e-3
        assert found.density_p_value > 1e-3
        assert found.is_calibrated.all()
        off = (found.expected_coverage - found.coverage_levels) / found.coverage_std_error
        assert off.abs().max() < 5
        assert "no dimension" in found.message

    def test_too_narrow_a_guide_fails_by_as_much_as_it_should(self):
        found = self.found(0.8)
        assert found.p_value.max() < 1e-10
        assert not found.is_calibrated.any()
        # in D = 2 the region of level a is |u|² < −2 log(1 − a), u in units of q; it truly
        # holds 1 − (1 − a)^{0.8²}
        exact = 1 - (1 - found.coverage_levels) ** 0.64
        # 99 draws smear the level by ± √(a (1 − a)/99), symmetrically: a bias below 0.01
        error = 5 * (exact * (1 - exact) / 2000).sqrt() + 0.01
        assert ((found.expected_coverage - exact).abs() < error).all()
        assert ((found.coverage_levels - exact)[5:15] > 2 * error[5:15]).any()  # it can tell
        assert "overconfident" in found.message

    def test_too_wide_a_guide_fails_on_the_other_side(self):
        found = self.found(1.3)
        assert (found.expected_coverage > found.coverage_levels).all()
        assert "more often than they should" in found.message

    def test_a_biased_guide_fails_in_the_ranks(self):
        truth = LinearGaussian()
        v = torch.linalg.solve(truth.m, truth.weight.T)
        d = truth.posterior(truth.sample(1)).variance[0]
        good, bad = (
            diagnostics.calibration(truth.vae(AffineEncoder(v, truth.mean + s, d)), 1000)
            for s in (0.0, 0.5)
        )
        assert good.p_value.min() > 1e-3  # marginals of the diagonal guide are exact
        assert bad.p_value.max() < 1e-3

    def test_the_band_holds_uniform_ranks_at_its_level(self):
        torch.manual_seed(1)
        band = _band(500, 99, 0.95)
        ecdf = _ecdf(torch.randint(100, (500, 2000)), 99)
        outside = 1 - ((ecdf >= band[:, 0]) & (ecdf <= band[:, 1])).all(1).double().mean()
        # 5 %, with errors √(0.05·0.95/1000) of the band's quantile and /2000 of this share
        assert abs(outside - 0.05) < 5 * 0.0085

    def test_discrete_latents_break_ties_at_random(self):
        vae = pv.build((4,), latent_dim=3, prior="Bernoulli", guide="Bernoulli", seed=0).double()
        found = diagnostics.calibration(vae, 300)
        assert found.ranks.min() >= 0
        assert found.ranks.max() <= 99
        assert found.ranks[:, 0].unique().numel() > 50

    def test_pieces_and_settings(self):
        truth = LinearGaussian()
        vae = truth.vae(ExactEncoder(truth))
        assert diagnostics.calibration(vae, 50, memory_budget=1).ranks.shape == (50, 2)
        with pytest.raises(ConfigError, match="fill the bins evenly"):
            diagnostics.calibration(vae, 50, num_draws=100)


class TestSensitivity:
    def test_equals_arviz_on_the_same_draws(self):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import arviz as az
            import xarray as xr
        z = torch.randn(500, 1, 2)
        log_component = dist.Normal(0.5, 1.0).log_prob(z).sum(-1)
        ours = diagnostics.power_sensitivity(z, torch.zeros(500, 1), log_component)
        if not hasattr(az, "psens"):
            pytest.skip("arviz >= 1 has psense, tested in test_arviz.py")
        dims = ("chain", "draw", "d")
        data = az.InferenceData(
            posterior=xr.Dataset({"z": (dims, z[None, :, 0].numpy())}),
            log_prior=xr.Dataset({"z": (dims[:2], log_component[None, :, 0].numpy())}),
        )
        theirs = az.psens(data, component="prior")["z"].values
        # theirs has Pareto-smoothed the weights, within 3 % of 1 at δ = 0.01
        np.testing.assert_allclose(ours[0].numpy(), theirs, rtol=0.03)

    @pytest.mark.parametrize("shift", [0.0, 3.0])
    def test_equals_the_closed_form_of_a_scaled_gaussian(self, shift):
        """The posterior of p(z)^α p(x|z) is N(w x/(σ² (α + w²/σ²)), 1/(α + w²/σ²))."""
        truth = LinearGaussian(1, 1, sigma=1.0)
        x = truth.mean + truth.weight[0] * shift + torch.tensor([[0.3]])
        vae = truth.vae(ExactEncoder(truth))
        found = diagnostics.prior_sensitivity(vae, x, num_samples=20_000, delta=0.1)
        terms = pv.elbo_terms(vae, x, num_samples=20_000)
        z = terms.latents["z"][:, 0, 0]
        exact = self.exact(truth, x, z.min(), z.max(), 0.1)
        # 20 000 draws: relative error of the distance between two ECDFs of the same draws ~ 2 %
        assert found.prior.item() == pytest.approx(exact, rel=0.1)

    @staticmethod
    def exact(truth, x, low, high, delta):
        """Quadrature over the range of the draws, which the distance is normalized by."""
        grid = torch.linspace(low, high, 20_001)
        information = (truth.weight[0, 0] / truth.sigma) ** 2
        signal = (truth.weight[0, 0] * (x - truth.mean) / truth.sigma**2).item()

        def cdf(alpha):
            precision = alpha + information
            return dist.Normal(signal / precision, precision**-0.5).cdf(grid)

        def cjs(p, q):
            m = (p + q) / 2
            total = torch.xlogy(p, p / m) + torch.xlogy(q, q / m)
            return (total.sum() / math.log(2) / (p + q).sum()).sqrt()

        total = sum(
            max(cjs(cdf(1.0), cdf(a)), cjs(1 - cdf(1.0), 1 - cdf(a)))
            for a in (1 / (1 + delta), 1 + delta)
        )
        return (total / (2 * math.log2(1 + delta))).item()

    def test_distinguishes_conflict_from_a_datum_with_little_information(self):
        truth = LinearGaussian(1, 1, sigma=1.0)
        truth.weight = torch.ones(1, 1)
        truth.m = torch.full((1, 1), 2.0)
        far = truth.mean + torch.tensor([[8.0]])  # prior at 0, likelihood at 8: conflict
        found = diagnostics.prior_sensitivity(truth.vae(ExactEncoder(truth)), far)
        assert found.is_conflict.all()
        assert not found.is_prior_dominated.any()

        vague = LinearGaussian(1, 1, sigma=30.0)
        found = diagnostics.prior_sensitivity(vague.vae(ExactEncoder(vague)), vague.sample(5))
        assert found.is_prior_dominated.all()

        strong = LinearGaussian(20, 1, sigma=0.1)
        x = strong.mean + 0.2 * strong.weight.T
        found = diagnostics.prior_sensitivity(strong.vae(ExactEncoder(strong)), x)
        assert (found.prior < found.threshold).all()
        assert found.names == ("z[0]",)
        assert found.pareto_k.isneginf().all()

    def test_a_poor_guide_is_corrected_by_its_weights(self):
        truth = LinearGaussian(1, 1, sigma=1.0)
        x = truth.sample(3)
        exact, wide = (
            diagnostics.prior_sensitivity(truth.vae(e), x, num_samples=20_000)
            for e in (ExactEncoder(truth), ExactEncoder(truth, 1.3))
        )
        # the wide guide's draws reach 1.3 times as far, which enters the normalization as √1.3
        torch.testing.assert_close(exact.prior, wide.prior, rtol=0.3, atol=0)

    def test_latents_that_all_data_share_have_no_common_prior_of_codes(self):
        vae = pv.build(6, latent_dim=2, seed=0).double()
        program = pv.programs.BayesianVAE(
            vae.prior,
            vae.encoder,
            vae.decoder,
            pv.priors.StandardNormal(2),
            pv.priors.LearnedNormal(2),
        ).double()
        x = torch.ones(3, 6)
        assert math.isnan(diagnostics.decompose_elbo(program, x).marginal_kl.value)

    def test_shapes_under_a_small_memory_budget(self):
        truth = LinearGaussian()
        found = diagnostics.prior_sensitivity(
            truth.vae(ExactEncoder(truth)), truth.sample(6), num_samples=20, memory_budget=2000
        )
        assert found.prior.shape == found.likelihood.shape == (6, 2)
        with pytest.raises(ConfigError, match="delta"):
            diagnostics.prior_sensitivity(truth.vae(ExactEncoder(truth)), truth.sample(2), delta=0)
