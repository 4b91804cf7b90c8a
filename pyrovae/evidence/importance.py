"""log p(x) by importance sampling from the guide: the IWAE bound at large K.

    log p̂(x) = log (1/K) Σ_k w_k,    w_k = p(x, z_k) / q(z_k|x),    z_k ~ q(z|x)

E[log p̂] ≤ log p(x), and the gap falls with K. Draws are made in chunks and forgotten, so
memory does not grow with K; the encoder runs once for each chunk of data.

References:
    Importance Weighted Autoencoders, Burda, Grosse & Salakhutdinov, 2016,
    https://arxiv.org/abs/1509.00519
"""

from torch import nn

from pyrovae.core.chunking import bytes_per_draw, chunk_of, first_row, row_batches
from pyrovae.core.importance import WeightSums, weighted_chunks
from pyrovae.core.joint import joint_of
from pyrovae.data import Batch
from pyrovae.evidence.record import Evidence, concat, estimated
from pyrovae.runtime.memory import keep_freed_memory


def importance_evidence(
    program: nn.Module, batch: Batch, *, num_samples: int, memory_budget: int
) -> Evidence:
    """The IWAE estimate of log p(x) from K draws of the guide.

    Args:
        program: any program without global latents, in eval mode.
        batch: checked data.
        num_samples: K, draws per datum.
        memory_budget: bytes for one chunk.

    Raises:
        ConfigError: the program has latents outside the plate "data".
        MemoryError: one draw of one datum does not fit the budget.
    """
    keep_freed_memory(batch.x.device)
    cost = bytes_per_draw(joint_of(program, first_row(batch)).weighted_draws)
    chunk = chunk_of(num_samples, len(batch.x), cost, memory_budget, what="draws")
    parts = []
    for rows in row_batches(batch, chunk.rows):
        sums = WeightSums(num_samples)
        for _, log_weights in weighted_chunks(joint_of(program, rows), num_samples, chunk.draws):
            sums.add(log_weights)
        parts.append(estimated(sums))
    return concat(parts)
