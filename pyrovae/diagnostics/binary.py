"""Calibration of the predictive probabilities of binary features: a reliability diagram.

    p_ij = P(x_ij = 1 | x_i,−j),    calibrated if P(x_j = 1 | p_j = p) = p

No feature predicts itself (`feature_check`). The curve is the isotonic regression of x on p, by
the pool-adjacent-violators algorithm, which needs no bins. Its scores split the Brier score
S̄ = mean (p − x)²:

    S̄ = MCB − DSC + UNC        miscalibration, discrimination, uncertainty

    MCB = S̄ − S̄_C ≥ 0,  DSC = S̄_R − S̄_C ≥ 0,  UNC = S̄_R

with S̄_C that of the recalibrated probabilities, and S̄_R that of the mean of x. The band contains
the curve of calibrated probabilities: x̃_i ~ Bernoulli(p_i), and again isotonic regression, B times.
The same draws give the p-value of MCB.

One cell of each datum enters, of a given or a random feature: cells of one datum are predicted from
each other, so that their errors depend on each other, and all of them together would make the band
too narrow.

References:
    Stable Reliability Diagrams for Probabilistic Classifiers (CORP), Dimitriadis, Gneiting &
    Jordan, 2021, https://doi.org/10.1073/pnas.2016191118
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from pyrovae.checks import real_number, whole_number
from pyrovae.contract import validated
from pyrovae.contract.densities import coordinate_of
from pyrovae.core.draws import diagnosing
from pyrovae.core.terms import draw_traces
from pyrovae.data import Batch
from pyrovae.densities.supports import support_of
from pyrovae.diagnostics.features import FeatureCheck, feature_check
from pyrovae.errors import ConfigError
from pyrovae.runtime.ambient import exclusive

Boolean = type(constraints.boolean)
GRID = 50  # probabilities at which the band is reported


class BinaryCalibration(NamedTuple):
    """Reliability diagram of M cells of x, one of each datum.

    Attributes:
        probability: (M,) float64, the predictive probabilities, in ascending order.
        recalibrated: (M,), isotonic regression of x on them: above the diagonal, ones are more
            frequent than predicted.
        grid: (G,), probabilities at which the band is given, quantiles of `probability`.
        band: (G, 2), pointwise band of `recalibrated` at the grid for calibrated probabilities.
        level: its probability.
        brier, miscalibration, discrimination, uncertainty: S̄, MCB, DSC, UNC.
        p_value: of MCB = 0, the share of calibrated draws with a larger MCB.
        share_unreliable: share of the cells whose k̂ is above the threshold of `feature_check`.
    """

    probability: Tensor
    recalibrated: Tensor
    grid: Tensor
    band: Tensor
    level: float
    brier: float
    miscalibration: float
    discrimination: float
    uncertainty: float
    p_value: float
    share_unreliable: float

    @property
    def message(self) -> str:
        """One sentence for the user."""
        verdict = "show no miscalibration" if self.p_value > 0.05 else "are not calibrated"
        return (
            f"Predictive probabilities {verdict} (p = {self.p_value:.2g}): Brier score "
            f"{self.brier:.4f} = miscalibration {self.miscalibration:.4f} − discrimination "
            f"{self.discrimination:.4f} + uncertainty {self.uncertainty:.4f}."
        )


@exclusive
def binary_calibration(
    program: nn.Module,
    x: Any,
    y: Any = None,
    mask: Any = None,
    *,
    site: str | None = None,
    feature: int | tuple[int, ...] | None = None,
    level: float = 0.95,
    num_resamples: int = 200,
    num_samples: int = 500,
    num_globals: int = 10,
    seed: int | None = 0,
    memory_budget: int | None = None,
) -> BinaryCalibration:
    """Compare P(x_j = 1 | all other features) with the frequency of ones.

    Args:
        program: a program whose likelihood factorizes over binary features.
        x: (N, *event) of zeros and ones, or a dict of arrays by observed site.
        y: (N, …), covariates.
        mask: of x's shape, true where x is observed.
        site: the observed site; the first one if None.
        feature: index of one feature in event; a random one for each datum if None.
        level: probability of the band, in (0, 1).
        num_resamples: B ≥ 20, calibrated draws.
        num_samples: draws per datum, as in `feature_check`.
        num_globals: draws of global latents.
        seed: random seed; None uses a fresh one.
        memory_budget: bytes per chunk, as in `log_evidence`.

    Returns:
        BinaryCalibration.

    Raises:
        DataError: x does not fit the program.
        ConfigError: the likelihood is not one of binary features that factorize, or a setting is
            out of range.

    References:
        Dimitriadis, Gneiting & Jordan, 2021, https://doi.org/10.1073/pnas.2016191118

    Example:
        >>> import pyrovae as pv
        >>> vae = pv.build((2,), latent_dim=1, seed=0)
        >>> found = binary_calibration(vae, torch.rand(50, 2).round(), num_resamples=20)
        >>> found.recalibrated.shape, found.band.shape
        (torch.Size([50]), torch.Size([50, 2]))
    """
    level = real_number(level, "level", above=0.0)
    if level >= 1:
        raise ConfigError(f"level = {level:g}, but the probability of a band is below 1.")
    num_resamples = whole_number(num_resamples, "num_resamples", 20)
    data = validated(program, x, y, mask).whole()
    with diagnosing(program, seed):
        _check_is_binary(program, data, site)
    options = {"site": site, "num_samples": num_samples, "num_globals": num_globals}
    options |= {"seed": seed, "memory_budget": memory_budget}
    found = feature_check(program, *data, **options)
    x = data.sites[next(iter(data.sites)) if site is None else site].x
    with diagnosing(program, seed):
        log_p, values, k = _one_cell_per_datum(found, x, feature)
        p, order = torch.where(values == 1, log_p.exp(), -log_p.expm1()).clamp(0.0, 1.0).sort()
        diagram = _diagram(p, values[order], level, num_resamples)
    share = (k > found.threshold).double().mean().item()
    return BinaryCalibration(**diagram, level=level, share_unreliable=share)


def _one_cell_per_datum(
    found: FeatureCheck, x: Tensor, feature: int | tuple[int, ...] | None
) -> list[Tensor]:
    """Return log p(x_j | x_−j), x_j and k̂ of a given or random observed feature, (M,) each."""
    arrays = [a.cpu().double().reshape(len(x), -1) for a in (found[0], x, found.pareto_k)]
    order = torch.rand(arrays[0].shape, dtype=torch.float64)
    order = order.masked_fill(arrays[0].isnan(), -1.0)
    if feature is not None:
        order[:, _column(feature, tuple(x.shape[1:]))] = 2.0
    column = order.argmax(1, keepdim=True)
    log_p, values, k = (array.gather(1, column)[:, 0] for array in arrays)
    return [array[~log_p.isnan()] for array in (log_p, values, k)]


def _diagram(p: Tensor, values: Tensor, level: float, num_resamples: int) -> dict[str, Any]:
    """Return the diagram of values (M,) predicted by ascending p (M,)."""

    def score(prediction: Tensor, of: Tensor) -> Tensor:
        return ((prediction - of) ** 2).mean()

    curve = isotonic(p, values)
    grid = p[torch.linspace(0, len(p) - 1, GRID).round().long()]
    index = torch.searchsorted(p, grid).clamp(max=len(p) - 1)
    draws = [torch.bernoulli(p) for _ in range(num_resamples)]
    curves = [isotonic(p, draw) for draw in draws]
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    brier, calibrated = score(p, values), score(curve, values)
    gap = brier - calibrated
    larger = sum(score(p, d) - score(c, d) >= gap for c, d in zip(curves, draws, strict=True))
    uncertainty = score(values.mean(), values)
    return {
        "probability": p,
        "recalibrated": curve,
        "grid": grid,
        "band": torch.stack([c[index] for c in curves]).quantile(ends, dim=0).T,
        "brier": brier.item(),
        "miscalibration": gap.item(),
        "discrimination": (uncertainty - calibrated).item(),
        "uncertainty": uncertainty.item(),
        "p_value": (int(larger) + 1) / (num_resamples + 1),
    }


def _check_is_binary(program: nn.Module, data: Batch, site: str | None) -> None:
    """Raise unless the likelihood of the site is over zeros and ones, so that x is binary."""
    nodes = draw_traces(program.model, program.guide, *data.head()).model.nodes
    name = next(iter(data.sites)) if site is None else site
    density = nodes[name]["fn"] if name in data.sites else None
    support = None if density is None else support_of(density)  # feature_check names a wrong site
    if density is not None and not isinstance(coordinate_of(support), Boolean):
        raise ConfigError(
            f"binary_calibration needs a likelihood of zeros and ones, but that of {name!r} "
            f"is over {support}: it has no probability of a one.\nUse feature_check, whose PIT is "
            "for any feature, or likelihoods.Bernoulli and binarized x."
        )


def _column(feature: int | tuple[int, ...], shape: tuple[int, ...]) -> int:
    """Return the index of a feature in a flat event."""
    index = feature if isinstance(feature, tuple) else (feature,)
    if len(index) != len(shape) or not all(0 <= i < n for i, n in zip(index, shape, strict=True)):
        raise ConfigError(f"feature = {feature!r}, but x has features of shape {shape}, from 0.")
    return int(torch.arange(math.prod(shape)).reshape(shape)[index])


def isotonic(p: Tensor, values: Tensor) -> Tensor:
    """Return the isotonic regression of values (M,) on p (M,), by pool-adjacent-violators.

    Example:
        >>> isotonic(torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.0, 1.0, 0.0])).tolist()
        [0.0, 0.5, 0.5]
    """
    from sklearn.isotonic import IsotonicRegression  # its import takes a second

    fitted = IsotonicRegression().fit_transform(p.numpy(), values.numpy())
    return torch.from_numpy(fitted.astype("float64"))
