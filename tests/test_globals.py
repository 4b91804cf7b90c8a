"""Diagnostics of programs with global latents w, which condition on draws w ~ q(w).

The program is x = z + w + noise, so that given w ~ N(m, s²) all densities are normal:
z|x, w ~ N((x − w)/V, σ²/V), x|w ~ N(w, V), V = 1 + σ², for each of the three numbers of a datum.
"""

import math

import pyro.distributions as dist
import pytest
import torch
from programs import NOISE, Affine, Plated, numbers
from torch import nn

import pyrovae as pv

pytestmark = pytest.mark.usefixtures("float64")

V = 1 + NOISE**2
SPREAD = 0.4  # s, of q(w)


class Shifted(nn.Module):
    """A decoder of z + w."""

    def __init__(self):
        super().__init__()
        self.part = Affine(torch.eye(3))

    def forward(self, z, w):
        return self.part(z + w[..., None, :] if w.dim() > 1 and w.shape[-2] != 1 else z + w)


def bayesian(spread: float = SPREAD) -> nn.Module:
    """The program as a `BayesianVAE`, which uses masks, with a wide guide, right at w = m."""
    w = pv.priors.LearnedNormal(3)
    w.loc.data, scale = torch.tensor([0.1, -0.2, 0.3]), torch.full((3,), spread)
    w.raw_scale.data = scale.expm1().log()
    encoder = Affine(torch.eye(3) / V, scale=1.0)
    encoder.bias.data = -w.loc.data / V
    prior = pv.priors.StandardNormal(3)
    decoder = pv.programs.GivenGlobal(Shifted())
    return pv.programs.BayesianVAE(prior, encoder, decoder, pv.priors.StandardNormal(3), w)


def test_refining_finds_the_best_guide_on_average_over_globals():
    """The best z ~ N((x − m)/V, σ²/V): w enters the ELBO linearly and squared only."""
    program, x = bayesian(), numbers(6)
    program.encoder.bias.data += 0.5
    found = pv.posterior.refine(program, x, num_steps=300, num_samples=16)
    loc, log_scale = found.guide.offsets["z"]
    mean = (x - torch.tensor([0.1, -0.2, 0.3])) / V
    assert torch.allclose(program.encoder(x).mean.detach() + loc, mean, atol=0.06)
    assert torch.allclose(log_scale.exp(), torch.tensor(NOISE / math.sqrt(V)), atol=0.03)
    assert (found.elbo > found.start_elbo).all()


def test_gaps_are_means_over_globals():
    """The best guide does not see w: KL(q* ‖ p(z|x, w)) = 3 Var(w) / (2 V σ²), on average."""
    program, x = Plated(), numbers(6)
    gaps = pv.diagnostics.inference_gaps(program, x, num_globals=40)
    exact = 3 * SPREAD**2 / (2 * V * NOISE**2)
    assert ((gaps.approximation - exact).abs() < 5 * gaps.approximation_std_error + 0.01).all()
    assert gaps.approximation_std_error.max() < 0.1
    assert (gaps.amortization > 0).all()
    p_x = dist.Normal(program.loc.detach(), math.sqrt(V)).to_event(1)
    log_px = p_x.log_prob(x) - 3 * SPREAD**2 / (2 * V)
    # Var(log p(x|w)) = Σ_j ((x_j − m_j) s / V)² + s⁴ / (2 V²)
    variance = ((x - program.loc.detach()) * SPREAD / V).square().sum(-1) + 3 * SPREAD**4 / 2 / V**2
    assert ((gaps.log_px - log_px).abs() < 5 * (variance / 40).sqrt() + 0.02).all()


def test_missing_cells_are_imputed_with_the_spread_of_the_globals():
    """A missing number ~ N(m, V + s²): the numbers are independent."""
    program, x = bayesian(), numbers(3)
    mask = torch.tensor([True, True, False]).expand(3, 3)
    how = {"num_samples": 6000, "num_proposals": 200_000, "num_globals": 100}
    found = pv.impute(program, x, mask=mask, **how)
    drawn = found.draws[..., 2]
    error = math.sqrt(SPREAD**2 / 100 + V / 6000)
    assert ((drawn.mean(0) - 0.3).abs() < 5 * error).all()
    # of the variance: relative √(2/n) of each part
    variance, error = V + SPREAD**2, math.hypot(SPREAD**2 / math.sqrt(50), V / math.sqrt(3000))
    assert ((drawn.var(0) - variance).abs() < 5 * error).all()
    assert torch.equal(found.draws[..., :2], x[:, :2].expand(6000, 3, 2))
    assert found.pareto_k.max() < 0.7


def test_features_are_predicted_by_the_mixture_over_globals():
    """p(x_j|x_−j) = N(x_j; m_j, V + s²), and its CDF is the PIT."""
    found = pv.diagnostics.feature_check(bayesian(), numbers(3), num_samples=1000, num_globals=200)
    p_x = dist.Normal(torch.tensor([0.1, -0.2, 0.3]), math.sqrt(V + SPREAD**2))
    assert torch.allclose(found.log_conditional, p_x.log_prob(numbers(3)), atol=0.1)
    assert torch.allclose(found.pit, p_x.cdf(numbers(3)), atol=0.05)


def test_globals_that_are_nearly_known_change_nothing():
    """q(w) of width 1e-6 gives the numbers of the program without w, within Monte Carlo error."""
    x = numbers(400)
    known = pv.VAE(pv.priors.StandardNormal(3), bayesian().encoder, Affine(torch.eye(3)))
    known.decoder.bias.data = torch.tensor([0.1, -0.2, 0.3])
    pair = bayesian(1e-6), known
    a, b = (pv.diagnostics.prior_sensitivity(p, x[:8], num_samples=4000) for p in pair)
    assert torch.allclose(a.prior.mean(0), b.prior.mean(0), rtol=0.1)
    assert torch.allclose(a.likelihood.mean(0), b.likelihood.mean(0), rtol=0.1)
    assert a.names == b.names
    a, b = (pv.diagnostics.aggregate_test(p, x, num_draws=400) for p in pair)
    assert max(a.energy, b.energy) < 0.15
    shifted = bayesian(1e-6)
    shifted.encoder.bias.data += 1.0
    assert pv.diagnostics.aggregate_test(shifted, x, num_draws=400).energy > 0.5
