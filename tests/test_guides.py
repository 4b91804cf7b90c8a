"""Guides: each trained and saved; FlowGuide's one pass; closed forms for the Gaussian ones."""

import copy
import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from contracts import FLOWS, GUIDES, all_flows
from helpers import binary, unchanged, unshrink, vae_of
from oracles import LinearGaussian, grid
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.optim import Adam
from torch import nn
from torch.distributions import constraints

import pyrovae as pv
from pyrovae import guides, priors
from pyrovae.densities import flows
from pyrovae.errors import ConfigError
from pyrovae.networks import mlp

REAL = [name for name, part in GUIDES.items() if part.space == "real"]
NEW = [guides.FullNormal, guides.LowRankNormal, guides.Laplace, guides.StudentT, guides.FlowGuide]


# ---- every guide


@pytest.mark.parametrize("name", REAL)
def test_a_vae_with_this_guide_trains_and_predicts(name):
    torch.manual_seed(0)
    vae = vae_of(guide=GUIDES[name].make(), hidden=8)
    x = binary()
    before = copy.deepcopy(vae.encoder[1].state_dict())
    history = pv.fit(vae, x, epochs=15, batch_size=16, learning_rate=1e-2)
    # from 3 log 2 = 2.1 nats of independent pixels towards log 2 of three equal ones
    assert history[-1].elbo > history[0].elbo + 0.1
    after = vae.encoder[1].state_dict()
    assert all((after[n] != before[n]).any() for n, _ in vae.encoder[1].named_parameters())
    for parallel in (False, True):
        draws = Predictive(vae.model, guide=vae.guide, num_samples=4, parallel=parallel)(x)
        assert draws["z"].squeeze().shape == (4, 64, 2)
    assert pv.elbo_terms(vae, x, num_samples=3).log_guide.shape == (3, 64)


@pytest.mark.parametrize("name", REAL)
def test_pyros_own_svi_takes_this_guide(name):
    vae = vae_of(guide=GUIDES[name].make(), hidden=8)
    svi = SVI(vae.model, vae.guide, Adam({"lr": 1e-2}), Trace_ELBO(num_particles=2))
    before = [p.clone() for p in vae.parameters()]
    assert math.isfinite(svi.step(binary()))
    assert all((p != b).any() for p, b in zip(vae.parameters(), before, strict=True))


@pytest.mark.parametrize("name", REAL)
def test_log_density_has_a_gradient_in_z(name):
    """∂ log q / ∂z at a leaf, against central differences."""
    torch.set_default_dtype(torch.float64)
    try:
        head = GUIDES[name].make()
        q = head(torch.randn(head.num_features))
        z = q.sample().requires_grad_()
        (gradient,) = torch.autograd.grad(q.log_prob(z), z)
        for i in range(2):
            step = 1e-6 * torch.eye(2)[i]
            with torch.no_grad():
                slope = (q.log_prob(z + step) - q.log_prob(z - step)) / 2e-6
            # second differences of order 1 / scale² ~ 10 times 1e-12, rounding 1e-15 / 1e-6
            assert gradient[i].item() == pytest.approx(slope.item(), rel=1e-5, abs=1e-6)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("make", NEW)
def test_vae_state_round_trip(make, tmp_path):
    first, second = vae_of(guide=make(2), hidden=8), vae_of(guide=make(2), hidden=8)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second.load_state_dict(torch.load(tmp_path / "state.pt"))
    x = binary(5)
    z = torch.randn(5, 2)
    assert torch.equal(first.encode(x).log_prob(z), second.encode(x).log_prob(z))


