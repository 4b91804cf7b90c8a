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

from pyrovae.contract.densities import is_delta
from pyrovae.contract.sites import is_local
from pyrovae.core.chunking import sizes
from pyrovae.core.terms import draw_traces
from pyrovae.core.vectorized import Vectorization, terms_at, vectorization_of
from pyrovae.data import Batch
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

    def of(self, program: nn.Module) -> "Offset":
        """Return these offsets of another program, such as the same one given global latents."""
        return Offset(program, self.offsets, self.places)

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
        ConfigError: a density lacks pathwise gradients or declared parameters.
    """
    trace = draw_traces(program.model, program.guide, *batch).guide
    sites = {
        name: site
        for name, site in trace.iter_stochastic_nodes()
        if is_local(site) and not is_delta(site["fn"])  # a function of auxiliary sites
    }
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
            elbo = log_weights(found, batch, num_samples).mean(0)
            gradients = torch.autograd.grad(-elbo.sum(), free)
        for parameter, gradient in zip(free, gradients, strict=True):
            parameter.grad = gradient.nan_to_num(0.0, 0.0, 0.0)
        optimizer.step()
    return found.map(lambda delta, _: delta.detach())


def no_worse(
    found: Offset, batch: Batch, num_draws: int, chunk: int
) -> tuple[Offset, Tensor, Tensor]:
    """Keep offsets of 0 where the ELBO is higher; return also the ELBO after and before, (n,)."""
    seed = int(torch.randint(2**31, ()))  # the same noise for both
    elbos = []
    for one in (found, found.program):
        with RandomStream(seed):
            parts = [log_weights(one, batch, size) for size in sizes(num_draws, chunk)]
            elbos.append(torch.cat(parts).double().mean(0))
    after, before = elbos
    is_better = after >= before

    def kept(delta: Tensor, place: int) -> Tensor:
        return torch.where(is_better.reshape(-1, *[1] * (delta.dim() - place - 1)), delta, 0.0)

    return found.map(kept), torch.maximum(after, before), before


def log_weights(program: nn.Module, batch: Batch, num_samples: int) -> Tensor:
    """Return log w = log p(x, z) − log q(z|x) at draws of the guide, (S, n)."""
    of = program.program if isinstance(program, Offset) else program
    # offsets of n data do not fit copies of them, which other programs would need
    is_batched = vectorization_of(of, batch) is Vectorization.BATCHED
    vectorization = Vectorization.BATCHED if is_batched else Vectorization.SEQUENTIAL
    how = {"vectorization": vectorization, "layouts": {}}
    return terms_at(program.model, program.guide, batch, num_samples, **how).log_weights


def joined(parts: list[Offset]) -> Offset:
    """Return the offsets of consecutive chunks of data as those of all."""
    first = parts[0]
    offsets = {
        name: [torch.cat(d, place) for d in zip(*(p.offsets[name] for p in parts), strict=True)]
        for name, place in first.places.items()
    }
    return Offset(first.program, offsets, first.places)
