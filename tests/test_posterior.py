"""Draws of p(z|x): grid, SIR and HMC against exact posteriors and each other; refined guides.

Moments of S effective draws: a mean has standard error σ/√S, a covariance
√((C_ij² + C_ii C_jj)/S) for normal posteriors, twice that is allowed for others (kurtosis up to 9).
"""

import math
import warnings
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import unchanged
from oracles import (
    AffineEncoder,
    ExactEncoder,
    Ladder,
    LinearGaussian,
    Rewritten,
    all_binary,
    grid,
    wide_guide,
)
from torch import nn

import pyrovae as pv
from pyrovae import posterior
from pyrovae.core.hamiltonian import Kernel, Style, point_at, transition
from pyrovae.errors import ConfigError
from pyrovae.posterior.chains import least_ess, warn_of_trouble
from pyrovae.posterior.convergence import bulk_ess, e_bfmi, split_r_hat
from pyrovae.posterior.warmup import num_needed, scale_of

pytestmark = pytest.mark.usefixtures("float64")

SAMPLERS = {
    "grid": lambda vae, x, **more: posterior.grid(vae, x, num_samples=4000, **more),
    "sir": lambda vae, x, **more: posterior.sir(
        vae, x, num_samples=4000, num_proposals=40_000, **more
    ),
    # as many draws as 4 chains of 1000, for a seventh of the steps
    "hmc": lambda vae, x, **more: posterior.hmc(
        vae, x, num_samples=100, num_chains=40, num_warmup=60, **more
    ),
}


def scores(found, mean, covariance) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the errors of mean and covariance in standard errors, (N, D) and (N, D, D)."""
    num = found.ess.clamp(max=found.draws.shape[0] * found.draws.shape[1])[:, None]
    # a resampled draw has two sources of noise: the proposals' and its own
    num = num if found.pareto_k.isnan().all() else 1 / (1 / num + 1 / found.draws.shape[1])
    variance = covariance.diagonal(dim1=-2, dim2=-1)
    z_mean = (found.mean - mean) / (variance / num).sqrt()
    products = covariance**2 + variance[:, :, None] * variance[:, None, :]
    return z_mean, (found.covariance - covariance) / (products / num[..., None]).sqrt()


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_draws_have_the_exact_moments(sampler):
    """Linear-Gaussian: |z| < 5 for 4 means and 6 covariances of 4 data."""
    truth = LinearGaussian()
    x = truth.sample(4)
    exact = truth.posterior(x)
    covariance = exact.covariance_matrix.expand(4, 2, 2)
    found = SAMPLERS[sampler](truth.vae(wide_guide(truth)), x)
    z_mean, z_covariance = scores(found, exact.mean, covariance)
    assert z_mean.abs().max() < 5
    assert z_covariance.abs().max() < 5
    assert found.draws.shape[2:] == (4, 2)
    # negative control: sd × 0.8
    assert scores(found, exact.mean, 0.64 * covariance)[1].abs().max() > 8


def test_hmc_adapts_to_correlations():
    """Ten latents with correlations: exact moments, and a third of the draws count.

    |z| < 5 for 20 means and 110 covariances. With a diagonal scale a twentieth of them does.
    """
    truth = LinearGaussian(num_features=12, latent_dim=10)
    x = truth.sample(2)
    exact = truth.posterior(x)
    covariance = exact.covariance_matrix.expand(2, 10, 10)
    deviation = covariance.diagonal(dim1=1, dim2=2).sqrt()
    correlation = covariance / (deviation[:, None] * deviation[:, :, None])
    assert torch.linalg.cond(correlation).min() > 30
    found = posterior.hmc(
        truth.vae(wide_guide(truth)), x, num_samples=120, num_warmup=120, num_chains=8
    )
    z_mean, z_covariance = scores(found, exact.mean, covariance)
    assert z_mean.abs().max() < 5
    assert z_covariance.abs().max() < 5
    assert found.ess.min() > 8 * 120 / 3


class Digits(NamedTuple):
    """A trained model, test digits, and exact moments of their posteriors."""

    vae: pv.VAE
    x: torch.Tensor
    mean: torch.Tensor
    covariance: torch.Tensor


@pytest.fixture(scope="module")
def digits() -> Digits:
    """A 2-D Bernoulli model of scikit-learn's digits and 6 test digits; moments on a 401² grid."""
    data = pv.datasets.digits()
    vae = pv.build((8, 8), latent_dim=2, hidden=(50,), seed=0)
    x = pv.datasets.binarize(data.train)
    pv.fit(vae, x, epochs=30, batch_size=100, learning_rate=3e-3)
    vae, x = vae.double(), pv.datasets.binarize(data.test)[:6].double()
    z, _ = grid(6.0, 401, 2)
    with torch.no_grad():
        log_joint = [
            vae.prior().log_prob(part)[:, None] + vae.decode(part[:, None]).log_prob(x)
            for part in z.split(5000)
        ]
    weight = torch.cat(log_joint).softmax(0)  # (G, N)
    mean = weight.T @ z
    squares = torch.einsum("gn,gi,gj->nij", weight, z, z)
    return Digits(vae, x, mean, squares - mean[..., None] * mean[:, None])


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_draws_agree_with_quadrature_on_real_digits(digits, sampler):
    """|z| < 5 for means; covariances twice as far, because these posteriors are not normal."""
    vae, x, mean, covariance = digits
    found = SAMPLERS[sampler](vae, x)
    # where the guide is too narrow, k̂ says that the errors are not to be trusted
    trusted = ~(found.pareto_k > 0.7)
    assert trusted.sum() >= 4
    z_mean, z_covariance = scores(found, mean, covariance)
    assert z_mean[trusted].abs().max() < 5
    assert z_covariance[trusted].abs().max() < 10
    wrong = scores(found, mean, 0.64 * covariance)[1]  # negative control
    assert wrong[trusted].abs().max() > 10
    if sampler == "hmc":
        assert found.r_hat.max() < 1.02
        assert found.ess.min() > 400


