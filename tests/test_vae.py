"""The VAE as a Pyro program and as a network: every usual call, against exact answers."""

import copy
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import conditional, unchanged
from oracles import AffineEncoder, ExactEncoder, LinearGaussian, all_binary, grid
from pyro import poutine
from pyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO
from torch import nn

import pyrovae as pv
from pyrovae import guides, likelihoods, networks, priors
from pyrovae.densities.tempered import tempered
from pyrovae.errors import ConfigError
from pyrovae.networks import Given


@pytest.fixture
def vae() -> pv.VAE:
    return pv.build((6,), latent_dim=2, hidden=(8,), seed=0)


@pytest.fixture
def x() -> torch.Tensor:
    return torch.bernoulli(torch.full((5, 6), 0.5), generator=torch.Generator().manual_seed(0))


# ---- an ordinary Pyro program


def test_hand_written_svi_trains_every_parameter(vae, x):
    before = [p.clone() for p in vae.parameters()]
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
    first = sum(svi.step(x) for _ in range(20))
    last = [svi.step(x) for _ in range(200)][-20:]
    assert sum(last) < first
    assert all((p != b).any() for p, b in zip(vae.parameters(), before, strict=True))


def test_predictive_draws_the_posterior_and_new_data(vae, x):
    posterior = Predictive(vae.model, guide=vae.guide, num_samples=4)(x)
    assert posterior["z"].squeeze().shape == (4, 5, 2)
    ancestral = poutine.uncondition(vae.model)
    for parallel in (False, True):
        draws = Predictive(ancestral, num_samples=4, parallel=parallel, return_sites=["x", "z"])(x)
        assert draws["x"].shape == (4, 5, 6)
        assert draws["z"].shape == (4, 5, 2)
    replicated = Predictive(ancestral, guide=vae.guide, num_samples=4)(x)
    assert replicated["x"].shape == (4, 5, 6)


def test_condition_fixes_the_latent(vae, x):
    z = torch.randn(5, 2)
    trace = poutine.trace(poutine.condition(vae.model, {"z": z})).get_trace(x)
    expected = vae.prior().log_prob(z).sum() + vae.decode(z).log_prob(x).sum()
    assert trace.log_prob_sum().item() == pytest.approx(expected.item(), rel=1e-6)


def test_uncondition_draws_x(vae, x):
    trace = poutine.trace(poutine.uncondition(vae.model)).get_trace(x)
    assert not trace.nodes["x"]["is_observed"]
    assert trace.nodes["x"]["value"].shape == x.shape


def test_nuts_runs_on_a_handful_of_data(vae, x):
    mcmc = MCMC(NUTS(vae.model), num_samples=5, warmup_steps=5, disable_progbar=True)
    mcmc.run(x[:3])
    assert mcmc.get_samples()["z"].shape == (5, 3, 2)


def test_render_model_draws_plate_and_sites(vae, x):
    source = pyro.render_model(vae.model, model_args=(x,)).source
    assert all(word in source for word in ("data", "z", "x"))


def test_covariates_reach_given_parts_only(x):
    class ShiftedByClass(nn.Module):
        def __init__(self):
            super().__init__()
            self.loc = nn.Parameter(torch.arange(6.0).reshape(3, 2))

        def forward(self, y):
            return dist.Normal(self.loc[y], 1.0).to_event(1)

    plain = pv.build((6,), latent_dim=2, seed=0)
    vae = pv.VAE(Given(ShiftedByClass()), plain.encoder, plain.decoder)
    y = torch.tensor([0, 1, 2, 2, 1])
    trace = poutine.trace(vae.model).get_trace(x, y)
    assert torch.equal(trace.nodes["z"]["fn"].base_dist.loc, vae.prior.part.loc[y])
    assert vae.loss(x, y).shape == (5,)
    assert vae.sample(5, y).shape == (5, 6)


# ---- the network's calls


SCALED = {
    "StandardNormal": lambda: pv.priors.StandardNormal(2),
    "LearnedNormal, full": lambda: pv.priors.LearnedNormal(2, full=True),
    "GaussianMixture": lambda: pv.priors.GaussianMixture(2, num_components=3),
    "FlowPrior": lambda: pv.priors.FlowPrior(2, flow="autoregressive"),
    "StudentT": lambda: pv.priors.Fixed(
        lambda df: dist.StudentT(df, 0.0, torch.ones(2)).to_event(1), df=torch.tensor(5.0)
    ),
}


