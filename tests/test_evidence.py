"""log p(x) by every method against exact answers: closed forms, quadrature, enumeration.

Tolerances are k standard errors with k written beside each. The tests of `method="grid"` against
independent quadrature are in test_vae.py.
"""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import unchanged
from oracles import (
    ExactEncoder,
    Ladder,
    LinearGaussian,
    Rewritten,
    all_binary,
    wide_guide,
)
from torch import nn

import pyrovae as pv
from pyrovae.core import hamiltonian
from pyrovae.core.chunking import Budget, bytes_per_draw, chunk_of
from pyrovae.core.importance import WeightSums
from pyrovae.core.joint import ProgramJoint, Unconstrained, VAEJoint, joint_of
from pyrovae.core.pareto import pareto_k
from pyrovae.data import Batch
from pyrovae.errors import ConfigError
from pyrovae.evidence import annealing, bdmc
from pyrovae.evidence.record import bounded
from pyrovae.handlers import data_scale, evaluation
from pyrovae.programs import BayesianVAE
from pyrovae.runtime.random_stream import RandomStream

pytestmark = pytest.mark.usefixtures("float64")


# ---- every estimator against the linear-Gaussian model


@pytest.mark.parametrize(
    "settings",
    [
        {"num_samples": 4000},
        {"method": "ais", "num_samples": 100, "num_temperatures": 60},
        {"method": "ais", "num_samples": 100, "num_temperatures": 10, "start": "guide"},
    ],
    ids=["importance", "ais", "ais from the guide"],
)
def test_estimate_is_within_its_stated_error(settings):
    truth = LinearGaussian()
    x = truth.sample(40)
    found = pv.log_evidence(truth.vae(wide_guide(truth)), x, **settings)
    z = (found.log_px - truth.log_evidence(x)) / found.std_error
    # 120 numbers in all: a normal z exceeds 4.5 once in 1200 runs of them
    assert z.abs().max() < 4.5
    assert (found.std_error < 0.15).all()  # and the errors are small enough to say something
    # negative control: the evidence of another noise level, 0.25 nat or more away
    other = dist.MultivariateNormal(truth.mean, 1.3 * truth.covariance).log_prob(x)
    assert ((found.log_px - other) / found.std_error).abs().max() > 4.5


def test_a_scaled_plate_changes_nothing():
    truth = LinearGaussian()
    x, vae = truth.sample(5), truth.vae(wide_guide(truth))
    plain = pv.log_evidence(vae, x, num_samples=500)
    with data_scale(7.0):
        assert torch.equal(pv.log_evidence(vae, x, num_samples=500).log_px, plain.log_px)
    for settings in ({"num_samples": 4000}, {"method": "ais", "num_temperatures": 30}):
        found = pv.log_evidence(Rewritten(vae, scale=7.0), x, **settings)
        z = (found.log_px - truth.log_evidence(x)) / found.std_error
        assert z.abs().max() < 4.5


@pytest.mark.parametrize(
    "settings",
    [{"method": "iwae"}, {"method": "ais", "num_temperatures": 5, "start": "guide"}],
)
def test_exact_posterior_gives_the_evidence_without_error(settings):
    """With the exact posterior as guide, every weight is p(x)."""
    truth = LinearGaussian()
    x = truth.sample(4)
    vae = truth.vae(ExactEncoder(truth))
    found = pv.log_evidence(vae, x, num_samples=50, **settings)
    torch.testing.assert_close(found.log_px, truth.log_evidence(x), rtol=0, atol=1e-10)
    assert (found.std_error < 1e-6).all()  # √ of a rounding of 1e-15
    torch.testing.assert_close(found.ess, torch.full((4,), 50.0), rtol=1e-9, atol=0)
    assert (found.pareto_k == -math.inf).all()
    worse = pv.log_evidence(truth.vae(ExactEncoder(truth, 0.8)), x, num_samples=50, **settings)
    assert (worse.log_px - truth.log_evidence(x)).abs().max() > 1e-4


