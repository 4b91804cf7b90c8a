"""Data that go missing by their own value: against quadrature, and against ignoring it.

x = W z + μ + noise is normal with two columns. The first goes missing with probability
1 − σ(b + a x_0), so that log p(x_o, s) is an integral over x_0 given x_1.
"""

import math

import pyro.distributions as dist
import pytest
import torch
from oracles import LinearGaussian
from torch import Tensor, nn

import pyrovae as pv
from pyrovae.errors import ConfigError
from pyrovae.networks import SeesMask
from pyrovae.programs import NotMissingAtRandomVAE, SelfMasking

pytestmark = pytest.mark.usefixtures("float64")

SLOPE, BIAS = torch.tensor([-2.0, 0.0]), torch.tensor([0.5, 4.0])


class Posterior(nn.Module):
    """p(z|x_o) of a LinearGaussian for any mask."""

    def __init__(self, truth: LinearGaussian):
        super().__init__()
        self.truth = truth

    def forward(self, x: Tensor, mask: Tensor) -> dist.Distribution:
        w = self.truth.weight * mask[..., None]  # (N, D, L)
        eye = torch.eye(w.shape[-1])
        precision = w.mT @ w / self.truth.sigma**2 + eye
        centered = torch.where(mask, x - self.truth.mean, 0.0)
        score = (w.mT @ centered[..., None])[..., 0] / self.truth.sigma**2
        loc = torch.linalg.solve(precision, score)
        return dist.MultivariateNormal(loc, precision_matrix=precision)


def program(truth: LinearGaussian) -> NotMissingAtRandomVAE:
    missing = SelfMasking(2)
    missing.weight.data, missing.bias.data = SLOPE.clone(), BIAS.clone()
    vae = truth.vae(SeesMask(Posterior(truth)))
    return NotMissingAtRandomVAE(vae.prior, vae.encoder, vae.decoder, missing)


def sampled(truth: LinearGaussian, n: int) -> tuple[Tensor, Tensor]:
    """Data, and a mask drawn from p(s|x)."""
    x, generator = truth.sample(n), torch.Generator().manual_seed(2)
    draws = torch.rand(x.shape, generator=generator, dtype=x.dtype)
    return x, draws < (BIAS + SLOPE * x).sigmoid()


def points(truth: LinearGaussian, x: Tensor, mean: Tensor | None = None) -> tuple:
    """Return x_0 on a grid, (G,), and log p(x_0|x_1) ΔV, (G, N)."""
    mean, c = truth.mean if mean is None else mean, truth.covariance
    grid = torch.linspace(-14, 14, 4001, dtype=x.dtype)
    loc = mean[0] + (x[:, 1] - mean[1]) * c[0, 1] / c[1, 1]
    scale = (c[0, 0] - c[0, 1] ** 2 / c[1, 1]).sqrt()
    return grid, dist.Normal(loc, scale).log_prob(grid[:, None]) + (grid[1] - grid[0]).log()


def exact(truth: LinearGaussian, x: Tensor, mask: Tensor, mean: Tensor | None = None) -> Tensor:
    """log p(x_o, s) where x_1 is observed, by quadrature over x_0 where that is missing."""
    mean = truth.mean if mean is None else mean
    p_s = dist.Bernoulli(logits=BIAS + SLOPE * torch.where(mask, x, 0.0))
    log_s = p_s.log_prob(mask.to(x.dtype))
    grid, log_p = points(truth, x, mean)
    missing = dist.Bernoulli(logits=BIAS[0] + SLOPE[0] * grid[:, None]).log_prob(torch.zeros(()))
    other = dist.Normal(mean[1], truth.covariance[1, 1].sqrt()).log_prob(x[:, 1]) + log_s[:, 1]
    whole = dist.MultivariateNormal(mean, truth.covariance).log_prob(x) + log_s.sum(-1)
    return torch.where(mask[:, 0], whole, other + (log_p + missing).logsumexp(0))


@pytest.fixture(scope="module")
def truth():
    return LinearGaussian(num_features=2, latent_dim=1, sigma=0.8)


@pytest.fixture
def case(truth):
    """150 data whose second column is observed."""
    x, mask = sampled(truth, 200)
    rows = mask[:, 1].nonzero()[:150, 0]
    return program(truth), x[rows], mask[rows]


def test_evidence_against_quadrature(truth, case):
    p, x, mask = case
    found = pv.log_evidence(p, x, mask=mask, method="iwae", num_samples=2000)
    error = (found.log_px - exact(truth, x, mask)).abs()
    assert 0.2 < mask[:, 0].double().mean() < 0.8
    assert (error <= 5 * found.std_error + 1e-9).all()
    # powered: leaving out log p(s|x) is seen in every row
    ignored = pv.log_evidence(
        truth.vae(p.encoder), x, mask=mask, method="iwae", num_samples=100
    ).log_px
    assert ((ignored - exact(truth, x, mask)).abs() > 5 * found.std_error + 0.01).all()


