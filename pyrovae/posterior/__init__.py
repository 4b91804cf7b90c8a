"""Draws of the posterior p(z|x) = p(x|z) p(z) / p(x), beyond the guide's q(z|x).

- `grid`: exact draws by quadrature, for latent dimension 1 or 2,
- `sir`: draws of the guide, resampled by their importance weights, for any program,
- `hmc`: batched Hamiltonian Monte Carlo from the guide's draws, for continuous latents,
- `refine`: a better guide, optimized for each datum, instead of draws.

The first three return a `Posterior` with draws of shape (C, S, N, D): chain, draw, datum,
latent. Compare any of them with `vae.encode(x)`.
"""

from types import MappingProxyType

from pyrovae.posterior.cells import grid
from pyrovae.posterior.chains import hmc
from pyrovae.posterior.convergence import bulk_ess, e_bfmi, split_r_hat
from pyrovae.posterior.record import Posterior, SampleStats
from pyrovae.posterior.refinement import Refined, refine
from pyrovae.posterior.resampling import sir

__all__ = [
    "METHODS",
    "Posterior",
    "Refined",
    "SampleStats",
    "bulk_ess",
    "e_bfmi",
    "grid",
    "hmc",
    "refine",
    "sir",
    "split_r_hat",
]

# draws of p(z|x), by name
METHODS = MappingProxyType({"grid": grid, "sir": sir, "hmc": hmc})
