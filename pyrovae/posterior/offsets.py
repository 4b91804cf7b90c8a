"""Guides of programs refined for each datum: offsets of the parameters of every local latent.

    q_i(z_l | z_<l, x_i) has the parameters T(T⁻¹(λ_l(z_<l, x_i)) + δ_il)

λ_l are the parameters that the guide's own density of site l declares, T maps the real line to
their support, and δ_il is optimized for datum i, from 0. For a single latent this is the family of
the guide itself; a latent that depends on others keeps its dependence.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from pyrovae.contract.sites import is_local
from pyrovae.core.chunking import budget_of, bytes_per_draw, sizes
from pyrovae.core.terms import draw_traces, terms_of
from pyrovae.core.vectorized import Way, way_of
from pyrovae.data import Batch
from pyrovae.errors import ConfigError
from pyrovae.posterior.leaves import free_parameters, rebuilt
from pyrovae.runtime.random_stream import RandomStream

Offsets = dict[str, list[Tensor]]


class Offset(nn.Module):
    """A program whose guide has offsets, for data in the order in which they were optimized.

    Args:
        program: the program.
        offsets: site → one tensor (*plates, N, …) for each parameter of its density.
        places: site → the dimension of the data in them, from the left.
    """

    def __init__(self, program: nn.Module, offsets: Offsets, places: dict[str, int]):
        super().__init__()
        self.program, self.offsets, self.places = program, offsets, places

    def map(self, function: Callable[[Tensor, int], Tensor]) -> "Offset":
        """Return the program with function(offset, dimension of the data) for its offsets."""
        offsets = {
            name: [function(delta, self.places[name]) for delta in deltas]
            for name, deltas in self.offsets.items()
        }
        return Offset(self.program, offsets, self.places)

    def model(self, *batch: Any) -> Any:
        """Run the model of the program."""
        return self.program.model(*batch)

    def guide(self, *batch: Any) -> Any:
        """Run the guide with its offsets."""
        with _Offsets(self.offsets):
            return self.program.guide(*batch)


class _Offsets(Messenger):
    def __init__(self, offsets: Offsets):
        super().__init__()
        self.offsets = offsets

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.offsets and not msg["is_observed"]:
            leaves = free_parameters(msg["fn"])
            pairs = zip(leaves, self.offsets[msg["name"]], strict=True)
            msg["fn"] = rebuilt(msg["fn"], [leaf._replace(free=leaf.free + d) for leaf, d in pairs])


def without_offsets(program: nn.Module, batch: Batch) -> Offset:
    """Return the program with offsets of 0 for its local latents.

    Raises:
        ConfigError: draws of the program cannot be computed at once, or a density lacks pathwise
            gradients or declared parameters.
    """
    if way_of(program, batch) is not Way.AT_ONCE:
        raise ConfigError(
            f"refine computes several draws at once, but this {type(program).__name__} then fails "
            "or gives other numbers, for example because it counts dimensions from the left.\n"
            "Count them from the right, z[..., 0] for z[:, 0]."
        )
    trace = draw_traces(program.model, program.guide, *batch).guide
    sites = {name: site for name, site in trace.iter_stochastic_nodes() if is_local(site)}
    offsets = {
        name: [torch.zeros_like(leaf.free) for leaf in free_parameters(site["fn"])]
        for name, site in sites.items()
    }
    places = {name: len(site["fn"].batch_shape) - 1 for name, site in sites.items()}
    return Offset(program, offsets, places)


def optimized(
    program: nn.Module, batch: Batch, num_steps: int, rate: float, num_samples: int
) -> Offset:
    """Return the program with offsets that maximize the ELBO of each datum, by Adam."""
    found = without_offsets(program, batch)
    free = [delta.requires_grad_() for deltas in found.offsets.values() for delta in deltas]
    optimizer = torch.optim.Adam(free, lr=rate)
    for step in range(num_steps):
        optimizer.param_groups[0]["lr"] = rate * 0.5 * (1 + math.cos(math.pi * step / num_steps))
        with torch.enable_grad():
            how = {"num_samples": num_samples}
            terms = terms_of(draw_traces(found.model, found.guide, *batch, **how), batch.num_data)
            gradients = torch.autograd.grad(-terms.log_weights.mean(0).sum(), free)
        for parameter, gradient in zip(free, gradients, strict=True):
            parameter.grad = gradient.nan_to_num(0.0, 0.0, 0.0)
        optimizer.step()
    return found.map(lambda delta, _: delta.detach())


def no_worse(
    found: Offset, batch: Batch, num_draws: int, chunk: int
) -> tuple[Offset, Tensor, Tensor]:
    """Keep offsets of 0 where the ELBO is higher; return also the ELBO after and before, (n,)."""
    seed = int(torch.randint(2**31, ()))  # the same noise for both
    how = {"chunk": chunk, "seed": seed}
    after, before = (
        log_weights(one, batch, num_draws, **how).mean(0) for one in (found, found.program)
    )
    is_better = after >= before

    def kept(delta: Tensor, place: int) -> Tensor:
        return torch.where(is_better.reshape(-1, *[1] * (delta.dim() - place - 1)), delta, 0.0)

    return found.map(kept), torch.maximum(after, before), before


def log_weights(
    program: nn.Module, batch: Batch, num_samples: int, *, chunk: int, seed: int
) -> Tensor:
    """Return log w = log p(x, z) − log q(z|x) at draws of the guide, (S, n) float64."""
    parts = []
    with RandomStream(seed):
        for size in sizes(num_samples, chunk):
            traces = draw_traces(program.model, program.guide, *batch, num_samples=size)
            parts.append(terms_of(traces, batch.num_data).log_weights.double())
    return torch.cat(parts)


def chunk_of(program: nn.Module, batch: Batch, memory_budget: int | None) -> int:
    """Return the number of draws of these data that fit the budget, at least one."""

    def draw(size: int) -> Any:
        return draw_traces(program.model, program.guide, *batch.head(), num_samples=size)

    with RandomStream(0):
        cost = batch.num_data * bytes_per_draw(draw)
    return max(1, budget_of(memory_budget, batch.device).num_bytes // cost)


def joined(parts: list[Offset]) -> Offset:
    """Return the offsets of consecutive chunks of data as those of all."""
    first = parts[0]
    offsets = {
        name: [torch.cat(d, place) for d in zip(*(p.offsets[name] for p in parts), strict=True)]
        for name, place in first.places.items()
    }
    return Offset(first.program, offsets, first.places)
