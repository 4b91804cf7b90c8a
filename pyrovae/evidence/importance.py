"""log p(x) by importance sampling from the guide: the IWAE bound at large K.

    log p̂(x) = log (1/K) Σ_k w_k,    w_k = p(x, z_k) / q(z_k|x),    z_k ~ q(z|x)

E[log p̂] ≤ log p(x), and the gap falls with K. Draws are made in chunks and forgotten, so
memory does not grow with K; the encoder runs once for each chunk of data.

References:
    Importance Weighted Autoencoders, Burda, Grosse & Salakhutdinov, 2016,
    https://arxiv.org/abs/1509.00519
"""

import torch
from torch import nn

from pyrovae.batches import Batch
from pyrovae.evidence.joint import ProgramJoint, VAEJoint, joint_of
from pyrovae.evidence.memory import (
    bytes_per_draw,
    chunk_of,
    first_row,
    keep_freed_memory,
    row_batches,
)
from pyrovae.evidence.record import Evidence, WeightSums, joined


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
        parts.append(sums.evidence())
    return joined(parts)


def weighted_chunks(joint: VAEJoint | ProgramJoint, num_samples: int, chunk: int):
    """(z, log w) in chunks of at most so many draws; a chunk halves when a GPU is full.

    Args:
        joint: the program at some data.
        num_samples: K, the draws in all.
        chunk: the most at a time.

    Yields:
        z by site, (S, N, *event), and log w, (S, N), nats.

    Raises:
        MemoryError: a GPU has no room for one draw.
    """
    left = num_samples
    while left:
        size = min(chunk, left)
        try:
            drawn = joint.weighted_draws(size)
        except torch.OutOfMemoryError as full:
            if size == 1:
                raise MemoryError(
                    f"K = {num_samples:,} draws in chunks of 1: the device has no memory for one "
                    f"draw of {len(joint.batch.x):,} data ({str(full)[:120]}).\n"
                    "Write a smaller memory_budget, in bytes."
                ) from None
            chunk = size // 2
            continue
        left -= size
        yield drawn
