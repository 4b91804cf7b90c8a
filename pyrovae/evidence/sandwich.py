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
from pyrovae.contract.validator import validated
from pyrovae.core.draws import diagnosing
from pyrovae.core.joint import Latents, Unconstrained, flat, joint_of
from pyrovae.core.simulation import simulated
from pyrovae.core.summed import without_discrete
from pyrovae.data import Batch, concat
from pyrovae.evidence.annealing import AIS, backward, forward, pilot, rows_at_a_time, summed
from pyrovae.runtime.ambient import exclusive


class Sandwich(NamedTuple):
    """Lower and upper bounds on log p(x) of simulated data, in nats.

    Attributes:
        x: (n, *event), the simulated data, or a dict of them by observed site.
        z: (n, D), the latents that generated them, concatenated: exact draws of p(z|x).
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


@exclusive
def bdmc(
    program: nn.Module,
    n: int,
    y: Any = None,
    *,
    like: Any = None,
    num_samples: int = 16,
    num_temperatures: int = 1000,
    num_leapfrog: int = 5,
    start: str = "prior",
    num_globals: int = 10,
    seed: int | None = 0,
    memory_budget: int | None = None,
) -> Sandwich:
    """Measure how tight annealing is, on data simulated from the model (bidirectional Monte Carlo).

    z* ~ p(z), x ~ p(x|z*). Forward chains from f_0 bound log p(x) from below, backward chains from
    the exact posterior draw z* from above. Both bounds hold in expectation, so averaged over n
    data the gap bounds the bias of `log_evidence(…, method="ais")` with the same settings on such
    data. For real data, which the model may explain worse, it is only indicative.

    Args:
        program: a program whose local latents map from the real line.
        n: number of data to simulate.
        y: (n, …), covariates.
        like: data of the program, whose rows give the shape of the simulated ones; only a `VAE`
            needs none.
        num_samples: S, chains per direction and datum.
        num_temperatures: T, steps from f_0 to the posterior.
        num_leapfrog: L, leapfrog steps per transition.
        start: f_0, "prior" or "guide".
        num_globals: draws of global latents w, at which data are simulated and bounded.
        seed: random seed; None uses a fresh one.
        memory_budget: bytes for the chains of one chunk of data, as in `log_evidence`.

    Returns:
        Sandwich, arrays over the n data.

    Raises:
        ConfigError: like is missing, a latent does not map from the real line, or a setting is
            invalid.

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
    data, codes, bounds = [], [], []
    with diagnosing(program, seed):
        for part, simulations, latents in simulated(program, n, y, like, num_globals=num_globals):
            data.append(simulations)
            codes.append(flat({name: z[None] for name, z in latents.items()})[0])
            start = 0
            checked = validated(part, simulations.x, simulations.y)
            part = without_discrete(part, checked)
            for rows in rows_at_a_time(part, checked, how.num_samples, memory_budget):
                stop = start + rows.num_data
                truth = {name: z[None, start:stop] for name, z in latents.items()}
                bounds.append(_bounds(part, rows, truth, how))
                start = stop
    sides = (torch.cat(side) for side in zip(*bounds, strict=True))
    return Sandwich(concat(data).x, torch.cat(codes), *sides)


def _bounds(program: nn.Module, batch: Batch, latents: Latents, how: AIS) -> tuple:
    density = Unconstrained(joint_of(program, batch), method="bdmc")
    kernels = pilot(density, how)
    lower = summed(forward(density, kernels, how)).log_px
    u = density.coordinates(latents).expand(how.num_samples, -1, -1)
    upper = -summed(-backward(density, kernels, how, u)).log_px
    return lower, upper
