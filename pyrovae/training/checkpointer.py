"""Checkpoints and other files of a run, and resuming a run from them.

    run_dir/step-…/             checkpoints, by `runtime.run_folder.RunFolder`
    run_dir/history.csv         one line per epoch
    run_dir/model.safetensors   the finished model, for `pyrovae.load`

A run is resumed only with the data and settings that it began with. Epochs, patience and the
learning rate may change, which the history records; the epochs, however, only if the scheduler's
length does not depend on them. On another machine, or with another number of threads or version of
torch, the run continues with a warning that bitwise equality is not guaranteed.
"""

import copy
import platform
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from torch import nn

from pyrovae import _version
from pyrovae.checks import warn_caller
from pyrovae.errors import DivergenceError, StateMismatchError
from pyrovae.history import Epoch
from pyrovae.loggers import CSV
from pyrovae.model_file import save
from pyrovae.objectives import Objective
from pyrovae.runtime.process_group import Alone
from pyrovae.runtime.random_stream import RandomStream
from pyrovae.runtime.run_folder import RunFolder, check_savable, check_unchanged
from pyrovae.runtime.signals import Interrupts
from pyrovae.runtime.threads import threads_for
from pyrovae.training.eager import trainable
from pyrovae.training.loop import Loop
from pyrovae.training.optimizers import LENGTHS
from pyrovae.training.plan import EAGER, INDUCTOR

SECONDS_BETWEEN = 30.0  # at least, if save_every is None
CHANGEABLE = ("epochs", "patience", "learning_rate")
LENGTHS_IN_STATES = (*LENGTHS, "_milestones")
ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")  # in the repr of a function; it changes each time


