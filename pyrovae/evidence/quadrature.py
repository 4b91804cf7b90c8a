"""Compute log p(x) by quadrature over a latent space of one or two dimensions.

    log p(x_i) = log Σ_g p(z_g) |∂z/∂u|_g p(x_i|z_g) ΔV,    z = T(u)

u is z itself on the real line; a half-line, an interval or a simplex is covered through its map T
from the real line, so that edges of p(z) are far away in u; the circle is one period. A regular
grid over the region of prior and posterior is refined, for each datum only where its joint
density matters: cells that carry less than e^−27 of it are dropped, the others split into 3^D.
The midpoint rule converges faster than any power of the step once the step is below the
posterior's width, so two levels that agree to 1e-6 nat are exact to about that. Everything is in
float64, because 1e-6 nat is below the rounding of float32 log-densities.
"""

import copy
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Transform

from pyrovae.checks import whole_number
from pyrovae.data import Batch, Source
from pyrovae.densities.supports import period_of, support_of, transform_onto
from pyrovae.errors import ConfigError
from pyrovae.evidence.record import Evidence, exact
from pyrovae.networks import given
from pyrovae.vae import is_plain_vae, log_likelihood, visible

DATA_AT_A_TIME = 256
NUMBERS_AT_A_TIME = 2**18  # per evaluation of the decoder, so that they fit a processor cache
NEGLIGIBLE = 27.0  # nats below log p(x): e^-27 = 2e-12, times the number of cells
CELLS = {1: 601, 2: 81}  # along an axis of the first grid, by latent dimension
MAX_LEVELS = 8
MAX_CELLS = 2**25  # pairs of a cell and a datum per level
TOLERANCE = 1e-6  # nats between two levels


class Cells(NamedTuple):
    """Pairs of a cell and a datum to which it may contribute.

    Attributes:
        center: (P, D), the cells' midpoints u.
        datum: (P,), the row of x.
        log_joint: (P,), log p(x, z) at the midpoint, nats.
        is_found: (P,), whether the cell contains a draw from the guide, so that a peak narrower
            than the first grid's cells is not missed between midpoints.
        width: width of the cells along each axis.
    """

    center: Tensor
    datum: Tensor
    log_joint: Tensor
    is_found: Tensor
    width: float


@dataclass(frozen=True)
class Grid:
    """Quadrature over one or two latent dimensions of a `VAE`, exact to about 1e-6 nat.

    Args:
        max_cells: cells of a level per datum; a density that needs more, for its edges say, is an
            error. None is 2²⁵ for the data in a chunk.

    Example:
        >>> import pyrovae as pv
        >>> vae = pv.build((2,), latent_dim=1, seed=0)
        >>> pv.log_evidence(vae, torch.ones(1, 2), method=Grid()).std_error
        tensor([0.], dtype=torch.float64)
    """

    max_cells: int | None = None

    def __post_init__(self) -> None:
        if self.max_cells is not None:
            whole_number(self.max_cells, "max_cells", 1)

    def __call__(
        self, program: nn.Module, data: Source | Batch, *, memory_budget: int | None = None
    ) -> Evidence:
        """Return log p(x) for each datum; `MAX_CELLS` bounds the memory, not the budget."""
        shape = (data.count(),)
        log_px = torch.full(shape, math.nan, dtype=torch.float64, device=data.device)
        for settled in settled_cells(program, data, self.max_cells):
            log_px[settled.rows] = settled.log_px
        return exact(log_px)


class Space(NamedTuple):
    """The latent space of a prior, in coordinates u on the real line.

    Attributes:
        transform: T, z = T(u).
        dim: D, numbers of u.
        period: of each number, for an angle; else None.
    """

    transform: Transform
    dim: int
    period: float | None


class Settled(NamedTuple):
    """Data whose log p(x) has converged, with their cells.

    Attributes:
        vae: the VAE in float64.
        space: the latent space, whose cells these are.
        batch: the current data in float64; cells.datum indexes its rows.
        cells: cells of all data that had not converged before.
        is_settled: (n,), which data of the batch have converged.
        rows: (m,), their rows in x.
        log_px: (m,), nats.
    """

    vae: nn.Module
    space: "Space"
    batch: Batch
    cells: Cells
    is_settled: Tensor
    rows: Tensor
    log_px: Tensor


