"""Imputation against the exact conditional of the linear-Gaussian model, and by its contract."""

import math

import pyro.distributions as dist
import pytest
import torch
from oracles import LinearGaussian
from torch import nn

import pyrovae as pv
from pyrovae.errors import ConfigError

pytestmark = pytest.mark.usefixtures("float64")


class ObservedEncoder(nn.Module):
    """p(z|x_observed) of the linear-Gaussian model, the missing cells being those with x = 0."""

    def __init__(self, truth: LinearGaussian, observed: torch.Tensor):
        super().__init__()
        self.truth, self.observed = truth, observed

    def forward(self, x):
        w = self.truth.weight[self.observed]
        m = w.T @ w / self.truth.sigma**2 + torch.eye(w.shape[1])
        centered = x[:, self.observed] - self.truth.mean[self.observed]
        loc = torch.linalg.solve(m, w.T @ centered.T / self.truth.sigma**2).T
        return dist.MultivariateNormal(loc, precision_matrix=m)


def conditional(truth: LinearGaussian, x: torch.Tensor, observed: torch.Tensor):
    """E[x_m|x_o] and Cov[x_m|x_o] of the joint Gaussian."""
    c = truth.covariance
    gain = c[~observed][:, observed] @ torch.linalg.inv(c[observed][:, observed])
    mean = truth.mean[~observed] + (x[:, observed] - truth.mean[observed]) @ gain.T
    return mean, c[~observed][:, ~observed] - gain @ c[observed][:, ~observed]


@pytest.fixture
def case():
    truth = LinearGaussian()
    observed = torch.tensor([True, False, True, True, False])
    x = truth.sample(6)
    return truth, x, observed


def test_draws_follow_the_exact_conditional(case):
    truth, x, observed = case
    vae = truth.vae(ObservedEncoder(truth, observed))
    found = pv.impute(vae, x, mask=observed.expand_as(x), num_samples=4000, num_proposals=20_000)
    exact_mean, exact_cov = conditional(truth, x, observed)
    missing = found.draws[..., ~observed]
    error = exact_cov.diag().sqrt() / math.sqrt(4000)
    assert ((missing.mean(0) - exact_mean) / error).abs().max() < 5
    variance = missing.var(0)
    # the standard error of a Gaussian's variance is σ² √(2 / n)
    assert ((variance / exact_cov.diag() - 1) / math.sqrt(2 / 4000)).abs().max() < 5
    wrong = exact_mean + exact_cov.diag().sqrt()  # negative control: one standard deviation off
    assert ((missing.mean(0) - wrong) / error).abs().min() > 5


def test_observed_cells_stay_and_hidden_values_do_not_matter(case):
    truth, x, observed = case
    vae = truth.vae(ObservedEncoder(truth, observed))
    mask = observed.expand_as(x)
    first = pv.impute(vae, x, mask=mask, num_samples=20)
    second = pv.impute(vae, torch.where(mask, x, torch.nan), mask=mask, num_samples=20)
    assert torch.equal(first.draws, second.draws)
    assert torch.equal(first.draws[..., observed], x[:, observed].expand(20, -1, -1))


def test_the_exact_guide_has_a_full_effective_sample_size(case):
    truth, x, observed = case
    vae = truth.vae(ObservedEncoder(truth, observed))
    found = pv.impute(vae, x, mask=observed.expand_as(x), num_samples=10, num_proposals=500)
    assert torch.allclose(found.ess, torch.tensor(500.0), rtol=1e-6)


def test_it_asks_for_a_mask():
    vae = pv.build((3,), seed=0)
    with pytest.raises(ConfigError, match="which cells of x are missing"):
        pv.impute(vae, torch.ones(2, 3), mask=None)
