"""Traces of guide and model, read in chunks within a byte budget.

A diagnostic needs a few numbers per draw z ~ q(z|x_i) and datum, while their traces hold all
activations of the decoder. `over_draws` makes the traces in chunks and keeps only the numbers.
Everything runs in eval mode and without gradients, with a separate random stream and parameter
store (`diagnosing`).
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from pyrovae.checks import seed_number, whole_number
from pyrovae.contract import validated
from pyrovae.contract.covariates import tensor_options
from pyrovae.core.chunking import chunked
from pyrovae.core.replay import sites_of
from pyrovae.core.terms import ElboTerms, Traces, draw_traces, is_local, terms_of
from pyrovae.core.vectorized import Vectorization, terms_at, vectorization_of
from pyrovae.data import Batch, Source
from pyrovae.handlers import evaluation
from pyrovae.runtime.ambient import exclusive
from pyrovae.runtime.random_stream import RandomStream

Arrays = dict[str, Tensor]
Reading = Callable[[Traces, int], Arrays]
LATENT, OBSERVED = "latent ", "log_likelihood "  # prefixes of sites


@contextmanager
def diagnosing(program: nn.Module, seed: int | None) -> Iterator[None]:
    """Run in eval mode, without gradients, with this seed and a separate parameter store."""
    tensor_options(program)  # raises if nothing can be computed
    with RandomStream(seed_number(seed)), evaluation(program), pyro.validation_enabled(False):
        yield


def over_draws(
    program: nn.Module,
    data: Source | Batch,
    read: Reading,
    *,
    num_samples: int,
    memory_budget: int | None,
    is_apart: bool = False,
) -> Arrays:
    """Return the arrays that `read` extracts from the traces of all draws: name → (S, N, …).

    Args:
        program: any program, inside `diagnosing`.
        data: validated.
        read: (traces, n) → name → (s, n, …), of s draws for n data.
        num_samples: S, draws per datum.
        memory_budget: bytes for one chunk, as for `log_evidence`.
        is_apart: whether memory is measured with a separate random stream.

    Raises:
        MemoryError: one draw of one datum does not fit the budget.
    """

    vectorization = vectorization_of(program, data.head())

    def draw(rows: Batch) -> Callable[[int], Arrays]:
        def of(size: int) -> Arrays:
            count, copies = (1, size) if vectorization is Vectorization.REPEATED_ROWS else (size, 1)
            batch = rows.repeat(copies) if copies > 1 else rows
            traces = draw_traces(program.model, program.guide, *batch, num_samples=count)
            found = read(traces, batch.num_data)
            shape = (size, rows.num_data)
            return {n: v.reshape(*shape, *v.shape[2:]) for n, v in found.items()}

        return of

    by_rows = []
    at_once = vectorization is not Vectorization.SEQUENTIAL
    options = {"memory_budget": memory_budget, "is_apart": is_apart, "at_once": at_once}
    for rows, counts in chunked(data, num_samples, draw, **options):
        by_rows.append(concat([draw(rows)(size) for size in counts], 0))
    return concat(by_rows, 1)


def concat(parts: list[Arrays], dim: int) -> Arrays:
    """Concatenate the arrays of each name along `dim`."""
    return {name: torch.cat([part[name] for part in parts], dim) for name in parts[0]}


def read_terms(traces: Traces, num_data: int) -> Arrays:
    """Return log_prior, log_likelihood and log_guide, (s, n) float64 each."""
    terms = terms_of(traces, num_data)
    return {name: getattr(terms, name).double() for name in terms._fields[:3]}


def read_latents(traces: Traces, num_data: int) -> Arrays:
    """Return "z": the local latents concatenated, (s, n, D), in the order of the model."""
    latents = terms_of(traces, num_data).latents
    local = {n: latents[n] for n in local_latents(traces)}
    return {
        "z": torch.cat([v.flatten(2) if v.dim() > 2 else v[..., None] for v in local.values()], -1)
    }


def local_latents(traces: Traces) -> list[str]:
    """Return the latent sites inside the plate "data", in the order of the model."""
    return [name for name, site in traces.model.iter_stochastic_nodes() if is_local(site)]


def latent_names(program: nn.Module, data: Source | Batch) -> tuple[str, ...]:
    """Return a name per latent dimension: "z[0]", "z[1]", …; "y" for a scalar site."""
    traces = draw_traces(program.model, program.guide, *data.head())
    names, latents = [], terms_of(traces, 1).latents
    for name in local_latents(traces):
        shape = latents[name].shape[2:]
        names += [f"{name}[{i}]" for i in range(shape.numel())] if shape else [name]
    return tuple(names)


def log_mean_exp(values: Tensor, dim: int = 0) -> Tensor:
    """Return the log of the mean of exp along a dimension.

    Example:
        >>> log_mean_exp(torch.zeros(4, 2))
        tensor([0., 0.])
    """
    return values.logsumexp(dim) - math.log(values.shape[dim])


@exclusive
def elbo_terms(
    program: nn.Module,
    x: Any,
    y: Any = None,
    mask: Any = None,
    *,
    num_samples: int = 1,
    seed: int | None = 0,
) -> ElboTerms:
    """Return the terms of the ELBO at draws z ~ q(z|x), in eval mode and without gradients.

    Discrete sites are drawn as the guide does; those that it leaves out are summed out.

    Args:
        program: a module with `.model` and `.guide` over one plate "data".
        x: (N, *event).
        y: (N, …), covariates.
        mask: of x's shape, true where x is observed.
        num_samples: S, draws per datum.
        seed: random seed; None uses a fresh one.

    Returns:
        ElboTerms, arrays (S, N), in nats.

    Raises:
        DataError: x does not fit the program.
        ConfigError: num_samples or seed is invalid, or the plates of model and guide differ.

    Example:
        >>> import pyrovae as pv
        >>> vae = pv.build((2,), latent_dim=1, seed=0)
        >>> terms = elbo_terms(vae, torch.ones(5, 2), num_samples=3)
        >>> terms.log_weights.shape, terms.latents["z"].shape
        (torch.Size([3, 5]), torch.Size([3, 5, 1]))
    """
    num_samples = whole_number(num_samples, "num_samples", 1)
    data = validated(program, x, y, mask)
    with diagnosing(program, seed):
        return guide_terms(program, data, num_samples)


def guide_terms(program: nn.Module, data: Source | Batch, num_samples: int) -> ElboTerms:
    """Return the terms at draws from the guide, inside `diagnosing`.

    They are computed in chunks, unless data share latents, whose draws must be the same for all.
    """
    with RandomStream(0):  # so that this trace does not change the draws
        sites = sites_of(program, data)
    if sites.shared:
        batch = data.whole()
        how = {"vectorization": vectorization_of(program, batch), "layouts": sites.layouts}
        return terms_at(program.model, program.guide, batch, num_samples, **how)
    options = {"num_samples": num_samples, "memory_budget": None, "is_apart": True}
    found = over_draws(program, data, read_all, **options)
    zeros = found["log_prior"].new_zeros(num_samples)
    arrays = [found[name] for name in ElboTerms._fields[:3]]
    return ElboTerms(*arrays, zeros, zeros, named(found, LATENT), named(found, OBSERVED))


def read_all(traces: Traces, num_data: int) -> Arrays:
    """Return the three terms in the dtype of the program, and by site latents and log p(x|z)."""
    terms = terms_of(traces, num_data)
    latents = {LATENT + name: value for name, value in terms.latents.items()}
    of_data = {OBSERVED + name: value for name, value in terms.log_likelihoods.items()}
    return {name: getattr(terms, name) for name in terms._fields[:3]} | latents | of_data


def named(arrays: Arrays, prefix: str) -> Arrays:
    """Return the arrays with this prefix, by site."""
    return {n.removeprefix(prefix): v for n, v in arrays.items() if n.startswith(prefix)}
