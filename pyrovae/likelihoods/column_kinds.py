"""Kinds of columns of `Columns`: each a head over all columns of that kind.

    features (*S, B, F) → density of each cell, batch shape (*S, B, C)

Each has numbers of its own per column: where the columns lie (`center`, `spread`, buffers in the
units of the data) and learned ones. `start_at` sets both from training data and returns the
features at which the density has the mean of the data; without data, columns are taken to be
standardized. Symbols: f a feature, s = softplus + 1e-5 a learned spread per column.
"""

from collections.abc import Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints

from pyrovae import densities
from pyrovae.checks import whole_number
from pyrovae.heads import MIN_SCALE, as_index, inverse_positive, positive
from pyrovae.likelihoods.moments import center_and_spread

LARGEST_LOG = 40.0  # |log x|: squares of larger numbers overflow float32
UNIT = 0.5413  # softplus(UNIT) = 1


class Kind(nn.Module):
    """Base class of the kinds: C columns of one feature each.

    Attributes:
        options: names that the dict of a column may hold, and their defaults.
        support: of a cell.
        inputs: what an encoder should see of x: a name in `networks.INPUTS`.
        learns_scale: whether a learned spread falls to 0 for a constant column.
    """

    options: ClassVar[dict[str, Any]] = {}
    support: ClassVar[constraints.Constraint] = constraints.real
    inputs: ClassVar[str] = "standardized"
    learns_scale: ClassVar[bool] = False

    def __init__(self, columns: Sequence[dict[str, Any]]):
        super().__init__()
        self.size = self.num_features = len(columns)

    def supports(self) -> list[constraints.Constraint]:
        """Return the support of each column."""
        return [self.support] * self.size

    def input_of(self, column: int) -> str | dict[str, Any]:
        """Return what an encoder should see of a column."""
        return self.inputs

    def forward(self, features: Tensor) -> dist.Distribution:
        raise NotImplementedError

    def start_at(self, x: Tensor) -> Tensor:
        """Set the column's own numbers, and return features (F,); x (N, C), NaN where missing."""
        raise NotImplementedError

    def _hold_spread(self, start: float = 1.0) -> None:
        self.raw_spread = nn.Parameter(inverse_positive(torch.full((self.size,), start)))

    def _set_spread(self, value: Tensor) -> None:
        with torch.no_grad():
            self.raw_spread.copy_(inverse_positive(value.clamp(1e-2, 1e2)))

    def _hold_place(self, *, has_spread: bool = True) -> None:
        self.register_buffer(
            "center", torch.zeros(self.size) if has_spread else torch.ones(self.size)
        )
        if has_spread:
            self.register_buffer("spread", torch.ones(self.size))


