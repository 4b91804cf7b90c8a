"""Replicates of the data.

x^rep ~ p(x|z) at z ~ q(z|x), at z ~ p(z), or at latents from elsewhere. Discrete latents that are
summed out are drawn from p(c|x, z), or from the prior like z.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from pyrovae.contract.layout import layouts_of
from pyrovae.core.chunking import budget_of, bytes_per_draw, sizes
from pyrovae.core.marginal import drawn
from pyrovae.core.replay import Arrays, Sites, guide_at, nothing, sites_of
from pyrovae.core.terms import draw_traces, posterior_trace
from pyrovae.core.vectorized import Vectorization, vectorization_of
from pyrovae.data import Batch, Source

ROWS = 256


def value_of(site: dict) -> Tensor:
    """Return the value of a traced site."""
    return site["value"]


def replicated(
    program: nn.Module,
    data: Source | Batch,
    guide_for: Callable[[slice], Callable] | None = None,
    *,
    num_samples: int,
    memory_budget: int | None,
    of: Callable[[dict], Tensor] = value_of,
    is_new: bool = False,
) -> Iterator[Arrays]:
    """Yield replicates of the whole data, its observed sites and latents, in chunks (s, N, …).

    Args:
        program: any program, inside `diagnosing`.
        data: validated; only the shape of x matters, unless the guide reads x.
        guide_for: a slice of the S draws → the guide that fixes their latents; None draws them
            from the prior.
        num_samples: S, the total number of replicates.
        memory_budget: bytes for one chunk; at least one replicate is made at a time.
        of: what to read of an observed site, its value by default.
        is_new: whether discrete latents that are summed out are drawn from p(c|z), those of a new
            datum, instead of p(c|x, z), those of this one.
    """
    model, batch = drawn(poutine.uncondition(program.model)), data.whole()
    one, sites = batch.head(), sites_of(program, batch)
    chunk = 1
    if vectorization_of(program, batch) is Vectorization.BATCHED:
        cost = bytes_per_draw(lambda size: draw_traces(model, nothing, *one, num_samples=size))
        chunk = max(1, budget_of(memory_budget, batch.device).num_bytes // (cost * batch.num_data))
    start = 0
    joint = Unweighted(sites.observed)(program.model) if is_new else program.model
    for size in sizes(num_samples, chunk):
        guide = guide_for(slice(start, start + size)) if guide_for else nothing
        how = {"num_samples": size, "nesting": sites.nesting}
        if guide_for and sites.summed:
            guide = _with_summed(joint, guide, batch, sites, **how)
        trace = draw_traces(model, guide, *batch, **how).model
        layouts = layouts_of(trace)
        found = {n: trace.nodes[n]["value"] for n in (*sites.latents, *sites.summed)}
        found |= {n: of(trace.nodes[n]) for n in sites.observed}
        yield {name: layouts[name].canonical(value) for name, value in found.items()}
        start += size


class Unweighted(Messenger):
    """Handler that leaves sites of the data out of the density."""

    def __init__(self, names: tuple[str, ...]):
        super().__init__()
        self.names = names

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.names:
            msg["mask"] = False


def _with_summed(
    model: Callable, guide: Callable, batch: Batch, sites: Sites, **how: int
) -> Callable:
    """Return a guide that fixes one draw of this guide, and c given all other sites."""
    trace = posterior_trace(model, guide, *batch, **how)
    names = [*sites.latents, *sites.summed]
    latents = {n: sites.layouts[n].canonical(trace.nodes[n]["value"]) for n in names}
    return guide_at(latents, sites.layouts)


def observed_data(program: nn.Module, data: Source | Batch, sites: Sites) -> Arrays:
    """Return the data of each observed site, (N, *plates, *event), NaN where masked."""
    parts = []
    for rows in data.read(ROWS):
        trace = draw_traces(drawn(program.model), program.guide, *rows).model
        nodes = {name: trace.nodes[name] for name in sites.observed}
        parts.append({n: sites.layouts[n].canonical(_seen(site))[0] for n, site in nodes.items()})
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _seen(site: dict) -> Tensor:
    """Return the value of an observed site, NaN where it is masked."""
    density, masks = site["fn"], [site["mask"]]
    while hasattr(density, "base_dist"):
        masks.append(getattr(density, "_mask", None))
        density = density.base_dist
    value = site["value"]
    for mask in masks:
        if isinstance(mask, Tensor):
            mask = mask.reshape(*mask.shape, *[1] * (value.dim() - mask.dim()))
            value = torch.where(mask, value, torch.nan)
    return value
