"""torch's optimizers and learning-rate schedulers, by class or by name.

    optimizer="AdamW"   optimizer=torch.optim.SGD   optimizer=partial(AdamW, weight_decay=0.03)
    scheduler="CosineAnnealingLR"   scheduler=partial(StepLR, step_size=30)

Names are looked up in `torch.optim` only. One optimizer holds all parameters, and uses torch's
fused kernel if there is one for their device.
"""

import inspect
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from pyro.optim import PyroOptim
from torch.optim import Optimizer, lr_scheduler

from pyrovae.checks import nearest
from pyrovae.errors import ConfigError

# names of the length of training, in epochs, in the constructors of schedulers
LENGTHS = ("T_max", "total_steps", "total_iters")
SCHEDULERS = (lr_scheduler.LRScheduler, lr_scheduler.ReduceLROnPlateau)


def optimizer_of(
    choice: str | Callable[..., Optimizer], parameters: Iterable[Any], learning_rate: float
) -> Optimizer:
    """Return the chosen optimizer over all parameters.

    Raises:
        ConfigError: the name is unknown, or the call does not return an Optimizer, or it returns
            one that cannot step from dense gradients alone, such as LBFGS.

    Example:
        >>> weights = [torch.nn.Parameter(torch.ones(2))]
        >>> type(optimizer_of("AdamW", weights, 1e-3)).__name__
        'AdamW'
    """
    parameters = list(parameters)
    make = _named(choice, torch.optim, (Optimizer,), "optimizer")
    options = {"fused": True} if _has_free(make, "fused") else {}
    try:
        optimizer = _called(make, parameters, lr=learning_rate, **options)
    except RuntimeError:  # no fused kernel for this device or dtype
        optimizer = _called(make, parameters, lr=learning_rate)
    if not isinstance(optimizer, Optimizer):
        raise ConfigError(
            f"optimizer returned a {type(optimizer).__name__}, but must return a torch optimizer.\n"
            "Write a class, such as torch.optim.AdamW, or functools.partial(AdamW, …)."
        )
    if why := _why_no_step(optimizer):
        raise ConfigError(
            f"optimizer is {type(optimizer).__name__}, but it {why}.\n"
            "Write optimizer='Adam', or another torch optimizer that steps from a gradient."
        )
    return optimizer


def _why_no_step(optimizer: Optimizer) -> str | None:
    """Return why an optimizer cannot step from the dense gradients of one batch; None if it can."""
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        return "needs a closure to reevaluate the loss, but fit evaluates the loss once per step"
    if isinstance(optimizer, torch.optim.SparseAdam):
        return "accepts only sparse gradients, but those of the loss are dense"
    return None


def scheduler_of(
    choice: str | Callable[..., Any] | None, optimizer: Optimizer, epochs: int
) -> Any | None:
    """Return the chosen learning-rate scheduler, or None; its length, if it has one, is `epochs`.

    Raises:
        ConfigError: the name is unknown, or the constructor needs further arguments.

    Example:
        >>> optimizer = optimizer_of("Adam", [torch.nn.Parameter(torch.ones(2))], 1e-3)
        >>> scheduler_of("CosineAnnealingLR", optimizer, 50).T_max
        50
    """
    if choice is None:
        return None
    make = _named(choice, lr_scheduler, SCHEDULERS, "scheduler")
    scheduler = _called(make, optimizer, **{n: epochs for n in LENGTHS if _has_free(make, n)})
    if not all(hasattr(scheduler, name) for name in ("step", "state_dict", "load_state_dict")):
        raise ConfigError(
            f"scheduler returned a {type(scheduler).__name__}, but must return a torch scheduler.\n"
            "Write a class, such as CosineAnnealingLR, or functools.partial(StepLR, step_size=30)."
        )
    return scheduler


def _named(choice: Any, module: Any, bases: tuple[type, ...], what: str) -> Callable[..., Any]:
    if isinstance(choice, (*bases, PyroOptim)):
        name = getattr(choice, "pt_optim_constructor", type(choice)).__name__
        raise ConfigError(
            f"{what} is a {type(choice).__name__} object, but fit builds its own from a class, for "
            f"the program's parameters.\nPass the class {name}, or with options "
            f"functools.partial({name}, …); the learning rate is fit's learning_rate."
        )
    if callable(choice):
        return choice
    found = {n: c for n, c in vars(module).items() if isinstance(c, type) and issubclass(c, bases)}
    names = sorted(n for n in found if not n.startswith("_") and found[n] is not bases[0])
    if isinstance(choice, str) and choice in names:
        return found[choice]
    near = nearest(choice, names)
    hint = f" Did you mean {near!r}?" if near else ""
    raise ConfigError(
        f"{what} = {choice!r}, but it must be a class or a function, or a name in "
        f"{module.__name__}.{hint}\nWith options: functools.partial({near or names[0]}, …)."
    )


def _has_free(make: Callable, name: str) -> bool:
    """Return whether a constructor has the argument and no partial has set it."""
    try:
        is_argument = name in inspect.signature(make).parameters
    except (TypeError, ValueError):
        return False
    return is_argument and not (isinstance(make, partial) and name in make.keywords)


def _called(make: Callable, *args: Any, **options: Any) -> Any:
    try:
        return make(*args, **options)
    except (TypeError, ValueError) as error:
        while isinstance(make, partial):
            make = make.func
        name = getattr(make, "__name__", type(make).__name__)
        raise ConfigError(
            f"{name}: {error}.\nPass its options with functools.partial({name}, …)."
        ) from error
