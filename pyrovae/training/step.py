"""The training step: SVI over one optimizer, with a guard before each update.

    draw the traces, differentiate the objective's mean loss per datum,
    check that loss and gradients are finite, clip, update, average

`SVI.step` runs it: SVI calls `_loss_and_grads` for the first two, then `_Update` for the rest.
Several batches can share an update (`accumulate_batches`), and so can several processes:
gradients are then accumulated as sums over data and divided by the number of data.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from pyro.infer import SVI
from pyro.optim import PyroOptim
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from pyrovae.data import Batch
from pyrovae.errors import DivergenceError
from pyrovae.runtime.buffers import BuffersBefore
from pyrovae.runtime.process_group import Alone
from pyrovae.training.eager import Outcome
from pyrovae.training.single_row import single_row_error


class TrainingStep:
    """One step of stochastic gradient descent on a batch.

    Args:
        loss: Batch → Outcome, leaving gradients in the parameters' `.grad`.
        optimizer: of all trainable parameters.
        group: the processes that share the update; the other settings are as for `fit`.

    Attributes:
        num_steps: batches taken so far.
        averaged: the program with the averaged weights; None without an average.
    """

    def __init__(
        self,
        program: nn.Module,
        loss: Callable[[Batch], Outcome],
        optimizer: torch.optim.Optimizer,
        *,
        max_grad_norm: float | None = None,
        accumulate_batches: int = 1,
        ema_decay: float | None = None,
        group: Alone | None = None,
    ):
        self.loss, self.optimizer, self.max_grad_norm = loss, optimizer, max_grad_norm
        self.accumulate_batches, self.group = accumulate_batches, group or Alone()
        self.named = {n: p for n, p in program.named_parameters() if p.requires_grad}
        self.parameters = list(self.named.values())
        self.num_steps = 0
        is_shared = accumulate_batches > 1 or self.group.size > 1
        self.accumulated = _AccumulatedGradients(self.parameters) if is_shared else None
        self.averaged = None if ema_decay is None else averaged_copy(program, ema_decay)
        self.program, self.buffers = program, BuffersBefore(program)
        self.svi = SVI(
            program.model,
            program.guide,
            _Update(optimizer, self._update),
            loss=self._loss_and_grads,
            loss_and_grads=self._loss_and_grads,
        )
        self.outcome: Outcome | None = None
        self.failure: DivergenceError | None = None
        self.where = ""

    def take(self, batch: Batch, where: str) -> Tensor:
        """Take one step on this process's share of a batch; return its (2,) loss sums, in nats.

        The share may be empty if another process has data; `where` is for error messages.
        """
        self.where = f"{where}, rank {self.group.rank}" if self.group.size > 1 else where
        self.buffers.update()
        try:
            self.svi.step(batch)
        except Exception:
            self.buffers.restore()
            raise
        finally:
            # an interrupt between backward and step must not leak gradients into the next step
            for parameter in self.parameters:
                parameter.grad = None
        self.num_steps += 1
        return self.outcome.sums

    def _loss_and_grads(self, model: Callable, guide: Callable, batch: Batch) -> Tensor:
        try:
            self.outcome = self._finite(batch)
        except DivergenceError as error:
            if self.group.size == 1:
                raise
            # signaled in the all-reduce, so that all processes stop at the same update
            self.failure, self.outcome = self.failure or error, _empty_outcome()
            self.buffers.restore()
        if self.accumulated:
            self.accumulated.add(batch.num_data)
        return self.outcome.loss

    def _finite(self, batch: Batch) -> Outcome:
        """Return a batch's checked outcome, or zeros for the empty share of a small batch."""
        if not batch.num_data:
            return _empty_outcome()
        try:
            outcome = self.loss(batch)
        except ValueError as error:
            if not str(error).startswith("Expected parameter"):
                if batch.num_data > 1:
                    raise
                then = f"Parameters are as after step {self.num_steps}. "
                raise single_row_error(self.program, error, then=then) from error
            # a distribution rejects its parameters; the rest of its message lists all values
            first_line = str(error).partition(", but found")[0]
            raise DivergenceError(
                f"invalid density at {self.where}: {first_line}.\nParameters are as after step "
                f"{self.num_steps}: the update was not made."
            ) from None
        self._guard(outcome)
        return outcome

    def flush(self) -> None:
        """Update with the gradients that the epoch's last batches have accumulated, if any."""
        if self.accumulated and self.accumulated.num_batches:
            self._update(is_due=True)

    @property
    def is_between_updates(self) -> bool:
        """Whether there are no accumulated gradients, which a checkpoint cannot hold."""
        return not (self.accumulated and self.accumulated.num_batches)

    def _update(self, *, is_due: bool = False) -> None:
        if self.accumulated:
            if self.accumulated.num_batches < self.accumulate_batches and not is_due:
                return
            self.accumulated.average(self.group, is_diverged=self.failure is not None)
            self._raise_divergence()
        if self.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm)
        self.optimizer.step()
        if self.averaged is not None:
            self.averaged.update_parameters(self.program)

    def _raise_divergence(self) -> None:
        """Raise in every process if the share of any of them has diverged."""
        if self.failure:
            raise self.failure
        if self.group.diverged:
            raise DivergenceError(
                f"the loss or gradient of rank {self.group.diverged[0]} is not finite at "
                f"{self.where}; that rank reports where.\nParameters are unchanged: the "
                "update was not made."
            )

    def _guard(self, outcome: Outcome) -> None:
        if math.isfinite(float(outcome.loss + outcome.gradient_sum)):
            return
        is_loss = not math.isfinite(float(outcome.loss))
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        if not is_loss and all(torch.isfinite(g).all() for g in gradients):
            return  # the sum overflowed
        rates = ", ".join(f"{group['lr']:g}" for group in self.optimizer.param_groups)
        raise DivergenceError(
            f"non-finite {'loss' if is_loss else 'gradient'} at {self.where}: "
            f"{self._culprit(outcome)}.\nParameters are as after step {self.num_steps}: the update "
            f"was not made. learning_rate={rates}; try a smaller one, or rescale x."
        )

    def _culprit(self, outcome: Outcome) -> str:
        for name in ("log_likelihood", "log_prior", "log_guide"):
            is_bad = ~torch.isfinite(getattr(outcome.terms, name)).all(0)
            if is_bad.any():
                row = self.group.rank + int(is_bad.byte().argmax()) * self.group.size
                return f"{name}, first bad row of the batch {row}"
        for name, parameter in self.named.items():
            if parameter.grad is not None and not torch.isfinite(parameter.grad).all():
                return f"gradient of {name}"
        return "the objective"