def test_any_program_with_two_local_latents():
    program, x = Ladder(), torch.tensor([[1.0, 0.5], [-2.0, -1.0], [0.0, 3.0]])
    exact = dist.MultivariateNormal(torch.zeros(2), Ladder.covariance).log_prob(x)
    drawn = pv.log_evidence(program, x, num_samples=20_000)
    ais = pv.log_evidence(program, x, method="ais", num_samples=200, num_temperatures=40)
    for found in (drawn, ais):
        assert ((found.log_px - exact) / found.std_error).abs().max() < 4.5
        assert (found.std_error < 0.1).all()


def test_both_readings_of_a_program_agree():
    """Terms at the same latents: parts called directly, and traces; to 1e-10."""
    truth = LinearGaussian()
    vae, batch = truth.vae(wide_guide(truth)), Batch(truth.sample(5))
    with evaluation(vae), pyro.validation_enabled(False):
        direct, traced = VAEJoint(vae, batch), ProgramJoint(Rewritten(vae), batch)
        for num_samples in (1, 3):
            z = direct.draw_guide(num_samples)
            for a, b in zip(direct.terms(z), traced.terms(z), strict=True):
                torch.testing.assert_close(a, b, rtol=0, atol=1e-10)
            torch.testing.assert_close(direct.log_guide(z), traced.log_guide(z), rtol=0, atol=1e-10)
            assert traced.draw_prior(num_samples)["z"].shape == (num_samples, 5, 2)
            assert traced.draw_guide(num_samples)["z"].shape == (num_samples, 5, 2)
            z, log_w = traced.weighted_draws(num_samples)
            expected = sum(direct.terms(z)) - direct.log_guide(z)
            torch.testing.assert_close(log_w, expected, rtol=0, atol=1e-10)


# ---- importance weights: streaming


@pytest.mark.parametrize("chunk", [1, 7, 100, 999, 1000])
def test_streaming_reduction_is_the_plain_one(chunk):
    """1e-12 relative, for any chunking, and the same k̂ and ESS."""
    log_w = 3 * torch.randn(1000, 4) - torch.tensor([0.0, 700.0, 0.0, -700.0])
    sums = WeightSums(1000)
    for part in log_w.split(chunk):
        sums.add(part)
    found = bounded(sums)
    exact = log_w.logsumexp(0) - math.log(1000)
    torch.testing.assert_close(found.log_px, exact, rtol=1e-12, atol=1e-12)
    w = log_w.softmax(0)
    torch.testing.assert_close(found.ess, 1 / (w**2).sum(0), rtol=1e-10, atol=0)
    variance = (1000 * w).var(0) / 1000  # of w / Σw · K, whose mean is 1
    torch.testing.assert_close(found.std_error, variance.sqrt(), rtol=1e-9, atol=0)
    torch.testing.assert_close(found.pareto_k, pareto_k(log_w), rtol=1e-12, atol=0)
    sums.add(log_w[:1])  # negative control: one draw counted twice
    assert (bounded(sums).log_px - exact).abs().max() > 1e-6


def test_weights_of_zero():
    sums = WeightSums(100)
    sums.add(torch.full((100, 1), -math.inf))
    found = bounded(sums)
    assert found.log_px.item() == -math.inf
    assert found.std_error.item() == math.inf
    assert found.ess.item() == 0.0
    assert found.pareto_k.item() == math.inf


def test_a_single_draw_has_no_error_to_state():
    vae = pv.build((3,), latent_dim=1, seed=0)
    found = pv.log_evidence(vae, torch.ones(2, 3), method="iwae", num_samples=1)
    assert (found.std_error == math.inf).all()
    assert found.pareto_k.isnan().all()


def spied(monkeypatch, *, fails: int = 0) -> list[tuple[int, int]]:
    """The sizes (draws, data) of all chunks; the first `fails` draws find the GPU full."""
    sizes, draw = [], VAEJoint.weighted_draws

    def spy(joint, num_samples):
        if len(sizes) >= 2 and fails > len(sizes) - 2:  # the first two measure
            sizes.append((0, 0))
            raise torch.OutOfMemoryError("CUDA out of memory")
        sizes.append((num_samples, len(joint.batch.x)))
        return draw(joint, num_samples)

    monkeypatch.setattr(VAEJoint, "weighted_draws", spy)
    return sizes


