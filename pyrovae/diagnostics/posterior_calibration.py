"""Calibration of q(z|x) at observed data (posterior SBC), without other data and refits.

    z* ~ q(z|x_obs),   x* ~ p(x|z*):   rank of z* among draws of p(z|x_obs, x*)
    p(z|x_obs, x*) ∝ p(z) p(x_obs|z) p(x*|z),   two data with the same latent

If q(z|x_obs) is the posterior p(z|x_obs), then z* is a draw of p(z|x_obs, x*), and its ranks are
uniform. `calibration` averages over all data that the prior generates; this checks the posterior of
one datum. What is checked is q(z|x_obs) alone, at x_obs alone: the encoder is not called at x*,
because the update by x* is that of the model.

z_1 … z_L are drawn from q(z|x_obs) as well and weighted, z* too, by

    w = p(z) p(x_obs|z) / q(z|x_obs) · p(x*|z)

so that the ranks are exactly uniform for every L (`weighted_pit`): if q(z|x_obs) is the posterior,
the first factor is constant, and w is the probability that this value generated x*. Otherwise the
first factor corrects the draws but not the frequency of z*, and the ranks show the difference.

Symbols: N data, n simulations each, D dimensions of the local latents. With global latents w, the
check is that of q(z|x_obs, w) at draws w ~ q(w). The ranks of log p(z, x_obs, x*) check all latents
jointly. A mode of the posterior that q(z|x_obs) never reaches is not found, as by any method that
starts from draws of q.

References:
    Posterior SBC: Simulation-Based Calibration Checking Conditional on Data, Säilynoja, Schmitt,
    Bürkner & Vehtari, 2025, https://arxiv.org/abs/2502.03279
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pyrovae.checks import whole_number
from pyrovae.contract import validated
from pyrovae.core.conditional import given_globals
from pyrovae.core.draws import Arrays, concat, diagnosing, latent_names
from pyrovae.core.joint import flat, joint_of
from pyrovae.core.simulation import rows_at_once, simulated_near, weighted_pit
from pyrovae.data import Batch
from pyrovae.diagnostics.simulation import uniformity_p_value
from pyrovae.runtime.ambient import exclusive

NUM_BINS = 10  # of the χ² test


class PosteriorCalibration(NamedTuple):
    """Ranks of draws of q(z|x_obs) among those of the posterior given another datum.

    Attributes:
        pit: (N, n, D) in [0, 1], the weighted rank of z*_d.
        density_pit: (N, n), that of log p(z*, x_obs, x*); above ½ on average if q is too narrow.
        p_value: (N, D), χ² test that pit is uniform.
        density_p_value: (N,), the same for density_pit.
        worst_p_value: (N,), the smallest of these D + 1, times D + 1: whether q(z|x_obs) can be the
            posterior. For N data compare with 0.05 / N.
        ess: (N,), mean effective number of draws; near 1 the test has no power.
        names: D names.
    """

    pit: Tensor
    density_pit: Tensor
    p_value: Tensor
    density_p_value: Tensor
    worst_p_value: Tensor
    ess: Tensor
    names: tuple[str, ...]

    @property
    def message(self) -> str:
        """One sentence for the user."""
        num = len(self.worst_p_value)
        failed = (self.worst_p_value < 0.05 / num).nonzero()[:, 0].tolist()
        if not failed:
            return f"No sign that q(z|x) is not the posterior at any of these {num} data."
        rows = ", ".join(map(str, failed[:10])) + (" …" if len(failed) > 10 else "")
        return (
            f"q(z|x) is not the posterior at {len(failed)} of {num} data (rows {rows}): use "
            "posterior.sir, hmc or refine there."
        )


@exclusive
def posterior_calibration(
    program: nn.Module,
    x: Any,
    y: Any = None,
    mask: Any = None,
    *,
    n: int = 1000,
    num_draws: int = 100,
    num_globals: int = 10,
    seed: int | None = 0,
    memory_budget: int | None = None,
) -> PosteriorCalibration:
    """Check for each x_obs whether q(z|x_obs) is the posterior of its model, by posterior SBC.

    Ties (discrete latents) are broken at random.

    Args:
        program: a program whose guide has a density at given latents.
        x: (N, *event), a few data of interest.
        y: (N, …), covariates, also of the simulated data.
        mask: of x's shape, true where x is observed, also of the simulated data.
        n: number of simulations per datum.
        num_draws: L, weighted draws per simulation. p(x|z) is evaluated 2 n (L + 1) times per
            datum.
        num_globals: draws of the global latents, at most n, if there are any.
        seed: random seed; None uses a fresh one.
        memory_budget: bytes for the draws of one chunk of the simulations.

    Returns:
        PosteriorCalibration.

    Raises:
        DataError: x does not fit the program.
        ConfigError: the guide has no density at given latents, or a setting is out of range.

    References:
        Säilynoja et al., 2025, https://arxiv.org/abs/2502.03279

    Example:
        >>> import pyrovae as pv
        >>> vae = pv.build((2,), latent_dim=1, seed=0)
        >>> found = posterior_calibration(vae, torch.eye(2), n=50, num_draws=20)
        >>> found.pit.shape, found.worst_p_value.shape
        (torch.Size([2, 50, 1]), torch.Size([2]))
    """
    n, num_draws = whole_number(n, "n", 1), whole_number(num_draws, "num_draws", 1)
    num_globals = min(n, whole_number(num_globals, "num_globals", 1))
    data = validated(program, x, y, mask)
    found = []
    with diagnosing(program, seed):
        names = latent_names(program, data)
        programs = given_globals(program, data, num_globals)
        for row in data.read(1):
            near = [row.repeat(len(i)) for i in torch.arange(n).chunk(len(programs))]
            pairs = zip(programs, near, strict=False)
            parts = concat([_ranks(*pair, num_draws, memory_budget) for pair in pairs], 0)
            found.append({name: value[None] for name, value in parts.items()})
    both, ess = (value for value in concat(found, 0).values())
    cell = (both * NUM_BINS).long().clamp(max=NUM_BINS - 1)  # (N, n, D + 1)
    p_value = torch.stack([uniformity_p_value(ranks, NUM_BINS - 1, NUM_BINS) for ranks in cell])
    worst = (p_value.amin(1) * p_value.shape[1]).clamp(max=1.0)
    parts = (both[..., :-1], both[..., -1], p_value[:, :-1], p_value[:, -1])
    return PosteriorCalibration(*parts, worst, ess.mean(1), names)


def _ranks(program: nn.Module, near: Batch, num_draws: int, memory_budget: int | None) -> Arrays:
    """Return both: the PIT of the latents and the density (n, D + 1), and ess (n,)."""
    rows = rows_at_once(program, near, num_draws + 1, memory_budget)
    found = []
    for observed in near.read(rows):
        simulated, latents = simulated_near(program, observed)
        joint = joint_of(program, observed)
        drawn = joint.draw_guide(num_draws)
        z = {name: torch.cat([value[None], drawn[name]]) for name, value in latents.items()}
        log_prior, log_likelihood = (value.double() for value in joint.terms(z))
        log_joint = log_prior + log_likelihood + joint_of(program, simulated).terms(z)[1]
        log_w = log_joint - joint.log_guide(z)  # (L + 1, n)
        statistics = torch.cat([flat(z).double(), log_joint[..., None]], -1)
        ess = 1 / (log_w.softmax(0) ** 2).sum(0)
        found.append({"both": weighted_pit(statistics, log_w).cpu(), "ess": ess.cpu()})
    return concat(found, 0)
