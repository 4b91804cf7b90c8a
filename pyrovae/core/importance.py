"""Importance weights, drawn in chunks and accumulated without being stored.

    log p̂ = log (1/K) Σ_k w_k,    ESS = (Σ w)² / Σ w²
    std_error² = Var(w) / (K w̄²) = (K / ESS − 1) / (K − 1)          (delta method)

Only the largest M + 1 weights of each datum are stored, which k̂ needs. Sums are of
exponentials shifted by a running maximum, in float64.
"""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from pyrovae.core.joint import Latents
from pyrovae.core.pareto import pareto_k_of_largest, tail_size


def weighted_chunks(
    draw: Callable[[int], tuple[Latents, Tensor]], sizes: list[int]
) -> Iterator[tuple[Latents, Tensor]]:
    """Draw in chunks of these sizes, halved when a GPU runs out of memory.

    Args:
        draw: n → z by site, (n, N, *event), and log w, (n, N), nats.
        sizes: sizes of the chunks.

    Yields:
        The return value of `draw`.

    Raises:
        MemoryError: a GPU has too little memory for one draw.
    """
    left, chunk = sum(sizes), max(sizes, default=0)
    while left:
        size = min(chunk, left)
        try:
            drawn = draw(size)
        except torch.OutOfMemoryError as full:
            if size == 1:
                raise MemoryError(
                    f"K = {sum(sizes):,} draws in chunks of 1: the device has too little memory "
                    f"for one draw ({str(full)[:120]}).\nPass a smaller memory_budget, in bytes."
                ) from None
            chunk = size // 2
            continue
        left -= size
        yield drawn


class WeightSums:
    """Running sums over importance weights, one chunk of draws at a time.

    Args:
        num_samples: K, the total number of draws.

    Example:
        >>> log_w = torch.randn(100, 3, dtype=torch.float64)
        >>> sums = WeightSums(100)
        >>> for chunk in log_w.split(30):
        ...     sums.add(chunk)
        >>> torch.allclose(sums.estimates()[0], log_w.logsumexp(0) - math.log(100), rtol=1e-12)
        True
    """

    def __init__(self, num_samples: int):
        self.num_samples = num_samples
        self.num_largest = min(tail_size(num_samples) + 1, num_samples)
        self.log_sum: Tensor | None = None  # of w
        self.log_sum_squares: Tensor | None = None  # of w²
        self.largest: Tensor | None = None  # (≤ M + 1, N), in descending order

    def add(self, log_weights: Tensor) -> None:
        """Add (S, N) log-weights."""
        new = log_weights.double()
        sums = new.logsumexp(0), (2 * new).logsumexp(0)
        if self.largest is None:
            self.log_sum, self.log_sum_squares = sums
        else:
            self.log_sum = torch.logaddexp(self.log_sum, sums[0])
            self.log_sum_squares = torch.logaddexp(self.log_sum_squares, sums[1])
            new = torch.cat([self.largest, new])
        self.largest = new.topk(min(self.num_largest, len(new)), 0).values

    def estimates(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return log p̂, its standard error, ESS and k̂, (N,) each, once all K are added."""
        k = self.num_samples
        log_px = self.log_sum - math.log(k)
        ess = (2 * self.log_sum - self.log_sum_squares).exp().nan_to_num(nan=0.0).clamp(max=k)
        variance = (k / ess - 1).clamp(min=0) / (k - 1) if k > 1 else torch.full_like(ess, math.inf)
        return log_px, variance.sqrt(), ess, pareto_k_of_largest(self.largest)
