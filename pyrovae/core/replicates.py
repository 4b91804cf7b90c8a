"""Replicates of the data.

x^rep ~ p(x|z) at z ~ q(z|x), at z ~ p(z), or at latents from elsewhere
"""

from collections.abc import Callable, Iterator

from pyro import poutine
from torch import nn

from pyrovae.core.chunking import budget_of, bytes_per_draw, sizes
from pyrovae.core.layout import layouts_of
from pyrovae.core.replay import Arrays, latent_layouts, nothing
from pyrovae.core.terms import draw_traces
from pyrovae.core.vectorized import Way, way_of
from pyrovae.data import Batch, Source


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
        data: validated; only the shape of x matters, unless the guide reads x.
        guide_for: a slice of the S draws → the guide that fixes their latents.
        num_samples: S, the total number of replicates.
        memory_budget: bytes for one chunk; at least one replicate is made at a time.
    """
    model, batch = poutine.uncondition(program.model), data.whole()
    one = batch.head()
    latents = latent_layouts(program, batch)
    nesting = max((layout.nesting for layout in latents.values()), default=1)
    chunk = 1
    if way_of(program, batch) is Way.AT_ONCE:
        cost = bytes_per_draw(lambda size: draw_traces(model, nothing, *one, num_samples=size))
        chunk = max(1, budget_of(memory_budget, batch.device).num_bytes // (cost * batch.num_data))
    start = 0
    for size in sizes(num_samples, chunk):
        guide = guide_for(slice(start, start + size))
        trace = draw_traces(model, guide, *batch, num_samples=size, nesting=nesting).model
        layouts = layouts_of(trace)
        yield {n: layouts[n].canonical(trace.nodes[n]["value"]) for n in (*latents, "x")}
        start += size