@pytest.mark.parametrize("size", [-1e6, 1e6])
@pytest.mark.parametrize("make", NEW)
def test_extreme_features_stay_finite_in_eight_dimensions(make, size):
    """Mixed signs too; float32, the density and its gradient."""
    head = make(8)
    unshrink(head)  # a flow that has moved away from its start
    signs = torch.ones(3, head.num_features)
    signs[1, ::2], signs[2, ::3] = -1, -1
    features = (size * signs).requires_grad_()
    q = head(features)
    z = q.rsample()
    assert torch.isfinite(z).all()
    log_prob = q.log_prob(z.detach())
    assert torch.isfinite(log_prob).all()
    log_prob.sum().backward()
    assert torch.isfinite(features.grad).all()


def test_invalid_settings_are_refused():
    for make, message in (
        (lambda: guides.LowRankNormal(2, rank=0), "rank = 0"),
        (lambda: guides.FlowGuide(2, num_context=0), "num_context = 0"),
        (lambda: guides.StudentT(2, df=2.0), "df = 2.0"),
        (lambda: guides.StudentT(2, df=math.inf), "df = inf"),
    ):
        with pytest.raises(ConfigError, match=message):
            make()


# ---- Gaussian ones


class ExactThrough(nn.Module):
    """x → the features at which a head is a LinearGaussian's exact posterior."""

    def __init__(self, truth, features_of):
        super().__init__()
        self.truth, self.features_of = truth, features_of

    def forward(self, x):
        exact = self.truth.posterior(x)
        return self.features_of(exact.loc, exact.covariance_matrix)


def full_features(loc, covariance):
    """The inverse of FullNormal's map: L = diag(σ) (I + A), A = 10 tanh(a / 10)."""
    tril = torch.linalg.cholesky(covariance)
    sigma = tril.diagonal(dim1=-2, dim2=-1)
    below = (tril / sigma[..., None])[..., 1, 0]
    raw = 10 * torch.atanh(below / 10)
    return torch.cat([loc, inverse_softplus(sigma), raw[..., None].expand(len(loc), 1)], -1)


def low_rank_features(loc, covariance):
    """D = 2, rank 1: σ_i² (1 + w_i²) = Σ_ii and σ_1 w_1 σ_2 w_2 = Σ_12, with w_1 = |w_2|."""
    a, b, c = covariance[..., 0, 0], covariance[..., 1, 1], covariance[..., 0, 1]
    rho = c / (a * b).sqrt()
    w = (rho.abs() / (1 - rho.abs())).sqrt()
    sigma = torch.stack([a, b], -1).sqrt() / (1 + w**2).sqrt()[..., None]
    columns = 10 * torch.atanh(torch.stack([w, w * rho.sign()], -1) / 10)
    return torch.cat([loc, inverse_softplus(sigma), columns], -1)


def inverse_softplus(sigma):
    return torch.log(torch.expm1(sigma - 1e-5))


@pytest.mark.parametrize(
    ("head", "features_of"),
    [
        (guides.FullNormal, full_features),
        (partial(guides.LowRankNormal, rank=1), low_rank_features),
    ],
    ids=["FullNormal", "LowRankNormal"],
)
def test_the_exact_posterior_is_within_the_family(head, features_of, float64):
    """With p(z|x) as guide, log w = log p(x) at every draw; σ × 0.8 is seen."""
    truth = LinearGaussian()
    x = truth.sample(7)
    encoder = nn.Sequential(ExactThrough(truth, features_of), head(2))
    log_w = pv.elbo_terms(truth.vae(encoder), x, num_samples=5).log_weights
    # Woodbury and triangular solves of 2 × 2 matrices in float64: a few 1e-14
    assert torch.allclose(log_w, truth.log_evidence(x).expand(5, 7), atol=1e-11)

    def too_narrow(loc, covariance):
        return features_of(loc, 0.64 * covariance)

    encoder = nn.Sequential(ExactThrough(truth, too_narrow), head(2))
    log_w = pv.elbo_terms(truth.vae(encoder), x, num_samples=5).log_weights
    assert (log_w - truth.log_evidence(x)).abs().max() > 0.05