def test_without_missing_cells_every_draw_is_exact(truth, case):
    """log w = log p(x) + log p(s = 1|x), without Monte-Carlo error, by mask = None or all true."""
    p, x, mask = case
    rows = x[mask.all(-1)]
    expected = exact(truth, rows, torch.ones_like(rows).bool())
    for whole in (None, torch.ones_like(rows)):
        log_w = pv.elbo_terms(p, rows, mask=whole, num_samples=7).log_weights
        torch.testing.assert_close(log_w, expected.expand(7, -1), rtol=0, atol=1e-10)


def test_imputation_against_quadrature(truth, case):
    """E[x_0 | x_1, s_0 = 0], which is above E[x_0 | x_1]."""
    p, x, mask = case
    rows = ~mask[:, 0]
    grid, log_p = points(truth, x[rows])
    weight = (
        log_p + dist.Bernoulli(logits=BIAS[0] + SLOPE[0] * grid[:, None]).log_prob(torch.zeros(()))
    ).softmax(0)
    mean = (weight * grid[:, None]).sum(0)
    sd = (weight * (grid[:, None] - mean) ** 2).sum(0).sqrt()
    found = pv.impute(p, x[rows], mask=mask[rows], num_samples=2000, num_proposals=20_000)
    z = (found.mean[:, 0] - mean) / (sd / math.sqrt(2000))
    assert z.abs().max() < 5.5  # of 75 rows, and resampling repeats some proposals
    spread = found.draws[..., 0].std(0) / sd - 1
    assert spread.abs().max() < 5.5 / math.sqrt(2 * 2000) * 1.5
    at_random = (log_p.exp() * grid[:, None]).sum(0)
    assert (mean - at_random > 0.1).float().mean() > 0.9  # powered
    plain = pv.impute(truth.vae(p.encoder), x[rows], mask=mask[rows], num_samples=2000)
    assert (plain.mean[:, 0] - mean).mean() < -0.1


def fitted_mean(p: nn.Module, x: Tensor, mask: Tensor) -> Tensor:
    """Fit μ alone, from 0.5 off, by IWAE."""
    for parameter in p.parameters():
        parameter.requires_grad_(False)
    mean = p.decoder[0][0].bias
    mean.requires_grad_(True).data.add_(0.5)
    how = {"objective": pv.objectives.IWAE(20), "batch_size": len(x), "progress": False}
    pv.fit(p, x, mask=mask, epochs=100, learning_rate=lambda t: 0.05 * (1 - t) + 1e-3, **how)
    return mean.detach()


def test_the_mean_is_right_where_a_vae_is_biased(truth):
    x, mask = sampled(truth, 1000)
    x, mask = x[mask[:, 1]], mask[mask[:, 1]]
    step = 1e-2

    def total(shift: float) -> Tensor:
        mean = truth.mean + torch.tensor([shift, 0.0])
        return exact(truth, x, mask, mean).sum()

    # the standard error of the maximum of the likelihood
    curvature = (2 * total(0.0) - total(step) - total(-step)) / step**2
    error = curvature.rsqrt().item()
    found = fitted_mean(program(truth), x, mask)
    assert abs(found[0] - truth.mean[0]) < 4 * error
    plain = fitted_mean(truth.vae(SeesMask(Posterior(truth))), x, mask)
    assert plain[0] - truth.mean[0] < -6 * error


@pytest.mark.filterwarnings("ignore:the decoder has no trainable")
def test_it_learns_the_slope_of_a_known_sign(truth):
    """Both engines; a and b, given p(x): within 5 standard errors of a regression on full data."""
    x, mask = sampled(truth, 600)
    slopes, how = [], {"objective": pv.objectives.IWAE(10), "batch_size": 600, "progress": False}
    for compile in ("graph", "eager"):
        p = program(truth)
        p.missing = SelfMasking(2, sign=-1)
        for part in (p.prior, p.encoder, p.decoder):
            part.requires_grad_(False)
        pv.fit(p, x, mask=mask, epochs=80, learning_rate=0.1, compile=compile, **how)
        slopes.append(p.missing.slope.detach()[0])
    assert slopes[0] == slopes[1]
    probs = (BIAS + SLOPE * x).sigmoid()[:, 0]
    design = torch.stack([torch.ones_like(x[:, 0]), x[:, 0]], -1)
    information = design.T @ (design * (probs * (1 - probs))[:, None])
    # x_0 is missing where s_0 = 0: about half of the information
    error = (2 * torch.linalg.inv(information)[1, 1]).sqrt().item()
    assert abs(slopes[0] - SLOPE[0]) < 5 * error
    assert slopes[0] < -5 * error


def test_values_of_missing_cells_do_not_matter(case):
    p, x, mask = case
    found = [
        pv.elbo_terms(p, torch.where(mask, x, filler), mask=mask, num_samples=3).log_weights
        for filler in (0.0, 1e30, math.nan)
    ]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_it_says_what_it_needs():
    with pytest.raises(ConfigError, match="sign = 2"):
        SelfMasking(2, sign=2)
    vae = pv.build(4, latent_dim=1, likelihood={"name": "Multinomial", "total": 3}, seed=0)
    p = NotMissingAtRandomVAE(vae.prior, vae.encoder, vae.decoder, SelfMasking(4))
    with pytest.raises(ConfigError, match="factorizes"):
        pv.elbo_terms(p, torch.tensor([[3.0, 0, 0, 0]]), mask=torch.tensor([[1, 1, 1, 0]]))