class Checkpointer:
    """Writer of a loop's checkpoints into a locked folder, which also resumes the loop.

    Args:
        facts: the facts of this call, from `facts_of`.
        save_every: steps between checkpoints; None saves at ends of epochs at least 30 s apart.
    """

    def __init__(
        self,
        run: RunFolder,
        loop: Loop,
        facts: dict[str, dict[str, Any]],
        *,
        save_every: int | None,
    ):
        self.run, self.loop, self.facts, self.save_every = run, loop, facts, save_every
        self.log = CSV(run.path / "history.csv")
        self.saved_at, self.saved_position = time.monotonic(), (0, 0, False)
        self.is_due = False  # whether to write a checkpoint as soon as no gradients are pending

    def resume(self, *, allow_data_change: bool) -> str | None:
        """Restore the newest complete checkpoint.

        Returns:
            The name of the engine to continue with, and why another was refused; None if there is
            no checkpoint.

        Raises:
            ConfigError: the state of the loop cannot be stored in a checkpoint.
            StateMismatchError: data, program, settings or engine differ from those of the run.
        """
        check_savable(self._state())  # except what an optimizer creates at its first update
        group = self.loop.group
        found = group.broadcast_object(self.run.newest_complete() if group.is_first else None)
        if found is None:
            return None
        state, history = found.state, self.loop.history
        changes = self._compare(state["facts"], allow_data_change, found.step)
        self._compare_schedule(state["loop"]["scheduler"], state["facts"]["settings"]["epochs"])
        engine = self._engine(state["engine"], changes)
        self.loop.restore(state["loop"])
        if state["facts"]["validation"] != self.facts["validation"]:
            self.loop.forget_best()
        history.changes += changes
        self._change_rate(state["facts"]["settings"]["learning_rate"])
        self.saved_position = self._position
        return engine

    def _engine(self, then: str, changes: list[str]) -> str:
        """Return the engine of the run, or the requested one if its results are the same."""
        (used, _, refusal), asked = then.partition(":"), self.loop.plan.compile
        if asked in ("auto", used) or (refusal and asked != EAGER):
            return then
        if INDUCTOR in (used, asked):
            raise StateMismatchError(
                f"compile was {used!r}, is {asked!r}: these agree only up to rounding, so the run "
                "would not be the same.\n"
                f"Write compile={used!r} or 'auto' to continue it, or give another run_dir."
            )
        changes.append(f"compile was {used}, is {asked}")
        return asked

    def _change_rate(self, old: Any) -> None:
        """Apply the requested learning rate: the optimizer's state has restored the old one."""
        new, scheduler = self.facts["settings"]["learning_rate"], self.loop.scheduler
        if old == new or isinstance(new, list):
            return  # a function is called before each step
        is_plain = scheduler is None or isinstance(old, list)
        for group in self.loop.steps.optimizer.param_groups:
            # a schedule continues in proportion
            for name in group.keys() & {"lr", "initial_lr", "max_lr", "min_lr"}:
                group[name] = new if is_plain or group[name] == old else group[name] * (new / old)
        if hasattr(scheduler, "base_lrs"):
            scheduler.base_lrs = [new] * len(scheduler.base_lrs)

    def _compare(self, then: dict[str, Any], allow_data_change: bool, step: int) -> list[str]:
        now, changes = self.facts, self._compare_data(then, allow_data_change, step)
        fix = "Pass the settings that the run began with, or another run_dir."
        check_unchanged(then["program"], now["program"], name="the program", fix=fix)
        modules = then["modules"], now["modules"]
        if any(then["machine"].get(k) != now["machine"][k] for k in ("torch", "pyrovae")):
            modules = map(_classes, modules)  # versions may describe modules differently
        check_unchanged(*modules, name="the program", fix=fix)
        fixed = [
            {k: v for k, v in f.items() if k not in CHANGEABLE}
            for f in (then["settings"], now["settings"])
        ]
        check_unchanged(*fixed, name="settings", fix=fix)
        for name in CHANGEABLE:
            old, new = then["settings"][name], now["settings"][name]
            if old != new:
                changes.append(f"{name} was {old}, is {new}")
        elsewhere = {k: v for k, v in then["machine"].items() if now["machine"][k] != v}
        if elsewhere:
            was = ", ".join(f"{k} {v}" for k, v in elsewhere.items())
            warn_caller(
                f"the run began elsewhere ({was}): it continues, but bitwise equality with an "
                "uninterrupted run is not guaranteed."
            )
        return changes

    def _compare_data(self, then: dict[str, Any], allow_data_change: bool, step: int) -> list[str]:
        if allow_data_change:
            names = {"data": "data", "validation": "validation data"}
            return [
                f"{name} changed after step {step}"
                for key, name in names.items()
                if then[key] != self.facts[key]
            ]
        fix = "Pass allow_data_change=True to continue anyway; the history will say so"
        now = self.facts
        check_unchanged(then["data"], now["data"], name="training data", fix=f"{fix}.")
        fix += ",\nand the best epoch will be one of the remaining ones."
        check_unchanged(then["validation"], now["validation"], name="validation data", fix=fix)
        return []

    def _compare_schedule(self, then: Any, epochs: int) -> None:
        """Reject different epochs if the scheduler's state would restore a length set by them."""
        scheduler = self.loop.scheduler
        check_unchanged(
            _lengths(then),
            _lengths(scheduler and scheduler.state_dict()),
            name="the scheduler's length",
            fix="The learning rates so far follow the old length, so it cannot change now.\n"
            f"Pass epochs={epochs}, or begin a new run in another run_dir, where "
            "scheduler=partial(…, T_max=…) has its own length, so that epochs may change.",
        )

    @contextmanager
    def running(self, interrupts: Interrupts) -> Iterator[None]:
        """Write history.csv and checkpoints while the loop runs, and when it ends early."""
        if self.loop.group.is_first:
            self.log.begin(Epoch._fields, self.loop.history.epochs)
        self.loop.after_step.append(self.after_step)
        self.loop.after_epoch.append(self.after_epoch)
        try:
            yield
        except DivergenceError as error:
            self.save(is_diverged=True)  # for inspection
            last = self.run.newest_path if self.loop.group.is_first else None
            more = f"\nLast good checkpoint: {last}." if last else ""
            raise DivergenceError(f"{error}{more}") from None
        except (KeyboardInterrupt, SystemExit):
            if interrupts.is_at_boundary:
                self.save()
            raise

    def after_step(self, loop: Loop) -> None:
        """Save every `save_every` steps, or at the next completed update."""
        if self.save_every and loop.steps.num_steps % self.save_every == 0:
            self.is_due = True
        if self.is_due:
            self.save()

    def after_epoch(self, loop: Loop, record: Epoch) -> None:
        """Add a line to history.csv; save if a checkpoint is due or enough time has passed."""
        if self.loop.group.is_first:
            self.log(loop.scored, record)
        if self.is_due or (not self.save_every and self._is_time()):
            self.save()

    def _is_time(self) -> bool:
        is_time = time.monotonic() - self.saved_at >= SECONDS_BETWEEN
        return self.loop.group.broadcast_object(is_time)

    def save(self, *, is_diverged: bool = False) -> None:
        """Write a checkpoint, unless this state is already saved or gradients are pending."""
        step, position = self.loop.steps.num_steps, self._position
        if not is_diverged:
            if not self.loop.steps.is_between_updates:
                return
            self.is_due = False
            if position == self.saved_position:
                return
        state = self._state()  # collective: all processes take part
        if self.loop.group.is_first:
            self.run.save_step(step, state, is_diverged=is_diverged)
        if not is_diverged:
            self.saved_at, self.saved_position = time.monotonic(), position

    def _state(self) -> dict[str, Any]:
        engine = self.loop.history.engine
        return {"loop": self.loop.state(), "facts": self.facts, "engine": engine}

    @property
    def _position(self) -> tuple[int, int, bool]:
        return self.loop.epoch, self.loop.steps.num_steps, self.loop.is_ended

    def finish(self) -> None:
        """Write the last checkpoint, which more epochs can continue, and the finished model."""
        self.save()
        self.loop.load_kept_weights()
        if self.loop.group.is_first:
            save(self.loop.program, self.run.path / "model.safetensors")


