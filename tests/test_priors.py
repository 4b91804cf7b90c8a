"""Priors: each trained, saved and loaded; the VampPrior's shared encoder; flows in Pyro."""

import copy
import math
from functools import partial

import pyro.distributions as dist
import pytest
import torch
from contracts import PRIORS, all_flows
from helpers import binary, bits, conditional, unchanged, unshrink
from oracles import grid
from pyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO
from pyro.optim import Adam
from torch import nn

import pyrovae as pv
from pyrovae import guides, likelihoods, priors
from pyrovae.densities import flows
from pyrovae.errors import ConfigError, DataError
from pyrovae.networks import Given, mlp

REAL = [name for name, part in PRIORS.items() if part.space == "real"]


def encoder(event: int = 3, latent_dim: int = 2) -> nn.Module:
    q = guides.DiagonalNormal(latent_dim)
    return nn.Sequential(mlp(event, q.num_features, hidden=(8,)), q)


def decoder(event: int = 3, latent_dim: int = 2) -> nn.Module:
    p = likelihoods.Bernoulli(event)
    return nn.Sequential(mlp(latent_dim, p.num_features, hidden=(8,)), p)


def vamp_vae(**options) -> pv.VAE:
    q = encoder()
    return pv.VAE(priors.VampPrior(q, torch.eye(3), **options), q, decoder())


# ---- every prior


@pytest.mark.parametrize("name", REAL)
def test_a_vae_with_this_prior_trains_and_predicts(name):
    torch.manual_seed(0)
    vae = pv.VAE(PRIORS[name].make(), encoder(), decoder())
    x = binary()
    before = copy.deepcopy(vae.prior.state_dict())
    history = pv.fit(vae, x, epochs=15, batch_size=16, learning_rate=1e-2)
    # from 3 log 2 = 2.1 nats of independent pixels towards log 2 of three equal ones
    assert history[-1].elbo > history[0].elbo + 0.1
    learned = {n for n, p in vae.prior.named_parameters() if p.requires_grad}
    after = vae.prior.state_dict()
    assert all((after[n] != before[n]).any() for n in learned)
    draws = Predictive(vae.model, guide=vae.guide, num_samples=4, parallel=True)(x)
    assert draws["z"].squeeze().shape == (4, 64, 2)
    assert vae.sample(5).shape == (5, 3)


@pytest.mark.parametrize("name", REAL)
def test_pyros_own_svi_and_nuts_take_this_prior(name):
    vae = pv.VAE(PRIORS[name].make(), encoder(), decoder())
    svi = SVI(vae.model, vae.guide, Adam({"lr": 1e-2}), Trace_ELBO())
    before = [p.clone() for p in vae.parameters()]
    assert math.isfinite(svi.step(binary()))
    assert all((p != b).any() for p, b in zip(vae.parameters(), before, strict=True))
    mcmc = MCMC(NUTS(vae.model), num_samples=2, warmup_steps=2, disable_progbar=True)
    mcmc.run(binary(2))
    assert mcmc.get_samples()["z"].shape == (2, 2, 2)


# ---- learned and mixed normals


def test_learned_normal_starts_at_the_standard_one(float64):
    z = torch.randn(7, 3)
    for full in (False, True):
        p_z = priors.LearnedNormal(3, full=full)()
        # 3 log-densities of order 1 summed in float64, and softplus⁻¹ to 1e-16: 1e-14 is ample
        assert torch.allclose(p_z.log_prob(z), priors.StandardNormal(3)().log_prob(z), atol=1e-13)


