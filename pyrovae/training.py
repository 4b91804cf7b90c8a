"""Training: `fit` drives `pyro.infer.SVI` over minibatches of any program.

    θ, φ ← Adam on  (1/B) Σ_{i in batch} l_i,    l_i = −ELBO_i in nats

One optimizer holds all parameters. A step is: zero the gradients, draw the traces, take
the objective's gradient, look whether loss and gradients are finite, update. What is
reported is always the β = 1 ELBO with its two terms, as sums over the data of an epoch
divided by their number, whatever the objective.

`fit` leaves behind the trained parameters and nothing else: generators, Pyro's parameter
store and the module's train/eval mode are afterwards as they were.
"""

import copy
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pyro
import torch
from pyro.infer import ELBO, SVI, RenyiELBO, ReweightedWakeSleep
from pyro.optim import PyroOptim
from torch import Tensor, nn
from torch.utils.data import DataLoader

from pyrovae.admission import trace_once
from pyrovae.batches import ArrayBatches, Batch, LoaderBatches, as_batches
from pyrovae.checks import real_number, seed_number, whole_number
from pyrovae.errors import ConfigError, DataError, DivergenceError
from pyrovae.handlers import RandomStream, data_scale, evaluation, module_mode, own_store
from pyrovae.objectives import Objective, TraceELBO
from pyrovae.terms import ElboTerms, draw_traces, is_local, terms_of


class Epoch(NamedTuple):
    """One epoch's record; all in nats per datum, ELBO = −(reconstruction + kl).

    Attributes:
        epoch: its number, from 1.
        elbo: mean over the training data, each scored when its batch was taken; higher is better.
        reconstruction: −log p(x|z) of it; lower is better.
        kl: KL(q(z|x) ‖ p(z)) of it, at the same draws.
        validation_elbo: after the epoch, in eval mode; None without validation data.
        validation_reconstruction: −log p(x|z) of it.
        validation_kl: the KL of it.
        seconds: wall-clock time since `fit` began.
    """

    epoch: int
    elbo: float
    reconstruction: float
    kl: float
    validation_elbo: float | None
    validation_reconstruction: float | None
    validation_kl: float | None
    seconds: float


@dataclass
class History:
    """What `fit` recorded: one `Epoch` each, by index, or a column by its name.

    Attributes:
        epochs: the records, in order.
        num_data: N, the data seen in an epoch.
        seed: that of the run; a fresh one when None was asked for.
        best_epoch: the epoch whose weights were kept; the last one without validation data.
        stopped_early: whether patience ran out before the planned number of epochs.

    Example:
        >>> history = History(num_data=5, seed=0)
        >>> history.epochs.append(Epoch(1, -2.0, 1.5, 0.5, None, None, None, 0.1))
        >>> history[-1].elbo, history["kl"]
        (-2.0, [0.5])
    """

    epochs: list[Epoch] = field(default_factory=list)
    num_data: int = 0
    seed: int = 0
    best_epoch: int = 0
    stopped_early: bool = False

    def __len__(self) -> int:
        return len(self.epochs)

    def __getitem__(self, key: int | str) -> Any:
        if isinstance(key, str):
            return [getattr(epoch, key) for epoch in self.epochs]
        return self.epochs[key]


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
    learning_rate: float = 1e-3,
    patience: int | None = 10,
    seed: int | None = 0,
    callbacks: Sequence[Callable[[nn.Module, Epoch], Any]] = (),
    progress: bool | None = None,
) -> History:
    """Train a program in place by stochastic variational inference.

    Minimises Σ_i l_i = −Σ_i ELBO_i (or another objective) with Adam on minibatch means.

    Args:
        program: a `VAE`, or any module with `.model` and `.guide` over a plate "data".
        x: (N, *event) as a tensor, array or data frame; or a torch Dataset or DataLoader of
            x, (x, y) or (x, y, mask).
        y: (N, …), covariates for the parts wrapped in `networks.Given`.
        mask: of x's shape, true where x is observed.
        validation: held-out data: x, (x, y) or (x, y, mask), a Dataset or a DataLoader. Its
            ELBO is recorded after each epoch, and the weights of the best epoch are kept.
        objective: any `pyro.infer.ELBO`; `objectives.TraceELBO()` by default.
        epochs: passes over the data.
        batch_size: B; the last batch may be smaller. A DataLoader has its own.
        learning_rate: Adam's.
        patience: epochs without a better validation ELBO before training stops; None never stops.
        seed: of shuffling and all draws; None takes a fresh one and records it. The initial
            weights are the program's own.
        callbacks: called as callback(program, record) after each epoch, outside the run's
            random stream and parameter store, so that nothing they do changes the run.
        progress: show a progress bar on stderr; None does where stderr is a terminal.

    Returns:
        History, one record an epoch, in nats per datum.

    Raises:
        DataError: the data do not fit the program; raised before anything changes.
        ConfigError: an argument or the program cannot work; likewise.
        DivergenceError: loss or gradient is not finite; the parameters are those before
            the step, and the message says where.

    Example:
        >>> import pyrovae as pv
        >>> x = pv.datasets.binarize(pv.datasets.digits().train)
        >>> vae = pv.build((8, 8), latent_dim=2, seed=0)
        >>> history = fit(vae, x, epochs=2)
        >>> history[1].elbo > history[0].elbo
        True
    """
    epochs = whole_number(epochs, "epochs", 0)
    patience = math.inf if patience is None else whole_number(patience, "patience", 1)
    batch_size = whole_number(batch_size, "batch_size", 1)
    seed = seed_number(seed)
    steps = _Steps(program, objective, real_number(learning_rate, "learning_rate", above=0.0))
    stream = RandomStream(seed)
    with _own_generators(seed, x, validation):
        with RandomStream(seed):
            data = as_batches(program, x, y, mask, batch_size=batch_size)
            held_out = _held_out(program, validation, batch_size)
        history = History(num_data=data.num_data, seed=seed)
        best = _Best(program, patience) if held_out else None
        start = time.perf_counter()
        with _progress_bar(epochs, progress) as show:
            for number in range(1, epochs + 1):
                with module_mode(program, training=True), stream, own_store():
                    trained = steps.epoch(number, data, num_epochs=epochs)
                tested = evaluate(program, held_out, seed) if held_out else (None,) * 3
                record = Epoch(number, *trained, *tested, time.perf_counter() - start)
                history.epochs.append(record)
                history.best_epoch = best.update(record) if best else number
                show(record)
                for callback in callbacks:
                    callback(program, record)
                if best and best.is_exhausted:
                    history.stopped_early = number < epochs
                    break
        if best:
            best.restore()
    return history


