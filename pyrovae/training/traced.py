"""Loss and gradients of a batch as a graph of tensor operations, traced once per shape.

Pyro's handlers run only while the step is traced; afterwards it is replayed, random draws
included, or compiled by the inductor. Both leave the same gradients in `.grad` as
`eager.EagerLoss`. Programs that a trace cannot reproduce (control flow that depends on values,
hooks, draws from NumPy, changing buffers or attributes) run eagerly, and `on_refusal` receives
the reason.
"""

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from pyro.infer import ELBO
from torch import Tensor, nn
from torch.fx import GraphModule

from pyrovae.core.terms import ElboTerms
from pyrovae.data import Batch
from pyrovae.objectives import Objective
from pyrovae.runtime.graph_passes import simplified
from pyrovae.runtime.guards import Constants, Copies, hooks_within
from pyrovae.runtime.random_stream import RandomStream
from pyrovae.runtime.tracing import TracingError, first_line, substituted, traced
from pyrovae.training.eager import (
    EagerLoss,
    Outcome,
    detached,
    loss_sums,
    sum_of_entries,
    tensors_of,
)

MAX_SHAPES = 4  # loaders whose batch shapes keep changing run eagerly
REPAID = 150  # batches of a smaller size until tracing that size also pays off


class TracedLoss:
    """Loss of a batch as a graph of tensor operations, traced once per shape.

    Args:
        eager: the loss to trace; it also computes batches that cannot be traced.
        is_compiled: whether the inductor compiles the graph of full batches.
        full_size: B, of full batches; only their graph is worth compiling, and smaller batches
            are traced after they have occurred often.
        on_refusal: called with the reason, and whether the graph is replayed instead.
    """

    def __init__(
        self,
        eager: EagerLoss,
        *,
        is_compiled: bool,
        full_size: int,
        on_refusal: Callable[[str, bool], None] = lambda why, is_traced: None,
    ):
        self.eager, self.objective = eager, eager.objective
        self.is_compiled, self.full_size, self.on_refusal = is_compiled, full_size, on_refusal
        self.graphs: dict[Any, _Graph] = {}
        self.times_seen: Counter[Any] = Counter()
        self.is_refused = self.is_stale = False
        self.trainable = eager.parameters
        self.others = [t for t in tensors_of(eager.program) if not t.requires_grad]
        self._refuse(_refusal(eager.program, self.objective))

    def __call__(self, batch: Batch) -> Outcome:
        self.eager.prepare(batch)
        if self.is_stale and self.graphs:
            self._refuse(self.constants.change())
        self.is_stale = False
        graph = None if self.is_refused else self._graph(batch)
        if graph is None:
            return self.eager(batch)
        with torch.no_grad():
            loss, total, sums, *rest = graph.of(*self._inputs(batch))
        gradients = iter(rest[5:])
        for parameter, has_gradient in zip(self.trainable, graph.has_gradient, strict=True):
            parameter.grad = next(gradients) if has_gradient else None
        return Outcome(loss, total, sums, ElboTerms(*rest[:5], {}))

    def recheck_constants(self, *_: Any) -> None:
        """Make the next step check whether a callback changed constants of the graphs."""
        self.is_stale = True

    def _refuse(self, reason: str | None) -> None:
        """Run eagerly from now on, if there is a reason."""
        if reason:
            self.is_refused = True
            self.on_refusal(reason, False)

    def _inputs(self, batch: Batch) -> list[Tensor]:
        like, weights = self.trainable[0], self.objective.weights().values()
        weights = [torch.tensor(w, dtype=like.dtype, device=like.device) for w in weights]
        return [*self.trainable, *self.others, *weights, *batch.columns.values()]

    def _graph(self, batch: Batch) -> "_Graph | None":
        key = tuple((name, t.shape, t.dtype) for name, t in batch.columns.items())
        if key not in self.graphs and self._is_worthwhile(key, batch.num_data):
            has_gradient: list[bool] = []
            function = partial(self._flat, batch, has_gradient)
            program = self.eager.program
            try:
                self.constants, copies = Constants(program), Copies(program)
            except Exception as error:
                return self._refuse(f"an attribute cannot be inspected ({first_line(error)})")
            try:
                graph = traced(function, *self._inputs(batch), fixed=self.others)
                if change := self.constants.change():
                    raise TracingError(change)
            except TracingError as error:
                copies.restore()
                return self._refuse(str(error))
            is_compiled = self.is_compiled and batch.num_data == self.full_size
            of = self._compiled(graph, batch) if is_compiled else self._replayed(graph, batch)
            self.graphs[key] = _Graph(of, has_gradient)
        return self.graphs.get(key)

    def _is_worthwhile(self, key: Any, size: int) -> bool:
        """Return whether tracing pays off; the small last batch runs eagerly, with equal bits."""
        self.times_seen[key] += 1
        is_due = size == self.full_size or self.times_seen[key] > REPAID
        return is_due and len(self.graphs) < MAX_SHAPES

    def _replayed(self, graph: GraphModule, batch: Batch) -> Callable:
        with RandomStream(0):
            return simplified(graph, *self._inputs(batch)).forward

    def _compiled(self, graph: GraphModule, batch: Batch) -> Callable:
        inputs = self._inputs(batch)
        compiler = _by_cuda_graphs if batch.device.type == "cuda" else _by_inductor
        try:
            with RandomStream(0), torch.no_grad():
                compiled = compiler(copy.deepcopy(graph), inputs)
                compiled(*inputs)
        except Exception as error:
            self.on_refusal(f"the inductor failed ({first_line(error)})", True)
            return self._replayed(graph, batch)
        return compiled

    def _flat(self, like: Batch, has_gradient: list[bool], *inputs: Tensor) -> list[Tensor]:
        """Return loss, sum of gradients, loss sums, five terms and gradients from flat inputs."""
        given = iter(inputs)
        leaves = [next(given).detach().requires_grad_() for _ in self.trainable]
        others = [next(given) for _ in self.others]
        self.objective.given_weights = {name: next(given) for name in self.objective.weights()}
        batch = like.map(lambda _: next(given))
        new = dict(zip(map(id, [*self.trainable, *self.others]), [*leaves, *others], strict=True))
        # removed, because a changing number would be traced as a constant
        progress = vars(self.objective).pop("progress")
        try:
            with substituted(self.eager.program, new):
                loss, terms = self.eager.differentiable(batch)
        finally:
            self.objective.given_weights, self.objective.progress = {}, progress
        gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
        has_gradient[:] = [g is not None for g in gradients]
        found = list(in_own_memory((g for g in gradients if g is not None), inputs))
        sums = loss_sums(terms, self.eager.settings.num_data)
        return [loss.detach(), sum_of_entries(found), sums, *detached(terms)[:5], *found]