def test_full_learned_normal_reaches_any_covariance(float64):
    """At the maximum likelihood of data, mean and covariance are the sample's own."""
    z = torch.randn(50, 3) @ torch.tensor([[2.0, 0, 0], [1.0, 0.3, 0], [-1.0, 0.5, 1.0]]).T + 1
    prior = priors.LearnedNormal(3, full=True)
    optimizer = torch.optim.LBFGS(
        prior.parameters(), max_iter=500, tolerance_grad=1e-9, line_search_fn="strong_wolfe"
    )

    def loss():
        optimizer.zero_grad()
        value = -prior().log_prob(z).mean()
        value.backward()
        return value

    optimizer.step(loss)
    assert torch.allclose(prior().mean, z.mean(0), atol=1e-6)
    assert torch.allclose(prior().covariance_matrix, z.T.cov(correction=0), atol=1e-5)


def test_learned_normal_has_an_analytic_kl():
    for full in (False, True):
        vae = pv.VAE(priors.LearnedNormal(2, full=full), encoder(), decoder())
        assert vae.loss_terms(binary()).is_kl_analytic


def test_gaussian_mixture_is_its_formula(float64):
    prior = priors.GaussianMixture(2, num_components=3)
    nn.init.normal_(prior.logits)
    z = torch.randn(7, 2)
    weight, scale = prior.logits.softmax(0), nn.functional.softplus(prior.raw_scale) + 1e-5
    squared = (((z[:, None] - prior.loc) / scale) ** 2).sum(-1)  # (7, 3)
    density = weight * (-0.5 * squared).exp() / (2 * math.pi * scale.prod(-1))
    assert torch.allclose(prior().log_prob(z), density.sum(-1).log(), atol=1e-12)


def test_gaussian_mixture_starts_wide_and_uneven():
    torch.manual_seed(0)
    prior = priors.GaussianMixture(8, num_components=500)
    # the variance of 500 means ~ N(0, 1/2) has standard error 0.5 √(2 / 500) = 0.03; k = 5
    assert torch.allclose(prior().variance.detach(), torch.ones(8), atol=0.16)
    assert torch.pdist(prior.loc.detach()).min() > 0


# ---- VampPrior


def test_vamp_prior_shares_the_encoder_and_counts_it_once():
    vae = vamp_vae()
    assert vae.prior.encoder is vae.encoder
    own = {id(p) for part in (vae.encoder, vae.decoder) for p in part.parameters()}
    own.add(id(vae.prior.raw_inputs))
    counted = [id(p) for p in vae.parameters()]
    assert len(counted) == len(set(counted)) == len(own)
    assert set(counted) == own


def test_the_shared_encoder_gets_gradient_from_prior_and_guide():
    """∂loss/∂encoder = what comes through q(z|x) + what comes through p(z)."""
    vae = vamp_vae()
    x = binary(5)

    def gradient(prior_encoder, guide_encoder, wrt):
        torch.manual_seed(0)
        vae.prior.encoder, vae.encoder = prior_encoder, guide_encoder
        loss = vae.loss(x).sum()
        return torch.autograd.grad(loss, list(wrt.parameters()), allow_unused=True)

    shared, other = vae.encoder, copy.deepcopy(vae.encoder)
    total = gradient(shared, shared, shared)
    through_prior, through_guide = gradient(other, shared, other), gradient(other, shared, shared)
    for whole, p, q in zip(total, through_prior, through_guide, strict=True):
        assert (p != 0).any()
        assert (q != 0).any()
        # float32 sums of 5 data
        assert torch.allclose(whole, p + q, atol=1e-5)


def test_one_pseudo_input_at_the_datum_gives_a_kl_of_zero(float64):
    """K = 1, u = x: log q(z|x) − log p(z) is 0, bit for bit, at every draw.

    A FullNormal knows log q(z|x) from its noise, and the prior solves for that: float64's rounding.
    """
    x = torch.tensor([[0.0, 1.0, 1.0]])
    for q in (guides.DiagonalNormal(2), guides.FullNormal(2), guides.LowRankNormal(2)):
        shared = nn.Sequential(mlp(3, q.num_features), q)
        vae = pv.VAE(priors.VampPrior(shared, x), shared, decoder())
        terms = vae.loss_terms(x)
        assert not terms.is_kl_analytic
        bound = 1e-13 if isinstance(q, guides.FullNormal) else 0.0
        assert (terms.kl.abs() <= bound).all()
        assert (pv.elbo_terms(vae, x, num_samples=7).kl.abs() <= bound).all()
        # by one formula, at points that neither density drew, all three are 0 bit for bit
        z = torch.randn(7, 1, 2)
        assert torch.equal(shared(x).log_prob(z), vae.prior().log_prob(z))
        # negative control: any other pseudo-input is seen
        other = pv.VAE(priors.VampPrior(shared, 1 - x), shared, vae.decoder)
        assert (other.loss_terms(x).kl != 0).all()