def test_low_rank_covariance_is_its_formula(float64):
    head = guides.LowRankNormal(4, rank=2)
    features = torch.randn(3, head.num_features)
    q = head(features)
    sigma = nn.functional.softplus(features[:, 4:8]) + 1e-5
    w = 10 * torch.tanh(features[:, 8:].reshape(3, 2, 4).mT / 10)
    inner = torch.eye(4) + w @ w.mT
    assert torch.allclose(
        q.covariance_matrix, sigma[:, :, None] * inner * sigma[:, None], atol=1e-12
    )
    assert torch.equal(q.mean, features[:, :4])


def test_full_normal_correlations_reach_their_documented_end(float64):
    q = guides.FullNormal(2)(torch.tensor([0.0, 0.0, 0.0, 0.0, 1e6]))
    covariance = q.covariance_matrix
    correlation = covariance[0, 1] / (covariance[0, 0] * covariance[1, 1]).sqrt()
    assert correlation.item() == pytest.approx(10 / math.sqrt(101), abs=1e-12)


@pytest.mark.parametrize("size", [1.0, 3.0, 30.0, 1e6])
@pytest.mark.parametrize("dim", [2, 8, 32])
def test_full_normal_keeps_the_density_of_its_draws_in_float32(dim, size):
    """Mean of log q(z) at z ~ q against −entropy: what it lacks would be a gift to the ELBO."""
    torch.manual_seed(0)
    head = guides.FullNormal(dim)
    features = torch.randn(head.num_features)
    features[2 * dim :] *= size
    q = head(features)
    with torch.no_grad():
        z = q.sample((2000,))
        own, solved = q.log_prob(z), q.log_prob(z.clone())
    exact = -0.5 * dim * (1 + math.log(2 * math.pi)) - q.scale_tril.diagonal().log().sum()
    # log q(z) has the variance of ½ χ²_D
    standard_error = math.sqrt(dim / 2 / 2000)
    assert abs(own.mean() - exact) < 5 * standard_error
    if dim == 32 and size > 1:  # negative control: what torch's solves give
        assert not solved.mean() > exact - 1000


@pytest.mark.parametrize("size", [-1e6, 1e6])
def test_a_full_normal_of_many_latents_takes_extreme_data(size):
    q, p = guides.FullNormal(32), pv.likelihoods.Normal(3)
    encoder, network = mlp(3, q.num_features), mlp(32, p.num_features)
    vae = pv.VAE(priors.StandardNormal(32), nn.Sequential(encoder, q), nn.Sequential(network, p))
    loss = vae.loss(torch.full((2, 3), size))
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert all(torch.isfinite(t.grad).all() for t in vae.parameters())


def test_the_density_of_a_draw_equals_the_solved_one(float64):
    """Value and total derivative, with z = μ + L ε carrying its path; also after `expand`."""
    head = guides.FullNormal(3)
    features = torch.randn(5, head.num_features).requires_grad_()
    for q in (head(features), head(features).expand([2, 5])):
        z = q.rsample()
        own, solved = q.log_prob(z), q.log_prob(z + 0)
        assert torch.allclose(own, solved, atol=1e-10)
        a, b = (
            torch.autograd.grad(value.sum(), features, retain_graph=True)[0]
            for value in (own, solved)
        )
        assert torch.allclose(a, b, atol=1e-8)
    # without its path, the gradient at fixed z is meant
    q = head(features)
    (score,) = torch.autograd.grad(q.log_prob(q.sample()).sum(), features)
    assert (score[:, :3] != 0).all()


# ---- Laplace and Student-t