def _lengths(state: Any) -> dict[str, Any]:
    """Return the entries that define a scheduler's length, in its state or those of its parts."""
    if not isinstance(state, dict):
        return {}
    found = {name.strip("_"): value for name, value in state.items() if name in LENGTHS_IN_STATES}
    for number, part in enumerate(state.get("_schedulers", ()), 1):
        found |= {f"{name} of part {number}": value for name, value in _lengths(part).items()}
    return found


def facts_of(
    program: Any, plan: Any, objective: Any, data: Any, held_out: Any, group: Alone
) -> dict[str, dict[str, Any]]:
    """Return the facts that must agree when a run is resumed, as flat records by name."""
    # the first process evaluates its own validation data
    validation = group.broadcast_object(held_out.fingerprint() if held_out else None)
    size = sum(p.numel() for p in trainable(program))
    with threads_for(size * data.batch_size):
        threads = torch.get_num_threads()
    sizes = {n: str(tuple(t.shape)) for n, t in program.state_dict().items()}
    return {
        "settings": plan.record | _objective_facts(objective),
        "program": {"class": type(program).__name__, **sizes},
        "modules": modules_of(program),
        "data": data.fingerprint(),
        "validation": {"is given": validation is not None} | (validation or {}),
        "machine": {
            "torch": torch.__version__,
            "pyrovae": _version.__version__,
            "threads in use": threads,
            "device": next((p.device.type for p in program.parameters()), "cpu"),
            "processor": platform.machine(),
            "processes": group.size,
        },
    }


def modules_of(program: nn.Module) -> dict[str, str]:
    """Describe each module, by name: its class, and its settings if `extra_repr` shows them.

    Parts of the same shapes can be different densities. The settings are `extra_repr`; if that
    depends on the values of parameters or buffers, which training changes, only the class counts.

    Example:
        >>> modules_of(nn.Sequential(nn.Dropout(0.2)))
        {'program': 'Sequential()', '0': 'Dropout(p=0.2, inplace=False)'}
    """
    bare = _without_values(program)
    # zuko's flows draw for their extra_repr; distributions would validate values on the meta device
    with RandomStream(0), pyro.validation_enabled(False):
        return {
            name or "program": type(module).__qualname__ + _settings(module, bare.get(name))
            for name, module in program.named_modules()
        }


def _without_values(program: nn.Module) -> dict[str, nn.Module]:
    """Return the modules of a copy on the meta device, without values; none if copying fails."""
    tensors = {id(p): nn.Parameter(p.to("meta"), p.requires_grad) for p in program.parameters()}
    tensors |= {id(b): b.to("meta") for b in program.buffers()}
    try:
        return dict(copy.deepcopy(program, tensors).named_modules())
    except Exception:  # of a part that cannot be copied
        return {}


def _settings(module: nn.Module, bare: nn.Module | None) -> str:
    try:
        text = module.extra_repr()
        is_fixed = bare is not None and bare.extra_repr() == text
    except Exception:  # extra_repr needs a value
        return ""
    return f"({ADDRESS.sub('', text)})" if is_fixed else ""


def _classes(modules: dict[str, str]) -> dict[str, str]:
    return {name: text.partition("(")[0] for name, text in modules.items()}


def _objective_facts(objective: Any) -> dict[str, Any]:
    """Return an objective's class, plain settings, and its schedules at five points."""
    plain = {k: v for k, v in vars(objective).items() if isinstance(v, bool | int | float | str)}
    plain.pop("progress", None)
    facts = {"objective": type(objective).__name__} | {
        f"objective.{k}": v for k, v in plain.items()
    }
    if isinstance(objective, Objective):
        at = copy.copy(objective)
        for at.progress in (0.0, 0.25, 0.5, 0.75, 1.0):
            facts |= {f"objective.{k} at {at.progress}": v for k, v in at.weights().items()}
    return facts
