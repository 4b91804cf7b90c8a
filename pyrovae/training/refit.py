"""Fitting the best prior for frozen networks.

    max_ψ E_{q(z)}[log p_ψ(z)],    q(z) = (1/N) Σ_i q(z|x_i)

With encoder and decoder fixed, this is the only part of the ELBO that depends on the prior, and
maximizing it minimizes the marginal KL of the ELBO surgery, KL(q(z) ‖ p_ψ(z)). The prior is fitted
as a density to draws of the aggregate posterior; the decoder never runs. The gain in ELBO is what
the old prior cost.

References:
    ELBO surgery, Hoffman & Johnson, 2016,
    http://approximateinference.org/accepted/HoffmanJohnson2016.pdf
    Learned priors after training: Resampled Priors for Variational Autoencoders, Bauer & Mnih,
    2019, https://arxiv.org/abs/1810.11428 (section on fitting to a fixed aggregate posterior)
"""

import copy
from typing import Any, NamedTuple

import pyro
from torch import Tensor, nn

from pyrovae.checks import seed_number, whole_number
from pyrovae.contract import validated
from pyrovae.core.draws import diagnosing, over_draws, read_latents
from pyrovae.diagnostics import Estimate
from pyrovae.diagnostics.estimate import mean_of
from pyrovae.errors import ConfigError
from pyrovae.handlers import evaluation
from pyrovae.history import History
from pyrovae.networks import given
from pyrovae.training import fit
from pyrovae.vae import VAE, is_plain_vae, register


class Refitted(NamedTuple):
    """VAE with a refitted prior and the same networks.

    Attributes:
        vae: a new `VAE`; the original one is unchanged.
        history: of the fit; its "elbo" is the mean of log p(z) over draws of q(z|x), nats.
        gain: mean ELBO with the new prior minus that with the old one, nats per datum, on fresh
            draws for the held-out data if given, otherwise for x, with its error over data.
    """

    vae: VAE
    history: History
    gain: Estimate


def refit_prior(
    vae: nn.Module,
    x: Any,
    prior: nn.Module,
    y: Any = None,
    mask: Any = None,
    *,
    validation: Any = None,
    num_samples: int = 10,
    seed: int | None = 0,
    **options: Any,
) -> Refitted:
    """Fit a prior to the aggregate posterior, with encoder and decoder fixed.

    Args:
        vae: a trained `VAE`; not changed.
        x: (N, *event), the training data.
        prior: `prior()` → p(z) over the same latents, from which the fit starts; a copy of it is
            fitted. A `VampPrior` that shares the VAE's encoder learns its pseudo-inputs only.
        y: (N, …), covariates.
        mask: of x's shape, true where x is observed.
        validation: held-out data, x, (x, y) or (x, y, mask), for early stopping and the gain.
        num_samples: S, draws of q(z|x) per datum, made once.
        seed: random seed; None uses a fresh one.
        **options: further arguments of `fit`: epochs, learning_rate, batch_size, patience, …

    Returns:
        Refitted.

    Raises:
        DataError: x does not fit the VAE, or its codes do not fit the prior.
        ConfigError: vae is not a `VAE`, or the prior has no parameters to fit.

    References:
        ELBO surgery, Hoffman & Johnson, 2016,
        http://approximateinference.org/accepted/HoffmanJohnson2016.pdf

    Example:
        >>> import torch, pyrovae as pv
        >>> vae = pv.build((2,), latent_dim=1, seed=0)
        >>> x = torch.rand(200, 2).round()
        >>> found = refit_prior(vae, x, pv.priors.LearnedNormal(1), epochs=2)
        >>> type(found.vae.prior).__name__, type(vae.prior).__name__
        ('LearnedNormal', 'StandardNormal')
    """
    if not is_plain_vae(vae):
        raise ConfigError(
            f"refit_prior trains the prior of a VAE on its codes, but this is a "
            f"{type(vae).__name__}, which may have other latents.\nTrain it again with fit."
        )
    if not isinstance(prior, nn.Module):
        raise ConfigError(
            f"prior is a {type(prior).__name__}, but refit_prior starts from a prior module.\n"
            "Write priors.GaussianMixture(latent_dim), or another of pv.priors."
        )
    num_samples, seed = whole_number(num_samples, "num_samples", 1), seed_number(seed)
    old = vae
    vae, prior = copy.deepcopy((vae, prior))  # together, so that a shared encoder stays shared
    frozen = {id(p) for part in (vae.encoder, vae.decoder) for p in part.parameters()}
    learned = [p for p in prior.parameters() if id(p) not in frozen and p.requires_grad]
    if not learned:
        raise ConfigError(
            f"refit_prior: this {type(prior).__name__} has no parameters of its own to fit.\n"
            "Pass a learnable prior, such as priors.GaussianMixture(latent_dim)."
        )
    codes = _codes(old, (x, y, mask), num_samples, seed)
    with evaluation(prior):
        event_shape = tuple(prior(*given(codes[1], prior)).event_shape)
    if event_shape != (expected := tuple(codes[0].shape[1:])):
        raise ConfigError(
            f"prior is over shape {event_shape}, but the latents of this VAE have shape {expected}."
            f"\nBuild the {type(prior).__name__} with the VAE's latent_dim."
        )
    held_out = None
    if validation is not None:
        held_out = validation if isinstance(validation, tuple | list) else (validation,)
    density = _PriorAlone(prior)
    flags = {p: p.requires_grad for p in prior.parameters()}
    for parameter in flags:
        parameter.requires_grad_(id(parameter) not in frozen and flags[parameter])
    scored = _codes(old, held_out or (x, y, mask), num_samples, (seed + 1) % 2**64)
    stop = None if held_out is None else scored
    history = fit(density, *codes, validation=stop, seed=seed, **options)
    for parameter, flag in flags.items():
        parameter.requires_grad_(flag)
    new = VAE(prior, vae.encoder, vae.decoder)
    return Refitted(new, history, _gain(old, new, scored, num_samples))


class _PriorAlone(nn.Module):
    """Program of p_ψ over codes: "x" ~ p_ψ, no latents. Always in eval mode, like the networks."""

    def __init__(self, prior: nn.Module):
        super().__init__()
        self.prior = prior

    def train(self, mode: bool = True) -> "_PriorAlone":
        return super().train(False)  # no dropout or running statistics in a VampPrior's encoder

    def model(self, x: Tensor, y: Tensor | None = None, mask: Tensor | None = None) -> None:
        register(self)
        p_z = self.prior(*given(y, self.prior))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", p_z, obs=x)

    def guide(self, x: Tensor, y: Tensor | None = None, mask: Tensor | None = None) -> None:
        pass


def _codes(vae: nn.Module, data: tuple, num_samples: int, seed: int) -> tuple[Tensor, ...]:
    """Return draws of q(z|x), (S · N, D), draw by draw, and their covariates."""
    source = validated(vae, *data)
    with diagnosing(vae, seed):
        z = over_draws(vae, source, read_latents, num_samples=num_samples, memory_budget=None)["z"]
    if source.head().y is None:
        return z.flatten(0, 1), None
    return z.flatten(0, 1), source.whole().repeat(num_samples).y


def _gain(old: VAE, new: VAE, codes: tuple, num_samples: int) -> Estimate:
    """Average log p_new(z) − log p_old(z) over draws of q(z|x): the difference of the ELBOs."""
    z, y = codes
    sides = []
    for vae in (new, old):
        with diagnosing(vae, 0):
            sides.append(vae.prior(*given(y, vae.prior)).log_prob(z).double())
    return mean_of((sides[0] - sides[1]).reshape(num_samples, -1).mean(0))
