"""Training: `fit` drives `pyro.infer.SVI` over minibatches of any program.

    θ, φ ← Adam on  (1/B) Σ_{i in batch} l_i,    l_i = −ELBO_i in nats

`plan` checks the settings and `door` the other arguments; `losses` gives a batch's loss and
gradients and `graphs` the same from a recorded step; `steps` makes the updates, `loop` goes over
epochs and batches, `keeper` writes and resumes, `recorder` looks at the latent space, `interrupts`
lets Ctrl-C wait for a step's end, `distributed` joins several processes. What is reported is always
the β = 1 ELBO with its two terms, as sums over the data of an epoch divided by their number,
whatever the objective.

`fit` leaves behind the trained parameters and nothing else: generators, Pyro's parameter
store, signal handlers and the module's train/eval mode are afterwards as they were.
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
    check_watchers,
    checked_objective,
    held_out_batches,
    loss_settings,
    move,
    own_generators,
    run_folder,
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
        program: a `VAE`, or any module with Pyro's `model(x, y=None, mask=None)` and `guide` of
            the same arguments: a plate "data" over the rows of x, and in the model a site "x",
            observed.
        x: (N, *event) as a tensor, array, memory-mapped array, scipy.sparse matrix or data frame;
            or a torch Dataset or DataLoader of x, (x, y) or (x, y, mask).
        y: (N, …), covariates for the parts wrapped in `networks.Given`.
        mask: of x's shape, true where x is observed.
        validation: held-out data: x, (x, y) or (x, y, mask), a Dataset or a DataLoader. Its
            ELBO is recorded after each epoch, and the weights of the best epoch are kept.
        objective: any `pyro.infer.ELBO` but those of torch.jit; by default
            `objectives.TraceELBO()`.
        epochs: passes over the data.
        batch_size: B; the last batch may be smaller. A DataLoader has its own.
        learning_rate: the optimizer's, or a function of the fraction of training done, in [0, 1].
        optimizer: a name in `torch.optim`, a class, or a function (parameters, lr) → Optimizer.
        scheduler: a name in `torch.optim.lr_scheduler`, a class, or a function
            optimizer → scheduler; stepped after each epoch. A length that it asks for is epochs.
        max_grad_norm: largest global norm of the gradient of the mean loss; None does not clip.
        accumulate_batches: batches that share an update, by the mean over all their data; each
            batch counts as a step.
        ema_decay: decay in (0, 1) of a moving average of the weights, which is then what is
            evaluated and kept; None keeps the weights themselves.
        patience: epochs without a better validation ELBO before training stops; None never stops.
        precision: "float32", or "bf16": networks compute in bfloat16, densities, parameters and
            evaluation stay in float32.
        compile: "eager" runs Pyro's handlers each step; "graph" records the step once and
            replays it, the same numbers bit for bit; "inductor" compiles the record, equal to
            rounding, and torch keeps what it compiled for later runs (in TORCHINDUCTOR_CACHE_DIR);
            "auto" chooses by model size and planned steps, and keeps the engine of a run that is
            resumed. There "eager" and "graph" may replace each other, which the history
            notes; "inductor" cannot be left or taken up.
        device: where to train: the program is moved there, and stays; None leaves it.
        seed: of shuffling and all draws; None takes a fresh one and records it. The initial
            weights are the program's own.
        run_dir: a folder for checkpoints, history.csv and model.safetensors; None writes nothing.
        resume: go on from the newest complete checkpoint in run_dir, bit for bit. Other epochs,
            patience and learning_rate are allowed and noted in the history; other epochs not
            where they are the length of the scheduler.
        save_every: batches between checkpoints, each after the update that the last of them is
            part of; None saves at the end of epochs, every 30 s or so.
        allow_data_change: resume on other data than the run began with, for training or
            validation; the history notes it. With other validation data, none included, the best
            epoch is one of those that follow.
        diagnostics_every: steps between records of rate, distortion, active units, mutual
            information, KL per dimension and the gradient's signal to noise in `History.monitor`.
        callbacks: called as callback(program, record) after each epoch, outside the run's
            random stream and parameter store, so that nothing they do changes the run.
        progress: show a progress bar on stderr; None does where stderr is a terminal.

    Returns:
        History, one record an epoch, in nats per datum.

    Raises:
        DataError: the data do not fit the program; raised before anything changes.
        ConfigError: an argument or the program cannot work, or with run_dir a checkpoint cannot
            hold the state of one; likewise.
        DivergenceError: loss or gradient is not finite; the parameters are those of the last
            update before, and the message says where.
        CheckpointError: run_dir cannot be written, or its checkpoints cannot be read;
            `StateMismatchError` where the run began with other data, program or settings.
        KeyboardInterrupt: Ctrl-C, at the end of an update (of `accumulate_batches` batches); with a
            run_dir, after a checkpoint.
        WorkerLostError: of several processes (launched by torchrun), another one ended.

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
    check_watchers(callbacks, diagnostics_every)
    with ExitStack() as stack:
        group = stack.enter_context(processes(program, device))
        if group:
            plan = replace(plan, patience=patience, seed=group.broadcast_object(plan.seed))
        move(program, device)
        generators = stack.enter_context(own_generators(plan.seed, x, validation))
        with RandomStream(plan.seed):
            data = validated(program, x, y, mask, batch_size=plan.batch_size)
        with RandomStream(plan.seed):  # its order does not depend on what the training data are
            held_out = held_out_batches(program, validation, plan.batch_size, y)
        if group:
            group.check_same(facts_of(program, plan, objective, data))
            group.broadcast(tensors_of(program))
            data = Sharded(data, group, group.order(plan.seed))
        history = History(num_data=data.num_data, seed=plan.seed)
        settings_of = partial(loss_settings, program, objective, plan, data, history)
        losses = EagerLoss(
            program, objective, partial(settings_of, is_recorded=bool(diagnostics_every))
        )
        if group is None or group.is_first:
            warn_of_surprises(program, data)
        loop = Loop(
            program,
            TrainingStep(program, losses, made, **plan.of_steps, group=group),
            data,
            held_out,
            plan=plan,
            objective=objective,
            scheduler=schedule,
            stream=group.noise(plan.seed) if group else RandomStream(plan.seed),
            history=history,
            generators=generators,
        )
        keeper = None
        if folder:
            folder = SharedFolder(folder, group) if group else folder
            facts = facts_of(program, plan, objective, data, held_out)
            if group:  # which evaluates its own validation data
                facts["validation"] = group.broadcast_object(facts["validation"])
            facts["machine"]["processes"] = group.size if group else 1
            keeper = Checkpointer(stack.enter_context(folder), loop, facts, save_every=save_every)
        recorder = Monitor(program, losses, plan.seed)
        if diagnostics_every and (group is None or group.is_first):
            loop.after_step.append(partial(_record, recorder, diagnostics_every))
        _train(loop, losses, keeper, allow_data_change, callbacks, progress)
        if group is None or group.is_first:
            _sound_the_alarm(loop, recorder)
    return loop.history


def _train(
    loop: Loop,
    losses: EagerLoss,
    keeper: Checkpointer | None,
    allow_data_change: bool,
    callbacks: Sequence[Callable[[nn.Module, Epoch], Any]],
    progress: bool | None,
) -> None:
    """Run the loop with all that watches it."""
    engine = None
    if keeper:
        keeper.check()
        engine = keeper.resume(allow_data_change=allow_data_change)
    plan, size = loop.plan, sum(p.numel() for p in losses.parameters)
    if loop.data.preloaded:  # each step frees its gradients; where data are large, memory is dear
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
            loop.after_epoch.append(partial(_call, callback, keeper))
        if keeper:
            keeper.begin()
            loop.after_step.append(keeper.after_step)
            loop.after_epoch.insert(0, keeper.after_epoch)
        # not while gradients wait for an update: no checkpoint could be written
        loop.after_step.append(lambda loop: check() if loop.steps.is_between_updates else None)
        loop.after_epoch.append(lambda _, record: check())
        try:
            loop.run()
        except DivergenceError as error:
            if keeper:
                raise DivergenceError(keeper.diverged(str(error))) from None
            raise
        except (KeyboardInterrupt, SystemExit):
            if keeper and interrupts.is_at_boundary:
                keeper.save()
            raise
    if keeper:
        keeper.finish()
    else:
        loop.keep()


def _call(callback: Callable, keeper: Checkpointer | None, loop: Loop, record: Epoch) -> None:
    """Tell a callback of an epoch, which is not lost when the callback raises."""
    try:
        callback(loop.scored, record)
    except BaseException:
        if keeper and loop.steps.group is None:  # else all processes would have to save
            keeper.save()
        raise


def _record(recorder: Monitor, every: int, loop: Loop) -> None:
    if loop.steps.num_steps % every == 0:
        recorder.look_at(loop.data.preloaded or loop.first_batch)
        loop.history.monitor.append(recorder.record(loop.steps.num_steps))


def _sound_the_alarm(loop: Loop, recorder: Monitor) -> None:
    """Note which latent dimensions have collapsed, and warn of them after a real training."""
    rows = loop.data.preloaded or loop.first_batch
    if rows is None or len(rows.x) < 2:
        return
    recorder.look_at(rows)
    loop.history.collapse = recorder.collapse()
    if loop.history.collapse and loop.history.collapse.collapsed and loop.steps.num_steps >= 500:
        warn_caller(loop.history.collapse.message)


def _engine(choice: str, losses: EagerLoss, loop: Loop) -> Any:
    """The loss by the engine of a choice; noted in the history, with why another was refused."""
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
    graphs = TracedLoss(
        losses, is_compiled=name == INDUCTOR, full_size=full_size, on_refusal=refused
    )
    loop.after_epoch.append(graphs.doubt)
    return graphs