class Normal(Kind):
    """Real numbers, N(center + spread·f, (spread·s)²)."""

    learns_scale = True

    def __init__(self, columns: Sequence[dict[str, Any]]):
        super().__init__(columns)
        self._hold_place()
        self._hold_spread()

    def forward(self, features: Tensor) -> dist.Distribution:
        return dist.Normal(*self.loc_and_scale(features))

    def loc_and_scale(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return location and scale in the units of x (of log x, for `LogNormal`)."""
        return self.center + self.spread * features, self.spread * positive(self.raw_spread)

    def start_at(self, x: Tensor) -> Tensor:
        center, spread = center_and_spread(x)
        self.center.copy_(center)
        self.spread.copy_(spread)
        return torch.zeros(self.size)


class StudentT(Normal):
    """Real numbers with outliers: Student-t of the location and scale of `Normal`, ν = 4."""

    options: ClassVar = {"df": 4.0}

    def __init__(self, columns: Sequence[dict[str, Any]]):
        super().__init__(columns)
        df = torch.tensor([float(column["df"]) for column in columns])
        self.register_buffer("df", df, persistent=False)

    def forward(self, features: Tensor) -> dist.Distribution:
        return densities.StudentT(self.df, *self.loc_and_scale(features))


class LogNormal(Normal):
    """Positive numbers whose log is `Normal`; center and spread are those of log x."""

    support = constraints.positive
    inputs = "log"

    def forward(self, features: Tensor) -> dist.Distribution:
        loc, scale = self.loc_and_scale(features)
        return densities.LogNormal(loc.clamp(-LARGEST_LOG, LARGEST_LOG), scale)

    def start_at(self, x: Tensor) -> Tensor:
        return super().start_at(x.log())


class Gamma(Kind):
    """Positive numbers of mean μ = center·(softplus(f) + 1e-5) and coefficient of variation s."""

    support = constraints.positive
    inputs = "log"
    learns_scale = True

    def __init__(self, columns: Sequence[dict[str, Any]]):
        super().__init__(columns)
        self._hold_place(has_spread=False)
        self._hold_spread()

    def forward(self, features: Tensor) -> dist.Distribution:
        return densities.Gamma(self.center * positive(features), positive(self.raw_spread) ** -2)

    def start_at(self, x: Tensor) -> Tensor:
        mean, spread = center_and_spread(x)
        self.center.copy_(_positive_mean(mean))
        self._set_spread(spread / self.center.double())
        return torch.full((self.size,), UNIT)


class Bernoulli(Kind):
    """Zeros and ones, with logits f."""

    support = constraints.boolean

    def forward(self, features: Tensor) -> dist.Distribution:
        return dist.Bernoulli(logits=features)

    def start_at(self, x: Tensor) -> Tensor:
        ones, count = x.nansum(0), (~x.isnan()).sum(0)
        return torch.log((ones + 0.5) / (count - ones + 0.5))


class Poisson(Kind):
    """Counts of mean center·(softplus(f) + 1e-5), equal to the variance."""

    support = constraints.nonnegative_integer
    inputs = "log1p"

    def __init__(self, columns: Sequence[dict[str, Any]]):
        super().__init__(columns)
        self._hold_place(has_spread=False)

    def forward(self, features: Tensor) -> dist.Distribution:
        return densities.Poisson(self.center * positive(features))

    def start_at(self, x: Tensor) -> Tensor:
        self.center.copy_(_positive_mean(center_and_spread(x)[0]))
        return torch.full((self.size,), UNIT)


class NegativeBinomial(Poisson):
    """Counts of mean μ as for `Poisson`, and variance μ + (s μ)²."""

    def __init__(self, columns: Sequence[dict[str, Any]]):
        super().__init__(columns)
        self._hold_spread()

    def forward(self, features: Tensor) -> dist.Distribution:
        rate = self.center * positive(features)
        return densities.NegativeBinomial(rate, positive(self.raw_spread) ** -2)

    def start_at(self, x: Tensor) -> Tensor:
        mean, spread = center_and_spread(x)
        excess = (spread**2 - mean).clamp(min=0.0).sqrt() / _positive_mean(mean)
        self._set_spread(excess.clamp(min=0.1))
        return super().start_at(x)


class Beta(Kind):
    """Fractions inside (0, 1) of mean m = sigmoid(f) and variance about m (1 − m) s²."""

    support = constraints.unit_interval
    learns_scale = True

    def __init__(self, columns: Sequence[dict[str, Any]]):
        super().__init__(columns)
        self._hold_spread(0.5)

    def forward(self, features: Tensor) -> dist.Distribution:
        # in float32, sigmoid reaches 1 at 17
        return densities.Beta(features.clamp(-12, 12), positive(self.raw_spread) ** -2)

    def start_at(self, x: Tensor) -> Tensor:
        mean, spread = center_and_spread(x)
        mean = mean.clamp(1e-3, 1 - 1e-3)
        self._set_spread(spread / (mean * (1 - mean)).sqrt())
        return mean.logit()


class Categorical(Kind):
    """Codes of K categories without order, with logits f_0 … f_(K−1)."""

    options: ClassVar = {"num_categories": None}

    def __init__(self, columns: Sequence[dict[str, Any]]):
        super().__init__(columns)
        self.widths = [
            whole_number(column["num_categories"], "num_categories", 2) for column in columns
        ]
        self.num_features = sum(self.widths)
        # the place of logit k of column j among the features; beyond K_j, any
        level = torch.arange(max(self.widths)).expand(self.size, -1)
        width = as_index(self.widths)[:, None]
        place = torch.where(level < width, width.cumsum(0) - width + level, 0)
        self.register_buffer("place", place, persistent=False)

    def supports(self) -> list[constraints.Constraint]:
        return [constraints.integer_interval(0, k - 1) for k in self.widths]

    def input_of(self, column: int) -> str | dict[str, Any]:
        return {"name": "one_hot", "num_categories": self.widths[column]}

    def forward(self, features: Tensor) -> dist.Distribution:
        logits = features.index_select(-1, self.place.flatten()).unflatten(-1, self.place.shape)
        return densities.Categories(logits, self.widths)

    def start_at(self, x: Tensor) -> Tensor:
        shares = [shares_of(column, k) for column, k in zip(x.T, self.widths, strict=True)]
        return torch.cat(shares).log()


class Ordinal(Kind):
    """Codes of K ordered levels, P(x ≤ k) = sigmoid(c_k − f) for learned thresholds c."""

    options: ClassVar = {"num_categories": None}

    def __init__(self, columns: Sequence[dict[str, Any]]):
        super().__init__(columns)
        self.widths = [
            whole_number(column["num_categories"], "num_categories", 2) for column in columns
        ]
        self.raw_thresholds = nn.Parameter(torch.zeros(self.size, max(self.widths) - 1))
        # equal shares of all levels; beyond K_j, any
        share = torch.arange(1, max(self.widths)) / as_index(self.widths)[:, None]
        c = share.clamp(max=1 - 1e-3).logit()
        gaps = inverse_positive(c.diff(dim=-1).clamp(min=1e-3))
        self.raw_thresholds.data.copy_(torch.cat([c[:, :1], gaps], -1))

    def supports(self) -> list[constraints.Constraint]:
        return [constraints.integer_interval(0, k - 1) for k in self.widths]

    @property
    def thresholds(self) -> Tensor:
        """c, (C, K − 1), increasing by at least 1e-5."""
        first, gaps = self.raw_thresholds[:, :1], positive(self.raw_thresholds[:, 1:])
        return torch.cat([first, gaps], -1).cumsum(-1)

    def forward(self, features: Tensor) -> dist.Distribution:
        return densities.Levels(features, self.thresholds, self.widths)

    def start_at(self, x: Tensor) -> Tensor:
        columns = zip(x.T, self.widths, strict=True)
        self._set_thresholds([shares_of(column, k) for column, k in columns])
        return torch.zeros(self.size)

    def _set_thresholds(self, shares: list[Tensor]) -> None:
        """Set the thresholds at which f = 0 gives these probabilities of the levels."""
        with torch.no_grad():
            for row, p in zip(self.raw_thresholds, shares, strict=True):
                c = p.cumsum(0)[:-1].logit()
                row[: len(c)] = torch.cat([c[:1], inverse_positive(c.diff().clamp(min=1e-3))])


def shares_of(codes: Tensor, num_categories: int) -> Tensor:
    """Return the frequencies of codes (N,), NaN where missing, each with half a count more."""
    seen = codes[~codes.isnan()].long()
    counts = torch.bincount(seen, minlength=num_categories)[:num_categories].double() + 0.5
    return counts / counts.sum()


def _positive_mean(mean: Tensor) -> Tensor:
    return torch.where(mean > MIN_SCALE, mean, torch.ones_like(mean))


KINDS: MappingProxyType[str, type[Kind]] = MappingProxyType(
    {
        kind.__name__: kind
        for kind in (
            *(Normal, StudentT, LogNormal, Gamma, Beta),
            *(Bernoulli, Categorical, Ordinal, Poisson, NegativeBinomial),
        )
    }
)
