"""The settings of `fit`, checked and stored as a flat record.

Checkpoints store the record, and resuming compares it. Whether steps are traced, and whether the
trace is compiled, depends on the model's size and the planned steps only (`engine_for`), never
on timings, so that a resumed run uses the same engine.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch.optim import Optimizer

from pyrovae.checks import real_number, seed_number, whole_number
from pyrovae.errors import ConfigError
from pyrovae.training.traced import ENGINES

EAGER, GRAPH, INDUCTOR = ENGINES
COMPILE = ("auto", *ENGINES)
PRECISIONS = ("float32", "bf16")
MIN_STEPS = 300  # tracing costs about as much as this many steps save
# seconds, from tests/benchmarks/training_speed.py: twice the cost of the compiler, and its savings
# per step: the overhead of small operations, and part of the time of matrix products
COMPILER_COST = 20.0
SAVED_OVERHEAD, SAVED_PER_MULTIPLICATION = 4e-4, 6e-12


@dataclass(frozen=True)
class Plan:
    """Settings of a run; the arguments of `fit` with the same names describe them."""

    epochs: int
    batch_size: int
    learning_rate: float | Callable[[float], float]
    optimizer: str | Callable[..., Optimizer]
    scheduler: str | Callable[..., Any] | None
    max_grad_norm: float | None
    accumulate_batches: int
    ema_decay: float | None
    patience: int | None
    precision: str
    compile: str
    seed: int

    def __post_init__(self) -> None:
        set_ = partial(object.__setattr__, self)
        set_("epochs", whole_number(self.epochs, "epochs", 0))
        set_("batch_size", whole_number(self.batch_size, "batch_size", 1))
        set_("accumulate_batches", whole_number(self.accumulate_batches, "accumulate_batches", 1))
        set_("seed", seed_number(self.seed))
        if self.patience is not None:
            set_("patience", whole_number(self.patience, "patience", 1))
        self._rates()
        if self.scheduler is not None and callable(self.learning_rate):
            raise ConfigError(
                "learning_rate is a function of progress, but scheduler sets the rate too.\n"
                "Pass only one: a number as learning_rate, or scheduler=None."
            )
        if self.max_grad_norm is not None:
            real_number(self.max_grad_norm, "max_grad_norm", above=0.0)
        decay = self.ema_decay
        if decay is not None and not 0.0 < real_number(decay, "ema_decay") < 1.0:
            raise ConfigError(
                f"ema_decay = {decay}, but the decay of a moving average of the weights must be "
                "in (0, 1).\nWrite ema_decay=0.999, or None for the weights themselves."
            )
        _one_of(self.precision, "precision", PRECISIONS)
        _one_of(self.compile, "compile", COMPILE)

    def rate(self, progress: float) -> float:
        """Return the learning rate after a fraction of the planned steps."""
        rate = self.learning_rate
        rate = rate(progress) if callable(rate) else rate
        # a schedule may end at 0, but a constant rate must be positive
        bound = {"least": 0.0} if callable(self.learning_rate) else {"above": 0.0}
        return real_number(rate, "learning_rate", **bound)

    def _rates(self) -> list[float]:
        return [self.rate(t) for t in (0.0, 0.25, 0.5, 0.75, 1.0)]

    @property
    def step_settings(self) -> dict[str, Any]:
        """The settings of `TrainingStep`."""
        names = ("max_grad_norm", "accumulate_batches", "ema_decay")
        return {name: getattr(self, name) for name in names}

    @property
    def record(self) -> dict[str, Any]:
        """The settings as plain values; a schedule is given by its values at five points."""
        rates = self._rates()
        plain = {name: described(v) for name, v in vars(self).items() if name != "compile"}
        return plain | {"learning_rate": rates if callable(self.learning_rate) else rates[0]}


def engine_for(size: int, batch_size: int, num_steps: float) -> str:
    """Choose the engine of a run under compile="auto".

    Args:
        size: the number of trainable parameters.
        batch_size: B; a step takes about 3 × size × B multiplications.
        num_steps: planned steps of the whole run; infinite if unknown.

    Returns:
        "eager" for a few steps, "inductor" if its saving over all steps exceeds its cost,
        "graph" otherwise.

    Example:
        >>> engine_for(20_000, 64, 2), engine_for(20_000, 64, 5_000)
        ('eager', 'graph')
        >>> engine_for(10**6, 256, 10**5)
        'inductor'
    """
    if num_steps < MIN_STEPS:
        return EAGER
    saved = SAVED_OVERHEAD + SAVED_PER_MULTIPLICATION * size * batch_size
    is_repaid = math.isfinite(num_steps) and num_steps * saved >= COMPILER_COST
    return INDUCTOR if is_repaid else GRAPH


def described(choice: Any) -> Any:
    """Describe a choice by plain values, which can be compared when a run is resumed.

    Example:
        >>> described(partial(int, base=2))
        'int(base=2)'
    """
    if choice is None or isinstance(choice, str | int | float):
        return choice
    if isinstance(choice, partial):
        options = ", ".join(f"{k}={described(v)}" for k, v in sorted(choice.keywords.items()))
        return f"{described(choice.func)}({options})"
    if isinstance(choice, tuple | list):
        return ", ".join(str(described(part)) for part in choice)
    return getattr(choice, "__name__", type(choice).__name__)


def _one_of(value: Any, name: str, values: tuple[str, ...]) -> None:
    if value not in values:
        raise ConfigError(f"{name} = {value!r}, but it must be one of {', '.join(values)}.")
