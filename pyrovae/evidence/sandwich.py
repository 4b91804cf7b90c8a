"""Bounds on log p(x) of simulated data from both sides: bidirectional Monte Carlo.

    z* ~ p(z),  x ~ p(x|z*):  z* is an exact draw of p(z|x)
    lower  log (1/S) Σ_s w_s       annealed forward from f_0:   E[w] = p(x)
    upper  −log (1/S) Σ_s 1/w_s    annealed backward from z*:   E[1/w] = 1/p(x)

By Jensen's inequality lower ≤ log p(x) ≤ upper in expectation. The chains are those of
`evidence.annealing`, with the same frozen kernels in both directions.

References:
    Sandwiching the Marginal Likelihood Using Bidirectional Monte Carlo, Grosse, Ghahramani &
    Adams, 2015, https://arxiv.org/abs/1511.02543
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pyrovae.checks import whole_number
from pyrovae.contract.covariates import as_covariates
from pyrovae.contract.validator import validated
from pyrovae.core.draws import diagnosing
from pyrovae.core.joint import Unconstrained, joint_of
from pyrovae.data import Batch
from pyrovae.errors import ConfigError
from pyrovae.evidence.annealing import AIS, backward, forward, pilot, rows_at_a_time, summed
from pyrovae.networks import given
from pyrovae.vae import is_plain_vae


class Sandwich(NamedTuple):
    """Lower and upper bounds on log p(x) of simulated data, in nats.

    Attributes:
        x: (n, *event), the simulated data.
        z: (n, D), the latents that generated them: exact draws of p(z|x).
        lower: (n,) float64, log (1/S) Σ w of forward chains: ≤ log p(x) in expectation.
        upper: (n,) float64, −log (1/S) Σ 1/w of backward chains: ≥ log p(x) in expectation.
    """

    x: Tensor
    z: Tensor
    lower: Tensor
    upper: Tensor

    @property
    def gap(self) -> float:
        """The mean of upper − lower over data, nats: it bounds the bias of either bound."""
        return (self.upper - self.lower).mean().item()

    @property
    def gap_std_error(self) -> float:
        """The standard error of `gap` over data, nats; NaN for a single datum."""
        return (self.upper - self.lower).std().item() / math.sqrt(len(self.lower))


def bdmc(
    vae: nn.Module,
    n: int,
    y: Any = None,
    *,
    num_samples: int = 16,
    num_temperatures: int = 1000,
    num_leapfrog: int = 5,
    start: str = "prior",
    seed: int | None = 0,
    memory_budget: int | None = None,
) -> Sandwich:
    """Measure how tight annealing is, on data simulated from the model (bidirectional Monte Carlo).

    z* ~ p(z), x ~ p(x|z*). Forward chains from f_0 bound log p(x) from below, backward chains from
    the exact posterior draw z* from above. Both bounds hold in expectation, so averaged over n
    data the gap bounds the bias of `log_evidence(…, method="ais")` with the same settings on such
    data. For real data, which the model may explain worse, it is only indicative.

    Args:
        vae: a `VAE` whose latent maps from the real line.
        n: number of data to simulate.
        y: (n, …), covariates.
        num_samples: S, chains per direction and datum.
        num_temperatures: T, steps from f_0 to the posterior.
        num_leapfrog: L, leapfrog steps per transition.
        start: f_0, "prior" or "guide".
        seed: random seed; None uses a fresh one.
        memory_budget: bytes for the chains of one chunk of data, as in `log_evidence`.

    Returns:
        Sandwich, arrays over the n data.

    Raises:
        ConfigError: vae is not a `VAE`, its latent does not map from the real line, or a setting
            is invalid.

    References:
        Sandwiching the Marginal Likelihood Using Bidirectional Monte Carlo, Grosse, Ghahramani
        & Adams, 2015, https://arxiv.org/abs/1511.02543

    Example:
        >>> import pyrovae as pv
        >>> vae = pv.build((4,), latent_dim=2, seed=0)
        >>> sandwich = bdmc(vae, 20, num_temperatures=20)
        >>> abs(sandwich.gap) < 0.1
        True
    """
    n, how = whole_number(n, "n", 1), AIS(num_samples, num_temperatures, num_leapfrog, start)
    if not is_plain_vae(vae):
        raise ConfigError(
            f"bdmc simulates z ~ p(z), x ~ p(x|z) from the parts of a VAE, but this is a "
            f"{type(vae).__name__}.\nWrite log_evidence(…, method='ais') for its lower bound."
        )
    y = as_covariates(y, n, vae)
    with diagnosing(vae, seed):
        z = vae.prior(*given(y, vae.prior)).expand((n,)).sample()
        x = vae.decoder(z, *given(y, vae.decoder)).sample()
        bounds, start = [], 0
        for rows in rows_at_a_time(vae, validated(vae, x, y), how.num_samples, memory_budget):
            stop = start + rows.num_data
            bounds.append(_bounds(vae, rows, z[start:stop], how))
            start = stop
    return Sandwich(x, z, *(torch.cat(side) for side in zip(*bounds, strict=True)))


def _bounds(vae: nn.Module, batch: Batch, z: Tensor, how: AIS) -> tuple:
    density = Unconstrained(joint_of(vae, batch), method="bdmc")
    kernels = pilot(density, how)
    lower = summed(forward(density, kernels, how)).log_px
    u = density.coordinates({"z": z[None]}).expand(how.num_samples, -1, -1)
    upper = -summed(-backward(density, kernels, how, u)).log_px
    return lower, upper
