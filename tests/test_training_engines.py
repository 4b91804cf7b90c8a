"""The three engines of a step: eager, traced and replayed, traced and compiled.

A traced step gives the numbers of an eager one bit for bit, on the same draws: weights, history,
and everything in a checkpoint. Steps that a trace cannot reproduce run eagerly.
"""

import collections
import math
import random
import shutil
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from contracts import GUIDES, LABELS, LIKELIHOODS, OBJECTIVES, PRIORS, PROGRAMS, slow_unless
from helpers import (
    N,
    bits,
    digest,
    final_state,
    generators,
    small_vae,
    unchanged,
    vae_of,
    with_dropout,
)
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from torch import nn
from torch._dynamo.utils import counters

import pyrovae as pv
from pyrovae import objectives
from pyrovae.core.terms import terms_of
from pyrovae.errors import ConfigError
from pyrovae.handlers import own_store
from pyrovae.runtime.guards import Constants, Copies
from pyrovae.runtime.tracing import TracingError, substituted, traced
from pyrovae.training.plan import engine_for


@pytest.fixture(autouse=True)
def every_size_is_traced(monkeypatch):
    monkeypatch.setattr("pyrovae.training.traced.REPAID", 0)


def fitted(make, folder, *, compile, x=None, y=None, mask=None, **settings):
    """Return (engine, final state, program) of a `fit` that leaves the caller's state unchanged."""
    program, x = make(), bits() if x is None else x
    settings = {"epochs": 2, "batch_size": 10, "seed": 1, **settings}
    with unchanged():
        history = pv.fit(program, x, y, mask, compile=compile, run_dir=folder, **settings)
    assert all(p.grad is None for p in program.parameters())
    return history.engine, digest(final_state(folder)), program


def check_same(make, folder, *, engine="graph", **settings):
    """Assert that both engines end with the same bits: weights, moments, history, random stream."""
    _, expected, _ = fitted(make, folder / "eager", compile="eager", **settings)
    said, got, program = fitted(make, folder / "graph", compile="graph", **settings)
    assert said == engine
    assert got == expected
    assert all(type(p) is nn.Parameter and p.is_leaf for p in program.parameters())
    assert [n for n, _ in program.named_parameters()] == [n for n, _ in make().named_parameters()]
    return program


# A traced run ends with the bits of an eager one: one line for each combination.


def double():
    return small_vae().double()


OBSERVED = bits(seed=1).bool()
RAGGED = "ragged, objective: "
RUNS = {
    "a β in float64, not rounded": (double, {"objective": objectives.BetaELBO(0.1)}),
    "dropout, a mask, a changing β and a ragged batch": (
        with_dropout,
        {
            "x": bits().masked_fill(~OBSERVED, torch.nan),
            "mask": OBSERVED,
            "objective": objectives.BetaELBO(objectives.linear_warmup(0.5)),
            "epochs": 3,
            "batch_size": 10,
        },
    ),
    "batches of 1": (small_vae, {"batch_size": 1, "epochs": 1}),
    "a last batch of 1": (small_vae, {"batch_size": 36, "epochs": 1}),
    "scheduler, clipping, accumulation, averaging and validation": (
        with_dropout,
        {
            "optimizer": "RAdam",
            "scheduler": "CosineAnnealingLR",
            "max_grad_norm": 0.1,
            "accumulate_batches": 2,
            "ema_decay": 0.9,
            "validation": bits(9, seed=2),
            "epochs": 3,
            "batch_size": 10,
        },
    ),
    "gradients in shared memory, clipped once": (
        PROGRAMS["two shifts"].make,
        {"max_grad_norm": 0.01, "optimizer": "SGD"},
    ),
    "bf16": (with_dropout, {"precision": "bf16"}),
}
for name, program in PROGRAMS.items():
    if name != "semi-supervised":  # it looks at its labels: see REFUSED
        settings = {"y": program.y, "batch_size": 20 if name == "global latents" else N}
        RUNS[f"program: {name}"] = (program.make, settings)