def test_laplace_kl_to_a_laplace_prior_is_analytic(float64):
    """KL = log(b₂/b₁) + |δ|/b₂ + (b₁/b₂) exp(−|δ|/b₁) − 1, summed over dimensions."""
    b2 = torch.tensor([2.0, 0.7])
    prior = priors.Fixed(lambda b: dist.Laplace(torch.zeros_like(b), b).to_event(1), b=b2)
    vae = vae_of(prior, guides.Laplace(2), hidden=8)
    x = binary(5).double()
    terms, q = vae.loss_terms(x), vae.encode(x).base_dist
    b1, delta = q.scale, q.loc.abs()
    exact = ((b2 / b1).log() + delta / b2 + b1 / b2 * (-delta / b1).exp() - 1).sum(-1)
    assert terms.is_kl_analytic
    assert torch.allclose(terms.kl, exact, atol=1e-10)
    assert not torch.allclose(terms.kl, exact - 2 * delta.sum(-1) / 2, atol=1e-3)


def test_student_t_df_starts_where_asked_and_learns():
    for df in (2.01, 5.0, 100.0):
        head = guides.StudentT(2, df=df, learn_df=True)
        assert head.df.item() == pytest.approx(df, rel=1e-5)
    q = head(torch.zeros(4, head.num_features))
    z = q.rsample()
    assert q.log_prob(z).sum().requires_grad
    z.sum().backward()
    assert head.raw_df.grad != 0


def test_student_t_variance_is_the_documented_one(float64):
    q = guides.StudentT(2, df=4)(torch.zeros(4))
    sigma = math.log(2) + 1e-5
    assert q.variance[0].item() == pytest.approx(2 * sigma**2, rel=1e-9)


# ---- FlowGuide


@all_flows
def test_flow_guide_density_is_its_jacobian(flow, float64):
    """log q(z) = log N(u) − log |det ∂z/∂u| with autograd's Jacobian of the whole map."""
    head = guides.FlowGuide(3, num_context=4, flow=flow)
    unshrink(head)
    q = head(torch.randn(head.num_features))
    u = torch.randn(3)
    z = q.transform(u)
    jacobian = torch.autograd.functional.jacobian(q.transform, u)
    exact = dist.Normal(0.0, 1.0).log_prob(u).sum() - torch.linalg.slogdet(jacobian).logabsdet
    # through the inverse of 4 float64 layers
    assert torch.allclose(q.log_prob(z), exact, atol=1e-9)
    assert abs((q.log_prob(z) - exact - 2 * torch.linalg.slogdet(jacobian).logabsdet).item()) > 1e-3


@all_flows
def test_the_drawn_points_density_equals_the_inverted_one(flow, float64):
    """Value and total derivative, with z = f(u) carrying its path."""
    torch.manual_seed(0)
    head = guides.FlowGuide(3, num_context=4, flow=flow)
    unshrink(head)
    features = torch.randn(5, head.num_features).requires_grad_()
    tensors = (features, *head.parameters())
    q = head(features)
    z = q.rsample()
    remembered, inverted = q.log_prob(z), q.log_prob(z + 0)
    assert torch.allclose(remembered, inverted, atol=1e-9)
    a = torch.autograd.grad(remembered.sum(), tensors, retain_graph=True, allow_unused=True)
    b = torch.autograd.grad(inverted.sum(), tensors, allow_unused=True)
    for first, second in zip(a, b, strict=True):
        if second is None:  # loc moves z and the density alike
            continue
        assert torch.allclose(
            torch.zeros_like(second) if first is None else first, second, atol=1e-7
        )


def test_a_point_drawn_without_its_path_gets_the_gradient_at_fixed_z(float64):
    """score = ∂ log q_φ(z) / ∂φ at z fixed: with loc, (z − μ) / σ² for the Gaussian start."""
    head = guides.FlowGuide(2, num_context=1, flow=nearly_identity)
    features = torch.zeros(1, head.num_features).requires_grad_()
    q = head(features)
    z = q.sample()
    (score,) = torch.autograd.grad(q.log_prob(z).sum(), features)
    sigma = math.log(2) + 1e-5
    assert torch.allclose(score[:, :2], z / sigma**2, atol=1e-6)


def nearly_identity(features, context):
    flow = flows.coupling(features, context)
    for parameter in flow.parameters():
        parameter.data *= 1e-9
    return flow


