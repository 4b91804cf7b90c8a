"""Objectives: values against closed forms, gradients against quadrature, estimators by z-test.

The model has one latent: p(z) = N(0, 1), p(x|z) = N(w z + b, 0.5²), q(z|x) = N(μ, σ²) with
free μ and log σ, so every expectation is a one-dimensional integral.
"""

import math

import pyro.distributions as dist
import pytest
import torch
from contracts import OBJECTIVES
from programs import NOISE, PROGRAMS, Affine, numbers
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch import nn
from torch.distributions import kl_divergence

import pyrovae as pv
import pyrovae.core.terms
from pyrovae import objectives
from pyrovae.core.terms import terms_of
from pyrovae.errors import ConfigError
from pyrovae.handlers import own_store

pytestmark = pytest.mark.usefixtures("float64")


class FreeGuide(nn.Module):
    """q(z|x) = N(μ, σ²), the same for all x."""

    def __init__(self, loc: float, log_scale: float):
        super().__init__()
        self.loc = nn.Parameter(torch.tensor([loc]))
        self.log_scale = nn.Parameter(torch.tensor([log_scale]))

    def forward(self, x):
        shape = (len(x), 1)
        return dist.Normal(self.loc.expand(shape), self.log_scale.exp().expand(shape)).to_event(1)


class Line(nn.Module):
    """p(x|z) = N(w z + b, 0.5²)."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.3]))
        self.bias = nn.Parameter(torch.tensor([0.2]))

    def forward(self, z):
        return dist.Normal(self.weight * z + self.bias, 0.5).to_event(1)


X = torch.tensor([[0.8]], dtype=torch.float64)


def line_vae(loc=0.1, log_scale=-0.3) -> pv.VAE:
    return pv.VAE(pv.priors.StandardNormal(1), FreeGuide(loc, log_scale), Line())


def exact_guide() -> pv.VAE:
    """The guide at p(z|x) of the line model."""
    precision = 1 + 1.3**2 / 0.25
    return line_vae((1.3 * (0.8 - 0.2) / 0.25) / precision, -0.5 * math.log(precision))


def log_weights(vae: pv.VAE, z: torch.Tensor) -> torch.Tensor:
    """log p(x, z) − log q(z|x) at z (…, 1) with gradients to the parameters."""
    q = vae.encoder(X)
    return vae.prior().log_prob(z) + vae.decoder(z).log_prob(X) - q.log_prob(z)


def gradients(vae: pv.VAE, loss: torch.Tensor) -> torch.Tensor:
    """d loss / d(μ, log σ, w, b), (4,)."""
    parameters = [
        vae.encoder.loc,
        vae.encoder.log_scale,
        vae.decoder.weight,
        vae.decoder.bias,
    ]
    return torch.cat(
        torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
    )


# Gauss–Hermite nodes for E over eps ~ N(0, 1): exact to 1e-12 for these smooth integrands.
def nodes(count: int = 60) -> tuple[torch.Tensor, torch.Tensor]:
    import numpy as np

    points, weights = np.polynomial.hermite_e.hermegauss(count)
    return torch.tensor(points), torch.tensor(weights / weights.sum())


def exact_loss(vae: pv.VAE, kind: str, beta: float = 1.0, alpha: float = 0.0) -> torch.Tensor:
    """The expected loss by quadrature over the guide's noise, differentiable."""
    eps, weight = nodes()
    q = vae.encoder(X).base_dist
    z = q.loc + q.scale * eps[:, None]
    if kind == "elbo":
        return -(weight * log_weights(vae, z)).sum()
    if kind == "beta":
        kl = kl_divergence(vae.encoder(X), vae.prior()).sum()
        return -(weight * vae.decoder(z).log_prob(X)).sum() + beta * kl
    log_w = log_weights(vae, z)
    pairs = torch.stack([log_w[:, None].expand(60, 60), log_w[None].expand(60, 60)])
    power = 1.0 - alpha
    bound = (torch.logsumexp(power * pairs, 0) - math.log(2)) / power
    return -(weight[:, None] * weight[None] * bound).sum()