for name, make in OBJECTIVES.items():
    RUNS[f"objective: {name}"] = (small_vae, {"objective": make(), "epochs": 4})
    RUNS[f"{RAGGED}{name}"] = (with_dropout, {"objective": make(), "batch_size": 10})


@pytest.mark.parametrize("name", slow_unless(RUNS, lambda name: not name.startswith(RAGGED)))
def test_a_traced_run_ends_with_the_bits_of_an_eager_one(name, tmp_path):
    make, settings = RUNS[name]
    check_same(make, tmp_path, **{"batch_size": N} | settings)


def part_vae(**make):
    torch.manual_seed(0)
    return vae_of(**{family: part() for family, part in make.items()})


def first_in(parts, space):
    return next(part.make for part in parts.values() if part.space == space)


PARTS = {("prior", name): part for name, part in PRIORS.items()}
PARTS |= {("guide", name): part for name, part in GUIDES.items()}
PARTS |= {("likelihood", name): part for name, part in LIKELIHOODS.items()}
BY_DEFAULT = {
    ("prior", "Fixed: StudentT"),
    ("prior", "FlowPrior, coupling"),
    ("guide", "PowerSpherical"),
    ("guide", "Bernoulli"),
    ("likelihood", "StudentT, learned df each"),
    ("likelihood", "Multinomial"),
}


@pytest.mark.parametrize("name", slow_unless(PARTS, BY_DEFAULT.__contains__), ids=": ".join)
def test_every_part_is_traced(name, tmp_path):
    part, family = PARTS[name], name[0]
    make = {family: part.make}
    if family == "prior":
        make["guide"] = first_in(GUIDES, part.space)
    if family == "guide":
        make["prior"] = first_in(PRIORS, part.space)
    with torch.no_grad():
        x = part_vae(**make).sample(7, seed=3)
    check_same(partial(part_vae, **make), tmp_path, x=x.float(), batch_size=7)


def test_a_changing_beta_is_an_input_of_the_graph(tmp_path):
    """If the graph held the first β = 0 as a constant, the KL would never count."""
    warm, zero = objectives.BetaELBO(objectives.linear_warmup(0.2)), objectives.BetaELBO(0.0)
    settings = {"compile": "graph", "batch_size": N}
    warmed = fitted(small_vae, tmp_path / "warm", objective=warm, **settings)[1]
    assert warmed != fitted(small_vae, tmp_path / "zero", objective=zero, **settings)[1]


@pytest.mark.parametrize("name", ["VampPrior", "tied weights"])
def test_a_shared_part_stays_shared_and_trains(name, tmp_path):
    make = PROGRAMS[name].make
    program = check_same(make, tmp_path, batch_size=N)
    shared = program.prior.encoder if name == "VampPrior" else program.decoder.first
    assert shared is (program.encoder if name == "VampPrior" else program.encoder[0][0])
    for now, start in zip(program.parameters(), make().parameters(), strict=True):
        assert not torch.equal(now, start)


def test_a_frozen_part_stays_frozen(tmp_path):
    def frozen():
        vae = small_vae()
        vae.encoder[0].requires_grad_(False)
        return vae

    vae = check_same(frozen, tmp_path, batch_size=N)
    start = frozen().encoder[0].state_dict()
    assert all(torch.equal(t, start[n]) for n, t in vae.encoder[0].state_dict().items())


def test_the_comparison_can_fail(tmp_path):
    """Negative control: with another seed, or fewer rows, the digests differ."""
    _, first, _ = fitted(small_vae, tmp_path / "a", compile="eager")
    _, again, _ = fitted(small_vae, tmp_path / "b", compile="eager")
    _, other, _ = fitted(small_vae, tmp_path / "c", compile="eager", seed=2)
    _, fewer, _ = fitted(small_vae, tmp_path / "d", compile="eager", x=bits()[:30])
    assert first == again
    assert len({first, other, fewer}) == 3


# Steps that a graph cannot reproduce run eagerly, and the history says why.


