"""Beta density of fractions, by its mean."""

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.nn.functional import logsigmoid

from pyrovae.densities.counts import deviance, stirling
from pyrovae.densities.elementwise import Elementwise


class Beta(Elementwise):
    """Beta, p(x) ∝ x^(α − 1) (1 − x)^(β − 1) on (0, 1), with α = n m and β = n (1 − m).

    The mean is m = sigmoid(l), the variance m (1 − m) / (n + 1). With the divergence
    D = m log(m/x) + (1 − m) log((1 − m)/(1 − x)), log p(x) = log(αβ/n) − stirling(α) −
    stirling(β) + stirling(n) − n D − log x − log(1 − x).

    Args:
        logits: l, of the mean.
        concentration: n > 0.

    Example:
        >>> p = Beta(torch.tensor(0.0), torch.tensor(2.0))  # uniform
        >>> p.mean, p.log_prob(torch.tensor([0.1, 0.7])).abs() < 1e-6
        (tensor(0.5000), tensor([True, True]))
    """

    arg_constraints = {  # noqa: RUF012
        "logits": constraints.real,
        "concentration": constraints.positive,
    }
    support = constraints.unit_interval

    def __init__(self, logits: Tensor, concentration: Tensor, validate_args: bool | None = None):
        super().__init__(logits=logits, concentration=concentration, validate_args=validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        x, n = self._checked(value), self.concentration
        m, rest = self.logits.sigmoid(), (-self.logits).sigmoid()
        log_x, log_rest_x = x.log(), torch.log1p(-x)
        excess = n * (m - x)
        divergence = deviance(n * m, n * x, n.log() + log_x, excess)
        divergence = divergence + deviance(n * rest, n * (1 - x), n.log() + log_rest_x, -excess)
        log_norm = n.log() + logsigmoid(self.logits) + logsigmoid(-self.logits)
        log_norm = log_norm - stirling(n * m) - stirling(n * rest) + stirling(n)
        return log_norm - divergence - log_x - log_rest_x

    @property
    def mean(self) -> Tensor:
        return self.logits.sigmoid().expand(self.batch_shape)

    @property
    def mode(self) -> Tensor:
        """The mode; the favored end if the density is unbounded there."""
        a, b = self.concentration * self.mean, self.concentration * (1 - self.mean)
        inner = (a - 1) / torch.where((a > 1) & (b > 1), a + b - 2, 1.0)
        return torch.where((a > 1) & (b > 1), inner, (a > b).to(a))

    def sample(self, sample_shape=()) -> Tensor:
        with torch.no_grad():
            shape, ends = self._extended_shape(sample_shape), torch.finfo(self.logits.dtype)
            a = (self.concentration * self.logits.sigmoid()).expand(shape).contiguous()
            b = (self.concentration * (-self.logits).sigmoid()).expand(shape).contiguous()
            draws = torch._sample_dirichlet(torch.stack([a, b], -1))[..., 0]
            return draws.clamp(ends.tiny, 1 - ends.eps)  # the ends are outside of the support
