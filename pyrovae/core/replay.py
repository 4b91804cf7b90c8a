"""The sites of a program, and the program at given latents."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
from torch import Tensor, nn

from pyrovae.contract.layout import Layout, layouts_of
from pyrovae.contract.sites import is_data
from pyrovae.core.marginal import drawn
from pyrovae.core.terms import draw_traces
from pyrovae.data import Batch, Source
from pyrovae.data.batch import num_rows

Arrays = dict[str, Tensor]


def nothing(*batch: Tensor | None) -> None:
    """Sample nothing: a guide without sites, with which the model draws its latents."""


class Sites(NamedTuple):
    """The sites of a program, by name and in the order of the model.

    Attributes:
        latents: those that the guide draws.
        summed: discrete latents that the guide leaves out, which are summed out.
        observed: those that hold data.
        layouts: of all of them.
    """

    latents: tuple[str, ...]
    summed: tuple[str, ...]
    observed: tuple[str, ...]
    layouts: dict[str, Layout]

    @property
    def shared(self) -> tuple[str, ...]:
        """Latents outside the plate "data"."""
        return tuple(name for name in self.latents if self.layouts[name].data is None)

    @property
    def nesting(self) -> int:
        """Number of dimensions of all plates."""
        return max((layout.nesting for layout in self.layouts.values()), default=1)


def sites_of(program: nn.Module, data: Source | Batch) -> Sites:
    """Return the sites of a program, traced on the first datum.

    Example:
        >>> import pyrovae as pv, torch
        >>> from pyrovae.handlers import own_store
        >>> with own_store():
        ...     sites = sites_of(pv.build((2,), latent_dim=1), Batch(torch.ones(1, 2)))
        >>> sites.latents, sites.summed, sites.observed
        (('z',), (), ('x',))
    """
    traces = draw_traces(drawn(program.model), program.guide, *data.head())
    latents = [name for name, _ in traces.model.iter_stochastic_nodes()]
    observed = (name for name in traces.model.observation_nodes)
    return Sites(
        tuple(name for name in latents if name in traces.guide),
        tuple(name for name in latents if name not in traces.guide),
        tuple(name for name in observed if is_data(traces.model.nodes[name])),
        layouts_of(*traces),
    )


def guide_at(latents: Arrays, layouts: Mapping[str, Layout]) -> Callable[..., None]:
    """Return a guide that fixes these latents.

    Args:
        latents: site → (S, N, *plates, *event), or (S, *plates, *event) for a shared one.
        layouts: site → its layout in the program.
    """

    def sample(name: str) -> None:
        value = layouts[name].traced(latents[name])
        pyro.sample(name, dist.Delta(value, event_dim=layouts[name].event_dim))

    def guide(x: Any, *batch: Any) -> None:
        local = [name for name in latents if layouts[name].data is not None]
        for name in latents:
            if name not in local:
                sample(name)
        with pyro.plate("data", num_rows(x), dim=-1):
            for name in local:
                sample(name)

    return guide
