"""Which features of x the model fails to explain: each is predicted from all others.

    p(x_j | x_−j) = ∫ p(x_j|z) p(z|x_−j) dz = 1 / E_{p(z|x)}[1 / p(x_j|z)]

    with draws z_s ~ q(z|x), w_s = p(x, z_s)/q(z_s|x) and v_sj = w_s / p(x_j|z_s):
    p(x_j | x_−j) ≈ Σ_s w_s / Σ_s v_sj
    PIT_j = P(x_j^rep < x_j | x_−j) + U P(x_j^rep = x_j | x_−j),   U ~ Uniform(0, 1)
    with x_sj^rep ~ p(x_j|z_s), weighted by v_sj

No feature predicts itself, so an autoencoder cannot pass by copying. If the model is right, the
PIT is uniform over data: values pile up at the ends if a feature is more dispersed than in the
model, and in the middle if it is less. v favors draws that explain x_j badly, so its tail is
heavier than that of w: k̂ per cell shows where the numbers are reliable.

With global latents w, the density and the PIT are means over draws w ~ q(w): all data but x_j say
about the same of w as all data.

The likelihood must factorize over features. Symbols: S draws, N data, x (N, *event). In a program
with several observed sites, x is one of them, and x_−j includes the others.

References:
    Practical Bayesian model evaluation using leave-one-out cross-validation and WAIC, Vehtari,
    Gelman & Gabry, 2017, https://arxiv.org/abs/1507.04544 (these weights)
    Predictive Model Assessment for Count Data, Czado, Gneiting & Held, 2009,
    https://doi.org/10.1111/j.1541-0420.2009.01191.x (randomized PIT)
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pyrovae.checks import whole_number
from pyrovae.checks.values import elementwise
from pyrovae.contract import validated
from pyrovae.contract.layout import layouts_of
from pyrovae.core.chunking import budget_of
from pyrovae.core.conditional import given_globals
from pyrovae.core.draws import Arrays, concat, diagnosing, log_mean_exp, over_draws
from pyrovae.core.marginal import Marginal
from pyrovae.core.pareto import pareto_k, pareto_k_threshold
from pyrovae.core.terms import Traces, terms_of
from pyrovae.data import Batch
from pyrovae.diagnostics.reliability import MIN_DRAWS
from pyrovae.errors import ConfigError
from pyrovae.runtime.ambient import exclusive

ARRAYS = 12  # of shape (S, n, J), in memory at once


class FeatureCheck(NamedTuple):
    """Prediction of each feature from the others.

    Attributes:
        log_conditional: (N, *event) float64, log p(x_j | x_−j), nats (a log-density for
            continuous x); higher is better.
        pit: (N, *event) in [0, 1], uniform over data if the model is right.
        pareto_k: (N, *event), k̂ of the cell's weights; above `threshold` the two numbers above
            are unreliable.
        threshold: largest acceptable k̂.
        mean: (*event), mean of log_conditional over data; NaN where nothing is observed.
        std_error: (*event), its standard error.
        pit_p_value: (*event), Kolmogorov-Smirnov test that the PIT is uniform. With J features
            compare with 0.05 / J. Masked cells of x are NaN and left out of all three.
    """

    log_conditional: Tensor
    pit: Tensor
    pareto_k: Tensor
    threshold: float
    mean: Tensor
    std_error: Tensor
    pit_p_value: Tensor

    def worst(self, num: int = 5) -> list[tuple[int, ...]]:
        """Return indices of the features with the least plausible PIT, the worst first."""
        order = self.pit_p_value.flatten().nan_to_num(nan=2.0).argsort()[:num]
        shape = self.pit_p_value.shape
        return [tuple(int(i) for i in torch.unravel_index(at, shape)) for at in order]


@exclusive
def feature_check(
    program: nn.Module,
    x: Any,
    y: Any = None,
    mask: Any = None,
    *,
    site: str | None = None,
    num_samples: int = 500,
    num_globals: int = 10,
    seed: int | None = 0,
    memory_budget: int | None = None,
) -> FeatureCheck:
    """Estimate log p(x_j | x_−j) and its PIT per feature and datum, by importance weights.

    Args:
        program: a program whose likelihood factorizes over the features.
        x: (N, *event), or a dict of arrays by observed site.
        y: (N, …), covariates.
        mask: of x's shape, true where x is observed.
        site: the observed site whose features are predicted; the first one if None.
        num_samples: S ≥ 21, draws per datum.
        num_globals: draws of global latents w ~ q(w), each with S draws per datum.
        seed: random seed; None uses a fresh one.
        memory_budget: bytes per chunk, as in `log_evidence`; at least one
            datum is processed at a time.

    Returns:
        FeatureCheck, arrays (N, *event).

    Raises:
        DataError: x does not fit the program.
        ConfigError: the likelihood does not factorize or has discrete latents summed out, there
            is no such site, or there are fewer than 21 draws.

    References:
        Vehtari, Gelman & Gabry, 2017, https://arxiv.org/abs/1507.04544

    Example:
        >>> import pyrovae as pv
        >>> vae = pv.build((2,), latent_dim=1, seed=0)
        >>> found = feature_check(vae, torch.rand(50, 2).round())
        >>> found.pit.shape, found.pit_p_value.shape, len(found.worst(1))
        (torch.Size([50, 2]), torch.Size([2]), 1)
    """
    num_samples = whole_number(num_samples, "num_samples", MIN_DRAWS)
    num_globals = whole_number(num_globals, "num_globals", 1)
    data = validated(program, x, y, mask)
    names = data.head().sites
    site = next(iter(names)) if site is None else site
    if site not in names:
        known = ", ".join(map(repr, names))
        raise ConfigError(f"site = {site!r}, but the sites of x are {known}.")
    budget = budget_of(memory_budget, data.device).num_bytes
    rows = max(1, budget // (8 * ARRAYS * num_samples * names[site].x[0].numel()))
    with diagnosing(program, seed):
        programs = given_globals(program, data, num_globals)
        found = concat([_cells(programs, part, site, num_samples) for part in data.read(rows)], 0)
    values = found["log_conditional"]
    num = (~values.isnan()).sum(0)
    mean = values.nanmean(0)
    variance = ((values - mean) ** 2).nansum(0) / (num - 1)
    return FeatureCheck(
        **found,
        threshold=pareto_k_threshold(num_samples),
        mean=mean,
        std_error=(variance / num).sqrt(),
        pit_p_value=uniform_p_value(found["pit"]),
    )


def _cells(programs: list[nn.Module], piece: Batch, name: str, num_samples: int) -> Arrays:
    """Return log_conditional, pit and pareto_k, (n, *event) float64."""
    parts = [_given(program, piece, name, num_samples) for program in programs]
    each = {key: torch.stack([part[key] for part in parts]) for key in parts[0]}
    equal = each["equal"].mean(0)
    found = {
        "log_conditional": log_mean_exp(each["log_conditional"]),
        "pit": each["below"].mean(0)
        + torch.rand(equal.shape, dtype=torch.float32).to(equal) * equal,
        "pareto_k": each["pareto_k"].amax(0),
    }
    mask = piece.sites[name].mask
    if mask is None:
        return found
    return {key: value.masked_fill(~mask, math.nan) for key, value in found.items()}


def _given(program: nn.Module, piece: Batch, name: str, num_samples: int) -> Arrays:
    """Return the same of a program without global latents, and P(x^rep < x_j), P(x^rep = x_j)."""

    def read(traces: Traces, num_data: int) -> Arrays:
        site = traces.model.nodes[name]
        layout, numbers = layouts_of(*traces)[name], _elementwise(site["fn"])
        event_dim = len(site["fn"].event_shape)
        log_factor = numbers.log_prob(site["value"])
        replicate = numbers.expand(log_factor.shape).sample()
        log_w = terms_of(traces, num_data).log_weights
        of_cells = {"log_factor": log_factor, "replicate": replicate}
        cells = {n: layout.canonical(value, event_dim) for n, value in of_cells.items()}
        return {"log_w": log_w} | {n: c.expand(len(log_w), *c.shape[1:]) for n, c in cells.items()}

    how = {"num_samples": num_samples, "memory_budget": None, "is_apart": True}
    drawn = over_draws(program, piece, read, **how)
    x, _, mask = piece.sites[name]
    x = x if mask is None else torch.where(mask, x, drawn["replicate"][0])
    log_factor = drawn["log_factor"].double()  # (S, n, *event)
    log_w = drawn["log_w"].double().reshape(num_samples, len(x), *[1] * (x.dim() - 1))
    log_v = log_w - log_factor
    share = log_v.softmax(0)
    return {
        "log_conditional": log_w.logsumexp(0) - log_v.logsumexp(0),
        "below": (share * (drawn["replicate"] < x)).sum(0),
        "equal": (share * (drawn["replicate"] == x)).sum(0),
        "pareto_k": pareto_k(log_v.flatten(1)).reshape(x.shape),
    }


def _elementwise(p_x: Any) -> Any:
    """Return one density per number of x."""
    base = elementwise(p_x)
    if base.event_shape or isinstance(base, Marginal):
        why = f"has event_shape {tuple(base.event_shape)}"
        if isinstance(base, Marginal):
            why = "sums over discrete latents"
        raise ConfigError(
            f"feature_check needs a likelihood that factorizes over the features of x, but "
            f"{type(base).__name__} {why}: its features depend on each other given z.\nUse an "
            "elementwise likelihood."
        )
    return base


def uniform_p_value(values: Tensor) -> Tensor:
    """Return the Kolmogorov-Smirnov p-value of values (N, …) being uniform on [0, 1], without NaN.

    The asymptotic series with Stephens' correction for small N,
    λ = (√N + 0.12 + 0.11/√N) D, p = 2 Σ_k (−1)^(k−1) exp(−2 k² λ²); NaN for fewer than 5.

    References:
        EDF Statistics for Goodness of Fit and Some Comparisons, Stephens, 1974,
        https://doi.org/10.1080/01621459.1974.10480196

    Example:
        >>> values = (torch.arange(100) + 0.5) / 100
        >>> uniform_p_value(values).item(), uniform_p_value(values / 2).item() < 1e-6
        (1.0, True)
    """
    ordered = values.double().sort(0).values  # NaN last
    num = (~values.isnan()).sum(0)
    index = torch.arange(1, len(values) + 1, dtype=torch.float64, device=values.device)
    index = index.reshape(-1, *[1] * (values.dim() - 1))
    distance = torch.maximum(index / num - ordered, ordered - (index - 1) / num)
    distance = distance.nan_to_num(nan=0.0).amax(0)
    root = num.double().sqrt()
    scaled = (root + 0.12 + 0.11 / root) * distance
    k = torch.arange(1, 101, dtype=torch.float64, device=values.device)
    k = k.reshape(-1, *[1] * scaled.dim())
    p = 2 * ((-1) ** (k - 1) * torch.exp(-2 * k**2 * scaled**2)).sum(0)
    p = torch.where(scaled < 0.2, 1.0, p.clamp(0.0, 1.0))  # below 0.2 it is 1 to 1e-12
    return torch.where(num < 5, math.nan, p)
