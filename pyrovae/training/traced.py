"""A batch's loss and gradients as a graph of tensor operations, recorded once for a shape.

Pyro's handlers run only while the step is recorded; then it is replayed, random draws included, or
compiled by the inductor. Both leave the same gradients in `.grad` as `losses.EagerLoss`. A
program whose Python does what no record can repeat (control flow that depends on values,
hooks, draws from NumPy, buffers or attributes that change) stays with the handlers, and
`on_refusal` is told why.
"""

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from pyro.infer import ELBO
from torch import Tensor, nn
from torch.fx import GraphModule

from pyrovae.core.terms import ElboTerms
from pyrovae.data import Batch
from pyrovae.objectives import Objective
from pyrovae.runtime.graph_passes import simplified
from pyrovae.runtime.guards import Constants, Copies
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

MAX_SHAPES = 4  # of batches; a loader that gives ever other ones is served by the handlers
REPAID = 150  # batches of another size, until recording them too costs less than it saves


class TracedLoss:
    """The loss of a batch as a graph of tensor operations, recorded once for a shape.

    Args:
        by_handlers: the loss to record; it also serves what cannot be recorded.
        is_compiled: whether the graph for full batches goes through the inductor.
        full_size: B, of full batches; only their graph is worth the compiler's seconds, and
            smaller ones are recorded when they have come often.
        on_refusal: told why, and by what, the program is served after all.
    """

    def __init__(
        self,
        by_handlers: EagerLoss,
        *,
        is_compiled: bool,
        full_size: int,
        on_refusal: Callable[[str, str], None] = lambda why, engine: None,
    ):
        self.by_handlers, self.objective = by_handlers, by_handlers.objective
        self.is_compiled, self.full_size, self.on_refusal = is_compiled, full_size, on_refusal
        self.graphs: dict[Any, _Graph] = {}
        self.times_seen: Counter[Any] = Counter()
        self.is_refused = self.is_doubtful = False
        self._look(_refusal(by_handlers.program, self.objective))
        self.trainable = by_handlers.parameters
        self.others = [t for t in tensors_of(by_handlers.program) if not t.requires_grad]

    def __call__(self, batch: Batch) -> Outcome:
        self.by_handlers.look_at(batch)
        if self.is_doubtful and self.graphs:
            self._look(self.constants.change())
        self.is_doubtful = False
        graph = None if self.is_refused else self._graph(batch)
        if graph is None:
            return self.by_handlers(batch)
        with torch.no_grad():
            loss, total, sums, *rest = graph.of(*self._inputs(batch))
        gradients = iter(rest[5:])
        for parameter, has_gradient in zip(self.trainable, graph.has_gradient, strict=True):
            parameter.grad = next(gradients) if has_gradient else None
        return Outcome(loss, total, sums, ElboTerms(*rest[:5], {}))

    def doubt(self, *_: Any) -> None:
        """Look before the next step whether a callback changed what graphs hold as constants."""
        self.is_doubtful = True

    def _look(self, refusal: str | None) -> None:
        if refusal:
            self.is_refused = True
            self.on_refusal(refusal, "eager")

    def _inputs(self, batch: Batch) -> list[Tensor]:
        like, weights = self.trainable[0], self.objective.weights().values()
        weights = [torch.tensor(w, dtype=like.dtype, device=like.device) for w in weights]
        return [*self.trainable, *self.others, *weights, *batch.columns.values()]

    def _graph(self, batch: Batch) -> "_Graph | None":
        key = tuple(None if t is None else (t.shape, t.dtype) for t in batch)
        if key not in self.graphs and self._is_worthwhile(key, len(batch.x)):
            has_gradient: list[bool] = []
            function = partial(self._flat, batch, has_gradient)
            program = self.by_handlers.program
            try:
                self.constants, copies = Constants(program), Copies(program)
            except Exception as error:
                return self._look(f"an attribute cannot be looked at ({first_line(error)})")
            try:
                graph = traced(function, *self._inputs(batch), fixed=self.others)
                if change := self.constants.change():
                    raise TracingError(change)
            except TracingError as error:
                copies.put_back()
                return self._look(str(error))
            is_compiled = self.is_compiled and len(batch.x) == self.full_size
            of = self._compiled(graph, batch) if is_compiled else self._replayed(graph, batch)
            self.graphs[key] = _Graph(of, has_gradient)
        return self.graphs.get(key)

    def _is_worthwhile(self, key: Any, size: int) -> bool:
        """Not for the smaller batch at an epoch's end; the handlers give the same bits."""
        self.times_seen[key] += 1
        is_due = size == self.full_size or self.times_seen[key] > REPAID
        return is_due and len(self.graphs) < MAX_SHAPES

    def _replayed(self, graph: GraphModule, batch: Batch) -> Callable:
        with RandomStream(0):
            return simplified(graph, *self._inputs(batch)).forward

    def _compiled(self, graph: GraphModule, batch: Batch) -> Callable:
        inputs, compiler = self._inputs(batch), _by_cuda_graphs if batch.x.is_cuda else _by_inductor
        try:
            with RandomStream(0), torch.no_grad():
                compiled = compiler(copy.deepcopy(graph), inputs)
                compiled(*inputs)
        except Exception as error:
            self.on_refusal(f"the inductor failed ({first_line(error)})", "graph")
            return self._replayed(graph, batch)
        return compiled

    def _flat(self, like: Batch, has_gradient: list[bool], *inputs: Tensor) -> list[Tensor]:
        """Loss, sum of the gradients, loss sums, five terms, gradients; all from flat inputs."""
        given = iter(inputs)
        leaves = [next(given).detach().requires_grad_() for _ in self.trainable]
        others = [next(given) for _ in self.others]
        self.objective.given_weights = {name: next(given) for name in self.objective.weights()}
        batch = like.map(lambda _: next(given))
        new = dict(zip(map(id, [*self.trainable, *self.others]), [*leaves, *others], strict=True))
        # out of reach, because a number that changes would be recorded as a constant
        progress = vars(self.objective).pop("progress")
        try:
            with substituted(self.by_handlers.program, new):
                loss, terms = self.by_handlers.differentiable(batch)
        finally:
            self.objective.given_weights, self.objective.progress = {}, progress
        gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
        has_gradient[:] = [g is not None for g in gradients]
        found = list(in_own_memory((g for g in gradients if g is not None), inputs))
        sums = loss_sums(terms, self.by_handlers.settings.num_data)
        return [loss.detach(), sum_of_entries(found), sums, *detached(terms)[:5], *found]


