"""Multinomial distribution with a total per datum."""

import math

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from pyrovae.densities.counts import deviance, stirling
from pyrovae.errors import ConfigError

DRAWS_AT_A_TIME = 2**23  # bounds the memory of a draw


class Multinomial(TorchDistribution):
    """Multinomial, p(x | n) = n! / Π_j x_j! · Π_j π_jˣʲ for Σ_j x_j = n, with π = softmax(logits).

    log p = stirling(n) − Σ_j [stirling(x_j) + deviance(x_j, n π_j)]. Each datum has its own n.

    Args:
        logits: (*batch, V).
        total: n, broadcastable to batch; None uses n = Σ_j x_j of the value in `log_prob`;
            the mean and draws are then unavailable.

    Example:
        >>> p = Multinomial(torch.zeros(2, 3), total=torch.tensor([1.0, 5.0]))
        >>> p.sample().sum(-1), p.log_prob(torch.tensor([1.0, 0.0, 0.0]))
        (tensor([1., 5.]), tensor([-1.0986,    -inf]))
    """

    arg_constraints = {"logits": constraints.real_vector}  # noqa: RUF012
    # per cell, without the sum: the total differs between data
    support = constraints.independent(constraints.nonnegative_integer, 1)

    def __init__(
        self, logits: Tensor, total: Tensor | None = None, validate_args: bool | None = None
    ):
        batch_shape = logits.shape[:-1]
        if total is not None:
            batch_shape = torch.broadcast_shapes(batch_shape, total.shape)
            total = total.to(logits).expand(batch_shape)
        self.logits, self.total = logits.expand(*batch_shape, -1), total
        super().__init__(batch_shape, logits.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape, _instance=None):
        new = self._get_checked_instance(type(self), _instance)
        total = None if self.total is None else self.total.expand(batch_shape)
        logits = self.logits.expand(*batch_shape, -1)
        Multinomial.__init__(new, logits, total, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        x = value.to(self.logits.dtype)
        n = x.sum(-1)
        log_p = self.logits.log_softmax(-1)
        mean = n[..., None] * log_p.exp()
        # where n = 0 every x is 0, and so is its deviance for any log_mean
        log_mean = log_p + n.clamp(min=1)[..., None].log()
        cells = stirling(x) + deviance(x, mean, log_mean, x - mean)
        log_prob = stirling(n) - cells.sum(-1)
        return log_prob if self.total is None else log_prob.where(n == self.total, -math.inf)

    @property
    def mean(self) -> Tensor:
        return self._known_total()[..., None] * self.logits.softmax(-1)

    def sample(self, sample_shape=()) -> Tensor:
        with torch.no_grad():
            shape = self._extended_shape(sample_shape)
            probs = self.logits.softmax(-1).expand(shape).reshape(-1, shape[-1])  # (R, V)
            total = self._known_total().expand(shape[:-1]).reshape(-1, 1)  # (R, 1)
            counts = torch.zeros_like(probs)
            most = int(total.max())
            step = min(most, max(1, DRAWS_AT_A_TIME // len(probs)))
            for start in range(0, most, max(1, step)):
                index = torch.arange(start, start + step, device=total.device)
                words = torch.multinomial(probs, step, replacement=True)
                counts.scatter_add_(1, words, (index < total).to(probs.dtype))
            return counts.reshape(shape)

    def _known_total(self) -> Tensor:
        if self.total is None:
            raise ConfigError(
                "a Multinomial likelihood has no total count, but its draws and its mean need "
                "one: n is the number of words or ratings per datum.\n"
                "Pass the totals as y, with decoder=Given(CountDecoder(network, head)), or fix "
                "one: likelihoods.Multinomial(…, total=100)."
            )
        return self.total
