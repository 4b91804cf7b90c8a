"""Loss and gradients of a batch, eagerly: Pyro runs model and guide as Python at each step.

    loss   the objective's surrogate, mean per datum, in nats
    terms  log p(x|z), log p(z), log q(z|x) at the same draws, which are reported, at β = 1

The gradients are left in the parameters' `.grad`. `traced` computes the same from a traced step.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from pyro.infer import ELBO
from torch import Tensor, nn

from pyrovae.core.terms import ElboTerms, draw_traces, terms_of
from pyrovae.data import Batch
from pyrovae.errors import ConfigError
from pyrovae.handlers import data_scale
from pyrovae.objectives import Objective
from pyrovae.runtime.buffers import BuffersBefore


class Outcome(NamedTuple):
    """Loss and terms of a batch; its gradients are in the parameters' `.grad`.

    Attributes:
        loss: (), nats per datum.
        gradient_sum: (), the sum of all gradient entries; not finite if one of them is not.
        sums: (2,) float64, Σ −log p(x|z) and Σ KL over the batch, in nats.
        terms: ELBO terms of the batch at the draws of the loss, without gradients.
    """

    loss: Tensor
    gradient_sum: Tensor
    sums: Tensor
    terms: ElboTerms


class Settings(NamedTuple):
    """Settings of the loss of a batch.

    Attributes:
        num_data: N; with global latents, a batch of B is scaled by N / B.
        has_globals: whether the program has latents outside the plate "data".
        is_bfloat16: whether networks compute in bfloat16; densities stay in float32.
    """

    num_data: int
    has_globals: bool = False
    is_bfloat16: bool = False

    def scaled(self, size: int) -> AbstractContextManager:
        """Return the handler that scales the terms of a batch of `size` by N / B.

        Without global latents the factor would cancel, and Pyro's RenyiELBO, which puts it
        inside its log-sum-exp, would no longer be a bound.
        """
        return data_scale(self.num_data / size) if self.has_globals else nullcontext()

    def divisor(self, size: int) -> int:
        """Return the number that turns the scaled loss of a batch into nats per datum."""
        return self.num_data if self.has_globals else size


class EagerLoss:
    """Loss of a batch, computed eagerly: model and guide run as Python at each step.

    `settings_of` is called once, with the first batch, and returns the `Settings` of the loss.
    """

    def __init__(
        self, program: nn.Module, objective: ELBO, settings_of: Callable[[Batch], Settings]
    ):
        self.program, self.objective, self.settings_of = program, objective, settings_of
        self.parameters, self.buffers = trainable(program), BuffersBefore(program)
        self.settings: Settings | None = None

    def prepare(self, batch: Batch) -> None:
        """Determine the settings of the loss from the first batch."""
        if self.settings is None:
            self.settings = self.settings_of(batch)

    def recheck_constants(self, *_: Any) -> None:
        """Do nothing: no graph holds a constant."""

    def __call__(self, batch: Batch) -> Outcome:
        self.prepare(batch)
        for parameter in self.parameters:
            parameter.grad = None  # an interrupt, a callback or the caller may have left one
        if not isinstance(self.objective, Objective):
            return self._of_pyro(batch)
        loss, terms = self.differentiable(batch)
        loss.backward()
        return self._outcome(loss.detach(), detached(terms))

    def differentiable(self, batch: Batch) -> tuple[Tensor, ElboTerms]:
        """Return loss and terms with gradients, for an objective of pyrovae."""
        size, settings = batch.num_data, self.settings
        with settings.scaled(size), self._precision():
            traces = self.objective.traces(self.program.model, self.program.guide, *batch)
            self.objective.check(traces)
            loss = self.objective.surrogate(traces, size) / settings.divisor(size)
        terms = terms_of(traces, size)
        if settings.is_bfloat16:
            check_float32(terms)
        return loss, terms

    def _of_pyro(self, batch: Batch) -> Outcome:
        model, guide, size = self.program.model, self.program.guide, batch.num_data
        with self.settings.scaled(size), self._precision():
            self.objective.loss_and_grads(model, guide, *batch)
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        torch._foreach_div_(gradients, self.settings.divisor(size))
        self.buffers.update()  # this batch has already updated the running statistics
        with torch.no_grad(), self._precision():
            terms = terms_of(draw_traces(model, guide, *batch), size)
        self.buffers.restore()
        if self.settings.is_bfloat16:
            check_float32(terms)
        # the ELBO, because Pyro's own value need not be finite (TraceTailAdaptive_ELBO: inf)
        return self._outcome(-terms.total_elbo.mean() / size, terms)

    def _precision(self) -> AbstractContextManager:
        return bfloat16_networks(self.program) if self.settings.is_bfloat16 else nullcontext()

    def _outcome(self, loss: Tensor, terms: ElboTerms) -> Outcome:
        total = sum_of_entries(p.grad for p in self.parameters)
        return Outcome(loss, total, loss_sums(terms, self.settings.num_data), terms)


def trainable(module: nn.Module) -> list[nn.Parameter]:
    """Return the parameters to train, each once."""
    return [p for p in module.parameters() if p.requires_grad]


def tensors_of(module: nn.Module) -> list[Tensor]:
    """Return parameters and buffers, each once."""
    return [*module.parameters(), *module.buffers()]


def loss_sums(terms: ElboTerms, num_data: float) -> Tensor:
    """Return Σ −log p(x|z) and Σ KL of a batch, (2,) float64, averaged over draws, no gradients.

    A batch of B of N data carries B / N of the KL of global latents: nothing for infinite N.
    """
    share = terms.log_prior.shape[-1] / num_data
    global_kl = (terms.global_log_guide - terms.global_log_prior) * share
    sums = torch.stack([-terms.log_likelihood.sum(-1), terms.kl.sum(-1) + global_kl])
    return sums.detach().mean(-1).double()


def sum_of_entries(gradients: Iterable[Tensor | None]) -> Tensor:
    """Return the sum of all entries, (): the cheapest number that shows whether all are finite.

    The largest absolute entry costs twenty times as much (torch 2.13, CPU).

    Example:
        >>> sum_of_entries([torch.ones(2), None, torch.tensor([torch.nan])])
        tensor(nan)
    """
    found = [g.detach().sum() for g in gradients if g is not None]
    return torch.stack(found).sum() if found else torch.zeros(())


def detached(terms: ElboTerms) -> ElboTerms:
    return ElboTerms(*(t.detach() for t in terms[:5]), {})


@contextmanager
def bfloat16_networks(program: nn.Module) -> Iterator[None]:
    """Autocast to bfloat16 inside the calls of the program's parts, and nowhere else.

    Log-densities are computed outside these calls, and heads convert features to float32 before
    they build a density, so that only networks compute with 8 bits of mantissa.

    Example:
        >>> program = nn.Sequential(nn.Linear(2, 2))
        >>> with bfloat16_networks(program):
        ...     program[0](torch.ones(1, 2)).dtype
        torch.bfloat16
    """
    casts: list[torch.autocast] = []
    device = next((p.device.type for p in program.parameters()), "cpu")

    def enter(*_: Any) -> None:
        casts.append(torch.autocast(device, torch.bfloat16, cache_enabled=False))
        casts[-1].__enter__()

    def leave(*_: Any) -> None:
        casts.pop().__exit__(None, None, None)

    handles = []
    for part in program.children():
        handles.append(part.register_forward_pre_hook(enter))
        handles.append(part.register_forward_hook(leave, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def check_float32(terms: ElboTerms) -> None:
    """Raise ConfigError if a density was computed in 16 bits."""
    for name in ("log_likelihood", "log_prior", "log_guide"):
        dtype = getattr(terms, name).dtype
        if dtype in (torch.bfloat16, torch.float16):
            raise ConfigError(
                f"{name} is {dtype}, but with 3 digits a log-density of hundreds of nats is "
                "noise.\nConvert the features in your part: features = features.float(), or train "
                'with precision="float32".'
            )
