"""The numbers behind a report: one pass over a run's model and data.

Each number is a diagnostic of `pyrovae.diagnostics`, a trial (`report.trials`), or one of

    kl_weight        the weight of the KL at which the encoder is optimal (`report.encoder`)
    rank_distance    whether x varies about its code as p(x|z) says (`report.likelihood`)

log p(x) is from the cheapest method that answers a datum; k̂ is that of the guide alone. Large data
are subsampled at random, by the seed; the record holds the rows.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import pyrovae.diagnostics as diagnostics
from pyrovae.checks import whole_number
from pyrovae.core.draws import diagnosing
from pyrovae.core.replicates import replicated
from pyrovae.data import Batch
from pyrovae.data.batch import is_by_site
from pyrovae.diagnostics import Estimate
from pyrovae.diagnostics.estimate import mean_of
from pyrovae.errors import ConfigError
from pyrovae.evidence import Evidence, log_evidence
from pyrovae.report.encoder import kl_weight
from pyrovae.report.likelihood import rank_distance
from pyrovae.report.trials import (
    MORE_STEPS,
    Continued,
    Training,
    continued,
    opened,
    prior_gain,
    shuffled,
)
from pyrovae.vae import is_plain_vae

NUM_DATA = 1000  # rows of each part, at most
NUM_REFINED = 200  # data whose inference gaps are measured
NUM_SIMULATED = 500


class Findings(NamedTuple):
    """The measurements of a model; nats per datum unless said otherwise."""

    held_out: diagnostics.Decomposition  # the ELBO, its terms and its surgery
    training: diagnostics.Decomposition | None  # the same on training data, if they are given
    collapse: diagnostics.Collapse | None  # inactive latent dimensions; None without local latents
    kl_weight: Estimate  # β̂ of the encoder, on training data, unitless
    continued: Continued | None  # None if training could not go on
    unweighted: Continued | None  # the same with β = 1, of a model that was trained with another β
    rank_distance: Estimate | None  # D of p(x|z), in [0, 1]; None if x cannot be replicated
    evidence: Evidence  # log p(x) of the held-out data
    reliability: diagnostics.Reliability  # k̂ of the guide, for the same data
    gaps: diagnostics.InferenceGaps | None  # None if the guide cannot be refined
    calibration: diagnostics.Calibration | None  # None if the latents do not allow it
    prior_gain: Estimate | None  # of a mixture prior fitted to the codes; None if not tried
    data: Batch  # n held-out data, behind `held_out` and `evidence`
    rows: Tensor  # (n,), their rows in the held-out data


def examine(
    program: nn.Module,
    train: Any,
    *,
    test: Any,
    training: Training | None = None,
    num_samples: int = 1000,
    num_steps: int = MORE_STEPS,
    thorough: bool = True,
    seed: int = 0,
) -> Findings:
    """Measure everything that a report says about a program; what does not apply is None.

    Args:
        program: the model, not modified.
        train: its training data, x, (x, y) or (x, y, mask) in any container; None if unknown.
        test: held-out data, likewise.
        training: its training settings; the defaults of `Training` if omitted.
        num_samples: K ≥ 21, draws per datum for log p(x).
        num_steps: further steps of a copy; too few do not leave the plateau at the start.
        thorough: also measure inference gaps, calibration and the gain of another prior, and use
            every method for log p(x) rather than importance sampling alone; most of the time.
        seed: random seed, also of the choice of data.
    """
    num_samples = whole_number(num_samples, "num_samples", 21)
    training = training or Training()
    held_out, seen = opened(program, test), None if train is None else opened(program, train)
    rows = _some(held_out.count(), NUM_DATA, seed)
    data = held_out.take(rows)
    few = data if seen is None else seen.take(_some(seen.count(), NUM_DATA, seed + 1))
    like = {} if is_plain_vae(program) else {"like": _complete(program, data, seed)}
    simulation = {"n": NUM_SIMULATED, "y": _covariates(data), **like}

    def after(beta: float) -> Continued | None:
        how = {"training": training._replace(beta=beta), "num_steps": num_steps, "seed": seed}
        return None if seen is None else continued(program, train, test=tuple(data), **how)

    def if_possible(measure: Any, *of: Any, **options: Any) -> Any:
        try:
            return measure(program, *of, seed=seed, **options)
        except (ConfigError, NotImplementedError):  # flows cannot be refined, codes not ranked
            return None

    def if_thorough(measure: Any, *of: Any, **options: Any) -> Any:
        return if_possible(measure, *of, **options) if thorough else None

    draws = {"num_samples": num_samples, "seed": seed}
    method = "auto" if thorough else "importance"
    evidence = log_evidence(program, *data, method=method, **draws)
    gaps = if_thorough(diagnostics.inference_gaps, *data.head(NUM_REFINED))
    return Findings(
        held_out=diagnostics.decompose_elbo(program, *data, seed=seed),
        training=None if seen is None else diagnostics.decompose_elbo(program, *few, seed=seed),
        collapse=if_possible(diagnostics.collapsed_dimensions, *data),
        kl_weight=kl_weight(program, *few, seed=seed),
        continued=after(training.beta),
        unweighted=None if training.beta == 1 else after(1.0),
        rank_distance=if_possible(rank_distance, data),
        evidence=evidence,
        reliability=diagnostics.pareto_k(program, *data, **draws),
        gaps=None if gaps is None else _up_to(evidence, gaps),
        calibration=if_thorough(diagnostics.calibration, **simulation),
        prior_gain=None if seen is None else if_thorough(prior_gain, few, test=data),
        data=data,
        rows=rows,
    )


def _complete(program: nn.Module, data: Batch, seed: int) -> Any:
    """Return x with a draw of the model in hidden cells, which may hold anything."""
    if data.mask is None:
        return data.x
    with diagnosing(program, seed):
        drawn = next(replicated(program, data, num_samples=1, memory_budget=None))
    sites = data.sites.items()
    x = {n: s.x if s.mask is None else torch.where(s.mask, s.x, drawn[n][0]) for n, s in sites}
    return x if is_by_site(data.x) else x["x"]


def _covariates(data: Batch) -> Tensor | None:
    """Return y for each simulation, those of the data in turn."""
    return None if data.y is None else data.y[torch.arange(NUM_SIMULATED) % data.num_data]


def _up_to(evidence: Evidence, gaps: diagnostics.InferenceGaps) -> diagnostics.InferenceGaps:
    """Return the gaps with log p(x) of the page, which the largest of two bounds replaces."""
    some = slice(len(gaps.elbo))
    ours, is_bound = evidence.log_px[some], evidence.upper[some].isinf()
    log_px = torch.where(is_bound, torch.maximum(ours, gaps.log_px), ours)
    family, total = log_px - gaps.best_elbo, log_px - gaps.elbo
    return gaps._replace(
        log_px=log_px,
        approximation=family,
        pareto_k=torch.where(is_bound, math.inf, -math.inf),  # of no use where there is an interval
        mean_approximation=mean_of(family, is_non_negative=True),
        mean_total=mean_of(total, is_non_negative=True),
    )


def _some(total: int, most: int, seed: int) -> Tensor:
    """Choose at most `most` of `total` rows at random, in order."""
    return shuffled(total, seed)[:most].sort().values