class Custom(nn.Module):
    """An encoder's features, changed by a function of them."""

    def __init__(self, change, extra=None):
        super().__init__()
        self.change, self.extra = change, extra

    def forward(self, features):
        return self.change(features, self.extra)


def custom(change, extra=None):
    """Return a constructor of VAEs with `change` between the encoder's network and its head."""

    def make():
        vae = small_vae()
        network, head = vae.encoder
        inside = extra() if extra else None
        return pv.VAE(vae.prior, nn.Sequential(network, Custom(change, inside), head), vae.decoder)

    return make


def branch(features, _):
    return features if features.sum() > 0 else 2 * features


def numpy_noise(features, _):
    return features + float(np.random.rand())  # noqa: NPY002


def python_noise(features, _):
    return features + random.random()


def via_numpy(features, _):
    return features + torch.from_numpy(np.tanh(features.detach().numpy()))


def via_list(features, _):
    return features + torch.tensor(features.detach().tolist())


def selects(features, _):
    return features + features[features > 0].sum()


def normed(features, norm):
    return norm(features)


class Counter(nn.Module):
    """Adds a buffer that counts the calls in train mode."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, features):
        self.calls += self.training
        return features * self.calls


class PythonCounter(nn.Module):
    """Weakens noise by the number of its calls, which is not a tensor."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, features):
        self.calls += self.training
        return features / (1 + self.calls)


class Schedule:
    """A plain object with a number."""

    def __init__(self):
        self.factor = 1.0


HELD = {
    "a tensor": lambda: torch.tensor(1.0),
    "a tensor's data": lambda: torch.tensor(1.0),
    "another tensor": lambda: torch.tensor(1.0),
    "a list": lambda: [1.0],
    "a dict in a tuple": lambda: ({"factor": 1.0},),
    "a tensor in a list": lambda: [torch.tensor(1.0)],
    "an array": lambda: np.ones(1, dtype="float32"),
    "an object": Schedule,
}


class Weakened(nn.Module):
    """Features divided by a number held in some kind of attribute, which `grow` increases."""

    def __init__(self, kind, *, grows=False):
        super().__init__()
        self.kind, self.grows, self.held = kind, grows, HELD[kind]()

    def forward(self, features):
        if self.grows and self.training:
            self.grow()
        return features / self.factor()

    def factor(self):
        match self.kind:
            case "a list" | "a tensor in a list":
                return self.held[0]
            case "a dict in a tuple":
                return self.held[0]["factor"]
            case "an array":
                return torch.from_numpy(self.held.copy())
            case "an object":
                return self.held.factor
        return self.held

    def grow(self):
        match self.kind:
            case "a tensor" | "an array":
                self.held *= 1.5
            case "a tensor's data":
                self.held.data.mul_(1.5)
            case "another tensor":
                self.held = self.held * 1.5
            case "a list" | "a tensor in a list":
                self.held[0] = self.held[0] * 1.5
            case "a dict in a tuple":
                self.held[0]["factor"] *= 1.5
            case "an object":
                self.held.factor *= 1.5


def hooked():
    vae = small_vae()
    vae.encoder[0].register_forward_hook(lambda module, inputs, output: 1.5 * output)
    return vae


def weight_hooked():
    vae = small_vae()
    next(vae.parameters()).register_hook(lambda gradient: 0.5 * gradient)
    return vae


def hidden_parameter():
    weight = nn.Parameter(torch.ones(4))  # in a list: no module's own, so nothing trains it
    return custom(lambda features, _: features * weight)()


