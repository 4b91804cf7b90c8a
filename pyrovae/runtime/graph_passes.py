"""Fewer and cheaper operations in a traced graph, with the same results bit for bit.

Autograd spells out every rule, and tracing every call. Most operations of a step of a small network
cost more to call than to compute. `simplified` removes

    identities   a view of the same shape, (aᵀ)ᵀ, a / 1, a ** 1, a split into or a join of one
    constants    what depends on no input is computed once
    duplicates   the same operation on the same inputs
    unused       results that are never read

and calls the rest through torch's Python bindings, at half the cost of its operator overloads.
Draws, and memory that is written into, stay as they are. The inductor has its own passes for this.
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
    """Simplify the graph in place, and return it: fewer, cheaper operations, the same results.

    Args:
        graph: of operator overloads, as `tracing.traced` returns it.
        inputs: what it was traced with; each cheaper call is tried on them.

    Example:
        >>> from pyrovae.runtime.tracing import traced
        >>> x = torch.ones(2, 2)
        >>> graph = simplified(traced(lambda x: x.t().t() ** 1 + torch.ones(2), x), x)
        >>> [node.name for node in graph.graph.nodes if node.op == "call_function"]
        ['add']
    """
    without_identities(graph)
    written = set(_written(graph))
    _fold_constants(graph, written)
    _merge_duplicates(graph, written)
    without_unused(graph)
    with torch.no_grad():
        _Bindings(graph).run(*inputs)
    graph.recompile()
    return graph


def without_identities(graph: GraphModule) -> GraphModule:
    """Remove operations that return their input, in place, and return the graph.

    Detaching is one of them: the graph no longer takes gradients.
    """
    for node in list(graph.graph.nodes):
        source = _unchanged(node)
        if source is not None and _same_form(node, source):
            node.replace_all_uses_with(source)
    return without_unused(graph)


def without_unused(graph: GraphModule) -> GraphModule:
    """Remove operations whose results are never read, in place, and return the graph."""
    graph.graph.eliminate_dead_code(lambda n: n.op in ("placeholder", "output") or acts(n.target))
    graph.recompile()
    return graph


def acts(target: Any) -> bool:
    """Return whether an operation does more than return its result: it writes or draws."""
    if not isinstance(target, torch._ops.OpOverload):
        return False
    return target._schema.is_mutable or torch.Tag.nondeterministic_seeded in target.tags


def _unchanged(node: Node) -> Node | None:
    """Return the node whose values this one repeats, if there is one."""
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
    """Yield the nodes whose memory is written into, including those that they are views of."""
    for node in graph.graph.nodes:
        if node.op == "call_function" and acts(node.target):
            for argument in node.all_input_nodes:
                yield from _memory(argument)


def _memory(node: Node) -> Iterator[Node]:
    """Yield a node and those that it may be a view of."""
    yield node
    schema = getattr(node.target, "_schema", None)
    is_view = schema is not None and any(a.alias_info for a in schema.arguments)
    if is_view or node.target is operator.getitem:
        for source in node.all_input_nodes:
            yield from _memory(source)


def _fold_constants(graph: GraphModule, written: set[Node]) -> None:
    """Compute once what depends on no input; the graph still returns new tensors at each call."""
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
    """Return the nodes whose memory the caller receives, and may write into."""
    output = next(iter(graph.graph.find_nodes(op="output")))
    return {m for node in output.all_input_nodes for m in _memory(node)}


def _empty_like(node: Node) -> Tensor:
    form = node.meta["tensor_meta"]
    device = node.meta["val"].device
    return torch.empty_strided(form.shape, form.stride, dtype=form.dtype, device=device)


def _multiply_by_number(node: Node, constant: Node, value: Tensor) -> None:
    """Multiply by a number instead of a constant tensor that holds this number everywhere."""
    if node.target is not aten.mul.Tensor or not value.is_floating_point() or not value.numel():
        return
    first, second = node.args
    other = second if first is constant else first
    number = value.reshape(-1)[0]
    is_one = isinstance(other, Node) and other is not constant and bool((value == number).all())
    if is_one and _same_form(node, other):
        node.args = (other, number.item())


def _merge_duplicates(graph: GraphModule, written: set[Node]) -> None:
    """Do the same operation on the same inputs once, except for memory that is written into.

    torch.fx's CSEPass is for functional graphs only: it merges draws, results that the caller may
    write into, and x + 1 with x + 1.0. Three tests of test_simplifying fail with it.
    """
    first: dict[Any, Node] = {}
    own = written | _returned(graph)
    for node in list(graph.graph.nodes):
        if node.op != "call_function" or acts(node.target):
            continue
        if node in own or not written.isdisjoint(node.all_input_nodes):
            continue
        original = first.setdefault(_key((node.target, node.args, node.kwargs)), node)
        if original is not node:
            node.replace_all_uses_with(original)


def _key(value: Any) -> Any:
    """Return a hashable form of an operation's arguments, in which 1, 1.0 and True differ."""
    if isinstance(value, list | tuple):
        return tuple(map(_key, value))
    if isinstance(value, dict):
        return tuple((k, _key(v)) for k, v in sorted(value.items()))
    return (type(value), value)


class _Bindings(Interpreter):
    """Interpreter that replaces each operation by its Python binding if the bits agree."""

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
    """Return the Python function of an operator; None unless it is implemented in C."""
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