class _Steps:
    """The training step: SVI over one optimizer, with a guard before each update."""

    def __init__(self, program: nn.Module, objective: ELBO | None, learning_rate: float):
        objective = TraceELBO() if objective is None else objective
        if not isinstance(objective, ELBO):
            raise ConfigError(
                f"objective is a {type(objective).__name__}, but it must be a pyro.infer.ELBO.\n"
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
        self.learning_rate = learning_rate
        self.optimizer = torch.optim.Adam(self.parameters.values(), learning_rate, fused=True)
        self.svi = SVI(
            program.model,
            program.guide,
            _OneOptimizer(self.optimizer, self._guard),
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


class _OneOptimizer(PyroOptim):
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


def evaluate(
    program: nn.Module, data: ArrayBatches | LoaderBatches, seed: int
) -> tuple[float, float, float]:
    """(elbo, reconstruction, kl) in nats per datum: eval mode, one draw each, fixed by seed."""
    sums = torch.zeros(2, dtype=torch.float64)
    with RandomStream(seed), evaluation(program), pyro.validation_enabled(False):
        for batch in data.epoch(shuffle=False):
            traces = draw_traces(program.model, program.guide, *batch)
            sums += loss_sums(terms_of(traces, len(batch.x)), data.num_data)
    return per_datum(sums, data.num_data)


class _Best:
    """The weights of the epoch with the highest validation ELBO, and how long ago it was."""

    def __init__(self, program: nn.Module, patience: float):
        self.program, self.patience = program, patience
        self.elbo, self.epoch, self.waited = -math.inf, 0, 0
        self.state: dict[str, Tensor] = {}

    def update(self, record: Epoch) -> int:
        if record.validation_elbo > self.elbo:
            self.elbo, self.epoch, self.waited = record.validation_elbo, record.epoch, 0
            self.state = {n: t.clone() for n, t in self.program.state_dict().items()}
        else:
            self.waited += 1
        return self.epoch

    @property
    def is_exhausted(self) -> bool:
        return self.waited >= self.patience

    def restore(self) -> None:
        if self.state:
            self.program.load_state_dict(self.state)


def _held_out(
    program: nn.Module, validation: Any, batch_size: int
) -> ArrayBatches | LoaderBatches | None:
    if validation is None:
        return None
    parts = validation if isinstance(validation, tuple) else (validation,)
    try:
        return as_batches(program, *parts, batch_size=max(batch_size, 1024))
    except DataError as error:
        raise DataError(f"in validation: {error}") from None


@contextmanager
def _own_generators(seed: int, *sources: Any) -> Iterator[None]:
    """Seed the generators that DataLoaders hold, and give them back as they were."""
    loaders = [s for s in sources if isinstance(s, DataLoader)]
    samplers = [s for x in loaders for s in (x.sampler, getattr(x.batch_sampler, "sampler", None))]
    held = {getattr(holder, "generator", None) for holder in loaders + samplers}
    generators = [g for g in held if isinstance(g, torch.Generator)]
    states = [g.get_state() for g in generators]
    try:
        for generator in generators:
            generator.manual_seed(seed)
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


@contextmanager
def _progress_bar(epochs: int, progress: bool | None) -> Iterator[Callable[[Epoch], None]]:
    """A function that shows an epoch's record on stderr, or does nothing."""
    if progress is False or (progress is None and not sys.stderr.isatty()):
        yield lambda record: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
    )

    columns = (MofNCompleteColumn(), BarColumn(bar_width=8), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=epochs)
        yield lambda record: bar.update(task, advance=1, description=_one_line(record))


def _one_line(record: Epoch) -> str:
    line = f"ELBO {record.elbo:.2f} = -({record.reconstruction:.2f} + KL {record.kl:.2f})"
    if record.validation_elbo is not None:
        line += f", held out {record.validation_elbo:.2f}"
    return line + " nats/datum"
