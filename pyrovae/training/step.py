"""The training step: SVI over one optimizer, with a guard before each update.

    draw the traces and take the objective's gradient of the mean loss per datum,
    look whether loss and gradients are finite, clip, update, average

Several batches can share an update (`accumulate_batches`), and so can several processes:
gradients are then added up as sums over data and divided by the number of data.
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
from pyrovae.runtime.process_group import Group
from pyrovae.training.eager import Outcome


class TrainingStep:
    """What happens between a batch and the next.

    Args:
        program: whose parameters are trained.
        loss: Batch → Outcome, leaving gradients in the parameters' `.grad`.
        optimizer: over all trainable parameters.
        max_grad_norm: the largest global norm of the gradient of the mean loss, in nats per unit of
            the parameters; None does not clip.
        accumulate_batches: batches that share an update.
        ema_decay: decay of the moving average of the weights; None keeps none.
        group: the processes that share the update.

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
        group: Group | None = None,
    ):
        self.loss, self.optimizer, self.max_grad_norm = loss, optimizer, max_grad_norm
        self.accumulate_batches, self.group = accumulate_batches, group
        self.named = {n: p for n, p in program.named_parameters() if p.requires_grad}
        self.parameters = list(self.named.values())
        self.num_steps = 0
        self.held = _Held(self.parameters) if accumulate_batches > 1 or group else None
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
        """One step on a batch; its (2,) loss sums, in nats.

        Args:
            batch: of this process; it may be empty where another process has some.
            where: what an error calls the step.
        """
        self.where = f"{where}, rank {self.group.rank}" if self.group else where
        self.buffers.take_again()
        try:
            self.svi.step(batch)
        except Exception:
            self.buffers.put_back()
            raise
        finally:
            # an interrupt between backward and step must not feed the next step
            for parameter in self.parameters:
                parameter.grad = None
        self.num_steps += 1
        return self.outcome.sums

    def _loss_and_grads(self, model: Callable, guide: Callable, batch: Batch) -> Tensor:
        try:
            self.outcome = self._finite(batch)
        except DivergenceError as error:
            if self.group is None:
                raise
            # told in the all-reduce, so that all processes stop at the same update
            self.failure, self.outcome = self.failure or error, _nothing()
            self.buffers.put_back()
        if self.held:
            self.held.add(len(batch.x))
        return self.outcome.loss

    def _finite(self, batch: Batch) -> Outcome:
        """What a batch gives, looked at; nothing for the empty share of a small batch."""
        if not len(batch.x):
            return _nothing()
        try:
            outcome = self.loss(batch)
        except ValueError as error:
            if not str(error).startswith("Expected parameter"):
                raise
            # a density refuses its parameters; its message goes on with all their values
            first_line = str(error).partition(", but found")[0]
            raise DivergenceError(
                f"invalid density at {self.where}: {first_line}.\nParameters are as after step "
                f"{self.num_steps}: the update was not made."
            ) from None
        self._guard(outcome)
        return outcome

    def flush(self) -> None:
        """Make the update that the epoch's last batches still wait for, if they do."""
        if self.held and self.held.num_batches:
            self._update(is_due=True)

    @property
    def is_between_updates(self) -> bool:
        """Whether no gradients wait for an update: what a checkpoint needs."""
        return not (self.held and self.held.num_batches)

    def _update(self, *, is_due: bool = False) -> None:
        if self.held:
            if self.held.num_batches < self.accumulate_batches and not is_due:
                return
            self.held.give_mean(self.group, is_diverged=self.failure is not None)
            self._raise_divergence()
        if self.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm)
        self.optimizer.step()
        if self.averaged is not None:
            self.averaged.update_parameters(self.program)

    def _raise_divergence(self) -> None:
        """What is wrong with the share of any process, in all of them."""
        if self.failure:
            raise self.failure
        if self.group and self.group.diverged:
            raise DivergenceError(
                f"the loss or gradient of rank {self.group.diverged[0]} is not finite at "
                f"{self.where}; its own message says where.\nParameters are as before: the "
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
                row = int(is_bad.byte().argmax())
                row = self.group.rank + row * self.group.size if self.group else row
                return f"{name}, first bad row of the batch {row}"
        for name, parameter in self.named.items():
            if parameter.grad is not None and not torch.isfinite(parameter.grad).all():
                return f"gradient of {name}"
        return "the objective"


class _Update(PyroOptim):
    """One torch optimizer behind SVI, where Pyro's makes one a parameter."""

    def __init__(self, optimizer: torch.optim.Optimizer, update: Callable[[], None]):
        super().__init__(type(optimizer), {})
        self.update = update

    def __call__(self, params: Any, *args: Any, **kwargs: Any) -> None:
        self.update()


class _Held:
    """Gradients of several batches or processes, as sums over their data.

    A parameter that none of them gives a gradient has none, as after a single batch: to an
    optimizer with weight decay or momentum a gradient of zeros is another thing.
    """

    def __init__(self, parameters: list[nn.Parameter]):
        self.parameters = parameters
        self.sums: list[Tensor] = []
        self.is_given: list[float] = []
        self.count = self.num_batches = 0

    def add(self, size: int) -> None:
        """Take in the gradients of a batch's mean loss."""
        if not self.sums:
            self.sums = [torch.zeros_like(p) for p in self.parameters]
            self.is_given = [0.0] * len(self.sums)
        found = [i for i, p in enumerate(self.parameters) if size and p.grad is not None]
        for i in found:
            self.is_given[i] = 1.0
        if found:
            means = [self.parameters[i].grad for i in found]
            torch._foreach_add_([self.sums[i] for i in found], means, alpha=size)
        self.count, self.num_batches = self.count + size, self.num_batches + 1

    def give_mean(self, group: Group | None, *, is_diverged: bool = False) -> None:
        """Leave the gradients of the mean over all data in `.grad`, and begin again."""
        count = self.count
        if group:
            is_given = self.sums[0].new_tensor(self.is_given)
            count = group.all_reduce_gradients(
                [*self.sums, is_given], count, is_diverged=is_diverged
            )
            self.is_given = is_given.tolist()
        torch._foreach_div_(self.sums, max(count, 1))
        for parameter, gradient, given in zip(
            self.parameters, self.sums, self.is_given, strict=True
        ):
            parameter.grad = gradient if given else None
        self.sums, self.count, self.num_batches = [], 0, 0


def _nothing() -> Outcome:
    return Outcome(torch.zeros(()), torch.zeros(()), torch.zeros(2, dtype=torch.float64), None)


def averaged_copy(program: nn.Module, decay: float) -> AveragedModel:
    """The program with an exponential moving average of its weights.

    w̄ ← d w̄ + (1 − d) w with d = min(decay, (1 + n) / (10 + n)) after n updates, so that the
    random start is forgotten early.

    Example:
        >>> averaged_copy(nn.Linear(2, 1), 0.999).module
        Linear(in_features=2, out_features=1, bias=True)
    """

    def towards(averaged: list[Tensor], current: list[Tensor], num_averaged: Any) -> None:
        n = int(num_averaged)
        torch._foreach_lerp_(averaged, current, 1.0 - min(decay, (1 + n) / (10 + n)))

    return AveragedModel(program, multi_avg_fn=towards, use_buffers=False)
