"""p-values of data against the model: uniform for its own data, small for corrupted ones."""

import math

import pytest
import torch
from helpers import with_global_latents
from oracles import ExactEncoder, LinearGaussian, Rewritten, wide_guide

import pyrovae as pv
from pyrovae.diagnostics import typicality

pytestmark = pytest.mark.usefixtures("float64")
TRUTH = LinearGaussian()
EXACT = TRUTH.vae(ExactEncoder(TRUTH))
PITS = ("p_value", "log_px_pit", "distortion_pit", "rate_pit")


def chi2_cdf(value, dim):
    return torch.special.gammainc(torch.tensor(dim / 2), value / 2)


class TestTypicality:
    def test_the_rank_of_log_px_is_its_exact_distribution(self):
        """(x − μ)ᵀ C⁻¹ (x − μ) is χ² with 5 degrees of freedom, and log p(x) falls with it."""
        x = TRUTH.mean + 1.5 * (TRUTH.sample(50) - TRUTH.mean)
        found = typicality(EXACT, x, num_replicates=20_000)
        torch.testing.assert_close(found.log_px, TRUTH.log_evidence(x))
        log_norm = -0.5 * (5 * math.log(2 * math.pi) + TRUTH.covariance.logdet())
        exact = 1 - chi2_cdf(2 * (log_norm - found.log_px), 5)
        # 20 000 replicates: error of a share at most 0.5/√20 000 = 0.0035
        torch.testing.assert_close(found.log_px_pit, exact, atol=5 * 0.0035, rtol=0)

    @pytest.mark.parametrize("wrap", [lambda vae: vae, Rewritten])
    def test_data_of_the_model_have_uniform_p_values(self, wrap):
        """With any guide, and few draws. Each run has its own 2 data and 40 replicates."""
        program = wrap(TRUTH.vae(wide_guide(TRUTH)))
        x = TRUTH.sample(400, seed=5).reshape(200, 2, 5)
        how = {"num_replicates": 40, "num_samples": 1}
        runs = [typicality(program, rows, **how, seed=i) for i, rows in enumerate(x)]
        for name in PITS:
            values = torch.stack([getattr(run, name)[0] for run in runs])
            assert pv.diagnostics.features.uniform_p_value(values) > 1e-3, name

    def test_finds_data_of_another_model(self):
        far, near = TRUTH.sample(50) + 2.0, TRUTH.mean + 0.05 * (TRUTH.sample(50) - TRUTH.mean)
        found = typicality(EXACT, torch.cat([far, near]))
        assert (found.log_px_pit[:50] < 0.05).double().mean() > 0.8
        assert (found.log_px_pit[50:] > 0.95).all()  # too probable to be typical
        assert found.share_atypical > 0.8
        assert "does not generate data like these" in found.message
        assert "None of 100 data is unlike" in typicality(EXACT, TRUTH.sample(100)).message

    def test_names_the_outliers_among_data_of_the_model(self):
        x = TRUTH.sample(100, seed=2)
        x[40:50] += 4.0
        found = typicality(EXACT, x)
        rows = found.outliers()
        assert set(range(40, 50)) <= set(rows.tolist())
        assert len(rows) <= 12  # at most 5 % by chance in expectation
        assert f"{len(rows)} of 100 data are unlike" in found.message
        assert len(typicality(EXACT, TRUTH.sample(100, seed=2)).outliers()) == 0

    def test_the_rate_finds_codes_that_are_unusual(self):
        """x on the model's plane, far along it: explained well, by codes far from the prior."""
        x = TRUTH.mean + torch.tensor([[4.0, 4.0]]) @ TRUTH.weight.T
        found = typicality(EXACT, x)
        assert found.rate_pit > 0.999
        assert 0.1 < found.distortion_pit < 0.9
        assert found.p_value < 0.01

    def test_corrupted_digits(self):
        """A model of bits, trained on digits: its samples pass, shuffled pixels do not."""
        torch.set_default_dtype(torch.float32)
        data = pv.datasets.digits()
        bits = (data.train > 0.5).float()
        vae = pv.build((8, 8), latent_dim=8, data=bits, seed=0)
        pv.fit(vae, bits, epochs=60, seed=0, progress=False)
        test = (data.test[:200] > 0.5).float()
        order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
        of_model = typicality(vae, vae.sample(500, seed=1))
        of_data = typicality(vae, test)
        shuffled = typicality(vae, test.flatten(1)[:, order].reshape(-1, 8, 8))
        empty = typicality(vae, torch.zeros(1, 8, 8))
        # 500 data: sd of the share 0.01, and another 0.007 of the 1000 replicates
        assert abs(of_model.share_atypical - 0.05) < 0.05
        assert of_data.share_atypical < 0.4
        assert shuffled.share_atypical > 0.95
        assert empty.p_value < 0.01

    def test_masked_cells_and_global_latents(self):
        vae = pv.build((4,), latent_dim=2, likelihood="Normal", seed=0).double()
        x = torch.cat([vae.sample(100, seed=0), torch.full((1, 4), 60.0)])
        x[::2, 1] = torch.nan
        found = typicality(vae, x, mask=~x.isnan(), num_replicates=500)
        assert found.p_value[:-1].min() < 0.2
        assert found.p_value[-1] < 0.02
        program = with_global_latents()
        found = typicality(program, torch.eye(4), num_replicates=50, num_globals=2)
        assert all(value.isfinite().all() for value in found)