def test_vamp_prior_is_the_mean_of_the_posteriors(float64):
    vae = vamp_vae(learn_weights=True)
    nn.init.normal_(vae.prior.logits)
    z = torch.randn(7, 2)
    each = torch.stack([vae.encoder(u[None]).log_prob(z).exp() for u in torch.eye(3)], -1)
    exact = (each * vae.prior.logits.softmax(0)).sum(-1).log()
    assert torch.allclose(vae.prior().log_prob(z), exact, atol=1e-12)


@pytest.mark.parametrize(
    "make",
    [
        guides.DiagonalNormal,
        guides.FullNormal,
        guides.LowRankNormal,
        guides.Laplace,
        guides.StudentT,
        guides.FlowGuide,
    ],
)
def test_vamp_prior_takes_every_guide_family(make):
    q = make(2)
    shared = nn.Sequential(mlp(3, q.num_features), q)
    vae = pv.VAE(priors.VampPrior(shared, torch.eye(3)), shared, decoder())
    assert vae.prior().batch_shape == ()
    assert torch.isfinite(vae.loss(binary(5))).all()
    assert vae.sample(4).shape == (4, 3)
    assert vae.prior().expand([7]).sample().shape == (7, 2)


def test_vamp_state_round_trip_keeps_the_sharing(tmp_path):
    first, second = vamp_vae(), vamp_vae()
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second.load_state_dict(torch.load(tmp_path / "state.pt"))
    assert second.prior.encoder is second.encoder
    x = binary(5)
    assert torch.equal(first.encode(x).mean, second.encode(x).mean)
    z = torch.randn(5, 2)
    assert torch.equal(first.prior().log_prob(z), second.prior().log_prob(z))


def test_sharing_survives_copies_and_casts():
    for vae in (copy.deepcopy(vamp_vae()), vamp_vae().double()):
        assert vae.prior.encoder is vae.encoder
    assert vae.prior.pseudo_inputs.dtype == torch.float64
    assert vae.prior().log_prob(torch.zeros(2, dtype=torch.float64)).dtype == torch.float64


def test_pseudo_inputs_stay_in_range_and_can_return():
    """They start at the edges {0, 1}, where hardtanh would freeze what steps outside."""
    prior = priors.VampPrior(encoder(), torch.eye(3))
    optimizer = torch.optim.Adam([prior.raw_inputs], 0.1)
    for direction in (1.0, -1.0):  # first push all outward and up, then down
        for _ in range(30):
            optimizer.zero_grad()
            (-direction * prior.pseudo_inputs.sum()).backward()
            optimizer.step()
            assert prior.pseudo_inputs.min() >= 0
            assert prior.pseudo_inputs.max() <= 1
        assert (prior.pseudo_inputs == (1.0 if direction > 0 else 0.0)).all()


def test_gradient_inside_the_range_is_the_plain_one(float64):
    prior = priors.VampPrior(encoder().double(), torch.full((2, 3), 0.3), bounds=(0.0, 1.0))
    (prior.pseudo_inputs**2).sum().backward()
    assert torch.allclose(prior.raw_inputs.grad, 2 * prior.raw_inputs.detach())