def replicated_gradients(vae: pv.VAE, objective, replicates: int) -> torch.Tensor:
    """(M / 2000, 4) means of 2000 independent gradients each: a batch of the same x."""
    rows = []
    for _ in range(replicates // 2000):
        loss = objective.differentiable_loss(vae.model, vae.guide, X.expand(2000, 1))
        rows.append(gradients(vae, loss) / 2000)
    return torch.stack(rows)


CASES = {
    "TraceELBO": (objectives.TraceELBO(), "elbo", {}),
    "MeanFieldELBO": (objectives.MeanFieldELBO(), "elbo", {}),
    "BetaELBO": (objectives.BetaELBO(0.3), "beta", {"beta": 0.3}),
    "IWAE": (objectives.IWAE(2), "importance", {}),
    "Renyi": (objectives.Renyi(0.5, 2), "importance", {"alpha": 0.5}),
    "STL": (objectives.STL(), "elbo", {}),
    "DReG": (objectives.DReG(2), "importance", {}),
    "FreeBits": (objectives.FreeBits(0.0), "elbo", {}),
}


@pytest.mark.parametrize("case", CASES)
def test_gradient_is_unbiased(case):
    """|z| < 5 against quadrature for each of four parameters; 50 means of 2 000 draws."""
    objective, kind, settings = CASES[case]
    vae = line_vae()
    rows = replicated_gradients(vae, objective, 100_000)
    exact = gradients(vae, exact_loss(vae, kind, **settings))
    error = rows.std(0) / math.sqrt(len(rows)) + 1e-12
    assert ((rows.mean(0) - exact) / error).abs().max() < 5  # 49 degrees of freedom: p < 1e-5
    # powered: 8 standard errors are less than a tenth of the largest gradient
    assert 8 * error.max() < 0.1 * exact.abs().max()


def test_the_comparison_sees_a_biased_gradient():
    """Negative control: the path derivative inside a log-sum-exp of two draws (STL with K = 2)."""

    class BiasedSTL(objectives.DReG):
        def surrogate(self, traces, num_data):
            terms = terms_of(traces, num_data)
            z = traces.guide.nodes["z"]["value"]
            (d_guide,) = torch.autograd.grad(terms.log_guide.sum(), z, retain_graph=True)
            log_joint = terms.log_prior + terms.log_likelihood
            w = terms.log_weights.detach().softmax(0)
            return -(w * (log_joint - (d_guide.detach() * z).sum(-1))).sum()

    vae = line_vae()
    rows = replicated_gradients(vae, BiasedSTL(2), 400_000)
    exact = gradients(vae, exact_loss(vae, "importance"))
    error = rows.std(0) / math.sqrt(len(rows))
    assert ((rows.mean(0) - exact) / error).abs().max() > 8


@pytest.mark.parametrize("objective", [objectives.STL(), objectives.DReG(4)])
def test_path_derivatives_vanish_at_the_exact_posterior(objective):
    """The guide's gradient is exactly 0 for every draw."""
    vae = exact_guide()
    loss = objective.differentiable_loss(vae.model, vae.guide, X.expand(3, 1))
    assert gradients(vae, loss)[:2].abs().max() < 1e-10
    other = objectives.TraceELBO().differentiable_loss(vae.model, vae.guide, X.expand(3, 1))
    assert gradients(vae, other)[:2].abs().max() > 1e-3  # the plain gradient does not vanish


def exact_ladder():
    """z_1 ~ N(0, I), z_0 = z_1 + N(0, I), x = z_0 + noise, with the posterior for a guide."""
    variance = 1 + NOISE**2
    return pv.programs.LadderVAE(
        pv.priors.StandardNormal(2),
        [Affine(torch.eye(2), scale=1.0)],
        [nn.Identity(), nn.Identity()],
        [
            Affine(torch.eye(2)),
            Affine(torch.eye(2) / (1 + variance), scale=math.sqrt(variance / (1 + variance))),
        ],
        Affine(torch.eye(2)),
    )


@pytest.mark.parametrize("objective", [objectives.STL(), objectives.DReG(4)])
def test_path_derivatives_of_several_latents_vanish_at_the_exact_posterior(objective, float64):
    program, x = exact_ladder(), torch.randn(6, 2)
    of_guide = [p for head in program.heads for p in head.parameters()]
    with own_store():
        for one, is_zero in ((objective, True), (objectives.TraceELBO(), False)):
            loss = one.differentiable_loss(program.model, program.guide, x)
            found = torch.autograd.grad(loss, of_guide)
            assert (max(g.abs().max() for g in found) < 1e-10) == is_zero


@pytest.mark.parametrize("name", ["LadderVAE", "MixtureVAE", "DeepMarkovModel", "nested plate"])
def test_path_derivatives_of_any_program_are_unbiased(name, float64):
    """The mean gradients of STL are those of the ELBO's own, in every parameter."""
    torch.manual_seed(0)
    program, x = PROGRAMS[name].make(), PROGRAMS[name].as_data(numbers(2).repeat(200, 1))
    parameters = list(program.parameters())

    def gradient(objective):
        loss = objective.differentiable_loss(program.model, program.guide, x)
        grads = torch.autograd.grad(
            loss / 400, parameters, materialize_grads=True, allow_unused=True
        )
        return torch.cat([g.flatten() for g in grads])

    with own_store():
        stl, plain = (
            torch.stack([gradient(o) for _ in range(60)])
            for o in (objectives.STL(), objectives.TraceELBO())
        )
    error = ((stl.var(0) + plain.var(0)) / 60).sqrt() + 1e-9
    z = (stl.mean(0) - plain.mean(0)) / error
    assert z.abs().max() < 6  # dozens of coordinates, 59 degrees of freedom each


def test_path_derivative_of_a_flow_guide_is_unbiased():
    """A flow caches log q of its own draw without going through z: STL must not lose that path."""
    torch.manual_seed(1)
    vae = pv.build((1,), latent_dim=2, guide="FlowGuide", likelihood="Normal", hidden=(3,))
    parameters = list(vae.encoder.parameters())
    x = X.expand(500, 1)

    def gradient(objective):
        loss = objective.differentiable_loss(vae.model, vae.guide, x)
        rows = torch.autograd.grad(
            loss / 500, parameters, allow_unused=True, materialize_grads=True
        )
        return torch.cat([g.flatten() for g in rows])

    stl, plain = (
        torch.stack([gradient(o) for _ in range(60)])
        for o in (objectives.STL(), objectives.TraceELBO())
    )
    error = ((stl.var(0) + plain.var(0)) / 60).sqrt() + 1e-9
    z = (stl.mean(0) - plain.mean(0)) / error
    # hundreds of coordinates, 59 degrees of freedom each: 6 instead of 5 standard errors
    assert z.abs().max() < 6


def test_wake_sleep_trains_a_guide_that_is_not_reparameterized():
    vae = pv.build((4,), latent_dim=3, prior="Bernoulli", guide="Bernoulli", seed=0)
    before = [p.clone() for p in vae.parameters() if p.requires_grad]
    pv.fit(vae, torch.ones(8, 4), objective=objectives.WakeSleep(5), epochs=2)
    after = [p for p in vae.parameters() if p.requires_grad]
    assert all((a != b).any() for a, b in zip(after, before, strict=True))


def test_wake_sleep_gradients_are_self_normalized_sums():
    vae = line_vae()
    torch.manual_seed(0)
    loss = objectives.WakeSleep(5).differentiable_loss(vae.model, vae.guide, X)
    ours = gradients(vae, loss)
    torch.manual_seed(0)
    z = vae.encoder(X).sample((5,))
    w = log_weights(vae, z).detach().softmax(0)
    log_joint = vae.prior().log_prob(z) + vae.decoder(z).log_prob(X)
    exact = gradients(vae, -(w * (log_joint + vae.encoder(X).log_prob(z))).sum())
    assert torch.allclose(ours, exact, atol=1e-12)
    assert loss.item() == pytest.approx(
        -(log_weights(vae, z).logsumexp(0) - math.log(5)).sum().item()
    )


@pytest.mark.parametrize(
    ("ours", "pyros"),
    [
        (objectives.TraceELBO(), Trace_ELBO()),
        (objectives.MeanFieldELBO(), TraceMeanField_ELBO()),
        (
            objectives.TraceELBO(num_particles=3),
            Trace_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1),
        ),
    ],
)
def test_value_and_gradient_equal_pyros_on_the_same_draws(ours, pyros):
    vae = pv.build((6,), latent_dim=2, hidden=(5,), seed=0).double()
    x = torch.bernoulli(torch.full((4, 6), 0.5))
    results = []
    for objective in (ours, pyros):
        vae.zero_grad()
        torch.manual_seed(3)
        loss = objective.loss_and_grads(vae.model, vae.guide, x)
        results.append((float(loss), torch.cat([p.grad.flatten() for p in vae.parameters()])))
    assert results[0][0] == pytest.approx(results[1][0], abs=1e-10)
    assert torch.allclose(results[0][1], results[1][1], atol=1e-10)