@pytest.mark.parametrize("make", SCALED.values(), ids=SCALED)
def test_temperature_scales_draws_about_the_centers(make, float64):
    torch.manual_seed(0)
    p = make()()
    cold = tempered(p, 0.1)
    z = cold.expand([2000]).sample()
    assert torch.isfinite(cold.log_prob(z)).all()
    torch.testing.assert_close(tempered(p, 1.0).log_prob(z), p.log_prob(z))
    # from the nearest center, scales and not variances are a tenth
    centers = getattr(p, "component_distribution", None)
    centers = z.mean(0, keepdim=True) if centers is None else centers.mean
    far = tempered(p, 1.0).expand([2000]).sample()
    spread = [torch.cdist(draws, centers).amin(1).median() for draws in (z, far)]
    assert 0.05 < spread[0] / spread[1] < 0.2


def test_sample_takes_a_temperature_means_and_one_label():
    vae = conditional()
    one, many = vae.sample(5, 2, seed=0), vae.sample(5, torch.full((5,), 2), seed=0)
    assert torch.equal(one, many)
    mean = vae.sample(5, 2, mean=True, seed=0)
    assert ((mean > 0) & (mean < 1)).all()
    plain = pv.build((4,), latent_dim=2, seed=0)
    nearly = plain.sample(50, temperature=1e-6, mean=True, seed=0)
    center = plain.decode(torch.zeros(1, 2)).mean
    torch.testing.assert_close(nearly, center.expand(50, 4), rtol=0, atol=1e-4)
    with pytest.raises(ConfigError, match="temperature = 0"):
        plain.sample(1, temperature=0)
    discrete = pv.build((4,), prior={"name": "Bernoulli", "probs": 0.5}, guide="Bernoulli")
    with pytest.raises(ConfigError, match=r"has no scale.*\n.*temperature=1"):
        discrete.sample(1, temperature=0.5)


def test_sample_is_ancestral(float64):
    """With a decoder that ignores z, draws of x are draws of its fixed Bernoulli."""
    vae = pv.build((1,), latent_dim=2, seed=0)
    last = vae.decoder[0][-1]
    last.weight.data.zero_()
    last.bias.data.fill_(math.log(3.0))  # p(x = 1) = 0.75
    draws = vae.sample(20_000, seed=0)
    # 5 standard errors of a proportion
    assert abs(draws.mean() - 0.75) < 5 * math.sqrt(0.75 * 0.25 / 20_000)


def test_seeded_draws_repeat_and_leave_the_generator(vae, x):
    with unchanged(vae):
        assert torch.equal(vae.sample(3, seed=1), vae.sample(3, seed=1))
        assert torch.equal(vae.reconstruct(x, seed=1), vae.reconstruct(x, seed=1))


def test_sampling_runs_in_eval_mode_and_restores_the_mode():
    plain = pv.build((6,), latent_dim=2, seed=0)
    decoder = nn.Sequential(nn.Dropout(1.0), *plain.decoder)
    vae = pv.VAE(plain.prior, plain.encoder, decoder).train()
    plain.decoder[0][-1].weight.data.mul_(50.0)
    assert vae.reconstruct(torch.ones(2, 6), seed=0).std() > 0
    assert vae.training
    assert decoder.training
    assert not vae.sample(2).requires_grad


def with_dropout_and_norm():
    """Return a VAE in train mode whose encoder and decoder depend on the mode."""
    torch.manual_seed(0)
    q, p = guides.DiagonalNormal(2), likelihoods.Bernoulli(6)

    def noisy(inputs, outputs):
        return nn.Sequential(
            nn.Linear(inputs, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, outputs)
        )

    encoder = nn.Sequential(noisy(6, q.num_features), q)
    decoder = nn.Sequential(networks.FlattenBatch(noisy(2, p.num_features), event_dims=1), p)
    return pv.VAE(priors.StandardNormal(2), encoder, decoder)


READINGS = {
    "encode": lambda vae, x: vae.encode(x).mean,
    "decode": lambda vae, x: vae.decode(x[:, :2]).mean,
    "reconstruct": lambda vae, x: vae.reconstruct(x, seed=0),
    "sample": lambda vae, x: vae.sample(3, seed=0),
    "elbo_terms": lambda vae, x: pv.elbo_terms(vae, x).log_weights,
    "log_evidence": lambda vae, x: pv.log_evidence(vae, x, num_samples=20).log_px,
}


