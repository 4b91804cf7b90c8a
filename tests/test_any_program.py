"""Every method on every kind of program: every program that SVI trains can be evaluated."""

import itertools
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.sparse
import torch
from programs import (
    CENTERS,
    MOVES,
    NOISE,
    PROGRAMS,
    WEIGHTS,
    Affine,
    Nested,
    Panel,
    Switching,
    data,
    multimodal,
    numbers,
)
from pyro.infer import TraceEnum_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import nn
from torch.utils.data import DataLoader, Dataset

import pyrovae as pv
from pyrovae.core.draws import diagnosing
from pyrovae.core.joint import ProgramJoint
from pyrovae.core.repeated import CALLS_BEFORE_TRACING
from pyrovae.core.summed import without_discrete
from pyrovae.core.terms import draw_traces, terms_of
from pyrovae.data import Batch, open_source
from pyrovae.errors import ConfigError, DataError
from pyrovae.handlers import own_store

every_program = pytest.mark.parametrize("name", PROGRAMS)
LOCAL = [name for name, row in PROGRAMS.items() if row.covariance is not None]


def made(name):
    torch.manual_seed(0)
    return PROGRAMS[name].make()


def log_classes(z):
    """log p(c, z) of the program with a class that is summed out, (…, 3)."""
    p_z = dist.Normal(CENTERS.to(z), 1.0).to_event(1)
    return WEIGHTS.to(z).log() + p_z.log_prob(z[..., None, :])


@every_program
def test_loss_and_gradients_are_those_of_plain_svi(name, float64):
    """On the same draws, to 1e-10: SVI with either objective takes the same steps."""
    program, x = made(name), data(name)
    found = []
    with own_store():
        program.guide(x)  # AutoGuides make their parameters at the first call
        for objective in (PROGRAMS[name].elbo(), pv.objectives.TraceELBO()):
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
    program, x = made(name), data(name, 4)
    terms = pv.elbo_terms(program, x, num_samples=5)
    assert terms.log_weights.shape == (5, 4)
    assert terms.global_log_prior.shape == terms.total_elbo.shape == (5,)
    for draw in range(5):
        values = {n: v[draw] for n, v in terms.latents.items()}
        if isinstance(program, Nested):
            values["z"] = values["z"].T  # (N, T) to the plates' order (T, N)
        if name == "MixtureVAE":
            joint = log_classes(values["z"])
            likelihood = dist.Normal(values["z"], NOISE).log_prob(x).sum(-1)
            assert torch.allclose(terms.log_prior[draw], joint.logsumexp(-1))
            assert torch.allclose(terms.log_likelihood[draw], likelihood)
            continue
        with own_store(), torch.no_grad():
            conditioned = pyro.condition(program.model, data=values)
            trace = pyro.poutine.trace(conditioned).get_trace(x)
            trace.compute_log_prob()
        sums = {n: s["log_prob"].sum() for n, s in trace.nodes.items() if "log_prob" in s}
        observed = set(terms.log_likelihoods)
        log_prior = sum(v for n, v in sums.items() if n not in {"w", *observed})
        assert terms.log_prior[draw].sum() == pytest.approx(float(log_prior), rel=1e-10)
        for site, log_prob in terms.log_likelihoods.items():
            assert log_prob[draw].sum() == pytest.approx(float(sums[site]), rel=1e-10)
        assert torch.allclose(terms.log_likelihood, sum(terms.log_likelihoods.values()))
        global_ = float(sums.get("w", torch.zeros(())))
        assert float(terms.global_log_prior[draw]) == pytest.approx(global_, rel=1e-10)


@every_program
def test_fit_trains_saves_and_resumes(name, tmp_path):
    x = data(name)
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


def test_a_markov_chain_is_summed_out(float64):
    """log p(x) of a switching sign: a Gaussian for each of the 8 paths."""
    program, x = Switching(), numbers(5)
    signs, log_path = [], []
    for path in itertools.product((0, 1), repeat=3):
        moves = itertools.pairwise((0, *path))
        log_path.append(sum(MOVES.double()[a, b].log() for a, b in moves))
        signs.append(1.0 - 2.0 * torch.tensor(path))
    signs = torch.stack(signs)
    covariance = signs[:, :, None] * signs[:, None] + NOISE**2 * torch.eye(3)
    p_x = dist.MultivariateNormal(torch.zeros(3), covariance)
    exact = (torch.stack(log_path) + p_x.log_prob(x[:, None])).logsumexp(-1)
    found = pv.log_evidence(program, {f"x_{t}": x[:, t] for t in range(3)}, num_samples=4000)
    assert ((found.log_px - exact).abs() < 5 * found.std_error + 1e-3).all()
    assert found.std_error.max() < 0.1