def test_a_hundred_thousand_draws_in_chunks_of_the_budget(monkeypatch):
    """K = 10⁵: no chunk exceeds the budget, each datum has its K draws, and the answer is right."""
    vae = pv.build((3,), latent_dim=1, hidden=(8,), seed=0)
    x = all_binary(3)[:3]
    with evaluation(vae):
        cost = bytes_per_draw(VAEJoint(vae, Batch(x[:1])).weighted_draws)
    sizes = spied(monkeypatch)
    budget = 20_000 * cost
    found = pv.log_evidence(vae, x, method="iwae", num_samples=100_000, memory_budget=budget)
    sizes = sizes[2:]
    assert len(sizes) == 15
    assert all(draws * rows * cost <= budget for draws, rows in sizes)
    assert sum(draws * rows for draws, rows in sizes) == 300_000
    exact = pv.log_evidence(vae, x, method="grid").log_px
    assert ((found.log_px - exact) / found.std_error).abs().max() < 4.5


def test_the_budget_does_not_change_the_answer():
    vae = pv.build((3,), latent_dim=1, hidden=(8,), seed=0)
    x = all_binary(3)
    small, large = (
        pv.log_evidence(vae, x, num_samples=5000, memory_budget=b) for b in (10**5, 10**8)
    )
    assert not torch.equal(small.log_px, large.log_px)  # other draws
    error = (small.std_error**2 + large.std_error**2).sqrt()
    assert ((small.log_px - large.log_px) / error).abs().max() < 4.5


def test_measured_cost_bounds_what_a_draw_keeps():
    """784 logits, their density and 200 hidden units: the least that one draw needs."""
    vae = pv.build((784,), latent_dim=2, hidden=(200,), seed=0)
    with evaluation(vae):
        cost = bytes_per_draw(VAEJoint(vae, Batch(torch.ones(1, 784))).weighted_draws)
    assert 8 * (784 + 200) < cost < 8 * 10 * (784 + 200)


def test_a_budget_for_less_than_one_draw_is_an_error():
    vae = pv.build((784,), latent_dim=2, seed=0)
    for settings in ({}, {"method": "ais"}):
        with pytest.raises(MemoryError, match=r"K = .*chunk of 1 draw.*\d bytes.*\n.*=\d+"):
            pv.log_evidence(vae, torch.ones(2, 784), memory_budget=1000, **settings)
    assert chunk_of(10, 10, 100, Budget(100, True), what="draws").draws == 1


@pytest.mark.parametrize("method", ["iwae", "ais"])
def test_the_default_budget_is_not_a_limit(method, monkeypatch):
    vae, x = pv.build((784,), latent_dim=2, seed=0), torch.ones(2, 784)
    settings = {"iwae": {}, "ais": {"num_temperatures": 20}}[method]
    settings |= {"method": method, "num_samples": 3}
    expected = pv.log_evidence(vae, x, memory_budget=2**30, **settings).log_px
    monkeypatch.setattr("pyrovae.core.chunking.CPU_BUDGET", 1000)
    found = pv.log_evidence(vae, x, **settings).log_px
    assert (found - expected).abs().max() < 5


def test_a_full_gpu_halves_the_chunk(monkeypatch):
    vae = pv.build((3,), latent_dim=1, seed=0)
    sizes = spied(monkeypatch, fails=2)
    found = pv.log_evidence(vae, torch.ones(2, 3), method="iwae", num_samples=1000)
    assert [draws for draws, _ in sizes[2:]] == [0, 0, 250, 250, 250, 250]
    assert (found.ess > 100).all()


def test_a_gpu_too_small_for_one_draw_is_an_error(monkeypatch):
    vae = pv.build((3,), latent_dim=1, seed=0)
    spied(monkeypatch, fails=100)
    with pytest.raises(
        MemoryError, match=r"chunks of 1.*one draw.*out of memory.*\n.*memory_budget"
    ):
        pv.log_evidence(vae, torch.ones(2, 3), method="iwae", num_samples=1000)


def test_the_encoder_runs_once_for_each_chunk_of_data():
    vae = pv.build((3,), latent_dim=1, seed=0)
    calls = []
    vae.encoder.register_forward_hook(lambda module, args, result: calls.append(len(args[0])))
    pv.log_evidence(vae, torch.ones(6, 3), method="iwae", num_samples=5000, memory_budget=10**6)
    assert calls.count(1) + calls.count(2) + calls.count(3) + calls.count(6) == len(calls)
    # validation runs two data twice, the budget is measured on one, then come the data
    assert sum(calls) == 6 + 2 * 2 + 1