@pytest.mark.parametrize("read", READINGS.values(), ids=READINGS)
def test_a_reading_is_the_same_in_both_modes_and_moves_no_statistics(read):
    vae, x = with_dropout_and_norm(), torch.ones(5, 6)
    vae.loss(torch.rand(20, 6).round())  # running statistics that differ from the batch's
    state = copy.deepcopy(vae.state_dict())
    vae.decoder[1].eval()  # a mixed mode, to be restored
    modes = [m.training for m in vae.modules()]
    found = read(vae, x)
    assert [m.training for m in vae.modules()] == modes
    assert torch.equal(found, read(vae.eval(), x))
    assert all(torch.equal(t, vae.state_dict()[name]) for name, t in state.items())


def test_only_the_loss_follows_the_mode():
    vae, x = with_dropout_and_norm(), torch.rand(5, 6).round()

    def loss():
        torch.manual_seed(0)
        return vae.loss(x)

    in_train_mode = loss()
    vae.eval()
    assert not torch.equal(in_train_mode, loss())
    assert torch.equal(loss(), loss())


def test_loss_is_differentiable_and_encode_too(vae, x):
    vae.loss(x).sum().backward()
    assert all(p.grad is not None for p in vae.parameters())
    assert vae.encode(x).mean.requires_grad


def test_loss_terms_name_an_analytic_kl(vae, x):
    assert vae.loss_terms(x).is_kl_analytic
    assert not vae.loss_terms(x, analytic_kl=False).is_kl_analytic
    student = pv.priors.Fixed(
        lambda loc: dist.StudentT(4.0, loc, 1.0).to_event(1), loc=torch.zeros(2)
    )
    assert not pv.VAE(student, vae.encoder, vae.decoder).loss_terms(x).is_kl_analytic


def test_a_part_that_is_not_a_module_is_refused(vae):
    with pytest.raises(ConfigError, match=r"prior is a Independent.*\n?.*\n?.*Fixed"):
        pv.VAE(dist.Normal(torch.zeros(2), 1.0).to_event(1), vae.encoder, vae.decoder)


# ---- the linear-Gaussian VAE


def test_exact_posterior_makes_every_draw_the_evidence(float64):
    """log p(x, z) − log q(z|x) = log p(x) for every draw."""
    truth = LinearGaussian()
    x = truth.sample(20)
    terms = pv.elbo_terms(truth.vae(ExactEncoder(truth)), x, num_samples=7)
    assert torch.allclose(terms.log_weights, truth.log_evidence(x).expand(7, 20), atol=1e-10)
    loss = truth.vae(ExactEncoder(truth)).loss(x, analytic_kl=False)
    assert torch.allclose(-loss, truth.log_evidence(x), atol=1e-10)


def test_a_wrong_posterior_width_is_detected(float64):
    """Negative control: sd × 0.8."""
    truth = LinearGaussian()
    x = truth.sample(20)
    terms = pv.elbo_terms(truth.vae(ExactEncoder(truth, 0.8)), x, num_samples=7)
    assert not torch.allclose(terms.log_weights, truth.log_evidence(x).expand(7, 20), atol=1e-2)


def _affine_guide(truth: LinearGaussian) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    v = 0.3 * torch.randn(2, 5, generator=generator, dtype=torch.float64)
    return v, torch.tensor([0.3, 0.7], dtype=torch.float64)


def test_elbo_of_an_affine_guide_is_the_closed_form(float64):
    """The closed form, by the mean of 20 000 draws per datum; 5 standard errors."""
    truth = LinearGaussian()
    v, d = _affine_guide(truth)
    x = truth.sample(4)
    terms = pv.elbo_terms(truth.vae(AffineEncoder(v, truth.mean, d)), x, num_samples=20_000)
    error = terms.log_weights.std(0) / math.sqrt(20_000)
    z = (terms.log_weights.mean(0) - truth.elbo(x, v, d)) / error
    assert z.abs().max() < 5
    wrong = truth.elbo(x, v, 2 * d)  # negative control: another variance
    assert ((terms.log_weights.mean(0) - wrong) / error).abs().max() > 8


