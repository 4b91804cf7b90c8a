"""Which latent dimensions carry information about x: active units and posterior collapse.

    A_d = Var_x(E[z_d|x])        active (Burda et al. 2016): A_d > 0.01

A_d is in squared units of the latent space, and 0.01 assumes a prior of unit scale. A small
A_d alone is therefore not proof: a dimension has *collapsed* only if, in addition, q(z_d|x) is
the prior for nearly all x, KL(q(z_d|x) ‖ p(z_d)) < ε for a share 1 − δ of them (Lucas et al.
2019). If the prior has no KL per dimension (a mixture, a flow), the share of A_d in the variance
of z_d over all x, which is unitless, must be below 0.01 instead.

In the linear-Gaussian model at its optimum, dimension d collapses if and only if its
eigenvalue λ_d of the data's covariance is at most the noise variance σ².
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pyrovae.checks import real_number, whole_number
from pyrovae.contract import validated
from pyrovae.core.draws import Arrays, diagnosing, latent_names, over_draws, read_latents
from pyrovae.core.terms import Traces
from pyrovae.diagnostics.by_dimension import read_kl, read_means
from pyrovae.errors import DataError
from pyrovae.runtime.ambient import exclusive

ACTIVE = 0.01  # Burda et al. 2016, appendix C


class ActiveUnits(NamedTuple):
    """Variance of the posterior means over x, per latent dimension.

    Attributes:
        variance: (D,), A_d, squared units of the latent space.
        std_error: (D,), its standard error over data.
        is_active: (D,), variance above the threshold. In a latent space of small scale a dimension
            below it may still inform on x, by its KL: `collapsed_dimensions` counts both.
        names: D names.
    """

    variance: Tensor
    std_error: Tensor
    is_active: Tensor
    names: tuple[str, ...]

    @property
    def num_active(self) -> int:
        """The number of active dimensions."""
        return int(self.is_active.sum())


class Collapse(NamedTuple):
    """Latent dimensions that have collapsed to the prior, with the supporting numbers.

    Attributes:
        is_collapsed: (D,).
        variance: (D,), A_d, squared units of the latent space.
        share: (D,), A_d relative to the variance of z_d over all x, in [0, 1].
        mean_kl: (D,), nats, mean over data; NaN if the prior does not factorize.
        share_near_prior: (D,), share of the data with KL below kl_threshold; NaN likewise.
        names: D names.
    """

    is_collapsed: Tensor
    variance: Tensor
    share: Tensor
    mean_kl: Tensor
    share_near_prior: Tensor
    names: tuple[str, ...]

    @property
    def collapsed(self) -> tuple[str, ...]:
        """The names of the collapsed dimensions."""
        flags = self.is_collapsed.tolist()
        return tuple(name for name, flag in zip(self.names, flags, strict=True) if flag)

    @property
    def num_active(self) -> int:
        """The number of dimensions that have not collapsed."""
        return len(self.names) - len(self.collapsed)

    @property
    def message(self) -> str:
        """One sentence for the user."""
        if not self.collapsed:
            return f"No collapse: all {len(self.names)} latent dimensions carry information."
        shown = ", ".join(self.collapsed[:10]) + (" …" if len(self.collapsed) > 10 else "")
        return (
            f"Posterior collapse in {len(self.collapsed)} of {len(self.names)} latent dimensions "
            f"({shown}): there q(z|x) is the prior for every x. If the data need no more, use "
            "fewer dimensions; otherwise try a KL warm-up or free bits."
        )


@exclusive
def active_units(
    program: nn.Module,
    x: Any,
    y: Any = None,
    mask: Any = None,
    *,
    threshold: float = ACTIVE,
    num_samples: int = 20,
    seed: int | None = 0,
    memory_budget: int | None = None,
) -> ActiveUnits:
    """Estimate A_d = Var_x(E_q[z_d|x]), and which dimensions exceed the threshold.

    For an angle, z_d stands for the point (cos z_d, sin z_d). The mean is that of q in closed
    form if there is one. Otherwise it is the mean of S draws, corrected for the variance that
    averaging S draws adds.

    Args:
        program: any program.
        x: (N, *event), N ≥ 2.
        y: (N, …), covariates.
        mask: of x's shape, true where x is observed.
        threshold: squared units of the latent space; the paper's 0.01 assumes a prior of unit
            scale.
        num_samples: S, draws per datum if q has no closed-form mean.
        seed: random seed; None uses a fresh one.
        memory_budget: bytes per chunk, as in `log_evidence`.

    Returns:
        ActiveUnits, arrays (D,).

    Raises:
        DataError: x does not fit the program, or holds one datum only.
        ConfigError: a setting is out of range.

    References:
        Importance Weighted Autoencoders, Burda, Grosse & Salakhutdinov, 2016,
        https://arxiv.org/abs/1509.00519

    Example:
        >>> import pyrovae as pv
        >>> vae = pv.build((2,), latent_dim=3, seed=0)
        >>> found = active_units(vae, torch.eye(2))
        >>> found.variance.shape, found.num_active
        (torch.Size([3]), 0)
    """
    threshold = real_number(threshold, "threshold", least=0.0)
    options = {"num_samples": num_samples, "seed": seed, "memory_budget": memory_budget}
    found, names = read_all(program, x, y, mask, read_means, **options)
    variance, std_error = _variance_of_means(found["mean"])
    return ActiveUnits(variance, std_error, variance > threshold, names)


@exclusive
def collapsed_dimensions(
    program: nn.Module,
    x: Any,
    y: Any = None,
    mask: Any = None,
    *,
    threshold: float = ACTIVE,
    kl_threshold: float = 0.05,
    tolerance: float = 0.01,
    num_samples: int = 20,
    seed: int | None = 0,
    memory_budget: int | None = None,
) -> Collapse:
    """Find the latent dimensions whose q(z_d|x) is the prior for every x, by name.

    Collapsed means A_d ≤ threshold, and KL(q(z_d|x) ‖ p(z_d)) < kl_threshold for a share of at
    least 1 − tolerance of the data.

    Args:
        program: any program.
        x: (N, *event), N ≥ 2.
        y: (N, …), covariates.
        mask: of x's shape, true where x is observed.
        threshold: threshold of A_d, in squared units of the latent space.
        kl_threshold: ε, nats.
        tolerance: δ, the share of the data that may be exceptions.
        num_samples: S, draws per datum if means or KL have no closed form.
        seed: random seed; None uses a fresh one.
        memory_budget: bytes per chunk, as in `log_evidence`.

    Returns:
        Collapse, arrays (D,).

    Raises:
        DataError: x does not fit the program, or holds one datum only.
        ConfigError: a setting is out of range.

    References:
        Don't Blame the ELBO! A Linear VAE Perspective on Posterior Collapse, Lucas et al., 2019,
        https://arxiv.org/abs/1911.02469 ((ε, δ)-collapse)
        Importance Weighted Autoencoders, Burda et al., 2016, https://arxiv.org/abs/1509.00519

    Example:
        >>> import pyrovae as pv
        >>> vae = pv.build((2,), latent_dim=2, seed=0)
        >>> collapsed_dimensions(vae, torch.eye(2)).share.shape
        torch.Size([2])
    """
    threshold = real_number(threshold, "threshold", least=0.0)
    kl_threshold = real_number(kl_threshold, "kl_threshold", least=0.0)
    tolerance = real_number(tolerance, "tolerance", least=0.0)
    options = {"num_samples": num_samples, "seed": seed, "memory_budget": memory_budget}
    found, names = read_all(program, x, y, mask, _read, **options)
    variance, _ = _variance_of_means(found["mean"])
    total = found["z"].double().var((0, 1))
    share = (variance.clamp(min=0.0) / total.clamp(min=1e-300)).clamp(max=1.0)
    kl = found["kl_per_dimension"].mean(0)  # (N, D)
    near = (kl < kl_threshold).double().mean(0)
    is_split = ~kl.isnan().any(0)
    is_prior = torch.where(is_split, near >= 1 - tolerance, share <= ACTIVE)
    is_still = (variance <= threshold) | ~is_split  # without a KL the unit-free share decides
    near = near.masked_fill(~is_split, math.nan)
    return Collapse(is_still & is_prior, variance, share, kl.mean(0), near, names)


def _read(traces: Traces, num_data: int) -> Arrays:
    parts = (read_means, read_latents, read_kl)
    return {name: value for part in parts for name, value in part(traces, num_data).items()}


def read_all(program, x, y, mask, read, *, num_samples, seed, memory_budget):
    """Return what `read` extracts at S draws for at least two data, and the names of latents."""
    num_samples = whole_number(num_samples, "num_samples", 2)
    data = validated(program, x, y, mask)
    if data.count() < 2:
        raise DataError(
            "x holds one datum, but whether a latent dimension varies with x takes at least two.\n"
            "Pass the training data, or a few hundred of them."
        )
    with diagnosing(program, seed):
        names = latent_names(program, data)
        options = {"num_samples": num_samples, "memory_budget": memory_budget}
        return over_draws(program, data, read, **options), names


def _variance_of_means(means: Tensor) -> tuple[Tensor, Tensor]:
    """Return A_d and its standard error, (D,), from E[z|x] at each draw (S, N, D).

    The S means of a datum are equal if q has a mean; otherwise their variance over S is the error
    of averaging S draws.
    """
    posterior_mean = means.mean(0)  # (N, D)
    left_over = means.var(0).mean(0) / len(means)
    squared = (posterior_mean - posterior_mean.mean(0)).abs() ** 2
    num = len(squared)
    variance = squared.sum(0) / (num - 1)
    return (variance - left_over).clamp(min=0.0), squared.std(0) / math.sqrt(num)
