"""Layout of a traced site: its dimensions of draws, data and other plates.

A plate owns a batch dimension, numbered from the right. The plate "particles" of the S draws is
left of all plates of the program, so that it does not change their numbers.

    traced     (S, *plates and data, *event)     size 1 where the site is outside a plate
    canonical  (S, N, *plates, *event)           inside the plate "data"
               (S, *plates, *event)              outside: a global latent
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

from pyro import poutine
from torch import Tensor

from pyrovae.errors import ConfigError

PARTICLES = "particles"


class Layout(NamedTuple):
    """Layout of one site; dimensions are negative, from the right of the batch shape.

    Attributes:
        name: the site's name.
        event_dim: the number of event dimensions.
        data: the dimension of the plate "data"; None for a global site.
        plates: dimensions of its other plates, from left to right.
        nesting: number of dimensions of all plates of the program, to the right of the draws.
    """

    name: str
    event_dim: int
    data: int | None
    plates: tuple[int, ...]
    nesting: int

    def canonical(self, value: Tensor, event_dim: int | None = None) -> Tensor:
        """Return a traced value, or with event_dim=0 a log-density, in canonical layout.

        Raises:
            ConfigError: a dimension does not belong to a plate.
        """
        event = self.event_dim if event_dim is None else event_dim
        batch = value.dim() - event
        if self.nesting == 1 and self.data == -1 and batch in (1, 2):  # no plate but "data"
            return value if batch == 2 else value[None]
        event_shape = value.shape[batch:]
        if batch > self.nesting + 1:
            raise self._error(value, event)
        padded = value.reshape(*[1] * (self.nesting + 1 - batch), *value.shape)
        kept, others = self._places()
        if any(padded.shape[place] != 1 for place in others):
            raise self._error(value, event)
        events = range(self.nesting + 1, padded.dim())
        moved = padded.permute(0, *kept, *others, *events)
        return moved.reshape(*moved.shape[: 1 + len(kept)], *event_shape)

    def traced(self, value: Tensor) -> Tensor:
        """Return a canonical value in traced layout, without the first dimension if S = 1."""
        kept, others = self._places()
        order = [0, *kept, *others]
        event = value.shape[value.dim() - self.event_dim :]
        spread = value.reshape(*value.shape[: 1 + len(kept)], *[1] * len(others), *event)
        inverse = [order.index(place) for place in range(len(order))]
        moved = spread.permute(*inverse, *range(len(order), spread.dim()))
        return moved if len(moved) > 1 else moved[0]

    def _places(self) -> tuple[list[int], list[int]]:
        """Return the positions in (S, …) of the site's plates, and of the plates of other sites."""
        own = [*([] if self.data is None else [self.data]), *self.plates]
        kept = [1 + self.nesting + dim for dim in own]
        return kept, [place for place in range(1, self.nesting + 1) if place not in kept]

    def _error(self, value: Tensor, event_dim: int) -> ConfigError:
        shape = tuple(value.shape[: value.dim() - event_dim])
        return ConfigError(
            f"site {self.name!r} has batch shape {shape}, but not every dimension of it belongs to "
            "a plate: each number would count as a separate datum or draw.\n"
            "Declare the dimensions of a datum as event dimensions, .to_event(k), or put them in a "
            "plate."
        )


def layouts_of(*traces: poutine.Trace) -> dict[str, Layout]:
    """Return the layouts of all sites of a program's traces; earlier traces take precedence."""
    nesting = nesting_of(*traces)
    sites = (site for trace in reversed(traces) for site in _sites(trace))
    return {site["name"]: layout_of(site, nesting) for site in sites}


def layout_of(site: dict, nesting: int) -> Layout:
    """Return the layout of a site in a program whose plates take `nesting` dimensions."""
    frames = {f.name: f.dim for f in _frames(site)}
    data = frames.pop("data", None)
    event_dim = len(site["fn"].event_shape)
    return Layout(site["name"], event_dim, data, tuple(sorted(frames.values())), nesting)


def nesting_of(*traces: poutine.Trace) -> int:
    """Return the number of dimensions of all plates of a program, at least 1."""
    stacks = (site["cond_indep_stack"] for trace in traces for site in _sites(trace))
    frames = (f for stack in stacks for f in stack if f.dim is not None)
    # a guide may lack a plate of the model; the plate of the draws is left of all of them
    return max((-f.dim - (f.name == PARTICLES) for f in frames), default=1)


def _sites(trace: poutine.Trace) -> list[dict[str, Any]]:
    return [site for site in trace.nodes.values() if site["type"] == "sample"]


def _frames(site: dict) -> Iterator[Any]:
    """Yield the plates with a dimension; a sequential plate (a `for` loop) has none."""
    stack = site["cond_indep_stack"]
    return (f for f in stack if f.dim is not None and f.name != PARTICLES)
