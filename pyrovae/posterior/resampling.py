"""Draws of p(z|x) by sampling-importance-resampling from the guide.

    z_k ~ q(z|x), k = 1 … K;   keep S of them, drawn with probability w_k / Σ w

with w = p(x, z) / q(z|x). The draws are only as good as the guide: where pareto_k exceeds
`pareto_k_threshold(K)`, a few proposals carry all the weight and are drawn repeatedly.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pyrovae.checks import whole_number
from pyrovae.contract import validated
from pyrovae.core.chunking import chunked
from pyrovae.core.conditional import given_globals
from pyrovae.core.draws import diagnosing
from pyrovae.core.importance import weighted_chunks
from pyrovae.core.joint import flat, joint_of
from pyrovae.core.pareto import pareto_k
from pyrovae.data import Batch, Source
from pyrovae.posterior.record import Posterior, joined, shares_of
from pyrovae.runtime.ambient import exclusive


@exclusive
def sir(
    program: nn.Module,
    x: Any,
    y: Any = None,
    mask: Any = None,
    *,
    num_samples: int = 1000,
    num_proposals: int = 10_000,
    num_globals: int = 10,
    seed: int | None = 0,
    memory_budget: int | None = None,
) -> Posterior:
    """Draw from p(z|x) by resampling draws of the guide by their importance weights.

    Draws are with replacement; their distribution tends to p(z|x) as K, and with it `ess`, grows.
    With global latents w they are from ∫ p(z|x, w) q(w) dw, an equal share at each draw of w.

    Args:
        program: any program.
        x: (N, *event).
        y: (N, …), covariates.
        mask: of x's shape, true where x is observed.
        num_samples: S, draws kept per datum.
        num_proposals: K, draws of the guide per datum; take K ≥ 10 S.
        num_globals: draws of w ~ q(w), at most S.
        seed: random seed; None uses a fresh one.
        memory_budget: bytes for one chunk of proposals, as in `log_evidence`; the latents of
            all K stay in memory.

    Returns:
        Posterior, draws (1, S, N, D), with ess and pareto_k of the K weights.

    Raises:
        DataError: x does not fit the program.
        ConfigError: a setting is invalid.
        MemoryError: one draw of one datum does not fit memory_budget.

    References:
        Using the SIR Algorithm to Simulate Posterior Distributions, Rubin, 1988, in Bayesian
        Statistics 3, https://doi.org/10.1093/oso/9780198522201.003.0026

    Example:
        >>> import pyrovae as pv
        >>> vae = pv.build((2,), latent_dim=1, seed=0)
        >>> found = sir(vae, torch.ones(3, 2), num_samples=100, num_proposals=1000)
        >>> found.draws.shape, bool((found.ess > 100).all())
        (torch.Size([1, 100, 3, 1]), True)
    """
    num_samples = whole_number(num_samples, "num_samples", 1)
    num_proposals = whole_number(num_proposals, "num_proposals", 1)
    num_globals = min(num_samples, whole_number(num_globals, "num_globals", 1))
    data = validated(program, x, y, mask)
    options = {"memory_budget": memory_budget, "what": "proposals"}
    with diagnosing(program, seed):
        programs = given_globals(program, data, num_globals)
        shares = shares_of(num_samples, len(programs))
        counts = zip(programs, shares, shares_of(num_proposals, len(programs)), strict=True)
        return joined([_sir(one, data, s, k, options) for one, s, k in counts])


def _sir(
    program: nn.Module, data: Source, num_samples: int, num_proposals: int, options: dict[str, Any]
) -> Posterior:
    def draw(rows: Batch):
        return joint_of(program, rows).weighted_draws

    chunks = chunked(data, num_proposals, draw, **options)
    parts = [_resampled(draw(rows), num_samples, sizes) for rows, sizes in chunks]
    draws, ess, k = (
        torch.cat(p, -2 if i == 0 else 0) for i, p in enumerate(zip(*parts, strict=True))
    )
    return Posterior(draws[None], ess, torch.full_like(ess, torch.nan), k)


def _resampled(draw: Callable, num_samples: int, sizes: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Return draws, (S, n, D), and ESS and k̂ of the weights, (n,)."""
    drawn = [(flat(z), log_w) for z, log_w in weighted_chunks(draw, sizes)]
    z, log_w = (torch.cat(arrays) for arrays in zip(*drawn, strict=True))  # (K, n, D), (K, n)
    weight = log_w.double().softmax(0)
    index = weight.T.multinomial(num_samples, replacement=True).T  # (S, n)
    kept = z.gather(0, index[..., None].expand(-1, -1, z.shape[-1]))
    return kept, 1 / (weight**2).sum(0), pareto_k(log_w)
