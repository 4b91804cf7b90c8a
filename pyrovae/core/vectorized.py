"""The terms of a program at many draws, in the fastest way that gives the right numbers.

Draws are computed at once along an additional batch dimension on the left. A program whose code
counts dimensions from the left, such as z[:, 0], or uses the dimension of a plate as an event
dimension, then gives wrong numbers or fails. It is therefore tried on two rows: if the terms at
three draws differ from those of the same draws one by one, draws become rows, S copies of the data
with one draw each, which are independent without global latents. With them, each draw is a run.
"""

from collections.abc import Callable, Mapping
from enum import Enum
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from pyrovae.contract.layout import Layout, layouts_of
from pyrovae.contract.requirements import state_of
from pyrovae.core.replay import guide_at, sites_of
from pyrovae.core.terms import ElboTerms, draw_traces, terms_of
from pyrovae.data import Batch
from pyrovae.runtime.random_stream import RandomStream
from pyrovae.vae import is_plain_vae

NUM_DRAWS = 3
Latents = Mapping[str, Tensor]


class Vectorization(Enum):
    """Way to compute S draws: as a batch dimension, as S copies of the rows, or one by one."""

    BATCHED = "batched"
    REPEATED_ROWS = "repeated rows"
    SEQUENTIAL = "sequential"


# program → its state when it was tried, and the answer
_TRIED: WeakKeyDictionary[nn.Module, tuple[tuple, Vectorization]] = WeakKeyDictionary()


def vectorization_of(program: nn.Module, batch: Batch) -> Vectorization:
    """Return the way to compute many draws of a program.

    Args:
        program: a program in eval mode, inside its own parameter store.
        batch: validated data, with at least one row.

    Example:
        >>> import pyrovae as pv
        >>> vae = pv.build((2,), latent_dim=1)
        >>> vectorization_of(vae, Batch(torch.ones(1, 2)))
        <Vectorization.BATCHED: 'batched'>
    """
    if is_plain_vae(program):
        return Vectorization.BATCHED
    state, _ = state_of(program)
    tried = _TRIED.get(program)
    if tried is None or tried[0] != state:
        index = torch.arange(2) % batch.num_data
        with RandomStream(0), torch.no_grad():
            answer = _vectorization(program, batch.rows(index))
        _TRIED[program] = tried = state, answer
    return tried[1]


def _vectorization(program: nn.Module, rows: Batch) -> Vectorization:
    if _is_same(program, rows):
        return Vectorization.BATCHED
    return (
        Vectorization.SEQUENTIAL if sites_of(program, rows).shared else Vectorization.REPEATED_ROWS
    )


def _is_same(program: nn.Module, rows: Batch) -> bool:
    model, guide, num_data = program.model, program.guide, rows.num_data
    try:
        traces = draw_traces(model, guide, *rows, num_samples=NUM_DRAWS)
        at_once = terms_of(traces, num_data)
    except Exception:  # a custom program may raise anything on one more dimension
        return False
    layouts = layouts_of(*traces)
    # a guide with auxiliary sites has no density at given latents
    has_density = all(name in at_once.latents for name, _ in traces.guide.iter_stochastic_nodes())
    for draw in range(NUM_DRAWS):
        given = guide_at({n: v[draw : draw + 1] for n, v in at_once.latents.items()}, layouts)
        one = terms_of(draw_traces(model, given, *rows), num_data)
        pairs = [(one.log_prior, at_once.log_prior), (one.log_likelihood, at_once.log_likelihood)]
        if has_density:
            of_guide = terms_of(draw_traces(guide, given, *rows), num_data)
            pairs.append((of_guide.log_prior, at_once.log_guide))
        if not all(torch.allclose(a[0], b[draw], rtol=1e-3, atol=1e-3) for a, b in pairs):
            return False
    return True


def terms_at(
    model: Callable,
    guide: Callable | Latents,
    batch: Batch,
    num_samples: int,
    *,
    vectorization: Vectorization,
    layouts: Mapping[str, Layout],
) -> ElboTerms:
    """Return the terms of S draws, computed in the given way.

    Args:
        model: the model of the program.
        guide: the guide that draws the latents, or the latents themselves, (S, N, …).
        batch: validated data.
        num_samples: S.
        vectorization: as returned by `vectorization_of`.
        layouts: of the program's sites.
    """
    nesting = max((layout.nesting for layout in layouts.values()), default=1)

    def drawn(of: Callable | Latents, rows: Batch, size: int) -> ElboTerms:
        of = of if callable(of) else guide_at(of, layouts)
        traces = draw_traces(model, of, *rows, num_samples=size, nesting=nesting)
        return terms_of(traces, rows.num_data)

    if vectorization is Vectorization.BATCHED or num_samples == 1:
        return drawn(guide, batch, num_samples)
    if vectorization is Vectorization.REPEATED_ROWS:
        of = guide if callable(guide) else {n: v.flatten(0, 1)[None] for n, v in guide.items()}
        found = drawn(of, batch.repeat(num_samples), 1)
        shape = (num_samples, batch.num_data)
        rows = [term[0].unflatten(0, shape) for term in found[:3]]
        shared = [term.expand(num_samples) for term in found[3:5]]
        sites = ({n: v[0].unflatten(0, shape) for n, v in named.items()} for named in found[5:])
        return ElboTerms(*rows, *shared, *sites)
    each = range(num_samples)
    of = [guide if callable(guide) else {n: v[s : s + 1] for n, v in guide.items()} for s in each]
    return joined([drawn(one, batch, 1) for one in of])


def joined(parts: list[ElboTerms]) -> ElboTerms:
    """Concatenate terms along the draws."""
    arrays = map(torch.cat, zip(*(part[:5] for part in parts), strict=True))
    sites = ({n: torch.cat([part[i][n] for part in parts]) for n in parts[0][i]} for i in (5, 6))
    return ElboTerms(*arrays, *sites)
