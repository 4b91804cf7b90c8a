"""KL(q(z|x) ‖ p(z)) per latent dimension, and the posterior means.

    KL(q ‖ p) = Σ_d KL(q_d ‖ p_d)                    where q and p factorize
    KL(q ‖ p) = Σ_d KL(q_d ‖ p_d) + KL(q ‖ Π_d q_d)  where p alone does

In the second case (a full-covariance normal guide) the numbers are those of the marginals,
and their sum falls short of the KL by the guide's total correlation. Under a prior that does
not factorize (a mixture, a flow) the KL does not split and the numbers are NaN.
"""

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import (
    Distribution,
    Independent,
    LowRankMultivariateNormal,
    MultivariateNormal,
    kl_divergence,
)

from pyrovae.contract.densities import coordinate_of
from pyrovae.contract.layout import layouts_of
from pyrovae.core.draws import Arrays, local_latents
from pyrovae.core.terms import Traces
from pyrovae.densities.discrete import BernoulliVector
from pyrovae.densities.supports import Circle, support_of
from pyrovae.errors import ConfigError


def read_kl(traces: Traces, num_data: int) -> Arrays:
    """Read kl_per_dimension, (s, n, D) float64, nats; NaN where it does not split."""
    layouts = layouts_of(*traces)
    parts = []
    for name in local_latents(traces):
        q, model = traces.guide.nodes[name]["fn"], traces.model.nodes[name]
        kl = layouts[name].canonical(split_kl(q, model["fn"], model["value"]))
        parts.append(kl.reshape(*kl.shape[:2], -1).double())
    return {"kl_per_dimension": _joined(parts)}


def _joined(parts: list[Tensor]) -> Tensor:
    if not parts:
        raise ConfigError(
            "the program has no latent inside the plate 'data', so there is no latent dimension to "
            "inspect.\nThis diagnostic needs q(z|x), with one z per datum."
        )
    return torch.cat(parts, -1)


def split_kl(q: Distribution, p: Distribution, z: Tensor) -> Tensor:
    """Return KL(q_d ‖ p_d), nats: in closed form, else log q_d(z) − log p_d(z), else NaN.

    Args:
        q: q(z|x).
        p: p(z).
        z: (S, N, *event), drawn from q.

    Example:
        >>> q = dist.Normal(torch.ones(3, 2), 1.0).to_event(1)
        >>> split_kl(q, dist.Normal(torch.zeros(3, 2), 1.0).to_event(1), torch.zeros(1, 3, 2))[0, 0]
        tensor([0.5000, 0.5000])
    """
    sides = marginals(q), marginals(p)
    # a prior's marginals say nothing where its dimensions depend on each other
    if None in sides or isinstance(_inner(p), MultivariateNormal | LowRankMultivariateNormal):
        return torch.full_like(z, torch.nan, dtype=torch.float64)
    try:
        kl = kl_divergence(*sides)
    except NotImplementedError:
        kl = sides[0].log_prob(z) - sides[1].log_prob(z)
    return kl.expand(z.shape)


def marginals(density: Distribution) -> Distribution | None:
    """Return one density per number of the event, as batch dimensions; None if unknown."""
    inner = _inner(density)
    if isinstance(inner, MultivariateNormal | LowRankMultivariateNormal):
        return dist.Normal(inner.mean, inner.variance.sqrt())
    if isinstance(inner, BernoulliVector):
        return dist.Bernoulli(logits=inner.logits)
    return None if inner.event_shape else inner  # a site of one number is its own marginal


def _inner(density: Distribution) -> Distribution:
    while isinstance(density, Independent | dist.ExpandedDistribution):
        density = density.base_dist
    return density


def read_means(traces: Traces, num_data: int) -> Arrays:
    """Read mean: E[z|x] of q at each draw, (s, n, D) float64; the draw if q has no mean.

    An angle becomes the point exp(iz) on the unit circle, and the array complex128.
    """
    layouts = layouts_of(*traces)
    parts = []
    for name in local_latents(traces):
        q, z = traces.guide.nodes[name]["fn"], traces.guide.nodes[name]["value"]
        mean = layouts[name].canonical(_mean(q, z).expand(z.shape))
        mean = mean.reshape(*mean.shape[:2], -1)
        parts.append(mean.cdouble() if mean.is_complex() else mean.double())
    return {"mean": _joined(parts)}


def _mean(q: Distribution, z: Tensor) -> Tensor:
    if isinstance(coordinate_of(support_of(q)), Circle):
        return torch.polar(torch.ones_like(z), z)  # the mean of angles has no meaning
    try:
        mean = q.mean
    except NotImplementedError:
        return z
    return mean if torch.isfinite(mean).all() else z  # Categorical and heavy tails give NaN
