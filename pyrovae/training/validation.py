"""Validation of the arguments of `fit`, before anything changes.

Each function prepares one argument of `fit`, or rejects it with an error that says why.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pyro import poutine
from pyro.infer import ELBO, RenyiELBO, ReweightedWakeSleep
from torch import nn
from torch.utils.data import DataLoader, Dataset

from pyrovae.checks import warn_caller, whole_number
from pyrovae.checks.places import first_true
from pyrovae.contract import validated
from pyrovae.contract.program import trace_once
from pyrovae.contract.sites import is_local
from pyrovae.core.draws import diagnosing
from pyrovae.core.terms import bound_on
from pyrovae.core.vectorized import Vectorization, vectorization_of
from pyrovae.data import Schema
from pyrovae.data.batch import spread
from pyrovae.errors import ConfigError, DataError
from pyrovae.history import History
from pyrovae.objectives import EnumELBO, Objective, TraceELBO
from pyrovae.runtime.run_folder import RunFolder
from pyrovae.training.eager import Settings, trainable
from pyrovae.training.monitor import check_monitorable
from pyrovae.training.plan import Plan

MAX_SPREAD = 20.0  # in units of the decoder's features


def checked_objective(program: nn.Module, objective: ELBO | None) -> ELBO:
    """Check program and objective without data, and return a copy of the objective."""
    parts = ("parameters", "model", "guide")
    if isinstance(program, type) or not all(callable(getattr(program, n, None)) for n in parts):
        raise ConfigError(
            f"program is {_kind(program)}, but fit takes a module with .model and .guide."
            "\nWrite pv.fit(vae, x), with vae = pv.VAE(prior, encoder, decoder)."
        )
    if not trainable(program):
        raise ConfigError(
            "the program has no trainable parameters, so there is nothing to fit.\n"
            "Call requires_grad_(True) on the parts to train."
        )
    objective = TraceELBO() if objective is None else objective
    if not isinstance(objective, ELBO):
        raise ConfigError(
            f"objective is {_kind(objective)}, but it must be a pyro.infer.ELBO object.\n"
            "Write, for example, objective=objectives.BetaELBO(0.5); None is the ELBO itself."
        )
    if type(objective).__name__.startswith("Jit"):
        raise ConfigError(
            f"objective is a {type(objective).__name__}, which torch.jit traces for one batch size "
            "and without a mask.\nPass the objective without Jit, or one of pyrovae.objectives: "
            "fit traces its step itself with compile='graph'."
        )
    # a copy, because Pyro's objectives remember the plate nesting of the first model they see
    return copy.copy(objective)


def _kind(value: Any) -> str:
    is_class = isinstance(value, type)
    return f"the class {value.__name__}" if is_class else f"a {type(value).__name__}"


def loss_settings(
    program: nn.Module,
    objective: ELBO,
    plan: Plan,
    data: Any,
    history: History,
    batch: Any,
    *,
    is_monitored: bool,
) -> Settings:
    """Determine the settings of the loss; tracing the program shows whether it has global latents.

    Called before the first update, so that programs that cannot be monitored are rejected here.
    """
    traces = trace_once(program, *batch.head())
    history.bound_on, guide_trace = bound_on(*traces), traces[1]
    has_globals = not all(is_local(site) for _, site in guide_trace.iter_stochastic_nodes())
    if has_globals and isinstance(objective, RenyiELBO | ReweightedWakeSleep):
        raise ConfigError(
            f"{type(objective).__name__} puts the minibatch scale inside its log-sum-exp, "
            "so with latents outside the plate 'data' it is not a bound.\n"
            "Use objectives.TraceELBO() or objectives.BetaELBO(beta)."
        )
    if has_globals and data.num_data is None:
        raise ConfigError(
            "the program has latents outside the plate 'data', whose minibatch scale N / B needs "
            "the number of data, but this stream has no length.\nPass a map-style Dataset."
        )
    with poutine.block():  # SVI records the parameters of a step, and these are of other stores
        if isinstance(objective, Objective | EnumELBO) and objective.num_particles > 1:
            check_particles(program, objective, batch)
        if is_monitored:
            check_monitorable(program, batch)
    return Settings(data.num_data or 1, has_globals, plan.precision == "bf16")


def check_particles(program: nn.Module, objective: ELBO, batch: Any) -> None:
    """Raise ConfigError unless several draws can be computed at once."""
    with diagnosing(program, 0):
        is_at_once = vectorization_of(program, batch) is Vectorization.BATCHED
    if not is_at_once:
        raise ConfigError(
            f"{type(objective).__name__}(num_particles={objective.num_particles}) adds a dimension "
            f"of draws on the left; with it this {type(program).__name__} fails, or gives other "
            "numbers than draw by draw, for example because it counts dimensions from the left.\n"
            "Count them from the right, z[..., 0] for z[:, 0], or take one particle."
        )


def run_folder(run_dir: Any, *, resume: bool, save_every: int | None) -> RunFolder | None:
    """Return the folder of a run, not yet locked; None without run_dir."""
    if save_every is not None:
        whole_number(save_every, "save_every", 1)
    if run_dir is not None:
        return RunFolder(run_dir, resume=resume)
    if resume or save_every:
        raise ConfigError(
            "resume and save_every need a run folder, but run_dir is None: nothing is saved.\n"
            "Write run_dir='runs/first', resume=True."
        )
    return None


@contextmanager
def names_remembered(program: nn.Module, x: Any, y: Any) -> Iterator[None]:
    """Let the program know the names of columns and classes in its training data.

    If the data are refused, it knows what it knew before.
    """
    before = getattr(program, "schema", None)
    learned = (before or Schema()).learned_from(x, y)
    if learned == Schema():
        yield
        return
    program.schema = learned
    try:
        yield
    except BaseException:
        program.schema = before
        raise


def check_callbacks(callbacks: Any, diagnostics_every: Any) -> None:
    """Raise ConfigError unless callbacks is a sequence and diagnostics_every a whole number."""
    if callable(callbacks):
        raise ConfigError("callbacks is a function, but must be a list.\nWrite callbacks=[…].")
    if diagnostics_every is not None:
        whole_number(diagnostics_every, "diagnostics_every", 1)


def move(program: nn.Module, device: str | torch.device | None) -> None:
    """Move the program to the device, if one is given."""
    if device is None:
        return
    try:
        program.to(torch.empty(0, device=device).device)
    except (RuntimeError, AssertionError, TypeError) as error:
        first_line = str(error).partition("\n")[0]
        raise ConfigError(
            f"device = {device!r} cannot be used: {first_line}.\nWrite device='cpu', or None."
        ) from None


def warn_of_surprises(program: nn.Module, data: Any) -> None:
    """Warn of programs that train well but are rarely intended."""
    decoder = getattr(program, "decoder", None)
    if decoder is not None and not any(p.requires_grad for p in decoder.parameters()):
        warn_caller("the decoder has no trainable parameters: p(x|z) will not change")
    heads = () if decoder is None else decoder.modules()
    heads = list(heads)
    learns_scale = [head for head in heads if hasattr(head, "learns_scale_per_cell")]
    x = None if data.preloaded is None else data.preloaded.x
    if isinstance(x, torch.Tensor):
        _warn_of_units(heads, data)
    if learns_scale and isinstance(x, torch.Tensor) and data.num_data > 1:
        is_constant = _is_constant(x, data.preloaded.mask)
        is_learned = [torch.as_tensor(head.learns_scale_per_cell) for head in learns_scale]
        is_constant = is_constant & sum(is_learned).to(x.device, torch.bool)
        if is_constant.any():
            first = ", ".join(str(int(i)) for i in is_constant.nonzero()[0])
            warn_caller(
                f"x[:, {first}] is constant ({int(is_constant.sum()):,} in all): its learned scale "
                "shrinks to the floor of 1e-5, which inflates log p(x). Drop it."
            )


def _warn_of_units(heads: list[nn.Module], data: Any) -> None:
    """Warn of real data whose spread is far from the unit of the decoder's features."""
    x, mask = data.preloaded.x, data.preloaded.mask
    for head in heads:
        unit = getattr(head, "unit", None)
        if unit is None or unit.shape != x.shape[1:] or data.num_data < 2:
            continue
        seen = x.double() if mask is None else torch.where(spread(mask, x), x.double(), torch.nan)
        size = (seen - seen.nanmean(0)).square().nanmean(0).sqrt().nan_to_num(0.0)
        ratio = size / unit.to(size)
        if ratio.max() > MAX_SPREAD:
            at = first_true(ratio == ratio.max())
            warn_caller(
                f"x[:, {', '.join(map(str, at))}] has a standard deviation of {size[at]:.3g}, but "
                f"the decoder's features are in units of {unit[at]:.3g}, in which training is slow "
                "or fails.\nWrite build(…, data=x), which takes the units of the data, or "
                "standardize x."
            )


