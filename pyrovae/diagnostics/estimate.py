"""A number with its Monte-Carlo standard error, in nats unless said otherwise.

    value ± std_error,    std_error = s / √n

over n draws, or over N data if the number is a mean over data; then it covers both the draws
and the sampling of data, and it is the error for comparison with new data.
"""

import math
from typing import NamedTuple

from torch import Tensor

NOISE = 2.0  # standard errors
ROUNDING = 1e-6  # nats: rounding error of an exact 0 in float32 log-densities


class Estimate(NamedTuple):
    """A number with its standard error.

    Attributes:
        value: the estimate.
        std_error: its standard error; NaN if there is only one number.
        is_non_negative: whether the true number cannot be negative, as a KL cannot.

    Example:
        >>> print(Estimate(-1.234, 0.01)), print(Estimate(-0.003, 0.01, is_non_negative=True))
        -1.234 ± 0.010
        below the noise (< 0.020)
        (None, None)
    """

    value: float
    std_error: float
    is_non_negative: bool = False

    @property
    def is_below_noise(self) -> bool:
        """Whether it is within two standard errors of 0, or negative though it cannot be.

        Then the number is not a finding; neither is a NaN.
        """
        size = self.value if self.is_non_negative else abs(self.value)
        return not size > NOISE * self.std_error + ROUNDING

    def __str__(self) -> str:
        if math.isnan(self.value):
            return "not defined"
        if self.is_non_negative and self.is_below_noise:
            return f"below the noise (< {NOISE * self.std_error:.3f})"
        return f"{self.value:.3f} ± {self.std_error:.3f}"


def mean_of(values: Tensor, *, is_non_negative: bool = False) -> Estimate:
    """Return the mean of (n,) independent numbers, std_error = s / √n; in float64.

    Example:
        >>> import torch
        >>> mean_of(torch.tensor([1.0, 2.0, 3.0]))
        Estimate(value=2.0, std_error=0.577..., is_non_negative=False)
    """
    values = values.detach().double()
    spread = values.std().item() if len(values) > 1 else math.nan
    return Estimate(values.mean().item(), spread / math.sqrt(len(values)), is_non_negative)