def test_grid_draws_have_the_posteriors_distribution():
    """1-D: Kolmogorov-Smirnov against the posterior's cdf, for p(z|x) of two modes.

    Uniform draws within cells of width h ≤ 0.15 σ: the cdf is off by 1e-3 at most.
    """

    class Square(nn.Module):
        def forward(self, z):
            return dist.Normal(z**2, 0.5).to_event(1)

    vae = pv.VAE(
        pv.priors.StandardNormal(1), AffineEncoder(torch.ones(1, 1), 0.0, torch.ones(1)), Square()
    )
    x = torch.tensor([[1.5]])
    draws = posterior.grid(vae, x, num_samples=20_000).draws[0, :, 0, 0].sort().values
    z, _ = grid(6.0, 4001, 1)
    density = (vae.prior().log_prob(z) + vae.decode(z[:, None]).log_prob(x)[:, 0]).exp()
    cdf = density.cumsum(0) / density.sum()
    at = cdf[torch.searchsorted(z[:, 0].contiguous(), draws).clamp(max=4000)]
    gap = (at - torch.arange(1, 20_001) / 20_000).abs().max().item()
    # 1.95/√n is exceeded once in 1000; 2e-3 for the cells and for the cdf's own steps
    assert gap < 1.95 / math.sqrt(20_000) + 2e-3
    shifted = cdf[torch.searchsorted(z[:, 0].contiguous(), draws + 0.05).clamp(max=4000)]
    assert (shifted - torch.arange(1, 20_001) / 20_000).abs().max() > 0.02  # negative control


