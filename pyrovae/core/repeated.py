"""A program's log-densities at latents that change from call to call, as in Markov chains.

Pyro's handlers take longer than a small decoder: a call costs about twice that of a plain VAE.
After a few calls with latents of the same shapes, the tensor operations are therefore traced once
into a graph, which gives the same numbers and gradients without the handlers. Programs that a graph
cannot repeat (`runtime.tracing`) keep running under the handlers.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from pyrovae.runtime.graph_passes import simplified
from pyrovae.runtime.guards import Constants, hooks_within
from pyrovae.runtime.tracing import TracingError, substituted, traced

Latents = Mapping[str, Tensor]
Terms = Callable[[Latents], tuple[Tensor, ...]]

CALLS_BEFORE_TRACING = 20  # tracing takes as long as about 50 calls save
MAX_SHAPES = 8


class Repeated:
    """A function of latents whose graph replaces it once it is called often.

    Args:
        function: from latents to tensors, differentiable; it reads the program's own tensors,
            whose values must not change.
        program: the program that it runs.
    """

    def __init__(self, function: Terms, program: nn.Module):
        self.function, self.program = function, program
        self.own = [*program.parameters(), *program.buffers()]
        self.graphs: dict[Any, GraphModule] = {}
        self.times_seen: Counter[Any] = Counter()
        self.is_refused = hooks_within(program) is not None

    def __call__(self, latents: Latents) -> tuple[Tensor, ...]:
        graph = None if self.is_refused else self._graph(latents)
        if graph is None:
            return self.function(latents)
        # views in a graph are those of contiguous tensors
        return graph(*self.own, *(value.contiguous() for value in latents.values()))

    def _graph(self, latents: Latents) -> GraphModule | None:
        key = tuple((name, value.shape, value.dtype) for name, value in latents.items())
        self.times_seen[key] += 1
        is_due = self.times_seen[key] > CALLS_BEFORE_TRACING and len(self.graphs) < MAX_SHAPES
        if key not in self.graphs and is_due:
            try:
                self.graphs[key] = self._traced(latents)
            except Exception:  # any error of a custom program: the handlers can run it
                self.is_refused = True
        return self.graphs.get(key)

    def _traced(self, latents: Latents) -> GraphModule:
        names, values = list(latents), [value.detach().contiguous() for value in latents.values()]

        def flat(*inputs: Tensor) -> tuple[Tensor, ...]:
            own, drawn = inputs[: len(self.own)], inputs[len(self.own) :]
            with substituted(self.program, dict(zip(map(id, self.own), own, strict=True))):
                return self.function(dict(zip(names, drawn, strict=True)))

        constants, inputs = Constants(self.program), [*self.own, *values]
        with torch.no_grad():
            graph = simplified(traced(flat, *inputs, fixed=self.own), *inputs)
        if change := constants.change():
            raise TracingError(change)
        found = [_with_gradients(of, self.own, values) for of in (flat, graph)]
        if not all(torch.allclose(*pair, equal_nan=True) for pair in zip(*found, strict=True)):
            raise TracingError("its graph gives other numbers")
        return graph


def _with_gradients(function: Callable, own: list[Tensor], values: list[Tensor]) -> list[Tensor]:
    """Return the outputs, and the gradients of their sum in the latents that have one."""
    with torch.enable_grad():
        leaves = [v.clone().requires_grad_(v.is_floating_point()) for v in values]
        found = function(*own, *leaves)
        moving = [leaf for leaf in leaves if leaf.requires_grad]
        gradients = torch.autograd.grad(sum(t.sum() for t in found), moving, allow_unused=True)
    return [*found, *(g for g in gradients if g is not None)]