def test_pseudo_inputs_of_any_array(tmp_path):
    as_bytes = torch.randint(0, 2, (4, 3), dtype=torch.uint8)
    for given in (as_bytes, as_bytes.numpy(), as_bytes.tolist()):
        prior = priors.VampPrior(encoder().double(), given, bounds=(0, 1))
        assert prior.raw_inputs.dtype == torch.float64
        assert torch.equal(prior.pseudo_inputs.detach(), as_bytes.double())


def test_the_callers_array_is_not_trained():
    start = torch.eye(3)
    prior = priors.VampPrior(encoder(), start)
    prior.raw_inputs.data += 1
    assert torch.equal(start, torch.eye(3))


def test_bad_pseudo_inputs_are_refused():
    for bad, message in (
        (torch.zeros(3), r"shape \(3,\).*\(K, \*event\)"),
        (torch.zeros(0, 3), r"K ≥ 1.*\n.*x\[:500\]"),
        (torch.ones(2, 3), r"lie in \[1, 1\].*low < high.*\n.*bounds=\(0\.0, 1\.0\)"),
    ):
        with pytest.raises(ConfigError, match=message):
            priors.VampPrior(encoder(), bad)
    with pytest.raises(ConfigError, match=r"lie in \[0, 1\].*bounds are \(0, 0\.5\)"):
        priors.VampPrior(encoder(), torch.eye(3), bounds=(0.0, 0.5))
    with pytest.raises(DataError, match=r"pseudo_inputs\[0, 0\] = nan"):
        priors.VampPrior(encoder(), torch.eye(3) * torch.nan)
    with pytest.raises(ConfigError, match=r"Given covariates y, but pseudo_covariates are missing"):
        priors.VampPrior(Given(encoder()), torch.eye(3))
    flat = nn.Sequential(nn.Flatten(0), *encoder())
    with pytest.raises(ConfigError, match=r"batch_shape \(\) for 1 pseudo-inputs.*one density"):
        priors.VampPrior(flat, torch.eye(3)[:1])()


# ---- flows


@all_flows
def test_flow_prior_starts_near_the_standard_normal(flow):
    torch.manual_seed(0)
    z = torch.randn(1000, 3)
    difference = priors.FlowPrior(3, flow=flow)().log_prob(z) - priors.StandardNormal(3)().log_prob(
        z
    )
    # last layers shrunk by 100: log-densities move by hundredths of a nat; unshrunk by tenths
    assert difference.abs().mean() < 0.05
    assert difference.abs().max() > 0


@pytest.mark.parametrize("latent_dim", [1, 2, 5])
@all_flows
def test_flow_density_is_its_jacobian(flow, latent_dim, float64):
    """log p(z) = log N(f(z)) + log |det ∂f/∂z| with autograd's Jacobian; f⁻¹ undoes f."""
    flow_module = flow(latent_dim)
    unshrink(flow_module)
    p = flows.FlowDistribution(flow_module.transform().inv, flow_module.base())
    z = p.sample()
    to_noise = flow_module.transform()
    jacobian = torch.autograd.functional.jacobian(to_noise, z)
    u = to_noise(z)
    exact = dist.Normal(0.0, 1.0).log_prob(u).sum() + torch.linalg.slogdet(jacobian).logabsdet
    assert torch.allclose(p.log_prob(z), exact, atol=1e-10)
    # the inverse of up to 5 float64 layers whose slopes are within e^±3
    assert torch.allclose(p.transform(u), z, atol=1e-9)


def test_spline_flow_integrates_to_one(float64):
    """On a coarser grid than the contract's: a spline needs (points, 2, bins) numbers."""
    torch.manual_seed(0)
    prior = priors.FlowPrior(2, flow=partial(flows.spline, num_transforms=2, hidden=(8,)))
    unshrink(prior)
    z, log_volume = grid(9.0, 301, 2)
    with torch.no_grad():
        total = (prior().log_prob(z) + log_volume).logsumexp(0).exp().item()
    # kinks of the second derivative at knots: error of order h² = 0.004 times a small curvature
    assert total == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("flow", [flows.autoregressive, flows.spline])
