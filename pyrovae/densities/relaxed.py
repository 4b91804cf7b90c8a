"""Relaxed binary and categorical vectors (Concrete, Gumbel-softmax), densities on (0, 1)^D.

    BinaryConcrete(l, T)   z in (0, 1)^D       z_j = σ(y_j), y_j = (l_j + logistic noise)/T
    Concrete(l, T)         L simplex blocks    z_b = softmax((l_b + Gumbel noise)/T)

Logits l are (*B, D), or (*B, L, K) for blocks, which are concatenated in z: D = L·K; the
temperature T > 0 is dimensionless; log-densities (with respect to volume) are (*S, *B), in nats.

These define different, continuous models, whose ELBO bounds their own log p(x). In floating
point, σ(y) rounds to 1 and softmax to 0 for confident logits, log q(z) of the rounded value
decreases without limit as the logits grow, and the "bound" exceeds log p(x). Therefore
BinaryConcrete is truncated and renormalized where its dtype cannot distinguish z from 1;
a Concrete guide bounds its logits (`max_logit`); and the parts reject T < 0.4.
"""

import math
from typing import ClassVar

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.nn.functional import softplus

from pyrovae.checks import real_number
from pyrovae.densities.discrete import LogitVector
from pyrovae.errors import ConfigError

MIN_TEMPERATURE = 0.4


class SimplexBlocks(constraints.Constraint):
    """Constraint to concatenated blocks of K numbers > 0 that sum to 1, up to rounding."""

    event_dim = 1

    def __init__(self, num_categories: int):
        self.num_categories = num_categories
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        blocks = value.unflatten(-1, (-1, self.num_categories))
        is_one = (blocks.sum(-1) - 1).abs() < 100 * torch.finfo(value.dtype).eps
        return (is_one & (blocks > 0).all(-1)).all(-1)

    def __repr__(self) -> str:
        return f"simplex blocks of {self.num_categories}"


class _Relaxed(LogitVector):
    """Base class of logit vectors with a temperature; draws are reparameterized."""

    has_rsample = True
    is_relaxed = True  # read by `terms.bound_on`: the ELBO is that of another model

    def __init__(self, logits: Tensor, temperature: float, *, validate_args: bool | None = None):
        self.temperature = temperature
        super().__init__(logits, validate_args=validate_args)

    def _with_logits(self, logits: Tensor) -> "_Relaxed":
        return type(self)(logits, self.temperature, validate_args=False)