def test_a_class_is_drawn_from_its_posterior(float64):
    """ArviZ holds c ~ p(c|z), and replicates come from that class."""
    program, x = made("MixtureVAE"), numbers(4)
    tree = pv.to_arviz(program, x, num_samples=2000)
    z, c = (torch.as_tensor(tree.posterior[site].values[0]) for site in ("z", "c"))
    exact = log_classes(z)
    share = torch.nn.functional.one_hot(c, 3).double().mean(0)
    error = 5 * 0.5 / math.sqrt(2000)
    assert ((share - exact.softmax(-1).mean(0)).abs() < error).all()
    prior = torch.as_tensor(tree.prior["c"].values).flatten()
    assert ((torch.bincount(prior) / len(prior) - WEIGHTS).abs() < error).all()


def test_a_missing_site_is_left_out(float64):
    """log p(x) with b missing in some data is that of a alone there."""
    program, x = made("MultimodalVAE"), data("MultimodalVAE", 8)
    mask = {"b": torch.arange(8) % 2 == 0}
    x["b"] = torch.where(mask["b"][:, None], x["b"], torch.nan)
    found = pv.log_evidence(program, x, mask=mask, num_samples=4000)
    of_both = PROGRAMS["MultimodalVAE"].log_density(numbers(8))
    of_a = dist.Normal(0.0, math.sqrt(1 + NOISE**2)).log_prob(x["a"]).sum(-1)
    exact = torch.where(mask["b"], of_both, of_a)
    assert ((found.log_px - exact).abs() < 5 * found.std_error + 1e-3).all()
    terms = pv.elbo_terms(program, x, mask=mask)
    assert (terms.log_likelihoods["b"][0, ~mask["b"]] == 0).all()
    observed = pv.to_arviz(program, x, mask=mask, num_samples=3).observed_data["b"]
    assert (observed.isnull().values[:, 0] == ~mask["b"].numpy()).all()
    alone = pv.elbo_terms(program, x, mask={"b": torch.zeros(8, dtype=torch.bool)})
    assert (alone.log_likelihoods["b"] == 0).all()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda x: x | {"c": x["b"]}, "has no observed site 'c'"),
        (lambda x: x | {"b": x["b"][:3]}, r"different numbers of rows, \{'a': 20, 'b': 3\}"),
        (lambda x: x | {"b": x["b"] * torch.nan}, r"in x\['b'\]: x\[0, 0\] = nan"),
    ],
)
def test_sites_that_do_not_fit_are_refused(change, match):
    with pytest.raises((DataError, ConfigError), match=match):
        pv.fit(made("MultimodalVAE"), change(data("MultimodalVAE")), epochs=1)


@pytest.mark.parametrize(
    ("mask", "match"),
    [
        ({"c": torch.ones(20)}, "mask has the keys 'c'"),
        (torch.ones(20) > 0, "mask is not a dict"),
        ({"b": torch.ones(3)}, r"in x\['b'\]: mask has shape \(3,\)"),
        ({"a": torch.zeros(20), "b": torch.zeros(20)}, "false everywhere"),
    ],
)
def test_masks_of_sites_that_do_not_fit_are_refused(mask, match):
    with pytest.raises(DataError, match=match):
        pv.fit(made("MultimodalVAE"), data("MultimodalVAE"), mask=mask, epochs=1)


def test_a_vae_takes_one_array():
    with pytest.raises(DataError, match="a VAE observes one array"):
        pv.fit(pv.build((3,), latent_dim=1), data("MultimodalVAE"))


