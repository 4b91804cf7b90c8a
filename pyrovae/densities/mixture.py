"""Mixtures of K densities over z, fast for many diagonal Gaussians.

    log p(z) = log Σ_k π_k N(z; μ_k, diag σ_k²)

With λ = 1 / σ², the squared distances of B points to K components are matrix products,

    Σ_d (z_d − μ_kd)² λ_kd = (z²) λᵀ − 2 z (μ λ)ᵀ + Σ_d μ_kd² λ_kd,

instead of a (B, K, D) array. They cancel to about 1e-7 of z² λ in float32, so small mixtures,
where the array costs little, use the subtraction. The choice depends only on the mixture, so
the density of a point does not depend on the others in the batch.
"""

import math

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

SMALL = 2**6  # K · D: up to this the array is cheap for any number of points


class Mixture(dist.MixtureSameFamily):
    """Mixture that declares the support ℝ^D if its components have it.

    torch's own wraps the support in a constraint without a bijection, which NUTS needs.

    Args:
        weights: a `Categorical` with batch_shape () over K components.
        components: a density with batch_shape (K,) and event_shape (D,).

    Example:
        >>> components = dist.Normal(torch.zeros(3, 2), 1.0).to_event(1)
        >>> mixture = Mixture(dist.Categorical(logits=torch.zeros(3)), components)
        >>> mixture.support
        IndependentConstraint(Real(), 1)
        >>> mixture.log_prob(torch.zeros(2))
        tensor(-1.8379)
    """

    def __init__(self, weights: dist.Categorical, components: dist.Distribution, **settings):
        super().__init__(weights, components, **settings)
        base = getattr(components, "base_dist", None)
        is_single = components.batch_shape.numel() == len(weights.logits)
        self.normal = base if type(base) is dist.Normal and is_single else None
        self.log_pi = weights.logits.log_softmax(-1)

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> "Mixture":
        new = super().expand(batch_shape, self._get_checked_instance(Mixture, _instance))
        new.normal, new.log_pi = self.normal, self.log_pi
        return new

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        support = self._component_distribution.support
        coordinate = getattr(support, "base_constraint", support)
        is_real = coordinate is constraints.real or support is constraints.real_vector
        return support if is_real else super().support

    def log_prob(self, value: Tensor) -> Tensor:
        if self.normal is None or self.normal.loc.numel() <= SMALL:
            return super().log_prob(value)
        log_components = diagonal_log_probs(value, self.normal.loc, self.normal.scale)
        log_p = (log_components + self.log_pi).logsumexp(-1)
        return log_p.expand(torch.broadcast_shapes(log_p.shape, self.batch_shape))


def diagonal_log_probs(z: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    """Return log N(z; μ_k, diag σ_k²) for every k, in nats: (*S, D), (K, D), (K, D) → (*S, K)."""
    center = loc.detach().mean(0)  # leaves distances unchanged and reduces cancellation
    z, loc = z - center, loc - center
    precision = scale**-2
    distance = z**2 @ precision.T - 2 * z @ (loc * precision).T + (loc**2 * precision).sum(-1)
    log_norm = scale.log().sum(-1) + 0.5 * loc.shape[-1] * math.log(2 * math.pi)
    return -0.5 * distance - log_norm