def test_training_reaches_the_maximum_likelihood(float64):
    """−½ [D log 2π + Σ_{j≤L} log λ_j + (D − L) log σ̂² + D] within 0.01 nat, WᵀW diagonal."""
    truth = LinearGaussian(num_features=5, latent_dim=2, sigma=0.6)
    x = truth.sample(2000)
    eigenvalues = torch.linalg.eigvalsh(torch.cov(x.T, correction=0)).flip(0)
    noise = eigenvalues[2:].mean()
    best = -0.5 * (5 * math.log(2 * math.pi) + eigenvalues[:2].log().sum() + 3 * noise.log() + 5)
    vae = pv.VAE(
        pv.priors.StandardNormal(2),
        _affine_encoder(5, 2),
        nn.Sequential(pv.networks.mlp(2, 5, hidden=()), pv.likelihoods.Normal(5, learn_scale=True)),
    )
    pv.fit(vae, x, epochs=40, batch_size=200, learning_rate=3e-2)
    pv.fit(vae, x, epochs=30, batch_size=500, learning_rate=3e-3)
    pv.fit(vae, x, epochs=40, batch_size=2000, learning_rate=1e-3)
    elbo = pv.elbo_terms(vae, x, num_samples=200).log_weights.mean()
    assert elbo.item() == pytest.approx(best.item(), abs=0.01)
    noise = eigenvalues[1:].mean()  # negative control: the optimum of one latent is another number
    one = -0.5 * (5 * math.log(2 * math.pi) + eigenvalues[0].log() + 4 * noise.log() + 5)
    assert elbo.item() != pytest.approx(one.item(), abs=0.05)
    weight = vae.decoder[0][0].weight
    gram = weight.T @ weight
    assert gram[0, 1].abs() < 0.1 * gram.diag().min()


def _affine_encoder(num_features: int, latent_dim: int) -> nn.Module:
    class Encoder(nn.Module):
        """N(V x + b, diag d): with free d this holds the exact posterior at the optimum."""

        def __init__(self):
            super().__init__()
            self.affine = nn.Linear(num_features, latent_dim)
            self.log_scale = nn.Parameter(torch.zeros(latent_dim))

        def forward(self, x):
            loc = self.affine(x)
            return dist.Normal(loc, self.log_scale.exp().expand_as(loc)).to_event(1)

    return Encoder()


# ---- quadrature


def test_evidence_sums_to_one_over_all_binary_data(float64):
    """Σ_x p(x) = 1 over the 2⁶ vectors, p(x) by the grid."""
    vae = pv.build((6,), latent_dim=2, hidden=(8,), seed=0)
    evidence = pv.log_evidence(vae, all_binary(6), method="grid")
    assert evidence.log_px.exp().sum().item() == pytest.approx(1.0, abs=1e-6)


def test_grid_evidence_equals_independent_quadrature(float64):
    vae = pv.build((6,), latent_dim=2, hidden=(8,), seed=0)
    x = all_binary(6)[::7]
    z, log_volume = grid(7.0, 201, 2)
    log_joint = vae.prior().log_prob(z)[:, None] + vae.decode(z[:, None]).log_prob(x)
    exact = (log_joint + log_volume).logsumexp(0)
    assert torch.allclose(pv.log_evidence(vae, x, method="grid").log_px, exact, atol=1e-8)
    shifted = (log_joint + 2 * log_volume).logsumexp(0)  # negative control: ΔV twice
    assert not torch.allclose(pv.log_evidence(vae, x, method="grid").log_px, shifted, atol=0.1)


def test_grid_evidence_equals_the_linear_gaussian_one(float64):
    truth = LinearGaussian()
    x = truth.sample(10)
    evidence = pv.log_evidence(truth.vae(ExactEncoder(truth)), x, method="grid")
    assert torch.allclose(evidence.log_px, truth.log_evidence(x), atol=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_iwae_is_within_its_stated_error(float64, seed):
    truth = LinearGaussian()
    x = truth.sample(10)
    exact_v = torch.linalg.solve(truth.m, truth.weight.T)
    d = 1.5 * (truth.sigma**2 * torch.linalg.inv(truth.m)).diag()
    vae = truth.vae(AffineEncoder(exact_v, truth.mean, d))
    evidence = pv.log_evidence(vae, x, num_samples=5000, seed=seed)
    # 10 data a seed: a Gaussian z exceeds 4.5 once in 15 000 runs of the five seeds
    assert ((evidence.log_px - truth.log_evidence(x)) / evidence.std_error).abs().max() < 4.5


def test_grid_refuses_three_latent_dimensions():
    vae = pv.build((6,), latent_dim=3, seed=0)
    with pytest.raises(ConfigError, match="3 dimensions"):
        pv.log_evidence(vae, torch.ones(2, 6), method="grid")