def test_any_program():
    """a, b of the ladder side by side, against the joint normal of (a, b, x)."""
    program, x = Ladder(), torch.tensor([[1.0, 0.5], [-2.0, -1.0]])
    # (a, b, x₁, x₂) ~ N(0, Σ): condition on x
    joint = torch.tensor(
        [[1.0, 1.0, 1.0, 1.0], [1.0, 2.0, 2.0, 2.0], [1.0, 2.0, 2.25, 2.0], [1.0, 2.0, 2.0, 2.25]]
    )
    gain = joint[:2, 2:] @ torch.linalg.inv(joint[2:, 2:])
    mean, covariance = x @ gain.T, (joint[:2, :2] - gain @ joint[2:, :2]).expand(2, 2, 2)
    for found in (
        SAMPLERS["sir"](program, x),
        posterior.hmc(program, x, num_samples=50, num_chains=32, num_warmup=60),
    ):
        z_mean, z_covariance = scores(found, mean, covariance)
        assert z_mean.abs().max() < 5
        assert z_covariance.abs().max() < 5


def test_hmc_moves_on_the_real_line_and_returns_the_units_of_the_latents():
    """z ~ Beta(2, 3), five Bernoulli(z): p(z|x) = Beta(2 + s, 8 − s)."""

    class ToProbs(nn.Module):
        def forward(self, z):
            return dist.Bernoulli(probs=z.expand(*z.shape[:-1], 5)).to_event(1)

    class Guide(nn.Module):
        def forward(self, x):
            return dist.Beta(1.5 + x[:, :1], torch.full((len(x), 1), 2.0)).to_event(1)

    prior = pv.priors.Fixed(
        lambda a, b: dist.Beta(a, b).to_event(1), a=torch.tensor([2.0]), b=torch.tensor([3.0])
    )
    x = torch.tensor([[1.0, 1, 1, 0, 1], [0.0, 0, 0, 0, 0]])
    exact = dist.Beta(2 + x.sum(-1, keepdim=True), 8 - x.sum(-1, keepdim=True))
    found = SAMPLERS["hmc"](pv.VAE(prior, Guide(), ToProbs()), x)
    z_mean, z_covariance = scores(found, exact.mean, exact.variance[..., None])
    assert z_mean.abs().max() < 5
    assert z_covariance.abs().max() < 8


def test_shapes_and_diagnostics():
    truth = LinearGaussian()
    vae, x = truth.vae(wide_guide(truth)), truth.sample(3)
    exact = posterior.grid(vae, x, num_samples=7)
    assert exact.draws.shape == (1, 7, 3, 2)
    assert torch.equal(exact.ess, torch.full((3,), 7.0))
    assert exact.r_hat.isnan().all()
    drawn = posterior.sir(vae, x, num_samples=7, num_proposals=500)
    assert drawn.draws.shape == (1, 7, 3, 2)
    assert ((drawn.ess > 100) & (drawn.ess < 500)).all()
    assert (drawn.pareto_k < 0.7).all()
    chains = posterior.hmc(vae, x, num_samples=12, num_warmup=4, num_chains=3)
    assert chains.draws.shape == (3, 12, 3, 2)
    assert chains.pareto_k.isnan().all()
    assert not chains.draws.requires_grad


def test_statistics_of_the_sampler():
    """E[H] = −log p(x) + entropy of p(z|x) + D/2, for a Gaussian: Var H = D; |z| < 5."""
    truth = LinearGaussian()
    vae, x = truth.vae(wide_guide(truth)), truth.sample(3)
    assert posterior.sir(vae, x, num_samples=7, num_proposals=50).stats is None
    found = posterior.hmc(vae, x, num_samples=100, num_warmup=40)
    stats = found.stats
    assert {value.shape for value in stats} == {(4, 100, 3)}
    assert ((stats.acceptance_rate > 0) & (stats.acceptance_rate <= 1)).all()
    assert ((stats.acceptance_rate.mean((0, 1)) - 0.7).abs() < 0.25).all()
    assert not stats.diverging.any()
    assert (stats.step_size == stats.step_size[0, 0]).all()
    assert (stats.step_size[0, 0] > 0).all()
    assert ((stats.n_steps >= 1) & (stats.n_steps <= 5)).all()
    exact = truth.posterior(x).entropy() - truth.log_evidence(x) + 2 / 2
    error = math.sqrt(2) / bulk_ess(stats.energy).sqrt()
    assert ((stats.energy.mean((0, 1)) - exact).abs() < 5 * error).all()
    assert torch.equal(found.e_bfmi, e_bfmi(stats.energy))
    assert (found.e_bfmi > 0.5).all()