def test_iwae_tightens_with_more_draws():
    """ELBO ≤ IWAE ≤ log p in expectation: 4000 copies of one datum, K = 1, 4, 64."""
    vae = pv.build((6,), latent_dim=2, hidden=(8,), seed=3)
    x = all_binary(6)[37:38]
    exact = pv.log_evidence(vae, x, method="grid").log_px.item()
    means, errors = [], []
    for num_samples in (1, 4, 64):
        iwae = pv.evidence.IWAE(num_samples)
        copies = pv.log_evidence(vae, x.expand(4000, -1), method=iwae).log_px
        means.append(copies.mean().item())
        errors.append(copies.std().item() / math.sqrt(4000))
    # each step is seen at 8 standard errors or the test is underpowered
    assert means[1] - means[0] > 8 * math.hypot(*errors[:2])
    assert means[2] - means[1] > 8 * math.hypot(*errors[1:])
    assert means[2] < exact + 5 * errors[2]


# ---- annealing


def flat_likelihood(vae: pv.VAE) -> pv.VAE:
    """The decoder's last layer without weights: p(x|z) = c."""
    vae.decoder[0][-1].weight.data.zero_()
    return vae


def test_a_constant_likelihood_is_its_own_evidence():
    vae = flat_likelihood(pv.build((4,), latent_dim=2, seed=0))
    x = all_binary(4)
    exact = vae.decode(torch.zeros(16, 2)).log_prob(x).detach()
    found = pv.log_evidence(vae, x, method="ais", num_temperatures=13, num_samples=4)
    torch.testing.assert_close(found.log_px, exact, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.ess, torch.full((16,), 4.0), rtol=1e-12, atol=0)
    both = bdmc(vae, 5, num_temperatures=13)
    torch.testing.assert_close(both.lower, both.upper, rtol=0, atol=1e-12)


@pytest.mark.parametrize("start", ["prior", "guide"])
def test_one_temperature_is_importance_sampling(start):
    """log w of T = 1 is log p(x|z) at the prior's draws, or log p(x, z) − log q at the guide's."""
    vae = pv.build((4,), latent_dim=2, seed=0)
    batch, how = Batch(all_binary(4)), annealing.AIS(50, 1, 5, start)
    with evaluation(vae), pyro.validation_enabled(False):
        density = Unconstrained(joint_of(vae, batch), method="test")
        kernels = annealing.pilot(density, how)
        with RandomStream(3):
            log_w = annealing.forward(density, kernels, how)
        with RandomStream(3):
            z = annealing.first_draws(density, how, 50)
        log_prior, log_likelihood = density.terms(z)
    plain = (
        log_likelihood if start == "prior" else log_likelihood + log_prior - density.log_guide(z)
    )
    torch.testing.assert_close(log_w, plain, rtol=0, atol=1e-12)


def test_schedule():
    betas = annealing.sigmoidal(1000)
    assert betas[0] == 0
    assert betas[-1] == 1
    assert (betas.diff() > 0).all()
    assert annealing.sigmoidal(1).tolist() == [0.0, 1.0]
    torch.testing.assert_close(betas + betas.flip(0), torch.ones(1001))  # symmetric


class Leaky(Unconstrained):
    """Negative control: the kernels see 1.3 times the density that the weights count."""

    def terms(self, u):
        log_prior, log_likelihood = super().terms(u)
        return log_prior, 1.3 * log_likelihood if u.requires_grad else log_likelihood


def annealed_ratios(density_class, num_data=3000) -> list[torch.Tensor]:
    """w/p(x) forward and p(x)/w backward, one chain for each of simulated data: means are 1."""
    truth = LinearGaussian(num_features=2, latent_dim=1)
    vae, how = truth.vae(wide_guide(truth)), annealing.AIS(1, 12, 3, "prior")
    with RandomStream(5), evaluation(vae), pyro.validation_enabled(False):
        z = vae.prior().expand((num_data,)).sample()
        x = vae.decoder(z).sample()
        density = density_class(joint_of(vae, Batch(x)), method="test")
        kernels = annealing.pilot(density, how)
        # not symmetric, so that a backward chain that takes the increments forward is seen
        kernels = kernels._replace(betas=kernels.betas**2)
        exact = truth.log_evidence(x)
        ahead = annealing.forward(density, kernels, how)[0] - exact
        back = exact - annealing.backward(density, kernels, how, z[None])[0]
    return [ahead, back]


