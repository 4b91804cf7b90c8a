"""Every method on every kind of program: every program that SVI trains can be evaluated."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import NOISE, PROGRAMS, Chain, Nested, Panel, data
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import nn

import pyrovae as pv
from pyrovae.core.draws import diagnosing
from pyrovae.core.joint import ProgramJoint
from pyrovae.core.repeated import CALLS_BEFORE_TRACING
from pyrovae.core.terms import draw_traces, terms_of
from pyrovae.data import Batch
from pyrovae.errors import ConfigError
from pyrovae.handlers import own_store

every_program = pytest.mark.parametrize("name", PROGRAMS)
LOCAL = [name for name, row in PROGRAMS.items() if row.covariance is not None]


def made(name):
    torch.manual_seed(0)
    return PROGRAMS[name].make()


@every_program
def test_loss_and_gradients_are_those_of_plain_svi(name, float64):
    """On the same draws, to 1e-10: SVI with either objective takes the same steps."""
    program, x = made(name), data()
    found = []
    with own_store():
        program.guide(x)  # AutoGuides make their parameters at the first call
        for objective in (Trace_ELBO(), pv.objectives.TraceELBO()):
            program.zero_grad()
            torch.manual_seed(5)
            loss = objective.loss_and_grads(program.model, program.guide, x)
            grads = [p.grad for p in program.parameters() if p.grad is not None]
            found.append([torch.as_tensor(float(loss)), *grads])
    assert len(found[0]) == len(found[1])
    for a, b in zip(*found, strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-12)


@every_program
def test_terms_are_the_log_densities_at_the_draws(name, float64):
    """S draws at once: each draw's terms are those of the same latents in a separate trace."""
    program, x = made(name), data(4)
    terms = pv.elbo_terms(program, x, num_samples=5)
    assert terms.log_weights.shape == (5, 4)
    assert terms.global_log_prior.shape == terms.total_elbo.shape == (5,)
    for draw in range(5):
        values = {n: v[draw] for n, v in terms.latents.items()}
        if isinstance(program, Nested):
            values["z"] = values["z"].T  # (N, T) to the plates' order (T, N)
        with own_store(), torch.no_grad():
            conditioned = pyro.condition(program.model, data=values)
            trace = pyro.poutine.trace(conditioned).get_trace(x)
            trace.compute_log_prob()
        sums = {n: s["log_prob"].sum() for n, s in trace.nodes.items() if "log_prob" in s}
        log_prior = sum(v for n, v in sums.items() if n not in ("x", "w"))
        assert terms.log_prior[draw].sum() == pytest.approx(float(log_prior), rel=1e-10)
        assert terms.log_likelihood[draw].sum() == pytest.approx(float(sums["x"]), rel=1e-10)
        global_ = float(sums.get("w", torch.zeros(())))
        assert float(terms.global_log_prior[draw]) == pytest.approx(global_, rel=1e-10)


@every_program
def test_fit_trains_saves_and_resumes(name, tmp_path):
    x = data()
    settings = {"epochs": 4, "batch_size": 8, "seed": 0, "progress": False}
    whole = pv.fit(made(name), x, **settings)
    pv.fit(made(name), x, run_dir=tmp_path, **settings | {"epochs": 2})
    program = made(name)
    resumed = pv.fit(program, x, run_dir=tmp_path, resume=True, **settings)
    assert resumed["elbo"] == whole["elbo"]
    pv.save(program, tmp_path / "model.safetensors")
    again = made(name)
    with own_store():
        again.guide(x)
    pv.load(tmp_path / "model.safetensors", into=again)
    assert torch.equal(*(pv.elbo_terms(p, x).log_weights for p in (program, again)))


@pytest.mark.parametrize("name", LOCAL)
@pytest.mark.parametrize("method", ["iwae", "ais"])
def test_evidence_is_the_closed_form(name, method, float64):
    """log N(x; 0, C), within five standard errors."""
    program, x = made(name), data(6)
    options = {"num_samples": 4000} if method == "iwae" else {"num_temperatures": 80}
    found = pv.log_evidence(program, x, method=method, **options)
    exact = dist.MultivariateNormal(torch.zeros(3), PROGRAMS[name].covariance).log_prob(x)
    assert ((found.log_px - exact).abs() < 5 * found.std_error + 1e-3).all()
    assert found.std_error.max() < 0.2


