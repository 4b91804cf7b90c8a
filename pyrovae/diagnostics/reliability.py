"""Which data the guide fails on, and what to do about it.

k̂, the Pareto shape of a datum's importance weights w = p(x, z)/q(z|x), shows whether q(z|x)
covers p(z|x): above min(1 − 1/log₁₀ S, 0.7), weights from S draws estimate neither evidence nor
posterior reliably. `pareto_k` finds these data; `escalate` draws their posterior by another method.

References:
    Yes, but Did It Work?: Evaluating Variational Inference, Yao et al., 2018,
    https://arxiv.org/abs/1802.02538
    Pareto Smoothed Importance Sampling, Vehtari et al., 2024,
    https://jmlr.org/papers/v25/19-556.html
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pyrovae.checks import seed_number, whole_number
from pyrovae.core.pareto import pareto_k_threshold
from pyrovae.data import open_source
from pyrovae.errors import ConfigError
from pyrovae.evidence import log_evidence
from pyrovae.posterior import Posterior, hmc, refine, sir
from pyrovae.runtime.ambient import exclusive
from pyrovae.runtime.random_stream import RandomStream

MIN_DRAWS = 21  # fewer leave k̂ undefined


class Reliability(NamedTuple):
    """Coverage of the posterior by the guide, per datum.

    Attributes:
        pareto_k: (N,), k̂, unitless; lower is better.
        ess: (N,), effective sample size of the S weights.
        threshold: largest acceptable k̂.
        is_reliable: (N,).
    """

    pareto_k: Tensor
    ess: Tensor
    threshold: float
    is_reliable: Tensor

    @property
    def failed(self) -> Tensor:
        """Rows of x that the guide fails on, the worst first."""
        worst = self.pareto_k.argsort(descending=True)
        return worst[~self.is_reliable[worst]]

    @property
    def message(self) -> str:
        """One sentence for the user."""
        num, total = len(self.failed), len(self.pareto_k)
        if not num:
            return (
                f"The guide covers the posterior of all {total:,} data points "
                f"(k̂ ≤ {self.threshold:.2f})."
            )
        first = ", ".join(map(str, self.failed[:5].tolist()))
        return (
            f"The guide fails on {num:,} of {total:,} data points (k̂ > {self.threshold:.2f}; worst "
            f"rows: {first}): there neither q(z|x) nor importance weights from it can be trusted."
        )


@exclusive
def pareto_k(
    program: nn.Module,
    x: Any,
    y: Any = None,
    mask: Any = None,
    *,
    num_samples: int = 1000,
    seed: int | None = 0,
    memory_budget: int | None = None,
) -> Reliability:
    """Estimate k̂ of each datum's importance weights, and which data the guide fails on.

    Args:
        program: any program.
        x: (N, *event).
        y: (N, …), covariates.
        mask: of x's shape, true where x is observed.
        num_samples: S ≥ 21, draws per datum.
        seed: random seed; None uses a fresh one.
        memory_budget: bytes per chunk, as in `log_evidence`.

    Returns:
        Reliability, arrays (N,).

    Raises:
        DataError: x does not fit the program.
        ConfigError: fewer than 21 draws.
        MemoryError: one draw of one datum does not fit memory_budget.

    References:
        Yes, but Did It Work?, Yao et al., 2018, https://arxiv.org/abs/1802.02538

    Example:
        >>> import pyrovae as pv
        >>> vae = pv.build((2,), latent_dim=1, seed=0)
        >>> found = pareto_k(vae, torch.ones(3, 2))
        >>> found.pareto_k.shape, found.failed
        (torch.Size([3]), tensor([], dtype=torch.int64))
    """
    num_samples = whole_number(num_samples, "num_samples", MIN_DRAWS)
    options = {"num_samples": num_samples, "seed": seed, "memory_budget": memory_budget}
    found = log_evidence(program, x, y, mask, method="iwae", **options)
    threshold = pareto_k_threshold(num_samples)
    return Reliability(found.pareto_k, found.ess, threshold, found.pareto_k <= threshold)


@exclusive
def escalate(
    program: nn.Module,
    x: Any,
    y: Any = None,
    mask: Any = None,
    *,
    rows: Tensor,
    method: str = "hmc",
    num_samples: int = 500,
    seed: int | None = 0,
    **options: Any,
) -> Posterior:
    """Draw from p(z|x) for these rows only, by a method that depends less on the guide.

    - "sir": more proposals from the same guide; helps if k̂ is just above the threshold.
    - "refine": the guide's parameters optimized per datum; draws from that density, without
      weights. To compare its `elbo`, call `posterior.refine` yourself.
    - "hmc": Hamiltonian chains started from the guide; check `r_hat`.

    Args:
        program: any program for "sir" and "hmc", a `VAE` for "refine".
        x: (N, *event), all of the data.
        y: (N, …), covariates.
        mask: of x's shape, true where x is observed.
        rows: (n,), the rows of x to use, such as `pareto_k(…).failed`.
        method: "sir", "refine" or "hmc".
        num_samples: S, draws per datum (and chain).
        seed: random seed; None uses a fresh one.
        **options: passed to the function of that name in `pyrovae.posterior`.

    Returns:
        Posterior, draws (C, S, n, D), in the order of `rows`.

    Raises:
        ConfigError: the method is unknown, there are no rows, or the method rejects an argument.

    Example:
        >>> import pyrovae as pv
        >>> vae = pv.build((2,), latent_dim=1, seed=0)
        >>> x = torch.ones(3, 2)
        >>> escalate(vae, x, rows=torch.tensor([1]), method="sir", num_samples=10).draws.shape
        torch.Size([1, 10, 1, 1])
    """
    rows = torch.as_tensor(rows)
    if not len(rows):
        raise ConfigError(
            "rows is empty, so there is no datum to escalate: the guide covers them all.\n"
            "Call escalate only if len(pareto_k(…).failed) > 0."
        )
    x, y, mask = open_source(x, y, mask).take(rows)
    options |= {"seed": seed}
    if method == "sir":
        return sir(program, x, y, mask, num_samples=num_samples, **options)
    if method == "hmc":
        return hmc(program, x, y, mask, num_samples=num_samples, **options)
    if method != "refine":
        raise ConfigError(f"method = {method!r}, but it must be 'sir', 'refine' or 'hmc'.")
    guide = refine(program, x, y, mask, **options).guide
    with RandomStream(seed_number(seed)), torch.no_grad():
        draws = guide.sample((whole_number(num_samples, "num_samples", 1),))[None]
    nan = torch.full((len(rows),), torch.nan, dtype=torch.float64)
    return Posterior(draws, torch.full_like(nan, num_samples), nan, nan)
