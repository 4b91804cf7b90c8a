"""The numbers behind a report: one pass over a run's model and data.

Each number is a diagnostic of `pyrovae.diagnostics`, or one of the two here:

    continued   E_test[objective after N more steps] − E_test[before]: has training converged?
    kl_weight   the weight of the KL at which the encoder is optimal (`report.encoder`)

Large data are subsampled at random, by the seed; the record holds the rows.
"""

import copy
import math
import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor

import pyrovae.diagnostics as diagnostics
from pyrovae.checks import whole_number
from pyrovae.core.draws import elbo_terms
from pyrovae.core.pareto import pareto_k_threshold
from pyrovae.diagnostics import Estimate
from pyrovae.diagnostics.estimate import mean_of
from pyrovae.errors import ConfigError, DivergenceError
from pyrovae.evidence import Evidence, log_evidence
from pyrovae.objectives import BetaELBO
from pyrovae.report.encoder import kl_weight
from pyrovae.training import fit

MORE_STEPS = 500
NUM_DATA = 1000  # rows of each part, at most
NUM_REFINED = 200  # data whose inference gaps are measured
NUM_SIMULATED = 500


class Training(NamedTuple):
    """The settings of training that continuing it needs."""

    beta: float = 1.0  # weight of the KL
    batch_size: int = 64
    learning_rate: float = 1e-3  # of Adam


class Continued(NamedTuple):
    """The gain of further training on held-out data, nats per datum."""

    gain: Estimate  # of the training objective, paired, with its error over data
    spread: float  # standard deviation over data of the objective before
    num_steps: int  # of Adam


class Findings(NamedTuple):
    """The measurements of a model; nats per datum unless said otherwise."""

    held_out: diagnostics.Decomposition  # the ELBO, its terms and its surgery
    training: diagnostics.Decomposition  # the same on training data
    collapse: diagnostics.Collapse  # which latent dimensions are inactive, on held-out data
    kl_weight: Estimate  # β̂ of the encoder, on training data, unitless
    continued: Continued | None  # None if training could not go on
    evidence: Evidence  # log p(x) and k̂ of the held-out data
    pareto_threshold: float  # largest acceptable k̂
    gaps: diagnostics.InferenceGaps | None  # None if the guide cannot be refined
    calibration: diagnostics.Calibration | None  # None if the latents do not allow it
    x: Tensor  # (n, *event), the held-out data behind `held_out` and `evidence`
    rows: Tensor  # (n,), their rows in the held-out data


def examine(
    vae: Any,
    train: Tensor,
    *,
    test: Tensor,
    training: Training | None = None,
    num_samples: int = 1000,
    num_steps: int = MORE_STEPS,
    thorough: bool = True,
    seed: int = 0,
) -> Findings:
    """Measure everything that a report says about a `VAE` without covariates.

    Args:
        vae: the model, not modified.
        train: (N, *event), its training data.
        test: (M, *event), held-out data.
        training: its training settings; the defaults of `Training` if omitted.
        num_samples: K ≥ 21, draws per datum for log p(x).
        num_steps: further steps of a copy; too few do not leave the plateau at the start.
        thorough: also measure inference gaps and calibration, which take most of the time.
        seed: random seed, also of the choice of data.
    """
    num_samples = whole_number(num_samples, "num_samples", 21)
    training = training or Training()
    rows = _some(len(test), NUM_DATA, seed)
    x, x_train = test[rows], train[_some(len(train), NUM_DATA, seed + 1)]
    return Findings(
        diagnostics.decompose_elbo(vae, x, seed=seed),
        diagnostics.decompose_elbo(vae, x_train, seed=seed),
        diagnostics.collapsed_dimensions(vae, x, seed=seed),
        kl_weight(vae, x_train, seed=seed),
        continued(vae, train, test=x, training=training, num_steps=num_steps, seed=seed),
        log_evidence(vae, x, num_samples=num_samples, seed=seed),
        pareto_k_threshold(num_samples),
        _if_possible(diagnostics.inference_gaps, vae, x[:NUM_REFINED], seed) if thorough else None,
        _if_possible(diagnostics.calibration, vae, NUM_SIMULATED, seed) if thorough else None,
        x,
        rows,
    )


def _shuffled(total: int, seed: int) -> Tensor:
    return torch.randperm(total, generator=torch.Generator().manual_seed(seed % 2**63))


def _some(total: int, most: int, seed: int) -> Tensor:
    """Choose at most `most` of `total` rows at random, in order."""
    return _shuffled(total, seed)[:most].sort().values


def _if_possible(measure: Any, vae: Any, of: Any, seed: int) -> Any:
    try:
        return measure(vae, of, seed=seed)
    except (ConfigError, NotImplementedError):  # flows cannot be refined, codes not ranked
        return None


def continued(
    vae: Any,
    train: Tensor,
    *,
    test: Tensor,
    training: Training,
    num_steps: int = MORE_STEPS,
    seed: int = 0,
) -> Continued | None:
    """Train a copy further and measure its gain on held-out data, in the training objective.

    The steps are rounded up to whole epochs. None if training diverged or cannot be continued.
    """
    beta, batch_size, learning_rate = training
    seen = train[_shuffled(len(train), seed)[: num_steps * batch_size]]
    steps_per_epoch = math.ceil(len(seen) / batch_size)
    epochs = math.ceil(num_steps / steps_per_epoch)
    later, objective = copy.deepcopy(vae), None if beta == 1 else BetaELBO(beta)
    options = {"batch_size": batch_size, "learning_rate": learning_rate, "seed": seed}
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Posterior collapse")  # a verdict says it
            fit(later, seen, objective=objective, epochs=epochs, progress=False, **options)
    except (ConfigError, DivergenceError):
        return None
    before, after = (_objective(model, test, beta, seed) for model in (vae, later))
    return Continued(mean_of(after - before), before.std().item(), epochs * steps_per_epoch)


def _objective(vae: Any, x: Tensor, beta: float, seed: int) -> Tensor:
    """Return E_q[log p(x|z)] − β KL, (N,), nats, with the same noise for models of equal size."""
    terms = elbo_terms(vae, x, num_samples=10, seed=seed)
    return (terms.log_likelihood - beta * terms.kl).mean(0).double()
