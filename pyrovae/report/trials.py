"""What would happen: a copy of a program trained further, without a latent, or with another prior.

    continued        E_test[objective after N more steps] − E_test[before]: has training converged?
    without_latent   log p(x) of the best density of the decoder's kind that is the same for all x
    prior_gain       the gain in ELBO of a mixture fitted to the codes: is it worth another prior?

Advice on a page is what one of these has tried. The second says what a nat means on these data:
all that a model has learned is its distance from it.
"""

import copy
import math
import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pyrovae.contract import validated
from pyrovae.core.draws import diagnosing, elbo_terms
from pyrovae.data import Batch, Source
from pyrovae.diagnostics import Estimate
from pyrovae.diagnostics.estimate import mean_of
from pyrovae.errors import ConfigError, DataError, DivergenceError
from pyrovae.networks import given
from pyrovae.objectives import BetaELBO
from pyrovae.priors import GaussianMixture
from pyrovae.runtime.random_stream import RandomStream
from pyrovae.runtime.turns import TURN
from pyrovae.training import fit
from pyrovae.training.refit import refit_prior
from pyrovae.vae import is_plain_vae

MORE_STEPS = 500
BASELINE_STEPS = 300
BASELINE_RATE = 0.01
ROWS = 200  # data of one step of the baseline
NUM_COMPONENTS = 20
PRIOR_EPOCHS = 200


class Training(NamedTuple):
    """The settings of training that continuing it needs."""

    beta: float = 1.0  # weight of the KL
    batch_size: int = 64
    learning_rate: float = 1e-3  # of Adam


class Continued(NamedTuple):
    """The gain of further training on held-out data, nats per datum."""

    gain: Estimate  # of the training objective, paired, with its error over data
    spread: float  # standard deviation over data of the objective before
    num_steps: int  # of Adam
    learned: float = math.nan  # objective before, minus log p(x) without a latent; NaN if unknown


def continued(
    program: nn.Module,
    train: Any,
    *,
    test: Any,
    training: Training,
    num_steps: int = MORE_STEPS,
    seed: int = 0,
) -> Continued | None:
    """Train a copy further and measure its gain on held-out data, in the training objective.

    The steps are rounded up to whole epochs. None if training diverged or cannot be continued.
    """
    beta, batch_size, learning_rate = training
    data, held_out = opened(program, train), opened(program, test).whole()
    seen = data.take(shuffled(data.count(), seed)[: num_steps * batch_size])
    steps_per_epoch = math.ceil(seen.num_data / batch_size)
    epochs = math.ceil(num_steps / steps_per_epoch)
    later, objective = copy.deepcopy(program), None if beta == 1 else BetaELBO(beta)
    options = {"batch_size": batch_size, "learning_rate": learning_rate, "seed": seed}
    try:
        with TURN, warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Posterior collapse")  # a verdict says it
            fit(later, *seen, objective=objective, epochs=epochs, progress=False, **options)
    except (ConfigError, DivergenceError):
        return None
    before, after = (_objective(model, held_out, beta, seed) for model in (program, later))
    learned = (before - without_latent(program, seen, held_out, seed)).mean().item()
    spread, steps = before.std().item(), epochs * steps_per_epoch
    return Continued(mean_of(after - before), spread, steps, learned)


def _objective(program: nn.Module, data: Batch, beta: float, seed: int) -> Tensor:
    """Return E_q[log p(x|z)] − β KL, (N,), nats, with the same noise for models of equal size."""
    terms = elbo_terms(program, *data, num_samples=10, seed=seed)
    return (terms.log_likelihood - beta * terms.kl).mean(0).double()


def without_latent(vae: nn.Module, seen: Batch, held_out: Batch, seed: int) -> Tensor:
    """Return log p(x|z = 0) of held-out data, (N,), by a copy of the decoder trained at z = 0 only.

    NaN for other programs than a `VAE`, and for masked data.
    """
    unknown = torch.full((held_out.num_data,), torch.nan, dtype=torch.float64)
    if not is_plain_vae(vae) or seen.mask is not None or held_out.mask is not None:
        return unknown
    decoder = copy.deepcopy(vae.decoder).requires_grad_(True)
    with diagnosing(vae, seed), torch.enable_grad():
        if any(p.requires_grad for p in decoder.parameters()):
            _fit_at_zero(decoder, vae.prior, seen)
        with torch.no_grad():
            value = _log_density(decoder, vae.prior, held_out).double().cpu()
    return value if bool(value.isfinite().all()) else unknown


def _fit_at_zero(decoder: nn.Module, prior: nn.Module, seen: Batch) -> None:
    optimizer = torch.optim.Adam(decoder.parameters(), lr=BASELINE_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, BASELINE_STEPS)
    for _ in range(BASELINE_STEPS):
        rows = torch.randint(seen.num_data, (min(ROWS, seen.num_data),))
        optimizer.zero_grad()
        (-_log_density(decoder, prior, seen.rows(rows.to(seen.device))).mean()).backward()
        optimizer.step()
        schedule.step()


def _log_density(decoder: nn.Module, prior: nn.Module, data: Batch) -> Tensor:
    """Return log p(x|z = 0), (N,)."""
    shape = prior(*given(data.y, prior)).event_shape
    z = torch.zeros(1 if data.y is None else data.num_data, *shape).to(data.x)
    return decoder(z, *given(data.y, decoder)).log_prob(data.x)


def prior_gain(vae: nn.Module, train: Batch, *, test: Batch, seed: int) -> Estimate | None:
    """Return the gain in held-out ELBO of a Gaussian mixture fitted to the codes of training data.

    None for other programs than a `VAE` with one vector of real latents.
    """
    if not is_plain_vae(vae):
        return None
    options = {"epochs": PRIOR_EPOCHS, "learning_rate": 1e-2, "batch_size": ROWS}
    with TURN, RandomStream(seed):
        shape = vae.prior(*given(train.y, vae.prior)).event_shape
        prior = GaussianMixture(shape.numel(), num_components=NUM_COMPONENTS)
        how = {"validation": tuple(test), "num_samples": 1, "seed": seed, "progress": False}
        try:
            return refit_prior(vae, train.x, prior, train.y, train.mask, **how, **options).gain
        except (ConfigError, DataError, DivergenceError):  # codes on a sphere, or discrete ones
            return None


def opened(program: nn.Module, data: Any) -> Source:
    """Return x, (x, y) or (x, y, mask) in any container as a validated source."""
    return validated(program, *(data if isinstance(data, tuple) else (data,)))


def shuffled(total: int, seed: int) -> Tensor:
    """Return the numbers below `total` in random order."""
    return torch.randperm(total, generator=torch.Generator().manual_seed(seed % 2**63))
