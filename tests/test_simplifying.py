"""A simplified graph has fewer operations and gives the same bits for all inputs."""

import pytest
import torch

from pyrovae.runtime.graph_passes import simplified
from pyrovae.runtime.random_stream import RandomStream
from pyrovae.runtime.tracing import traced
from pyrovae.training.traced import in_own_memory

X, Y = torch.arange(6.0).reshape(2, 3), torch.tensor([[1.5, -2.0, 0.25]])


def operations(graph):
    return [n.target for n in graph.graph.nodes if n.op in ("call_function", "call_method")]


def drawn(x, y):
    return x + torch.randn(2, 3) + torch.randn(2, 3)


def filled(x, y):
    """Memory that is written after it was read, next to constants."""
    place = torch.zeros(2, 3)
    before = place + 1.0
    place.add_(x)
    return before + (place + 1.0) + (torch.zeros(2, 3) + 1.0)


def written_through_a_view(x, y):
    place = torch.zeros(2, 3)
    place.t()[0].copy_(x[:, 0])
    return place * y + torch.zeros(2, 3)


# name → (function, number of remaining operations)
FUNCTIONS = {
    "double transpose": (lambda x, y: x.t().t() + y, 1),
    "division and power by one": (lambda x, y: (x / 1) ** 1.0 * y, 1),
    "division by one of whole numbers": (lambda x, y: (x.long() / 1) + y, 3),
    "split into one": (lambda x, y: torch.cat([x.split(3, -1)[0]], 1) * y, 1),
    "split into two": (lambda x, y: x.split([1, 2], -1)[0] * y, 3),
    "duplicates": (lambda x, y: (x * y).sin() + (x * y).sin(), 3),
    "no duplicates: 1 and 1.0": (lambda x, y: (x.long() + 1) * (x.long() + 1.0) * y, 5),
    "constants": (lambda x, y: x * torch.ones(2, 3).mul(0.1).exp() + y, 2),
    "ones like": (lambda x, y: x * (torch.ones_like(x) / 7) + y, 2),
    "a constant that is not one number": (lambda x, y: x * torch.arange(3.0).exp() + y, 2),
    "a product that broadcasts": (lambda x, y: (y * torch.full((2, 3), 0.3)).sum(0) + x, 3),
    "a product of whole numbers": (lambda x, y: x * torch.full((2, 3), 3) + y, 2),
    "draws": (drawn, 4),
    "written memory": (filled, 6),
    "memory written through a view": (written_through_a_view, 7),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_same_bits_with_this_number_of_operations(name):
    function, left = FUNCTIONS[name]
    graph = traced(function, X, Y)
    num_before = len(operations(graph))
    graph = simplified(graph, X, Y)
    assert len(operations(graph)) == left <= num_before
    for x, y in [(X, Y), (X.neg() - 0.3, Y.exp()), (X * 1e30, Y / 0)]:
        with RandomStream(3):
            expected = function(x, y)
        with RandomStream(3):
            got = graph(x, y)
        assert torch.equal(got.isnan(), expected.isnan())
        assert torch.equal(got.nan_to_num(), expected.nan_to_num())
        assert got.stride() == expected.stride()


def test_operations_are_called_through_their_bindings():
    graph = simplified(traced(lambda x, y: torch.sigmoid(x @ y.t()).expand(4, 2, 1), X, Y), X, Y)
    assert operations(graph) == [torch.t, torch.mm, torch.sigmoid, "expand"]


def test_what_a_graph_returns_is_new_each_time():
    """The caller may write into it, so it is neither a constant nor merged with a duplicate."""
    graph = traced(lambda x: [torch.ones(2), torch.ones(2).view(2, 1), x + 1, x + 1], X)
    graph = simplified(graph, X)
    for index, expected in enumerate([2.0, 2.0, 21.0, 21.0]):
        results = graph(X)
        assert float(results.pop(index).sum()) == expected
        for other in results:
            other.mul_(0.0)
        assert float(graph(X)[index].sum()) == expected
    a, b = graph(X)[2:]
    assert a.data_ptr() != b.data_ptr()


def test_gradients_that_share_memory_are_copied():
    """autograd.grad returns one gradient for a and b of a + b, and one number for a sum."""
    a, b, c = (torch.ones(2, 2, requires_grad=True) for _ in range(3))
    shared = torch.autograd.grad(((a + b) ** 2).sum() + c.sum(), [a, b, c])
    assert shared[0].data_ptr() == shared[1].data_ptr()
    for gradient in (own := list(in_own_memory(shared, []))):
        gradient.mul_(0.5)
    assert [g.tolist()[0] for g in own] == [[2.0, 2.0], [2.0, 2.0], [0.5, 0.5]]
