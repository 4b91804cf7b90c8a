"""Exact draws of p(z|x) from the cells of the quadrature grid, for one or two latents.

    z = T(u),    u ~ Σ_g P_g U(cell g),    P_g = p(z_g) |∂z/∂u|_g p(x|z_g) ΔV / p(x)

Uniform draws within cells of width h add h²/12 to the variance of each coordinate; cells are
split until that is below 0.2 % of the posterior's variance.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from pyrovae.checks import whole_number
from pyrovae.contract import validated
from pyrovae.core.draws import diagnosing
from pyrovae.evidence.quadrature import Cells, Settled, refined, settled_cells
from pyrovae.posterior.record import Posterior
from pyrovae.runtime.ambient import exclusive

FINE = 0.15  # h in units of the posterior's standard deviation: h²/12 = 0.19 % of its variance
MAX_CUTS = 3


@exclusive
def grid(
    vae: nn.Module,
    x: Any,
    y: Any = None,
    mask: Any = None,
    *,
    num_samples: int = 1000,
    seed: int | None = 0,
) -> Posterior:
    """Draw independently from p(z|x) = p(x|z) p(z) / p(x), by quadrature of Bayes' rule.

    Args:
        vae: a `VAE` of latent dimension 1 or 2.
        x: (N, *event).
        y: (N, …), covariates.
        mask: of x's shape, true where x is observed; the draws are then from p(z|x_observed).
        num_samples: S, draws per datum.
        seed: random seed; None uses a fresh one.

    Returns:
        Posterior, draws (1, S, N, D) float64.

    Raises:
        DataError: x does not fit the program.
        ConfigError: the program is not a `VAE` with one or two continuous latent dimensions.

    Example:
        >>> import pyrovae as pv
        >>> vae = pv.build((2,), latent_dim=1, seed=0)
        >>> grid(vae, torch.ones(3, 2), num_samples=100).draws.shape
        torch.Size([1, 100, 3, 1])
    """
    num_samples = whole_number(num_samples, "num_samples", 1)
    data = validated(vae, x, y, mask)
    found = {}
    with diagnosing(vae, seed):
        for settled in settled_cells(vae, data):
            members = settled.is_settled.nonzero()[:, 0].tolist()
            for i, member in enumerate(members):
                found[int(settled.rows[i])] = _draws(settled, member, i, num_samples)
    draws = torch.stack([found[row] for row in sorted(found)], 1)[None]
    nan = draws.new_full((len(found),), math.nan)
    return Posterior(draws, torch.full_like(nan, num_samples), nan, nan)


def _draws(settled: Settled, member: int, i: int, num_samples: int) -> Tensor:
    """Draw (S, D) from the cells of one datum: a member of the batch, the i-th to converge."""
    mine = settled.cells.datum == member
    cells = settled.cells._replace(
        center=settled.cells.center[mine],
        datum=torch.zeros_like(settled.cells.datum[mine]),
        log_joint=settled.cells.log_joint[mine],
        is_found=settled.cells.is_found[mine],
    )
    one = settled.batch.rows(slice(member, member + 1))
    log_px = settled.log_px[i : i + 1]
    is_open = torch.ones(1, dtype=torch.bool, device=mine.device)
    for _ in range(MAX_CUTS):
        if cells.width <= FINE * _spread(cells):
            break
        cells = refined(settled.vae, settled.space, one, cells, log_px, is_open)
    index = cells.log_joint.softmax(0).multinomial(num_samples, replacement=True)
    center = cells.center[index]
    return settled.space.transform(center + cells.width * (torch.rand_like(center) - 0.5))


def _spread(cells: Cells) -> float:
    """Estimate the posterior's standard deviation along its narrowest axis, or of narrower modes.

    A normal density of standard deviation σ occupies (2 √π σ/h)^D = 1 / Σ P² cells.
    """
    probability = cells.log_joint.softmax(0)
    dim = cells.center.shape[-1]
    covariance = torch.cov(cells.center.T, correction=0, aweights=probability).reshape(dim, dim)
    narrowest = torch.linalg.eigvalsh(covariance)[0].clamp(min=0.0).sqrt()
    num_cells = 1 / (probability**2).sum()
    modes = cells.width * num_cells ** (1 / dim) / (2 * math.sqrt(math.pi))
    return min(narrowest.item(), modes.item())
