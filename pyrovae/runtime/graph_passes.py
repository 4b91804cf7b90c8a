"""Fewer and cheaper operations in a recorded graph, for the same numbers bit for bit.

Autograd writes down each rule in full, and the recorder each call; of a step's operations on a
small network, most cost more to call than to compute. `simplified` takes out

    identities   a view of the same shape, (aᵀ)ᵀ, a / 1, a ** 1, a split into or a join of one
    constants    what depends on no input is computed once
    twins        the same operation on the same inputs
    unused       what nobody reads

and calls what is left by torch's Python bindings, at half the cost of its operator overloads.
What is drawn or written into stays as it is. The inductor has passes of its own for all of this.
"""

import operator
from collections.abc import Callable, Iterator
from types import BuiltinFunctionType, MethodDescriptorType
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from pyrovae.runtime.hashing import as_bytes

aten = torch.ops.aten
RESHAPES = (aten.detach.default, aten.view.default, aten.expand.default)
FORM_ONLY = (aten.ones_like.default, aten.zeros_like.default, aten.full_like.default)
POWERS = {aten.div.Tensor: 1, aten.mul.Tensor: 1, aten.pow.Tensor_Scalar: 1}


def simplified(graph: GraphModule, *inputs: Tensor) -> GraphModule:
    """The graph, changed in place, with fewer and cheaper operations for the same numbers.

    Args:
        graph: of operator overloads, as `recording.recorded` gives it.
        inputs: what it was recorded with; each cheaper call is tried on them.

    Example:
        >>> from pyrovae.runtime.tracing import recorded
        >>> x = torch.ones(2, 2)
        >>> graph = simplified(recorded(lambda x: x.t().t() ** 1 + torch.ones(2), x), x)
        >>> [node.name for node in graph.graph.nodes if node.op == "call_function"]
        ['add']
    """
    without_identities(graph)
    written = set(_written(graph))
    _fold_constants(graph, written)
    _merge_twins(graph, written)
    without_unused(graph)
    with torch.no_grad():
        _Bindings(graph).run(*inputs)
    graph.recompile()
    return graph


def without_identities(graph: GraphModule) -> GraphModule:
    """The graph, changed in place, without operations that give their input again.

    Detaching is one of them: nothing in the graph takes a gradient any more.
    """
    for node in list(graph.graph.nodes):
        source = _unchanged(node)
        if source is not None and _same_form(node, source):
            node.replace_all_uses_with(source)
    return without_unused(graph)


def without_unused(graph: GraphModule) -> GraphModule:
    """The graph, changed in place, without operations that nobody reads."""
    graph.graph.eliminate_dead_code(lambda n: n.op in ("placeholder", "output") or acts(n.target))
    graph.recompile()
    return graph


def acts(target: Any) -> bool:
    """Whether an operation does more than give its result: writes, or draws."""
    if not isinstance(target, torch._ops.OpOverload):
        return False
    return target._schema.is_mutable or torch.Tag.nondeterministic_seeded in target.tags


def _unchanged(node: Node) -> Node | None:
    """The node whose numbers this one gives again, if there is such a node."""
    target, args = node.target, node.args
    if target in RESHAPES or (target in POWERS and args[1:] == (POWERS[target],)):
        return args[0]
    if target is aten.t.default and args[0].target is target:
        return args[0].args[0]
    if target is aten.cat.default and len(args[0]) == 1:
        return args[0][0]
    if target is operator.getitem and args[0].target is aten.split.Tensor and args[1] == 0:
        return args[0].args[0]
    return None


def _same_form(node: Node, source: Node) -> bool:
    new, old = node.meta.get("tensor_meta"), source.meta.get("tensor_meta")
    if new is None or old is None:
        return False
    return (new.shape, new.stride, new.dtype) == (old.shape, old.stride, old.dtype)


def _written(graph: GraphModule) -> Iterator[Node]:
    """The nodes whose memory an operation writes into, those that they are views of included."""
    for node in graph.graph.nodes:
        if node.op == "call_function" and acts(node.target):
            for argument in node.all_input_nodes:
                yield from _memory(argument)


def _memory(node: Node) -> Iterator[Node]:
    """A node and those that it may be a view of."""
    yield node
    schema = getattr(node.target, "_schema", None)
    is_view = schema is not None and any(a.alias_info for a in schema.arguments)
    if is_view or node.target is operator.getitem:
        for source in node.all_input_nodes:
            yield from _memory(source)


