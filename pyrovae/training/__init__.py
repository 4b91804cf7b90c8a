"""Training: `fit` drives `pyro.infer.SVI` over minibatches of any program.

    θ, φ ← Adam on  (1/B) Σ_{i in batch} l_i,    l_i = −ELBO_i in nats

One optimizer holds all parameters. A step is: zero the gradients, draw the traces, take
the objective's gradient, look whether loss and gradients are finite, update. What is
reported is always the β = 1 ELBO with its two terms, as sums over the data of an epoch
divided by their number, whatever the objective.

`fit` leaves behind the trained parameters and nothing else: generators, Pyro's parameter
store and the module's train/eval mode are afterwards as they were.
"""

import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro.infer import ELBO
from torch import Tensor, nn
from torch.utils.data import DataLoader

from pyrovae.batches import ArrayBatches, LoaderBatches, as_batches
from pyrovae.checks import real_number, seed_number, whole_number
from pyrovae.errors import ConfigError, DataError
from pyrovae.handlers import RandomStream, evaluation, module_mode, own_store, threads_for
from pyrovae.terms import draw_traces, terms_of
from pyrovae.training.history import Epoch, History
from pyrovae.training.progress import progress_bar
from pyrovae.training.steps import Steps, loss_sums, per_datum

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
    if not all(callable(getattr(program, name, None)) for name in ("parameters", "model", "guide")):
        raise ConfigError(
            f"program is a {type(program).__name__}, but fit takes a module with .model and .guide."
            "\nWrite pv.fit(vae, x), with vae = pv.VAE(prior, encoder, decoder)."
        )
    steps = Steps(program, objective, real_number(learning_rate, "learning_rate", above=0.0))
    stream = RandomStream(seed)
    with _own_generators(seed, x, validation):
        with RandomStream(seed):
            data = as_batches(program, x, y, mask, batch_size=batch_size)
            held_out = _held_out(program, validation, batch_size)
        _warn_of_surprises(program, data)
        history = History(num_data=data.num_data, seed=seed)
        best = _Best(program, patience) if held_out else None
        start = time.perf_counter()
        with progress_bar(epochs, progress) as show, threads_for(steps.size * data.batch_size):
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


def _warn_of_surprises(program: nn.Module, data: ArrayBatches | LoaderBatches) -> None:
    """Warn of what trains well and is still not what most people mean."""
    decoder = getattr(program, "decoder", None)
    if decoder is not None and not any(p.requires_grad for p in decoder.parameters()):
        warnings.warn("the decoder has no trainable parameter: p(x|z) stays as it is", stacklevel=3)
    names = [] if decoder is None else [name for name, _ in decoder.named_parameters()]
    learns_scale = any(name.endswith("raw_scale") for name in names)
    if learns_scale and isinstance(data, ArrayBatches) and data.num_data > 1:
        x = data.data.x
        is_constant = (x == x[:1]).all(0)
        if is_constant.any():
            first = tuple(int(i) for i in is_constant.nonzero()[0])
            warnings.warn(
                f"column {first} of x is constant ({int(is_constant.sum()):,} are): its learned "
                "scale falls to the floor of 1e-5, and log p(x) rises without meaning. Drop it.",
                stacklevel=3,
            )


def _held_out(
    program: nn.Module, validation: Any, batch_size: int
) -> ArrayBatches | LoaderBatches | None:
    if validation is None:
        return None
    if isinstance(validation, int | float):
        raise ConfigError(
            f"validation = {validation}, but it is held-out data, not a fraction of x.\n"
            "Split x first: validation=x[:1000], and fit on x[1000:]."
        )
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
