"""A number with its Monte-Carlo standard error, in nats unless said otherwise.

    value ± std_error,    std_error = s / √n

over n draws, or over N data where the number is a mean over data; then it covers both the
draws and which data came, and it is the error to compare with new data.
"""

import math
from typing import NamedTuple

from torch import Tensor

NOISE = 2.0  # standard errors
ROUNDING = 1e-6  # nats: what float32 log-densities leave of an exact 0


class Estimate(NamedTuple):
    """A number with its standard error.

    Attributes:
        value: the estimate.
        std_error: its standard error; NaN where one number is all there is.

    Example:
        >>> print(Estimate(1.234, 0.01)), print(Estimate(-0.003, 0.01))
        1.234 ± 0.010
        below the noise (< 0.020)
        (None, None)
    """

    value: float
    std_error: float

    @property
    def is_below_noise(self) -> bool:
        """Whether it is no more than two standard errors above 0, as every negative number is.

        For quantities that cannot be negative, such as a KL: then the number is no finding.
        A NaN is none either.
        """
        return not self.value > NOISE * self.std_error + ROUNDING

    def __str__(self) -> str:
        if self.is_below_noise:
            return f"below the noise (< {NOISE * self.std_error:.3f})"
        return f"{self.value:.3f} ± {self.std_error:.3f}"


def mean_of(values: Tensor) -> Estimate:
    """The mean of (n,) independent numbers, std_error = s / √n; in float64.

    Example:
        >>> import torch
        >>> mean_of(torch.tensor([1.0, 2.0, 3.0]))
        Estimate(value=2.0, std_error=0.577...)
    """
    values = values.detach().double()
    spread = values.std().item() if len(values) > 1 else math.nan
    return Estimate(values.mean().item(), spread / math.sqrt(len(values)))
