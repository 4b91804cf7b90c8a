"""The loop over epochs and batches, whose whole state can be saved and restored.

Between two steps, a run consists of weights, optimizer, scheduler, averages, best weights so far,
the random stream now and at the epoch's start, the position in the epoch, the epoch's sums, the
last losses and the history. `Loop.state` holds all of that; a loop that restores it continues
bit for bit. A resumed epoch restores the stream of its start, so that the same order of data is
drawn again, skips the batches already used, and then restores the current stream.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import pyro
import torch
from pyro.infer import ELBO
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from pyrovae.checks import warn_caller
from pyrovae.core.terms import draw_traces, terms_of
from pyrovae.data import Batch, Source
from pyrovae.handlers import evaluation, own_store
from pyrovae.history import Epoch, History
from pyrovae.runtime.modes import module_mode
from pyrovae.runtime.random_stream import RandomStream
from pyrovae.runtime.run_folder import restore_stream
from pyrovae.runtime.state_tree import check_like
from pyrovae.runtime.threads import threads_for
from pyrovae.runtime.turns import TURN
from pyrovae.training.eager import loss_sums
from pyrovae.training.plan import Plan
from pyrovae.training.step import TrainingStep

POSITION = ("epoch", "index", "epoch_stream", "epoch_generators")  # attributes of `Loop`


class Loop:
    """Epochs of a run: steps on the training data, validation, and a record of each epoch.

    The states of DataLoaders' generators are part of the state of the run.

    Attributes:
        after_step: functions called with the loop after each step.
        after_epoch: functions called with the loop and the record after each epoch.
    """

    def __init__(
        self,
        steps: TrainingStep,
        data: Source,
        held_out: Source | None,
        plan: Plan,
        objective: ELBO,
        scheduler: Any,
        history: History,
        generators: Sequence[torch.Generator],
    ):
        self.program, self.steps, self.data, self.held_out = steps.program, steps, data, held_out
        self.plan, self.objective, self.scheduler = plan, objective, scheduler
        self.history, self.generators, self.group = history, generators, steps.group
        self.stream, self.order = self.group.streams(plan.seed)
        self.after_step: list[Callable[[Loop], None]] = []
        self.after_epoch: list[Callable[[Loop, Epoch], None]] = []
        self.best = None if held_out is None else Best()
        self.spikes = Spikes()
        self.first_batch: Any = None  # to inspect data that are not in memory
        self.epoch, self.index = 1, 0  # of the next batch
        self.is_ended = False  # by a callback
        self.epoch_stream, self.epoch_generators = self.order.state, self._generator_states()
        self.sums = torch.zeros(2, dtype=torch.float64)
        self.start = time.perf_counter()

    @property
    def scored(self) -> nn.Module:
        """The program that is evaluated and kept: the averaged one if there is an average."""
        return self.program if self.steps.averaged is None else self.steps.averaged.module

    @property
    def num_parameters(self) -> int:
        """The number of trainable parameters."""
        return sum(p.numel() for p in self.steps.parameters)

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.start

    def run(self) -> None:
        """Train to the end of the plan, until patience runs out, or until a callback ends it.

        Train mode is for steps only: callbacks, and the caller afterwards, find eval mode.
        """
        for program in (self.program, self.scored):
            program.eval()
        while self.epoch <= self.plan.epochs and not (self.is_exhausted or self.is_ended):
            batches = self._batches()
            while self._train(batches):
                TURN.give()
            self._finish_epoch()
        is_early = self.is_exhausted or self.is_ended
        self.history.stopped_early = is_early and len(self.history) < self.plan.epochs

    def load_kept_weights(self) -> None:
        """Load the kept weights into the program: the best epoch's, or their average."""
        if self.best and self.best.weights:
            self.scored.load_state_dict(self.best.weights)
        if self.scored is not self.program:
            self.program.load_state_dict(self.scored.state_dict())

    def forget_best(self) -> None:
        """Restart the search for the best epoch: ELBOs of different data are not comparable."""
        self.best = self.best and Best()
        self.history.best_epoch = self.epoch - 1

    @property
    def is_exhausted(self) -> bool:
        patience = self.plan.patience
        return bool(self.best and patience and self.best.waited >= patience)

    def _train(self, batches: Iterator[Any]) -> bool:
        """Train until the epoch ends or another thread waits; return whether batches may be left.

        The other thread then finds the weights of a whole step, and the process as it was.
        """
        with module_mode(self.program, training=True), self.stream, own_store(), self._threads():
            for batch in batches:
                self._step(batch)
                if TURN.is_awaited:
                    return True
            self.steps.flush()
        return False

    def _threads(self) -> AbstractContextManager:
        return threads_for(self.num_parameters * self.data.batch_size)

    def _step(self, batch: Any) -> None:
        """Take one step, and call the hooks that follow it."""
        self.first_batch = self.first_batch or batch
        self._set_progress()
        where = f"step {self.steps.num_steps + 1} (epoch {self.epoch}, batch {self.index + 1})"
        with pyro.validation_enabled(self.steps.num_steps == 0):
            sums = self.steps.take(batch, where).cpu()
        self.sums += sums
        self.index += 1
        self.spikes.update(sums, batch.num_data, where)
        for hook in self.after_step:
            hook(self)

    def _batches(self) -> Iterator[Any]:
        """Yield this process's rows of the epoch's remaining batches; some may be empty."""
        with self.order:
            now = self.order.state, self._generator_states()
            if self.index:
                self._jump(self.epoch_stream, self.epoch_generators)
            else:
                self.epoch_stream, self.epoch_generators = now
            batches = self.data.epoch(shuffle=True, skip=self.index, share=self.group.rows)
            if self.index:  # it has drawn the same order again
                self._jump(*now)
        while True:
            with self.order:
                batch = next(batches, None)
            if batch is None:
                return
            yield batch

    def _generator_states(self) -> list[Tensor]:
        return [generator.get_state() for generator in self.generators]

    def _jump(self, order: tuple, generators: list[Tensor]) -> None:
        self.order.state = order
        self._set_generators(generators)

    def _set_generators(self, generators: list[Tensor]) -> None:
        for generator, state in zip(self.generators, generators, strict=True):
            generator.set_state(state)

    def _set_progress(self) -> None:
        done = self.epoch - 1 + self.index / (self.data.num_batches or math.inf)
        progress = done / self.plan.epochs
        self.objective.progress = progress
        if callable(self.plan.learning_rate):
            for group in self.steps.optimizer.param_groups:
                group["lr"] = self.plan.rate(progress)

    def _finish_epoch(self) -> None:
        rate = self.steps.optimizer.param_groups[0]["lr"]
        self.group.broadcast([*self.program.buffers(), *self.scored.buffers()])
        trained = per_datum(self.group.all_reduce(self.sums), self.data.num_data)
        validated = (None,) * 3 if self.held_out is None else self._validate()
        record = Epoch(self.epoch, *trained, *validated, self.seconds, float(rate))
        self.history.epochs.append(record)
        self.history.best_epoch = self.best.update(record, self.scored) if self.best else self.epoch
        if self.scheduler is not None:
            is_plateau = isinstance(self.scheduler, ReduceLROnPlateau)
            elbo = record.elbo if record.validation_elbo is None else record.validation_elbo
            self.scheduler.step(*([-elbo] if is_plateau else []))
        self.history.num_data = self.data.num_data  # known for a stream once it has ended
        self.epoch, self.index = self.epoch + 1, 0
        self.epoch_stream, self.epoch_generators = self.order.state, self._generator_states()
        self.sums = torch.zeros(2, dtype=torch.float64)
        for hook in self.after_epoch:
            hook(self, record)
        self.is_ended = self.group.broadcast_object(self.is_ended)  # callbacks run in the first

    def _validate(self) -> tuple[float, float, float]:
        """Evaluate the held-out data in one process, so that all have the same score."""
        score = None
        if self.group.is_first:
            with self._threads():
                score = evaluate(self.scored, self.held_out, self.plan.seed)
        score, generators = self.group.broadcast_object((score, self._generator_states()))
        self._set_generators(generators)
        return score

    def state(self) -> dict[str, Any]:
        """Return everything that the rest of the run depends on, for `runtime.state_tree.pack`."""
        first_batch = None if self.data.preloaded else self.first_batch
        return {
            **{n: None if part is None else part.state_dict() for n, part in self._parts.items()},
            "best": dict(vars(self.best)) if self.best else None,
            "ranks": self.group.all_gather_object(self._own),
            "order": self.order.state,
            "generators": self._generator_states(),
            **{name: getattr(self, name) for name in POSITION},
            "is_ended": self.is_ended,
            "num_steps": self.steps.num_steps,
            "sizes": [(source.num_data, source.num_batches) for source in self._sources],
            "history": self.history.state(),
            "first_batch": first_batch and tuple(first_batch),
            "seconds": self.seconds,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a state.

        Raises:
            StateMismatchError: it belongs to another program or plan; nothing changes then.
        """
        now = self.state()
        for part in ("program", "averaged"):
            check_like(state[part], now[part], part)
        check_like(state["optimizer"]["param_groups"], now["optimizer"]["param_groups"])
        restore_stream(self.order, state["order"])
        own = self._own_of(state["ranks"])
        restore_stream(self.stream, own["stream"])
        for name, part in self._parts.items():
            if part is not None:
                part.load_state_dict(state[name])
        # torch checks it to warn that a scheduler was stepped before the optimizer
        self.steps.optimizer._opt_called = state["num_steps"] > 0
        if self.best and state["best"]:
            vars(self.best).update(state["best"])
        self._set_generators(state["generators"])
        vars(self).update({name: state[name] for name in POSITION})
        self.is_ended = state.get("is_ended", False)
        self.steps.num_steps, self.sums = state["num_steps"], own["sums"].clone()
        self.history.load(state["history"])
        for source, sizes in zip(self._sources, state["sizes"], strict=False):
            for name, size in zip(("num_data", "num_batches"), sizes, strict=True):
                if getattr(source, name) is None:  # of a stream, before its first epoch ends
                    setattr(source, name, size)
        vars(self.spikes).update(own["spikes"])
        if state["first_batch"]:
            device = next(self.program.parameters()).device
            self.first_batch = Batch(*state["first_batch"]).map(lambda t: t.to(device))
        self.start = time.perf_counter() - state["seconds"]

    @property
    def _parts(self) -> dict[str, Any]:
        """The objects with a `state_dict`, or None, by name."""
        steps = self.steps
        parts = {"program": self.program, "optimizer": steps.optimizer}
        return parts | {"scheduler": self.scheduler, "averaged": steps.averaged}

    @property
    def _sources(self) -> list[Source]:
        return [self.data] if self.held_out is None else [self.data, self.held_out]

    @property
    def _own(self) -> dict[str, Any]:
        """The part of the state that differs between processes."""
        spikes = dict(vars(self.spikes))
        return {"stream": self.stream.state, "sums": self.sums, "spikes": spikes}

    def _own_of(self, ranks: list[dict[str, Any]]) -> dict[str, Any]:
        """Return this process's part of a state that more or fewer processes may have saved."""
        rank = self.group.rank
        if rank >= len(ranks):
            return self._own
        left = ranks[self.group.size :] if rank == 0 else []
        sums = torch.stack([part["sums"] for part in (ranks[rank], *left)]).sum(0)
        return ranks[rank] | {"sums": sums}


class Best:
    """Weights of the epoch with the highest validation ELBO, and the number of epochs since.

    NaN and −∞ never count as highest; until another value occurs, the last epoch's weights are
    kept. The attributes are the state.
    """

    def __init__(self) -> None:
        self.elbo, self.epoch, self.waited = -math.inf, 0, 0
        self.weights: dict[str, Tensor] = {}

    def update(self, record: Epoch, program: nn.Module) -> int:
        """Add an epoch, and return the number of the epoch whose weights would be kept."""
        if record.validation_elbo > self.elbo:
            self.elbo, self.epoch, self.waited = record.validation_elbo, record.epoch, 0
            self.weights = {n: t.clone() for n, t in program.state_dict().items()}
        else:
            self.waited += 1
        return self.epoch or record.epoch


class Spikes:
    """Warning, given once, when a batch's loss jumps far out of the range of the last 50.

    The loss is that of the β = 1 ELBO, which changes with the weights only, so that schedules
    of β cannot trigger it. The attributes are the state.
    """

    def __init__(self) -> None:
        self.recent: list[float] = []
        self.has_warned = False

    def update(self, sums: Tensor, size: int, where: str) -> None:
        """Add a batch's (2,) loss sums, and warn if they jumped."""
        if not size:
            return
        loss = float(sums.sum()) / size
        if len(self.recent) >= 20 and not self.has_warned:
            low, high = min(self.recent), max(self.recent)
            if loss - high > 20 * (high - low) + abs(high):
                self.has_warned = True
                warn_caller(
                    f"the loss jumped to {loss:.4g} nats per datum at {where}, from at most "
                    f"{high:.4g} in the previous {len(self.recent)} batches.\nTry a smaller "
                    "learning rate or max_grad_norm=100, and look for an outlier in x."
                )
        self.recent = [*self.recent[-49:], loss]


def evaluate(program: nn.Module, data: Any, seed: int) -> tuple[float, float, float]:
    """Estimate (elbo, reconstruction, kl) of held-out data, in nats per datum, in eval mode.

        ELBO = mean_i E_q(z|x_i) [log p(x_i|z)] − KL(q(z|x_i) ‖ p(z)),    one draw per datum

    Latents outside the plate "data" are drawn from their guide, and their KL is left out: it
    belongs to the training data. The remainder bounds the log-density of a new datum under
    their posterior, and does not depend on the number of held-out data.
    """
    sums = torch.zeros(2, dtype=torch.float64)
    with RandomStream(seed), evaluation(program), pyro.validation_enabled(False):
        for batch in data.epoch(shuffle=False):
            traces = draw_traces(program.model, program.guide, *batch)
            sums += loss_sums(terms_of(traces, batch.num_data), math.inf).cpu()
    return per_datum(sums, data.num_data)


def per_datum(sums: Tensor, num_data: int) -> tuple[float, float, float]:
    """Return (elbo, reconstruction, kl) in nats per datum, from summed loss terms."""
    reconstruction, kl = (sums / num_data).tolist()
    return -(reconstruction + kl), reconstruction, kl
