"""Reliability of binary features: calibrated on data of the model, not on those of another."""

import numpy as np
import pytest
import torch
from torch import nn

import pyrovae as pv
from pyrovae.diagnostics import binary_calibration
from pyrovae.diagnostics.binary import isotonic
from pyrovae.errors import ConfigError

pytestmark = pytest.mark.usefixtures("float64")


def model(gain: float = 2.0) -> pv.VAE:
    """Four bits that depend on one latent; the guide is the prior, so that weights do the work."""
    vae = pv.build((4,), latent_dim=1, hidden=(), seed=0).double()
    affine = next(m for m in vae.decoder.modules() if isinstance(m, nn.Linear))
    affine.weight.data[:] = gain * torch.tensor([[1.0], [-1.0], [0.7], [1.5]])
    affine.bias.data[:] = gain * torch.tensor([0.0, 0.3, -0.5, 0.2])
    encoder = next(m for m in vae.encoder.modules() if isinstance(m, nn.Linear))
    encoder.weight.data[:], encoder.bias.data[:] = 0.0, torch.tensor([0.0, 0.54])  # N(0, 1)
    return vae


def exact(vae, x):
    """P(x_j = 1 | x_−j) by quadrature over z."""
    z = torch.linspace(-8, 8, 2001)[:, None, None]
    prior = torch.distributions.Normal(0.0, 1.0).log_prob(z[..., 0])

    def log_p(value):
        return (prior + vae.decode(z).log_prob(value)).logsumexp(0)

    columns = []
    for j in range(4):
        one, zero = x.clone(), x.clone()
        one[:, j], zero[:, j] = 1.0, 0.0
        columns.append((log_p(one) - torch.logaddexp(log_p(one), log_p(zero))).exp())
    return torch.stack(columns, 1)


class TestBinaryCalibration:
    HOW = {"num_samples": 200, "num_resamples": 100}  # noqa: RUF012

    def test_probabilities_are_those_of_quadrature(self):
        vae = model()
        x = vae.sample(200, seed=1)
        found = binary_calibration(vae, x, feature=2, num_samples=4000, num_resamples=20)
        # weights with ESS > 1000: error below 0.5/√1000 = 0.016
        expected = exact(vae, x)[:, 2].sort().values
        torch.testing.assert_close(found.probability, expected, atol=5 * 0.016, rtol=0)

    def test_the_scores_add_up_and_the_curve_is_the_best_monotone_one(self):
        found = binary_calibration(model(), model().sample(300, seed=1), **self.HOW)
        total = found.miscalibration - found.discrimination + found.uncertainty
        assert found.brier == pytest.approx(total, abs=1e-12)
        assert found.miscalibration >= 0
        assert found.discrimination >= 0
        assert (found.recalibrated.diff() >= -1e-12).all()

    def test_pool_adjacent_violators_by_hand(self):
        p = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5])
        curve = isotonic(p, torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0]))
        np.testing.assert_allclose(curve, [1 / 3, 1 / 3, 1 / 3, 1, 1])

    def test_data_of_the_model_pass_at_the_stated_rate(self):
        vae = model()
        p = [
            binary_calibration(vae, vae.sample(150, seed=s), **self.HOW, seed=s).p_value
            for s in range(60)
        ]
        rate = (torch.tensor(p) < 0.05).double().mean()
        assert rate < 0.05 + 3.5 * (0.05 * 0.95 / 60) ** 0.5
        assert 0.35 < np.mean(p) < 0.65

    @pytest.mark.parametrize("gain", [0.8, 6.0])
    def test_too_weak_and_too_strong_decoders_fail(self, gain):
        """Negative control: data of gain 2."""
        found = binary_calibration(model(gain), model().sample(4000, seed=1), **self.HOW)
        assert found.p_value < 0.02
        assert "not calibrated" in found.message
        index = torch.searchsorted(found.probability, found.grid).clamp(max=3999)
        curve = found.recalibrated[index]
        is_outside = (curve < found.band[:, 0] - 1e-9) | (curve > found.band[:, 1] + 1e-9)
        assert is_outside.double().mean() > 0.2

    def test_masked_cells_do_not_enter(self):
        vae, x = model(), model().sample(100, seed=1)
        mask = torch.rand(100, 4) > 0.5
        mask[:10] = False
        found = binary_calibration(vae, x, mask=mask, **self.HOW)
        assert len(found.probability) == int(mask.any(1).sum())
        one = binary_calibration(vae, x, mask=mask, feature=1, **self.HOW)
        assert len(one.probability) == int(mask[:, 1].sum())

    def test_mistakes(self):
        gray = pv.build((4,), latent_dim=1, likelihood="ContinuousBernoulli", seed=0).double()
        with pytest.raises(ConfigError, match="needs a likelihood of zeros and ones"):
            binary_calibration(gray, torch.rand(20, 4).round(), **self.HOW)
        with pytest.raises(ConfigError, match="features of shape"):
            binary_calibration(model(), torch.ones(20, 4), feature=4, **self.HOW)
