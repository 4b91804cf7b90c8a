"""The record of draws from p(z|x), shared by all methods."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class SampleStats(NamedTuple):
    """What the sampler did for each draw, (C, S, N) each, under ArviZ's names.

    Attributes:
        acceptance_rate: acceptance probability, the mean over the paths of a transition.
        diverging: whether the energy error of a path exceeded 1000 nats or was not finite.
        step_size: ε, the leapfrog step in units of the adapted scale.
        energy: the Hamiltonian −log p(x, z) + |r|²/2 in the sampler's coordinates, nats.
        n_steps: leapfrog steps of the transition; each is one gradient evaluation.
    """

    acceptance_rate: Tensor
    diverging: Tensor
    step_size: Tensor
    energy: Tensor
    n_steps: Tensor


class Posterior(NamedTuple):
    """Draws of p(z|x) for each datum, C chains of S draws; C = 1 except for `hmc`.

    Attributes:
        draws: (C, S, N, D), in the units of the latent space; a program's latents concatenated.
        ess: (N,), effective sample size: S for `grid`, that of the importance weights for
            `sir`; for `hmc` the least over latent dimensions, of location and spread.
        r_hat: (N,), the largest R̂ over latent dimensions, for `hmc`; NaN otherwise. Above 1.01
            the chains have not mixed.
        pareto_k: (N,), the shape k̂ of the importance weights, for `sir`; NaN otherwise.
        stats: what the sampler did for each draw, for `hmc`; None otherwise.
        e_bfmi: (C, N), `e_bfmi` of the energies, for `hmc`; None otherwise. Below 0.3 the chains
            explore the tails too slowly.
    """

    draws: Tensor
    ess: Tensor
    r_hat: Tensor
    pareto_k: Tensor
    stats: SampleStats | None = None
    e_bfmi: Tensor | None = None

    @property
    def mean(self) -> Tensor:
        """E[z|x] over all chains, (N, D)."""
        return self.draws.flatten(0, 1).mean(0)

    @property
    def covariance(self) -> Tensor:
        """Cov[z|x] over all chains, (N, D, D)."""
        centered = self.draws.flatten(0, 1) - self.mean
        return (centered[..., None] * centered[..., None, :]).sum(0) / (len(centered) - 1)


def joined(parts: list[Posterior]) -> Posterior:
    """Join draws at several values of global latents.

    ESS adds up, the worst R̂ and k̂ stand, E-BFMI is averaged.
    """
    if len(parts) == 1:
        return parts[0]
    draws, ess, r_hat, pareto_k, stats, e_bfmi = zip(*parts, strict=True)
    worst = (torch.stack(values).amax(0) for values in (r_hat, pareto_k))
    return Posterior(
        torch.cat(draws, 1),
        torch.stack(ess).sum(0),
        *worst,
        None if stats[0] is None else concat_stats(stats, 1),
        None if stats[0] is None else torch.stack(e_bfmi).mean(0),
    )


def concat_stats(parts: Sequence[SampleStats], dim: int) -> SampleStats:
    """Concatenate along chains (0), draws (1) or data (2)."""
    return SampleStats(*(torch.cat(values, dim) for values in zip(*parts, strict=True)))


def shares_of(total: int, num: int) -> list[int]:
    """Split `total` into `num` shares that differ by at most 1.

    Example:
        >>> shares_of(10, 3)
        [4, 3, 3]
    """
    return [total // num + (i < total % num) for i in range(num)]
