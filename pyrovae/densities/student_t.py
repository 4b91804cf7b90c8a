"""Student's t-distribution."""

import math

import pyro.distributions as dist
import torch
from torch import Tensor


class StudentT(dist.StudentT):
    """Student-t, p(x) ∝ (1 + t²/ν)^(−(ν + 1)/2), t = (x − loc) / scale; stable for large ν and t.

    Args:
        df: ν > 0; Gaussian for ν → ∞.
        loc: the center.
        scale: positive, in the units of x.

    Example:
        >>> p = StudentT(torch.tensor([3.0, 1e6]), torch.tensor(0.0), torch.tensor(1.0))
        >>> p.log_prob(torch.tensor(2.0)), dist.Normal(0.0, 1.0).log_prob(torch.tensor(2.0))
        (tensor([-2.6955, -2.9189]), tensor(-2.9189))
    """

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        u = (value - self.loc).abs() / self.scale / self.df.sqrt()
        # log(1 + u²) = 2 log u + log(1 + u⁻²) for u > 1, because u² overflows; where(), because
        # clamp() passes a gradient at u = 1 itself
        is_near = u <= 1
        far = torch.where(is_near, 1.0, u)
        log_kernel = 2 * far.log() + torch.log1p(torch.where(is_near, u, 1 / far) ** 2)
        log_norm = _log_gamma_half_step(0.5 * self.df) - 0.5 * torch.log(math.pi * self.df)
        return log_norm - self.scale.log() - 0.5 * (self.df + 1) * log_kernel


def _log_gamma_half_step(a: Tensor) -> Tensor:
    """Return log Γ(a + ½) − log Γ(a), for a > 0."""
    small, large = a.clamp(max=16.0), a.clamp(min=16.0)
    square = 1 / large**2
    series = 17 / 14336 * square - 1 / 640
    series = ((series * square + 1 / 192) * square - 1 / 8) / large
    direct = torch.lgamma(small + 0.5) - torch.lgamma(small)
    return torch.where(a < 16, direct, 0.5 * large.log() + series)
