"""A product of densities over columns, p(x) = Π_j p_j(x_j)."""

from collections.abc import Mapping

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import Bernoulli, Distribution, constraints

from pyrovae.densities.by_width import Categories


class Columns(TorchDistribution):
    """Density of each cell of rows x (*batch, C), from densities of groups of columns.

    It has a batch dimension for the columns, as other elementwise densities have, so a mask
    leaves out cells, and `to_event(1)` makes p(x) = Π_j p_j(x_j). Values are floats in the
    units of the data; categories and levels are codes 0 … K − 1.

    Args:
        groups: kind → density of batch shape (*batch, C_g), with Σ_g C_g = C.
        columns: kind → the numbers of its columns, (C_g,).
        support: of the columns, in order.

    Example:
        >>> import pyro.distributions as dist
        >>> groups = {"Normal": dist.Normal(torch.zeros(2), 1.0), "Poisson": dist.Poisson(
        ...     torch.ones(1))}
        >>> columns = {"Normal": torch.tensor([0, 2]), "Poisson": torch.tensor([1])}
        >>> each = [constraints.real, constraints.nonnegative_integer, constraints.real]
        >>> p = Columns(groups, columns, constraints.cat(each, -1))
        >>> p.log_prob(torch.tensor([0.0, 1.0, 0.0])), p.kind_of(1)
        (tensor([-0.9189, -1.0000, -0.9189]), 'Poisson')
    """

    arg_constraints = {}  # noqa: RUF012

    def __init__(
        self,
        groups: Mapping[str, Distribution],
        columns: Mapping[str, Tensor],
        support: constraints.Constraint,
        validate_args: bool | None = None,
    ):
        self.groups, self.columns, self._support = groups, columns, support
        self.order = torch.cat(list(columns.values())).argsort()
        lead = next(iter(groups.values())).batch_shape[:-1]
        super().__init__((*lead, len(self.order)), validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:
        return self._support

    def expand(self, batch_shape, _instance=None):
        lead = torch.Size(batch_shape)[:-1]
        groups = {k: g.expand((*lead, g.batch_shape[-1])) for k, g in self.groups.items()}
        return Columns(groups, self.columns, self._support, self._validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        value = value if value.is_floating_point() else value.to(torch.get_default_dtype())
        groups = self.groups.items()
        return self._joined(
            [g.log_prob(value.index_select(-1, self.columns[k])) for k, g in groups]
        )

    def sample(self, sample_shape=()) -> Tensor:
        with torch.no_grad():
            return self._joined([g.sample(torch.Size(sample_shape)) for g in self.groups.values()])

    @property
    def mean(self) -> Tensor:
        """The mean of each column; of a categorical one, whose codes have no mean, the mode."""
        groups = self.groups.values()
        return self._joined([mode_of(g) if is_nominal(g) else g.mean for g in groups])

    @property
    def mode(self) -> Tensor:
        """The most probable value of each column."""
        return self._joined([mode_of(g) for g in self.groups.values()])

    @property
    def is_nominal(self) -> Tensor:
        """Whether the numbers of each column are codes of categories without order, (C,)."""
        groups = self.groups.items()
        return (
            self._joined([torch.full_like(self.columns[k], is_nominal(g)) for k, g in groups]) > 0
        )

    def kind_of(self, column: int) -> str:
        """Return the kind of a column, by its number."""
        kinds = (k for k, columns in self.columns.items() if (columns == column).any())
        return next(kinds)

    def probs_of(self, column: int) -> Tensor:
        """Return p(x_j = k) of a categorical, ordinal or binary column, (*batch, K).

        Raises:
            AttributeError: the column is of another kind.

        Example:
            >>> group = Categories(torch.zeros(1, 2), [2])
            >>> p = Columns({"Categorical": group}, {"Categorical": torch.arange(1)}, None)
            >>> p.probs_of(0)
            tensor([0.5000, 0.5000])
        """
        kind = self.kind_of(column)
        place = int((self.columns[kind] == column).nonzero())
        group = self.groups[kind]
        if isinstance(group, Bernoulli):
            one = group.probs[..., place]
            return torch.stack([1 - one, one], -1)
        return group.probs[..., place, : group.num_categories[place]]

    def _joined(self, parts: list[Tensor]) -> Tensor:
        """Put columns of groups in the order of x."""
        return torch.cat(parts, -1).index_select(-1, self.order)


def is_nominal(density: Distribution) -> bool:
    """Return whether a density is over categories without order, whose codes have no mean."""
    return isinstance(density, Categories)


def mode_of(density: Distribution) -> Tensor:
    """Return the mode; torch's of a fair coin is NaN."""
    if isinstance(density, Bernoulli):
        return (density.probs > 0.5).to(density.probs.dtype)
    return density.mode