class _Update(PyroOptim):
    """Adapter of one torch optimizer for SVI; Pyro's builds one per parameter."""

    def __init__(self, optimizer: torch.optim.Optimizer, update: Callable[[], None]):
        super().__init__(type(optimizer), {})
        self.update = update

    def __call__(self, params: Any, *args: Any, **kwargs: Any) -> None:
        self.update()


class _AccumulatedGradients:
    """Gradients of several batches or processes, as sums over their data.

    A parameter that has no gradient in any of them keeps none, as after a single batch: for an
    optimizer with weight decay or momentum, a gradient of zeros is not the same.
    """

    def __init__(self, parameters: list[nn.Parameter]):
        self.parameters = parameters
        self.sums: list[Tensor] = []
        self.has_gradient: list[float] = []
        self.count = self.num_batches = 0

    def add(self, size: int) -> None:
        """Add the gradients of a batch's mean loss."""
        if not self.sums:
            self.sums = [torch.zeros_like(p) for p in self.parameters]
            self.has_gradient = [0.0] * len(self.sums)
        found = [i for i, p in enumerate(self.parameters) if size and p.grad is not None]
        for i in found:
            self.has_gradient[i] = 1.0
        if found:
            means = [self.parameters[i].grad for i in found]
            torch._foreach_add_([self.sums[i] for i in found], means, alpha=size)
        self.count, self.num_batches = self.count + size, self.num_batches + 1

    def average(self, group: Alone, *, is_diverged: bool = False) -> None:
        """Store the gradients of the mean over all data in `.grad`, and reset the sums."""
        has_gradient = self.sums[0].new_tensor(self.has_gradient)
        given = [*self.sums, has_gradient]
        count = group.all_reduce_gradients(given, self.count, is_diverged=is_diverged)
        torch._foreach_div_(self.sums, max(count, 1))
        found = zip(self.parameters, self.sums, has_gradient.tolist(), strict=True)
        for parameter, gradient, is_given in found:
            parameter.grad = gradient if is_given else None
        self.sums, self.count, self.num_batches = [], 0, 0


def _empty_outcome() -> Outcome:
    return Outcome(torch.zeros(()), torch.zeros(()), torch.zeros(2, dtype=torch.float64), None)


def averaged_copy(program: nn.Module, decay: float) -> AveragedModel:
    """Return a copy of the program with an exponential moving average of its weights.

    w̄ ← d w̄ + (1 − d) w with d = min(decay, (1 + n) / (10 + n)) after n updates, so that the
    random initial weights are forgotten early.

    Example:
        >>> averaged_copy(nn.Linear(2, 1), 0.999).module
        Linear(in_features=2, out_features=1, bias=True)
    """

    def towards(averaged: list[Tensor], current: list[Tensor], num_averaged: Any) -> None:
        n = int(num_averaged)
        torch._foreach_lerp_(averaged, current, 1.0 - min(decay, (1 + n) / (10 + n)))

    return AveragedModel(program, multi_avg_fn=towards, use_buffers=False)
