"""Does the model make such data, and did the prior matter: checks on data, features, priors."""

import math

import numpy as np
import pandas as pd
import pyro.distributions as dist
import pytest
import torch
from helpers import state_of, unchanged
from oracles import AffineEncoder, ExactEncoder, LinearGaussian
from scipy import stats
from torch import nn

import pyrovae as pv
from pyrovae import diagnostics, guides, likelihoods, priors
from pyrovae.diagnostics.aggregate import _ks, _p_value, _permuted
from pyrovae.diagnostics.features import uniform_p_value
from pyrovae.errors import ConfigError, DataError
from pyrovae.networks import mlp
from pyrovae.training.refit import refit_prior

pytestmark = pytest.mark.usefixtures("float64")


def exact_vae(**settings):
    truth = LinearGaussian(**settings)
    return truth, truth.vae(ExactEncoder(truth))


def shifted(vae: pv.VAE, by: float) -> pv.VAE:
    """The same networks under the prior N(by, 1)."""
    dim = vae.prior.loc.numel()
    prior = priors.Fixed(
        lambda loc, scale: dist.Normal(loc, scale).to_event(1),
        loc=torch.full((dim,), by),
        scale=torch.ones(dim),
    )
    return pv.VAE(prior, vae.encoder, vae.decoder)


class TestPredictiveChecks:
    def test_prior_replicates_have_the_marginal_of_the_model(self):
        truth, vae = exact_vae()
        x = truth.sample(40)
        found = diagnostics.prior_check(vae, x, statistic=lambda x: x.mean(0), num_samples=2000)
        # a mean of 40 draws of N(μ, C): N(μ, C/40)
        sd = (truth.covariance.diagonal() / 40).sqrt()
        error = found.replicated.mean(0) - truth.mean
        assert (error.abs() < 5 * sd / math.sqrt(2000)).all()
        spread = found.replicated.std(0) / sd
        assert ((spread - 1).abs() < 5 / math.sqrt(2 * 2000)).all()
        exact = 1 - dist.Normal(truth.mean, sd).cdf(x.mean(0))
        assert ((found.p_value - exact).abs() < 5 * 0.5 / math.sqrt(2000) + 1e-3).all()

    def test_data_that_the_prior_does_not_make(self):
        truth, vae = exact_vae()
        x = truth.sample(40) + 3
        found = diagnostics.prior_check(vae, x, statistic=torch.mean)
        assert found.p_value.item() < 0.005
        assert found.z_score.item() > 5
        assert found.replicated.shape == (200, 1)

    def test_posterior_replicates_have_the_predictive_of_the_guide(self):
        truth, vae = exact_vae()
        x = truth.sample(30)
        found = diagnostics.posterior_check(vae, x, statistic=lambda x: x.mean(0), num_samples=2000)
        post = truth.posterior(x)
        mean = (post.mean @ truth.weight.T + truth.mean).mean(0)
        within = truth.weight @ post.covariance_matrix[0] @ truth.weight.T
        variance = (within.diagonal() + truth.sigma**2) / 30
        error = found.replicated.mean(0) - mean
        assert (error.abs() < 5 * (variance / 2000).sqrt()).all()
        ratio = found.replicated.var(0) / variance
        assert ((ratio - 1).abs() < 5 * math.sqrt(2 / 2000)).all()

    def test_posterior_replicates_differ_from_prior_ones(self):
        truth, vae = exact_vae()
        x = truth.sample(30) + 2  # negative control: the posterior follows x, the prior does not
        prior, posterior = (
            check(vae, x, statistic=torch.mean)
            for check in (diagnostics.prior_check, diagnostics.posterior_check)
        )
        assert posterior.replicated.mean() > prior.replicated.mean() + 0.5

    def test_ties_count_half(self):
        _, vae = exact_vae()
        found = diagnostics.prior_check(vae, torch.zeros(3, 5), statistic=lambda x: 1.0)
        assert found.p_value.item() == pytest.approx(0.5)
        assert found.z_score.item() == 0

    def test_masked_cells_are_nan_for_the_statistic(self):
        truth, vae = exact_vae()
        x, mask = truth.sample(20), torch.rand(20, 5) > 0.3
        v = torch.linalg.solve(truth.m, truth.weight.T)
        vae = truth.vae(AffineEncoder(v, truth.mean, torch.ones(2)))
        seen = []

        def statistic(x):
            seen.append(x.isnan())
            return x.nanmean()

        diagnostics.posterior_check(vae, x, mask=mask, statistic=statistic, num_samples=5)
        assert len(seen) == 6
        assert all(torch.equal(nan, ~mask) for nan in seen)
        with pytest.raises(ConfigError, match="nanmean"):
            diagnostics.posterior_check(vae, x, mask=mask, statistic=torch.mean)

    def test_a_statistic_must_return_numbers_of_one_shape(self):
        truth, vae = exact_vae()
        x = truth.sample(4)
        with pytest.raises(ConfigError, match=r"shape \(4, 5\)"):
            diagnostics.prior_check(vae, x, statistic=lambda x: x)

    def test_global_latents_are_shared_by_a_replicate(self):
        vae = pv.build(6, latent_dim=2, seed=0).double()
        program = pv.programs.BayesianVAE(
            vae.prior, vae.encoder, vae.decoder, priors.StandardNormal(2), priors.LearnedNormal(2)
        ).double()
        for check in (diagnostics.prior_check, diagnostics.posterior_check):
            found = check(program, torch.ones(5, 6), statistic=torch.mean, num_samples=7)
            assert found.replicated.shape == (7, 1)


