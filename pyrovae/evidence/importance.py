"""Estimate log p(x) by importance sampling from a mixture of guide, widened guides and prior.

    log p̂(x) = log (1/K) Σ_k w_k,    w_k = p(x, z_k) / r(z_k),    r = Σ_j α_j r_j

E[log p̂] ≤ log p(x), as for the IWAE bound, and the gap shrinks with K. Unlike draws from the guide
alone (`evidence.iwae`), those of the mixture (`core.proposals`) reach where the guide has no
mass, so that k̂ and the standard error see what the guide misses: there is a 95 % interval
(`evidence.interval`) wherever k̂ is below its threshold and the effective sample size above a
quarter of K. A guide whose density at given latents is
unknown, for its auxiliary sites, gives the IWAE bound, without an interval.

References:
    Safe and Effective Importance Sampling, Owen & Zhou, 2000,
    https://doi.org/10.1080/01621459.2000.10473909
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pyrovae.checks import real_number, whole_number
from pyrovae.core.chunking import chunked, sizes
from pyrovae.core.importance import weighted_chunks
from pyrovae.core.joint import joint_of
from pyrovae.core.proposals import MIN_DRAWS, Mixture, of_guide
from pyrovae.data import Batch, Source
from pyrovae.evidence.iwae import IWAE
from pyrovae.evidence.record import Evidence, bound, concat, estimated
from pyrovae.runtime.memory import keep_freed_memory

MIN_DRAWS_UNWIDENED = 500  # for an interval from guide and prior alone


@dataclass(frozen=True)
class Draws:
    """How many draws of a mixture per datum: K, or as many as a target needs.

    Args:
        num_samples: K, at least 20; with a target, the first round, after which K doubles until
            all data of a chunk reach it.
        std_error: target for the standard error of log p̂(x), nats.
        ess: target for the effective sample size.
        max_samples: largest K of a datum that does not reach its target.

    Example:
        >>> Draws(100, std_error=0.1).max_samples
        100000
    """

    num_samples: int = 1000
    std_error: float | None = None
    ess: float | None = None
    max_samples: int = 100_000

    def __post_init__(self) -> None:
        whole_number(self.num_samples, "num_samples", MIN_DRAWS)
        whole_number(self.max_samples, "max_samples", 1)
        for name in ("std_error", "ess"):
            if getattr(self, name) is not None:
                real_number(getattr(self, name), name, above=0.0)

    @property
    def has_target(self) -> bool:
        """Whether K depends on the weights."""
        return self.std_error is not None or self.ess is not None

    def reached(self, found: Evidence) -> Tensor:
        """Return whether each datum reaches the targets, (N,)."""
        is_reached = torch.ones_like(found.log_px, dtype=torch.bool)
        if self.std_error is not None:
            is_reached &= found.std_error <= self.std_error
        if self.ess is not None:
            is_reached &= found.ess >= self.ess
        return is_reached


@dataclass(frozen=True)
class Importance(Draws):
    """Importance sampling from a mixture of guide, widened guides and prior, for any program.

    Args:
        num_samples, std_error, ess, max_samples: draws per datum, as for `Draws`.

    References:
        Safe and Effective Importance Sampling, Owen & Zhou, 2000,
        https://doi.org/10.1080/01621459.2000.10473909

    Example:
        >>> import pyrovae as pv, torch
        >>> vae = pv.build((2,), latent_dim=1, seed=0)
        >>> x = torch.ones(1, 2)
        >>> found = pv.log_evidence(vae, x, method=Importance(num_samples=200))
        >>> exact = pv.log_evidence(vae, x, method="grid").log_px
        >>> bool(found.lower < exact < found.upper)
        True
    """

    def __call__(
        self, program: nn.Module, data: Source | Batch, *, memory_budget: int | None = None
    ) -> Evidence:
        """Return the estimate of log p(x) for each datum; errors as in `log_evidence`."""
        if not joint_of(program, data.head()).scores_latents:
            return IWAE(self.num_samples)(program, data, memory_budget=memory_budget)
        keep_freed_memory(data.device)

        def draw(rows: Batch):
            mixture = of_guide(joint_of(program, rows))
            return lambda n: mixture.draw(0, n)

        parts = []
        options = {"memory_budget": memory_budget, "is_apart": True}
        for rows, chunks in chunked(data, self.num_samples, draw, **options):
            parts.append(sampled(of_guide(joint_of(program, rows)), self, chunks[0]))
        return concat(parts)


def sampled(mixture: Mixture, draws: Draws, chunk: int) -> Evidence:
    """Return the record of as many draws as asked for, at most `chunk` at a time."""
    counts = mixture.counts(draws.num_samples)
    parts: list[list[Tensor]] = [[] for _ in counts]
    while True:
        for index, count in enumerate(counts):
            parts[index] += _weights(mixture, index, count, chunk)
        found = _record(mixture, [torch.cat(of_one) for of_one in parts])
        counts = [sum(map(len, of_one)) for of_one in parts]
        if draws.reached(found).all() or 2 * sum(counts) > draws.max_samples:
            return found


def _record(mixture: Mixture, parts: list[Tensor]) -> Evidence:
    log_weights = torch.cat(parts)
    if mixture.is_widened or len(log_weights) >= MIN_DRAWS_UNWIDENED:
        return estimated(log_weights, list(map(len, parts)))
    return bound(log_weights)


def _weights(mixture: Mixture, index: int, count: int, chunk: int) -> Iterator[Tensor]:
    drawn = weighted_chunks(lambda n: mixture.draw(index, n), sizes(count, chunk))
    return (log_weights for _, log_weights in drawn)