# name → constructor of the loss, from an `EagerLoss`: the only list of engines
ENGINES = MappingProxyType(
    {
        "eager": lambda eager, **_: eager,
        "graph": partial(TracedLoss, is_compiled=False),
        "inductor": partial(TracedLoss, is_compiled=True),
    }
)


def _by_inductor(graph: GraphModule, inputs: list[Tensor]) -> Callable:
    from torch import _inductor  # these take a moment to import
    from torch._guards import TracingContext, tracing
    from torch._subclasses import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    # the compiler uses its cache of earlier runs only if a tracing context has shapes
    fake = FakeTensorMode(shape_env=ShapeEnv(), static_shapes=True)
    # not torch.compile, whose check of the arguments costs as much as a small step
    with tracing(TracingContext(fake)):
        return _inductor.compile(graph, inputs, options={"fallback_random": True})


def _by_cuda_graphs(graph: GraphModule, inputs: list[Tensor]) -> Callable:
    """Compile for replay as a CUDA graph: the next call overwrites the results."""
    options = {"fallback_random": True, "triton.cudagraphs": True}
    compiled = torch.compile(graph, dynamic=False, options=options)

    def call(*inputs: Tensor) -> list[Tensor]:
        torch.compiler.cudagraph_mark_step_begin()
        return compiled(*inputs)

    return call


class _Graph(NamedTuple):
    """Operations of a step, and whether each parameter has a gradient."""

    of: Callable[..., list[Tensor]]
    has_gradient: list[bool]


def in_own_memory(gradients: Iterable[Tensor], inputs: Iterable[Tensor]) -> Iterator[Tensor]:
    """Yield the gradients, copied if they share memory, because clipping works in place.

    Example:
        >>> g = torch.ones(2)
        >>> a, b, c = in_own_memory([g, g, torch.ones(()).expand(2)], [])
        >>> a.mul_(5), b.mul_(7), c.mul_(9)
        (tensor([5., 5.]), tensor([7., 7.]), tensor([9., 9.]))
    """
    taken = {t.untyped_storage().data_ptr() for t in inputs}
    for gradient in gradients:
        is_spread = all(gradient.stride()) or not gradient.numel()
        if gradient.untyped_storage().data_ptr() in taken or not is_spread:
            gradient = gradient.clone(memory_format=torch.contiguous_format)
        taken.add(gradient.untyped_storage().data_ptr())
        yield gradient


def _refusal(program: nn.Module, objective: ELBO) -> str | None:
    """Return why a trace of the program would be silently wrong; None if it would not be."""
    if not isinstance(objective, Objective):
        return f"{type(objective).__name__} is one of Pyro's own objectives"
    code = getattr(type(objective).surrogate, "__code__", None)
    if "progress" in getattr(code, "co_names", ()):
        return f"{type(objective).__name__} reads its progress; weights() would make it traceable"
    return hooks_within(program)