def test_the_priors_density_never_inverts(flow, monkeypatch):
    """Training needs the density alone, in one pass; only draws pay for D of them."""
    import zuko

    def refuse(*args):
        raise AssertionError("inverted")

    prior = priors.FlowPrior(3, flow=flow)
    monkeypatch.setattr(zuko.transforms.AutoregressiveTransform, "_inverse", refuse)
    assert prior().log_prob(torch.zeros(7, 3)).shape == (7,)
    with pytest.raises(AssertionError, match="inverted"):
        prior().sample()


def test_flow_in_float64_after_a_cast():
    prior = priors.FlowPrior(2).double()
    assert prior().log_prob(prior().sample()).dtype == torch.float64


def test_any_zuko_flow_is_a_prior():
    import zuko

    prior = priors.FlowPrior(2, flow=partial(zuko.flows.NSF, passes=2, bins=4))
    assert repr(prior) == "FlowPrior(NSF, latent_dim=2)"
    assert torch.isfinite(prior().log_prob(prior().sample((5,)))).all()


def test_flow_repr_does_not_change_the_generator():
    prior = priors.FlowPrior(2)
    with unchanged(prior):
        assert repr(prior) == "FlowPrior(NSF, latent_dim=2)"


def test_learned_flow_fits_two_modes(float64):
    """A spline prior learns a density that no Gaussian has: within 0.1 nat of its entropy."""
    truth = dist.MixtureSameFamily(
        dist.Categorical(torch.ones(2)),
        dist.Normal(torch.tensor([[-2.0], [2.0]]), 0.3).to_event(1),
    )
    z = truth.sample((500,))
    prior = priors.FlowPrior(1)
    optimizer = torch.optim.Adam(prior.parameters(), 5e-2)
    for _ in range(200):
        optimizer.zero_grad()
        (-prior().log_prob(z).mean()).backward()
        optimizer.step()
    fresh = truth.sample((5000,))
    gap = truth.log_prob(fresh) - prior().log_prob(fresh).detach()
    best_gaussian = dist.Normal(z.mean(), z.std()).log_prob(fresh).sum(-1)
    assert gap.mean() < 0.1
    assert (truth.log_prob(fresh) - best_gaussian).mean() > 0.5


def test_num_components_must_be_a_count():
    with pytest.raises(ConfigError, match=r"num_components = 0"):
        priors.GaussianMixture(2, num_components=0)


def test_a_vamp_prior_encodes_pseudo_inputs_with_their_covariates(tmp_path):
    vae, x, y = conditional(), bits(8), torch.arange(8) % 3
    prior = priors.VampPrior(vae.encoder, x[:4], pseudo_covariates=y[:4])
    model = pv.VAE(prior, vae.encoder, vae.decoder)
    z = torch.randn(5, 2)
    each = vae.encode(x[:4], y[:4])
    exact = each.expand([5, 4]).log_prob(z[:, None]).logsumexp(1) - math.log(4)
    torch.testing.assert_close(prior().log_prob(z), exact)
    other = priors.VampPrior(vae.encoder, x[:4], pseudo_covariates=(y[:4] + 1) % 3)
    assert not torch.allclose(other().log_prob(z), exact)
    pv.fit(model, x, y, epochs=1)
    again = pv.VAE(
        priors.VampPrior(vae.encoder, torch.eye(4), pseudo_covariates=torch.zeros(4).long()),
        vae.encoder,
        vae.decoder,
    )
    pv.load(pv.save(model, tmp_path / "m"), into=again)
    torch.testing.assert_close(again.prior().log_prob(z), model.prior().log_prob(z))
    with pytest.raises(ConfigError, match="there are 4 pseudo-inputs"):
        priors.VampPrior(vae.encoder, x[:4], pseudo_covariates=y[:3])
    with pytest.raises(ConfigError, match=r"is not Given covariates y, but .* are there"):
        priors.VampPrior(encoder(), torch.eye(3), pseudo_covariates=y[:3])
