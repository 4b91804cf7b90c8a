"""The training step: SVI over one optimizer, with a guard before each update.

    zero the gradients, draw the traces, take the objective's gradient of the mean loss per
    datum, look whether loss and gradients are finite, update

Beside the step it keeps the two terms of the β = 1 ELBO, whatever the objective.
"""

import copy
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pyro
import torch
from pyro.infer import ELBO, SVI, RenyiELBO, ReweightedWakeSleep
from pyro.optim import PyroOptim
from torch import Tensor, nn

from pyrovae.admission import trace_once
from pyrovae.batches import ArrayBatches, Batch, LoaderBatches
from pyrovae.errors import ConfigError, DivergenceError
from pyrovae.handlers import data_scale
from pyrovae.objectives import Objective, TraceELBO
from pyrovae.terms import ElboTerms, draw_traces, is_local, terms_of


class Steps:
    """The training step: SVI over one optimizer, with a guard before each update."""

    def __init__(self, program: nn.Module, objective: ELBO | None, learning_rate: float):
        objective = TraceELBO() if objective is None else objective
        if not isinstance(objective, ELBO):
            is_class = isinstance(objective, type)
            what = (
                f"the class {objective.__name__}" if is_class else f"a {type(objective).__name__}"
            )
            raise ConfigError(
                f"objective is {what}, but it must be an object, a pyro.infer.ELBO.\n"
                "Write for example objective=objectives.BetaELBO(0.5); None is the ELBO itself."
            )
        self.program = program
        # a copy, because Pyro's objectives remember the plate nesting of the first model they see
        self.objective = copy.copy(objective)
        self.parameters = {n: p for n, p in program.named_parameters() if p.requires_grad}
        if not self.parameters:
            raise ConfigError(
                "the program has no trainable parameter, so there is nothing to fit.\n"
                "Set requires_grad_(True) on the parts to train."
            )
        self.size = sum(p.numel() for p in self.parameters.values())
        self.learning_rate = learning_rate
        self.optimizer = torch.optim.Adam(self.parameters.values(), learning_rate, fused=True)
        self.svi = SVI(
            program.model,
            program.guide,
            OneOptimizer(self.optimizer, self._guard),
            loss=self.objective.loss,
            loss_and_grads=self._loss_and_grads,
        )
        self.num_steps = 0
        self.has_globals: bool | None = None

    def epoch(
        self, number: int, data: ArrayBatches | LoaderBatches, *, num_epochs: int
    ) -> tuple[float, float, float]:
        """Train on each batch once; (elbo, reconstruction, kl) in nats per datum."""
        sums = torch.zeros(2, dtype=torch.float64)
        for index, batch in enumerate(data.epoch(shuffle=True)):
            self.objective.progress = (number - 1 + index / data.num_batches) / num_epochs
            self.where = f"step {self.num_steps + 1} (epoch {number}, batch {index + 1})"
            try:
                with pyro.validation_enabled(self.num_steps == 0), self._scaled(data, batch):
                    self.svi.step(*batch)
            except ValueError as error:
                if not str(error).startswith("Expected parameter"):
                    raise
                # a density refuses its parameters; its message goes on with all their values
                first_line = str(error).partition(", but found")[0]
                raise DivergenceError(f"invalid density at {self.where}: {first_line}.") from None
            finally:
                # an interrupt between backward and step must not feed the next step
                self.optimizer.zero_grad()
            self.num_steps += 1
            sums += loss_sums(self.terms, data.num_data)
        return per_datum(sums, data.num_data)

    def _scaled(self, data: ArrayBatches | LoaderBatches, batch: Batch) -> AbstractContextManager:
        """Weigh the batch as N / B of itself beside global latents; say what to divide by.

        Without global latents the factor would cancel, and Pyro's RenyiELBO, which puts it
        inside its log-sum-exp, would be no bound any more.
        """
        size = len(batch.x)
        if self.has_globals is None:
            self.has_globals = self._looks_global(batch)
        self.divisor = data.num_data if self.has_globals else size
        return data_scale(data.num_data / size) if self.has_globals else nullcontext()

    def _looks_global(self, batch: Batch) -> bool:
        first = (None if t is None else t[:1] for t in batch)
        _, guide_trace = trace_once(self.program, *first)
        sites = [site for _, site in guide_trace.iter_stochastic_nodes()]
        has_globals = not all(map(is_local, sites))
        if has_globals and isinstance(self.objective, RenyiELBO | ReweightedWakeSleep):
            raise ConfigError(
                f"{type(self.objective).__name__} puts the minibatch scale inside its log-sum-exp, "
                "so with latents outside the plate 'data' it is no bound.\n"
                "Use objectives.TraceELBO() or objectives.BetaELBO(beta)."
            )
        return has_globals

    def _loss_and_grads(self, model: Callable, guide: Callable, *batch: Tensor | None) -> Tensor:
        size = len(batch[0])
        self.optimizer.zero_grad()  # whatever a callback or the caller left there
        if isinstance(self.objective, Objective):
            traces = self.objective.traces(model, guide, *batch)
            self.objective.check(traces)
            self.loss = self.objective.surrogate(traces, size) / self.divisor
            self.loss.backward()
            self.terms = terms_of(traces, size)
        else:
            self.objective.loss_and_grads(model, guide, *batch)
            torch._foreach_div_(self._gradients(), self.divisor)
            with torch.no_grad():
                self.terms = terms_of(draw_traces(model, guide, *batch), size)
            # the ELBO, because Pyro's own value may be no number (TraceTailAdaptive_ELBO: inf)
            self.loss = -self.terms.total_elbo.mean() / size
        return self.loss.detach()

    def _gradients(self) -> list[Tensor]:
        return [p.grad for p in self.parameters.values() if p.grad is not None]

    def _guard(self) -> None:
        largest = torch.nn.utils.get_total_norm(self._gradients(), norm_type=math.inf)
        if torch.isfinite(self.loss) and torch.isfinite(largest):
            return
        raise DivergenceError(
            f"non-finite {'gradient' if torch.isfinite(self.loss) else 'loss'} at {self.where}: "
            f"{self._culprit()}.\nParameters are as after step {self.num_steps}: the update was "
            f"not made. learning_rate={self.learning_rate:g}; try a smaller one, or rescale x."
        )

    def _culprit(self) -> str:
        for name in ("log_likelihood", "log_prior", "log_guide"):
            is_bad = ~torch.isfinite(getattr(self.terms, name)).all(0)
            if is_bad.any():
                return f"{name}, first bad row of the batch {int(is_bad.byte().argmax())}"
        for name, parameter in self.parameters.items():
            if parameter.grad is not None and not torch.isfinite(parameter.grad).all():
                return f"gradient of {name}"
        return "the objective"


class OneOptimizer(PyroOptim):
    """One torch optimizer behind SVI, where Pyro's makes one a parameter."""

    def __init__(self, optimizer: torch.optim.Optimizer, guard: Callable[[], None]):
        super().__init__(type(optimizer), {})
        self.optimizer, self.guard = optimizer, guard

    def __call__(self, params: Any, *args: Any, **kwargs: Any) -> None:
        self.guard()
        self.optimizer.step()


def loss_sums(terms: ElboTerms, num_data: int) -> Tensor:
    """(2,) float64: the batch's Σ −log p(x|z) and Σ KL, means over draws; no gradients.

    A batch of B of N data carries B / N of the KL of global latents.
    """
    share = terms.log_prior.shape[-1] / num_data
    global_kl = (terms.global_log_guide - terms.global_log_prior) * share
    sums = torch.stack([-terms.log_likelihood.sum(-1), terms.kl.sum(-1) + global_kl])
    return sums.detach().mean(-1).double().cpu()


def per_datum(sums: Tensor, num_data: int) -> tuple[float, float, float]:
    """(elbo, reconstruction, kl) in nats per datum, from summed loss terms."""
    reconstruction, kl = (sums / num_data).tolist()
    return -(reconstruction + kl), reconstruction, kl
