"""Positive numbers: log-normal and gamma densities, by their location and mean."""

import math

import torch
from torch import Tensor
from torch.distributions import constraints

from pyrovae.densities.counts import stirling
from pyrovae.densities.elementwise import Elementwise


class LogNormal(Elementwise):
    """Log-normal, log x ~ N(loc, scale²): p(x) = N(log x; loc, scale²) / x for x > 0.

    Args:
        loc: the mean of log x.
        scale: positive, the standard deviation of log x.

    Example:
        >>> p = LogNormal(torch.tensor(0.0), torch.tensor(1.0))
        >>> p.mean, p.mode, p.log_prob(torch.tensor(1.0))
        (tensor(1.6487), tensor(0.3679), tensor(-0.9189))
    """

    arg_constraints = {"loc": constraints.real, "scale": constraints.positive}  # noqa: RUF012
    support = constraints.positive

    def __init__(self, loc: Tensor, scale: Tensor, validate_args: bool | None = None):
        super().__init__(loc=loc, scale=scale, validate_args=validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        log_x = self._checked(value).log()
        standardized = (log_x - self.loc) / self.scale
        log_norm = self.scale.log() + 0.5 * math.log(2 * math.pi)
        return -0.5 * standardized**2 - log_norm - log_x

    @property
    def mean(self) -> Tensor:
        return torch.exp(self.loc + self.scale**2 / 2)

    @property
    def mode(self) -> Tensor:
        return torch.exp(self.loc - self.scale**2)

    def sample(self, sample_shape=()) -> Tensor:
        with torch.no_grad():
            loc = self.loc.expand(self._extended_shape(sample_shape))
            return torch.exp(loc + self.scale * torch.randn_like(loc))


class Gamma(Elementwise):
    """Gamma, p(x) = (a/μ)ᵃ xᵃ⁻¹ exp(−a x/μ) / Γ(a) for x > 0, with mean μ and variance μ²/a.

    log p = log a − stirling(a) − log x − a (u − 1 − log u), u = x/μ: terms of a log a cancel in
    the textbook form.

    Args:
        rate: μ > 0, the mean.
        concentration: a > 0, the shape; 1/√a is the coefficient of variation.

    Example:
        >>> p = Gamma(torch.tensor(3.0), torch.tensor(1.0))  # exponential
        >>> p.mean, p.log_prob(torch.tensor(3.0))
        (tensor(3.), tensor(-2.0986))
    """

    arg_constraints = {  # noqa: RUF012
        "rate": constraints.positive,
        "concentration": constraints.positive,
    }
    support = constraints.positive

    def __init__(self, rate: Tensor, concentration: Tensor, validate_args: bool | None = None):
        super().__init__(rate=rate, concentration=concentration, validate_args=validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        x, a = self._checked(value), self.concentration
        excess = (x - self.rate) / self.rate
        is_near = excess.abs() < 0.5
        near, far = torch.where(is_near, excess, 0.0), torch.where(is_near, 1.0, x / self.rate)
        distance = torch.where(is_near, near - torch.log1p(near), far - 1 - far.log())
        return a.log() - stirling(a) - x.log() - a * distance

    @property
    def mean(self) -> Tensor:
        return self.rate.expand(self.batch_shape)

    @property
    def mode(self) -> Tensor:
        """The mode; 0 if a ≤ 1, where the density falls from an edge."""
        return self.rate * (1 - 1 / self.concentration).clamp(min=0.0)

    def sample(self, sample_shape=()) -> Tensor:
        with torch.no_grad():
            a = self.concentration.expand(self._extended_shape(sample_shape))
            draws = torch._standard_gamma(a) / a * self.rate
            return draws.clamp(min=torch.finfo(draws.dtype).tiny)  # 0 is outside of the support