def settled_cells(
    vae: nn.Module, data: Source | Batch, max_cells: int | None = None
) -> Iterator[Settled]:
    """Yield each datum once, when its grid has converged; errors as in `Grid`."""
    if not is_plain_vae(vae):
        raise ConfigError(
            f"the grid covers the single latent of a VAE, but this is a {type(vae).__name__}.\n"
            "Use method='importance', or posterior.sir for draws, which take any program."
        )
    vae, start = copy.deepcopy(vae).double(), 0
    for part in data.read(DATA_AT_A_TIME):
        part = part.double()
        p_z = vae.prior(*given(part.y, vae.prior))
        space = space_of(p_z, "the grid")
        rows = torch.arange(start, start + part.num_data, device=part.device)
        most = MAX_CELLS if max_cells is None else max_cells * part.num_data
        for cells, is_settled, log_px in _settling(vae, space, part, most):
            yield Settled(vae, space, part, cells, is_settled, rows[is_settled], log_px[is_settled])
        start += part.num_data


def log_joint(vae: nn.Module, space: Space, batch: Batch, u: Tensor) -> Tensor:
    """Return log p(x, z) |∂z/∂u| in nats, (*S, N), at u (*S, 1 or N, D)."""
    if batch.y is not None:  # one z for all data is not enough where a part sees their covariates
        u = u.expand(*u.shape[:-2], batch.num_data, -1) if u.dim() > 2 else u
    z = space.transform(u)
    p_x = vae.decoder(z, *given(batch.y, vae.decoder))
    observed = log_likelihood(p_x, batch.x, batch.mask)
    p_z = vae.prior(*given(batch.y, vae.prior))
    log_det = space.transform.log_abs_det_jacobian(u, z)
    log_det = log_det.sum(-1) if log_det.dim() == u.dim() else log_det
    joint = p_z.log_prob(z) + log_det + observed
    # far out, T rounds to an edge, where a density may be infinite
    return joint.where(p_z.support.check(z) & joint.isfinite(), -math.inf)


def space_of(p_z: Distribution, method: str) -> Space:
    """Return the space of p(z); raise ConfigError unless it has one or two dimensions."""
    try:
        transform = transform_onto(support_of(p_z) or p_z.support)
    except NotImplementedError:
        raise ConfigError(
            f"{method} covers an area of the latent space with cells, but the support of p(z), "
            f"{p_z.support}, has no area: it is discrete or lower-dimensional.\n"
            "Use method='enumerate' for discrete latents, method='importance' for others."
        ) from None
    dim = transform.inv(p_z.sample()).shape[-1]
    if dim > 2:
        raise ConfigError(
            f"{method} covers the latent space with cells, but this one has {dim} dimensions.\n"
            "It supports at most 2; use method='importance', or posterior.sir for draws."
        )
    return Space(transform, dim, period_of(transform))


def _settling(
    vae: nn.Module, space: Space, batch: Batch, most: int
) -> Iterator[tuple[Cells, Tensor, Tensor]]:
    """Yield per level the cells, which data have just converged, and log p(x), (N,) each."""
    seen = visible(batch.x, batch.mask, vae.encoder)
    q_z = vae.encoder(*seen, *given(batch.y, vae.encoder))
    found = space.transform.inv(q_z.sample((16,)))
    cells = _first_cells(vae, space, batch, found)
    log_px = _log_sum(cells, batch.num_data)
    is_open = torch.ones_like(log_px, dtype=torch.bool)
    moved = torch.full_like(log_px, math.inf)
    for _ in range(MAX_LEVELS):
        # a density with an edge or a cusp refines endlessly: stop before memory runs out
        if (cells.log_joint > log_px[cells.datum] - NEGLIGIBLE).sum() * 3**space.dim > most:
            break
        cells = refined(vae, space, batch, cells, log_px, is_open)
        after = torch.where(is_open, _log_sum(cells, batch.num_data), log_px)
        moved, log_px = (after - log_px).abs(), after
        is_settled = is_open & (moved <= TOLERANCE)
        if is_settled.any():
            yield cells, is_settled, log_px
        is_open = is_open & ~is_settled
        if not is_open.any():
            return
    raise ConfigError(
        f"the grid has not converged: log p(x) of datum {int(moved.argmax())} still changes by "
        f"{moved.max().item():.2g} nat at cells of width {cells.width:.2g}.\n"
        "Its posterior is too narrow for a grid, or p(z) has an edge or a cusp; use 'importance'."
    )