def test_forward_and_backward_weights_are_unbiased():
    """E[w] = p(x), and E[1/w] = 1/p(x) from an exact posterior draw: |z| < 5 over 3000 data."""
    for log_ratio in annealed_ratios(Unconstrained):
        assert log_ratio.var() < 1  # beyond, a mean of weights is not normal
        ratio = log_ratio.exp()
        error = ratio.std() / math.sqrt(len(ratio))
        assert abs(ratio.mean() - 1) < 5 * error
        assert 8 * error < 0.2  # powered to see 20 %
        assert log_ratio.mean() < 5 * error  # Jensen: log w lies on the right side


def test_wrong_kernels_are_detected():
    z = [(r.exp().mean() - 1) / (r.exp().std() / math.sqrt(len(r))) for r in annealed_ratios(Leaky)]
    assert max(abs(v) for v in z) > 5


def test_sandwich():
    """Forward mean ≤ log p ≤ backward mean on simulated data; it closes as temperatures grow."""
    truth = LinearGaussian()
    vae, gaps = truth.vae(wide_guide(truth)), []
    for num_temperatures in (1, 10, 100):
        both = bdmc(vae, 100, num_samples=2, num_temperatures=num_temperatures)
        exact = truth.log_evidence(both.x)
        for side in (exact - both.lower, both.upper - exact):
            assert side.mean() > -5 * side.std() / 10
        assert both.gap > -5 * both.gap_std_error
        gaps.append(both.gap)
    assert gaps[0] > 1 > gaps[1] > gaps[2]
    assert both.z.shape == (100, 2)


# leapfrog steps of a path, drift; in the last row they differ between data
STYLES = {"one": [], "paths of 2": [(2, 1)], "random walks": [(1, 0)], "both": [(2, 1), (1, 0)]}


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("factor", [1.0, 0.8])
def test_hamiltonian_kernel_by_gewekes_joint_test(factor, style):
    """z ~ p(z), x ~ p(x|z), then 10 × [z ~ K(·|x), x ~ p(x|z)] leaves (z, x) jointly as it was.

    60 000 independent pairs, z ~ N(0, 1), x|z ~ N(0.8 z, 1); moments within 5 standard errors.
    Negative control: a kernel for a posterior of sd × 0.8.
    """
    num_data, w, sigma = 60_000, 0.8, 1.0
    z = torch.randn(1, num_data, 1)
    x = w * z + sigma * torch.randn(1, num_data, 1)
    precision = 1 + w**2 / sigma**2
    kernel = hamiltonian.Kernel(
        1.0, torch.full((num_data,), 0.9), torch.full((num_data, 1), precision**-0.5), 3
    )
    if STYLES[style]:
        of_data = torch.tensor(STYLES[style]).repeat(num_data, 1)[:num_data]
        kernel = kernel._replace(scale=kernel.scale[..., None], style=hamiltonian.Style(*of_data.T))
    rates = []
    for _ in range(10):

        def density(u, x=x):
            loc = w / sigma**2 * x / precision
            total = -0.5 * precision * ((u - loc) / factor) ** 2
            return 0.3 * total[..., 0], 0.7 * total[..., 0]

        point, info = hamiltonian.transition(density, hamiltonian.point_at(density, z), kernel)
        z = point.position
        x = w * z + sigma * torch.randn(1, num_data, 1)
        rates.append(info.acceptance.mean().item())
    assert 0.5 < min(rates) < 0.999  # steps so large that rejection matters
    exact = {"z": (z, 0.0), "z²": (z**2, 1.0), "zx": (z * x, w), "x²": (x**2, w**2 + sigma**2)}
    scores = {
        name: ((v.mean() - mean) / (v.std() / math.sqrt(num_data))).item()
        for name, (v, mean) in exact.items()
    }
    if factor == 1.0:
        assert max(map(abs, scores.values())) < 5, scores
    else:
        assert min(scores["z²"], scores["zx"]) < -8, scores


