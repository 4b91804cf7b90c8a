"""How much prior and likelihood each shape the posterior of a datum, by power-scaling.

    p_α(z|x) ∝ p(z)^α p(x|z)    or    p(z) p(x|z)^α,      α = 1 ± δ

by importance weights: draws z_s ~ q(z|x) weighted by w_s = p(x, z)/q(z|x) represent the posterior,
and by w_s · p(z_s)^(α − 1) the perturbed one. The distance of their ECDFs per latent dimension is
the cumulative Jensen-Shannon distance, a unitless metric in [0, 1], and the sensitivity is

    D = (CJS(1/(1 + δ)) + CJS(1 + δ)) / (2 log₂(1 + δ)).

Above 0.05 a component matters. If both matter, they may pull in different directions (a potential
prior-data conflict). If only the prior does, the datum says little about this dimension. All
results are per datum: for the joint posterior of many data the weights degenerate. With global
latents w, they are means over draws w ~ q(w), each given w.

References:
    Detecting and diagnosing prior and likelihood sensitivity with power-scaling, Kallioinen,
    Paananen, Bürkner & Vehtari, 2023, https://arxiv.org/abs/2107.14054
    Non-parametric Jensen-Shannon Divergence, Nguyen & Vreeken, 2015,
    https://doi.org/10.1007/978-3-319-23525-7_11 (of cumulative distributions)
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pyrovae.checks import real_number, whole_number
from pyrovae.contract import validated
from pyrovae.core.conditional import given_globals
from pyrovae.core.draws import (
    Arrays,
    concat,
    diagnosing,
    latent_names,
    over_draws,
    read_latents,
    read_terms,
)
from pyrovae.core.pareto import pareto_k
from pyrovae.core.terms import Traces
from pyrovae.data import Batch
from pyrovae.runtime.ambient import exclusive

SENSITIVE = 0.05  # Kallioinen et al. 2023
ROWS = 64


class PriorSensitivity(NamedTuple):
    """Sensitivity of each latent of each datum to power-scaling, unitless.

    Attributes:
        prior: (N, D), sensitivity to the prior.
        likelihood: (N, D), sensitivity to the likelihood.
        pareto_k: (N,), k̂ of the importance weights: above `pareto_k_threshold`, ignore the row.
        threshold: sensitivity above which a component matters.
        names: D names.
    """

    prior: Tensor
    likelihood: Tensor
    pareto_k: Tensor
    threshold: float
    names: tuple[str, ...]

    @property
    def is_conflict(self) -> Tensor:
        """(N, D), whether both matter, so that prior and datum may disagree."""
        return (self.prior > self.threshold) & (self.likelihood > self.threshold)

    @property
    def is_prior_dominated(self) -> Tensor:
        """(N, D), whether only the prior matters, so that the datum says little."""
        return (self.prior > self.threshold) & (self.likelihood <= self.threshold)


@exclusive
def prior_sensitivity(
    program: nn.Module,
    x: Any,
    y: Any = None,
    mask: Any = None,
    *,
    delta: float = 0.01,
    threshold: float = SENSITIVE,
    num_samples: int = 1000,
    num_globals: int = 10,
    seed: int | None = 0,
    memory_budget: int | None = None,
) -> PriorSensitivity:
    """Estimate how far each posterior moves when prior or likelihood is raised to a power.

    Args:
        program: any program.
        x: (N, *event).
        y: (N, …), covariates.
        mask: of x's shape, true where x is observed.
        delta: δ > 0, for the powers 1/(1 + δ) and 1 + δ.
        threshold: sensitivity above which a component matters.
        num_samples: S, draws per datum.
        num_globals: draws of global latents w ~ q(w), each with S draws per datum.
        seed: random seed; None uses a fresh one.
        memory_budget: bytes per chunk, as in `log_evidence`.

    Returns:
        PriorSensitivity, arrays (N, D).

    Raises:
        DataError: x does not fit the program.
        ConfigError: a setting is out of range.

    References:
        Kallioinen et al., 2023, https://arxiv.org/abs/2107.14054

    Example:
        >>> import pyrovae as pv
        >>> vae = pv.build((2,), latent_dim=1, seed=0)
        >>> found = prior_sensitivity(vae, torch.ones(3, 2))
        >>> found.prior.shape, found.is_conflict.shape
        (torch.Size([3, 1]), torch.Size([3, 1]))
    """
    delta = real_number(delta, "delta", above=0.0)
    threshold = real_number(threshold, "threshold", least=0.0)
    num_samples = whole_number(num_samples, "num_samples", 2)
    num_globals = whole_number(num_globals, "num_globals", 1)
    data = validated(program, x, y, mask)
    options = {"num_samples": num_samples, "memory_budget": memory_budget}
    with diagnosing(program, seed):
        programs = given_globals(program, data, num_globals)
        names = latent_names(programs[0], data)
        parts = [_over_globals(programs, rows, delta, options) for rows in data.read(ROWS)]
    found = concat(parts, 0)
    return PriorSensitivity(**found, threshold=threshold, names=names)


def _over_globals(
    programs: list[nn.Module], rows: Batch, delta: float, options: dict[str, Any]
) -> Arrays:
    """Return the means of the sensitivities over programs, and the worst k̂."""
    parts = [_sensitivities(over_draws(one, rows, _read, **options), delta) for one in programs]
    each = {name: torch.stack([part[name] for part in parts]) for name in parts[0]}
    return {n: v.amax(0) if n == "pareto_k" else v.mean(0) for n, v in each.items()}


def _read(traces: Traces, num_data: int) -> Arrays:
    return read_terms(traces, num_data) | read_latents(traces, num_data)


def _sensitivities(found: Arrays, delta: float) -> Arrays:
    log_weights = found["log_likelihood"] + found["log_prior"] - found["log_guide"]
    z = found["z"].double()
    return {
        "prior": power_sensitivity(z, log_weights, found["log_prior"], delta=delta),
        "likelihood": power_sensitivity(z, log_weights, found["log_likelihood"], delta=delta),
        "pareto_k": pareto_k(log_weights),
    }


@exclusive
def power_sensitivity(
    z: Tensor, log_weights: Tensor, log_component: Tensor, *, delta: float = 0.01
) -> Tensor:
    """Return D per datum and dimension, (N, D), from weighted draws; unitless, ≥ 0.

    Args:
        z: (S, N, D), draws.
        log_weights: (S, N), nats, of the draws for the posterior; 0 for its own draws.
        log_component: (S, N), nats, the log-density to be raised to a power.
        delta: δ > 0.

    Example:
        >>> z = torch.randn(1000, 1, 1, dtype=torch.float64)
        >>> log_prior = -0.5 * z[..., 0] ** 2
        >>> power_sensitivity(z, torch.zeros(1000, 1), log_prior).shape
        torch.Size([1, 1])
    """
    total = 0.0
    for alpha in (1 / (1 + delta), 1 + delta):
        perturbed = log_weights + (alpha - 1) * log_component
        sides = [_cjs(sign * z, log_weights, perturbed) for sign in (1.0, -1.0)]
        total = total + torch.maximum(*sides)
    return total / (2 * math.log2(1 + delta))


def _cjs(z: Tensor, log_p: Tensor, log_q: Tensor) -> Tensor:
    """Return the cumulative Jensen-Shannon distance of two weightings of the draws, (N, D).

    With ECDFs P and Q, M = (P + Q)/2 and all integrals over z,
    √((∫ P log₂ P/M + ∫ Q log₂ Q/M) / ∫ (P + Q)).
    """
    ordered, order = z.sort(0)
    width = ordered.diff(dim=0)
    p, q = (
        log_w.double().softmax(0)[..., None].expand(z.shape).gather(0, order).cumsum(0)[:-1]
        for log_w in (log_p, log_q)
    )
    middle = (0.5 * (p + q)).clamp(min=1e-300)
    divergence = torch.xlogy(p, p / middle) + torch.xlogy(q, q / middle)
    numerator = (width * divergence).sum(0) / math.log(2)
    return (numerator.clamp(min=0.0) / (width * (p + q)).sum(0).clamp(min=1e-300)).sqrt()
