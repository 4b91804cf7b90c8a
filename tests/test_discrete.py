"""Discrete latents summed out and drawn, and their relaxations, against sums over all values."""

import itertools
import math

import mpmath
import pyro.distributions as dist
import pytest
import torch
from helpers import unchanged, vae_of
from oracles import all_binary
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO, config_enumerate
from pyro.optim import Adam
from scipy import stats
from torch import nn
from torch.distributions import RelaxedBernoulli, RelaxedOneHotCategorical, kl_divergence
from torch.nn.functional import logsigmoid

import pyrovae as pv
from pyrovae import guides, likelihoods, objectives, priors
from pyrovae.densities.discrete import BernoulliVector, OneHotVector
from pyrovae.densities.relaxed import BinaryConcrete, Concrete, max_logit
from pyrovae.errors import ConfigError
from pyrovae.networks import mlp
from pyrovae.objectives import TraceELBO
from pyrovae.objectives.enumeration import EnumELBO

X = torch.tensor([[0.0, 1.0, 1.0, 0.0], [1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]]).double()


DISCRETE = {
    "Bernoulli": lambda: vae_of(
        priors.Bernoulli(3, [0.2, 0.5, 0.7], learn_probs=True),
        guides.Bernoulli(3),
        likelihoods.Bernoulli(4),
    ),
    "Categorical": lambda: vae_of(
        priors.Categorical(6, 3, probs=[0.2, 0.3, 0.5], learn_probs=True),
        guides.Categorical(6, 3),
        likelihoods.Bernoulli(4),
    ),
}
discrete = pytest.mark.parametrize("make", DISCRETE.values(), ids=DISCRETE)


class ByHand:
    """A VAE with a discrete latent, summed with plain arithmetic on the networks' outputs."""

    def __init__(self, vae: pv.VAE, x: torch.Tensor):
        if isinstance(vae.encoder[1], guides.Bernoulli):
            z = all_binary(3)
            prior, guide = vae.prior.logits.sigmoid(), vae.encoder[0](x).sigmoid()

            def probability(p):  # (…, D) → (2^D, …)
                return torch.stack([torch.where(row == 1, p, 1 - p).prod(-1) for row in z])
        else:
            codes = torch.eye(3)
            z = torch.stack([torch.cat([a, b]) for a in codes for b in codes])
            prior = vae.prior.logits.softmax(-1)
            guide = vae.encoder[0](x).reshape(-1, 2, 3).softmax(-1)

            def probability(p):
                pairs = itertools.product(range(3), repeat=2)
                return torch.stack([p[..., 0, a] * p[..., 1, b] for a, b in pairs])

        theta = vae.decoder[0](z).sigmoid()[:, None]
        likelihood = torch.where(x == 1, theta, 1 - theta).prod(-1)
        self.q = probability(guide)  # (K, N)
        joint = probability(prior)[:, None] * likelihood
        self.log_evidence = joint.sum(0).log()
        self.posterior = joint / joint.sum(0)
        self.elbo = (self.q * (joint.log() - self.q.log())).sum(0)


def gradients(vae: pv.VAE) -> dict[str, torch.Tensor]:
    taken = {name: p.grad for name, p in vae.named_parameters()}
    vae.zero_grad(set_to_none=True)
    return taken


# ---- enumeration


@discrete
def test_enumerated_elbo_and_gradient_are_those_by_hand(make, float64):
    vae = make()
    exact = ByHand(vae, X)
    exact.elbo.sum().backward()
    by_hand = gradients(vae)
    for elbo, guide in (
        (EnumELBO(), vae.guide),
        (TraceEnum_ELBO(max_plate_nesting=1), config_enumerate(vae.guide)),
    ):
        assert elbo.loss(vae.model, guide, X) == pytest.approx(
            -exact.elbo.sum().item(), rel=0, abs=1e-10
        )
        elbo.loss_and_grads(vae.model, guide, X)
        for name, gradient in gradients(vae).items():
            assert gradient is not None, name
            assert torch.allclose(gradient, -by_hand[name], rtol=0, atol=1e-10), name
        elbo.differentiable_loss(vae.model, guide, X).backward()
        for name, gradient in gradients(vae).items():
            assert torch.allclose(gradient, -by_hand[name], rtol=0, atol=1e-10), name