def test_every_objective_is_under_contract():
    """Of EnumELBO, which sums out discrete latents, test_discrete.py has the exact values."""
    classes = {n for n in objectives.__all__ if isinstance(getattr(objectives, n), type)}
    covered = {type(make()).__name__ for make in OBJECTIVES.values()}
    assert covered == classes - {"Objective", "EnumELBO"}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_data_scale_multiplies_outside_the_log_sum_exp(name):
    """A plate scaled by 10 multiplies the loss by 10, for every bound."""
    objective = OBJECTIVES[name]()
    vae, x = line_vae(), torch.linspace(-1, 1, 4)[:, None]
    values = []
    for factor in (1.0, 10.0):
        torch.manual_seed(0)
        model, guide = (poutine.scale(f, scale=factor) for f in (vae.model, vae.guide))
        values.append(objective.loss(model, guide, x).item())
    assert values[1] == pytest.approx(10 * values[0], rel=1e-10)


def test_beta_is_the_identity_reconstruction_plus_beta_kl():
    vae, x = line_vae(), torch.linspace(-1, 1, 4)[:, None]
    for beta in (0.0, 0.7, 1.0, 3.0):
        torch.manual_seed(0)
        loss = objectives.BetaELBO(beta).loss(vae.model, vae.guide, x)
        torch.manual_seed(0)
        terms = vae.loss_terms(x, analytic_kl=False)
        expected = (terms.reconstruction + beta * terms.kl).sum().item()
        assert loss.item() == pytest.approx(expected, abs=1e-10)


