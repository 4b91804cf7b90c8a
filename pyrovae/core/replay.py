"""A program at given latents, and replicates of the data from it.

x^rep ~ p(x|z) at z ~ q(z|x), at z ~ p(z), or at latents from elsewhere
"""

from collections.abc import Callable, Collection, Iterator, Mapping

import pyro
import pyro.distributions as dist
from pyro import poutine
from torch import Tensor, nn

from pyrovae.contract.program import is_local
from pyrovae.core.chunking import budget_of, bytes_per_draw, sizes
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


def guide_at(
    latents: Arrays, event_dims: Mapping[str, int], shared: Collection[str] = ()
) -> Callable[..., None]:
    """Return a guide that fixes these latents.

    Args:
        latents: site → (S, N, *event), or (S, *event) for a shared one.
        event_dims: site → the number of its event dimensions.
        shared: sites outside the plate "data".
    """

    def sample(name: str, value: Tensor) -> None:
        value = value if len(value) > 1 else value[0]
        pyro.sample(name, dist.Delta(value, event_dim=event_dims[name]))

    def guide(x: Tensor, *batch: Tensor | None) -> None:
        for name in latents.keys() & shared:  # (S, 1, …): along the particles, before the data
            value = latents[name]
            sample(name, value[:, None] if len(value) > 1 else value)
        with pyro.plate("data", len(x), dim=-1):
            for name in latents:
                if name not in shared:
                    sample(name, latents[name])

    return guide


def values_of(
    trace: poutine.Trace, sites: Mapping[str, dict], num_samples: int, *more: str
) -> Arrays:
    """Return the values of sites, draws first: (S, N, …), or (S, *event) for a shared latent."""
    found = {}
    for name in (*sites, *more):
        value = trace.nodes[name]["value"]
        if name in sites and not is_local(sites[name]):
            found[name] = value.reshape(num_samples, *sites[name]["fn"].event_shape)
        else:
            found[name] = value if num_samples > 1 else value[None]
    return found


def replicated(
    program: nn.Module,
    data: Source | Batch,
    guide_for: Callable[[slice], Callable],
    *,
    num_samples: int,
    memory_budget: int | None,
) -> Iterator[Arrays]:
    """Yield replicates of the whole data, "x" and the latents, in chunks (s, N, …).

    Args:
        program: any program, inside `diagnosing`.
        data: validated; their x matters for its shape, and where the guide sees it.
        guide_for: a slice of the S draws → the guide that gives their latents.
        num_samples: S replicates in all.
        memory_budget: bytes for one chunk; at least one replicate is made at a time.
    """
    model, batch = poutine.uncondition(program.model), data.whole()
    one = batch.head()
    sites = latent_sites(program, batch)
    cost = bytes_per_draw(lambda size: draw_traces(model, nothing, *one, num_samples=size))
    chunk = max(1, budget_of(memory_budget, batch.device).num_bytes // (cost * batch.num_data))
    start = 0
    for size in sizes(num_samples, chunk):
        guide = guide_for(slice(start, start + size))
        trace = draw_traces(model, guide, *batch, num_samples=size).model
        yield values_of(trace, sites, size, "x")
        start += size