@discrete
def test_evidence_minus_elbo_is_the_kl_to_the_posterior(make, float64):
    vae = make()
    exact = ByHand(vae, X)
    gap = (exact.q * (exact.q.log() - exact.posterior.log())).sum(0)
    assert torch.allclose(exact.log_evidence - exact.elbo, gap, atol=1e-12)
    everything = ByHand(vae, all_binary(4))
    assert everything.log_evidence.exp().sum().item() == pytest.approx(1.0, abs=1e-12)


def test_a_dropped_prior_is_detected(float64):
    """Negative control: the same comparison with log p(z) half left out."""
    vae = DISCRETE["Bernoulli"]()
    exact = -ByHand(vae, X).elbo.sum().item()
    vae.prior.logits.data *= 0.5
    assert EnumELBO().loss(vae.model, vae.guide, X) != pytest.approx(exact, abs=1e-2)


def test_with_the_exact_posterior_every_draw_is_the_evidence(float64):
    """log p(x, z) − log q(z|x) = log p(x) for one categorical latent: the ELBO too."""
    prior, likelihood = priors.Categorical(4), likelihoods.Bernoulli(4)
    decoder = nn.Sequential(mlp(4, 4, hidden=(5,)), likelihood)

    class Posterior(nn.Module):
        def forward(self, x):
            z = torch.eye(4)[:, None]  # (K, 1, D)
            log_joint = prior().log_prob(z) + decoder(z).log_prob(x)
            return OneHotVector(log_joint.T[:, None, :])

    vae = pv.VAE(prior, Posterior(), decoder)
    z = torch.eye(4)[:, None]
    log_evidence = (prior().log_prob(z) + decoder(z).log_prob(X)).logsumexp(0)
    terms = pv.elbo_terms(vae, X, num_samples=20)
    assert torch.allclose(terms.log_weights, log_evidence.expand(20, 3), rtol=0, atol=1e-12)
    assert EnumELBO().loss(vae.model, vae.guide, X) == pytest.approx(
        -log_evidence.sum().item(), abs=1e-10
    )


@discrete
def test_enumeration_leaves_out_masked_cells(make, float64):
    vae = make()
    mask = torch.ones_like(X).bool()
    mask[:, 2] = False
    filled = torch.where(mask, X, 0.0)
    completions = [torch.where(mask, X, v) for v in (0.0, 1.0)]
    theta_z = vae.encode(filled)  # the encoder sees the filler, as `guide` does
    z = theta_z.enumerate_support(expand=False)
    log_p = torch.stack([vae.decode(z).log_prob(x) for x in completions]).logsumexp(0)
    log_q = theta_z.log_prob(z)
    exact = (log_q.exp() * (log_p + vae.prior().log_prob(z) - log_q)).sum()
    loss = EnumELBO().loss(vae.model, vae.guide, X, None, mask)
    assert loss == pytest.approx(-exact.item(), abs=1e-10)


@discrete
def test_analytic_kl_is_the_enumerated_sum(make, float64):
    vae = make()
    q_z, p_z = vae.encode(X), vae.prior()
    z = q_z.enumerate_support()
    assert z.shape[1:] == (3, *q_z.event_shape)
    log_q = q_z.log_prob(z)
    exact = (log_q.exp() * (log_q - p_z.log_prob(z))).sum(0)
    assert torch.allclose(kl_divergence(q_z, p_z), exact, rtol=0, atol=1e-12)
    assert vae.loss_terms(X).is_kl_analytic


@discrete
def test_values_are_distinct_complete_and_in_the_support(make, float64):
    q_z = make().encode(X)
    z = q_z.enumerate_support(expand=False)
    assert len(torch.unique(z.flatten(1), dim=0)) == len(z)
    assert torch.allclose(q_z.log_prob(z).logsumexp(0), torch.zeros(3), atol=1e-12)
    assert q_z.support.check(z).all()
    assert not q_z.support.check(z + 0.5).any()
    assert q_z.support.check(q_z.sample((50,))).all()
    mean = (q_z.log_prob(z).exp()[..., None] * z).sum(0)
    assert torch.allclose(mean, q_z.mean, atol=1e-12)
    spread = (q_z.log_prob(z).exp()[..., None] * (z - mean) ** 2).sum(0)
    assert torch.allclose(spread, q_z.variance, atol=1e-12)


