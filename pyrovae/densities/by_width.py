"""Categories and ordered levels of columns that differ in their number.

Columns j = 0 … C − 1 have codes 0 … K_j − 1. Parameters are padded to the largest K, so that all
columns are computed at once.
"""

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.nn.functional import logsigmoid


class Codes(TorchDistribution):
    """Base class: codes (*batch, C) with log-probabilities (*batch, C, K), −∞ beyond K_j.

    Args:
        parameter: of batch shape (*batch, C, …).
        num_categories: K_j of each column.
    """

    def __init__(self, batch_shape: torch.Size, num_categories: list[int], validate_args=None):
        self.num_categories = num_categories
        super().__init__(batch_shape, validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:
        each = [constraints.integer_interval(0, k - 1) for k in self.num_categories]
        return constraints.cat(each, -1, [1] * len(each))

    @property
    def probs(self) -> Tensor:
        """p(x_j = k), (*batch, C, K), 0 beyond K_j."""
        raise NotImplementedError

    @property
    def mode(self) -> Tensor:
        probs = self.probs
        return probs.argmax(-1).to(probs.dtype)

    def sample(self, sample_shape=()) -> Tensor:
        with torch.no_grad():
            probs = self.probs.expand(*sample_shape, *self.probs.shape)
            draws = torch.multinomial(probs.reshape(-1, probs.shape[-1]), 1)
            return draws.reshape(probs.shape[:-1]).to(probs.dtype)


class Categories(Codes):
    """Categorical, p(x_j = k) = softmax(l_j)_k over k = 0 … K_j − 1.

    Args:
        logits: (*batch, C, K), finite; those beyond K_j do not matter.
        num_categories: K_j of each column.

    Example:
        >>> p = Categories(torch.zeros(2, 3), [3, 2])
        >>> p.log_prob(torch.tensor([2.0, 1.0])).exp(), p.mode
        (tensor([0.3333, 0.5000]), tensor([0., 0.]))
    """

    arg_constraints = {}  # noqa: RUF012

    def __init__(self, logits: Tensor, num_categories: list[int], validate_args=None):
        level = torch.arange(logits.shape[-1], device=logits.device)
        width = torch.tensor(num_categories, device=logits.device)[:, None]
        self.logits = logits.masked_fill(level >= width, -torch.inf)
        super().__init__(logits.shape[:-1], num_categories, validate_args)

    def expand(self, batch_shape, _instance=None):
        logits = self.logits.expand(*batch_shape, -1)
        return Categories(logits, self.num_categories, self._validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        log_p = self.logits.log_softmax(-1)
        shape = torch.broadcast_shapes(value.shape, log_p.shape[:-1])
        index = value.long().expand(shape)[..., None]
        return log_p.expand(*shape, -1).gather(-1, index)[..., 0]

    @property
    def probs(self) -> Tensor:
        return self.logits.softmax(-1)


class Levels(Codes):
    """Ordered levels, P(x_j ≤ k) = sigmoid(c_jk − loc_j) for thresholds c_j0 < … < c_j(K−2).

    Args:
        loc: (*batch, C), the latent location: a larger one makes higher levels likelier.
        thresholds: (C, K − 1), increasing; those beyond K_j − 1 do not matter.
        num_categories: K_j of each column.

    References:
        Regression Models for Ordinal Data, McCullagh, 1980.

    Example:
        >>> p = Levels(torch.zeros(1), torch.tensor([[-1.0, 1.0]]), [3])
        >>> p.probs, p.mean
        (tensor([[0.2689, 0.4621, 0.2689]]), tensor([1.]))
    """

    arg_constraints = {}  # noqa: RUF012

    def __init__(
        self, loc: Tensor, thresholds: Tensor, num_categories: list[int], validate_args=None
    ):
        level = torch.arange(thresholds.shape[-1], device=loc.device)
        last = torch.tensor(num_categories, device=loc.device)[:, None] - 1
        above = thresholds.masked_fill(level >= last, torch.inf)
        end = torch.full_like(thresholds[:, :1], torch.inf)
        self.loc, self.thresholds = loc, thresholds
        self.edges = torch.cat([-end, above, end], -1)  # (C, K + 1)
        super().__init__(loc.shape, num_categories, validate_args)

    def expand(self, batch_shape, _instance=None):
        loc = self.loc.expand(batch_shape)
        return Levels(loc, self.thresholds, self.num_categories, self._validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        level = value.long()
        edges = self.edges.expand(*level.shape, -1)
        lower = edges.gather(-1, level[..., None])[..., 0]
        upper = edges.gather(-1, level[..., None] + 1)[..., 0]
        return _log_between(lower - self.loc, upper - self.loc)

    @property
    def probs(self) -> Tensor:
        edges = self.edges - self.loc[..., None]
        lower, upper = edges[..., :-1], edges[..., 1:]
        is_level = torch.isfinite(lower) | torch.isfinite(upper)
        log_p = _log_between(torch.where(is_level, lower, 0.0), torch.where(is_level, upper, 1.0))
        return torch.where(is_level, log_p.exp(), 0.0)

    @property
    def mean(self) -> Tensor:
        """Σ_k k p(x_j = k)."""
        probs = self.probs
        return probs @ torch.arange(probs.shape[-1], dtype=probs.dtype, device=probs.device)


def _log_between(lower: Tensor, upper: Tensor) -> Tensor:
    """Return log(sigmoid(upper) − sigmoid(lower)), without subtracting sigmoids."""
    return logsigmoid(upper) + logsigmoid(-lower) + torch.log(-torch.expm1(lower - upper))