def test_schedule_is_read_at_the_training_progress():
    objective = objectives.BetaELBO(objectives.linear_warmup(0.5))
    vae, seen = pv.build((6,), latent_dim=2, seed=0), []

    class Spy(objectives.BetaELBO):
        def surrogate(self, traces, num_data):
            seen.append(self.progress)
            return super().surrogate(traces, num_data)

    pv.fit(vae, torch.ones(4, 6), objective=Spy(objective.beta), epochs=4, batch_size=2)
    assert seen == pytest.approx([i / 8 for i in range(8)])


def test_free_bits_do_not_penalize_a_cheap_dimension():
    """Below λ the KL costs nothing: the guide's gradient is that of the reconstruction alone."""
    vae, x = line_vae(loc=0.01, log_scale=-0.01), X.expand(3, 1)
    torch.manual_seed(0)
    free = gradients(vae, objectives.FreeBits(5.0).differentiable_loss(vae.model, vae.guide, x))
    torch.manual_seed(0)
    terms = vae.loss_terms(x)
    assert torch.allclose(free, gradients(vae, terms.reconstruction.sum()), atol=1e-12)
    torch.manual_seed(0)
    none_free = objectives.FreeBits(0.0).loss(vae.model, vae.guide, x)
    torch.manual_seed(0)
    assert none_free.item() == pytest.approx(vae.loss(x).sum().item(), abs=1e-10)


def test_bounds_are_ordered():
    """ELBO ≤ IWAE-2 ≤ IWAE-20 ≤ log p(x) in expectation; 4 000 replicates, gaps beyond 5 errors."""
    vae, x = line_vae(), X.expand(4000, 1)
    torch.manual_seed(0)
    means = []
    for k in (1, 2, 20):
        log_w = pv.elbo_terms(vae, x, num_samples=k, seed=k).log_weights
        bound = objectives.importance.log_mean_exp(log_w)
        means.append((bound.mean().item(), bound.std().item() / math.sqrt(4000)))
    exact = dist.Normal(0.2, math.sqrt(1.3**2 + 0.25)).log_prob(X).item()
    for (low, e1), (high, e2) in zip(means, [*means[1:], (exact, 0.0)], strict=True):
        assert high - low > -5 * (e1 + e2)
    assert means[1][0] - means[0][0] > 5 * means[0][1]


BAD = {
    "STL with two draws": (lambda: objectives.STL(2), r"STL takes one draw[\s\S]*DReG"),
    "Rényi at 1": (lambda: objectives.Renyi(1.0), "TraceELBO"),
    "negative beta": (lambda: objectives.BetaELBO(-0.1), "beta"),
    "no particles": (lambda: objectives.IWAE(0), "num_particles"),
    "one particle asleep": (lambda: objectives.WakeSleep(1), "num_particles"),
    "negative bits": (lambda: objectives.FreeBits(-1.0), "threshold"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_settings_are_refused(case):
    make, match = BAD[case]
    with pytest.raises(ConfigError, match=match):
        make()


class CoinGuide(nn.Module):
    def forward(self, x):
        return dist.Bernoulli(torch.full((len(x), 1), 0.5)).to_event(1)


@pytest.mark.parametrize(
    "objective",
    [objectives.IWAE(2), objectives.DReG(2), objectives.STL(), objectives.BetaELBO(1.0)],
)
def test_path_objectives_refuse_a_guide_that_is_not_reparameterized(objective):
    prior = pv.priors.Fixed(lambda p: dist.Bernoulli(p).to_event(1), p=torch.tensor([0.5]))
    vae = pv.VAE(prior, CoinGuide(), Line())
    before = vae.decoder.weight.clone()
    with pytest.raises(ConfigError, match=r"not reparameterized[\s\S]*TraceELBO"):
        pv.fit(vae, X.expand(3, 1), objective=objective, epochs=1)
    assert torch.equal(vae.decoder.weight, before)