class Recurrent(nn.Module):
    """An encoder that reads the four cells of x as a sequence."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(1, 4, batch_first=True)

    def forward(self, x):
        return self.lstm(x[..., None])[0][:, -1]


def recurrent():
    torch.manual_seed(0)
    vae = small_vae()
    return pv.VAE(vae.prior, nn.Sequential(Recurrent(), vae.encoder[1]), vae.decoder)


def deep():
    torch.manual_seed(0)
    body = nn.Sequential(*[layer for _ in range(400) for layer in (nn.Linear(4, 4), nn.Tanh())])
    return custom(lambda features, extra: features + extra(features), lambda: body)()


class ReadsProgress(objectives.Objective):
    """The ELBO, with a weight that grows during training."""

    def surrogate(self, traces, num_data):
        return -(1 + self.progress) * terms_of(traces, num_data).total_elbo.mean()


class ReadsProgressElsewhere(ReadsProgress):
    """The same, but the code of the surrogate does not name what it reads."""

    def surrogate(self, traces, num_data):
        return -self.factor() * terms_of(traces, num_data).total_elbo.mean()

    def factor(self):
        return 1 + self.progress


REFUSED = {
    "control flow": (custom(branch), None, ""),
    "NumPy's draws": (custom(numpy_noise), None, "NumPy"),
    "Python's draws": (custom(python_noise), None, "NumPy or `random`"),
    "NumPy's functions": (custom(via_numpy), None, "numpy()"),
    "a list of numbers": (custom(via_list), None, "tolist"),
    "a shape of values": (custom(selects), None, "shape that depends"),
    "batch norm": (custom(normed, lambda: nn.BatchNorm1d(4)), None, "buffer"),
    "a counting buffer": (custom(normed, Counter), None, "buffer"),
    "a counter of Python's": (custom(normed, PythonCounter), None, "calls"),
    "a module's hook": (hooked, None, "hooks"),
    "a parameter's hook": (weight_hooked, None, "hooks"),
    "a hidden parameter": (hidden_parameter, None, "another way"),
    "an LSTM": (recurrent, None, ""),
    "an objective's progress": (small_vae, ReadsProgress(), "progress"),
    "an objective's progress, hidden": (small_vae, ReadsProgressElsewhere(), "progress"),
    "labels that are looked at": (PROGRAMS["semi-supervised"].make, None, "control flow"),
    "Pyro's own": (small_vae, Trace_ELBO(), "Pyro's own"),
    "Pyro's sum": (
        PROGRAMS["semi-supervised"].make,
        TraceEnum_ELBO(max_plate_nesting=1),
        "Pyro's own",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_traced_runs_eagerly(name, tmp_path):
    make, objective, why = REFUSED[name]
    settings = {"objective": objective, "x": bits(20), "y": None, "epochs": 3}
    if make is PROGRAMS["semi-supervised"].make:
        settings["y"] = LABELS[:20]
    expected = fitted(make, tmp_path / "eager", compile="eager", **settings)[1]
    said, got, program = fitted(make, tmp_path / "graph", compile="graph", **settings)
    assert got == expected
    assert said.startswith("eager: ")
    assert why in said
    assert len(said) > len("eager: ") + 10
    assert type(next(program.parameters())) is nn.Parameter


@pytest.mark.slow
def test_a_step_of_more_than_3000_operations_is_not_traced(tmp_path):
    check_same(deep, tmp_path, engine="eager: it has more than 3,000 operations", epochs=1)


@pytest.mark.parametrize("limit", [1, 150])  # in the guide, in the gradient
def test_tracing_can_fail_anywhere(limit, tmp_path, monkeypatch):
    monkeypatch.setattr("pyrovae.runtime.tracing.MAX_NODES", limit)
    check_same(with_dropout, tmp_path, engine=f"eager: it has more than {limit} operations")


def test_the_smaller_last_batch_is_traced_once_it_has_occurred_often(tmp_path, monkeypatch):
    """Eager steps give the same bits, so that a resumed run may trace it later."""
    recordings = []

    def counted(function, *inputs, **options):
        recordings.append(len(inputs[-1]))
        return traced(function, *inputs, **options)

    monkeypatch.setattr("pyrovae.training.traced.traced", counted)
    monkeypatch.setattr("pyrovae.training.traced.REPAID", 2)
    check_same(small_vae, tmp_path, epochs=2)
    assert recordings == [10]
    check_same(small_vae, tmp_path / "longer", epochs=4)
    assert recordings == [10, 10, 7]


@pytest.mark.slow
def test_a_loader_of_many_batch_sizes_runs_by_graphs_and_eagerly(tmp_path):
    class Sizes(torch.utils.data.Sampler):
        def __iter__(self):
            return iter(torch.arange(28).split([1, 2, 3, 4, 5, 6, 7]))

    def loader():
        return torch.utils.data.DataLoader(
            torch.utils.data.TensorDataset(bits(28)), batch_sampler=Sizes()
        )

    _, expected, _ = fitted(small_vae, tmp_path / "a", compile="eager", x=loader())
    said, got, _ = fitted(small_vae, tmp_path / "b", compile="graph", x=loader())
    assert (said, got) == ("graph", expected)


def test_a_callback_that_changes_a_plain_attribute_is_noticed(tmp_path):
    """A temperature that is a Python number would keep the value that was traced."""

    class Tempered(nn.Module):
        temperature = 1.0

        def forward(self, features):
            return features / self.temperature

    def anneal(program, record):
        program.encoder[1].extra.temperature = 1.0 + record.epoch

    make = custom(normed, Tempered)
    settings = {"callbacks": [anneal], "epochs": 7, "batch_size": N}
    expected = fitted(make, tmp_path / "a", compile="eager", **settings)[1]
    assert fitted(make, tmp_path / "b", compile="graph", **settings)[1] == expected
    without = fitted(make, tmp_path / "c", compile="eager", epochs=7, batch_size=N)[1]
    assert without != expected


@pytest.mark.parametrize("kind", HELD)
def test_a_callback_that_changes_the_contents_of_an_attribute_is_noticed(kind, tmp_path):
    """The graph holds it as a constant, regardless of the kind of attribute."""

    def grow(program, record):
        program.encoder[1].extra.grow()

    make = custom(normed, lambda: Weakened(kind))
    settings = {"callbacks": [grow], "epochs": 3, "batch_size": N}
    expected = fitted(make, tmp_path / "a", compile="eager", **settings)[1]
    said, got, _ = fitted(make, tmp_path / "b", compile="graph", **settings)
    assert got == expected
    assert said == "eager: held of a Weakened changes, and a graph has it as a constant"


class Unwritable(dict):
    """Like a configuration: no key changes, and values are read by name."""

    def __init__(self, name, **settings):
        super().__init__(**settings)

    def refuse(self, *args):
        raise TypeError("immutable")

    __setitem__ = update = pop = clear = copy = refuse


@pytest.mark.parametrize(("grows", "engine"), [(False, "graph"), (True, "eager")])
def test_a_dict_that_forbids_writing_is_an_attribute_like_others(grows, engine, tmp_path):
    def configured():
        part = Weakened("a list", grows=grows)
        part.config = Unwritable("first", width=3)
        return part

    settings = {"compile": "graph", "batch_size": N}
    said = fitted(custom(normed, configured), tmp_path, **settings)[0]
    assert said.partition(":")[0] == engine


def test_changes_made_while_tracing_are_restored():
    part = nn.Identity()
    part.counts, part.order = collections.Counter(a=1), collections.OrderedDict(b=1, a=2)
    part.seen, part.last = {1, 2}, collections.deque([1], maxlen=3)
    copies = Copies(part)
    part.counts["a"] += 1
    part.order["c"] = 3
    part.order.move_to_end("b")
    part.seen.add(5)
    part.last.append(2)
    copies.restore()
    assert part.counts == {"a": 1}
    assert list(part.order.items()) == [("b", 1), ("a", 2)]
    assert (part.seen, list(part.last), part.last.maxlen) == ({1, 2}, [1], 3)


def test_parts_whose_attributes_do_not_change_are_traced(tmp_path):
    make = custom(normed, lambda: nn.Sequential(*map(Weakened, HELD)))
    check_same(make, tmp_path, batch_size=N)


@pytest.mark.parametrize("kind", HELD)
def test_a_part_that_changes_the_contents_of_its_attribute_is_not_traced(kind, tmp_path):
    """The change made while tracing is undone, so that eager steps start from the same value."""
    make = custom(normed, lambda: Weakened(kind, grows=True))
    check_same(
        make,
        tmp_path,
        engine="eager: held of a Weakened changes, and a graph has it as a constant",
        batch_size=N,
    )


def test_constants_are_any_objects():
    """Objects that cannot be hashed, compared, read as numbers or followed are checked too."""
    part = nn.Linear(2, 2)
    part.own, part.nothing, part.nan = [part.weight], None, float("nan")
    part.loop, part.sparse, part.words = [[]], torch.eye(2).to_sparse(), {"a", "b"}
    part.loop[0].append(part.loop)
    part.wide, part.fixed = torch.ones(1).expand(3), np.ones(2)
    part.fixed.flags.writeable = False
    part.objects, part.module, part.nested = np.array([object()]), np, {1: (b"b", 1j, {2.0})}
    constants, copies = Constants(part), Copies(part)
    with torch.no_grad():
        part.weight += 1.0  # an input of the graph, wherever it is held
    assert constants.change() is None
    part.nested[1][2].add(3.0)
    assert "nested of a Linear changes" in constants.change()
    copies.restore()
    assert constants.change() is None
    for change in (lambda: delattr(part, "nan"), lambda: setattr(part, "new", True)):
        change()
        assert constants.change()
        copies.restore()
        assert constants.change() is None
    part.module = Schedule()
    assert constants.change().startswith("module of")


def test_a_callback_that_freezes_a_part_is_noticed(tmp_path):
    def freeze(program, record):
        program.encoder.requires_grad_(record.epoch != 1)

    settings = {"callbacks": [freeze], "epochs": 3, "batch_size": N, "optimizer": torch.optim.SGD}
    expected = fitted(small_vae, tmp_path / "a", compile="eager", **settings)[1]
    assert fitted(small_vae, tmp_path / "b", compile="graph", **settings)[1] == expected
    del settings["callbacks"]
    assert fitted(small_vae, tmp_path / "c", compile="graph", **settings)[1] != expected


# Tracing itself.


def test_a_trace_runs_on_other_numbers_and_draws_anew():
    graph = traced(lambda x: x + torch.rand(3), torch.zeros(3))
    torch.manual_seed(3)
    expected = torch.ones(3) + torch.rand(3)
    torch.manual_seed(3)
    assert torch.equal(graph(torch.ones(3)), expected)


def test_tracing_has_no_side_effects():
    pyro.param("theirs", torch.ones(2))
    before = generators()

    def noisy(x, buffer):
        torch.rand(3), np.random.rand(3), random.random()  # noqa: NPY002
        pyro.param("inside", torch.zeros(1))
        buffer.add_(1.0)
        return x + buffer

    buffer = torch.zeros(2)
    with pytest.raises(TracingError, match="buffer"):
        traced(noisy, torch.zeros(2), buffer)
    assert buffer.tolist() == [0.0, 0.0]
    assert generators() == before
    assert list(pyro.get_param_store().keys()) == ["theirs"]
    assert pyro.infer.util.is_validation_enabled()


@pytest.mark.parametrize("fails", [False, True])
def test_substituted_tensors_are_restored(fails):
    vae = PROGRAMS["VampPrior"].make()
    held = dict(vae.named_parameters(remove_duplicate=False))
    new = {id(p): torch.zeros_like(p) for p in vae.parameters()}
    try:
        with own_store(), substituted(vae, new):
            assert not vae.prior.encoder[0][0][0].weight.any()
            assert not vae.encoder[0][0][0].weight.any()
            if fails:
                raise RuntimeError
    except RuntimeError:
        pass
    now = dict(vae.named_parameters(remove_duplicate=False))
    assert list(now) == list(held)
    assert all(now[n] is p for n, p in held.items())


# Which engine, as a pure function.


@pytest.mark.parametrize(
    ("size", "batch_size", "num_steps", "engine"),
    [
        (20_000, 64, 0, "eager"),
        (20_000, 64, 299, "eager"),
        (20_000, 64, 300, "graph"),
        (20_000, 64, 10_000, "graph"),
        (20_000, 64, 10**6, "inductor"),
        (10**6, 256, 299, "eager"),
        (10**6, 256, 5_000, "graph"),
        (10**6, 256, 10**5, "inductor"),
        (10**6, 256, math.inf, "graph"),  # a stream of unknown length
        (1, 1, math.inf, "graph"),
    ],
)
def test_the_choice_is_a_function_of_size_and_planned_steps(size, batch_size, num_steps, engine):
    assert engine_for(size, batch_size, num_steps) == engine


def test_the_choice_is_monotone_in_size_batch_and_steps():
    rank = ["eager", "graph", "inductor"].index
    grid = [1, 100, 10**4, 10**6, 10**8]
    ranks = torch.tensor(
        [[[rank(engine_for(*c)) for c in [(s, b, n) for n in grid]] for b in grid] for s in grid]
    )
    assert all((ranks.diff(dim=d) >= 0).all() for d in range(3))
    assert ranks.unique().tolist() == [0, 1, 2]


@pytest.mark.parametrize(("epochs", "engine"), [(74, "eager"), (75, "graph")])
def test_auto_counts_the_planned_steps(epochs, engine):
    """4 batches per epoch: 296 steps and 300."""

    def stop(program, record):
        raise StopIteration

    seen = []

    class Told(objectives.TraceELBO):
        def surrogate(self, traces, num_data):
            seen.append(bool(self.given_weights) or torch.is_tensor(traces.model.nodes["x"]))
            return super().surrogate(traces, num_data)

    with pytest.raises(StopIteration):
        pv.fit(
            small_vae(), bits(), epochs=epochs, batch_size=10, objective=Told(), callbacks=[stop]
        )
    # tracing runs the surrogate once for each of two shapes, eager training once per step
    assert len(seen) == {"eager": 4, "graph": 2}[engine]


@pytest.mark.parametrize("value", ["handlers", "", None, True, 1])
def test_an_unknown_engine_is_refused(value):
    with pytest.raises(ConfigError, match=r"compile = .* must be one of auto, eager, graph"):
        pv.fit(small_vae(), bits(), compile=value)


# The compiler.

needs_compiler = pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("clang++")), reason="the inductor needs a C++ compiler"
)


def check_compiled(folder, tolerance, make=small_vae, **settings):
    _, _, graph = fitted(make, folder / "graph", compile="graph", **settings)
    said, _, compiled = fitted(make, folder / "inductor", compile="inductor", **settings)
    assert said == "inductor"
    for (name, p), q in zip(graph.named_parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(q, p, rtol=tolerance, atol=tolerance, msg=name)


@needs_compiler
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # in torch itself
@pytest.mark.parametrize("name", ["TraceELBO", "BetaELBO, warm-up", "IWAE", "DReG"])
def test_the_compiled_graph_equals_the_graph_to_rounding(name, tmp_path):
    """SGD, because Adam's first steps are ±lr regardless of the size of a gradient."""
    settings = {"objective": OBJECTIVES[name](), "optimizer": "SGD", "learning_rate": 0.01}
    check_compiled(tmp_path, 1e-5, **settings)


