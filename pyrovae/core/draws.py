"""What the diagnostics share: traces of guide and model, read in pieces of a byte budget.

A diagnostic needs a few numbers of each pair of a draw z ~ q(z|x_i) and a datum; the traces
that give them need a decoder's activations. `over_draws` makes the traces piece by piece and
keeps the numbers only. Everything runs in eval mode, without gradients, in a random stream
and a parameter store of its own (`diagnosing`).
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pyro
import torch
from pyro import poutine
from torch import Tensor, nn

from pyrovae.checks import seed_number
from pyrovae.core.chunking import budget_in_bytes, bytes_per_draw, chunk_of, first_row, row_batches
from pyrovae.core.joint import is_plain_vae
from pyrovae.core.terms import Traces, draw_traces, is_local, terms_of
from pyrovae.data import Batch
from pyrovae.errors import ConfigError
from pyrovae.handlers import evaluation
from pyrovae.runtime.random_stream import RandomStream

Arrays = dict[str, Tensor]
Reading = Callable[[Traces, int], Arrays]


@contextmanager
def diagnosing(program: nn.Module, seed: int | None) -> Iterator[None]:
    """Eval mode, no gradients, a random stream of this seed and a parameter store of its own."""
    with RandomStream(seed_number(seed)), evaluation(program), pyro.validation_enabled(False):
        yield


def over_draws(
    program: nn.Module, batch: Batch, read: Reading, *, num_samples: int, memory_budget: int | None
) -> Arrays:
    """What `read` finds in the traces, for all draws of all data: name → (S, N, …).

    Args:
        program: any program, inside `diagnosing`.
        batch: checked data.
        read: (traces, n) → name → (s, n, …), of s draws for n data.
        num_samples: S, draws per datum.
        memory_budget: bytes for one piece, as for `log_evidence`.

    Raises:
        MemoryError: one draw of one datum does not fit the budget.
    """
    one = first_row(batch)
    budget = budget_in_bytes(memory_budget, batch.x.device)

    def draw(size: int, rows: Batch = one) -> Traces:
        return draw_traces(program.model, program.guide, *rows, num_samples=size)

    chunk = chunk_of(num_samples, len(batch.x), bytes_per_draw(draw), budget, what="draws")
    by_rows = []
    for rows in row_batches(batch, chunk.rows):
        parts = [read(draw(s, rows), len(rows.x)) for s in sizes(num_samples, chunk.draws)]
        by_rows.append(concat(parts, 0))
    return concat(by_rows, 1)


def sizes(total: int, largest: int) -> list[int]:
    """The total in pieces of at most so many.

    Example:
        >>> sizes(10, 4)
        [4, 4, 2]
    """
    return [min(largest, total - start) for start in range(0, total, largest)]


def concat(parts: list[Arrays], dim: int) -> Arrays:
    """Name by name, one behind the other along `dim`."""
    return {name: torch.cat([part[name] for part in parts], dim) for name in parts[0]}


def read_terms(traces: Traces, num_data: int) -> Arrays:
    """log_prior, log_likelihood and log_guide, (s, n) float64 each."""
    terms = terms_of(traces, num_data)
    return {name: getattr(terms, name).double() for name in terms._fields[:3]}


def read_latents(traces: Traces, num_data: int) -> Arrays:
    """z: the local latents side by side, (s, n, D), in the order of the model."""
    latents = terms_of(traces, num_data).latents
    local = {n: latents[n] for n in local_latents(traces)}
    return {
        "z": torch.cat([v.flatten(2) if v.dim() > 2 else v[..., None] for v in local.values()], -1)
    }


def local_latents(traces: Traces) -> list[str]:
    """The latent sites inside the plate "data", in the order of the model."""
    return [name for name, site in traces.model.iter_stochastic_nodes() if is_local(site)]


def latent_names(program: nn.Module, batch: Batch) -> tuple[str, ...]:
    """One name for each latent dimension: "z[0]", "z[1]", …; "y" for a site of one number."""
    traces = draw_traces(program.model, program.guide, *first_row(batch))
    names = []
    for name in local_latents(traces):
        shape = traces.model.nodes[name]["fn"].event_shape
        names += [f"{name}[{i}]" for i in range(shape.numel())] if shape else [name]
    return tuple(names)


def replicated(
    program: nn.Module,
    batch: Batch,
    *,
    from_prior: bool,
    num_samples: int,
    memory_budget: int | None,
) -> Iterator[Tensor]:
    """Replicates of the whole data, x^rep ~ p(x|z), in pieces (s, N, *event).

    Args:
        program: any program, inside `diagnosing`.
        batch: checked data; its x matters for the shape only when z comes from the prior.
        from_prior: z ~ p(z) rather than z ~ q(z|x).
        num_samples: S replicates in all.
        memory_budget: bytes for one piece; at least one replicate is made at a time.
    """
    model = poutine.uncondition(program.model)
    guide = _nothing if from_prior else program.guide

    def draw(size: int, rows: Batch = batch) -> Tensor:
        traces = draw_traces(model, guide, *rows, num_samples=size)
        return traces.model.nodes["x"]["value"].reshape(size, *rows.x.shape)

    one = first_row(batch)
    cost = bytes_per_draw(lambda size: draw(size, one)) * len(batch.x)
    budget = budget_in_bytes(memory_budget, batch.x.device)
    for size in sizes(num_samples, max(1, budget // cost)):
        yield draw(size)


def _nothing(*batch: Tensor | None) -> None:
    """A guide without sites: the model draws its own."""


def refuse_unless_vae(program: nn.Module, what: str) -> None:
    """ConfigError unless the program is a `VAE` whose parts say everything."""
    if not is_plain_vae(program):
        raise ConfigError(
            f"{what} calls the prior, encoder and decoder of a VAE, but this is a "
            f"{type(program).__name__}, which may have other latents.\n"
            "decompose_elbo, active_units, pareto_k and the predictive checks take any program."
        )


def log_mean_exp(values: Tensor, dim: int = 0) -> Tensor:
    """log of the mean of exp, along a dimension.

    Example:
        >>> log_mean_exp(torch.zeros(4, 2))
        tensor([0., 0.])
    """
    return values.logsumexp(dim) - math.log(values.shape[dim])