def _first_cells(vae: nn.Module, space: Space, batch: Batch, found: Tensor) -> Cells:
    """Cover the region that prior and guide suggest, widened until its rim is negligible."""
    if space.period:
        return _regular(vae, space, batch, found, space.period / 2)
    draws = vae.prior(*given(batch.y, vae.prior)).sample((1000,))
    reach = 2.0 * float(space.transform.inv(draws).abs().max())
    at_found = log_joint(vae, space, batch, found)  # (16, N)
    while True:
        cells = _regular(vae, space, batch, found, reach)
        log_px = _log_sum(cells, batch.num_data)
        is_rim = cells.center.abs().amax(-1) > 0.8 * reach
        rim = cells._replace(log_joint=cells.log_joint.masked_fill(~is_rim, -math.inf))
        matters = at_found > log_px - NEGLIGIBLE
        needed = 1.5 * float((found.abs().amax(-1) * matters).max())
        if (_log_sum(rim, batch.num_data) - log_px).max() < math.log(1e-7) and needed <= reach:
            return cells
        reach = max(1.5 * reach, needed)


def _regular(vae: nn.Module, space: Space, batch: Batch, found: Tensor, reach: float) -> Cells:
    dim = space.dim
    width = 2 * reach / CELLS[dim]
    axis = torch.arange(CELLS[dim], dtype=torch.float64, device=batch.x.device)
    axis = (axis + 0.5) * width - reach
    u = torch.cartesian_prod(*[axis] * dim).reshape(-1, dim)  # (G, D)
    num_data = batch.num_data
    size = max(1, NUMBERS_AT_A_TIME // batch.x.numel())
    values = [log_joint(vae, space, batch, part[:, None]) for part in u.split(size)]
    center = u[:, None].expand(-1, num_data, -1).reshape(-1, dim)
    datum = torch.arange(num_data, device=u.device).expand(len(u), -1).reshape(-1)
    return Cells(center, datum, torch.cat(values).reshape(-1), _holds(found, reach, width), width)


def _holds(found: Tensor, reach: float, width: float) -> Tensor:
    """Return (G · N,), whether a cell of the regular grid contains a draw of the datum."""
    _, num_data, dim = found.shape
    index = ((found + reach) / width).floor().long().clamp(0, CELLS[dim] - 1)  # (16, N, D)
    cell = index[..., 0] * CELLS[dim] ** (dim - 1) + (index[..., 1] if dim == 2 else 0)
    holds = torch.zeros(CELLS[dim] ** dim, num_data, dtype=torch.bool, device=found.device)
    return holds.scatter(0, cell, True).reshape(-1)


def refined(
    vae: nn.Module, space: Space, batch: Batch, cells: Cells, log_px: Tensor, is_open: Tensor
) -> Cells:
    """Split the cells that matter to data that have not converged, each into 3^D."""
    dim = cells.center.shape[-1]
    share = cells.log_joint + dim * math.log(cells.width) - log_px[cells.datum]
    kept = ((share > -NEGLIGIBLE) | cells.is_found) & is_open[cells.datum]
    width = cells.width / 3
    axis = (-width, 0.0, width)
    offsets = torch.tensor(
        list(itertools.product(*[axis] * dim)), dtype=torch.float64, device=cells.center.device
    )
    center = (cells.center[kept][:, None] + offsets).reshape(-1, dim)
    datum = cells.datum[kept].repeat_interleave(len(offsets))
    size = max(1, NUMBERS_AT_A_TIME // batch.x[0].numel())
    values = [
        log_joint(vae, space, batch.rows(n), u)
        for u, n in zip(center.split(size), datum.split(size), strict=True)
    ]
    is_found = torch.zeros_like(datum, dtype=torch.bool)
    return Cells(center, datum, torch.cat(values), is_found, width)


def _log_sum(cells: Cells, num_data: int) -> Tensor:
    """Return log Σ p(x, z) ΔV per datum, (N,)."""
    top = torch.full((num_data,), -math.inf, dtype=torch.float64, device=cells.datum.device)
    top = top.scatter_reduce(0, cells.datum, cells.log_joint, "amax")
    shift = top.clamp(min=-1e300)  # a datum without any finite cell stays at -inf
    total = torch.zeros_like(top).index_add(
        0, cells.datum, (cells.log_joint - shift[cells.datum]).exp()
    )
    return shift + total.log() + cells.center.shape[-1] * math.log(cells.width)
