"""torch's own optimizers and learning-rate schedulers, by class or by name.

    optimizer="AdamW"   optimizer=torch.optim.SGD   optimizer=partial(AdamW, weight_decay=0.03)
    scheduler="CosineAnnealingLR"   scheduler=partial(StepLR, step_size=30)

A name is looked up in `torch.optim` and nowhere else. An optimizer holds all parameters at
once and takes torch's fused kernel where it has one for the parameters' device.
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

# what a scheduler's constructor calls the length of the training, in epochs
LENGTHS = ("T_max", "total_steps", "total_iters")
SCHEDULERS = (lr_scheduler.LRScheduler, lr_scheduler.ReduceLROnPlateau)


def optimizer_of(
    choice: str | Callable[..., Optimizer], parameters: Iterable[Any], learning_rate: float
) -> Optimizer:
    """The optimizer of a choice, over all parameters.

    Args:
        choice: a name in `torch.optim`, a class, or any function (parameters, lr=…) → Optimizer.
        parameters: what it holds.
        learning_rate: given to it as `lr`.

    Raises:
        ConfigError: an unknown name; what is called gives no Optimizer, or one that cannot step
            from dense gradients alone, such as LBFGS.

    Example:
        >>> weights = [torch.nn.Parameter(torch.ones(2))]
        >>> type(optimizer_of("AdamW", weights, 1e-3)).__name__
        'AdamW'
    """
    parameters = list(parameters)
    make = _named(choice, torch.optim, (Optimizer,), "optimizer")
    options = {"fused": True} if _takes(make, "fused") and not _holds_option(make, "fused") else {}
    try:
        optimizer = _called(make, parameters, lr=learning_rate, **options)
    except RuntimeError:  # no fused kernel for this device or dtype
        optimizer = _called(make, parameters, lr=learning_rate)
    if not isinstance(optimizer, Optimizer):
        raise ConfigError(
            f"optimizer gave a {type(optimizer).__name__}, but it must give a torch optimizer.\n"
            "Write a class, such as torch.optim.AdamW, or functools.partial(AdamW, …)."
        )
    _check_step(optimizer)
    return optimizer


def _check_step(optimizer: Optimizer) -> None:
    """ConfigError unless it can step from the dense gradients of one batch."""
    why = ""
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        why = "needs a closure that evaluates the loss anew, and here a batch's loss comes once"
    elif isinstance(optimizer, torch.optim.SparseAdam):
        why = "takes sparse gradients only, and those of the loss are dense"
    if why:
        raise ConfigError(
            f"optimizer is {type(optimizer).__name__}, but it {why}.\n"
            "Write optimizer='Adam', or another of torch.optim that steps from a gradient."
        )


def scheduler_of(
    choice: str | Callable[..., Any] | None, optimizer: Optimizer, epochs: int
) -> Any | None:
    """The learning-rate scheduler of a choice; its length is the planned epochs if it has one.

    Args:
        choice: a name in `torch.optim.lr_scheduler`, a class, or any function
            optimizer → scheduler; None for none.
        optimizer: whose learning rate it sets, after each epoch.
        epochs: given as T_max, total_steps or total_iters where the constructor asks for one.

    Raises:
        ConfigError: an unknown name, or a constructor that needs more than this.

    Example:
        >>> optimizer = optimizer_of("Adam", [torch.nn.Parameter(torch.ones(2))], 1e-3)
        >>> scheduler_of("CosineAnnealingLR", optimizer, 50).T_max
        50
    """
    if choice is None:
        return None
    make = _named(choice, lr_scheduler, SCHEDULERS, "scheduler")
    lengths = {n: epochs for n in LENGTHS if _takes(make, n) and not _holds_option(make, n)}
    scheduler = _called(make, optimizer, **lengths)
    if not all(hasattr(scheduler, name) for name in ("step", "state_dict", "load_state_dict")):
        raise ConfigError(
            f"scheduler gave a {type(scheduler).__name__}, but it must give a torch scheduler.\n"
            "Write a class, such as CosineAnnealingLR, or functools.partial(StepLR, step_size=30)."
        )
    return scheduler


def _named(choice: Any, module: Any, bases: tuple[type, ...], what: str) -> Callable[..., Any]:
    if isinstance(choice, (*bases, PyroOptim)):
        name = getattr(choice, "pt_optim_constructor", type(choice)).__name__
        raise ConfigError(
            f"{what} is a {type(choice).__name__} that is made already, but fit makes its own, for "
            f"the parameters of the program.\nGive the class {name}, or with options "
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
        f"{module.__name__}.{hint}\nOptions: functools.partial({near or names[0]}, …)."
    )


def _takes(make: Callable, name: str) -> bool:
    try:
        return name in inspect.signature(make).parameters
    except (TypeError, ValueError):
        return False


def _holds_option(make: Callable, name: str) -> bool:
    return isinstance(make, partial) and name in make.keywords


def _called(make: Callable, *args: Any, **options: Any) -> Any:
    try:
        return make(*args, **options)
    except (TypeError, ValueError) as error:
        while isinstance(make, partial):
            make = make.func
        name = getattr(make, "__name__", type(make).__name__)
        raise ConfigError(
            f"{name}: {error}.\nGive its options with functools.partial({name}, …)."
        ) from error
