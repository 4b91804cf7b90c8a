"""Tracing a function's tensor operations into a graph, or saying why that is impossible.

`traced` runs the function once under `make_fx` and leaves the process as it was. It refuses what a
replay would silently get wrong: values that became constants, draws from other generators, inputs
that were changed. `substituted` replaces a module's own tensors by those of the tracer.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyro
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from pyrovae.runtime.graph_passes import without_identities
from pyrovae.runtime.hashing import as_bytes
from pyrovae.runtime.random_stream import RandomStream

MAX_NODES = 3000  # a larger graph takes longer to trace and compile than it saves


class TracingError(Exception):
    """A program does something that a graph cannot repeat; the message says what."""


def traced(
    function: Callable, *inputs: Tensor, fixed: Iterable[Tensor] = ()
) -> torch.fx.GraphModule:
    """Return the tensor operations of function(*inputs) as a graph; the process stays as it was.

    Args:
        function: from tensors to tensors.
        inputs: what it is traced with; the graph takes others of the same shapes.
        fixed: those of the inputs that keep their values, so that shapes may depend on them.

    Raises:
        TracingError: it failed while it was traced, drew from NumPy or `random`, changed one of
            its inputs, has shapes that depend on values, or more than 3,000 operations.

    Example:
        >>> graph = traced(lambda x: x.sin() + 1, torch.zeros(2))
        >>> graph(torch.zeros(2))
        tensor([1., 1.])
    """
    # takes a moment to import
    from torch._guards import TracingContext, tracing
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx

    tensors = [t for t in torch.utils._pytree.tree_leaves(inputs) if isinstance(t, Tensor)]
    saved = [(t, t.detach().clone()) for t in tensors if not t.requires_grad]
    stream = RandomStream(0)
    before = stream.state
    try:
        with (
            stream,
            pyro.get_param_store().scope(),
            pyro.validation_enabled(False),
            pyro.poutine.block(),
            # one mode for the shapes of all operations: without it make_fx starts one for each
            tracing(TracingContext(FakeTensorMode(allow_fallback_kernels=True))),
        ):
            graph = make_fx(lambda *args: _watched(function, *args))(*inputs)
    except Exception as error:
        raise TracingError(first_line(error)) from error
    finally:
        # by value, because batch normalization writes without counting a version
        changed = [(t, value) for t, value in saved if as_bytes(t) != as_bytes(value)]
        with torch.no_grad():
            for tensor, value in changed:
                tensor.copy_(value)
    if changed:
        raise TracingError("it changes a buffer, as batch normalization does")
    if _draws_elsewhere(before, stream.state):
        raise TracingError("it draws from NumPy or `random`, which a graph cannot repeat")
    if next(graph.parameters(), None) is not None:
        raise TracingError("it reaches a parameter in another way than through its module")
    fixed = set(map(id, fixed))
    if selecting := _shape_of_values(graph, [id(t) in fixed for t in inputs]):
        raise TracingError(f"{selecting} gives a shape that depends on values")
    graph = without_identities(graph)
    try:
        with RandomStream(0), torch.no_grad():
            graph(*inputs)
    except Exception as error:  # the gradient of an LSTM can be traced, but not replayed
        raise TracingError(first_line(error)) from error
    return graph


def _watched(function: Callable, *args: Any) -> Any:
    with _NodeLimit(), _NumbersLeft():
        return function(*args)


class _NumbersLeft(TorchFunctionMode):
    """Mode that stops tracing where numbers leave torch: their results would be constants."""

    WAYS = (Tensor.numpy, Tensor.__array__, Tensor.tolist, Tensor.__dlpack__)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in self.WAYS:
            raise TracingError(f"it takes numbers out of torch (.{function.__name__}())")
        return function(*args, **kwargs or {})


class _NodeLimit(TorchDispatchMode):
    """Mode that stops tracing a graph that grows too large, before it takes minutes."""

    def __init__(self) -> None:
        super().__init__()
        self.num_nodes = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.num_nodes += 1
        if self.num_nodes > MAX_NODES:
            raise TracingError(f"it has more than {MAX_NODES:,} operations")
        return operation(*args, **kwargs or {})


def _shape_of_values(graph: torch.fx.GraphModule, fixed: list[bool]) -> str | None:
    """Return the name of an operation whose output shape changes with values; None for none.

    A mask that is a buffer selects the same cells each time; one that is made from data does not.
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
    """Return the inputs whose values determine the shape of an operation's output."""
    if node.target is not torch.ops.aten.index.Tensor:
        return node.all_input_nodes
    indices = [index for index in node.args[1] if index is not None]
    return [i for i in indices if i.meta["tensor_meta"].dtype in (torch.bool, torch.uint8)]


def _draws_elsewhere(before: tuple, after: tuple) -> bool:
    numpy_before, numpy_after = before[1], after[1]
    same_numpy = all(np.array_equal(a, b) for a, b in zip(numpy_before, numpy_after, strict=True))
    return not same_numpy or before[2] != after[2]


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its class if there is no message."""
    return str(error).strip().partition("\n")[0][:200] or type(error).__name__


@contextmanager
def substituted(module: nn.Module, new: dict[int, Tensor]) -> Iterator[None]:
    """Replace a module's own tensors, by their id, wherever it or its submodules hold them.

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