@needs_compiler
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # in torch itself
def test_the_compiled_graph_gives_each_gradient_its_own_memory(tmp_path):
    settings = {"max_grad_norm": 0.01, "optimizer": "SGD", "learning_rate": 0.01}
    check_compiled(tmp_path, 1e-5, PROGRAMS["two shifts"].make, **settings)


class Scaled(nn.Linear):
    """Its factor is neither a parameter nor a buffer: a constant of the graph."""

    def __init__(self, factor):
        torch.manual_seed(0)
        super().__init__(2, 4)
        self.factor = [torch.full((4,), factor)]

    def forward(self, z):
        return super().forward(z) * self.factor[0]


@needs_compiler
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # in torch itself
def test_a_compiled_graph_is_found_in_the_cache_and_keeps_its_constants(tmp_path):
    def program(factor):
        vae = small_vae()
        vae.decoder[0] = Scaled(factor)
        return vae

    settings = {"optimizer": "SGD", "learning_rate": 0.01}
    check_compiled(tmp_path / "1", 1e-5, partial(program, 1.0), **settings)
    before = counters["aot_autograd"]["autograd_cache_hit"]
    check_compiled(tmp_path / "2", 1e-5, partial(program, 5.0), **settings)
    assert counters["aot_autograd"]["autograd_cache_hit"] == before + 1


