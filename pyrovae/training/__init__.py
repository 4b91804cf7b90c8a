"""Training: `fit` drives `pyro.infer.SVI` over minibatches of any program.

    θ, φ ← Adam on  (1/B) Σ_{i in batch} l_i,    l_i = −ELBO_i in nats

`plan` checks the settings and `validation` the other arguments; `eager` computes the loss and
gradients of a batch, `traced` the same from a traced step; `step` updates the parameters, `loop`
iterates over epochs and batches, `checkpointer` saves and resumes, `monitor` follows the latent
space, `sharding` splits the data over several processes. What is reported is always the β = 1
ELBO and its two terms, averaged over the data of an epoch, regardless of the objective.

`fit` changes the trained parameters and nothing else: generators, Pyro's parameter store,
signal handlers and the module's train/eval mode are restored.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pyro.infer import ELBO
from torch import nn

from pyrovae.checks import warn_caller
from pyrovae.contract import validated
from pyrovae.errors import DivergenceError
from pyrovae.history import Epoch, History
from pyrovae.runtime.memory import keep_freed_memory
from pyrovae.runtime.process_group import processes
from pyrovae.runtime.random_stream import RandomStream
from pyrovae.runtime.signals import Interrupts
from pyrovae.runtime.threads import threads_for
from pyrovae.training.checkpointer import Checkpointer, facts_of
from pyrovae.training.eager import EagerLoss, tensors_of, trainable
from pyrovae.training.loop import Loop, evaluate
from pyrovae.training.monitor import Monitor
from pyrovae.training.optimizers import optimizer_of, scheduler_of
from pyrovae.training.plan import EAGER, INDUCTOR, Plan, engine_for
from pyrovae.training.progress import progress_bar
from pyrovae.training.sharding import Sharded, SharedFolder
from pyrovae.training.step import TrainingStep
from pyrovae.training.traced import TracedLoss
from pyrovae.training.validation import (
    check_callbacks,
    checked_objective,
    held_out_batches,
    loss_settings,
    move,
    run_folder,
    seeded_generators,
    warn_of_surprises,
)

__all__ = ["Epoch", "History", "evaluate", "fit"]


def fit(
    program: nn.Module,
    x: Any,
    y: Any = None,
    mask: Any = None,
    *,
    validation: Any = None,
    objective: ELBO | None = None,
    epochs: int = 50,
    batch_size: int = 128,
    learning_rate: float | Callable[[float], float] = 1e-3,
    optimizer: str | Callable[..., torch.optim.Optimizer] = "Adam",
    scheduler: str | Callable[..., Any] | None = None,
    max_grad_norm: float | None = None,
    accumulate_batches: int = 1,
    ema_decay: float | None = None,
    patience: int | None = 10,
    precision: str = "float32",
    compile: str = "auto",
    device: str | torch.device | None = None,
    seed: int | None = 0,
    run_dir: str | Path | None = None,
    resume: bool = False,
    save_every: int | None = None,
    allow_data_change: bool = False,
    diagnostics_every: int | None = None,
    callbacks: Sequence[Callable[[nn.Module, Epoch], Any]] = (),
    progress: bool | None = None,
) -> History:
    """Train a program in place by stochastic variational inference.

    Minimizes Σ_i l_i = −Σ_i ELBO_i (or another objective) with Adam on minibatch means.

    Args:
        program: a `VAE`, or any module with Pyro's `model(x, y=None, mask=None)` and a `guide`
            with the same arguments, a plate "data" over the rows of x, and an observed site "x"
            in the model.
        x: (N, *event) as a tensor, array, memory-mapped array, scipy.sparse matrix or data frame;
            or a torch Dataset or DataLoader of x, (x, y) or (x, y, mask).
        y: (N, …), covariates for the parts wrapped in `networks.Given`.
        mask: of x's shape, true where x is observed.
        validation: held-out data: x, (x, y) or (x, y, mask), a Dataset or a DataLoader. Its
            ELBO is recorded after each epoch, and the weights of the best epoch are kept.
        objective: any `pyro.infer.ELBO` except the torch.jit ones; by default
            `objectives.TraceELBO()`.
        epochs: number of passes over the data.
        batch_size: B; the last batch may be smaller. Ignored for a DataLoader, which has its own.
        learning_rate: a number, or a function of the completed fraction of training, in [0, 1].
        optimizer: a name in `torch.optim`, a class, or a function (parameters, lr) → Optimizer.
        scheduler: a name in `torch.optim.lr_scheduler`, a class, or a function
            optimizer → scheduler; stepped after each epoch. If it needs a length, it gets epochs.
        max_grad_norm: largest global norm of the gradient of the mean loss; None does not clip.
        accumulate_batches: number of batches per update, which uses the mean over all their data;
            each batch counts as a step.
        ema_decay: decay in (0, 1) of a moving average of the weights, which is then evaluated
            and kept; None keeps the weights themselves.
        patience: epochs without a better validation ELBO before training stops; None never stops.
        precision: "float32", or "bf16": networks compute in bfloat16, while densities, parameters
            and evaluation stay in float32.
        compile: "eager" runs Pyro's handlers at each step; "graph" traces the step once and
            replays it, with bit-identical results; "inductor" compiles the trace, equal up to
            rounding, and torch caches the result for later runs (in TORCHINDUCTOR_CACHE_DIR);
            "auto" chooses by model size and planned steps, or keeps the engine of a resumed run.
            A resumed run may switch between "eager" and "graph", which the history notes, but
            not to or from "inductor".
        device: device to train on; the program is moved there and stays there. None leaves it.
        seed: seed of shuffling and all draws; None uses a fresh one and records it. The initial
            weights do not depend on it.
        run_dir: a folder for checkpoints, history.csv and model.safetensors; None writes nothing.
        resume: continue from the newest complete checkpoint in run_dir, bit for bit. Different
            epochs, patience and learning_rate are allowed and noted in the history; epochs must
            stay the same where they set the length of the scheduler.
        save_every: batches between checkpoints, each written after the update that includes the
            last of them; None saves at the end of an epoch, about every 30 s.
        allow_data_change: resume on different training or validation data, which the history
            notes. If the validation data changed or were dropped, the best epoch is chosen among
            the epochs that follow.
        diagnostics_every: steps between records of rate, distortion, active units, mutual
            information, KL per dimension and the gradient's signal-to-noise in `History.monitor`.
        callbacks: called as callback(program, record) after each epoch, outside the run's
            random stream and parameter store, so that they cannot change the run's draws.
        progress: show a progress bar on stderr; None shows it if stderr is a terminal.

    Returns:
        History, one record per epoch, in nats per datum.

    Raises:
        DataError: the data do not fit the program; raised before anything changes.
        ConfigError: an argument or the program is invalid, or with run_dir its state cannot be
            saved in a checkpoint; raised before anything changes.
        DivergenceError: the loss or a gradient is not finite; the parameters are those of the
            last finite update, and the message says where.
        CheckpointError: run_dir cannot be written, or its checkpoints cannot be read;
            `StateMismatchError` if the run began with different data, program or settings.
        KeyboardInterrupt: Ctrl-C, at the end of an update (of `accumulate_batches` batches); with
            run_dir, after a checkpoint.
        WorkerLostError: another one of several processes (launched by torchrun) ended.

    Example:
        >>> import pyrovae as pv
        >>> x = pv.datasets.binarize(pv.datasets.digits().train)
        >>> vae = pv.build((8, 8), latent_dim=2, seed=0)
        >>> history = fit(vae, x, epochs=2)
        >>> history[1].elbo > history[0].elbo
        True
    """
    plan = Plan(
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        optimizer=optimizer,
        scheduler=scheduler,
        max_grad_norm=max_grad_norm,
        accumulate_batches=accumulate_batches,
        ema_decay=ema_decay,
        patience=patience,
        precision=precision,
        compile=compile,
        seed=seed,
    )
    objective = checked_objective(program, objective)
    made = optimizer_of(plan.optimizer, trainable(program), plan.rate(0.0))
    schedule = scheduler_of(plan.scheduler, made, plan.epochs)
    folder = run_folder(run_dir, resume=resume, save_every=save_every)
    check_callbacks(callbacks, diagnostics_every)
    with ExitStack() as stack:
        group = stack.enter_context(processes(program, device))
        if group:
            plan = replace(plan, patience=patience, seed=group.broadcast_object(plan.seed))
        move(program, device)
        generators = stack.enter_context(seeded_generators(plan.seed, x, validation))
        with RandomStream(plan.seed):
            data = validated(program, x, y, mask, batch_size=plan.batch_size)
        with RandomStream(plan.seed):  # so that its order does not depend on the training data
            held_out = held_out_batches(program, validation, plan.batch_size, y)
        if group:
            group.check_same(facts_of(program, plan, objective, data))
            group.broadcast(tensors_of(program))
            data = Sharded(data, group, group.order(plan.seed))
        history = History(num_data=data.num_data, seed=plan.seed)
        settings_of = partial(loss_settings, program, objective, plan, data, history)
        losses = EagerLoss(
            program, objective, partial(settings_of, is_monitored=bool(diagnostics_every))
        )
        if group is None or group.is_first:
            warn_of_surprises(program, data)
        loop = Loop(
            program,
            TrainingStep(program, losses, made, **plan.step_settings, group=group),
            data,
            held_out,
            plan=plan,
            objective=objective,
            scheduler=schedule,
            stream=group.noise(plan.seed) if group else RandomStream(plan.seed),
            history=history,
            generators=generators,
        )
        checkpointer = None
        if folder:
            folder = SharedFolder(folder, group) if group else folder
            facts = facts_of(program, plan, objective, data, held_out)
            if group:  # the first process evaluates its own validation data
                facts["validation"] = group.broadcast_object(facts["validation"])
            facts["machine"]["processes"] = group.size if group else 1
            folder = stack.enter_context(folder)
            checkpointer = Checkpointer(folder, loop, facts, save_every=save_every)
        monitor = Monitor(program, losses, plan.seed)
        if diagnostics_every and (group is None or group.is_first):
            loop.after_step.append(partial(_record, monitor, diagnostics_every))
        _train(loop, losses, checkpointer, allow_data_change, callbacks, progress)
        if group is None or group.is_first:
            _warn_of_collapse(loop, monitor)
    return loop.history


def _train(
    loop: Loop,
    losses: EagerLoss,
    checkpointer: Checkpointer | None,
    allow_data_change: bool,
    callbacks: Sequence[Callable[[nn.Module, Epoch], Any]],
    progress: bool | None,
) -> None:
    """Run the loop with its engine, checkpoints, callbacks and progress bar."""
    engine = None
    if checkpointer:
        checkpointer.check()
        engine = checkpointer.resume(allow_data_change=allow_data_change)
    plan, size = loop.plan, sum(p.numel() for p in losses.parameters)
    if loop.data.preloaded:  # each step frees its gradients; large data leave no memory to keep
        keep_freed_memory(losses.parameters[0].device)
    loop.steps.loss = _engine(engine or plan.compile, losses, loop)
    work = size * loop.data.batch_size
    group = loop.steps.group
    if group and not group.is_first:
        progress, callbacks = False, ()
    with progress_bar(plan.epochs, progress) as show, threads_for(work), Interrupts() as interrupts:
        check = group.agreed(interrupts) if group else interrupts.check
        loop.after_epoch.append(lambda _, record: show(record))
        for callback in callbacks:
            loop.after_epoch.append(partial(_call, callback, checkpointer))
        if checkpointer:
            checkpointer.begin()
            loop.after_step.append(checkpointer.after_step)
            loop.after_epoch.insert(0, checkpointer.after_epoch)
        # not with accumulated gradients, which a checkpoint cannot hold
        loop.after_step.append(lambda loop: check() if loop.steps.is_between_updates else None)
        loop.after_epoch.append(lambda _, record: check())
        try:
            loop.run()
        except DivergenceError as error:
            if checkpointer:
                raise DivergenceError(checkpointer.diverged(str(error))) from None
            raise
        except (KeyboardInterrupt, SystemExit):
            if checkpointer and interrupts.is_at_boundary:
                checkpointer.save()
            raise
    if checkpointer:
        checkpointer.finish()
    else:
        loop.keep()


def _call(callback: Callable, checkpointer: Checkpointer | None, loop: Loop, record: Epoch) -> None:
    """Call a callback after an epoch; if it raises, save the epoch first."""
    try:
        callback(loop.scored, record)
    except BaseException:
        if checkpointer and loop.steps.group is None:  # else all processes would have to save
            checkpointer.save()
        raise


def _record(monitor: Monitor, every: int, loop: Loop) -> None:
    if loop.steps.num_steps % every == 0:
        monitor.select_rows(loop.data.preloaded or loop.first_batch)
        loop.history.monitor.append(monitor.record(loop.steps.num_steps))


def _warn_of_collapse(loop: Loop, monitor: Monitor) -> None:
    """Record the collapsed latent dimensions, and warn of them after at least 500 steps."""
    rows = loop.data.preloaded or loop.first_batch
    if rows is None or len(rows.x) < 2:
        return
    monitor.select_rows(rows)
    loop.history.collapse = monitor.collapse()
    if loop.history.collapse and loop.history.collapse.collapsed and loop.steps.num_steps >= 500:
        warn_caller(loop.history.collapse.message)


def _engine(choice: str, losses: EagerLoss, loop: Loop) -> Any:
    """Return the loss of the chosen engine; the history records it, and why it was replaced."""
    steps_per_epoch = math.inf if loop.data.num_batches is None else loop.data.num_batches
    size = sum(p.numel() for p in losses.parameters)
    if choice == "auto":
        choice = engine_for(size, loop.data.batch_size, loop.plan.epochs * steps_per_epoch)
    loop.history.engine = choice
    name = choice.partition(":")[0]
    if name == EAGER:
        return losses

    def refused(why: str, engine: str) -> None:
        loop.history.engine = f"{engine}: {why}"

    group, full_size = loop.steps.group, loop.data.batch_size
    full_size = group.share(full_size) if group else full_size
    traced = TracedLoss(
        losses, is_compiled=name == INDUCTOR, full_size=full_size, on_refusal=refused
    )
    loop.after_epoch.append(traced.recheck_constants)
    return traced