class Funnel(nn.Module):
    """v ~ N(0, 3²), w|v ~ N(0, e^v) five times (Neal, 2003); x says nothing."""

    def __init__(self):
        super().__init__()
        self.one = nn.Parameter(torch.ones(()))

    def model(self, x, y=None, mask=None):
        with pyro.plate("data", len(x), dim=-1):
            v = pyro.sample("v", dist.Normal(0.0 * x, 3.0 * self.one).to_event(1))
            scale = (v / 2).exp().expand(*v.shape[:-1], 5)
            pyro.sample("w", dist.Normal(0.0, scale).to_event(1))
            pyro.sample("x", dist.Normal(0.0, self.one).expand(x.shape).to_event(1), obs=x)

    def guide(self, x, y=None, mask=None):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("v", dist.Normal(0.0 * x, self.one).to_event(1))
            pyro.sample("w", dist.Normal(x.new_zeros(len(x), 5), self.one).to_event(1))


def test_hmc_warns_of_divergences():
    """In the neck of a funnel steps are too large."""
    with pytest.warns(UserWarning, match=r"of the draws diverged for \d of 4 data"):
        found = posterior.hmc(Funnel(), torch.zeros(4, 1), num_samples=80, num_warmup=20)
    assert 0 < found.stats.diverging.double().mean() < 0.2


def test_hmc_warns_of_slow_energies():
    truth = LinearGaussian()
    vae, x = truth.vae(wide_guide(truth)), truth.sample(3)
    found = posterior.hmc(vae, x, num_samples=100, num_warmup=20, num_chains=2)
    slow = found._replace(e_bfmi=torch.tensor([[0.2, 1.0, 0.2], [0.3, 1.0, 0.5]]))
    with pytest.warns(UserWarning, match=r"E-BFMI is below 0.3 for 1 of 3 data"):
        warn_of_trouble(slow)
    warn_of_trouble(slow._replace(draws=found.draws[:, :50]))  # too few energies to tell


def test_sir_says_when_the_guide_is_too_narrow():
    truth = LinearGaussian()
    x = truth.sample(3)
    found = posterior.sir(truth.vae(ExactEncoder(truth, 0.4)), x)
    assert (found.pareto_k > 0.7).any()
    assert (found.ess < 2000).all()


def test_hmc_says_when_chains_have_not_mixed():
    """Two far modes at z = ±3: chains stay in theirs, and R̂ shows it."""

    class Square(nn.Module):
        def forward(self, z):
            return dist.Normal(z**2, 0.1).to_event(1)

    encoder = AffineEncoder(torch.zeros(1, 1), 0.0, 4 * torch.ones(1))
    vae = pv.VAE(pv.priors.StandardNormal(1), encoder, Square())
    found = posterior.hmc(vae, torch.tensor([[9.0]]), num_samples=100, num_chains=8, num_warmup=90)
    assert found.r_hat.item() > 1.5
    assert found.ess.item() < 50


def test_repeatable_and_without_traces():
    truth = LinearGaussian()
    vae, x = truth.vae(wide_guide(truth)), truth.sample(2)
    for call in (
        lambda seed: posterior.grid(vae, x, num_samples=5, seed=seed).draws,
        lambda seed: posterior.sir(vae, x, num_samples=5, num_proposals=50, seed=seed).draws,
        lambda seed: posterior.hmc(vae, x, num_samples=5, num_warmup=3, seed=seed).draws,
        lambda seed: posterior.refine(vae, x, num_steps=3, seed=seed).guide.mean,
    ):
        with unchanged(vae):
            assert torch.equal(call(1), call(1))
            assert not torch.equal(call(1), call(2))
    assert all(p.grad is None for p in vae.parameters())