class BinaryConcrete(_Relaxed):
    """Relaxed Bernoulli(σ(l)): z = σ(y), y = (l + logistic noise)/T given |y| ≤ c.

    With w = T y and h = T c, a coordinate has
    log p(z) = log T + log σ(w − l) + log σ(l − w) − log[σ(h − l) − σ(−h − l)] − log z(1 − z).
    Up to the cut c = −log 4ε (14.6 in float32), z is distinguishable from 1; without it, confident
    logits would make log p(z) arbitrarily wrong. Beyond it the density is 0. For T ≥ 1/2 and
    |l| ≤ 1 the truncated probability is below 3e-3 in float32 and 1e-7 in float64.

    Args:
        logits: l, (*B, D).
        temperature: T > 0; smaller is closer to {0, 1}.

    References:
        The Concrete Distribution, Maddison, Mnih & Teh, 2017, https://arxiv.org/abs/1611.00712
        Categorical Reparameterization with Gumbel-Softmax, Jang, Gu & Poole, 2017,
        https://arxiv.org/abs/1611.01144

    Example:
        >>> p = BinaryConcrete(torch.zeros(1), 1.0)  # uniform on (0, 1), up to the cut
        >>> p.log_prob(torch.tensor([0.3])).exp()
        tensor(1.0000)
    """

    arg_constraints: ClassVar = {"logits": constraints.real_vector}
    support = constraints.independent(constraints.unit_interval, 1)

    @property
    def cut(self) -> float:
        """c, the largest |logit of z|."""
        return -math.log(4 * torch.finfo(self.logits.dtype).eps)

    def rsample(self, sample_shape=()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        h = self.temperature * self.cut
        # by symmetry only for l ≥ 0, because the formulas cancel for l < 0
        sign = _sign(self.logits)
        size = sign * self.logits
        gap = softplus(h - size) - softplus(-h - size)
        gap = torch.where(self.logits < 0, 2 * h - gap, gap)
        # w = log σ-inverse of the mixture (1−u) σ(−h−l) + u σ(h−l), shifted by l
        r = _logistic_noise(self.logits, shape) - gap
        w = torch.logaddexp(torch.full_like(r, -h), r + h) - softplus(r)
        return (w / self.temperature).clamp(-self.cut, self.cut).sigmoid()

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        y = torch.log(value) - torch.log1p(-value)
        h = self.temperature * self.cut
        sign = _sign(self.logits)
        size, w = sign * self.logits, sign * self.temperature * y
        log_normalizer = math.log(self.temperature) - math.log1p(-math.exp(-2 * h))
        log_prob = log_normalizer + (w - h) - 2 * softplus(w - size)
        log_prob = log_prob + softplus(h - size) + softplus(-h - size)
        log_volume = softplus(y) + softplus(-y)  # −log z(1 − z)
        # 0.25 exceeds the rounding error of y at the cut
        is_inside = y.abs() <= self.cut + 0.25
        return torch.where(is_inside, log_prob + log_volume, -math.inf).sum(-1)


def _sign(t: Tensor) -> Tensor:
    """Return 1 or −1, never 0, so that |t| written as _sign(t)·t has derivative 1 at 0."""
    return torch.where(t < 0, -1.0, 1.0).to(t.dtype)


def _exponential_noise(like: Tensor, shape: torch.Size) -> Tensor:
    tiny = torch.finfo(like.dtype).tiny
    return like.new_empty(shape).exponential_().clamp_min(tiny)


def _logistic_noise(like: Tensor, shape: torch.Size) -> Tensor:
    # a ratio of exponentials, because the logit of a float32 uniform never exceeds 16.6
    return _exponential_noise(like, shape).log() - _exponential_noise(like, shape).log()


class Concrete(_Relaxed):
    """Relaxed one-hot blocks, z_b = softmax((l_b + Gumbel noise)/T) for each of L blocks.

    The density of a block of K numbers that sum to 1, with respect to K − 1 of them, is
    log p(z) = log Γ(K) + (K − 1) log T + Σ_k (l_k − (T + 1) log z_k)
    − K log Σ_k e^(l_k − T log z_k).

    Args:
        logits: l, (*B, L, K). Differences of more than 2 `max_logit(T)` make draws underflow in
            float32; draws are then clamped to the smallest float, and their density is wrong.
        temperature: T > 0; smaller is closer to one-hot.

    References:
        The Concrete Distribution, Maddison, Mnih & Teh, 2017, https://arxiv.org/abs/1611.00712
        Categorical Reparameterization with Gumbel-Softmax, Jang, Gu & Poole, 2017,
        https://arxiv.org/abs/1611.01144

    Example:
        >>> p = Concrete(torch.zeros(1, 3), 1.0)
        >>> p.log_prob(torch.full((3,), 1 / 3)).exp()  # Γ(3) · 1, the uniform on the simplex
        tensor(2.)
    """

    arg_constraints: ClassVar = {"logits": constraints.independent(constraints.real, 2)}
    num_event_dims = 2

    @property
    def support(self) -> constraints.Constraint:
        return SimplexBlocks(self.logits.shape[-1])

    def rsample(self, sample_shape=()) -> Tensor:
        shape = torch.Size([*sample_shape, *self.logits.shape])
        gumbel = -_exponential_noise(self.logits, shape).log()
        z = ((self.logits + gumbel) / self.temperature).softmax(-1)
        return z.clamp_min(torch.finfo(z.dtype).tiny).flatten(-2)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        k, t = self.logits.shape[-1], self.temperature
        log_z = value.unflatten(-1, self.logits.shape[-2:]).log()
        logits = self.logits.log_softmax(-1)
        by_block = (logits - (t + 1) * log_z).sum(-1) - k * (logits - t * log_z).logsumexp(-1)
        return (by_block + math.lgamma(k) + (k - 1) * math.log(t)).sum(-1)


def max_logit(temperature: float) -> float:
    """Return B = (80 T − 21)/2, the largest magnitude of Concrete logits in float32.

    The Gumbel noise of two categories differs by less than 21 in float32, so that
    log z ≥ −(2 B + 21)/T = −80, above −87 for the smallest float.
    """
    return (80 * temperature - 21) / 2


def relaxed_temperature(temperature: float) -> float:
    """Return T if it is ≥ 0.4, where float32 can represent draws and their density."""
    if real_number(temperature, "temperature", above=0.0) < MIN_TEMPERATURE:
        raise ConfigError(
            f"temperature = {temperature:g}, but a relaxed latent needs {MIN_TEMPERATURE} or more: "
            "below it, draws round to 0 and 1, where their density is undefined.\n"
            "Write temperature=0.5, or use the discrete prior and guide with objectives.EnumELBO."
        )
    return float(temperature)
