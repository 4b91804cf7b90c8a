"""Imputation of missing values: draws of the missing cells given the observed ones.

    x_missing ~ p(x_missing | x_observed) = ∫ p(x_missing|z) p(z|x_observed) dz

z is drawn by sampling-importance-resampling (`posterior.sir`). The guide at x_observed is only
the proposal, so a poor guide shows in the effective sample size, not silently in the draws.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pyrovae.checks import seed_number
from pyrovae.contract import validated
from pyrovae.errors import ConfigError
from pyrovae.handlers import evaluation
from pyrovae.posterior import sir
from pyrovae.runtime.random_stream import RandomStream
from pyrovae.vae import is_plain_vae


class Imputation(NamedTuple):
    """Draws of complete data, in the units of x.

    Attributes:
        draws: (S, N, *event); observed cells hold x itself, missing ones a draw of p(x_m|x_o).
        mean: (N, *event), E[x | x_observed] by the same draws of z, without the noise of p(x|z).
        ess: (N,), effective sample size of the importance weights of the draws of z.
        pareto_k: (N,), the tail shape of these weights; above 0.7 they are unreliable.
    """

    draws: Tensor
    mean: Tensor
    ess: Tensor
    pareto_k: Tensor


def impute(
    vae: nn.Module,
    x: Any,
    y: Any = None,
    mask: Any = None,
    *,
    num_samples: int = 100,
    num_proposals: int = 10_000,
    seed: int | None = 0,
) -> Imputation:
    """Draw x_missing from p(x_missing | x_observed), by SIR from the guide.

    Args:
        vae: a `VAE` whose likelihood factorizes over the cells of x.
        x: (N, *event); the values of missing cells do not matter.
        y: (N, …), covariates.
        mask: of x's shape, true where x is observed.
        num_samples: S, draws per datum.
        num_proposals: K, draws of the guide to resample from; take K ≥ 10 S.
        seed: random seed; None uses a fresh one.

    Returns:
        Imputation, with the effective sample size of each datum.

    Raises:
        DataError: x or mask does not fit the program.
        ConfigError: vae is not a `VAE`, mask is None, the likelihood does not factorize, or a
            setting is invalid.

    References:
        MIWAE, Mattei & Frellsen, 2019, https://arxiv.org/abs/1812.02633

    Example:
        >>> import pyrovae as pv
        >>> vae = pv.build((3,), latent_dim=1, seed=0)
        >>> x, mask = torch.ones(2, 3), torch.tensor([[True, True, False]] * 2)
        >>> found = impute(vae, x, mask=mask, num_samples=5)
        >>> found.draws.shape, bool((found.draws[..., :2] == 1).all())
        (torch.Size([5, 2, 3]), True)
    """
    if not is_plain_vae(vae):
        raise ConfigError(
            f"impute decodes draws of z, but this is a {type(vae).__name__}, which may have other "
            "latents than z.\nPass a VAE, or decode draws of posterior.sir yourself."
        )
    seed = seed_number(seed)
    settings = {"num_samples": num_samples, "num_proposals": num_proposals, "seed": seed}
    x, y, mask = validated(vae, x, y, mask).whole()
    if mask is None:
        raise ConfigError(
            "mask = None, but impute needs to know which cells of x are missing.\n"
            "Pass mask=, true where x is observed: mask=~torch.isnan(x)."
        )
    posterior = sir(vae, x, y, mask, **settings)
    z = posterior.draws[0].to(x)  # (S, N, D)
    with RandomStream(seed), evaluation(vae):
        p_x = vae.decode(z, y)
        draws = torch.where(mask, x, p_x.sample())
        mean = torch.where(mask, x, p_x.mean.mean(0))
    return Imputation(draws, mean, posterior.ess, posterior.pareto_k)
