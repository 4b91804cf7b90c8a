"""Data simulated from a program, with the latents that made them: z* ~ p(z), x ~ p(x|z*).

z* is then an exact draw of p(z|x), against which guides and annealing are checked.

Data like an observed x_obs are simulated with z* ~ q(z|x_obs) in place of the prior. z* is then a
draw of q(z|x_obs) p(x|z) / ∫ q(z|x_obs) p(x|z) dz. Its rank among draws of another density is
weighted, so that it is uniform nevertheless (`weighted_pit`).
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from pyrovae.contract import validated
from pyrovae.contract.covariates import as_covariates
from pyrovae.core.chunking import budget_of, bytes_per_draw
from pyrovae.core.conditional import given_globals
from pyrovae.core.joint import joint_of
from pyrovae.core.replay import Arrays, sites_of
from pyrovae.core.replicates import replicated
from pyrovae.data import Batch, open_source
from pyrovae.data.batch import is_by_site
from pyrovae.errors import ConfigError
from pyrovae.networks import given
from pyrovae.runtime.random_stream import RandomStream
from pyrovae.vae import is_plain_vae


def simulated(
    program: nn.Module, n: int, y: Any, like: Any, *, num_globals: int
) -> Iterator[tuple[nn.Module, Batch, Arrays]]:
    """Yield a program, data simulated from it and their local latents, n data in all.

    With global latents w there is a part for each draw w ~ q(w), and the program is given that w.

    Args:
        program: any program, inside `diagnosing`.
        n: number of data.
        y: (n, …), covariates.
        like: data of the program, whose rows give the shape of the simulated ones; a `VAE` needs
            none.
        num_globals: number of draws of w.

    Raises:
        ConfigError: like is missing.
    """
    if is_plain_vae(program):
        y = as_covariates(y, n, program)
        z = program.prior(*given(y, program.prior)).expand((n,)).sample()
        yield program, Batch(program.decoder(z, *given(y, program.decoder)).sample(), y), {"z": z}
        return
    if like is None:
        raise ConfigError(
            f"data cannot be simulated from a {type(program).__name__} alone, because its model "
            "takes their shape from x.\nPass like=x, data of that shape."
        )
    rows = open_source(like)
    template = rows.take(torch.arange(n) % rows.count())
    batch = validated(program, template.x, y).whole()
    programs = given_globals(program, batch, min(num_globals, n))
    for part, index in zip(programs, torch.arange(n).chunk(len(programs)), strict=False):
        chunk = batch.rows(index)
        found = next(replicated(part, chunk, num_samples=1, memory_budget=None))
        x = {name: found[name][0] for name in chunk.sites}
        sites = sites_of(part, chunk)
        latents = {name: found[name][0] for name in sites.latents}
        yield part, Batch(x if is_by_site(chunk.x) else x["x"], chunk.y), latents


def simulated_near(program: nn.Module, batch: Batch) -> tuple[Batch, Arrays]:
    """Return a datum x ~ p(x|z*) with z* ~ q(z|x_obs) for each row x_obs, and the local latents.

    y and mask are those of the row.

    Args:
        program: without global latents, inside `diagnosing`.
        batch: validated.
    """
    how = {"num_samples": 1, "memory_budget": None, "is_new": True}
    found = next(replicated(program, batch, lambda _: program.guide, **how))
    x = {name: found[name][0] for name in batch.sites}
    latents = {name: found[name][0] for name in sites_of(program, batch).latents}
    return replace(batch, x=x if is_by_site(batch.x) else x["x"]), latents


def rows_at_once(
    program: nn.Module, batch: Batch, num_draws: int, memory_budget: int | None
) -> int:
    """Return the number of rows whose densities at `num_draws` latents fit the budget, at least 1.

    Args:
        program: without global latents, inside `diagnosing`.
        batch: validated; the cost is measured on its first row.
        num_draws: latents per row.
        memory_budget: bytes, as for `log_evidence`.
    """
    with RandomStream(0):  # so that the measurement does not change the draws
        joint = joint_of(program, batch.head())
        cost = bytes_per_draw(lambda size: joint.terms(joint.draw_prior(size)))
    return max(1, budget_of(memory_budget, batch.device).num_bytes // (cost * num_draws))


def weighted_pit(values: Tensor, log_weights: Tensor) -> Tensor:
    """Return the weighted rank in [0, 1] of the first of L + 1 values, ties in random order.

    Let z_0 ~ g and z_1 … z_L ~ f, and w = g / f up to a factor. Given the set of the L + 1 values,
    z_0 is the j-th of them with probability w_j / Σ w, so that

        PIT = Σ_j w_j 1(t_j < t_0) + U Σ_j w_j 1(t_j = t_0),    Σ w = 1,  U ~ Uniform(0, 1)

    is uniform for every L, whatever the statistic t.

    Args:
        values: (L + 1, n, …), t_j; that of the truth first.
        log_weights: (L + 1, n), log w_j.

    Returns:
        (n, …) float64.

    References:
        Conformal Prediction Under Covariate Shift, Tibshirani et al., 2019,
        https://arxiv.org/abs/1904.06019

    Example:
        >>> values = torch.tensor([[2.5], [1.0], [2.0], [3.0], [4.0]])
        >>> pit = weighted_pit(values, torch.zeros(5, 1))
        >>> bool((pit > 0.4) & (pit < 0.6))
        True
    """
    share = log_weights.double().softmax(0)
    share = share.reshape(*share.shape, *[1] * (values.dim() - 2))
    below, equal = ((share * at).sum(0) for at in (values < values[0], values == values[0]))
    return below + torch.rand(equal.shape, dtype=torch.float64).to(equal.device) * equal