def test_a_dict_of_any_containers(float64, tmp_path):
    """Arrays, memory-mapped or sparse, and Datasets of dicts: the same evidence."""
    program, x = made("MultimodalVAE"), data("MultimodalVAE")
    rows = [{name: column[i] for name, column in x.items()} for i in range(20)]
    others = [
        {"a": x["a"].numpy(), "b": x["b"].tolist()},
        {"a": scipy.sparse.csr_array(x["a"].numpy()), "b": x["b"]},
        _Rows(rows),
        DataLoader(_Rows(rows), batch_size=7),
    ]
    expected = pv.log_evidence(program, x, num_samples=20)
    path = tmp_path / "seen.npy"
    np.save(path, np.arange(20) % 3 > 0)
    masks = [{"b": mask} for mask in (np.load(path), np.load(path, mmap_mode="r"))]
    of_masks = [pv.log_evidence(program, x, mask=mask, num_samples=20).log_px for mask in masks]
    assert torch.equal(*of_masks)
    assert not torch.equal(of_masks[0], expected.log_px)
    for other in others:
        assert torch.equal(pv.log_evidence(program, other, num_samples=20).log_px, expected.log_px)


class _Rows(Dataset):
    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]


@pytest.mark.parametrize("name", LOCAL)
@pytest.mark.parametrize("method", ["iwae", "ais", "auto"])
def test_evidence_is_the_closed_form(name, method, float64):
    """log N(x; 0, C), or of the mixture, within five standard errors."""
    program, x = made(name), data(name, 6)
    options = {
        "iwae": {"num_samples": 4000},
        "ais": {"num_samples": 64, "num_temperatures": 40, "num_leapfrog": 3},
        "auto": {"num_samples": 4000},
    }
    found = pv.log_evidence(program, x, method=method, **options[method])
    exact = PROGRAMS[name].log_density(numbers(6))
    assert ((found.log_px - exact).abs() < 5 * found.std_error + 1e-3).all()
    assert found.std_error.max() < 0.2