class TestAggregate:
    def test_statistics_equal_scipy(self):
        generator = torch.Generator().manual_seed(0)
        a, b = (torch.randn(30, 1, generator=generator) + s for s in (0.0, 0.6))
        pooled = torch.cat([a, b])
        energy, ks = _permuted(pooled, 10)
        scale = pooled.std()
        exact = stats.energy_distance((a / scale)[:, 0].numpy(), (b / scale)[:, 0].numpy()) ** 2
        assert energy[0].item() == pytest.approx(exact, rel=1e-9)
        exact = stats.ks_2samp(a[:, 0].numpy(), b[:, 0].numpy()).statistic
        assert ks[0].item() == pytest.approx(exact, abs=1e-12)

    def test_ties_of_discrete_latents(self):
        a, b = torch.tensor([0.0, 0, 1, 1]), torch.tensor([0.0, 1, 1, 1])
        signs = torch.tensor([[1.0] * 4 + [-1.0] * 4])
        exact = stats.ks_2samp(a.numpy(), b.numpy()).statistic
        assert _ks(torch.cat([a, b]), signs).item() == pytest.approx(exact)

    def test_p_values_are_uniform_under_the_null_and_small_beside_it(self):
        torch.manual_seed(0)
        same = [_p_value(_permuted(torch.randn(60, 2), 99)[0]).item() for _ in range(200)]
        assert stats.kstest(same, "uniform").pvalue > 1e-4
        other = torch.cat([torch.randn(30, 2), torch.randn(30, 2) + 1.5])
        assert _p_value(_permuted(other, 99)[0]).item() == 0.01

    def test_the_model_on_its_own_data_and_on_others(self):
        truth, vae = exact_vae()
        own = diagnostics.aggregate_test(vae, truth.sample(300), num_permutations=199)
        assert own.p_value > 0.01
        other = diagnostics.aggregate_test(vae, truth.sample(300) + 2, num_permutations=199)
        assert other.p_value == 1 / 200
        assert other.energy > 10 * own.energy
        assert other.ks_p_value.min() == 1 / 200
        assert own.names == ("z[0]", "z[1]")
        assert own.num_draws == 300

    def test_one_datum(self):
        truth, vae = exact_vae()
        with pytest.raises(DataError, match="one datum"):
            diagnostics.aggregate_test(vae, truth.sample(1))


class TestComparePriors:
    def test_equals_the_exact_difference_of_evidence(self):
        truth, vae = exact_vae()
        x = truth.sample(200)
        other = shifted(vae, 0.7)
        found = diagnostics.compare_priors({"moved": other, "true": vae}, x, num_samples=500)
        moved = dist.MultivariateNormal(
            truth.mean + truth.weight @ torch.full((2,), 0.7), truth.covariance
        )
        exact = truth.log_evidence(x) - moved.log_prob(x)
        assert [row.name for row in found.rows] == ["true", "moved"]
        row = found.rows[1]
        # 500 draws, Var(log w) < 1 off the exact guide: noise of a mean of 200 below 0.01
        assert row.difference.value == pytest.approx(exact.mean().item(), abs=0.02)
        assert row.difference.std_error == pytest.approx(
            exact.std().item() / math.sqrt(200), rel=0.1
        )
        assert row.is_distinguishable
        # pairing: less than the errors of the two means together
        unpaired = math.hypot(found.rows[0].log_px.std_error, row.log_px.std_error)
        assert row.difference.std_error < unpaired
        # and why: the codes do not change, so the whole difference is marginal KL
        gained = row.marginal_kl.value - found.rows[0].marginal_kl.value
        assert gained > 5 * row.marginal_kl.std_error

    def test_equal_models_are_not_distinguishable(self):
        truth, vae = exact_vae()
        found = diagnostics.compare_priors({"a": vae, "b": vae}, truth.sample(20), num_samples=100)
        assert found.rows[1].difference.value == 0
        assert not any(row.is_distinguishable for row in found.rows)
        assert all(row.share_failed == 0 for row in found.rows)

    def test_exact_methods_and_the_table(self):
        truth, vae = exact_vae(num_features=3, latent_dim=1)
        x = truth.sample(10)
        found = diagnostics.compare_priors({"a": vae, "b": shifted(vae, 1.0)}, x, method="grid")
        torch.testing.assert_close(found.log_px["a"], truth.log_evidence(x), atol=1e-5, rtol=0)
        assert found.rows[0].bias == 0
        table = pd.DataFrame(found.table()).set_index("name")
        assert list(table.index) == [row.name for row in found.rows]
        assert {"log_px", "difference_std_error", "marginal_kl"} <= set(table.columns)
        assert str(found).count("\n") == 2

    def test_refuses(self):
        truth, vae = exact_vae()
        for models in ({}, [vae]):
            with pytest.raises(ConfigError, match="must map at least one name to a program"):
                diagnostics.compare_priors(models, truth.sample(3))
        with pytest.raises(ConfigError, match="num_data is not allowed"):
            diagnostics.compare_priors({"a": vae}, truth.sample(3), num_data=2)