def test_small_budgets_cut_the_data():
    """One datum at a time gives the same posteriors, by other draws."""
    truth = LinearGaussian()
    vae, x = truth.vae(wide_guide(truth)), truth.sample(4)
    exact = truth.posterior(x)
    covariance = exact.covariance_matrix.expand(4, 2, 2)
    found = posterior.sir(vae, x, memory_budget=10**5)
    assert scores(found, exact.mean, covariance)[0].abs().max() < 5
    how = {"num_samples": 60, "num_warmup": 45, "num_chains": 16}
    found = posterior.hmc(vae, x[:2], memory_budget=4 * 10**4, **how)
    whole = posterior.hmc(vae, x[:2], **how)
    assert not torch.equal(found.draws, whole.draws)
    assert scores(found, exact.mean[:2], covariance[:2])[0].abs().max() < 5
    refined = posterior.refine(vae, x, num_steps=2, memory_budget=4 * 10**5)
    assert refined.guide.batch_shape == (4,)


# ---- refined guides


class Full(nn.Module):
    """N(0, I) with a full covariance, regardless of x: an uninformed start."""

    def forward(self, x):
        return dist.MultivariateNormal(
            torch.zeros(len(x), 2), scale_tril=torch.eye(2).expand(len(x), 2, 2)
        )


def test_refining_a_full_normal_finds_the_posterior():
    """The family holds p(z|x): the ELBO becomes log p(x), without Monte-Carlo error there.

    The data do not mix.
    """
    truth = LinearGaussian()
    x = truth.sample(5)
    found = posterior.refine(truth.vae(Full()), x, num_steps=600, learning_rate=0.1)
    exact = truth.posterior(x)
    # the optimizer's own error; the gap is quadratic in it
    torch.testing.assert_close(found.elbo, truth.log_evidence(x), rtol=0, atol=1e-4)
    torch.testing.assert_close(found.guide.mean, exact.mean, rtol=0, atol=5e-3)
    torch.testing.assert_close(
        found.guide.covariance_matrix, exact.covariance_matrix.expand(5, 2, 2), rtol=0.02, atol=2e-3
    )
    assert (found.start_elbo < found.elbo - 1).all()  # negative control: the start is far
    # each datum alone has the same optimum as among others
    alone = posterior.refine(truth.vae(Full()), x[1:2], num_steps=600, learning_rate=0.1).guide
    torch.testing.assert_close(found.guide.mean[1:2], alone.mean, rtol=0, atol=5e-3)


def test_refining_a_diagonal_normal_finds_its_best():
    """Mean field on a linear-Gaussian model: exact mean, variances σ²/M_jj, exact ELBO."""
    truth = LinearGaussian()
    x = truth.sample(5)
    start = AffineEncoder(torch.zeros(2, 5), truth.mean, torch.ones(2))
    found = posterior.refine(truth.vae(start), x, num_steps=800, learning_rate=0.1, num_samples=32)
    best_variance = truth.sigma**2 / truth.m.diag()
    best = truth.elbo(x, torch.linalg.solve(truth.m, truth.weight.T), best_variance)
    # Adam's noise at the end: 5e-3 in each parameter costs 5e-3² · M/σ² ~ 1e-3 nat at most
    q = found.guide
    exact = truth.posterior(x)
    torch.testing.assert_close(q.mean, exact.mean, rtol=0, atol=0.02)
    torch.testing.assert_close(q.variance, best_variance.expand(5, 2), rtol=0.05, atol=0)
    draws = 100  # of the reported ELBO
    spread = 0.5 * math.sqrt(2 * 2 / draws)  # sd of log w under mean field is below 1/2 here
    assert (found.elbo - best).abs().max() < 5 * spread
    assert (truth.log_evidence(x) - best > 0.005).all()  # the approximation gap stays
    assert (found.elbo > found.start_elbo).all()


