"""The evidence log p(x), which the ELBO bounds from below, estimated or exact.

    p(x) = ∫ p(x|z) p(z) dz,    log p(x) = ELBO + KL(q(z|x) ‖ p(z|x))

Methods, per datum and in nats, each an object in `METHODS` under its name:

- "importance": importance sampling from a mixture of guide, widened guides and prior: a lower
  bound in expectation, with a 95 % interval wherever the mixture is near enough to the posterior
  (Owen & Zhou 2000); any program,
- "iwae": importance sampling from the guide alone, the bound that papers report (Burda et al.
  2016): any program, but no interval, since the guide does not see what it misses,
- "refined": "importance" from a normal density with full covariance that is optimized per datum,
- "ais": annealed importance sampling with Hamiltonian moves (Neal 2001), which does not need a
  good guide; `bdmc` adds an upper bound, on simulated data (Grosse et al. 2015),
- "grid": quadrature over the latent space, for latent dimension 1 or 2,
- "enumerate": the sum over all values of a discrete latent,
- "auto": for each datum the first of grid, importance, refined and ais that answers it.

"grid" and "enumerate" are exact. Each method has its own file, and its options are its arguments.
"""

from dataclasses import fields
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from pyrovae.checks import whole_number
from pyrovae.contract import validated
from pyrovae.core.conditional import given_globals
from pyrovae.core.draws import diagnosing
from pyrovae.data import Batch, Source
from pyrovae.errors import ConfigError
from pyrovae.evidence.annealing import AIS
from pyrovae.evidence.auto import Auto
from pyrovae.evidence.enumeration import Enumerate
from pyrovae.evidence.importance import Importance
from pyrovae.evidence.iwae import IWAE
from pyrovae.evidence.quadrature import Grid
from pyrovae.evidence.record import Evidence, over_globals
from pyrovae.evidence.refined import Refined
from pyrovae.evidence.sandwich import Sandwich, bdmc
from pyrovae.runtime.ambient import exclusive

__all__ = [
    "AIS",
    "IWAE",
    "METHODS",
    "Auto",
    "Enumerate",
    "Evidence",
    "Grid",
    "Importance",
    "Refined",
    "Sandwich",
    "bdmc",
    "log_evidence",
]

METHODS = MappingProxyType(
    {
        "importance": Importance,
        "iwae": IWAE,
        "refined": Refined,
        "ais": AIS,
        "grid": Grid,
        "enumerate": Enumerate,
        "auto": Auto,
    }
)


@exclusive
def log_evidence(
    program: nn.Module,
    x: Any,
    y: Any = None,
    mask: Any = None,
    *,
    method: str | Any = "importance",
    num_data: int | None = None,
    num_globals: int = 10,
    seed: int | None = 0,
    memory_budget: int | None = None,
    **options: Any,
) -> Evidence:
    """Estimate log p(x) for each datum, in nats; higher is better.

    With global latents w it is E_q(w)[log p(x|w)], and the spread over w is part of the error.
    Runs in eval mode without gradients; the caller's generators and parameter store are unchanged.

    Args:
        program: "importance", "iwae" and "auto" take any program; so do "refined" and "ais", if
            its local latents map from the real line or can be summed out; "grid" takes a `VAE` of
            latent dimension ≤ 2, "enumerate" a `VAE` with a discrete prior.
        x: (N, *event), in any container that `fit` takes.
        y: (N, …), covariates.
        mask: of x's shape, true where x is observed; the result is then log p(x_observed).
        method: a name in `METHODS`, or the method itself: `evidence.AIS(num_samples=4)`.
        num_data: evaluate this many rows, drawn at random without replacement (published test
            files are sorted by class, so the first rows are not representative). None evaluates
            all; the record's `rows` lists them.
        num_globals: draws of w ~ q(w); each is an estimate of its own.
        seed: random seed; None uses a fresh one.
        memory_budget: bytes for one chunk of all methods but "grid"; None is 16 MiB on a CPU,
            which is fastest, and 1 GiB on a GPU. Log-weights come on top, 8 bytes for each draw of
            the data in a chunk.
        **options: options of the named method: num_samples (K draws, 1000 by default, or S chains
            for "ais", 16); std_error or ess, targets in place of a count for "importance",
            "refined" and "auto"; num_temperatures, num_leapfrog and start for "ais"; …

    Returns:
        Evidence, arrays (N,), or (num_data,). `lower` and `upper` are the ends of a 95 % interval;
        upper = ∞ marks a lower bound without one.

    Raises:
        DataError: x does not fit the program.
        ConfigError: the method or an option is unknown, or the method does not support the
            program.
        MemoryError: one draw of one datum does not fit memory_budget.

    References:
        Safe and Effective Importance Sampling, Owen & Zhou, 2000,
        https://doi.org/10.1080/01621459.2000.10473909
        Importance Weighted Autoencoders, Burda, Grosse & Salakhutdinov, 2016,
        https://arxiv.org/abs/1509.00519
        Annealed Importance Sampling, Neal, 2001, https://arxiv.org/abs/physics/9803008

    Example:
        >>> import pyrovae as pv
        >>> vae = pv.build((2,), latent_dim=1, seed=0)
        >>> x = torch.ones(1, 2)
        >>> exact = log_evidence(vae, x, method="grid").log_px
        >>> estimate = log_evidence(vae, x, num_samples=2000)
        >>> bool(estimate.lower < exact < estimate.upper)
        True
    """
    estimate = method_of(method, options)
    num_globals = whole_number(num_globals, "num_globals", 2)
    data = validated(program, x, y, mask)
    with diagnosing(program, seed):
        data, rows = _subset(data, num_data)
        programs = given_globals(program, data, num_globals)
        parts = [estimate(one, data, memory_budget=memory_budget) for one in programs]
        found = over_globals(parts) if len(parts) > 1 else parts[0]
    return found if rows is None else found._replace(rows=rows)


def method_of(method: str | Any, options: dict[str, Any]) -> Any:
    """Return the named method with its options, or the method itself.

    Raises:
        ConfigError: the name is unknown, or the method has no such option.

    Example:
        >>> method_of("ais", {"num_temperatures": 10}).num_temperatures
        10
    """
    if not isinstance(method, str) and callable(method) and not options:
        return method
    if not isinstance(method, str) or method not in METHODS:
        known = ", ".join(map(repr, METHODS))
        raise ConfigError(f"method = {method!r}, but it must be one of {known}.")
    kind = METHODS[method]
    names = [field.name for field in fields(kind)]
    if unknown := [name for name in options if name not in names]:
        raise ConfigError(
            f"{unknown[0]} is not an option of method={method!r}, which has "
            f"{', '.join(names) or 'none'}.\nLeave it out, or choose another method."
        )
    return kind(**options)


def _subset(data: Source, num_data: int | None) -> tuple[Source | Batch, Tensor | None]:
    """Return a random subset of the rows, in order, and their indices; None for all."""
    if num_data is None:
        return data, None
    total = data.count()
    if whole_number(num_data, "num_data", 1) > total:
        raise ConfigError(f"num_data = {num_data:,}, but x has {total:,} rows.")
    rows = torch.randperm(total)[:num_data].sort().values.to(data.device)
    return data.take(rows), rows