class TestRefit:
    def test_a_normal_prior_gets_the_moments_of_the_codes(self):
        truth, vae = exact_vae()
        x = truth.sample(500) + 1.0
        found = refit_prior(
            vae, x, priors.LearnedNormal(2), epochs=100, batch_size=500, learning_rate=0.03
        )
        post = truth.posterior(x)
        mean = post.mean.mean(0)
        variance = post.mean.var(0) + post.variance[0]
        p_z = found.vae.prior().base_dist
        # 5000 draws, 10 for each of the posterior means; the fit itself is within 0.02
        assert ((p_z.loc - mean).abs() < 5 * (variance / 5000).sqrt() + 0.02).all()
        assert ((p_z.scale - variance.sqrt()).abs() < 5 * variance.sqrt() / 100 + 0.02).all()
        exact = (0.5 * (mean**2 + variance) - 0.5 * variance.log() - 0.5).sum().item()
        assert found.gain.value == pytest.approx(exact, abs=0.05 + 5 * found.gain.std_error / 20)
        assert not found.gain.is_below_noise
        assert isinstance(vae.prior, priors.StandardNormal)
        assert found.vae.encoder is not vae.encoder

    def test_the_gain_is_what_the_surgery_calls_marginal_kl(self):
        truth, vae = exact_vae()
        x = truth.sample(500) + 1.0
        new = refit_prior(
            vae, x, priors.LearnedNormal(2), epochs=100, batch_size=500, learning_rate=0.03
        )
        before, after = (diagnostics.decompose_elbo(v, x) for v in (vae, new.vae))
        fall = before.marginal_kl.value - after.marginal_kl.value
        error = math.hypot(before.marginal_kl.std_error, after.marginal_kl.std_error)
        assert abs(fall - new.gain.value) < 5 * error
        assert fall > 10 * error

    def test_networks_are_frozen_and_a_shared_encoder_stays_shared(self):
        q, p = guides.DiagonalNormal(2), likelihoods.Bernoulli(6)
        encoder = nn.Sequential(
            mlp(6, 8, hidden=(8,)),
            nn.BatchNorm1d(8),
            nn.Dropout(0.5),
            nn.Linear(8, q.num_features),
            q,
        )
        decoder = nn.Sequential(mlp(2, 6), p)
        vae = pv.VAE(priors.StandardNormal(2), encoder, decoder).double()
        x = torch.rand(60, 6).round()
        prior = priors.VampPrior(encoder, x[:5])
        before = state_of(vae)
        with unchanged(vae):
            found = refit_prior(vae, x, prior, epochs=3, validation=x[:20], patience=2)
        new = found.vae
        assert new.prior.encoder is new.encoder
        for name, t in new.encoder.state_dict().items():
            assert torch.equal(t, before[f"encoder.{name}"]), name
        assert not torch.equal(new.prior.raw_inputs, prior.raw_inputs)
        assert all(parameter.requires_grad for parameter in new.parameters())

    def test_a_prior_without_parameters(self):
        truth, vae = exact_vae()
        with pytest.raises(ConfigError, match="no parameters of its own"):
            refit_prior(vae, truth.sample(5), priors.StandardNormal(2))


