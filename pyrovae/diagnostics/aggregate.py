"""Is the aggregate posterior the prior? A two-sample test.

    q(z) = (1/N) Σ_i q(z|x_i)   against   p(z);     one draw z_i ~ q(z|x_i) for each of N data

Where q(z) ≠ p(z), `vae.sample` decodes z from regions without data: the holes and tails that a
better prior would avoid. The statistics are the energy distance over all dimensions,

    E = 2 E|a − b| − E|a − a'| − E|b − b'|,    a ~ q(z), b ~ p(z), each dimension scaled

and per dimension the Kolmogorov-Smirnov distance of the two ECDFs. Both p-values come from
permuting the labels of the draws, so they need no asymptotics and hold for discrete latents too.
The draws from q(z) are independent but stratified, one per datum, which makes them slightly more
even than i.i.d. draws: the test is slightly conservative. With global latents w, an equal share
of both samples is drawn given each w ~ q(w).

References:
    Energy statistics: A class of statistics based on distances, Székely & Rizzo, 2013,
    https://doi.org/10.1016/j.jspi.2013.03.018
    ELBO surgery, Hoffman & Johnson, 2016 (why the two should agree)
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pyrovae.checks import whole_number
from pyrovae.contract import validated
from pyrovae.core.conditional import given_globals
from pyrovae.core.draws import diagnosing, latent_names
from pyrovae.core.joint import flat, joint_of
from pyrovae.data import Batch
from pyrovae.errors import DataError
from pyrovae.runtime.ambient import exclusive


class AggregateTest(NamedTuple):
    """Draws of the aggregate posterior against draws of the prior.

    Attributes:
        energy: the energy distance of the scaled draws, unitless; 0 if they agree.
        p_value: its p-value, by permutation.
        ks: (D,), the largest distance of the two ECDFs per dimension, in [0, 1].
        ks_p_value: (D,), by permutation, not corrected: with D dimensions compare the smallest
            with 0.05 / D.
        names: D names.
        num_draws: size of each of the two samples.
    """

    energy: float
    p_value: float
    ks: Tensor
    ks_p_value: Tensor
    names: tuple[str, ...]
    num_draws: int


@exclusive
def aggregate_test(
    program: nn.Module,
    x: Any,
    y: Any = None,
    mask: Any = None,
    *,
    num_draws: int = 500,
    num_permutations: int = 999,
    num_globals: int = 10,
    seed: int | None = 0,
) -> AggregateTest:
    """Test by permutation whether q(z) = (1/N) Σ_i q(z|x_i) is the prior.

    A small p-value with thousands of data is normal; the size of `energy` and `ks`, and
    `decompose_elbo(…).marginal_kl` in nats, tell whether it matters.

    Args:
        program: any program; with covariates, prior draws are from p(z|y_i) for the same data.
        x: (N, *event).
        y: (N, …), covariates.
        mask: of x's shape, true where x is observed.
        num_draws: size of each sample, at most N: one draw per datum of a random subset.
        num_permutations: the smallest p-value is 1 / (1 + num_permutations).
        num_globals: draws of global latents w ~ q(w).
        seed: random seed; None uses a fresh one.

    Returns:
        AggregateTest.

    Raises:
        DataError: x does not fit the program, or has fewer than 2 rows.
        ConfigError: a setting is out of range.

    References:
        Székely & Rizzo, 2013, https://doi.org/10.1016/j.jspi.2013.03.018

    Example:
        >>> import pyrovae as pv
        >>> vae = pv.build((2,), latent_dim=2, seed=0)
        >>> found = aggregate_test(vae, torch.rand(50, 2).round())
        >>> found.ks.shape, 0 < found.p_value <= 1
        (torch.Size([2]), True)
    """
    num_draws = whole_number(num_draws, "num_draws", 2)
    num_permutations = whole_number(num_permutations, "num_permutations", 1)
    num_globals = whole_number(num_globals, "num_globals", 1)
    data = validated(program, x, y, mask)
    if data.count() < 2:
        raise DataError(
            "x holds one datum, but an aggregate posterior needs at least two.\n"
            "Pass a few hundred data."
        )
    with diagnosing(program, seed):
        rows = torch.randperm(data.count())[:num_draws].to(data.device)
        programs = given_globals(program, data, num_globals)
        taken = data.take(rows)
        shares = zip(programs, torch.arange(len(rows)).chunk(len(programs)), strict=False)
        pairs = [_pair(one, taken.rows(part)) for one, part in shares]
        ours, prior = (torch.cat(draws) for draws in zip(*pairs, strict=True))
        names = latent_names(programs[0], data)
        energy, ks = _permuted(torch.cat([ours, prior]), num_permutations)
    p_value, ks_p_value = (_p_value(values) for values in (energy, ks))
    return AggregateTest(energy[0].item(), p_value.item(), ks[0], ks_p_value, names, len(rows))


def _pair(program: nn.Module, rows: Batch) -> tuple[Tensor, Tensor]:
    """Return one draw of the guide and one of the prior for each row, (n, D) float64."""
    joint = joint_of(program, rows)
    return tuple(flat(draw(1))[0].double() for draw in (joint.draw_guide, joint.draw_prior))


def _permuted(z: Tensor, num_permutations: int) -> tuple[Tensor, Tensor]:
    """Return energy (1 + B,) and KS (1 + B, D) of the pooled draws (2n, D), unpermuted first."""
    n = len(z) // 2
    sign = torch.cat([torch.ones(n), -torch.ones(n)]).to(z)
    order = torch.rand(num_permutations, 2 * n, dtype=torch.float32).argsort(1)
    signs = torch.cat([sign[None], sign[order.to(z.device)]])  # (1 + B, 2n), sum 0
    scaled = z / z.std(0).clamp(min=1e-300)
    distance = torch.cdist(scaled, scaled, compute_mode="donot_use_mm_for_euclid_dist")
    energy = -((signs @ distance) * signs).sum(1) / n**2
    ks = torch.stack([_ks(column, signs) for column in z.T], 1)
    return energy, ks


def _ks(column: Tensor, signs: Tensor) -> Tensor:
    """Return the largest distance, (1 + B,), of the ECDFs of the two samples given by the signs."""
    ordered, order = column.sort()
    gap = signs[:, order].cumsum(1) / (len(column) // 2)
    is_last = torch.cat([ordered[1:] != ordered[:-1], ordered.new_ones(1, dtype=torch.bool)])
    return gap[:, is_last].abs().amax(1)  # within ties the two ECDFs have not both jumped


def _p_value(values: Tensor) -> Tensor:
    """Return the share, over dim 0, of values at least as large as the first, included."""
    return (values >= values[0] - 1e-12).double().mean(0)