def test_enumeration_needs_a_part_that_lists_its_values():
    """`.to_event(1)` is drawn, not enumerated, regardless of config_enumerate."""

    class Torchs(nn.Module):
        def forward(self, features):
            return dist.Bernoulli(logits=features).to_event(1)

    vae = pv.VAE(priors.Bernoulli(4), Torchs(), likelihoods.Bernoulli(4))
    with pytest.raises(ConfigError, match=r"z ~ Independent.*\n.*guides\.Bernoulli"):
        EnumELBO().loss(vae.model, vae.guide, X.float())
    normal = pv.build((4,), seed=0)
    with unchanged(normal), pytest.raises(ConfigError, match="none that can be enumerated"):
        pv.fit(normal, X, objective=EnumELBO(), epochs=1)


def test_too_many_joint_values_are_refused():
    BernoulliVector(torch.zeros(12)).enumerate_support()
    with pytest.raises(ConfigError, match=r"2\^13 = 8192 joint values.*4,096"):
        BernoulliVector(torch.zeros(13)).enumerate_support()
    with pytest.raises(ConfigError, match=r"10\^5 = 1e\+05 joint values"):
        OneHotVector(torch.zeros(5, 10)).enumerate_support()


@pytest.mark.parametrize("bad", [0, 1.5, True, "2"])
def test_enumeration_settings_are_checked(bad):
    with pytest.raises(ConfigError, match="num_particles"):
        EnumELBO(bad)
    with pytest.raises(ConfigError, match="max_plate_nesting"):
        EnumELBO(max_plate_nesting=bad)


