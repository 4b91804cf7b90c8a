"""A program at given latents."""

from collections.abc import Callable, Mapping

import pyro
import pyro.distributions as dist
from torch import Tensor, nn

from pyrovae.core.layout import Layout, layouts_of
from pyrovae.core.terms import draw_traces
from pyrovae.data import Batch, Source

Arrays = dict[str, Tensor]


def nothing(*batch: Tensor | None) -> None:
    """Sample nothing: a guide without sites, with which the model draws its latents."""


def latent_layouts(program: nn.Module, data: Source | Batch) -> dict[str, Layout]:
    """Return the layouts of the model's latents in its order, traced on the first datum."""
    traces = draw_traces(program.model, program.guide, *data.head())
    layouts = layouts_of(*traces)
    return {name: layouts[name] for name, _ in traces.model.iter_stochastic_nodes()}


def shared_latents(layouts: Mapping[str, Layout]) -> list[str]:
    """Return the names of the latents outside the plate "data"."""
    return [name for name, layout in layouts.items() if layout.data is None]


def guide_at(latents: Arrays, layouts: Mapping[str, Layout]) -> Callable[..., None]:
    """Return a guide that fixes these latents.

    Args:
        latents: site → (S, N, *plates, *event), or (S, *plates, *event) for a shared one.
        layouts: site → its layout in the program.
    """

    def sample(name: str) -> None:
        value = layouts[name].traced(latents[name])
        pyro.sample(name, dist.Delta(value, event_dim=layouts[name].event_dim))

    def guide(x: Tensor, *batch: Tensor | None) -> None:
        local = [name for name in latents if layouts[name].data is not None]
        for name in latents:
            if name not in local:
                sample(name)
        with pyro.plate("data", len(x), dim=-1):
            for name in local:
                sample(name)

    return guide
