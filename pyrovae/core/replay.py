"""A program at given latents."""

from collections.abc import Callable, Mapping

import pyro
import pyro.distributions as dist
from torch import Tensor, nn

from pyrovae.contract.sites import is_local
from pyrovae.core.layout import Layout
from pyrovae.core.terms import draw_traces
from pyrovae.data import Batch, Source

Arrays = dict[str, Tensor]


def nothing(*batch: Tensor | None) -> None:
    """Sample nothing: a guide without sites, with which the model draws its latents."""


def latent_sites(program: nn.Module, data: Source | Batch) -> dict[str, dict]:
    """Return the model's latent sites in its order, traced on the first datum."""
    trace = draw_traces(program.model, program.guide, *data.head()).model
    return dict(trace.iter_stochastic_nodes())


def shared_latents(sites: Mapping[str, dict]) -> list[str]:
    """Return the names of the latents outside the plate "data"."""
    return [name for name, site in sites.items() if not is_local(site)]


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