# Networks in bfloat16, densities in float32.


class Seen(objectives.TraceELBO):
    """The ELBO, which records the dtype of every log-density and of the draws."""

    def __init__(self):
        super().__init__()
        self.dtypes = set()

    def surrogate(self, traces, num_data):
        for trace in traces:
            for site in trace.nodes.values():
                if site["type"] == "sample":
                    self.dtypes |= {site["log_prob"].dtype, site["value"].dtype}
        return super().surrogate(traces, num_data)


def wide_normal():
    return pv.build((4,), latent_dim=2, hidden=(8,), likelihood="Normal", seed=0)


@pytest.mark.parametrize("make", [small_vae, wide_normal, PROGRAMS["VampPrior"].make, with_dropout])
def test_bf16_densities_are_float32_and_networks_are_not(make):
    objective, networks = Seen(), set()
    program = make()
    layers = [m for m in program.encoder.modules() if isinstance(m, nn.Linear)]
    for layer in layers:
        layer.register_forward_hook(lambda m, _, output: networks.add((m.training, output.dtype)))
    x = bits()
    history = pv.fit(
        program, x, objective=objective, precision="bf16", epochs=2, validation=x, batch_size=10
    )
    assert objective.dtypes == {torch.float32}
    assert networks >= {(True, torch.bfloat16), (False, torch.float32)}
    assert all(p.dtype == torch.float32 for p in program.parameters())
    assert math.isfinite(history[-1].validation_elbo)


