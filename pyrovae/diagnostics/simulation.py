"""Simulation-based calibration of the encoder, without refitting anything.

    z* ~ p(z),   x ~ p(x|z*),   z_1 … z_L ~ q(z|x):     rank of z*_d among the z_{l,d}

If q(z|x) were the model's posterior p(z|x), z* and the L draws would be exchangeable and every
rank uniform on {0, …, L}. If q is too narrow, ranks pile up at both ends; if too wide, in the
middle; if biased, at one end. For an amortized guide this measures how far it is from the
posterior on data *from the model*; no VAE passes it at every sample size.

Ranks of log q(z|x) instead of z_d give the coverage of highest-density regions: a 90 % region
should contain z* in 90 % of the simulations (expected coverage).

Symbols: n simulations, D dimensions of the local latents, L draws each. With global latents w, the
check is that of q(z|x, w) at draws w ~ q(w), for data simulated at the same w. Left out: data with
missing cells.

References:
    Validating Bayesian Inference Algorithms with Simulation-Based Calibration, Talts et al.,
    2018, https://arxiv.org/abs/1804.06788
    Graphical test for discrete uniformity and its applications in goodness-of-fit evaluation
    and multiple sample comparison, Säilynoja, Bürkner & Vehtari, 2022,
    https://arxiv.org/abs/2103.10522 (simultaneous ECDF bands by simulation)
    A Trust Crisis in Simulation-Based Inference?, Hermans et al., 2022,
    https://arxiv.org/abs/2110.06581 (expected coverage)
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pyrovae.checks import real_number, whole_number
from pyrovae.core.chunking import budget_of, sizes
from pyrovae.core.draws import Arrays, concat, diagnosing
from pyrovae.core.joint import flat, joint_of
from pyrovae.core.simulation import simulated
from pyrovae.data import Batch
from pyrovae.errors import ConfigError
from pyrovae.runtime.ambient import exclusive

NUM_NULL = 1000  # simulated sets of uniform ranks for the band
NUMBERS_AT_A_TIME = 2**20


class Calibration(NamedTuple):
    """Ranks of the true latents among the guide's draws, and whether they are uniform.

    Attributes:
        ranks: (n, D), number of the L draws below z*_d: 0 … L.
        density_ranks: (n,), number of draws with a higher q(z|x) than z*: 0 … L.
        num_draws: L.
        p_value: (D,), p-value of the χ² test that the ranks are uniform over the bins.
        density_p_value: the same for density_ranks.
        ecdf: (D, L + 1), the share of ranks ≤ k, for k = 0 … L.
        band: (L + 1, 2), lower and upper end of the simultaneous band that contains the ECDF of
            uniform ranks with probability `level`.
        is_calibrated: (D,), whether the ecdf stays within the band.
        level: probability of the band.
        coverage_levels: (m,), nominal probabilities of highest-density regions of q(z|x).
        expected_coverage: (m,), the share of simulations with z* in the region; below the
            nominal level the guide is overconfident.
        coverage_std_error: (m,), binomial.
    """

    ranks: Tensor
    density_ranks: Tensor
    num_draws: int
    p_value: Tensor
    density_p_value: float
    ecdf: Tensor
    band: Tensor
    is_calibrated: Tensor
    level: float
    coverage_levels: Tensor
    expected_coverage: Tensor
    coverage_std_error: Tensor

    @property
    def message(self) -> str:
        """One sentence for the user."""
        bad = (~self.is_calibrated).nonzero()[:, 0].tolist()
        where = f"dimensions {', '.join(map(str, bad[:10]))}" if bad else "no dimension"
        excess = float((self.expected_coverage - self.coverage_levels).mean())
        if excess < 0:
            side = f"{-100 * excess:.1f} points less often than they should (overconfident)"
        else:
            side = f"{100 * excess:.1f} points more often than they should"
        return (
            f"Ranks leave the {100 * self.level:.0f} % band in {where} of {len(self.p_value)}; "
            f"on average, highest-density regions of q(z|x) contain the truth {side}."
        )


@exclusive
def calibration(
    program: nn.Module,
    n: int = 1000,
    y: Any = None,
    *,
    like: Any = None,
    num_draws: int = 99,
    num_bins: int = 20,
    level: float = 0.95,
    num_globals: int = 10,
    seed: int | None = 0,
    memory_budget: int | None = None,
) -> Calibration:
    """Check on simulated data whether the encoder's q(z|x) is the posterior of its model.

    Ties (discrete latents) are broken at random. The default number of draws, 99, gives 20 bins
    of 5 ranks.

    Args:
        program: a `VAE` or another program.
        n: number of simulations.
        y: (n, …), covariates.
        like: data of the program, whose rows give the shape of the simulated ones; only a `VAE`
            needs none.
        num_draws: L, draws of q(z|x) per simulation.
        num_bins: bins of the χ² test; must divide L + 1.
        level: probability of the simultaneous ECDF band, in (0, 1).
        num_globals: draws of the global latents, if there are any.
        seed: random seed; None uses a fresh one.
        memory_budget: bytes for the draws of one chunk of the simulations.

    Returns:
        Calibration.

    Raises:
        ConfigError: like is missing, a setting is out of range, or the bins do not divide
            L + 1 ranks.

    References:
        Talts et al., 2018, https://arxiv.org/abs/1804.06788

    Example:
        >>> import pyrovae as pv
        >>> vae = pv.build((2,), latent_dim=1, seed=0)
        >>> found = calibration(vae, 200)
        >>> found.ranks.shape, found.band.shape
        (torch.Size([200, 1]), torch.Size([100, 2]))
    """
    n, num_draws = whole_number(n, "n", 1), whole_number(num_draws, "num_draws", 1)
    num_bins, level = whole_number(num_bins, "num_bins", 2), real_number(level, "level", above=0.0)
    if (num_draws + 1) % num_bins or level >= 1:
        raise ConfigError(
            f"num_draws = {num_draws}, num_bins = {num_bins} and level = {level:g}, but L draws "
            "have L + 1 ranks, which must fill the bins evenly, and a level lies in (0, 1).\n"
            "Write for example num_draws=99, num_bins=20, level=0.95."
        )
    with diagnosing(program, seed):
        parts = simulated(program, n, y, like, num_globals=num_globals)
        found = concat([_ranks(*part, num_draws, memory_budget) for part in parts], 0)
        band = _band(n, num_draws, level)
    ranks, density_ranks = found["ranks"], found["density_ranks"]
    both = torch.cat([ranks, density_ranks[:, None]], 1)
    p_value = uniformity_p_value(both, num_draws, num_bins)
    ecdf = _ecdf(ranks, num_draws)
    is_inside = ((ecdf >= band[:, 0] - 1e-12) & (ecdf <= band[:, 1] + 1e-12)).all(-1)
    levels = torch.arange(1, num_bins, dtype=torch.float64) / num_bins
    # z* is inside the region of level a if fewer than a (L + 1) draws have a higher density
    coverage = (density_ranks[:, None] < levels * (num_draws + 1) - 1e-9).double().mean(0)
    return Calibration(
        ranks,
        density_ranks,
        num_draws,
        p_value[:-1],
        p_value[-1].item(),
        ecdf,
        band,
        is_inside,
        level,
        levels,
        coverage,
        (levels * (1 - levels) / n).sqrt(),
    )


def _ranks(
    program: nn.Module, data: Batch, latents: Arrays, num_draws: int, memory_budget: int | None
) -> Arrays:
    """Return ranks (n, D) and density_ranks (n,) of the true latents among L draws."""
    size = sum(max(1, z[0].numel()) for z in latents.values())
    budget = budget_of(memory_budget, data.device).num_bytes
    rows = max(1, budget // (16 * num_draws * size))
    found, start = [], 0
    for piece in data.read(rows):
        stop = start + piece.num_data
        truth = {name: z[None, start:stop] for name, z in latents.items()}
        joint, start = joint_of(program, piece), stop
        draws = joint.draw_guide(num_draws)
        density, true_density = joint.log_guide(draws), joint.log_guide(truth)[0]
        ranks = _rank(flat(draws), flat(truth)[0])
        found.append({"ranks": ranks, "density_ranks": _rank(-density, -true_density)})
    return {name: ranks.cpu() for name, ranks in concat(found, 0).items()}


def _rank(draws: Tensor, value: Tensor) -> Tensor:
    """Count the draws along dim 0 that are below, with a random share of the ties."""
    below, ties = (draws < value).sum(0), (draws == value).sum(0)
    share = torch.rand(ties.shape, dtype=torch.float32, device=ties.device)
    return below + (share * (ties + 1)).long()


def uniformity_p_value(ranks: Tensor, num_draws: int, num_bins: int) -> Tensor:
    """Return the p-value (K,) of Pearson's χ² test that columns of ranks (n, K) are uniform.

    Example:
        >>> ranks = torch.arange(100)[:, None].expand(100, 2)
        >>> uniformity_p_value(ranks, 99, 20)
        tensor([1., 1.], dtype=torch.float64)
    """
    cell = ranks * num_bins // (num_draws + 1)
    counts = torch.stack([(cell == b).sum(0) for b in range(num_bins)]).double()
    expected = len(ranks) / num_bins
    statistic = ((counts - expected) ** 2 / expected).sum(0)
    half = torch.tensor((num_bins - 1) / 2, dtype=torch.float64)
    return torch.special.gammaincc(half, statistic / 2)


def _ecdf(ranks: Tensor, num_draws: int) -> Tensor:
    """Return the share of the ranks (n, K) ≤ k, (K, L + 1)."""
    counts = torch.zeros(ranks.shape[1], num_draws + 1, dtype=torch.float64)
    counts.scatter_add_(1, ranks.T, torch.ones(ranks.T.shape, dtype=torch.float64))
    return counts.cumsum(1) / len(ranks)


def _band(n: int, num_draws: int, level: float) -> Tensor:
    """Return u ± c √(u (1 − u) / n), (L + 1, 2), that contains uniform ranks at this level.

    c is the quantile of the largest standardized distance over `NUM_NULL` simulated sets.
    """
    u = torch.arange(1, num_draws + 2, dtype=torch.float64) / (num_draws + 1)
    spread = (u * (1 - u) / n).sqrt()
    sets = sizes(NUM_NULL, max(1, NUMBERS_AT_A_TIME // n))
    null = torch.cat([_ecdf(torch.randint(num_draws + 1, (n, s)), num_draws) for s in sets])
    distance = ((null - u).abs() / spread.clamp(min=1e-300))[:, :-1].amax(1)
    reach = distance.quantile(level) * spread
    return torch.stack([(u - reach).clamp(min=0.0), (u + reach).clamp(max=1.0)], 1)
