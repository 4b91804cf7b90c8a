"""Expected coverage by distances to random points (TARP), on simulated data and near observed ones.

    z* ~ p(z),  x ~ p(x|z*),  z_1 … z_L ~ q(z|x),    t = |(z − r)/s|,    PIT of t* among t_1 … t_L

If q(z|x) is the posterior, z* and the draws are exchangeable, the PIT is uniform, and the ball
around r that holds a share a of the draws holds z* with probability a. In contrast to ranks of
single latents (`calibration`), distances depend on all latents together, and need no density of q.

The reference point r may depend on x but not on z*, and it must depend on x: if it does not, the
prior as the posterior passes as well, because z* and its draws are then exchangeable given r. Here
r is the latent of the datum most similar to x among n other simulated data, close to a draw of the
posterior regardless of q. s is the root mean variance of q(z|x) per latent, from the same data.

Near an observed x_obs, `local_coverage` simulates z* ~ q(z|x_obs), x ~ p(x|z*). The posterior of
z* is then p(z|x) q(z|x_obs)/p(z) up to a factor, so that ranks among z_l ~ q(z|x) are weighted by
w = q(z|x_obs)/p(z), at z* as well. They are uniform for every L if q(z|x) = p(z|x) for these x,
whether or not q(z|x_obs) is right; `posterior_calibration` checks that.

Symbols: n simulations, L draws each, N observed data. The test finds errors of scale and location
alike, but does not name the latent, as `calibration` does.

References:
    Sampling-Based Accuracy Testing of Posterior Estimators for General Inference, Lemos et al.,
    2023, https://arxiv.org/abs/2302.03026
    Conformal Prediction Under Covariate Shift, Tibshirani et al., 2019,
    https://arxiv.org/abs/1904.06019 (weighted ranks)
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from pyrovae.checks import whole_number
from pyrovae.contract import validated
from pyrovae.contract.densities import coordinate_of
from pyrovae.core.chunking import budget_of
from pyrovae.core.conditional import given_globals
from pyrovae.core.draws import Arrays, concat, diagnosing
from pyrovae.core.joint import Latents, flat, joint_of
from pyrovae.core.simulation import rows_at_once, simulated, simulated_near, weighted_pit
from pyrovae.data import Batch
from pyrovae.densities.supports import Circle
from pyrovae.diagnostics.features import uniform_p_value
from pyrovae.runtime.ambient import exclusive

LEVELS = torch.arange(1, 20, dtype=torch.float64) / 20
ROWS = 512  # of a matrix of distances between data


class Coverage(NamedTuple):
    """Expected coverage of balls around reference points; (N, …) from `local_coverage`.

    Attributes:
        pit: (…, n) in [0, 1], the share of draws closer to the reference point than z*; uniform
            if q(z|x) is the posterior.
        p_value: (…), Kolmogorov-Smirnov test that it is. For N data compare with 0.05 / N.
        levels: (m,), nominal coverage.
        expected_coverage: (…, m), the share of simulations with z* inside the ball; below the
            nominal level, q is too narrow or off the posterior, above it is too wide.
        std_error: (m,), binomial.
        ess: (…), mean effective number of draws; 1 means that the test has no power.
    """

    pit: Tensor
    p_value: Tensor
    levels: Tensor
    expected_coverage: Tensor
    std_error: Tensor
    ess: Tensor

    @property
    def message(self) -> str:
        """One sentence for the user."""
        num, is_local = self.p_value.numel(), self.p_value.dim() > 0
        failed = self.p_value < 0.05 / num
        if not failed.any():
            where = f" near any of the {num} data" if is_local else ""
            return (
                f"No sign that q(z|x) is not the posterior{where} (p = {self.p_value.min():.2g})."
            )
        what = f"Near {int(failed.sum())} of {num} data, " if is_local else ""
        off = 100 * (self.expected_coverage[failed] - self.levels).mean().item()
        side = "less often than they should" if off < 0 else "more often than they should"
        return (
            f"{what}q(z|x) is not the posterior: on average, balls around reference points contain "
            f"the truth {abs(off):.1f} points {side}."
        )


@exclusive
def coverage(
    program: nn.Module,
    n: int = 1000,
    y: Any = None,
    *,
    like: Any = None,
    num_draws: int = 100,
    num_globals: int = 10,
    seed: int | None = 0,
    memory_budget: int | None = None,
) -> Coverage:
    """Check on simulated data whether q(z|x) covers the latents jointly, by distances.

    The test has the error rate of its p-value, also for small L. Another n data are simulated for
    the reference points.

    Args:
        program: any program; its guide needs draws only.
        n: number of simulations.
        y: (n, …), covariates.
        like: data of the program, whose rows give the shape of the simulated ones; only a `VAE`
            needs none.
        num_draws: L, draws of q(z|x) per simulation.
        num_globals: draws of the global latents, if there are any.
        seed: random seed; None uses a fresh one.
        memory_budget: bytes for the draws of one chunk of the simulations.

    Returns:
        Coverage, with pit (n,).

    Raises:
        ConfigError: like is missing, or a setting is out of range.

    References:
        Lemos et al., 2023, https://arxiv.org/abs/2302.03026

    Example:
        >>> import pyrovae as pv
        >>> vae = pv.build((2,), latent_dim=1, seed=0)
        >>> found = coverage(vae, 200)
        >>> found.pit.shape, found.expected_coverage.shape
        (torch.Size([200]), torch.Size([19]))
    """
    n, num_draws = whole_number(n, "n", 1), whole_number(num_draws, "num_draws", 1)
    num_globals = whole_number(num_globals, "num_globals", 1)
    with diagnosing(program, seed):
        parts = [list(simulated(program, n, y, like, num_globals=num_globals)) for _ in range(2)]
        points = References([_reference(*part) for part in parts[0]])
        found = [_pit(*part, points, num_draws, memory_budget) for part in parts[1]]
    return _summarized(concat(found, 0))


@exclusive
def local_coverage(
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
) -> Coverage:
    """Check on data simulated near each x_obs whether q(z|x) covers the latents jointly.

    Args:
        program: a program whose guide has a density at given latents.
        x: (N, *event), a few data of interest; each takes 2 n simulations.
        y: (N, …), covariates, also of the simulated data.
        mask: of x's shape, true where x is observed, also of the simulated data.
        n: number of simulations per datum.
        num_draws: L, draws of q(z|x) per simulation.
        num_globals: draws of the global latents, at most n, if there are any.
        seed: random seed; None uses a fresh one.
        memory_budget: bytes for the draws of one chunk of the simulations.

    Returns:
        Coverage, with pit (N, n).

    Raises:
        DataError: x does not fit the program.
        ConfigError: the guide has no density at given latents, or a setting is out of range.

    References:
        Lemos et al., 2023, https://arxiv.org/abs/2302.03026

    Example:
        >>> import pyrovae as pv
        >>> vae = pv.build((2,), latent_dim=1, seed=0)
        >>> found = local_coverage(vae, torch.eye(2), n=50)
        >>> found.pit.shape, found.p_value.shape
        (torch.Size([2, 50]), torch.Size([2]))
    """
    n, num_draws = whole_number(n, "n", 1), whole_number(num_draws, "num_draws", 1)
    num_globals = min(n, whole_number(num_globals, "num_globals", 1))
    data = validated(program, x, y, mask)
    found = []
    with diagnosing(program, seed):
        programs = given_globals(program, data, num_globals)
        for row in data.read(1):
            copies = [row.repeat(len(i)) for i in torch.arange(n).chunk(len(programs))]
            pairs = list(zip(programs, copies, strict=False))
            points = References([_reference(p, *simulated_near(p, near)) for p, near in pairs])
            parts = [
                _pit(p, *simulated_near(p, near), points, num_draws, memory_budget, near)
                for p, near in pairs
            ]
            found.append({name: v[None] for name, v in concat(parts, 0).items()})
    return _summarized(concat(found, 0))


class References:
    """Latents of simulated data, as reference points of similar data.

    Args:
        parts: features of data (m, F), latents (m, E) and variance (E,) of q at these data.
    """

    def __init__(self, parts: list[tuple[Tensor, Tensor, Tensor]]):
        features, self.latents = (torch.cat([part[i] for part in parts]) for i in range(2))
        variance = torch.stack([part[2] for part in parts]).mean(0)
        variance = torch.where(variance > 0, variance, self.latents.var(0, correction=0))
        self.scale = torch.where(variance > 0, variance, 1.0).sqrt()
        spread = features.std(0, correction=0)
        self.unit = torch.where(spread > 0, spread, 1.0)
        self.features = features / self.unit

    def nearest(self, batch: Batch) -> Tensor:
        """Return the latents of the most similar datum for each row, (n, E)."""
        pieces = (_features(batch) / self.unit).split(ROWS)
        return self.latents[torch.cat([torch.cdist(p, self.features).argmin(1) for p in pieces])]


def _reference(program: nn.Module, data: Batch, latents: Arrays) -> tuple[Tensor, ...]:
    joint = joint_of(program, data)
    one, other = _embedded(joint.draw_guide(2), joint.supports)
    truth = {name: z[None] for name, z in latents.items()}
    variance = ((one - other) ** 2).mean(0) / 2
    return _features(data), _embedded(truth, joint.supports)[0], variance


def _pit(
    program: nn.Module,
    data: Batch,
    latents: Arrays,
    points: References,
    num_draws: int,
    memory_budget: int | None,
    near: Batch | None = None,
) -> Arrays:
    """Return pit and ess, (n,) each; weighted if the latents were drawn at the rows of `near`."""
    size = sum(max(1, z[0].numel()) for z in latents.values())
    rows = max(1, budget_of(memory_budget, data.device).num_bytes // (16 * num_draws * size))
    if near is not None:
        rows = min(rows, rows_at_once(program, near, num_draws + 1, memory_budget))
    found = []
    for start in range(0, data.num_data, rows):
        at = slice(start, start + rows)
        joint = joint_of(program, data.rows(at))
        drawn = joint.draw_guide(num_draws)
        z = {name: torch.cat([value[None, at], drawn[name]]) for name, value in latents.items()}
        distance = (_embedded(z, joint.supports) - points.nearest(data.rows(at))) / points.scale
        distance = (distance**2).sum(-1)
        log_w = torch.zeros_like(distance)
        if near is not None:
            there = joint_of(program, near.rows(at))
            log_w = there.log_guide(z).double() - there.terms(z)[0]
        ess = 1 / (log_w.softmax(0) ** 2).sum(0)
        found.append({"pit": weighted_pit(distance, log_w).cpu(), "ess": ess.cpu()})
    return concat(found, 0)


def _embedded(latents: Latents, supports: dict[str, constraints.Constraint]) -> Tensor:
    """Return latents as points (S, n, E) float64, an angle as a point on the unit circle."""
    points = {}
    for name, z in latents.items():
        is_angle = isinstance(coordinate_of(supports[name]), Circle)
        points[name] = torch.stack([z.cos(), z.sin()], -1) if is_angle else z
    return flat(points).double()


def _features(data: Batch) -> Tensor:
    """Return x and y as numbers, (n, F) float64."""
    columns = [site.x for site in data.sites.values()] + ([] if data.y is None else [data.y])
    return torch.cat([c.reshape(len(c), -1).double().nan_to_num() for c in columns], 1)


def _summarized(found: Arrays) -> Coverage:
    pit = found["pit"]
    n = pit.shape[-1]
    inside = (pit[..., None] < LEVELS).double().mean(-2)
    p_value = uniform_p_value(pit.movedim(-1, 0))
    error = (LEVELS * (1 - LEVELS) / n).sqrt()
    return Coverage(pit, p_value, LEVELS, inside, error, found["ess"].mean(-1))