class TestFeatures:
    def conditional(self, truth, x, j):
        """p(x_j | x_−j) of the model: mean and sd."""
        rest = [i for i in range(x.shape[1]) if i != j]
        c = truth.covariance
        gain = torch.linalg.solve(c[rest][:, rest], c[rest, j])
        mean = truth.mean[j] + (x[:, rest] - truth.mean[rest]) @ gain
        return dist.Normal(mean, (c[j, j] - c[rest, j] @ gain).sqrt())

    def test_equals_the_conditional_of_the_gaussian(self):
        truth, vae = exact_vae(num_features=12, sigma=1.0)
        x = truth.sample(60)
        found = diagnostics.feature_check(vae, x, num_samples=4000)
        # 1/p(x_j|z) under the posterior of w_jᵀz has the Pareto shape k = w_jᵀ M⁻¹ w_j exactly
        shape = (truth.weight @ torch.linalg.inv(truth.m) * truth.weight).sum(1)
        fine = (shape < 0.3).nonzero()[:, 0].tolist()
        assert len(fine) >= 6
        for j in fine:
            exact = self.conditional(truth, x, j)
            # finite fourth moment: relative error of a mean of 4000 below 0.03, 5 of it
            off = found.log_conditional[:, j] - exact.log_prob(x[:, j])
            assert off.abs().max() < 0.15
            assert off.mean().abs() < 0.01
            pit = found.pit[:, j] - exact.cdf(x[:, j])
            assert pit.abs().max() < 5 * 0.5 / math.sqrt(2000)  # ESS above 2000 there
        # k̂ orders features as the exact shape does
        assert found.pareto_k.mean(0)[shape.argmax()] > found.pareto_k.mean(0)[fine].max()

    def test_is_not_the_in_sample_density(self):
        """Negative control: with the feature itself in the condition the score is higher."""
        truth, vae = exact_vae(sigma=1.0)
        x = truth.sample(60)
        found = diagnostics.feature_check(vae, x)
        terms = pv.elbo_terms(vae, x, num_samples=500)
        in_sample = vae.decode(terms.latents["z"]).base_dist.log_prob(x).mean(0)
        assert (in_sample.mean(0) > found.mean + 0.05).any()
        assert in_sample.mean() > found.mean.mean()

    def test_names_the_feature_that_is_wrong(self):
        truth, vae = exact_vae(sigma=1.0)
        x = truth.sample(200)
        good = diagnostics.feature_check(vae, x)
        assert good.pit_p_value.min() > 1e-3
        x[:, 3] = x[:, 3] * 2
        bad = diagnostics.feature_check(vae, x)
        assert bad.worst(1) == [(3,)]
        assert bad.pit_p_value[3] < 1e-4
        assert bad.mean[3] < good.mean[3] - 5 * good.std_error[3]

    def test_discrete_features_have_a_uniform_pit(self):
        vae = pv.build((4,), latent_dim=2, likelihood="Bernoulli", seed=0).double()
        x = vae.sample(400, seed=1)
        found = diagnostics.feature_check(vae, x, num_samples=200)
        assert found.pit_p_value.min() > 1e-3
        z = vae.prior().sample((40_000,))
        p = vae.decode(z[None]).mean[0].mean(0)
        # an untrained decoder hardly uses z, so features are nearly independent of each other
        entropy = -(p * p.log() + (1 - p) * (1 - p).log())
        assert ((found.mean + entropy).abs() < 5 * found.std_error + 0.02).all()

    def test_masked_cells_are_left_out(self):
        truth = LinearGaussian(sigma=1.0)
        v = torch.linalg.solve(truth.m, truth.weight.T)
        vae = truth.vae(AffineEncoder(v, truth.mean, torch.ones(2)))
        x, mask = truth.sample(30), torch.rand(30, 5) > 0.3
        found = diagnostics.feature_check(vae, x.masked_fill(~mask, torch.nan), mask=mask)
        assert torch.equal(found.pit.isnan(), ~mask)
        assert torch.isfinite(found.mean).all()
        assert torch.isfinite(found.pit_p_value).all()

    def test_pieces_do_not_change_shapes(self):
        truth, vae = exact_vae()
        found = diagnostics.feature_check(vae, truth.sample(7), num_samples=50, memory_budget=1)
        assert found.pit.shape == (7, 5)

    def test_refuses_a_likelihood_that_does_not_factorize(self):
        vae = pv.build((3,), latent_dim=2, likelihood={"name": "Multinomial", "total": 4}, seed=0)
        x = torch.tensor([[1.0, 2.0, 1.0]])
        with pytest.raises(ConfigError, match="Multinomial"):
            diagnostics.feature_check(vae, x)

    def test_uniform_p_value_equals_scipy(self):
        values = torch.rand(80, 3, generator=torch.Generator().manual_seed(0)) ** torch.tensor(
            [1.0, 1.2, 1.5]
        )
        exact = [stats.kstest(column.numpy(), "uniform").pvalue for column in values.T]
        np.testing.assert_allclose(uniform_p_value(values).numpy(), exact, atol=0.02)
        values[:75] = torch.nan
        assert uniform_p_value(values[:79]).isnan().all()
