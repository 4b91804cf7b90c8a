"""Discretized logistic distribution over gray levels."""

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.nn.functional import logsigmoid

from pyrovae.densities.elementwise import Elementwise


class _GrayLevels(constraints.Constraint):
    """Constraint to {0, 1/(K − 1), …, 1}, up to float32 rounding."""

    is_discrete = True
    lower_bound, upper_bound = 0.0, 1.0

    def __init__(self, num_levels: int):
        self.num_levels = num_levels
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        level = value.float() * (self.num_levels - 1)  # an 8-bit value would wrap around
        is_level = (level - level.round()).abs() < 1e-3
        return is_level & (level > -0.5) & (level < self.num_levels - 0.5)

    def __repr__(self) -> str:
        return f"{{0, 1/{self.num_levels - 1}, …, 1}}"


class DiscretizedLogistic(Elementwise):
    """Logistic density split into K bins, one for each gray level x in {0, 1/(K − 1), …, 1}.

    P(x) = σ(b) − σ(a), where b and a are the bin's edges x ± ½/(K − 1), relative to loc in
    units of scale; the first bin extends to −∞ and the last to +∞. It is evaluated as
    log P = log σ(b) + log σ(−a) + log(1 − exp(a − b)), without subtracting sigmoids.

    Args:
        loc: the logistic's center, in the units of x.
        scale: positive, in the units of x.
        num_levels: K ≥ 2, the number of gray levels.

    References:
        PixelCNN++, Salimans et al., 2017, https://arxiv.org/abs/1701.05517

    Example:
        >>> p = DiscretizedLogistic(torch.tensor(0.4), torch.tensor(0.1), num_levels=3)
        >>> p.log_prob(torch.tensor([0.0, 0.5, 1.0])).exp()
        tensor([0.1824, 0.7883, 0.0293])
    """

    arg_constraints = {"loc": constraints.real, "scale": constraints.positive}  # noqa: RUF012

    def __init__(
        self, loc: Tensor, scale: Tensor, num_levels: int, validate_args: bool | None = None
    ):
        self.num_levels = num_levels
        super().__init__(loc=loc, scale=scale, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> constraints.Constraint:
        return _GrayLevels(self.num_levels)

    def log_prob(self, value: Tensor) -> Tensor:
        x, last = self._checked(value), self.num_levels - 1
        half_bin = 0.5 / last
        from_loc = x - self.loc
        below_upper = logsigmoid((from_loc + half_bin) / self.scale)
        above_lower = logsigmoid(-(from_loc - half_bin) / self.scale)
        inner = torch.log(-torch.expm1(-2 * half_bin / self.scale))
        inner = below_upper + above_lower + inner
        level = x * last
        is_last = level > last - 0.5
        return torch.where(level < 0.5, below_upper, torch.where(is_last, above_lower, inner))

    @property
    def mean(self) -> Tensor:
        """E[x] = Σ_k P(x ≥ k/(K − 1)) / (K − 1), one edge at a time to save memory."""
        last = self.num_levels - 1
        edges = ((k - 0.5) / last for k in range(1, self.num_levels))
        return sum(torch.sigmoid((self.loc - edge) / self.scale) for edge in edges) / last

    def sample(self, sample_shape=()) -> Tensor:
        with torch.no_grad():
            loc = self.loc.expand(self._extended_shape(sample_shape))
            x = loc + self.scale * torch.logit(torch.rand_like(loc))
            last = self.num_levels - 1
            return (x.clamp(0, 1) * last).round() / last
