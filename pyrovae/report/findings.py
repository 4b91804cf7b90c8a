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
    """The settings of training that continuing it needs.

    Attributes:
        beta: weight of the KL.
        batch_size: data per step.
        learning_rate: learning rate of Adam.
    """

    beta: float = 1.0
    batch_size: int = 64
    learning_rate: float = 1e-3


class Continued(NamedTuple):
    """The gain of further training on held-out data.

    Attributes:
        gain: gain of the training objective, nats per datum, paired, with its error over data.
        spread: standard deviation over data of the objective before, nats.
        num_steps: number of further Adam steps.
    """

    gain: Estimate
    spread: float
    num_steps: int


class Findings(NamedTuple):
    """The measurements of a model; nats per datum unless said otherwise.

    Attributes:
        held_out, training: ELBO, its terms and its surgery; held-out and training data.
        collapse: which latent dimensions are inactive, on held-out data.
        kl_weight: β̂ of the encoder, on training data, unitless.
        continued: the gain of further training; None if that was impossible.
        evidence: log p(x) and k̂ of the held-out data.
        pareto_threshold: largest acceptable k̂.
        gaps: inference gaps of some held-out data; None if the guide cannot be refined.
        calibration: on simulated data; None if the latents do not allow it.
        x: (n, *event), the held-out data behind `held_out` and `evidence`.
        rows: (n,), their rows in the held-out data.
    """

    held_out: diagnostics.Decomposition
    training: diagnostics.Decomposition
    collapse: diagnostics.Collapse
    kl_weight: Estimate
    continued: Continued | None
    evidence: Evidence
    pareto_threshold: float
    gaps: diagnostics.InferenceGaps | None
    calibration: diagnostics.Calibration | None
    x: Tensor
    rows: Tensor


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
    """Measure everything that a report says about a model.

    Args:
        vae: a `VAE` without covariates; it is not modified.
        train: (N, *event), its training data.
        test: (M, *event), held-out data.
        training: its training settings; the defaults of `Training` if omitted.
        num_samples: K ≥ 21, draws per datum for log p(x).
        num_steps: number of steps that a copy is trained further; too few do not leave the
            plateau at the start of training.
        thorough: also measure inference gaps and calibration, which take most of the time.
        seed: random seed, also of the choice of data.

    Returns:
        Findings.

    Raises:
        DataError: the data do not fit the model.
        ConfigError: num_samples is too small.

    Example:
        >>> import pyrovae as pv
        >>> vae, x = pv.build((2,), latent_dim=1, seed=0), torch.eye(2).repeat(30, 1)
        >>> found = examine(vae, x, test=x, num_samples=50, num_steps=20, thorough=False)
        >>> found.continued.num_steps, found.evidence.log_px.shape
        (20, torch.Size([60]))
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
        _if_possible(_gaps, vae, x, seed) if thorough else None,
        _if_possible(_calibration, vae, x, seed) if thorough else None,
        x,
        rows,
    )


def _some(total: int, most: int, seed: int) -> Tensor:
    """Choose at most `most` of `total` rows at random, in order."""
    generator = torch.Generator().manual_seed(seed % 2**63)
    return torch.randperm(total, generator=generator)[:most].sort().values


def _gaps(vae: Any, x: Tensor, seed: int) -> diagnostics.InferenceGaps:
    return diagnostics.inference_gaps(vae, x[:NUM_REFINED], seed=seed)


def _calibration(vae: Any, x: Tensor, seed: int) -> diagnostics.Calibration:
    return diagnostics.calibration(vae, NUM_SIMULATED, seed=seed)


def _if_possible(measure: Any, *arguments: Any) -> Any:
    try:
        return measure(*arguments)
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

    Args:
        vae: the model, not modified.
        train: (N, *event), its training data.
        test: (M, *event), held-out data.
        training: its training settings.
        num_steps: steps of Adam, rounded up to whole epochs.
        seed: random seed.

    Returns:
        Continued, or None if training diverged or cannot be continued.

    Example:
        >>> import pyrovae as pv
        >>> vae, x = pv.build((2,), latent_dim=1, seed=0), torch.eye(2).repeat(30, 1)
        >>> continued(vae, x, test=x, training=Training(), num_steps=50).gain.value > 0
        True
    """
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed % 2**63))
    seen = train[order[: num_steps * training.batch_size]]
    steps_per_epoch = math.ceil(len(seen) / training.batch_size)
    epochs = math.ceil(num_steps / steps_per_epoch)
    later = copy.deepcopy(vae)
    options = {"batch_size": training.batch_size, "learning_rate": training.learning_rate}
    objective = None if training.beta == 1 else BetaELBO(training.beta)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Posterior collapse")  # a verdict says it
            options |= {"objective": objective, "epochs": epochs, "seed": seed}
            fit(later, seen, progress=False, **options)
    except (ConfigError, DivergenceError):
        return None
    before, after = (_objective(model, test, training.beta, seed) for model in (vae, later))
    spread = before.std().item()
    return Continued(mean_of(after - before), spread, epochs * steps_per_epoch)


def _objective(vae: Any, x: Tensor, beta: float, seed: int) -> Tensor:
    """Return E_q[log p(x|z)] − β KL, (N,), nats, with the same noise for models of equal size."""
    terms = elbo_terms(vae, x, num_samples=10, seed=seed)
    return (terms.log_likelihood - beta * terms.kl).mean(0).double()