def test_enumeration_beside_a_drawn_latent(float64):
    """y is summed out at each draw of z: the mean over particles is E_q(z)[Σ_y …]."""
    import pyro

    scores = torch.tensor([0.3, -1.0])

    def model(x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", BernoulliVector(torch.zeros(2)))
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal((y * scores + z).sum(-1), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("y", BernoulliVector(torch.tensor([0.5, -0.5])))
            pyro.sample("z", dist.Normal(torch.full((2,), 0.2), 0.5).to_event(1))

    x = torch.tensor([0.4, -0.2])
    losses = torch.tensor([EnumELBO(500).loss(model, guide, x) for _ in range(20)])
    y = all_binary(2)
    q_y = BernoulliVector(torch.tensor([0.5, -0.5]))
    # E over z of (x − s·y − Σz)²: mean part and variance 2 · 0.25
    square = (x[:, None] - y @ scores - 0.4) ** 2 + 0.5
    reconstruction = 0.5 * math.log(2 * math.pi) + 0.5 * (q_y.log_prob(y).exp() * square).sum(-1)
    q_z, p_z = dist.Normal(0.2, 0.5), dist.Normal(0.0, 1.0)
    kl = kl_divergence(q_y, BernoulliVector(torch.zeros(2))) + 2 * kl_divergence(q_z, p_z)
    exact = (reconstruction + kl).sum()
    assert abs(losses.mean() - exact) < 5 * losses.std() / math.sqrt(20)


# ---- training


@pytest.mark.parametrize("name", ["Bernoulli", "Categorical"])
@pytest.mark.parametrize("objective", [EnumELBO(), None], ids=["summed out", "drawn"])
def test_fit_trains_a_discrete_vae(name, objective):
    x = pv.datasets.binarize(pv.datasets.digits().train)[:200]
    vae = pv.build((8, 8), latent_dim=4, prior=name, guide=name, hidden=(20,), seed=0)
    before = EnumELBO().loss(vae.model, vae.guide, x)
    history = pv.fit(vae, x, objective=objective, epochs=5, learning_rate=1e-2, progress=False)
    after = EnumELBO().loss(vae.model, vae.guide, x)
    assert after < before - 5 * len(x)
    assert history[-1].elbo > history[0].elbo
    assert vae.sample(3).shape == (3, 8, 8)


@pytest.mark.parametrize(
    "objective",
    [objectives.BetaELBO(0.5), objectives.IWAE(4), objectives.STL(), objectives.DReG(4)],
)
@pytest.mark.parametrize("name", ["Bernoulli", "Categorical"])
def test_pathwise_objectives_refuse_a_discrete_guide(name, objective):
    """Before anything changes; the relaxed guide is accepted."""
    vae = pv.build((4,), latent_dim=2, prior=name, guide=name, seed=0)
    with unchanged(vae), pytest.raises(ConfigError, match="not reparameterized"):
        pv.fit(vae, X, objective=objective, epochs=1, progress=False)
    name = f"Relaxed{name}"
    vae = pv.build((4,), latent_dim=2, prior=name, guide=name, seed=0)
    history = pv.fit(vae, X, objective=objective, epochs=1, progress=False)
    assert math.isfinite(history[0].elbo)


def test_hand_written_svi_enumerates():
    vae = pv.build((4,), latent_dim=2, prior="Bernoulli", guide="Bernoulli", seed=0)
    svi = SVI(vae.model, vae.guide, Adam({"lr": 1e-2}), EnumELBO())
    losses = [svi.step(X.float()) for _ in range(100)]
    assert losses[-1] < losses[0] - 0.5


class FreeRows(nn.Module):
    """An encoder that ignores x: each of M data has its own features, so its own gradient."""

    def __init__(self, head: nn.Module, features: torch.Tensor, copies: int):
        super().__init__()
        self.features = nn.Parameter(features.expand(copies, -1).clone())
        self.head = head

    def forward(self, x):
        return self.head(self.features[: len(x)])


SCORED = {
    "Bernoulli": lambda: (priors.Bernoulli(2, 0.3), guides.Bernoulli(2)),
    "Categorical": lambda: (priors.Categorical(3), guides.Categorical(3)),
}


@pytest.mark.parametrize("make", SCORED.values(), ids=SCORED)
@pytest.mark.parametrize("num_particles", [1, 3])
def test_score_function_gradient_is_unbiased(make, num_particles, float64):
    """M = 20,000 single-datum estimates in one batch against the enumerated one."""
    copies = 20_000
    prior, guide = make()
    (latent_dim,) = prior().event_shape
    features = torch.tensor([0.4, -0.7, 1.1])[:latent_dim]
    decoder = nn.Sequential(nn.Linear(latent_dim, 4), likelihoods.Bernoulli(4))
    decoder[0].weight.data *= 3  # a steep decoder, so that the score term matters
    vae = pv.VAE(prior, FreeRows(guide, features, copies), decoder)
    x = X[:1].expand(copies, -1)
    TraceELBO(num_particles).differentiable_loss(vae.model, vae.guide, x).backward()
    estimates = gradients(vae)["encoder.features"]
    EnumELBO().loss_and_grads(vae.model, vae.guide, x[:1])
    exact = gradients(vae)["encoder.features"][0]
    standard_error = estimates.std(0) / math.sqrt(copies)
    assert ((estimates.mean(0) - exact).abs() / standard_error).max() < 5
    assert (8 * standard_error).max() < exact.abs().max()  # else it could not see a lost term
    # negative control: the gradient without the score term, as of a "pathwise" objective
    q_z = vae.encode(x)
    z = q_z.sample()
    q_z.log_prob(z).sum().backward()
    assert ((gradients(vae)["encoder.features"].mean(0) - exact).abs() > 5 * standard_error).any()


@discrete
@pytest.mark.parametrize("num_particles", [1, 4])
def test_trace_elbo_has_the_value_of_pyros(make, num_particles, float64):
    vae = make()
    torch.manual_seed(3)
    ours = TraceELBO(num_particles)
    ours = ours.loss(vae.model, vae.guide, X).item()
    torch.manual_seed(3)
    pyros = Trace_ELBO(num_particles, vectorize_particles=True, max_plate_nesting=1)
    assert ours == pytest.approx(pyros.loss(vae.model, vae.guide, X), abs=1e-10)


@discrete
def test_loss_and_elbo_terms_draw_and_average_to_the_exact_values(make, float64):
    vae = make()
    exact = ByHand(vae, X).elbo
    terms = pv.elbo_terms(vae, X, num_samples=20_000)
    assert vae.prior().support.check(terms.latents["z"]).all()
    losses = vae.loss(X[:1].expand(20_000, -1))
    for values, mean in ((terms.log_weights, exact), (-losses[:, None], exact[:1])):
        standard_error = values.std(0) / math.sqrt(20_000)
        assert ((values.mean(0) - mean).abs() / standard_error).max() < 5
        assert (8 * standard_error).max() < 0.2


@pytest.mark.parametrize("size", [0.0, 1.0, 50.0, 1e6])
def test_discrete_kl_and_gradient_are_finite_in_float32(size):
    for q_z, p_z in (
        (guides.Bernoulli(2), priors.Bernoulli(2, learn_probs=True)),
        (guides.Categorical(2), priors.Categorical(2, learn_probs=True)),
    ):
        features = torch.tensor([[size, -size]], requires_grad=True)
        kl = kl_divergence(q_z(features), p_z())
        kl.sum().backward()
        # at most log 2 nats for a certain bit of a fair coin
        assert -1e-6 <= kl.item() <= 2 * math.log(2) + 1e-5
        assert torch.isfinite(features.grad).all()


# ---- relaxed latents


@pytest.mark.parametrize("temperature", [0.4, 2 / 3, 3.0])
def test_relaxed_densities_are_torchs(temperature, float64):
    """Away from the cut, whose renormalization is below e^(−34 T + 2)."""
    logits = torch.tensor([[-2.0, 0.0, 1.5]])
    theirs = RelaxedBernoulli(torch.tensor(temperature), logits=logits)
    z = theirs.sample((50,)).clamp(1e-9, 1 - 1e-9)
    ours = BinaryConcrete(logits, temperature)
    atol = 3 * math.exp(2 - 34 * temperature) + 1e-8
    assert torch.allclose(ours.log_prob(z), theirs.log_prob(z).sum(-1), rtol=0, atol=atol)
    blocks = torch.tensor([[-2.0, 0.0, 1.5], [0.3, 0.2, 0.1]])
    theirs = RelaxedOneHotCategorical(torch.tensor(temperature), logits=blocks)
    z = theirs.sample((50,)).clamp_min(1e-12)
    expected = theirs.log_prob(z).sum(-1)
    ours = Concrete(blocks, temperature).log_prob(z.flatten(-2))
    assert torch.allclose(ours, expected, rtol=1e-10, atol=1e-8)


@pytest.mark.parametrize("temperature", [0.4, 2.0])
@pytest.mark.parametrize("logit", [0.0, -7.5, 30.0, -1e6])
def test_float32_binary_concrete_is_that_of_mpmath(temperature, logit):
    """The truncated density in 50 digits, at the float32 point itself."""
    q = BinaryConcrete(torch.tensor([logit]), temperature)
    for z in (*q.sample((5,)), *torch.tensor([[1e-6], [0.3], [0.999999]])):
        with mpmath.workdps(50):
            v, t = mpmath.mpf(z.item()), mpmath.mpf(temperature)
            w, h = t * mpmath.log(v / (1 - v)), t * mpmath.mpf(q.cut)
            # σ(h − l) − σ(−h − l) is even in l; at −|l| neither rounds to 1
            low, high = (1 / (1 + mpmath.exp(abs(logit) + side * h)) for side in (1, -1))
            away = abs(w - logit)
            log_logistic = -away - 2 * mpmath.log1p(mpmath.exp(-away))
            log_pdf = mpmath.log(t) + log_logistic - mpmath.log(high - low)
            exact = float(log_pdf - mpmath.log(v * (1 - v)))
        assert q.log_prob(z).item() == pytest.approx(exact, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("logit", [0.0, 3.0, -25.0, -1e6])
def test_binary_concrete_draws_follow_its_density(dtype, logit):
    """Kolmogorov-Smirnov in w = T logit(z), on the truncated range."""
    temperature = 0.5
    q = BinaryConcrete(torch.tensor([logit], dtype=dtype), temperature)
    z = q.sample((20_000,)).squeeze(-1).double()
    assert ((z > 0) & (z < 1)).all()
    w, h = temperature * torch.logit(z), temperature * q.cut
    a = torch.tensor(-h - logit, dtype=torch.float64)

    def log_mass(u):  # log[σ(u − l) − σ(−h − l)], stable in both tails
        d = u - logit
        return logsigmoid(d) + logsigmoid(-a) + torch.log(-torch.expm1(a - d))

    cdf = (log_mass(w) - log_mass(torch.tensor(h, dtype=torch.float64))).exp()
    # at large positive l, z sits at the cut, where it moves in steps of ε / 2: 1/8 in logit(z)
    assert stats.kstest(cdf.numpy(), "uniform").pvalue > 1e-6


def test_concrete_integrates_to_one_over_a_triangle(float64):
    """K = 3 in the coordinates (a, b) of z = softmax(a, b, 0), whose volume is z₁ z₂ z₃."""
    axis = torch.linspace(-60, 60, 801)
    ab = torch.cartesian_prod(axis, axis)
    z = torch.cat([ab, torch.zeros(len(ab), 1)], -1).log_softmax(-1)
    q = Concrete(torch.tensor([[0.5, -1.0, 0.2]]), 0.7)
    log_density = q.log_prob(z.exp().clamp_min(1e-300)) + z.sum(-1)
    total = log_density.logsumexp(0).exp() * (axis[1] - axis[0]) ** 2
    assert total.item() == pytest.approx(1.0, abs=1e-6)
    draws = q.sample((20_000,))
    # the largest coordinate is k with the categorical's probability: 5 standard errors
    exact = torch.tensor([0.5, -1.0, 0.2]).softmax(-1)
    share = torch.eye(3)[draws.argmax(-1)].mean(0)
    assert ((share - exact).abs() < 5 * (exact * (1 - exact) / 20_000).sqrt()).all()


@pytest.mark.parametrize("feature", [0.0, 2.0, -15.0])
def test_relaxed_pathwise_gradient_is_unbiased(feature, float64):
    """d/dl of E_q[log p(x, z) − log q(z|x)] by quadrature in the logit of z."""
    copies, temperature = 20_000, 0.5
    prior, guide = priors.RelaxedBernoulli(1, 0.8, probs=0.3), guides.RelaxedBernoulli(1, 0.5)
    decoder = nn.Sequential(nn.Linear(1, 4), likelihoods.Bernoulli(4))
    decoder[0].weight.data *= 3
    vae = pv.VAE(prior, FreeRows(guide, torch.tensor([feature]), copies), decoder)
    x = X[:1].expand(copies, -1)
    TraceELBO().differentiable_loss(vae.model, vae.guide, x).backward()
    estimates = gradients(vae)["encoder.features"][:, 0]

    logit = torch.tensor([feature], requires_grad=True)
    q_z = BinaryConcrete(logit, temperature)
    y = torch.linspace(-q_z.cut, q_z.cut, 200_001)[1:-1, None]
    z = y.sigmoid()
    log_volume = math.log(y[1] - y[0]) + (logsigmoid(y) + logsigmoid(-y)).squeeze(-1)
    log_q = q_z.log_prob(z)
    log_joint = prior().log_prob(z) + decoder(z).log_prob(X[0])
    loss = ((log_q + log_volume).exp() * (log_q - log_joint)).sum()
    (exact,) = torch.autograd.grad(loss, logit)
    standard_error = estimates.std() / math.sqrt(copies)
    assert abs(estimates.mean() - exact) < 5 * standard_error + 1e-6
    assert 8 * standard_error < max(exact.abs(), 0.2)


@pytest.mark.parametrize("temperature", [0.4, 2 / 3])
@pytest.mark.parametrize("size", [0.0, 5.0, 20.0, 1e3, 1e6])
def test_float32_relaxed_bound_cannot_be_cheated(temperature, size):
    """E_q[log q − log p] is a KL: never below 0 for any logits; torch's clamp breaks that."""

    def mean_kl(q_z, p_z):
        z = q_z.rsample((20_000,))
        values = (q_z.log_prob(z) - p_z.log_prob(z)).reshape(20_000, -1).sum(-1)
        return values.mean().item(), values.std().item() / math.sqrt(20_000)

    pairs = (
        (guides.RelaxedBernoulli, priors.RelaxedBernoulli),
        (guides.RelaxedCategorical, priors.RelaxedCategorical),
    )
    for guide, prior in pairs:
        q_z = guide(2, temperature)(torch.tensor([[size, -size]]))
        kl, standard_error = mean_kl(q_z, prior(2, temperature)())
        assert -5 * standard_error - 1e-5 <= kl < 200
    if size >= 1e3:
        theirs = RelaxedBernoulli(torch.tensor(temperature), logits=torch.tensor(size))
        fair = RelaxedBernoulli(torch.tensor(temperature), logits=torch.tensor(0.0))
        assert mean_kl(theirs, fair)[0] < -100  # the negative control


def test_relaxed_guide_draws_never_underflow_in_float32():
    for temperature in (0.4, 2 / 3, 1.0):
        bound = max_logit(temperature)
        head = guides.RelaxedCategorical(5, temperature)
        q_z = head(torch.tensor([[1e6, -1e6, -1e6, 0.0, 3.0]]))
        assert q_z.logits.abs().max() <= bound
        z = q_z.sample((100_000,))
        assert z.min() > 10 * torch.finfo(torch.float32).tiny
        assert q_z.support.check(z).all()


@pytest.mark.parametrize("head", [guides.RelaxedBernoulli(3, 0.4), guides.RelaxedCategorical(3)])
@pytest.mark.parametrize("size", [0.0, 1.0, 30.0, 1e6])
def test_relaxed_gradients_are_finite_in_float32(head, size):
    features = torch.tensor([[size, 0.0, -size]]).repeat(2000, 1).requires_grad_()
    q_z = head(features)
    z = q_z.rsample()
    (z.sum() + q_z.log_prob(z).sum()).backward()
    assert torch.isfinite(features.grad).all()


def test_derivative_at_a_logit_of_zero(float64):
    """The formulas mirror l < 0 to l ≥ 0; there the derivative must not be lost."""
    for shift in (1e-5, -1e-5):
        logit = torch.zeros(1, requires_grad=True)
        z = torch.tensor([0.2])
        (slope,) = torch.autograd.grad(BinaryConcrete(logit, 0.5).log_prob(z), logit)
        moved = BinaryConcrete(torch.tensor([shift]), 0.5).log_prob(z)
        difference = (moved - BinaryConcrete(torch.zeros(1), 0.5).log_prob(z)) / shift
        assert slope.item() == pytest.approx(difference.item(), abs=1e-4)
    logit = torch.zeros(20_000, 1, requires_grad=True)
    BinaryConcrete(logit, 0.5).rsample().sum().backward()
    assert (logit.grad > 0).all()


def test_relaxed_vae_trains():
    x = pv.datasets.binarize(pv.datasets.digits().train)[:200]
    for name in ("RelaxedBernoulli", "RelaxedCategorical"):
        vae = pv.build((8, 8), latent_dim=4, prior=name, guide=name, hidden=(20,), seed=0)
        history = pv.fit(vae, x, epochs=5, learning_rate=1e-2, progress=False)
        assert history[-1].elbo > history[0].elbo + 5
        assert not vae.loss_terms(x).is_kl_analytic
        assert history.bound_on == "log p(x) of the relaxed model"
    exact = pv.build((8, 8), latent_dim=4, prior="Bernoulli", guide="Bernoulli", hidden=(20,))
    assert pv.fit(exact, x, objective=EnumELBO(), epochs=1).bound_on == "log p(x)"


# ---- settings


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: priors.Bernoulli(2, 1.0), r"probs holds 1,.*inside \(0, 1\)"),
        (lambda: priors.Bernoulli(2, [0.1, 0.2, 0.3]), r"shape \(3,\), but there are 2 latents"),
        (lambda: priors.Bernoulli(0), "latent_dim"),
        (
            lambda: priors.Categorical(7, 3),
            r"must be a multiple of num_categories = 3.*\n.*latent_dim=6",
        ),
        (lambda: priors.Categorical(1), "latent_dim"),
        (lambda: priors.Categorical(3, probs=[0.2, 0.2, 0.2]), "sum to 0.6"),
        (lambda: priors.Categorical(3, probs=[0.5, 0.5]), r"shape \(2,\)"),
        (lambda: priors.RelaxedBernoulli(2, 0.1), r"temperature = 0.1.*EnumELBO"),
        (lambda: guides.RelaxedCategorical(4, -1.0), "temperature"),
        (lambda: guides.RelaxedBernoulli(2, math.nan), "temperature"),
        (lambda: guides.Categorical(4, 1), "num_categories"),
    ],
)
def test_impossible_settings_are_refused(make, message):
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        make()