@pytest.mark.parametrize("name", LOCAL)
def test_repeated_terms_are_those_of_the_handlers(name, float64):
    """The same numbers and gradients from the graph as from the first calls."""
    program, batch = made(name), open_source(data(name, 4)).whole()
    with diagnosing(program, 0):
        joint = ProgramJoint(without_discrete(program, batch), batch)
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
        # other latents, other numbers, not contiguous
        z = {n: (2 * v).transpose(0, 1).contiguous().transpose(0, 1) for n, v in z.items()}
        eager = joint._terms_of_model(z)
        assert not torch.allclose(eager[1], first[1])
        for one, other in zip(joint.terms(z), eager, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


class Branching(nn.Module):
    """Python decides by the value of a latent, or counts calls: no graph can repeat that."""

    def __init__(self, kind):
        super().__init__()
        self.encoder = nn.Linear(3, 3)
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
    program, x = Branching(kind), numbers(4)
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
    program, x = made("global in a plate"), numbers(5)
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
    program, x = made("global in a plate"), numbers(3)
    num_globals, num_samples = {"sir": (30, 900), "hmc": (5, 50)}[method]
    options = {"sir": {"num_proposals": 60_000}, "hmc": {"num_warmup": 15, "num_chains": 8}}[method]
    how = {"num_samples": num_samples, "num_globals": num_globals} | options
    draws = getattr(pv.posterior, method)(program, x, **how).draws
    assert draws.shape[1:] == (num_samples, 3, 3)
    shrink = 1 / (1 + NOISE**2)
    mean = (x - program.loc.detach()) * shrink
    spread = math.sqrt((0.4 * shrink) ** 2 / num_globals + NOISE**2 * shrink / 300)
    assert ((draws.flatten(0, 1).mean(0) - mean).abs() < 5 * spread).all()


@pytest.mark.parametrize("name", LOCAL)
@pytest.mark.parametrize("method", ["sir", "hmc"])
def test_posterior_draws_have_the_exact_mean_of_the_signal(name, method, float64):
    """E[x − noise | x] in closed form, within six standard errors of the draws."""
    program, x, row = made(name), data(name, 3), PROGRAMS[name]
    options = {
        "sir": {"num_proposals": 20_000},
        "hmc": {"num_samples": 40, "num_warmup": 30, "num_chains": 16, "num_leapfrog": 3},
    }
    found = getattr(pv.posterior, method)(program, x, **options[method])
    assert found.ess.min() > 100
    draws = row.signal(found.draws.flatten(0, 1))  # (S, N, 3)
    error = draws.std(0) / math.sqrt(100)  # the least effective sample size
    assert ((draws.mean(0) - row.posterior_signal(numbers(3))).abs() < 6 * error).all()


class Wide(pv.programs.ProductOfExperts):
    """A guide of one and a half times the width of the product."""

    def forward(self, *args):
        q = super().forward(*args).base_dist
        return dist.Normal(q.loc, 1.5 * q.scale).to_event(1)


@pytest.mark.parametrize(
    ("name", "site"),
    [("counts dimensions from the left", "x"), ("data in a nested plate", "x"), ("wide", "a")],
)
def test_each_feature_given_the_others(name, site, float64):
    """log p(x_j|x_−j) of the joint normal, within 0.1 nats on average where k̂ is below 0.5."""
    if name == "wide":  # than the posterior without a feature
        name, program = "MultimodalVAE", multimodal(Wide())
    else:
        program = made(name)
    covariance = PROGRAMS[name].covariance
    found = pv.diagnostics.feature_check(program, data(name, 12), site=site, num_samples=4000)
    rows = numbers(12)
    for j in range(found.pit.shape[1]):
        rest = [k for k in range(3) if k != j]
        weight = torch.linalg.solve(covariance[rest][:, rest], covariance[rest, j])
        scale = (covariance[j, j] - covariance[rest, j] @ weight).sqrt()
        exact = dist.Normal(rows[:, rest] @ weight, scale)
        reliable = found.pareto_k[:, j] < 0.5
        log_error = found.log_conditional[:, j] - exact.log_prob(rows[:, j])
        assert reliable.sum() >= 3
        assert log_error[reliable].abs().mean() < 0.1
        assert (found.pit[:, j] - exact.cdf(rows[:, j]))[reliable].abs().mean() < 0.03


@pytest.mark.parametrize("name", ["LadderVAE", "DeepMarkovModel", "MultimodalVAE"])
def test_refinement_closes_the_gap_of_the_encoder(name, float64):
    """The bound rises for every datum, and the gaps add up to log p(x) of the joint normal."""
    program, x = made(name), data(name, 6)
    exact = PROGRAMS[name].log_density(numbers(6))
    found = pv.posterior.refine(program, x, num_steps=150)
    assert (found.elbo >= found.start_elbo).all()
    assert (found.elbo < exact + 0.2).all()  # 100 draws
    gaps = pv.diagnostics.inference_gaps(program, x, num_samples=2000, num_steps=150)
    assert gaps.mean_amortization.value > 0.1
    error = 5 * gaps.approximation_std_error + 0.01
    assert ((gaps.log_px - exact).abs() < error).all()
    assert torch.allclose(gaps.approximation + gaps.amortization, gaps.log_px - gaps.elbo)


def test_refining_a_mean_field_guide_finds_the_best_one(float64):
    """Of z|x ~ N(m, P⁻¹), the best diagonal normal has mean m and precisions diag P."""
    program, x = made("nested plate, at once"), numbers(4)
    q = pv.posterior.refine(program, x, num_steps=300, num_samples=64).guide
    with own_store(), pyro.poutine.trace() as tracer:
        q.guide(x)
    site = tracer.trace.nodes["z"]["fn"]
    shrink = 1 / (1 + NOISE**2)
    assert torch.allclose(site.mean.T, shrink * x, atol=0.05)
    assert torch.allclose(site.stddev, torch.tensor(NOISE * shrink**0.5).double(), atol=0.05)


@pytest.mark.parametrize("q", [pv.guides.LogisticNormal(2)])
def test_a_transformed_guide_is_refined_before_its_map(q):
    """A logistic normal: its bound rises, and it stays on the simplex."""
    prior = pv.priors.Fixed(dist.LogisticNormal, loc=torch.zeros(1), scale=torch.ones(1))
    encoder = nn.Sequential(nn.Linear(2, q.num_features), q)
    vae = pv.VAE(prior, encoder, Affine(torch.tensor([[2.0, 0.0], [0.0, 1.0]])))
    found = pv.posterior.refine(vae, torch.tensor([[1.5, 0.2], [0.1, 0.9]]), num_steps=80)
    assert (found.elbo > found.start_elbo).all()
    assert torch.allclose(found.guide.sample().sum(-1), torch.ones(2))


@every_program
def test_arviz_holds_every_site(name):
    """Posterior, predictive, data and log-likelihood of each site, in its shape."""
    program, x = made(name), data(name)
    tree = pv.to_arviz(program, x, num_samples=7)
    for site, value in pv.elbo_terms(program, x, num_samples=7).latents.items():
        assert tree["posterior"][site].shape == (1, *value.shape)
    for site, value in (x if isinstance(x, dict) else {"x": x}).items():
        assert tree["posterior_predictive"][site].shape == (1, 7, *value.shape)
        assert tree["observed_data"][site].shape == value.shape
        assert tree["log_likelihood"][site].shape == (1, 7, len(value))


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
    program, x = Panel(), numbers(4)
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

    found = pv.log_evidence(Strict(), numbers(3), num_samples=50)
    assert found.log_px.isfinite().all()


def test_an_autoguide_of_globals_does_not_excuse_a_point_in_the_plate():
    class Pointed(PROGRAMS["AutoNormal"].make().__class__):
        def guide(self, x, y=None, mask=None):
            self.auto(x)
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Delta(self.encoder(x)).to_event(1))

    with pytest.raises(ConfigError, match="is a point, but the prior"):
        pv.elbo_terms(Pointed(AutoNormal), numbers())


