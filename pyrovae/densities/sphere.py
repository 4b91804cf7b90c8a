"""Distributions on the unit sphere S^(D−1) = {z in R^D: |z| = 1}, for D ≥ 2.

    HypersphericalUniform    p(z) = 1 / A,  A = 2 π^(D/2) / Γ(D/2), the sphere's area
    PowerSpherical(μ, κ)     q(z) = (1 + μᵀz)^κ / C

    C = 2^(α+β) π^β Γ(α) / Γ(α+β),   β = (D − 1)/2,  α = β + κ

z (*S, B, D), the direction μ (B, D) with |μ| = 1, the concentration κ (B,) > 0. Densities
are with respect to the area of the sphere, in nats; they depend only on the direction of a
value, so float32 rounding of its length has no effect.

Intermediate results are float64: the log-Γ terms of C lose eleven digits to cancellation
at κ = 1e4, and 1 + μᵀz loses all of its digits near the antipode unless computed as
|μ + z|² / 2. Left out: the von Mises-Fisher density, whose rejection sampler has no
unbiased pathwise gradient.
"""

import math
from typing import ClassVar

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor
from torch.distributions import Dirichlet, register_kl
from torch.nn.functional import normalize

from pyrovae.checks import whole_number
from pyrovae.errors import ConfigError


def sphere_dim(latent_dim: int) -> int:
    """Return D ≥ 2, the number of coordinates of a point on the sphere S^(D−1)."""
    if whole_number(latent_dim, "latent_dim", 1) < 2:
        raise ConfigError(
            "latent_dim = 1, but the sphere in R¹ is two points, ±1, and has no density.\n"
            "Write latent_dim=2 for a circle, or use the Bernoulli parts for two values."
        )
    return latent_dim


def log_area(dim: int) -> float:
    """Return log A = log 2 + (D/2) log π − log Γ(D/2), A the area of S^(D−1)."""
    return math.log(2.0) + dim / 2 * math.log(math.pi) - math.lgamma(dim / 2)


