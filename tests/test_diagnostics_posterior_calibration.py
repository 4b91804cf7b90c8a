"""Posterior SBC: the exact guide passes at each x, wrong ones fail, also at a single x."""

import pyro.distributions as dist
import pytest
import torch
from helpers import with_global_latents
from oracles import ExactEncoder, LinearGaussian, Rewritten
from test_diagnostics_coverage import EXACT, TRUTH, WRONG, Jump
from test_supports import circular

import pyrovae as pv
from pyrovae.diagnostics import posterior_calibration
from pyrovae.diagnostics.features import uniform_p_value

pytestmark = pytest.mark.usefixtures("float64")
X = TRUTH.sample(10, seed=3)


class TestPosteriorCalibration:
    @pytest.mark.parametrize("num_draws", [2, 20])
    def test_the_exact_guide_passes_at_the_stated_rate_for_any_number_of_draws(self, num_draws):
        found = posterior_calibration(EXACT, TRUTH.sample(200, seed=1), n=200, num_draws=num_draws)
        p = torch.cat([found.p_value, found.density_p_value[:, None]], 1)
        error = (0.05 * 0.95 / 200) ** 0.5
        assert ((p < 0.05).double().mean(0) - 0.05).abs().max() < 4 * error  # 0.062
        assert (found.worst_p_value < 0.05).double().mean() < 0.05 + 4 * error
        assert uniform_p_value(found.pit.flatten(0, 1)).min() > 1e-3
        assert uniform_p_value(found.density_pit.flatten()) > 1e-3

    @pytest.mark.parametrize("name", WRONG)
    def test_a_wrong_guide_fails_at_every_datum(self, name):
        found = posterior_calibration(WRONG[name], X)
        assert (found.worst_p_value < 0.05 / len(X)).all()
        assert f"at 10 of {len(X)} data" in found.message

    def test_the_density_tells_narrow_from_wide(self):
        narrow, wide = (posterior_calibration(WRONG[n], X[:2]) for n in ("too narrow", "too wide"))
        # sd of a mean of 2000 uniform numbers: 0.0065
        assert narrow.density_pit.mean() > 0.5 + 5 * 0.0065
        assert wide.density_pit.mean() < 0.5 - 5 * 0.0065

    def test_a_shift_at_one_datum_is_found_there_only(self):
        """`calibration`, an average over all x, cannot see it."""

        class Spoiled(ExactEncoder):
            def forward(self, x):
                q = super().forward(x)
                is_first = (x == X[0]).all(-1, keepdim=True)
                loc = torch.where(is_first, q.loc + 0.7 * q.variance.sqrt(), q.loc)
                return dist.MultivariateNormal(loc, scale_tril=q.scale_tril)

        vae = TRUTH.vae(Spoiled(TRUTH))
        found = posterior_calibration(vae, X[:4])
        assert found.worst_p_value[0] < 1e-10
        assert found.worst_p_value[1:].min() > 0.005
        assert "rows 0)" in found.message
        assert pv.diagnostics.calibration(vae, 1000).p_value.min() > 1e-3

    def test_the_update_by_the_new_datum_matters(self, monkeypatch):
        """Negative control: without p(x*|z) in the weights, the exact guide fails."""
        module = posterior_calibration.__wrapped__.__globals__
        original = module["simulated_near"]

        def unrelated(program, batch):
            simulated, latents = original(program, batch)
            return simulated.rows(torch.arange(batch.num_data).roll(1)), latents

        monkeypatch.setitem(module, "simulated_near", unrelated)
        assert posterior_calibration(EXACT, X[:2]).worst_p_value.max() < 1e-6

    def test_eight_latents(self):
        truth = LinearGaussian(20, 8)
        good, bad = (
            posterior_calibration(
                truth.vae(ExactEncoder(truth, factor)), truth.sample(5)
            ).worst_p_value
            for factor in (1.0, 0.8)
        )
        assert good.min() > 0.002
        assert bad.max() < 0.01

    def test_any_program_discrete_latents_summed_out_and_an_angle(self):
        good = posterior_calibration(Rewritten(EXACT), X[:2])
        bad = posterior_calibration(Rewritten(WRONG["too narrow"]), X[:2])
        assert good.worst_p_value.min() > 0.005
        assert bad.worst_p_value.max() < 0.005
        assert (
            posterior_calibration(Jump(), torch.tensor([[-1.0], [2.0]])).worst_p_value.min() > 0.005
        )
        assert posterior_calibration(circular(), torch.ones(2, 2), n=20).pit.shape == (2, 20, 1)

    def test_discrete_latents(self):
        vae = pv.build((4,), latent_dim=3, prior="Bernoulli", guide="Bernoulli", seed=0).double()
        found = posterior_calibration(vae, torch.eye(4)[:2], n=100)
        assert ((found.pit >= 0) & (found.pit <= 1 + 1e-12)).all()
        assert found.pit[0, :, 0].unique().numel() > 90

    def test_masked_cells_global_latents_and_pieces(self):
        vae = pv.build((4,), latent_dim=2, likelihood="Normal", seed=0).double()
        x = torch.randn(2, 4)
        x[0, 1] = torch.nan
        found = posterior_calibration(vae, x, mask=~x.isnan(), n=20, memory_budget=1)
        assert found.pit.shape == (2, 20, 2)
        assert found.pit.isfinite().all()
        x = torch.eye(4)[:2]
        assert posterior_calibration(with_global_latents(), x, n=20).pit.shape[1] == 20