def test_bf16_leaves_no_hook_behind():
    vae = small_vae()
    pv.fit(vae, bits(), precision="bf16", epochs=1)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in vae.modules())
    assert not torch.is_autocast_enabled("cpu")


def test_bf16_trains_to_about_the_elbo_of_float32():
    """8 bits of mantissa: features are off by 2⁻⁸ of themselves, an ELBO of 2.5 nats by less."""
    x = bits(200)
    both = [
        pv.fit(small_vae(), x, validation=x, precision=p, epochs=15, learning_rate=1e-2)[-1]
        for p in ("float32", "bf16")
    ]
    assert both[0].validation_elbo == pytest.approx(both[1].validation_elbo, abs=0.02)
    assert both[0].validation_elbo != both[1].validation_elbo


def test_bf16_works_with_objectives_of_pyro():
    both = [
        pv.fit(small_vae(), bits(), objective=Trace_ELBO(), precision=p, epochs=2)[-1].elbo
        for p in ("float32", "bf16")
    ]
    assert both[0] == pytest.approx(both[1], abs=0.02)
    assert both[0] != both[1]


class Narrow(nn.Module):
    """A head that does not convert its features: their density has 16 bits under autocast."""

    def forward(self, features):
        return dist.Normal(features, features.new_ones(())).to_event(1)


@pytest.mark.parametrize("compile", ["eager", "graph"])
def test_a_density_in_16_bits_is_refused_before_anything_changes(compile):
    vae = small_vae()
    encoder = nn.Sequential(nn.Linear(4, 2), Narrow())
    vae = pv.VAE(vae.prior, encoder, vae.decoder)
    message = r"log_guide is torch\.bfloat16[\s\S]*\.float\(\)"
    with unchanged(vae), pytest.raises(ConfigError, match=message):
        pv.fit(vae, bits(), precision="bf16", compile=compile)


@pytest.mark.parametrize("value", ["bfloat16", "float16", torch.bfloat16, None])
def test_an_unknown_precision_is_refused(value):
    with pytest.raises(ConfigError, match=r"precision = .* must be one of float32, bf16"):
        pv.fit(small_vae(), bits(), precision=value)