@pytest.mark.parametrize(
    "guide",
    ["DiagonalNormal", "FullNormal", "LowRankNormal", "StudentT", "Laplace", "PowerSpherical"],
)
def test_refine_keeps_the_family_and_gains(guide):
    prior = "HypersphericalUniform" if guide == "PowerSpherical" else "StandardNormal"
    vae = pv.build((6,), latent_dim=2, prior=prior, guide=guide, hidden=(8,), seed=0)
    for parameter in vae.decoder.parameters():
        parameter.data.mul_(3.0)  # so that x says something about z
    x = all_binary(6)[::9]
    start = vae.encode(x)
    found = posterior.refine(vae, x, num_steps=100)
    assert type(found.guide) is type(start)
    assert found.guide.batch_shape == start.batch_shape
    assert found.guide.event_shape == start.event_shape
    assert (found.elbo - found.start_elbo).mean() > 0.05
    # between ELBO and evidence, within the noise of 100 draws
    evidence = pv.log_evidence(vae, x, num_samples=5000).log_px
    assert (found.elbo.mean() - evidence.mean()).item() < 0.1


def test_refine_does_not_change_the_model():
    vae = pv.build((6,), latent_dim=2, seed=0).train()
    with unchanged(vae):
        found = posterior.refine(vae, torch.ones(3, 6), num_steps=5)
    assert all(p.requires_grad for p in vae.parameters())
    assert vae.training
    assert not found.guide.mean.requires_grad


@pytest.mark.parametrize(
    ("guide", "prior", "reason"),
    [
        ("Bernoulli", "Bernoulli", "BernoulliVector has no pathwise gradient"),
        ("FlowGuide", "StandardNormal", "FlowDistribution declares no parameters"),
    ],
)
def test_refine_refuses_a_guide_that_it_cannot_move(guide, prior, reason):
    vae = pv.build((3,), latent_dim=2, guide=guide, prior=prior, seed=0)
    with pytest.raises(ConfigError, match=rf"{reason}.*\n.*posterior\.sir"):
        posterior.refine(vae, torch.ones(2, 3))


def test_refusals():
    truth = LinearGaussian()
    program = Rewritten(truth.vae(wide_guide(truth)))
    x = truth.sample(2)
    with pytest.raises(ConfigError, match=r"Rewritten.*\n.*any program"):
        posterior.grid(program, x)
    with pytest.raises(ConfigError, match="3 dimensions"):
        posterior.grid(pv.build((3,), latent_dim=3, seed=0), torch.ones(1, 3))
    discrete = pv.build((3,), latent_dim=2, prior="Bernoulli", guide="Bernoulli", seed=0)
    with pytest.raises(ConfigError, match=r"posterior\.hmc.*\n?.*discrete"):
        posterior.hmc(discrete, torch.ones(1, 3))
    for call, setting in (
        (posterior.sir, "num_proposals"),
        (posterior.hmc, "num_chains"),
        (posterior.refine, "num_steps"),
    ):
        with pytest.raises(ConfigError, match=f"{setting} = 0"):
            call(truth.vae(wide_guide(truth)), x, **{setting: 0})


def test_sir_draws_discrete_latents():
    """P(z|x) over 4 values against the sum, by χ²: 27.9 is exceeded once in 10⁵ at 3 degrees."""
    vae = pv.build((3,), latent_dim=2, prior="Bernoulli", guide="Bernoulli", hidden=(8,), seed=0)
    x = all_binary(3)[5:6]
    z = vae.prior().enumerate_support()
    log_joint = vae.prior().log_prob(z) + vae.decode(z[:, None]).log_prob(x)[:, 0]
    exact = log_joint.detach().softmax(0)
    found = posterior.sir(vae, x, num_samples=2000, num_proposals=200_000)
    index = (found.draws[0, :, 0] * torch.tensor([2.0, 1.0])).sum(-1).long()
    counts = torch.bincount(index, minlength=4)
    assert ((counts - 2000 * exact) ** 2 / (2000 * exact)).sum() < 27.9


# ---- convergence of chains


