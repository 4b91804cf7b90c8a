"""Training: `fit` drives `pyro.infer.SVI` over minibatches of any program.

    θ, φ ← Adam on  (1/B) Σ_{i in batch} l_i,    l_i = −ELBO_i in nats

`plan` checks the settings and `validation` the other arguments; `eager` computes the loss and
gradients of a batch, `traced` the same from a traced step; `step` updates the parameters, `loop`
iterates over epochs and batches, `checkpointer` saves and resumes, `monitor` follows the latent
space. What is reported is always the β = 1 ELBO and its two terms, averaged over the data of an
epoch, regardless of the objective.

`fit` changes the trained parameters and leaves the program in eval mode; generators, Pyro's
parameter store and signal handlers are restored.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pyro.infer import ELBO
from torch import nn

from pyrovae.checks import warn_caller
from pyrovae.contract import validated
from pyrovae.history import Epoch, History
from pyrovae.runtime.ambient import as_usual, in_full_precision
from pyrovae.runtime.memory import keep_freed_memory
from pyrovae.runtime.process_group import processes
from pyrovae.runtime.random_stream import RandomStream
from pyrovae.runtime.signals import Interrupts
from pyrovae.training.checkpointer import Checkpointer, facts_of
from pyrovae.training.eager import EagerLoss, tensors_of, trainable
from pyrovae.training.loop import Loop, evaluate
from pyrovae.training.monitor import Monitor
from pyrovae.training.optimizers import optimizer_of, scheduler_of
from pyrovae.training.plan import EAGER, GRAPH, Plan, engine_for
from pyrovae.training.progress import progress_bar
from pyrovae.training.single_row import check_single_row
from pyrovae.training.step import TrainingStep
from pyrovae.training.traced import ENGINES, TracedLoss
from pyrovae.training.validation import (
    check_callbacks,
    checked_objective,
    held_out_batches,
    loss_settings,
    move,
    names_remembered,
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

    Minimizes Σ_i l_i = −Σ_i ELBO_i (or another objective) with Adam on minibatch means. Steps are
    taken in train mode; between them and afterwards, the program is in eval mode.

    Args:
        program: a `VAE`, or any module with Pyro's `model(x, y=None, mask=None)` and a `guide`
            with the same arguments, a plate "data" over the rows of x, and an observed site "x"
            in the model. Discrete latents of the model that are marked with
            infer={"enumerate": "parallel"} and that the guide leaves out are summed out.
        x: (N, *event) as a tensor, array, memory-mapped array, scipy.sparse matrix or data frame;
            a dict of them by observed site, for a program with several; or a torch Dataset or
            DataLoader of x, (x, y) or (x, y, mask).
        y: (N, …), covariates for the parts wrapped in `networks.Given`.
        mask: of x's shape, true where x is observed; with a dict x, a dict of masks of the sites
            with missing values, each also (N,) for data without that site.
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
            random stream and parameter store, so that they cannot change the run's draws. One that
            returns True ends the run, which then stays ended when it is resumed.
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
        WorkerLostError: another process of the same run (launched by torchrun) ended.

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
        for context in (as_usual(), torch.enable_grad(), in_full_precision()):
            stack.enter_context(context)
        group = stack.enter_context(processes(program, device))
        plan = replace(plan, seed=group.broadcast_object(plan.seed))
        move(program, device)
        generators = stack.enter_context(seeded_generators(plan.seed, x, validation))
        with RandomStream(plan.seed), names_remembered(program, x, y):
            data = validated(program, x, y, mask, batch_size=plan.batch_size)
        with RandomStream(plan.seed):  # so that its order does not depend on the training data
            held_out = held_out_batches(program, validation, plan.batch_size, y)
        facts = {}
        if folder or group.size > 1:
            facts = facts_of(program, plan, objective, data, held_out, group)
        check_single_row(program, data, group.size)
        group.check_same(facts)
        group.broadcast(tensors_of(program))
        history = History(num_data=data.num_data, seed=plan.seed)
        settings_of = partial(loss_settings, program, objective, plan, data, history)
        losses = EagerLoss(
            program, objective, partial(settings_of, is_monitored=bool(diagnostics_every))
        )
        steps = TrainingStep(program, losses, made, **plan.step_settings, group=group)
        loop = Loop(steps, data, held_out, plan, objective, schedule, history, generators)
        if folder and group.is_first:
            stack.enter_context(folder)
        checkpointer = Checkpointer(folder, loop, facts, save_every=save_every) if folder else None
        monitor = Monitor(program, losses, plan.seed)
        if group.is_first:
            warn_of_surprises(program, data)
            if diagnostics_every:
                loop.after_step.append(partial(_record, monitor, diagnostics_every))
            _train(loop, checkpointer, allow_data_change, callbacks, progress)
            _warn_of_collapse(loop, monitor)
        else:
            _train(loop, checkpointer, allow_data_change, callbacks=(), progress=False)
    return history


def _train(
    loop: Loop,
    checkpointer: Checkpointer | None,
    allow_data_change: bool,
    callbacks: Sequence[Callable[[nn.Module, Epoch], Any]],
    progress: bool | None,
) -> None:
    """Run the loop with its engine, checkpoints, callbacks and progress bar."""
    losses = loop.steps.loss
    then = checkpointer and checkpointer.resume(allow_data_change=allow_data_change)
    if loop.data.preloaded:  # each step frees its gradients; large data leave no memory to keep
        keep_freed_memory(losses.parameters[0].device)
    loop.steps.loss = _engine(then or loop.plan.compile, losses, loop)
    with (
        progress_bar(loop.plan.epochs, progress) as show,
        Interrupts() as interrupts,
        checkpointer.running(interrupts) if checkpointer else nullcontext(),
    ):
        check = loop.group.agreed(interrupts)
        loop.after_epoch.append(lambda _, record: show(record))
        loop.after_epoch.extend(partial(_call, callback, checkpointer) for callback in callbacks)
        # not with accumulated gradients, which a checkpoint cannot hold
        loop.after_step.append(lambda loop: check() if loop.steps.is_between_updates else None)
        loop.after_epoch.append(lambda _, record: check())
        loop.run()
    if checkpointer:
        checkpointer.finish()
    else:
        loop.load_kept_weights()


def _call(callback: Callable, checkpointer: Checkpointer | None, loop: Loop, record: Epoch) -> None:
    """Call a callback after an epoch, which may end the run; if it raises, the epoch is saved."""
    try:
        loop.is_ended |= callback(loop.scored, record) is True
    except BaseException:
        if checkpointer and loop.group.size == 1:  # else all processes would have to save
            checkpointer.save()
        raise


def _record(monitor: Monitor, every: int, loop: Loop) -> None:
    if loop.steps.num_steps % every == 0:
        monitor.select_rows(loop.data.preloaded or loop.first_batch)
        loop.history.monitor.append(monitor.record(loop.steps.num_steps))


def _warn_of_collapse(loop: Loop, monitor: Monitor) -> None:
    """Record the collapsed latent dimensions, and warn of them after at least 500 steps."""
    rows = loop.data.preloaded or loop.first_batch
    if rows is None or rows.num_data < 2:
        return
    monitor.select_rows(rows)
    loop.history.collapse = found = monitor.collapse()
    if found and found.collapsed and loop.steps.num_steps >= 500:
        warn_caller(found.message)


def _engine(choice: str, losses: EagerLoss, loop: Loop) -> EagerLoss | TracedLoss:
    """Return the loss of the chosen engine; the history records it, and why another failed."""
    size = loop.data.batch_size
    if choice == "auto":
        num_steps = loop.plan.epochs * (loop.data.num_batches or math.inf)
        choice = engine_for(loop.num_parameters, size, num_steps)
    loop.history.engine = choice

    def refused(why: str, is_traced: bool) -> None:
        loop.history.engine = f"{GRAPH if is_traced else EAGER}: {why}"

    make = ENGINES[choice.partition(":")[0]]
    loss = make(losses, full_size=loop.group.share(size), on_refusal=refused)
    loop.after_epoch.append(loss.recheck_constants)
    return loss
