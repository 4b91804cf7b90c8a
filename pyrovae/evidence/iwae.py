"""Estimate log p(x) by importance sampling from the guide: the IWAE bound at large K.

    log p̂(x) = log (1/K) Σ_k w_k,    w_k = p(x, z_k) / q(z_k|x),    z_k ~ q(z|x)

E[log p̂] ≤ log p(x), and the gap shrinks with K. Draws are made in chunks and discarded, so
memory does not grow with K; the encoder runs once for each chunk of data.

References:
    Importance Weighted Autoencoders, Burda, Grosse & Salakhutdinov, 2016,
    https://arxiv.org/abs/1509.00519
"""

from dataclasses import dataclass

from torch import nn

from pyrovae.checks import whole_number
from pyrovae.core.chunking import chunked
from pyrovae.core.importance import WeightSums, weighted_chunks
from pyrovae.core.joint import joint_of
from pyrovae.data import Batch, Source
from pyrovae.evidence.record import Evidence, bounded, concat
from pyrovae.runtime.memory import keep_freed_memory


@dataclass(frozen=True)
class IWAE:
    """Importance sampling from the guide, for any program, given its global latents.

    Args:
        num_samples: K, draws per datum.

    References:
        Importance Weighted Autoencoders, Burda, Grosse & Salakhutdinov, 2016,
        https://arxiv.org/abs/1509.00519

    Example:
        >>> import pyrovae as pv, torch
        >>> vae = pv.build((2,), latent_dim=1, seed=0)
        >>> found = pv.log_evidence(vae, torch.ones(3, 2), method=IWAE(num_samples=50))
        >>> found.log_px.shape
        torch.Size([3])
    """

    num_samples: int = 1000

    def __post_init__(self) -> None:
        whole_number(self.num_samples, "num_samples", 1)

    def __call__(
        self, program: nn.Module, data: Source | Batch, *, memory_budget: int | None = None
    ) -> Evidence:
        """Return the estimate of log p(x) for each datum; errors as in `log_evidence`."""
        keep_freed_memory(data.device)

        def draw(rows: Batch):
            return joint_of(program, rows).weighted_draws

        parts = []
        for rows, sizes in chunked(data, self.num_samples, draw, memory_budget=memory_budget):
            sums = WeightSums(self.num_samples)
            for _, log_weights in weighted_chunks(draw(rows), sizes):
                sums.add(log_weights)
            parts.append(bounded(sums))
        return concat(parts)
