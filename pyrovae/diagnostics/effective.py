"""How many latent dimensions are active, with an interval over data.

    K = Σ_d 1(A_d > threshold),    A_d = Var_x(E[z_d|x])

A_d is estimated from N data, so that a dimension near the threshold is active in one sample and
not in the next. The data are resampled with replacement B times: the share of resamples with
A_d > threshold tells how certain dimension d is, and quantiles of K are an interval. Its error is
that of sampling data, not of training: another seed may find another number.

References:
    Importance Weighted Autoencoders, Burda, Grosse & Salakhutdinov, 2016,
    https://arxiv.org/abs/1509.00519 (active units)
    An Introduction to the Bootstrap, Efron & Tibshirani, 1993,
    https://doi.org/10.1201/9780429246593
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pyrovae.checks import real_number, whole_number
from pyrovae.core.draws import diagnosing
from pyrovae.diagnostics.by_dimension import read_means
from pyrovae.diagnostics.collapse import ACTIVE, read_all
from pyrovae.errors import ConfigError
from pyrovae.runtime.ambient import exclusive


class EffectiveLatents(NamedTuple):
    """Number of active latent dimensions.

    Attributes:
        num_active: K.
        lower, upper: ends of the interval of K, from the resamples.
        level: its nominal probability.
        probability: (D,), the share of resamples in which the dimension is active.
        variance: (D,), A_d, squared units of the latent space.
        names: D names.
    """

    num_active: int
    lower: int
    upper: int
    level: float
    probability: Tensor
    variance: Tensor
    names: tuple[str, ...]

    @property
    def message(self) -> str:
        """One sentence for the user."""
        tail = (1 - self.level) / 2
        unsure = ((self.probability > tail) & (self.probability < 1 - tail)).nonzero()[:, 0]
        names = ", ".join(self.names[i] for i in unsure.tolist()[:10])
        doubt = f"; undecided: {names}" if len(unsure) else ""
        return (
            f"{self.num_active} of {len(self.names)} latent dimensions are active "
            f"({100 * self.level:.0f} % interval {self.lower} to {self.upper}{doubt})."
        )


@exclusive
def effective_latents(
    program: nn.Module,
    x: Any,
    y: Any = None,
    mask: Any = None,
    *,
    threshold: float = ACTIVE,
    level: float = 0.95,
    num_resamples: int = 1000,
    num_samples: int = 20,
    seed: int | None = 0,
    memory_budget: int | None = None,
) -> EffectiveLatents:
    """Count the latent dimensions whose posterior mean varies with x, with an interval.

    Args:
        program: any program.
        x: (N, *event), N ≥ 2.
        y: (N, …), covariates.
        mask: of x's shape, true where x is observed.
        threshold: of A_d, as in `active_units`.
        level: probability of the interval, in (0, 1).
        num_resamples: B.
        num_samples: draws per datum if q has no closed-form mean.
        seed: random seed; None uses a fresh one.
        memory_budget: bytes per chunk, as in `log_evidence`.

    Returns:
        EffectiveLatents.

    Raises:
        DataError: x does not fit the program, or holds one datum only.
        ConfigError: a setting is out of range.

    References:
        Burda, Grosse & Salakhutdinov, 2016, https://arxiv.org/abs/1509.00519

    Example:
        >>> import pyrovae as pv
        >>> vae = pv.build((2,), latent_dim=3, seed=0)
        >>> found = effective_latents(vae, torch.eye(2), threshold=0.0)
        >>> found.num_active, found.upper, found.probability.shape
        (3, 3, torch.Size([3]))
    """
    threshold = real_number(threshold, "threshold", least=0.0)
    level = real_number(level, "level", above=0.0)
    if level >= 1:
        raise ConfigError(f"level = {level:g}, but the probability of an interval is below 1.")
    num_resamples = whole_number(num_resamples, "num_resamples", 1)
    options = {"num_samples": num_samples, "seed": seed, "memory_budget": memory_budget}
    found, names = read_all(program, x, y, mask, read_means, **options)
    means = found["mean"].cpu()  # (S, N, D)
    num = means.shape[1]
    with diagnosing(program, seed):
        rows = torch.randint(num, (num_resamples, num))
    ones = torch.ones(num_resamples, num, dtype=torch.float64)
    weights = torch.zeros_like(ones).scatter_add_(1, rows, ones)
    resampled = _variance(means, weights)
    variance = _variance(means, ones[:1])[0]
    active = resampled > threshold  # (B, D)
    tail = (1 - level) / 2
    lower, upper = (
        int(active.sum(1).double().quantile(q, interpolation=how))
        for q, how in ((tail, "lower"), (1 - tail, "higher"))
    )
    num_active = int((variance > threshold).sum())
    return EffectiveLatents(
        num_active, lower, upper, level, active.double().mean(0), variance, names
    )


def _variance(means: Tensor, weights: Tensor) -> Tensor:
    """Return A_d (B, D) of data with these weights (B, N); for complex means that of the points.

    The error of averaging S draws is subtracted, as in `active_units`.
    """
    parts = torch.view_as_real(means) if means.is_complex() else means[..., None]
    center = parts.mean(0)  # (N, D, 1 or 2)
    left_over = parts.var(0).sum(-1) / len(means)  # (N, D)
    center = center - center.mean(0)
    total = weights.sum(1, keepdim=True)
    first = torch.einsum("bn,ndk->bdk", weights, center) / total[..., None]
    second = weights @ (center**2).sum(-1) / total
    spread = (second - (first**2).sum(-1)) * total / (total - 1)
    return (spread - weights @ left_over / total).clamp(min=0.0)