def test_each_datum_has_its_own_step_size():
    """Posteriors of width 1 and 0.01 under one guide: one step size would fit neither."""

    class Sharp(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = nn.Parameter(torch.ones(()))

        def forward(self, z, y):
            return dist.Normal(self.one * z, y[:, None]).to_event(1)

    class Wide(nn.Module):
        def forward(self, x):
            return dist.Normal(torch.zeros_like(x), 1.0).to_event(1)

    vae = pv.VAE(pv.priors.StandardNormal(1), Wide(), pv.networks.Given(Sharp()))
    y, x = torch.tensor([1.0, 0.02]), torch.tensor([[0.5], [0.5]])
    exact = dist.Normal(torch.zeros(2), (1 + y**2).sqrt()).log_prob(x[:, 0])
    found = pv.log_evidence(vae, x, y, method="ais", num_samples=100, num_temperatures=100)
    assert ((found.log_px - exact) / found.std_error).abs().max() < 4.5
    with evaluation(vae), pyro.validation_enabled(False):
        density = Unconstrained(joint_of(vae, Batch(x, y)), method="test")
        last = annealing.pilot(density, annealing.AIS(16, 100, 5, "prior")).step_size[-1]
    assert last[0] > 5 * last[1]


@pytest.mark.parametrize("start", ["prior", "guide"])
def test_latents_on_an_interval_are_mapped_to_the_real_line(start):
    """z ~ Beta(2, 3), x|z Bernoulli(z) five times: p(x) = B(2 + s, 8 − s) / B(2, 3)."""

    class ToProbs(nn.Module):
        def forward(self, z):
            return dist.Bernoulli(probs=z.expand(*z.shape[:-1], 5)).to_event(1)

    class Guide(nn.Module):
        def forward(self, x):
            return dist.Beta(1.5 + x[:, :1], torch.full((len(x), 1), 2.0)).to_event(1)

    prior = pv.priors.Fixed(
        lambda a, b: dist.Beta(a, b).to_event(1), a=torch.tensor([2.0]), b=torch.tensor([3.0])
    )
    vae = pv.VAE(prior, Guide(), ToProbs())
    x = torch.tensor([[1.0, 1, 1, 0, 1], [0.0, 0, 0, 0, 0]])
    s = x.sum(-1)

    def log_beta(a, b):
        return torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(a + b)

    exact = log_beta(2 + s, 8 - s) - log_beta(torch.tensor(2.0), torch.tensor(3.0))
    found = pv.log_evidence(vae, x, method="ais", num_samples=200, num_temperatures=40, start=start)
    assert ((found.log_px - exact) / found.std_error).abs().max() < 4.5
    assert (found.std_error < 0.1).all()


def test_annealing_with_missing_cells():
    """masked = marginalized: N(x_o; μ_o, W_o W_oᵀ + σ² I)."""
    truth = LinearGaussian()
    x, seen = truth.sample(3), torch.tensor([True, False, True, True, False])
    mask = seen.expand(3, -1)
    exact = dist.MultivariateNormal(truth.mean[seen], truth.covariance[seen][:, seen]).log_prob(
        x[:, seen]
    )
    found = pv.log_evidence(
        truth.vae(wide_guide(truth)),
        torch.where(mask, x, math.nan),
        mask=mask,
        method="ais",
        num_samples=200,
        num_temperatures=60,
    )
    assert ((found.log_px - exact) / found.std_error).abs().max() < 4.5


@pytest.mark.parametrize(
    ("prior", "settings", "reason"),
    [
        ("Bernoulli", {"method": "ais"}, r"'z'.*\n?.*discrete.*\n.*enumerate"),
        (
            "HypersphericalUniform",
            {"method": "ais"},
            r"not mapped from the real line.*\n.*importance",
        ),
        ("Bernoulli", {"method": "grid"}, r"discrete or lower-dimensional.*\n.*enumerate"),
        ("HypersphericalUniform", {"method": "grid"}, r"lower-dimensional.*\n.*importance"),
        ("StandardNormal", {"method": "enumerate"}, r"values cannot be listed.*\n.*importance"),
    ],
)
def test_a_method_refuses_latents_that_it_cannot_take(prior, settings, reason):
    guide = {"HypersphericalUniform": "PowerSpherical", "Bernoulli": "Bernoulli"}.get(
        prior, "DiagonalNormal"
    )
    vae = pv.build((3,), latent_dim=2, prior=prior, guide=guide, seed=0)
    with pytest.raises(ConfigError, match=reason):
        pv.log_evidence(vae, torch.ones(2, 3), **settings)


def test_global_latents_that_nothing_depends_on_change_nothing():
    vae = pv.build((3,), latent_dim=2, seed=0)
    program = BayesianVAE(
        vae.prior, vae.encoder, vae.decoder, pv.priors.StandardNormal(1), pv.priors.LearnedNormal(1)
    )
    x = torch.ones(2, 3)
    exact = pv.log_evidence(vae, x, method="grid").log_px
    for options in ({"method": "iwae"}, {"method": "ais", "num_temperatures": 20}):
        found = pv.log_evidence(program, x, num_globals=2, **options)
        assert ((found.log_px - exact).abs() < 5 * found.std_error + 1e-3).all()


@pytest.mark.parametrize("method", ["grid", "enumerate"])
def test_exact_methods_refuse_another_program(method):
    with pytest.raises(ConfigError, match=r"Ladder.*\n.*importance"):
        pv.log_evidence(Ladder(), torch.ones(2, 2), method=method)
    with pytest.raises(ConfigError, match=r"Ladder alone[\s\S]*like=x"):
        bdmc(Ladder(), 3)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"method": "vi"}, "'importance', 'iwae', 'refined', 'ais', 'grid', 'enumerate', 'auto'"),
        ({"method": "ais", "start": "posterior"}, "'prior' or 'guide'"),
        ({"num_samples": 0}, "num_samples = 0, but it must be at least 20"),
        ({"method": "ais", "num_temperatures": 0}, "num_temperatures = 0"),
        ({"method": "ais", "num_leapfrog": 1.5}, r"num_leapfrog = 1\.5"),
        ({"std_error": 0.0}, "std_error = 0"),
        ({"method": "iwae", "ess": 9}, r"ess is not an option of method='iwae', which has num_s"),
        ({"method": "auto", "max_evaluations": 0}, "max_evaluations = 0"),
        ({"method": "grid", "num_samples": 5}, r"num_samples is not an option of method='grid'"),
        ({"num_data": 3}, "num_data = 3, but x has 2 rows"),
        ({"memory_budget": 0}, "memory_budget = 0"),
        ({"seed": -1}, "seed = -1"),
    ],
)
def test_settings_are_checked(settings, reason):
    vae = pv.build((3,), latent_dim=2, seed=0)
    with pytest.raises(ConfigError, match=reason):
        pv.log_evidence(vae, torch.ones(2, 3), **settings)


