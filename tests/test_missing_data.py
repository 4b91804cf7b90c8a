"""Missing data: masked = marginalized, and masked cells are inert, bit for bit."""

import itertools
import math

import pyro.distributions as dist
import pytest
import torch
from contracts import LIKELIHOODS, Part
from helpers import unchanged, vae_of
from oracles import LinearGaussian
from torch import Tensor, nn

import pyrovae as pv
from pyrovae import likelihoods
from pyrovae.errors import ConfigError
from pyrovae.networks import Given, mlp
from pyrovae.vae import fill, observed_only

pytestmark = pytest.mark.usefixtures("float64")

# the channels of a pixel depend on each other in color
DEPENDENT = ("Multinomial", "DiscretizedLogisticMixture, in color")
ELEMENTWISE = {n: p for n, p in LIKELIHOODS.items() if n not in DEPENDENT}
elementwise_table = pytest.mark.parametrize("part", ELEMENTWISE.values(), ids=ELEMENTWISE)


def some_mask(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """About half of the cells observed, at least one missing and one observed in row 0."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(shape, generator=generator) < 0.5
    mask[0].view(-1)[0], mask[0].view(-1)[-1] = True, False
    return mask


# ---- masked = marginalized, Gaussian


class ObservedPosterior(nn.Module):
    """The exact p(z | x_observed) of a LinearGaussian whose same columns are always missing."""

    def __init__(self, truth: LinearGaussian, observed: Tensor):
        super().__init__()
        self.truth, self.observed = truth, observed

    def forward(self, x: Tensor) -> dist.Distribution:
        w, mean = self.truth.weight[self.observed], self.truth.mean[self.observed]
        m = w.T @ w + self.truth.sigma**2 * torch.eye(w.shape[1])
        loc = torch.linalg.solve(m, w.T @ (x[:, self.observed] - mean).T).T
        return dist.MultivariateNormal(loc, self.truth.sigma**2 * torch.linalg.inv(m))


def log_marginal(truth: LinearGaussian, x: Tensor, mask: Tensor) -> Tensor:
    """log N(x_o; μ_o, W_o W_oᵀ + σ² I), (N,): the covariance cut to the observed cells."""
    values = []
    for row, o in zip(x, mask, strict=True):
        if not o.any():
            values.append(torch.zeros(()))
            continue
        p = dist.MultivariateNormal(truth.mean[o], truth.covariance[o][:, o])
        values.append(p.log_prob(row[o]))
    return torch.stack(values)


def test_gaussian_without_monte_carlo_error():
    """Under p(z|x_o), log w = log p(x_o) for every draw."""
    truth = LinearGaussian()
    x = truth.sample(6)
    observed = torch.tensor([True, False, True, True, False])
    mask = observed.expand(6, -1)
    vae = truth.vae(ObservedPosterior(truth, observed))
    exact = log_marginal(truth, x, mask)
    log_w = pv.elbo_terms(vae, x, mask=mask, num_samples=20).log_weights
    torch.testing.assert_close(log_w, exact.expand(20, -1), rtol=0, atol=1e-10)
    estimate = pv.log_evidence(vae, x, mask=mask, method="iwae", num_samples=20)
    torch.testing.assert_close(estimate.log_px, exact, rtol=0, atol=1e-10)


def test_gaussian_by_quadrature_with_a_mask_per_row():
    truth = LinearGaussian(sigma=1.0)
    x = truth.sample(8)
    mask = some_mask((8, 5))
    mask[3] = False
    # wide enough for the prior, which is the posterior of the empty row
    q = pv.guides.DiagonalNormal(2)
    vae = truth.vae(nn.Sequential(mlp(5, q.num_features, hidden=()), q))
    found = pv.log_evidence(vae, x, mask=mask, method="grid").log_px
    exact = log_marginal(truth, x, mask)
    # the grid stops when a refinement moves log p by less than 1e-6
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-5)
    # negative control: the full data, and conditioning in place of marginalizing, are seen
    assert (found - truth.log_evidence(x)).abs().max() > 0.1
    zeros = truth.log_evidence(torch.where(mask, x, 0.0))
    assert (found - zeros).abs().max() > 0.1


def test_gaussian_by_importance_weights():
    """log p(x_o) from a guide that is the prior: within 5 standard errors of the closed form."""
    truth = LinearGaussian(sigma=2.0)
    x, mask = truth.sample(8), some_mask((8, 5))
    vae = truth.vae(Prior(2))
    estimate = pv.log_evidence(vae, x, mask=mask, num_samples=20_000)
    error = (estimate.log_px - log_marginal(truth, x, mask)).abs()
    assert (error < 5 * estimate.std_error).all()
    # powered: dropping one observed cell moves log p by more than 8 standard errors
    assert (8 * estimate.std_error < 0.5).all()


class Prior(nn.Module):
    """q(z|x) = N(0, I): its importance weights are the likelihood."""

    def __init__(self, latent_dim: int):
        super().__init__()
        self.latent_dim = latent_dim

    def forward(self, x: Tensor) -> dist.Distribution:
        return dist.Normal(torch.zeros(len(x), self.latent_dim), 1.0).to_event(1)


# ---- masked = marginalized, discrete: the sum over completions


@pytest.mark.parametrize(
    ("head", "levels"),
    [
        (lambda: likelihoods.Bernoulli(4), [0.0, 1.0]),
        (lambda: likelihoods.Categorical(4, 3), [0.0, 1.0, 2.0]),
        (lambda: likelihoods.DiscretizedLogistic(4, 3), [0.0, 0.5, 1.0]),
    ],
    ids=["Bernoulli", "Categorical", "DiscretizedLogistic"],
)
def test_masked_is_the_sum_over_completions(head, levels):
    vae = vae_of(likelihood=head(), latent_dim=1)
    x = torch.tensor([levels[-1], levels[0], levels[1], levels[0]])
    mask = torch.tensor([True, False, True, False])
    completions = x.repeat(len(levels) ** 2, 1)
    completions[:, ~mask] = torch.tensor(list(itertools.product(levels, repeat=2)))
    summed = pv.log_evidence(vae, completions, method="grid").log_px.logsumexp(0)
    masked = pv.log_evidence(vae, x[None], mask=mask[None], method="grid").log_px[0]
    # the grid stops when a refinement moves log p by less than 1e-6
    assert masked.item() == pytest.approx(summed.item(), abs=1e-5)
    # negative control: a completion left out is seen
    assert masked.item() != pytest.approx(
        pv.log_evidence(vae, completions[1:], method="grid").log_px.logsumexp(0).item(), abs=1e-3
    )


# ---- the value of a masked cell has no effect, bit for bit


def data_of(part: Part) -> tuple[pv.VAE, Tensor, Tensor]:
    torch.manual_seed(1)
    vae = vae_of(likelihood=part.make())
    x = vae.sample(6, seed=0)
    return vae, x, some_mask(tuple(x.shape))


FILLERS = [0.0, 1e30, -math.inf, math.nan]


@elementwise_table
def test_masked_cells_change_no_bit(part):
    vae, x, mask = data_of(part)
    results = []
    for filler in FILLERS:
        dirty = torch.where(mask, x, filler)
        torch.manual_seed(0)
        loss = vae.loss(dirty, mask=mask)
        gradients = torch.autograd.grad(loss.sum(), list(vae.parameters()))
        q = vae.encode(dirty, mask=mask).base_dist
        evidence = pv.log_evidence(vae, dirty, mask=mask, num_samples=20)
        results.append([loss, *gradients, q.loc, q.scale, evidence.log_px])
    assert all(g.isfinite().all() for g in results[0])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@elementwise_table
def test_training_ignores_masked_cells_bit_for_bit(part):
    results = []
    for filler in (0.0, math.nan):
        vae, x, mask = data_of(part)
        dirty = torch.where(mask, x, filler)
        validation = (dirty, None, mask)
        history = pv.fit(vae, dirty, mask=mask, validation=validation, epochs=3, batch_size=4)
        results.append((history["elbo"], history["validation_elbo"], list(vae.parameters())))
    (elbo, tested, parameters), (elbo2, tested2, parameters2) = results
    assert elbo == elbo2
    assert tested == tested2
    assert all(torch.equal(a, b) for a, b in zip(parameters, parameters2, strict=True))


@elementwise_table
def test_masked_density_is_that_of_the_observed_cells(part):
    vae, x, mask = data_of(part)
    p_x = vae.decode(torch.randn(3, 6, 2))
    cells = p_x.base_dist.log_prob(x)  # (3, 6, *event)
    expected = torch.where(mask, cells, 0.0).flatten(2).sum(-1)
    found = observed_only(p_x, mask).log_prob(fill(x, mask, p_x.support))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert observed_only(p_x, mask).event_shape == p_x.event_shape


@elementwise_table
def test_observed_cells_do_count(part):
    """Negative control: a change of one observed cell moves the loss."""
    vae, x, mask = data_of(part)
    other = torch.where(x == x[0], x[torch.randperm(6)], x)
    moved = torch.where(mask, other.flip(0), x)
    losses = []
    for data in (x, moved):
        torch.manual_seed(0)
        losses.append(vae.loss(data, mask=mask))
    assert not torch.equal(*losses)


@elementwise_table
def test_fully_masked_row_has_likelihood_one(part):
    vae, x, mask = data_of(part)
    mask[2] = False
    terms = pv.elbo_terms(vae, torch.where(mask, x, math.nan), mask=mask, num_samples=5)
    assert (terms.log_likelihood[:, 2] == 0).all()
    assert (terms.log_likelihood[:, 0] != 0).all()
    torch.manual_seed(0)
    assert vae.loss_terms(x, mask=mask).reconstruction[2] == 0


def test_fully_masked_row_has_evidence_zero():
    """log p(nothing) = log ∫ p(z) dz = 0, though the ELBO lies below."""
    vae = vae_of(likelihood=likelihoods.Bernoulli(4), latent_dim=1)
    x, mask = torch.ones(2, 4), torch.tensor([[True] * 4, [False] * 4])
    exact = pv.log_evidence(vae, x, mask=mask, method="grid").log_px
    assert exact[1].item() == pytest.approx(0.0, abs=1e-6)
    assert pv.elbo_terms(vae, x, mask=mask, num_samples=2000).log_weights.mean(0)[1] < 0


# ---- with covariates, and where it cannot work


def test_mask_and_sizes_together():
    head = likelihoods.NegativeBinomial((2, 2))
    plain = vae_of(likelihood=head)
    decoder = Given(likelihoods.CountDecoder(plain.decoder[0], head))
    vae = pv.VAE(plain.prior, plain.encoder, decoder)
    size = torch.arange(1.0, 7.0)
    x = vae.sample(6, size, seed=0)
    mask = some_mask(tuple(x.shape))
    losses = []
    for filler in (0.0, math.nan):
        torch.manual_seed(0)
        losses.append(vae.loss(torch.where(mask, x, filler), size, mask))
    assert torch.equal(*losses)
    torch.manual_seed(0)
    assert not torch.equal(vae.loss(x, 2 * size, mask), losses[0])


def test_an_all_true_mask_equals_no_mask():
    vae = vae_of(likelihood=likelihoods.Bernoulli(4))
    x = vae.sample(6, seed=0)
    torch.manual_seed(0)
    masked = vae.loss(x, mask=torch.ones_like(x))
    torch.manual_seed(0)
    torch.testing.assert_close(vae.loss(x), masked, rtol=1e-14, atol=0)


@pytest.mark.parametrize("call", ["loss", "encode", "fit", "log_evidence"])
def test_a_likelihood_that_does_not_factorize_refuses_a_mask(call):
    vae = vae_of(likelihood=likelihoods.Multinomial(4, total=3))
    x = vae.sample(6, seed=0)
    message = r"factorizes.*Multinomial.*\n.*elementwise"
    with unchanged(vae), pytest.raises(ConfigError, match=message):
        {
            "loss": vae.loss,
            "encode": vae.encode,
            "fit": lambda *args, **kwargs: pv.fit(vae, *args, **kwargs),
            "log_evidence": lambda *args, **kwargs: pv.log_evidence(vae, *args, **kwargs),
        }[call](x, mask=some_mask((6, 4)))