@pytest.mark.parametrize("name", LOCAL)
def test_repeated_terms_are_those_of_the_handlers(name, float64):
    """The same numbers and gradients from the graph as from the first calls."""
    program, x = made(name), data(4)
    with diagnosing(program, 0):
        joint = ProgramJoint(program, Batch(x))
        z = {n: v.requires_grad_() for n, v in joint.draw_prior(3).items()}

        def terms_and_gradients():
            with torch.enable_grad():
                found = joint.terms(z)
                return [*found, *torch.autograd.grad(sum(t.sum() for t in found), [*z.values()])]

        first = terms_and_gradients()
        for _ in range(CALLS_BEFORE_TRACING):
            last = terms_and_gradients()
        assert len(joint.terms.graphs) == 1
        for one, other in zip(first, last, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
        z = {n: 2 * v for n, v in z.items()}  # other latents, other numbers
        eager = joint._terms_of_model(z)
        assert not torch.allclose(eager[1], first[1])
        for one, other in zip(joint.terms(z), eager, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


class Branching(Chain):
    """Python decides by the value of a latent, or counts calls: no graph can repeat that."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.num_calls = kind, 0

    def model(self, x, y=None, mask=None):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(3), 1.0).to_event(1))
            self.num_calls += self.kind == "counts"
            sign = 1.0 if self.kind == "counts" or z.sum() > 0 else -1.0
            pyro.sample("x", dist.Normal(sign * z, NOISE).to_event(1), obs=x)

    def guide(self, x, y=None, mask=None):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(self.encoder(x), 1.0).to_event(1))


@pytest.mark.parametrize("kind", ["branches", "counts", "hooks"])
def test_programs_that_a_graph_cannot_repeat_keep_their_handlers(kind):
    program, x = Branching(kind), data(4)
    if kind == "hooks":
        program.encoder.register_forward_hook(lambda *_: None)
    with diagnosing(program, 0):
        joint = ProgramJoint(program, Batch(x))
        for _ in range(CALLS_BEFORE_TRACING + 2):
            z = joint.draw_prior(2)
            found = joint.terms(z)
            for one, other in zip(found, joint._terms_of_model(z), strict=True):
                assert torch.equal(one, other)
    assert joint.terms.is_refused


def test_evidence_with_globals_is_its_mean_over_them(float64):
    """E_q(w)[log N(x; w, (1 + σ²) I)] in closed form; its error is the spread over w."""
    program, x = made("global in a plate"), data(5)
    found = pv.log_evidence(program, x, num_samples=1000, num_globals=60)
    loc, variance = program.loc.detach(), 1 + NOISE**2
    exact = dist.Normal(loc, math.sqrt(variance)).to_event(1).log_prob(x)
    exact = exact - 3 * 0.4**2 / (2 * variance)  # Var_q(w_j) = 0.4²
    assert ((found.log_px - exact).abs() < 5 * found.std_error).all()
    assert (found.std_error > 0.01).all()
    ten = pv.log_evidence(program, x, num_samples=1000)
    assert (ten.std_error.mean() > 1.5 * found.std_error.mean()).all()


@pytest.mark.parametrize("method", ["sir", "hmc"])
def test_posterior_with_globals_mixes_over_them(method, float64):
    """z|x, w ~ N((x − w)/(1 + σ²), σ²/(1 + σ²)), mixed over w ~ q(w)."""
    program, x = made("global in a plate"), data(3)
    num_globals, num_samples = {"sir": (30, 900), "hmc": (5, 100)}[method]
    options = {"sir": {"num_proposals": 60_000}, "hmc": {"num_warmup": 40}}[method]
    how = {"num_samples": num_samples, "num_globals": num_globals} | options
    draws = getattr(pv.posterior, method)(program, x, **how).draws
    assert draws.shape[1:] == (num_samples, 3, 3)
    shrink = 1 / (1 + NOISE**2)
    mean = (x - program.loc.detach()) * shrink
    spread = math.sqrt((0.4 * shrink) ** 2 / num_globals + NOISE**2 * shrink / 300)
    assert ((draws.flatten(0, 1).mean(0) - mean).abs() < 5 * spread).all()


@every_program
def test_reliability_of_every_program(name):
    found = pv.diagnostics.pareto_k(made(name), data(4))
    assert found.pareto_k.shape == (4,)
    assert not found.pareto_k.isnan().any()


@pytest.mark.parametrize("name", LOCAL)
@pytest.mark.parametrize("method", ["sir", "hmc"])
def test_posterior_draws_have_the_exact_mean_of_the_signal(name, method, float64):
    """E[x − noise | x] = (C − σ²I) C⁻¹ x, within six standard errors of the draws."""
    program, x = made(name), data(3)
    options = {"sir": {"num_proposals": 20_000}, "hmc": {"num_samples": 150, "num_warmup": 60}}[
        method
    ]
    found = getattr(pv.posterior, method)(program, x, **options)
    draws = found.draws.flatten(0, 1)  # (S, N, D)
    if name == "counts dimensions from the left":
        draws = torch.cat([draws, draws.sum(-1, keepdim=True)], -1)
    covariance = PROGRAMS[name].covariance
    mean = x @ torch.linalg.solve(covariance, covariance - 0.36 * torch.eye(3))
    error = draws.std(0) / math.sqrt(100)  # an effective sample size that both exceed
    assert ((draws.mean(0) - mean).abs() < 6 * error).all()


@every_program
def test_every_diagnostic_runs(name):
    """Diagnostics, checks and ArviZ of every program: right shapes, finite numbers."""
    program, x = made(name), data()
    pv.fit(program, x, epochs=1, batch_size=10, seed=0, progress=False)
    decomposed = pv.diagnostics.decompose_elbo(program, x)
    assert decomposed.elbo.isfinite().all()
    assert pv.diagnostics.active_units(program, x).variance.isfinite().all()
    assert pv.diagnostics.prior_check(program, x, statistic=torch.std, num_samples=20)
    assert pv.diagnostics.posterior_check(program, x, statistic=torch.std, num_samples=20)
    tree = pv.to_arviz(program, x, num_samples=7)
    for site, value in pv.elbo_terms(program, x, num_samples=7).latents.items():
        assert tree["posterior"][site].shape == (1, *value.shape)
    assert tree["posterior_predictive"]["x"].shape == (1, 7, *x.shape)


class Point(nn.Module):
    """An encoder whose density is a point, whole or in its first dimension."""

    def __init__(self, kind):
        super().__init__()
        self.net, self.kind = nn.Linear(6, 2), kind

    def forward(self, x):
        z = self.net(x)
        if self.kind == "whole":
            return dist.Delta(z).to_event(1)
        if self.kind == "transformed":
            return dist.TransformedDistribution(dist.Delta(z), [dist.transforms.ExpTransform()])
        return HalfPoint(z)


class HalfPoint(dist.TorchDistribution):
    """A point in dimension 0, a normal in dimension 1."""

    support = dist.constraints.real_vector
    arg_constraints = {}  # noqa: RUF012
    has_rsample = True

    def __init__(self, loc):
        super().__init__(loc.shape[:-1], loc.shape[-1:], validate_args=False)
        self.loc = loc

    def rsample(self, sample_shape=()):
        z = self.loc.expand(*sample_shape, *self.loc.shape)
        return torch.stack([z[..., 0], z[..., 1] + torch.randn_like(z[..., 1])], -1)

    def log_prob(self, value):
        return dist.Normal(self.loc[..., 1], 1.0).log_prob(value[..., 1])


@pytest.mark.parametrize(
    ("kind", "match"),
    [("whole", "is a point, but the prior"), ("half", "is a point in dimension 0, but")],
)
@pytest.mark.parametrize("use", [pv.fit, pv.elbo_terms, pv.log_evidence])
def test_a_guide_that_is_a_point_is_refused(kind, match, use):
    """KL(q ‖ p) is infinite: a finite number with a perfect k̂ would be wrong."""
    decoder = nn.Sequential(pv.networks.mlp(2, 6), pv.likelihoods.Bernoulli(6))
    vae = pv.VAE(pv.priors.StandardNormal(2), Point(kind), decoder)
    x = (torch.rand(20, 6) > 0.5).float()
    with pytest.raises(ConfigError, match=match):
        use(vae, x, **{"epochs": 1} if use is pv.fit else {})


def test_a_narrow_guide_is_not_a_point():
    """A scale below the rounding of the mean gives equal draws, but it is a density."""

    class Narrow(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(6, 2)

        def forward(self, x):
            return dist.Normal(100 + self.net(x), 1e-9).to_event(1)

    decoder = nn.Sequential(pv.networks.mlp(2, 6), pv.likelihoods.Bernoulli(6))
    vae = pv.VAE(pv.priors.StandardNormal(2), Narrow(), decoder)
    assert pv.elbo_terms(vae, torch.ones(3, 6)).log_weights.isfinite().all()


def test_particles_are_left_of_all_plates():
    program, x = Panel(), data(4)
    with own_store():
        traces = draw_traces(program.model, program.guide, x, num_samples=2)
    assert traces.guide.nodes["z"]["value"].shape == (2, 3, 4)
    assert terms_of(traces, 4).latents["z"].shape == (2, 4, 3)


def test_a_program_that_asserts_the_shape_of_its_latents():
    class Strict(PROGRAMS["counts dimensions from the left"].make):
        def model(self, x, y=None, mask=None):
            with pyro.poutine.trace() as tracer:
                super().model(x)
            assert tracer.trace.nodes["z"]["value"].shape == (len(x), 2)

    found = pv.log_evidence(Strict(), data(3), num_samples=50)
    assert found.log_px.isfinite().all()


def test_an_autoguide_of_globals_does_not_excuse_a_point_in_the_plate():
    class Pointed(PROGRAMS["AutoNormal"].make().__class__):
        def guide(self, x, y=None, mask=None):
            self.auto(x)
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Delta(self.encoder(x)).to_event(1))

    with pytest.raises(ConfigError, match="is a point, but the prior"):
        pv.elbo_terms(Pointed(AutoNormal), data())