# ---- enumeration


@pytest.mark.parametrize("kind", ["Bernoulli", "Categorical"])
def test_enumeration_is_the_explicit_sum(kind):
    vae = pv.build((4,), latent_dim=3, prior=kind, guide=kind, hidden=(8,), seed=0)
    x = all_binary(4)
    z = vae.prior().enumerate_support()
    joint = vae.prior().log_prob(z)[:, None] + vae.decode(z[:, None]).log_prob(x)
    found = pv.log_evidence(vae, x, method="enumerate")
    torch.testing.assert_close(found.log_px, joint.detach().logsumexp(0), rtol=0, atol=1e-12)
    assert found.log_px.exp().sum().item() == pytest.approx(1.0, abs=1e-12)
    assert (found.std_error == 0).all()
    assert (found.pareto_k == -math.inf).all()
    small = pv.log_evidence(vae, x, method="enumerate", memory_budget=3000)  # many chunks
    torch.testing.assert_close(small.log_px, found.log_px, rtol=0, atol=1e-12)
    draws = pv.log_evidence(vae, x, num_samples=4000)
    assert ((draws.log_px - found.log_px) / draws.std_error).abs().max() < 4.5
    wrong = joint[1:].detach().logsumexp(0)  # negative control: a value left out
    assert (found.log_px - wrong).abs().max() > 0.01