def _fold_constants(graph: GraphModule, written: set[Node]) -> None:
    """Compute once what depends on no input; results of the graph stay tensors of each call."""
    returned, values = _returned(graph), dict[Node, Any]()
    for node in graph.graph.nodes:
        is_pure = node.op == "call_function" and not acts(node.target) and node not in written
        if is_pure and node.target in FORM_ONLY:
            values[node] = node.target(_empty_like(node.args[0]), *node.args[1:], **node.kwargs)
        elif is_pure and all(n in values for n in node.all_input_nodes):
            args, kwargs = torch.fx.map_arg((node.args, node.kwargs), values.__getitem__)
            values[node] = node.target(*args, **kwargs)
    for node, value in values.items():
        readers = [user for user in node.users if user not in values]
        if not readers or node in returned or not isinstance(value, Tensor):
            continue
        name = f"constant_{node.name}"
        graph.register_buffer(name, value)
        with graph.graph.inserting_before(node):
            constant = graph.graph.get_attr(name)
        constant.meta = dict(node.meta)
        for reader in readers:
            reader.replace_input_with(node, constant)
            _multiply_by_number(reader, constant, value)


def _returned(graph: GraphModule) -> set[Node]:
    """The nodes whose memory the caller gets, who may write into it."""
    output = next(iter(graph.graph.find_nodes(op="output")))
    return {m for node in output.all_input_nodes for m in _memory(node)}


def _empty_like(node: Node) -> Tensor:
    form = node.meta["tensor_meta"]
    device = node.meta["val"].device
    return torch.empty_strided(form.shape, form.stride, dtype=form.dtype, device=device)


def _multiply_by_number(node: Node, constant: Node, value: Tensor) -> None:
    """A product with a constant that is one number everywhere, by that number."""
    if node.target is not aten.mul.Tensor or not value.is_floating_point() or not value.numel():
        return
    first, second = node.args
    other = second if first is constant else first
    number = value.reshape(-1)[0]
    is_one = isinstance(other, Node) and other is not constant and bool((value == number).all())
    if is_one and _same_form(node, other):
        node.args = (other, number.item())


def _merge_twins(graph: GraphModule, written: set[Node]) -> None:
    """Do the same operation on the same inputs once, but for memory that someone writes into.

    torch.fx's CSEPass is for functional graphs only: it merges draws, results that the caller may
    write into, and x + 1 with x + 1.0 (test_simplifying, with "draws" and "no twins" the first).
    """
    first: dict[Any, Node] = {}
    own = written | _returned(graph)
    for node in list(graph.graph.nodes):
        if node.op != "call_function" or acts(node.target):
            continue
        if node in own or not written.isdisjoint(node.all_input_nodes):
            continue
        twin = first.setdefault(_key((node.target, node.args, node.kwargs)), node)
        if twin is not node:
            node.replace_all_uses_with(twin)


def _key(value: Any) -> Any:
    """A hashable form of an operation's arguments; 1, 1.0 and True are three."""
    if isinstance(value, list | tuple):
        return tuple(map(_key, value))
    if isinstance(value, dict):
        return tuple((k, _key(v)) for k, v in sorted(value.items()))
    return (type(value), value)


class _Bindings(Interpreter):
    """Runs a graph once; each operation whose Python binding gives the same bits is then it."""

    def run_node(self, node: Node) -> Any:
        result = super().run_node(node)
        binding = None if acts(node.target) else _binding(node.target)
        if binding is not None:
            args, kwargs = self.fetch_args_kwargs_from_env(node)
            try:
                is_same = _same_bits(result, binding(*args, **kwargs))
            except (TypeError, RuntimeError, ValueError):  # another signature
                is_same = False
            if is_same and isinstance(binding, MethodDescriptorType):
                node.op, node.target = "call_method", binding.__name__
            elif is_same:
                node.target = binding
        return result


def _binding(target: Any) -> Callable | None:
    """What Python calls where C++ has this operator; None without one in C."""
    if not isinstance(target, torch._ops.OpOverload) or target.namespace != "aten":
        return None
    name = target._schema.name.removeprefix("aten::")
    for place in (torch, torch._C._nn, Tensor):
        found = getattr(place, name, None)
        if isinstance(found, BuiltinFunctionType | MethodDescriptorType):
            return found
    return None


def _same_bits(a: Any, b: Any) -> bool:
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(map(_same_bits, a, b))
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return False
    forms = [(t.shape, t.stride(), t.dtype, t.device) for t in (a, b)]
    return forms[0] == forms[1] and as_bytes(a) == as_bytes(b)