def _is_constant(x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Return which elements of a datum have one observed value, (*event,)."""
    if mask is None:
        return (x == x[:1]).all(0)
    mask = spread(mask, x)
    low, high = (torch.where(mask, x, end) for end in (torch.inf, -torch.inf))
    return low.amin(0) == high.amax(0)


def held_out_batches(program: nn.Module, validation: Any, batch_size: int, y: Any) -> Any:
    """Return the validation data as batches, or None; y are the training covariates."""
    if validation is None:
        return None
    if isinstance(validation, int | float):
        raise ConfigError(
            f"validation = {validation}, but it must be held-out data, not a fraction of x.\n"
            "Split x first: validation=x[:1000], and fit on x[1000:]."
        )
    parts = validation if isinstance(validation, tuple) else (validation,)
    if len(parts) > 3:
        kind = type(validation).__name__
        raise DataError(
            f"validation is a {kind} of {len(parts)}, but must be x, (x, y) or (x, y, mask).\n"
            "Pass the held-out split of a data set, such as data.test."
        )
    is_loader = isinstance(validation, Dataset | DataLoader)
    has_y = is_loader or (len(parts) > 1 and parts[1] is not None)
    if y is not None and not has_y and getattr(program, "sees_covariates", False):
        raise DataError(
            "x comes with covariates y, but validation has none, and its ELBO needs p(x|z, y)."
            "\nWrite validation=(x_test, y_test)."
        )
    try:
        return validated(program, *parts, batch_size=max(batch_size, 1024))
    except (DataError, ConfigError) as error:
        raise type(error)(f"in validation: {error}") from None


@contextmanager
def seeded_generators(seed: int, *sources: Any) -> Iterator[list[torch.Generator]]:
    """Seed the generators of DataLoaders, and restore their states afterwards."""
    loaders = [s for s in sources if isinstance(s, DataLoader)]
    samplers = [s for x in loaders for s in (x.sampler, getattr(x.batch_sampler, "sampler", None))]
    held = [getattr(holder, "generator", None) for holder in loaders + samplers]
    generators = list(dict.fromkeys(g for g in held if isinstance(g, torch.Generator)))
    states = [g.get_state() for g in generators]
    try:
        for generator in generators:
            generator.manual_seed(seed)
        yield generators
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