def test_enumeration_with_a_prior_of_each_datum():
    class Depends(nn.Module):
        def __init__(self):
            super().__init__()
            self.part = pv.priors.Bernoulli(2)

        def forward(self, y):
            return type(self.part())(torch.stack([y, -y], -1))

    plain = pv.build((3,), latent_dim=2, prior="Bernoulli", guide="Bernoulli", seed=0)
    vae = pv.VAE(pv.networks.Given(Depends()), plain.encoder, plain.decoder)
    x, y = all_binary(3), torch.linspace(-2, 2, 8)
    together = pv.log_evidence(vae, x, y, method="enumerate").log_px
    alone = [
        pv.log_evidence(vae, x[i : i + 1], y[i : i + 1], method="enumerate").log_px
        for i in range(8)
    ]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-12)
    assert (
        together - pv.log_evidence(vae, x, y.flip(0), method="enumerate").log_px
    ).abs().max() > 0.01


# ---- subsets, and the process around


def test_a_subset_is_drawn_at_random():
    """The record says which rows; published test files are sorted by class."""
    vae = pv.build((6,), latent_dim=2, hidden=(8,), seed=0)
    x = all_binary(6)
    every = pv.log_evidence(vae, x, method="grid")
    assert torch.equal(every.rows, torch.arange(64))
    some = pv.log_evidence(vae, x, method="grid", num_data=10, seed=1)
    assert some.log_px.shape == (10,)
    assert len(some.rows.unique()) == 10
    assert not torch.equal(some.rows, torch.arange(10))
    torch.testing.assert_close(some.log_px, every.log_px[some.rows], rtol=0, atol=1e-9)
    assert torch.equal(some.rows, pv.log_evidence(vae, x, num_data=10, seed=1).rows)
    assert not torch.equal(some.rows, pv.log_evidence(vae, x, num_data=10, seed=2).rows)


def test_a_subset_takes_covariates_and_mask_along():
    truth = LinearGaussian()
    x, mask = truth.sample(30), torch.ones(30, 5, dtype=torch.bool)
    mask[:15, 0] = False
    vae = truth.vae(wide_guide(truth))
    every = pv.log_evidence(vae, x, mask=mask, method="grid").log_px
    some = pv.log_evidence(vae, x, mask=mask, method="grid", num_data=7)
    torch.testing.assert_close(some.log_px, every[some.rows], rtol=0, atol=1e-9)


@pytest.mark.parametrize("settings", [{}, {"method": "ais", "num_temperatures": 5}])
def test_the_process_is_as_before(settings):
    vae = pv.build((3,), latent_dim=2, seed=0).train()
    with unchanged(vae):
        first = pv.log_evidence(vae, torch.ones(2, 3), num_samples=30, **settings)
        again = pv.log_evidence(vae, torch.ones(2, 3), num_samples=30, **settings)
    assert all(torch.equal(a, b) for a, b in zip(first[:-1], again[:-1], strict=True))
    assert not first.log_px.requires_grad
    assert vae.training
    assert not len(pyro.get_param_store())
    assert all(p.grad is None for p in vae.parameters())


def test_float32_model():
    vae = pv.build((6,), latent_dim=2, hidden=(8,), seed=0).float()
    exact = pv.log_evidence(vae, all_binary(6)[:4], method="grid").log_px
    for settings in ({}, {"method": "ais", "num_temperatures": 30}):
        found = pv.log_evidence(vae, all_binary(6)[:4], **settings)
        assert found.log_px.dtype == torch.float64
        assert ((found.log_px - exact) / found.std_error).abs().max() < 4.5


@pytest.mark.slow
def test_annealing_agrees_with_the_grid_on_real_digits():
    """1000 temperatures, a trained 2-D Bernoulli model of scikit-learn's digits: 0.05 nat."""
    data = pv.datasets.digits()
    train, test = (pv.datasets.binarize(part) for part in (data.train, data.test))
    vae = pv.build((8, 8), latent_dim=2, hidden=(50,), seed=0)
    pv.fit(vae, train, epochs=60, batch_size=100, learning_rate=3e-3)
    rows = {"num_data": 20, "seed": 0}
    exact = pv.log_evidence(vae, test, method="grid", **rows)
    found = pv.log_evidence(vae, test, method="ais", num_temperatures=1000, num_samples=50, **rows)
    assert torch.equal(found.rows, exact.rows)
    assert (found.log_px - exact.log_px).abs().mean() < 0.05
    assert abs((found.log_px - exact.log_px).mean()) < 0.05
