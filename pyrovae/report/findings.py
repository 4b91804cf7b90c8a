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
from torch import Tensor, nn

import pyrovae.diagnostics as diagnostics
from pyrovae.checks import whole_number
from pyrovae.contract import validated
from pyrovae.core.draws import diagnosing, elbo_terms
from pyrovae.core.pareto import pareto_k_threshold
from pyrovae.core.replicates import replicated
from pyrovae.data import Batch, Source
from pyrovae.data.batch import is_by_site
from pyrovae.diagnostics import Estimate
from pyrovae.diagnostics.estimate import mean_of
from pyrovae.errors import ConfigError, DivergenceError
from pyrovae.evidence import Evidence, log_evidence
from pyrovae.objectives import BetaELBO
from pyrovae.report.encoder import kl_weight
from pyrovae.runtime.turns import TURN
from pyrovae.training import fit
from pyrovae.vae import is_plain_vae

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
    training: diagnostics.Decomposition | None  # the same on training data, if they are given
    collapse: diagnostics.Collapse | None  # inactive latent dimensions; None without local latents
    kl_weight: Estimate  # β̂ of the encoder, on training data, unitless
    continued: Continued | None  # None if training could not go on
    evidence: Evidence  # log p(x) and k̂ of the held-out data
    pareto_threshold: float  # largest acceptable k̂
    gaps: diagnostics.InferenceGaps | None  # None if the guide cannot be refined
    calibration: diagnostics.Calibration | None  # None if the latents do not allow it
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
        thorough: also measure inference gaps and calibration, which take most of the time.
        seed: random seed, also of the choice of data.
    """
    num_samples = whole_number(num_samples, "num_samples", 21)
    training = training or Training()
    held_out, seen = _opened(program, test), None if train is None else _opened(program, train)
    rows = _some(held_out.count(), NUM_DATA, seed)
    data = held_out.take(rows)
    few = data if seen is None else seen.take(_some(seen.count(), NUM_DATA, seed + 1))
    how = {"training": training, "num_steps": num_steps, "seed": seed}
    like = {} if is_plain_vae(program) else {"like": _complete(program, data, seed)}

    def if_possible(measure: Any, *of: Any, **options: Any) -> Any:
        try:
            return measure(program, *of, seed=seed, **options) if thorough else None
        except (ConfigError, NotImplementedError):  # flows cannot be refined, codes not ranked
            return None

    return Findings(
        diagnostics.decompose_elbo(program, *data, seed=seed),
        None if seen is None else diagnostics.decompose_elbo(program, *few, seed=seed),
        _collapse(program, data, seed),
        kl_weight(program, *few, seed=seed),
        None if seen is None else continued(program, train, test=tuple(data), **how),
        log_evidence(program, *data, method="iwae", num_samples=num_samples, seed=seed),
        pareto_k_threshold(num_samples),
        if_possible(diagnostics.inference_gaps, *data.head(NUM_REFINED)),
        if_possible(diagnostics.calibration, NUM_SIMULATED, _covariates(data), **like),
        data,
        rows,
    )


def _opened(program: nn.Module, data: Any) -> Source:
    return validated(program, *(data if isinstance(data, tuple) else (data,)))


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


def _collapse(program: nn.Module, data: Batch, seed: int) -> diagnostics.Collapse | None:
    try:
        return diagnostics.collapsed_dimensions(program, *data, seed=seed)
    except ConfigError:  # it has no latent inside the plate
        return None


def _shuffled(total: int, seed: int) -> Tensor:
    return torch.randperm(total, generator=torch.Generator().manual_seed(seed % 2**63))


def _some(total: int, most: int, seed: int) -> Tensor:
    """Choose at most `most` of `total` rows at random, in order."""
    return _shuffled(total, seed)[:most].sort().values


def continued(
    program: nn.Module,
    train: Any,
    *,
    test: Any,
    training: Training,
    num_steps: int = MORE_STEPS,
    seed: int = 0,
) -> Continued | None:
    """Train a copy further and measure its gain on held-out data, in the training objective.

    The steps are rounded up to whole epochs. None if training diverged or cannot be continued.
    """
    beta, batch_size, learning_rate = training
    data, held_out = _opened(program, train), _opened(program, test).whole()
    seen = data.take(_shuffled(data.count(), seed)[: num_steps * batch_size])
    steps_per_epoch = math.ceil(seen.num_data / batch_size)
    epochs = math.ceil(num_steps / steps_per_epoch)
    later, objective = copy.deepcopy(program), None if beta == 1 else BetaELBO(beta)
    options = {"batch_size": batch_size, "learning_rate": learning_rate, "seed": seed}
    try:
        with TURN, warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Posterior collapse")  # a verdict says it
            fit(later, *seen, objective=objective, epochs=epochs, progress=False, **options)
    except (ConfigError, DivergenceError):
        return None
    before, after = (_objective(model, held_out, beta, seed) for model in (program, later))
    return Continued(mean_of(after - before), before.std().item(), epochs * steps_per_epoch)


def _objective(program: nn.Module, data: Batch, beta: float, seed: int) -> Tensor:
    """Return E_q[log p(x|z)] − β KL, (N,), nats, with the same noise for models of equal size."""
    terms = elbo_terms(program, *data, num_samples=10, seed=seed)
    return (terms.log_likelihood - beta * terms.kl).mean(0).double()