def _by_inductor(graph: GraphModule, inputs: list[Tensor]) -> Callable:
    from torch import _inductor  # these take a moment to import
    from torch._guards import TracingContext, tracing
    from torch._subclasses import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    # the compiler looks into its cache of earlier runs only where a tracing context has shapes
    fake = FakeTensorMode(shape_env=ShapeEnv(), static_shapes=True)
    # not by torch.compile, whose look at the arguments costs as much as a small step
    with tracing(TracingContext(fake)):
        return _inductor.compile(graph, inputs, options={"fallback_random": True})


def _by_cuda_graphs(graph: GraphModule, inputs: list[Tensor]) -> Callable:
    """Compiled, and replayed by the GPU: results are overwritten by the next call."""
    options = {"fallback_random": True, "triton.cudagraphs": True}
    compiled = torch.compile(graph, dynamic=False, options=options)

    def call(*inputs: Tensor) -> list[Tensor]:
        torch.compiler.cudagraph_mark_step_begin()
        return compiled(*inputs)

    return call


class _Graph(NamedTuple):
    """The operations of a step, and which of the parameters they give a gradient."""

    of: Callable[..., list[Tensor]]
    has_gradient: list[bool]


def in_own_memory(gradients: Iterable[Tensor], inputs: Iterable[Tensor]) -> Iterator[Tensor]:
    """The gradients, those that share memory copied as `backward` does: clipping writes into them.

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
    """Why a program is not even tried: what would not fail and still be wrong."""
    if not isinstance(objective, Objective):
        return f"{type(objective).__name__} is one of Pyro's own objectives"
    if "progress" in _names_read(type(objective).surrogate):
        return f"{type(objective).__name__} reads its progress; weights() would let it be recorded"
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    if any(getattr(module, name, None) for module in program.modules() for name in hooks):
        return "a module of it has hooks, which run as Python each time"
    if any(p._backward_hooks or p._post_accumulate_grad_hooks for p in program.parameters()):
        return "a parameter of it has hooks, which run as Python each time"
    return None


def _names_read(function: Callable) -> tuple[str, ...]:
    return getattr(getattr(function, "__code__", None), "co_names", ())
