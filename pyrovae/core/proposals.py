"""Mixtures of proposals for importance sampling, so that no region of the posterior is missed.

    r(z) = Σ_j α_j r_j(z),    z ~ r_j for exactly K_j = α_j K draws,    w = p(x, z) / r(z)

Weights of draws from the guide alone have a heavy tail wherever the guide is narrower than the
posterior, and a run that misses the tail looks as if there were none. The mixture adds the prior,
which bounds the weights by p(x|z) / α, and the guide widened by two factors s around its mean m,

    r_s(u) = q(m + (u − m)/s) / s^D,    D (log s + 1/(2 s²) − ½) = c

on the real line, z = T(u). c is the KL divergence of a normal guide to its widened version, the
same for any dimension D; s is 1.8 and 5.7 for D = 1, 1.08 and 1.21 for D = 40.

References:
    Weighted Average Importance Sampling and Defensive Mixture Distributions, Hesterberg, 1995,
    https://doi.org/10.1080/00401706.1995.10484303
    Safe and Effective Importance Sampling, Owen & Zhou, 2000,
    https://doi.org/10.1080/01621459.2000.10473909
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyrovae.core.joint import ProgramJoint, Unconstrained, VAEJoint
from pyrovae.densities.supports import covers_line

WIDENED_SHARE, PRIOR_SHARE = 0.2, 0.2
PRIOR_SHARE_ALONE = 0.5  # where there are no widened guides
DIVERGENCES = (0.25, 1.25)  # c, nats
CENTER_DRAWS = 64
MIN_DRAWS = 20  # of a mixture: at least four of each component


class Component(NamedTuple):
    """A density of a mixture.

    Attributes:
        share: α.
        draw: n → points of the space, (n, N, …).
        log_prob: (points, log p(z) there) → log r_j, (n, N), nats.
    """

    share: float
    draw: Callable[[int], Any]
    log_prob: Callable[[Any, Tensor], Tensor]


class Guide(NamedTuple):
    """A density that resembles the posterior.

    Attributes:
        draw: n → points of the space, (n, N, …).
        log_prob: points → log q, (n, N), nats.
    """

    draw: Callable[[int], Any]
    log_prob: Callable[[Any], Tensor]


class Mixture:
    """A mixture of a guide, its widened versions and the prior, at fixed data.

    Args:
        space: log p(z) and log p(x|z) as functions of points, and draws of p(z).
        guide: over the same points; its widened versions need points on the real line.

    Attributes:
        is_widened: whether the mixture contains widened guides.
    """

    def __init__(self, space: VAEJoint | ProgramJoint | Unconstrained, guide: Guide):
        self.space, self.is_widened = space, isinstance(space, Unconstrained)
        widened = _widened(guide) if self.is_widened else []
        share = PRIOR_SHARE if self.is_widened else PRIOR_SHARE_ALONE
        prior = Component(share, space.draw_prior, lambda _, log_prior: log_prior)
        share = 1 - sum(c.share for c in (*widened, prior))
        first = Component(share, guide.draw, lambda point, _: guide.log_prob(point))
        self.components = [first, *widened, prior]

    def counts(self, num_samples: int) -> list[int]:
        """Return K_j for each component; they sum to K, which is at least `MIN_DRAWS`."""
        others = [round(c.share * num_samples) for c in self.components[1:]]
        return [num_samples - sum(others), *others]

    def draw(self, index: int, num_samples: int) -> tuple[Any, Tensor]:
        """Draw from one component: points of the space, and log w, (n, N) float64."""
        point = self.components[index].draw(num_samples)
        log_prior, log_likelihood = self.space.terms(point)
        log_parts = [
            c.log_prob(point, log_prior).double() + math.log(c.share) for c in self.components
        ]
        return point, (log_prior + log_likelihood).double() - torch.stack(log_parts).logsumexp(0)


def of_guide(joint: VAEJoint | ProgramJoint) -> Mixture:
    """Return the mixture for the guide of a program.

    Latents that do not map from the real line one to one have no widened guides.
    """
    is_line = all(map(covers_line, joint.supports.values()))
    space = Unconstrained(joint, method="widening") if is_line else joint
    return Mixture(space, Guide(space.draw_guide, space.log_guide))


def _widened(guide: Guide) -> list[Component]:
    center = guide.draw(CENTER_DRAWS).mean(0)
    return [_scaled(guide, center, widening(c, center.shape[-1])) for c in DIVERGENCES]


def _scaled(guide: Guide, center: Tensor, factor: float) -> Component:
    log_volume = center.shape[-1] * math.log(factor)

    def draw(num_samples: int) -> Tensor:
        return center + factor * (guide.draw(num_samples) - center)

    def log_prob(u: Tensor, _: Tensor) -> Tensor:
        return guide.log_prob(center + (u - center) / factor) - log_volume

    return Component(WIDENED_SHARE, draw, log_prob)


def widening(divergence: float, dim: int) -> float:
    """Return the factor s > 1 with D (log s + 1/(2 s²) − ½) = c, by bisection.

    Example:
        >>> round(widening(0.25, 1), 2), round(widening(0.25, 100), 2)
        (1.82, 1.05)
    """
    low, high = 1.0, math.exp(divergence / dim + 0.5)
    for _ in range(60):
        middle = (low + high) / 2
        is_below = dim * (math.log(middle) + 0.5 / middle**2 - 0.5) < divergence
        low, high = (middle, high) if is_below else (low, middle)
    return (low + high) / 2