@pytest.mark.parametrize("objective", [pv.objectives.IWAE(3), pv.objectives.EnumELBO(3)])
def test_particles_are_refused_where_they_would_change_the_numbers(objective):
    """z[:, 0] would be the first draw."""
    program, x = made("counts dimensions from the left"), numbers()
    before = program.encoder.weight.clone()
    with pytest.raises(ConfigError, match=r"num_particles=3[\s\S]*fails, or gives other numbers"):
        pv.fit(program, x, objective=objective, epochs=1)
    assert torch.equal(program.encoder.weight, before)
    if isinstance(objective, pv.objectives.IWAE):
        pv.fit(made("LadderVAE"), x, objective=objective, epochs=1)


def test_a_sum_over_classes_is_that_of_enum_elbo(float64):
    program, x = made("MixtureVAE"), numbers()
    losses = []
    with own_store():
        for objective in (pv.objectives.EnumELBO(), pv.objectives.TraceELBO()):
            torch.manual_seed(5)
            losses.append(float(objective.loss(program.model, program.guide, x)))
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)


@pytest.mark.parametrize("num_classes", [1, 3])
@pytest.mark.parametrize("num_data", [1, 5])
def test_one_class_or_one_datum(num_classes, num_data, float64):
    """Packed tensors have no dimensions of size 1; the sum over one class is its density."""
    torch.manual_seed(0)
    encoder, decoder = Affine(torch.eye(3)), Affine(torch.eye(3))
    classes = pv.priors.Fixed(dist.Categorical, logits=torch.zeros(num_classes))
    components = pv.programs.NormalOfClass(num_classes, 3)
    program, x = pv.programs.MixtureVAE(classes, components, encoder, decoder), numbers(num_data)
    terms = pv.elbo_terms(program, x, num_samples=4)
    each = components(torch.arange(num_classes)).log_prob(terms.latents["z"][..., None, :])
    assert torch.allclose(terms.log_prior, each.logsumexp(-1) - math.log(num_classes))
    assert len(pv.fit(program, x, epochs=1, progress=False)) == 1


class Scored(Switching):
    """The same, with a guide that is not reparameterized."""

    def guide(self, x, y=None, mask=None):
        pyro.module("program", self)
        rows = torch.stack(list(x.values()), -1)
        with pyro.plate("data", len(rows)):
            loc = 0.1 * self.encoder(rows).squeeze(-1)
            pyro.sample("z", dist.Normal(loc, 1.0).has_rsample_(False))


def test_one_datum_with_a_guide_that_is_not_reparameterized(float64):
    """Score functions need the plates of the densities that are summed out."""
    program, found = Scored(), []
    x = {f"x_{t}": numbers(1)[:, t] for t in range(3)}
    for objective in (pv.objectives.TraceELBO(), TraceEnum_ELBO(max_plate_nesting=1)):
        torch.manual_seed(5)
        with own_store():
            found.append(objective.loss_and_grads(program.model, program.guide, x))
    assert float(found[0]) == pytest.approx(float(found[1]), rel=1e-10)


