"""Differences between two groups of data, feature by feature, with their posterior.

    β_j = log₂ (E_A[E[x_j|z, y₀]] + c) − log₂ (E_B[E[x_j|z, y₀]] + c)

E_A is a mean over the data of group A, and c a pseudocount, without which features of hardly any
counts have the largest changes. Two things are uncertain, and each draw of β draws both: the
latents z_i ~ q(z|x_i), and the group as a sample of a population, by the Bayesian bootstrap
(weights ~ Dirichlet(1, …, 1)). Both groups are decoded at size 1 and with covariates y₀ from the
same rows, so neither the depth of cells nor an uneven spread over batches is a difference.

Symbols: S draws, D features.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from pyrovae.checks import real_number, whole_number
from pyrovae.contract import validated
from pyrovae.core.draws import diagnosing
from pyrovae.data import Batch
from pyrovae.errors import ConfigError, DataError
from pyrovae.runtime.ambient import exclusive
from pyrovae.vae import is_plain_vae

ROWS = 1024  # decoded at a time


class Contrast(NamedTuple):
    """Contrast of two groups, (D,) each; log₂ fold changes, positive where A has more.

    Attributes:
        lfc: the posterior mean of β.
        lower, upper: the central 90 % interval of β.
        probability: P(|β| > delta | data).
        delta: the smallest change of interest, log₂.
        names: names of the features, or None.
    """

    lfc: Tensor
    lower: Tensor
    upper: Tensor
    probability: Tensor
    delta: float
    names: Any

    def found(self, fdr: float = 0.05) -> Tensor:
        """Return which features change, (D,), so that the expected share of false ones is ≤ fdr.

        The expected share among the k most probable is the mean of 1 − probability over them.

        Raises:
            ConfigError: fdr is not in (0, 1).
        """
        fdr = real_number(fdr, "fdr", above=0)
        order = self.probability.argsort(descending=True)
        false = (1 - self.probability[order]).cumsum(0) / torch.arange(1, len(order) + 1)
        num = int((false <= fdr).sum())  # increasing, so these are the first ones
        return torch.zeros_like(self.probability, dtype=torch.bool).index_fill(0, order[:num], True)

    def expected_false(self, chosen: Tensor) -> float:
        """Return the expected share of false discoveries among chosen features, (D,) bool."""
        return float((1 - self.probability[chosen]).mean()) if chosen.any() else 0.0


@exclusive
def contrast(
    vae: nn.Module,
    x: Any,
    y: Any = None,
    *,
    group_a: Any,
    group_b: Any,
    delta: float = 0.25,
    pseudocount: float = 0.0,
    num_samples: int = 200,
    seed: int | None = 0,
) -> Contrast:
    """Contrast the mean of each feature between two groups, such as genes between types of cells.

    The draws of z are those of the guide; where k̂ is high (`pareto_k`), so is their error.

    Args:
        vae: a VAE with a positive mean E[x|z], such as one of counts.
        x: (N, D), in any container.
        y: (N, …), covariates; for `CountDecoder` the first column is the size.
        group_a, group_b: (N,) bool, or indices of rows; the groups must not overlap.
        delta: the smallest log₂ fold change that counts as one.
        pseudocount: c, in the units of x at size 1; changes of means far below it count as none.
        num_samples: S.
        seed: random seed; None uses a fresh one.

    Returns:
        Contrast.

    Raises:
        DataError: x does not fit the VAE, or a group is empty or overlaps the other.
        ConfigError: the program is not a plain VAE, its mean is not positive, or a setting is
            invalid.

    References:
        scVI: Deep generative modeling for single-cell transcriptomics, Lopez et al., 2018,
        https://doi.org/10.1038/s41592-018-0229-2; the false discovery rate: An empirical Bayes
        method for differential expression analysis, Boyeau et al., 2023,
        https://doi.org/10.1073/pnas.2209124120; The Bayesian Bootstrap, Rubin, 1981,
        https://doi.org/10.1214/aos/1176345338

    Example:
        >>> import pyrovae as pv
        >>> vae = pv.build(3, latent_dim=1, likelihood="Poisson", seed=0)
        >>> x = torch.poisson(torch.full((6, 3), 4.0))
        >>> found = contrast(vae, x, group_a=[0, 1, 2], group_b=[3, 4, 5])
        >>> found.lfc.shape, bool(found.found().any())
        (torch.Size([3]), False)
    """
    if not is_plain_vae(vae):
        raise ConfigError(
            f"contrast compares E[x|z] of a VAE, but this is a {type(vae).__name__}.\n"
            "Compare draws of its observed sites, such as to_arviz(…).posterior_predictive."
        )
    num_samples = whole_number(num_samples, "num_samples", 2)
    delta = real_number(delta, "delta", least=0)
    pseudocount = real_number(pseudocount, "pseudocount", least=0)
    data = validated(vae, x, y)
    rows = [_rows(group, data.count(), name) for group, name in ((group_a, "a"), (group_b, "b"))]
    if both := set(rows[0].tolist()) & set(rows[1].tolist()):
        raise DataError(
            f"{len(both)} rows are in both groups, such as row {min(both)}: their difference would "
            "be drawn towards 0.\nGive each row to one group."
        )
    groups = [data.take(index) for index in rows]
    with diagnosing(vae, seed):
        shared = None if groups[0].y is None else _reference(torch.cat([g.y for g in groups]))
        draws = torch.stack([_change(vae, groups, shared, pseudocount) for _ in range(num_samples)])
    low, high = draws.quantile(torch.tensor([0.05, 0.95]).to(draws), dim=0)
    probability = (draws.abs() > delta).double().mean(0)
    return Contrast(draws.mean(0), low, high, probability, delta, groups[0].labels.columns)


def _rows(group: Any, num_data: int, name: str) -> Tensor:
    """Return the row numbers of a group of at least two data."""
    array = np.asarray(group)
    if array.dtype == bool and array.shape != (num_data,):
        raise DataError(
            f"group_{name} has shape {array.shape}, but there are {num_data} data.\n"
            "Pass one truth value per row of x, or row numbers."
        )
    index = np.flatnonzero(array) if array.dtype == bool else array
    is_bad = index.ndim != 1 or len(index) < 2 or index.dtype.kind not in "iu"
    if is_bad or index.min() < 0 or index.max() >= num_data:
        raise DataError(
            f"group_{name} names {index.size} rows, but a group is two or more of the rows 0 … "
            f"{num_data - 1}: its mean needs an error.\nPass truth values (N,) or row numbers."
        )
    return torch.from_numpy(np.unique(index).astype("int64"))


def _reference(y: Tensor) -> Tensor:
    """Return covariates of both groups, with sizes of 1 if they have them."""
    y = y.clone()
    if y.is_floating_point():
        y.reshape(len(y), -1)[:, 0] = 1.0
    return y


def _change(
    vae: nn.Module, groups: list[Batch], shared: Tensor | None, pseudocount: float
) -> Tensor:
    """Return one draw of β, (D,) float64."""
    logs = [(_mean_of(vae, group, shared) + pseudocount).log2() for group in groups]
    return logs[0] - logs[1]


def _mean_of(vae: nn.Module, group: Batch, shared: Tensor | None) -> Tensor:
    """Return one draw of the mean of E[x|z] over a population of which the group is a sample."""
    num = group.num_data
    weights = torch.distributions.Exponential(torch.ones((), dtype=torch.float64)).sample([num])
    weights = (weights / weights.sum()).to(group.device)
    total: Any = 0.0
    for start in range(0, num, ROWS):
        rows = group.rows(slice(start, start + ROWS))
        z = vae.encode(*rows).sample()
        y = None if shared is None else shared[torch.randint(len(shared), (len(z),))]
        mean = vae.decode(z, y).mean.double().flatten(1)
        if not bool((mean > 0).all()):
            raise ConfigError(
                "E[x|z] is not positive for all features, so it has no log fold change.\n"
                "contrast is for counts and other positive data."
            )
        total = total + weights[start : start + ROWS] @ mean
    return total