class HypersphericalUniform(TorchDistribution):
    """Uniform distribution on S^(D−1), p(z) = 1 / A, A = 2 π^(D/2) / Γ(D/2).

    Args:
        dim: D ≥ 2.
        batch_shape: the shape of independent copies.
        dtype, device: those of the draws; None means torch's defaults.

    Example:
        >>> HypersphericalUniform(3).log_prob(torch.tensor([0.0, 0.0, 1.0]))  # −log 4π
        tensor(-2.5310)
    """

    arg_constraints: ClassVar = {}
    support = constraints.sphere
    has_rsample = True

    def __init__(self, dim, batch_shape=(), *, dtype=None, device=None, validate_args=None):
        self.dim = dim
        self._zero = torch.zeros((), dtype=dtype, device=device)
        super().__init__(torch.Size(batch_shape), torch.Size([dim]), validate_args=validate_args)

    def expand(self, batch_shape, _instance=None):
        like = {"dtype": self._zero.dtype, "device": self._zero.device}
        new = HypersphericalUniform(self.dim, batch_shape, **like, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def mean(self) -> Tensor:
        return self._zero.expand(*self.batch_shape, self.dim)

    @property
    def variance(self) -> Tensor:
        return self.mean + 1 / self.dim

    def rsample(self, sample_shape=()) -> Tensor:
        noise = self._zero.new_empty(self._extended_shape(torch.Size(sample_shape))).normal_()
        return normalize(noise, dim=-1)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        shape = torch.broadcast_shapes(value.shape[:-1], self.batch_shape)
        return (self._zero - log_area(self.dim)).expand(shape)

    def entropy(self) -> Tensor:
        return (self._zero + log_area(self.dim)).expand(self.batch_shape)


class PowerSpherical(TorchDistribution):
    """Power spherical, q(z) = (1 + μᵀz)^κ / C on S^(D−1): a bump around μ, wider for smaller κ.

    With t = μᵀz, (1 + t)/2 ~ Beta(α, β) and z is uniform given t, so that
    E[z] = μ κ / (κ + D − 1). A draw is z = t μ + √(1 − t²) v with v a uniform tangent:
    a Beta draw, D − 1 normals, and one Householder reflection that maps e₁ to μ, without
    rejection. Gradients in μ and κ are pathwise; torch's implicit derivative of the Beta
    draw has a relative error of at most 1.5e-3.

    Args:
        direction: μ, (*B, D), of length 1.
        concentration: κ, (*B,) > 0, dimensionless.

    References:
        The Power Spherical distribution, De Cao & Aziz, 2020, https://arxiv.org/abs/2006.04437

    Example:
        >>> q = PowerSpherical(torch.tensor([0.0, 0.0, 1.0]), torch.tensor(2.0))
        >>> q.log_prob(torch.tensor([0.0, 0.0, 1.0]))  # log 4 − log(32π/6)
        tensor(-1.4324)
        >>> q.mean
        tensor([0.0000, 0.0000, 0.5000])
    """

    arg_constraints: ClassVar = {
        "direction": constraints.sphere,
        "concentration": constraints.positive,
    }
    support = constraints.sphere
    has_rsample = True

    def __init__(self, direction: Tensor, concentration: Tensor, validate_args=None):
        batch_shape = torch.broadcast_shapes(direction.shape[:-1], concentration.shape)
        self.direction = direction.expand(*batch_shape, -1)
        self.concentration = concentration.expand(batch_shape)
        super().__init__(batch_shape, direction.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape, _instance=None):
        direction = self.direction.expand(*batch_shape, -1)
        new = PowerSpherical(direction, self.concentration.expand(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def dim(self) -> int:
        return self.event_shape[0]

    @property
    def _alpha_beta(self) -> tuple[Tensor, float]:
        beta = (self.dim - 1) / 2
        return self.concentration.double() + beta, beta

    @property
    def mean(self) -> Tensor:
        resultant = self.concentration / (self.concentration + self.dim - 1)
        return resultant.unsqueeze(-1) * self.direction

    @property
    def variance(self) -> Tensor:
        """(*B, D), per coordinate: E[t²] μ² + E[1 − t²] (1 − μ²)/(D − 1) − E[z]²."""
        alpha, beta = self._alpha_beta
        # 1 − t² = 4 b (1 − b) for b ~ Beta(α, β)
        across = (4 * alpha * beta / ((alpha + beta) * (alpha + beta + 1))).unsqueeze(-1)
        square = self.direction.double() ** 2
        second = (1 - across) * square + across * (1 - square) / (self.dim - 1)
        return (second - self.mean.double() ** 2).to(self.direction.dtype)

    def rsample(self, sample_shape=()) -> Tensor:
        sample_shape = torch.Size(sample_shape)
        alpha, beta = self._alpha_beta
        # both b and 1 − b, because neither determines the other in floating point
        both = torch.stack([alpha, torch.full_like(alpha, beta)], -1)
        b = Dirichlet(both, validate_args=False).rsample(sample_shape).clamp_min(1e-30)
        t = b[..., :1] - b[..., 1:]
        tangent = normalize(b.new_empty(*t.shape[:-1], self.dim - 1).normal_(), dim=-1)
        around_first_axis = torch.cat([t, 2 * b.prod(-1, keepdim=True).sqrt() * tangent], -1)
        z = _carry_first_axis_to(self.direction.double(), around_first_axis)
        return normalize(z, dim=-1).to(self.direction.dtype)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        both = normalize(self.direction.double(), dim=-1) + normalize(value.double(), dim=-1)
        one_plus_cosine = both.square().sum(-1) / 2
        # the density is 0 only at the antipode; the floor keeps its logarithm finite
        log_base = one_plus_cosine.clamp_min(torch.finfo(torch.float64).tiny).log()
        log_prob = self.concentration.double() * log_base - self._log_normalizer()
        return log_prob.to(self.direction.dtype)

    def _log_normalizer(self) -> Tensor:
        """Return log C, (*B,), float64."""
        alpha, beta = self._alpha_beta
        log_gammas = torch.lgamma(alpha) - torch.lgamma(alpha + beta)
        return (alpha + beta) * math.log(2.0) + beta * math.log(math.pi) + log_gammas

    def _entropy(self) -> Tensor:
        alpha, beta = self._alpha_beta
        mean_log_base = math.log(2.0) + torch.digamma(alpha) - torch.digamma(alpha + beta)
        return self._log_normalizer() - self.concentration.double() * mean_log_base

    def entropy(self) -> Tensor:
        """Return log C − κ (log 2 + ψ(α) − ψ(α + β)), (*B,), nats."""
        return self._entropy().to(self.direction.dtype)


def _carry_first_axis_to(direction: Tensor, y: Tensor) -> Tensor:
    """Reflect y so that e₁ is mapped to ±direction, then fix the sign.

    The usual reflection along e₁ − μ divides by zero at μ = e₁; with s = ±1 the sign of μ₁,
    the one along μ + s e₁ (length ≥ √2) maps e₁ to −s μ and is always stable.
    """
    sign = torch.where(direction[..., :1] < 0, -1.0, 1.0).to(direction.dtype)
    u = torch.cat([direction[..., :1] + sign, direction[..., 1:]], -1)
    along = 2 * (u * y).sum(-1, keepdim=True) / u.square().sum(-1, keepdim=True)
    return -sign * (y - along * u)


@register_kl(PowerSpherical, HypersphericalUniform)
def _kl_power_spherical_uniform(q: PowerSpherical, p: HypersphericalUniform) -> Tensor:
    """Return KL(q ‖ p) = log A − H[q], in nats; the difference is computed in float64."""
    return (log_area(p.dim) - q._entropy()).to(q.direction.dtype)