def test_several_particles_are_replayed(float64):
    """The check of particles leaves no trace in the step that SVI records."""
    found = []
    for compile in ("graph", "eager"):
        program = made("LadderVAE")
        objective = pv.objectives.TraceELBO(num_particles=3)
        settings = {"epochs": 2, "batch_size": 8, "progress": False}
        history = pv.fit(program, numbers(17), objective=objective, compile=compile, **settings)
        found.append(history["elbo"])
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("x", "match"),
    [
        ({"a": torch.zeros(4, 2)}, "looks up 'b', but x is a dict with the keys 'a'"),
        ({}, "empty dict"),
        (torch.zeros(4, 2), r"one array of shape \(2, 2\), but a MultimodalVAE"),
    ],
)
def test_sites_that_are_missing_are_named(x, match):
    with pytest.raises(DataError, match=match):
        pv.elbo_terms(made("MultimodalVAE"), x)


def test_chains_without_warmup_move():
    """One chain without warm-up has one draw: no variance to adapt to."""
    vae = pv.build((2,), latent_dim=1, seed=0)
    how = {"num_chains": 1, "num_warmup": 0, "num_samples": 20}
    found = pv.posterior.hmc(vae, torch.ones(3, 2), **how)
    assert (found.draws.diff(dim=1) != 0).any(1).all()
    assert found.stats.acceptance_rate.mean() > 0.5


@pytest.mark.parametrize("num_samples", [0, 2.5])
def test_occupancy_needs_draws(num_samples):
    with pytest.raises(ConfigError, match="num_samples"):
        made("MixtureVAE").occupancy(numbers(4), num_samples=num_samples)


class Unbalanced(PROGRAMS["EasyGuide"].make):
    """z is drawn around the auxiliary site, and is not a function of it."""

    def guide(self, x, y=None, mask=None):
        with pyro.plate("data", len(x)):
            infer = {"is_auxiliary": True}
            r = pyro.sample("r", dist.Normal(self.encoder(x), 0.3).to_event(1), infer=infer)
            pyro.sample("z", dist.Normal(r, 0.7).to_event(1))


def test_auxiliary_draws_that_the_latents_are_not_functions_of_are_refused():
    """log q(r) has no counterpart: IWAE was 2 nats above log p(x), without a warning."""
    with pytest.raises(ConfigError, match="the auxiliary 'r', which the model lacks"):
        pv.log_evidence(Unbalanced(), numbers())


def test_a_guide_with_auxiliary_sites_has_no_density_at_given_latents():
    """Annealing from it gave infinity; what needs no such density runs."""
    program, x = made("EasyGuide"), numbers(4)
    with pytest.raises(ConfigError, match="its density at given latents is unknown"):
        pv.log_evidence(program, x, method="ais", start="guide", num_temperatures=2)
    found = pv.diagnostics.decompose_elbo(program, x)
    assert found.elbo.isfinite().all()
    assert math.isnan(found.marginal_kl.value)
    tree = pv.to_arviz(program, x, num_samples=5, posterior="sir", num_proposals=50)
    assert tree["log_likelihood"]["x"].notnull().all()
    assert tree["sample_stats"]["log_guide"].isnull().all()


def test_hmc_draws_the_classes_that_it_sums_out(float64):
    """p(c|x) ∝ π_c N(x; m_c, C), in the first of the four numbers of a draw; also in ArviZ."""
    program, x = made("a class of the guide"), numbers(3)
    found = pv.posterior.hmc(program, x, num_samples=500, num_warmup=100)
    assert found.draws.shape == (4, 500, 3, 4)
    share = nn.functional.one_hot(found.draws[..., 0].long().flatten(0, 1), 3).double().mean(0)
    exact = PROGRAMS["a class of the guide"].components(x).softmax(-1)
    # chains of 2000 draws are worth 200 at least
    assert ((share - exact).abs() < 5 * (exact * (1 - exact) / 200).sqrt() + 0.01).all()
    tree = pv.to_arviz(program, x, num_samples=5, posterior="hmc", num_warmup=5)
    assert tree["posterior"]["c"].shape == (4, 5, 3)
    assert tree["sample_stats"]["log_guide"].notnull().all()


def test_a_sum_over_classes_has_no_density_of_the_guide():
    program, x = made("a class of the guide"), numbers(3)
    with pytest.raises(ConfigError, match="draws 'c' besides these latents"):
        pv.log_evidence(program, x, method="ais", start="guide", num_temperatures=2)
    gap = pv.evidence.bdmc(program, 50, like=x, num_temperatures=50)
    assert abs(gap.gap) < 0.2