def some_chains(kind: str, num_draws: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(4, num_draws, 3, generator=generator, dtype=torch.float64)
    if kind == "white":
        return noise
    if kind == "ties":
        return (2 * noise).round()
    coefficient = 0.9 if kind == "slow" else -0.6
    values = [noise[:, 0]]
    for t in range(1, num_draws):
        values.append(coefficient * values[-1] + noise[:, t])
    chains = torch.stack(values, 1)
    return chains if kind == "slow" else chains + torch.arange(4.0)[:, None, None]


@pytest.mark.parametrize("num_draws", [10, 101, 1000])
@pytest.mark.parametrize("kind", ["white", "ties", "slow", "apart"])
def test_convergence_equals_arviz(kind, num_draws):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import arviz
    chains = some_chains(kind, num_draws)
    for ours, theirs in ((split_r_hat, arviz.rhat), (bulk_ess, arviz.ess)):
        reference = torch.tensor([float(theirs(chains[..., i].numpy())) for i in range(3)])
        torch.testing.assert_close(ours(chains), reference, rtol=1e-8, atol=0)
    last = chains[:, 1:] if num_draws > 10 else chains[:3]  # negative control: other chains
    assert (split_r_hat(chains) - split_r_hat(last)).abs().max() > 1e-6


def test_r_hat_and_ess_of_known_chains():
    white, slow, apart = (some_chains(kind, 1000) for kind in ("white", "slow", "apart"))
    assert (split_r_hat(white) < 1.01).all()
    assert (split_r_hat(apart) > 1.2).all()
    assert ((bulk_ess(white) - 4000).abs() < 800).all()
    # AR(1): 4000 (1 − 0.9)/(1 + 0.9) = 210
    assert ((bulk_ess(slow) > 120) & (bulk_ess(slow) < 350)).all()
    assert split_r_hat(white[:, :5]).isnan().all()
    assert bulk_ess(torch.zeros(2, 100, 1)).isnan().all()
    stuck = torch.arange(4.0)[:, None, None].expand(4, 100, 1)
    assert split_r_hat(stuck).isinf().all()
    assert bulk_ess(stuck) < 5
    assert {f(white).dtype for f in (split_r_hat, bulk_ess)} == {torch.float64}


def test_e_bfmi_of_known_energies():
    """AR(1) of coefficient φ: E (E_t − E_{t−1})² / Var E = 2 (1 − φ), 4 chains of 1000."""
    for kind, coefficient in (("white", 0.0), ("slow", 0.9)):
        found = e_bfmi(some_chains(kind, 1000))
        assert found.shape == (4, 3)
        # Var of the ratio is at most 4 (1 + φ)/(1 − φ)/1000 of its square
        exact = 2 * (1 - coefficient)
        error = exact * math.sqrt(4 * (1 + coefficient) / (1 - coefficient) / 1000)
        assert ((found - exact).abs() < 4 * error).all()
    assert e_bfmi(some_chains("white", 9)[:, :9]).isnan().all()


def test_e_bfmi_of_exact_trajectories():
    """A D-dimensional Gaussian: momenta renew D/2 of the energy's variance D, twice: 1."""

    def normal(u):
        return -0.5 * (u**2).sum(-1), torch.zeros(u.shape[:-1])

    num_data, dim = 50, 20
    kernel = Kernel(1.0, torch.full((num_data,), 0.2), torch.ones(num_data, dim), 8)
    point, energies = point_at(normal, torch.randn(4, num_data, dim)), []
    for _ in range(300):
        point, info = transition(normal, point, kernel)
        energies.append(info.energy)
    assert not info.is_divergent.any()
    found = e_bfmi(torch.stack(energies, 1))
    # 200 chains of sd about √(2/300) each
    assert found.mean().item() == pytest.approx(1.0, abs=5 * math.sqrt(2 / 300 / 200))


def test_too_large_a_step_is_a_divergence():
    """Leapfrog steps of more than 2 standard deviations diverge, for that datum only."""

    def normal(u):
        return -0.5 * (u**2).sum(-1), torch.zeros(u.shape[:-1])

    styles = Style(torch.tensor([9, 9, 1]), torch.tensor([1.0, 1.0, 0.0]))
    steps = torch.tensor([0.5, 4.0, 400.0])  # the last one is a random walk
    kernel = Kernel(1.0, steps, torch.ones(3, 2), 9, styles)
    _, info = transition(normal, point_at(normal, torch.randn(5, 3, 2)), kernel)
    assert info.is_divergent.all(0).tolist() == [False, True, False]
    assert info.is_divergent.any(0).tolist() == [False, True, False]
    assert (info.acceptance[:, 1:] < 0.2).all()


def test_warm_up_learns_the_covariance():
    """Within 5 standard errors √((C_ij² + C_ii C_jj)/S), and 10 prior draws of no correlation."""
    truth = LinearGaussian().posterior(torch.zeros(3, 5))
    draws = truth.sample((4000,)).unflatten(0, (1000, 4))
    scale = scale_of(draws, torch.ones(3, 2))
    found, exact = scale @ scale.mT, truth.covariance_matrix.expand(3, 2, 2)
    variance = exact.diagonal(dim1=1, dim2=2)
    error = ((exact**2 + variance[:, None] * variance[:, :, None]) / 4000).sqrt()
    assert ((found - exact).abs() < 5 * error + 10 / 4000).all()
    assert not found.allclose(torch.diag_embed(variance), rtol=0.2)  # negative control
    stuck = scale_of(torch.zeros(20, 1, 3, 2), torch.ones(3, 2))
    assert torch.linalg.cholesky_ex(stuck @ stuck.mT).info.eq(0).all()


def test_warm_up_lowers_the_number_of_steps_to_what_data_need():
    """All 10 at a correlation of 0.9 from draw to draw; without any, the length of a path."""
    path = some_chains("slow", 1000).transpose(0, 1)[:, :, :1, None]  # (T, C, 1, 1)
    white = some_chains("white", 1000).transpose(0, 1)[:, :, :1, None]
    assert num_needed(white, torch.ones(1), 10) <= 2
    assert num_needed(white, torch.full((1,), 4), 10) == 4
    assert num_needed(path, torch.ones(1), 10) == 10


class Kinked(nn.Module):
    """x = W relu(V z) + noise of scale 0.1: the gradient of log p(x|z) jumps at kinks."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(2)
        self.register_buffer("v", 2 * torch.randn(2, 24, generator=generator))
        self.register_buffer("w", torch.randn(24, 12, generator=generator) / 24**0.5)
        self.scale = nn.Parameter(torch.tensor(1.0))

    def log_joint(self, z, x):
        log_likelihood = dist.Normal((z @ self.v).relu() @ self.w, 0.5).log_prob(x).sum(-1)
        return log_likelihood + dist.Normal(0.0, 1.0).log_prob(z).sum(-1)

    def model(self, x, y=None, mask=None):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            mean = (z @ self.v).relu() @ self.w
            pyro.sample("x", dist.Normal(mean, 0.5).to_event(1), obs=x)

    def guide(self, x, y=None, mask=None):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x.new_zeros(2), self.scale).to_event(1))


def random_walk(program, x, num_samples, *, step, thin):
    """Draws (C, S, N, D) of Metropolis chains, `thin` density evaluations apart."""
    z = torch.randn(4, len(x), 2)
    log_p, kept = program.log_joint(z, x), []
    for t in range(2 * num_samples * thin):
        new = z + step * torch.randn_like(z)
        log_new = program.log_joint(new, x)
        is_accepted = (log_new - log_p).exp() > torch.rand_like(log_p)
        z = torch.where(is_accepted[..., None], new, z)
        log_p = torch.where(is_accepted, log_new, log_p)
        if t >= num_samples * thin and t % thin == 0:
            kept.append(z)
    return torch.stack(kept, 1)


def test_hmc_is_worth_a_random_walk_where_gradients_jump():
    """As many effective draws as the better of two random walks, at equal evaluations."""
    program = Kinked()
    z = torch.tensor([[0.5, -0.5], [-1.0, 0.3]])
    x = (z @ program.v).relu() @ program.w + 0.5 * torch.randn(2, 12)
    how = {"num_samples": 150, "num_warmup": 200}
    found = pv.posterior.hmc(program, x, num_leapfrog=5, **how)
    walks = [random_walk(program, x, 150, step=step, thin=5) for step in (0.1, 0.3)]
    best = torch.stack([least_ess(walk.double()) for walk in walks]).amax(0)
    assert (found.ess > best).all()
    assert (found.r_hat < 1.05).all()
