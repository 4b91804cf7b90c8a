"""Imputation against the exact conditional of the linear-Gaussian model, and by its contract."""

import math

import pyro.distributions as dist
import pytest
import torch
from oracles import LinearGaussian
from programs import NOISE, PROGRAMS, data, numbers
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


def test_a_program_imputes_each_site(float64):
    """The missing site b given a: the Gaussian of the joint normal, within six errors."""
    program, x = PROGRAMS["MultimodalVAE"].make(), data("MultimodalVAE", 5)
    mask = {"b": torch.tensor([True, False, False, False, True])}
    found = pv.impute(program, x, mask=mask, num_samples=500, num_proposals=20_000)
    covariance = PROGRAMS["MultimodalVAE"].covariance
    weight = torch.linalg.solve(covariance[:2, :2], covariance[:2, 2])
    mean = (x["a"] @ weight)[~mask["b"], None]
    variance = covariance[2, 2] - covariance[2, :2] @ weight
    drawn = found.draws["b"][:, ~mask["b"]]
    error = (variance / 250).sqrt()  # of draws that repeat each other
    assert ((drawn.mean(0) - mean).abs() < 6 * error).all()
    assert ((found.mean["b"][~mask["b"]] - mean).abs() < 6 * error).all()
    assert ((drawn.var(0) / variance).log().abs() < 6 * math.sqrt(2 / 250)).all()
    assert torch.equal(found.draws["a"], x["a"].expand(500, 5, 2))
    assert torch.equal(found.mean["b"][mask["b"]], x["b"][mask["b"]])


def test_a_class_that_is_summed_out_is_drawn_for_the_missing_cells(float64):
    """x_2 given x_0, x_1 in a mixture of normals: mean over the classes, given what is seen."""
    program, x, row = PROGRAMS["MixtureVAE"].make(), numbers(4), PROGRAMS["MixtureVAE"]
    mask = torch.tensor([True, True, False]).expand(4, 3)
    found = pv.impute(program, x, mask=mask, num_samples=1000, num_proposals=20_000)
    p_seen = dist.Normal(row.centers[:, :2].double(), math.sqrt(1 + NOISE**2)).to_event(1)
    weights = (row.weights.double().log() + p_seen.log_prob(x[:, None, :2])).softmax(-1)
    mean = weights @ row.centers[:, 2].double()
    assert ((found.mean[:, 2] - mean).abs() < 6 * found.draws[..., 2].std(0) / math.sqrt(400)).all()
