"""The likelihood of tables: a product over columns of different kinds."""

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints

from pyrovae import densities
from pyrovae.checks import nearest
from pyrovae.errors import ConfigError
from pyrovae.heads import as_index, split_features
from pyrovae.likelihoods.column_kinds import KINDS

Column = str | dict[str, Any]


class Columns(nn.Module):
    """Product over the columns of a table, p(x|z) = Π_j p_j(x_j|z), each of its own kind.

    | kind | x_j | features | own numbers |
    |---|---|---|---|
    | Normal, StudentT | real | location | scale |
    | LogNormal, Gamma | > 0 | location of log x; mean | scale of log x; σ / mean |
    | Beta | in (0, 1) | logit of the mean | spread |
    | Bernoulli | 0, 1 | logit | |
    | Categorical | 0 … K − 1 | K logits | |
    | Ordinal | 0 … K − 1, ordered | location | thresholds |
    | Poisson, NegativeBinomial | 0, 1, 2, … | mean | ; overdispersion |

    x is (N, C) in the units of the data; categories and levels are codes. The own numbers of a
    column are learned and do not depend on z. Locations and scales are relative to a center and a
    spread per column, and means to a center: `networks.start_at_mean` and `build(data=)` take them
    from data, and log p(x|z) stays in the units of x. A learned scale is at least 1e-5 of the
    spread, so that a constant column does not drive the density to infinity.

    `mean` of the density holds means, but for a categorical column, whose codes have none, its
    most probable category. `mode` holds that for all columns, and `base_dist.probs_of(j)` the
    probabilities of the categories of a column.

    Args:
        kinds: for each column the name of a kind, or a dict of it and its options, such as
            {"kind": "Categorical", "num_categories": 3} or {"kind": "StudentT", "df": 5}.

    Attributes:
        num_features: one per column, and K for a categorical one.

    Raises:
        ConfigError: a kind is unknown, or one of its options is missing, unknown or invalid.

    References:
        Handling Incomplete Heterogeneous Data using VAEs (HI-VAE), Nazábal et al., 2020,
        https://arxiv.org/abs/1807.03653; its scales depend on z, those here do not.

    Example:
        >>> head = Columns(["Normal", {"kind": "Categorical", "num_categories": 3}, "Poisson"])
        >>> p_x = head(torch.zeros(7, head.num_features))
        >>> p_x.event_shape, p_x.mean[0], p_x.base_dist.probs_of(1)[0]
        (torch.Size([3]), tensor([0.0000, 0.0000, 0.6932]), tensor([0.3333, 0.3333, 0.3333]))
    """

    def __init__(self, kinds: Sequence[Column]):
        super().__init__()
        columns = [_checked(j, column) for j, column in enumerate(_as_list(kinds))]
        self.event_shape = torch.Size([len(columns)])
        self.groups = nn.ModuleDict()
        for name, kind in KINDS.items():
            places = [j for j, (of, _) in enumerate(columns) if of == name]
            if places:
                self.groups[name] = kind([columns[j][1] for j in places])
                self.register_buffer(f"columns_{name}", as_index(places), persistent=False)
        self.num_features = sum(group.num_features for group in self.groups.values())
        self.support = self._supports()

    def columns(self, name: str) -> Tensor:
        """Return the numbers of the columns of a kind."""
        return getattr(self, f"columns_{name}")

    def _supports(self) -> constraints.Constraint:
        """Return the supports of all columns, equal neighbors as one piece."""
        each: list[Any] = [None] * self.event_shape.numel()
        for name, group in self.groups.items():
            for j, support in zip(self.columns(name).tolist(), group.supports(), strict=True):
                each[j] = support
        runs: list[list[Any]] = []
        for support in each:
            if runs and repr(runs[-1][0]) == repr(support):
                runs[-1][1] += 1
            else:
                runs.append([support, 1])
        supports, lengths = zip(*runs, strict=True)
        return constraints.cat(list(supports), -1, list(lengths))

    @property
    def learns_scale_per_cell(self) -> Tensor:
        """Whether each column has a learned scale, which falls to its floor for a constant one."""
        learns = torch.zeros(self.event_shape, dtype=torch.bool)
        for name, group in self.groups.items():
            learns[self.columns(name).cpu()] = group.learns_scale
        return learns

    @property
    def unit(self) -> Tensor:
        """The spread that each column is written for; infinite for other than real columns."""
        unit = torch.full(self.event_shape, torch.inf)
        for name in ("Normal", "StudentT"):
            if name in self.groups:
                unit[self.columns(name).cpu()] = self.groups[name].spread.cpu().to(unit)
        return unit

    @property
    def inputs(self) -> list[str | dict[str, Any]]:
        """What an encoder should see of each column, for `networks.Inputs`."""
        found: list[Any] = [None] * self.event_shape.numel()
        for name, group in self.groups.items():
            for i, j in enumerate(self.columns(name).tolist()):
                found[j] = group.input_of(i)
        return found

    def forward(self, features: Tensor) -> dist.Distribution:
        (features,) = split_features(features, torch.Size([self.num_features]))
        parts = features.split([g.num_features for g in self.groups.values()], -1)
        groups = self.groups.items()
        made = {name: group(f) for (name, group), f in zip(groups, parts, strict=True)}
        columns = {name: self.columns(name) for name in made}
        return densities.Columns(made, columns, self.support).to_event(1)

    def start_at(self, x: Tensor) -> Tensor:
        """Set the own numbers of each column from data, and return features (F,) at its mean.

        Args:
            x: (N, C), NaN where missing.
        """
        with torch.no_grad():
            groups = self.groups.items()
            parts = [
                group.start_at(x[:, self.columns(name).to(x.device)]) for name, group in groups
            ]
        return torch.cat([part.double() for part in parts])

    def extra_repr(self) -> str:
        counts = (f"{self.columns(name).numel()} {name}" for name in self.groups)
        return ", ".join(counts)


def _as_list(kinds: Any) -> list[Column]:
    if isinstance(kinds, str | dict) or not list(kinds):
        raise ConfigError(
            f"Columns: kinds = {kinds!r}, but it holds a kind for each column.\n"
            'Write for example kinds=["Normal", "Poisson"].'
        )
    return list(kinds)


def _checked(column: int, choice: Column) -> tuple[str, dict[str, Any]]:
    """Return the kind of a column and its options, complete."""
    given = {"kind": choice} if isinstance(choice, str) else dict(choice)
    name = given.pop("kind", None)
    if name not in KINDS:
        near = nearest(name, KINDS)
        hint = f"\nDid you mean {near!r}?" if near else ""
        raise ConfigError(
            f"Columns: column {column} has the kind {name!r}, but the kinds are "
            f"{', '.join(KINDS)}.{hint}"
        )
    known = KINDS[name].options
    needed = [option for option, default in known.items() if default is None]
    if not set(needed) <= set(given) <= set(known):
        wanted = f"takes {', '.join(known)}" if known else "takes no options"
        arrived = ", ".join(given) or "none"
        example = "".join(f", {option!r}: 3" for option in needed)
        raise ConfigError(
            f"Columns: column {column} is {name}, which {wanted}, but got {arrived}.\n"
            f"Write {{'kind': {name!r}{example}}}."
        )
    return name, known | given
