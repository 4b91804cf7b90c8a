"""A batch's loss and gradients: by Pyro's handlers each time, or as a graph recorded once.

    loss   the objective's surrogate, mean per datum, in nats
    terms  log p(x|z), log p(z), log q(z|x) at the same draws: what is reported, at β = 1

`HandlerLoss` runs model and guide under Pyro's handlers for each batch. `GraphLoss` does so
only while `make_fx` records the tensor operations of loss and gradients, once for each shape
of batch; then it replays these, random draws included, or has the inductor compile them. Both
leave the gradients in the parameters' `.grad`. A program whose Python does what no record
can repeat (control flow that depends on values, hooks, draws from NumPy, buffers that
change) stays with the handlers, and `on_refusal` is told why.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pyro
import torch
from pyro.infer import ELBO
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from pyrovae.batches import Batch
from pyrovae.batches.digests import as_bytes
from pyrovae.errors import ConfigError
from pyrovae.handlers import RandomStream, data_scale, own_store
from pyrovae.objectives import Objective
from pyrovae.terms import ElboTerms, draw_traces, terms_of

MAX_NODES = 3000  # a larger graph takes longer to record and to compile than it saves
SHAPES = tuple(getattr(torch.ops.aten, n).default for n in ("detach", "view", "expand"))
MAX_SHAPES = 4  # of batches; a loader that gives ever other ones is served by the handlers


class Outcome(NamedTuple):
    """What a batch gave; its gradients are in the parameters' `.grad`.

    Attributes:
        loss: (), nats per datum.
        gradient_sum: (), of all entries of its gradients; not finite where one is not.
        sums: (2,) float64, Σ −log p(x|z) and Σ KL over the batch, in nats.
        terms: of the batch, at the draws of the loss, without gradients.
    """

    loss: Tensor
    gradient_sum: Tensor
    sums: Tensor
    terms: ElboTerms


class Settings(NamedTuple):
    """What the loss of a batch depends on beside the batch.

    Attributes:
        num_data: N; beside global latents a batch of B counts N / B times.
        has_globals: whether the program has latents outside the plate "data".
        is_bfloat16: whether networks compute in bfloat16; densities stay in float32.
    """

    num_data: int
    has_globals: bool = False
    is_bfloat16: bool = False

    def scaled(self, size: int) -> AbstractContextManager:
        """The minibatch scale for a batch of `size`.

        Without global latents the factor would cancel, and Pyro's RenyiELBO, which puts it
        inside its log-sum-exp, would be no bound any more.
        """
        return data_scale(self.num_data / size) if self.has_globals else nullcontext()

    def divisor(self, size: int) -> int:
        """What makes the scaled loss of a batch one per datum."""
        return self.num_data if self.has_globals else size


class HandlerLoss:
    """The loss of a batch by Pyro's handlers: model and guide run as Python each time.

    Args:
        program: the module with `.model` and `.guide`.
        objective: any `pyro.infer.ELBO`.
        settings_of: called once, with the first batch: what else the loss depends on.
    """

    def __init__(
        self, program: nn.Module, objective: ELBO, settings_of: Callable[[Batch], Settings]
    ):
        self.program, self.objective, self.settings_of = program, objective, settings_of
        self.parameters = trainable(program)
        self.settings: Settings | None = None

    def look_at(self, batch: Batch) -> None:
        """Learn from the first batch what the loss depends on."""
        if self.settings is None:
            self.settings = self.settings_of(batch)

    def __call__(self, batch: Batch) -> Outcome:
        self.look_at(batch)
        for parameter in self.parameters:
            parameter.grad = None  # whatever an interrupt, a callback or the caller left there
        if not isinstance(self.objective, Objective):
            return self._of_pyro(batch)
        loss, terms = self.differentiable(batch)
        loss.backward()
        return self._outcome(loss.detach(), _detached(terms))

    def differentiable(self, batch: Batch) -> tuple[Tensor, ElboTerms]:
        """Loss and terms with gradients, for an objective of pyrovae."""
        size, settings = len(batch.x), self.settings
        precision = bfloat16_networks(self.program) if settings.is_bfloat16 else nullcontext()
        with settings.scaled(size), precision:
            traces = self.objective.traces(self.program.model, self.program.guide, *batch)
            self.objective.check(traces)
            loss = self.objective.surrogate(traces, size) / settings.divisor(size)
        terms = terms_of(traces, size)
        if settings.is_bfloat16:
            check_float32(terms)
        return loss, terms

    def _of_pyro(self, batch: Batch) -> Outcome:
        model, guide, size = self.program.model, self.program.guide, len(batch.x)
        with self.settings.scaled(size):
            self.objective.loss_and_grads(model, guide, *batch)
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        torch._foreach_div_(gradients, self.settings.divisor(size))
        with torch.no_grad():
            terms = terms_of(draw_traces(model, guide, *batch), size)
        # the ELBO, because Pyro's own value may be no number (TraceTailAdaptive_ELBO: inf)
        return self._outcome(-terms.total_elbo.mean() / size, terms)

    def _outcome(self, loss: Tensor, terms: ElboTerms) -> Outcome:
        total = sum_of_entries(p.grad for p in self.parameters)
        return Outcome(loss, total, loss_sums(terms, self.settings.num_data), terms)


class GraphLoss:
    """The loss of a batch as a graph of tensor operations, recorded once for each shape.

    Args:
        by_handlers: the loss to record; it also serves what cannot be recorded.
        is_compiled: whether the graph for full batches goes through the inductor.
        full_size: B, of full batches; only their graph is worth the compiler's seconds.
        on_refusal: told why, and by what, the program is served after all.
    """

    def __init__(
        self,
        by_handlers: HandlerLoss,
        *,
        is_compiled: bool,
        full_size: int,
        on_refusal: Callable[[str, str], None] = lambda why, engine: None,
    ):
        self.by_handlers, self.objective = by_handlers, by_handlers.objective
        self.is_compiled, self.full_size, self.on_refusal = is_compiled, full_size, on_refusal
        self.graphs: dict[Any, _Graph] = {}
        self.is_refused = self.is_doubtful = False
        self._look(_refusal(by_handlers.program, self.objective))
        self.trainable = by_handlers.parameters
        self.others = [t for t in tensors_of(by_handlers.program) if not t.requires_grad]

    def __call__(self, batch: Batch) -> Outcome:
        self.by_handlers.look_at(batch)
        if self.is_doubtful and self.graphs:
            self._look(changed_since(self.python, self.by_handlers.program))
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
            self.on_refusal(refusal, "handlers")

    def _inputs(self, batch: Batch) -> list[Tensor]:
        dtype = self.trainable[0].dtype
        weights = [torch.tensor(w, dtype=dtype) for w in self.objective.weights().values()]
        return [*self.trainable, *self.others, *weights, *(t for t in batch if t is not None)]

    def _graph(self, batch: Batch) -> "_Graph | None":
        key = tuple(None if t is None else (t.shape, t.dtype) for t in batch)
        if key not in self.graphs and len(self.graphs) < MAX_SHAPES:
            has_gradient: list[bool] = []
            function = partial(self._flat, batch, has_gradient)
            try:
                graph = recorded(function, *self._inputs(batch), fixed=self.others)
            except CannotRecord as error:
                return self._look(str(error))
            if self.is_compiled and len(batch.x) == self.full_size:
                graph = self._compiled(graph, batch)
            self.graphs[key] = _Graph(graph, has_gradient)
        return self.graphs.get(key)

    def _compiled(self, graph: Callable, batch: Batch) -> Callable:
        compiled = torch.compile(graph, dynamic=False, options={"fallback_random": True})
        try:
            with RandomStream(0), torch.no_grad():
                compiled(*self._inputs(batch))
        except Exception as error:
            self.on_refusal(f"the inductor failed ({_first_line(error)})", "graph")
            return graph
        return compiled

    def _flat(self, like: Batch, has_gradient: list[bool], *inputs: Tensor) -> list[Tensor]:
        """Loss, sum of the gradients, loss sums, five terms, gradients; all from flat inputs."""
        given = iter(inputs)
        leaves = [next(given).detach().requires_grad_() for _ in self.trainable]
        others = [next(given) for _ in self.others]
        self.objective.given_weights = {name: next(given) for name in self.objective.weights()}
        batch = Batch(*(None if t is None else next(given) for t in like))
        new = dict(zip(map(id, [*self.trainable, *self.others]), [*leaves, *others], strict=True))
        self.python = python_state(self.by_handlers.program)
        # out of reach, because a number that changes would be recorded as a constant
        progress = vars(self.objective).pop("progress")
        try:
            with substituted(self.by_handlers.program, new):
                loss, terms = self.by_handlers.differentiable(batch)
        finally:
            self.objective.given_weights, self.objective.progress = {}, progress
            change = changed_since(self.python, self.by_handlers.program)
            for holder, name, value in self.python if change else ():
                setattr(holder, name, value)
        if change:
            raise CannotRecord(change)
        gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
        has_gradient[:] = [g is not None for g in gradients]
        found = [g for g in gradients if g is not None]
        sums = loss_sums(terms, self.by_handlers.settings.num_data)
        return [loss.detach(), sum_of_entries(found), sums, *_detached(terms)[:5], *found]


def python_state(module: nn.Module) -> list[tuple[Any, str, Any]]:
    """(holder, name, value) of the plain values of all submodules: constants of a graph.

    Example:
        >>> dropout = nn.Dropout(0.2)
        >>> [name for _, name, value in python_state(dropout) if value == 0.2]
        ['p']
    """
    values = [(m, n, v) for m in module.modules() for n, v in vars(m).items() if _is_plain(v)]
    return values + [(p, "requires_grad", p.requires_grad) for p in module.parameters()]


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str)


def changed_since(values: list[tuple[Any, str, Any]], module: nn.Module) -> str | None:
    """Which of the values of `python_state` is another one now, in words; None for none."""
    before = set(values)
    changed = [(m, n) for m, n, v in python_state(module) if (m, n, v) not in before]
    if not changed:
        return None
    holder, name = changed[0]
    return f"{name} of a {type(holder).__name__} changes, and a graph has it as a constant"


class _Graph(NamedTuple):
    """The operations of a step, and which of the parameters they give a gradient."""

    of: Callable[..., list[Tensor]]
    has_gradient: list[bool]


class CannotRecord(Exception):
    """A program does what no graph can repeat; the message says what."""


def recorded(
    function: Callable, *inputs: Tensor, fixed: Iterable[Tensor] = ()
) -> torch.fx.GraphModule:
    """The tensor operations of function(*inputs) as a graph, leaving no mark on the process.

    Args:
        function: of tensors, to tensors.
        inputs: what it is recorded with; the graph takes others of their shapes.
        fixed: those of the inputs that keep their values, so that shapes may depend on them.

    Raises:
        CannotRecord: it failed while recorded, drew from NumPy or `random`, changed one of its
            inputs, made shapes of values, or has more than 3,000 operations.

    Example:
        >>> graph = recorded(lambda x: x.sin() + 1, torch.zeros(2))
        >>> graph(torch.zeros(2))
        tensor([1., 1.])
    """
    from torch.fx.experimental.proxy_tensor import make_fx  # takes a moment to import

    tensors = [t for t in torch.utils._pytree.tree_leaves(inputs) if isinstance(t, Tensor)]
    saved = [(t, t.detach().clone()) for t in tensors if not t.requires_grad]
    stream = RandomStream(0)
    before = stream.state
    try:
        with stream, own_store(), pyro.validation_enabled(False), pyro.poutine.block():
            graph = make_fx(lambda *args: _watched(function, *args))(*inputs)
    except Exception as error:
        raise CannotRecord(_first_line(error)) from error
    finally:
        # by value, because batch normalisation writes without counting a version
        changed = [(t, value) for t, value in saved if as_bytes(t) != as_bytes(value)]
        with torch.no_grad():
            for tensor, value in changed:
                tensor.copy_(value)
    if changed:
        raise CannotRecord("it changes a buffer (batch normalisation does)")
    if _draws_elsewhere(before, stream.state):
        raise CannotRecord("it draws from NumPy or `random`, which a graph cannot repeat")
    if next(graph.parameters(), None) is not None:
        raise CannotRecord("it reaches a parameter by another way than its module")
    fixed = set(map(id, fixed))
    if selecting := _shape_of_values(graph, [id(t) in fixed for t in inputs]):
        raise CannotRecord(f"{selecting} gives a shape that depends on values")
    graph = _simplified(graph)
    try:
        with RandomStream(0), torch.no_grad():
            graph(*inputs)
    except Exception as error:  # the gradient of an LSTM can be recorded, and not be replayed
        raise CannotRecord(_first_line(error)) from error
    return graph


def _watched(function: Callable, *args: Any) -> Any:
    with _NodeLimit(), _NumbersLeft():
        return function(*args)


class _NumbersLeft(TorchFunctionMode):
    """Stops a recording where numbers leave torch: what is made of them would be a constant."""

    WAYS = (Tensor.numpy, Tensor.__array__, Tensor.tolist, Tensor.__dlpack__)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in self.WAYS:
            raise CannotRecord(f"it takes numbers out of torch (.{function.__name__}())")
        return function(*args, **kwargs or {})


class _NodeLimit(TorchDispatchMode):
    """Stops a recording that grows too large, before its minutes are spent."""

    def __init__(self) -> None:
        super().__init__()
        self.num_nodes = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.num_nodes += 1
        if self.num_nodes > MAX_NODES:
            raise CannotRecord(f"it has more than {MAX_NODES:,} operations")
        return operation(*args, **kwargs or {})


def _shape_of_values(graph: torch.fx.GraphModule, fixed: list[bool]) -> str | None:
    """The name of an operation whose result has a shape that changes with values; None for none.

    A mask that is a buffer selects the same cells each time; one that is made of data does not.
    """
    places = (node for node in graph.graph.nodes if node.op == "placeholder")
    moving = {place for place, is_fixed in zip(places, fixed, strict=True) if not is_fixed}
    for node in graph.graph.nodes:
        tags = getattr(node.target, "tags", ())
        if torch.Tag.dynamic_output_shape in tags and moving.intersection(_deciding(node)):
            return str(node.target)
        if moving.intersection(node.all_input_nodes) or torch.Tag.nondeterministic_seeded in tags:
            moving.add(node)
    return None


def _deciding(node: torch.fx.Node) -> list[torch.fx.Node]:
    """The inputs whose values decide about the shape of what an operation gives."""
    if node.target is not torch.ops.aten.index.Tensor:
        return node.all_input_nodes
    indices = [index for index in node.args[1] if index is not None]
    return [i for i in indices if i.meta["tensor_meta"].dtype in (torch.bool, torch.uint8)]


def _draws_elsewhere(before: tuple, after: tuple) -> bool:
    numpy_before, numpy_after = before[1], after[1]
    same_numpy = all(np.array_equal(a, b) for a, b in zip(numpy_before, numpy_after, strict=True))
    return not same_numpy or before[2] != after[2]


def _simplified(graph: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """The same graph without operations that give their input again, or that nobody uses.

    Detaching is one of the former: nothing in the graph takes a gradient any more.
    """
    for node in list(graph.graph.nodes):
        if node.target in SHAPES and _same_shape(node, node.args[0]):
            node.replace_all_uses_with(node.args[0])
    for node in reversed(list(graph.graph.nodes)):
        if node.op in ("call_function", "get_attr") and not node.users and not _acts(node.target):
            graph.graph.erase_node(node)
    graph.recompile()
    return graph


def _same_shape(node: torch.fx.Node, source: torch.fx.Node) -> bool:
    new, old = node.meta.get("tensor_meta"), source.meta.get("tensor_meta")
    return (
        new is not None and old is not None and (new.shape, new.stride) == (old.shape, old.stride)
    )


def _acts(target: Any) -> bool:
    """Whether an operation does more than give its result: writes, or draws."""
    if not isinstance(target, torch._ops.OpOverload):
        return False
    return target._schema.is_mutable or torch.Tag.nondeterministic_seeded in target.tags


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


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:200] or type(error).__name__


def trainable(module: nn.Module) -> list[nn.Parameter]:
    """The parameters to train, each once."""
    return [p for p in module.parameters() if p.requires_grad]


def tensors_of(module: nn.Module) -> list[Tensor]:
    """Parameters and buffers, each once."""
    return [*module.parameters(), *module.buffers()]


@contextmanager
def substituted(module: nn.Module, new: dict[int, Tensor]) -> Iterator[None]:
    """Other tensors for the module's own, by their id, wherever it or its submodules hold them.

    `torch.func.functional_call` restores wrongly where two parts share a module, as a VampPrior
    and its encoder do.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> with substituted(layer, {id(layer.bias): torch.full((1,), 7.0)}):
        ...     layer.bias
        tensor([7.])
    """
    stores = [store for m in module.modules() for store in (m._parameters, m._buffers)]
    held = [(store, name, t) for store in stores for name, t in store.items() if id(t) in new]
    try:
        for store, name, tensor in held:
            store[name] = new[id(tensor)]
        yield
    finally:
        for store, name, tensor in held:
            store[name] = tensor


def loss_sums(terms: ElboTerms, num_data: int) -> Tensor:
    """(2,) float64: the batch's Σ −log p(x|z) and Σ KL, means over draws; no gradients.

    A batch of B of N data carries B / N of the KL of global latents.
    """
    share = terms.log_prior.shape[-1] / num_data
    global_kl = (terms.global_log_guide - terms.global_log_prior) * share
    sums = torch.stack([-terms.log_likelihood.sum(-1), terms.kl.sum(-1) + global_kl])
    return sums.detach().mean(-1).double()


def sum_of_entries(gradients: Iterable[Tensor | None]) -> Tensor:
    """(), the sum of all entries: the cheapest number that is not finite where one of them is not.

    The largest absolute entry costs twenty times as much (torch 2.13, CPU).

    Example:
        >>> sum_of_entries([torch.ones(2), None, torch.tensor([torch.nan])])
        tensor(nan)
    """
    found = [g.detach().sum() for g in gradients if g is not None]
    return torch.stack(found).sum() if found else torch.zeros(())


def _detached(terms: ElboTerms) -> ElboTerms:
    return ElboTerms(*(t.detach() for t in terms[:5]), {})


@contextmanager
def bfloat16_networks(program: nn.Module) -> Iterator[None]:
    """Autocast to bfloat16 inside the calls of the program's parts, and nowhere else.

    Log-densities are computed outside these calls, and heads widen features to float32 before
    they make a density of them, so that only networks have 8 bits of mantissa.

    Example:
        >>> program = nn.Sequential(nn.Linear(2, 2))
        >>> with bfloat16_networks(program):
        ...     program[0](torch.ones(1, 2)).dtype
        torch.bfloat16
    """
    casts: list[torch.autocast] = []
    device = next((p.device.type for p in program.parameters()), "cpu")

    def enter(*_: Any) -> None:
        casts.append(torch.autocast(device, torch.bfloat16, cache_enabled=False))
        casts[-1].__enter__()

    def leave(*_: Any) -> None:
        casts.pop().__exit__(None, None, None)

    handles = []
    for part in program.children():
        handles.append(part.register_forward_pre_hook(enter))
        handles.append(part.register_forward_hook(leave, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def check_float32(terms: ElboTerms) -> None:
    """ConfigError where a density was computed in 16 bits."""
    for name in ("log_likelihood", "log_prior", "log_guide"):
        dtype = getattr(terms, name).dtype
        if dtype in (torch.bfloat16, torch.float16):
            raise ConfigError(
                f"{name} is in {dtype}, but with 3 digits a log-density of hundreds of nats is "
                "noise.\nLet your part widen its features: features = features.float(), or train "
                'with precision="float32".'
            )
