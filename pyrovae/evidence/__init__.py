"""The evidence log p(x): what the ELBO bounds from below, estimated or exact.

    p(x) = ∫ p(x|z) p(z) dz,    log p(x) = ELBO + KL(q(z|x) ‖ p(z|x))

Four methods, per datum and in nats:

- "iwae": importance sampling from the guide, a lower bound in expectation that tightens
  with the number of draws (Burda et al. 2016); any program,
- "ais": annealed importance sampling with Hamiltonian moves (Neal 2001): does not need a
  good guide; `bdmc` adds the upper bound, on simulated data (Grosse et al. 2015),
- "grid": quadrature over the latent space, for latent dimension 1 or 2,
- "enumerate": the sum over all values of a discrete latent.

The last two are exact. This file chooses; each method has a file of its own.
"""

from typing import Any

import pyro
import torch
from torch import Tensor, nn

from pyrovae.checks import seed_number, whole_number
from pyrovae.contract.validation import admit
from pyrovae.core.chunking import budget_in_bytes
from pyrovae.data import Batch
from pyrovae.errors import ConfigError
from pyrovae.evidence.annealing import Annealing, annealed_evidence
from pyrovae.evidence.enumeration import enumerated_evidence
from pyrovae.evidence.importance import importance_evidence
from pyrovae.evidence.quadrature import grid_evidence
from pyrovae.evidence.record import Evidence, exact
from pyrovae.evidence.sandwich import Sandwich, bdmc
from pyrovae.handlers import evaluation
from pyrovae.runtime.random_stream import RandomStream

__all__ = ["Evidence", "Sandwich", "bdmc", "log_evidence"]

DEFAULT_SAMPLES = {"iwae": 1000, "ais": 16, "grid": 1, "enumerate": 1}


def log_evidence(
    program: nn.Module,
    x: Any,
    y: Any = None,
    mask: Any = None,
    *,
    method: str = "iwae",
    num_samples: int | None = None,
    num_data: int | None = None,
    num_temperatures: int = 1000,
    num_leapfrog: int = 5,
    start: str = "prior",
    seed: int | None = 0,
    memory_budget: int | None = None,
) -> Evidence:
    """log p(x) for each datum, in nats; higher is better.

    Eval mode, no gradients; the caller's generators and parameter store stay as they are.

    Args:
        program: "iwae" takes any program without global latents; "ais" too, if its latents map
            from the real line; "grid" a `VAE` of latent dimension ≤ 2; "enumerate" a `VAE` with
            a discrete prior.
        x: (N, *event).
        y: (N, …), covariates.
        mask: of x's shape, true where x is observed; then it is log p(x_observed).
        method: "iwae", "ais", "grid" or "enumerate".
        num_samples: per datum: K draws of "iwae" (1000 by default), S chains of "ais" (16); the
            exact methods make none.
        num_data: evaluate so many rows, drawn at random without replacement (published test
            files are sorted by class: never take the first). None evaluates all; the record's
            `rows` says which.
        num_temperatures: T, steps of "ais" from its start to the posterior.
        num_leapfrog: L, leapfrog steps of each of them.
        start: where "ais" starts, "prior" or "guide".
        seed: of draws and subset; None takes a fresh one.
        memory_budget: bytes for one chunk of "iwae", "ais" and "enumerate"; None is 16 MiB on a
            CPU, which is its fastest, and 1 GiB on a GPU. Memory does not grow with K.

    Returns:
        Evidence, arrays (N,), or (num_data,).

    Raises:
        DataError: x does not fit the program.
        ConfigError: an unknown method or setting, or a program that the method cannot take.
        MemoryError: one draw of one datum does not fit memory_budget.

    References:
        Importance Weighted Autoencoders, Burda, Grosse & Salakhutdinov, 2016,
        https://arxiv.org/abs/1509.00519
        Annealed Importance Sampling, Neal, 2001, https://arxiv.org/abs/physics/9803008

    Example:
        >>> import pyrovae as pv
        >>> vae = pv.build((2,), latent_dim=1, seed=0)
        >>> x = torch.ones(1, 2)
        >>> exact = log_evidence(vae, x, method="grid").log_px
        >>> estimate = log_evidence(vae, x, num_samples=2000)
        >>> bool(abs(estimate.log_px - exact) < 5 * estimate.std_error)
        True
        >>> annealed = log_evidence(vae, x, method="ais", num_temperatures=50)
        >>> bool(abs(annealed.log_px - exact) < 5 * annealed.std_error + 1e-3)
        True
    """
    if method not in DEFAULT_SAMPLES:
        known = ", ".join(map(repr, DEFAULT_SAMPLES))
        raise ConfigError(f"method = {method!r}, but it is one of {known}.")
    how = Annealing(num_temperatures, num_leapfrog, start).checked()
    num_samples = DEFAULT_SAMPLES[method] if num_samples is None else num_samples
    num_samples = whole_number(num_samples, "num_samples", 1)
    batch = Batch(*admit(program, x, y, mask))
    memory_budget = budget_in_bytes(memory_budget, batch.x.device)
    options = {"num_samples": num_samples, "memory_budget": memory_budget}
    with RandomStream(seed_number(seed)), evaluation(program), pyro.validation_enabled(False):
        batch, rows = _subset(batch, num_data)
        if method == "iwae":
            found = importance_evidence(program, batch, **options)
        elif method == "ais":
            found = annealed_evidence(program, batch, how, **options)
        elif method == "grid":
            found = exact(grid_evidence(program, batch))
        else:
            found = enumerated_evidence(program, batch, memory_budget=memory_budget)
    return found._replace(rows=rows)


def _subset(batch: Batch, num_data: int | None) -> tuple[Batch, Tensor]:
    """A random subset of so many rows, in order, and which ones."""
    total = len(batch.x)
    if num_data is None:
        return batch, torch.arange(total, device=batch.x.device)
    if whole_number(num_data, "num_data", 1) > total:
        raise ConfigError(f"num_data = {num_data:,}, but x has {total:,} rows.")
    rows = torch.randperm(total)[:num_data].sort().values.to(batch.x.device)
    return Batch(*(None if t is None else t[rows] for t in batch)), rows