def test_without_gradients_the_density_has_none():
    head = guides.FlowGuide(2)
    q = head(torch.randn(5, head.num_features))
    z = q.rsample()
    with torch.no_grad():
        assert not q.log_prob(z).requires_grad
    assert torch.allclose(q.log_prob(z), q.log_prob(z.clone()), atol=1e-4)


def test_an_expanded_flow_forgets_and_keeps_its_density(float64):
    head = guides.FlowGuide(2)
    q = head(torch.randn(5, head.num_features))
    wide = q.expand([3, 5])
    z = wide.rsample()
    assert z.shape == (3, 5, 2)
    assert torch.allclose(wide.log_prob(z), q.log_prob(z), atol=1e-10)
    assert wide.expand([3, 5]).log_prob(z).shape == (3, 5)
    assert q.support is constraints.real_vector
    with pytest.raises(ValueError, match="event_shape"):
        q.log_prob(torch.zeros(5, 3))


@pytest.mark.parametrize("name", ["autoregressive", "spline"])
def test_training_never_inverts_an_autoregressive_guide(name, monkeypatch):
    """The inverse takes D passes; fit, elbo_terms and loss must not need it."""
    import zuko

    def refuse(*args):
        raise AssertionError("inverted")

    vae = vae_of(guide=guides.FlowGuide(2, flow=FLOWS[name]), hidden=8)
    monkeypatch.setattr(zuko.transforms.AutoregressiveTransform, "_inverse", refuse)
    x = binary(8)
    pv.fit(vae, x, epochs=1)
    vae.loss(x).sum().backward()
    pv.elbo_terms(vae, x, num_samples=3)
    with pyro.get_param_store().scope():
        SVI(vae.model, vae.guide, Adam({"lr": 1e-3}), Trace_ELBO(num_particles=3)).step(x)
    with pytest.raises(AssertionError, match="inverted"):
        vae.encode(x).log_prob(torch.zeros(8, 2))


def test_autoregressive_guide_is_coded_for_many_dimensions():
    """A training step at D = 40 is one pass: it must not take the 40 of an inverse."""
    head = guides.FlowGuide(40, flow=flows.autoregressive)
    calls = []
    for module in head.modules():
        if hasattr(module, "hyper"):
            module.hyper.register_forward_hook(lambda *_: calls.append(1))
    q = head(torch.randn(5, head.num_features))
    q.log_prob(q.rsample()).sum().backward()
    assert len(calls) == 3  # one a layer


@all_flows
def test_flow_guide_starts_near_the_diagonal_normal(flow):
    torch.manual_seed(0)
    head = guides.FlowGuide(3, flow=flow)
    features = torch.randn(5, head.num_features)
    z = guides.DiagonalNormal(3)(features[:, :6]).sample((200,))
    difference = head(features).log_prob(z) - guides.DiagonalNormal(3)(features[:, :6]).log_prob(z)
    # last layers shrunk by 100: log-densities move by hundredths of a nat
    assert difference.abs().mean() < 0.05


def test_spline_guide_integrates_to_one(float64):
    """On a coarser grid than the contract's: a spline needs (points, 2, bins) numbers."""
    head = guides.FlowGuide(2, flow=partial(flows.spline, num_transforms=2, hidden=(8,)))
    unshrink(head)
    z, log_volume = grid(6.0, 301, 2)
    with torch.no_grad():
        log_q = head(torch.zeros(head.num_features)).log_prob(z)
    total = (log_q + log_volume).logsumexp(0).exp().item()
    # kinks at knots: error of order h² = 0.002 times a small curvature
    assert total == pytest.approx(1.0, abs=1e-3)


def test_flow_guide_repr_is_one_line_and_draws_nothing():
    head = guides.FlowGuide(2, num_context=8, flow=flows.autoregressive)
    with unchanged(head):
        assert repr(head) == "FlowGuide(MAF, latent_dim=2, num_context=8)"
