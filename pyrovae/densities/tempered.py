"""Densities with their scale multiplied by a temperature T, about their own centers.

    Normal N(μ, σ²)      N(μ, T² σ²), and so for every family with a location and a scale
    mixture              the components, tempered; their weights stay
    z = f(u)             u, tempered: for flows and other transformed densities

T < 1 draws nearer to the centers, so samples look cleaner and are less diverse. A tempered draw is
not a draw of the model.
"""

from functools import singledispatch

import pyro.distributions as dist
from torch import distributions as torchs

from pyrovae.densities.flows import FlowDistribution
from pyrovae.errors import ConfigError


@singledispatch
def tempered(p: torchs.Distribution, temperature: float) -> torchs.Distribution:
    """Return the density with its scale multiplied by the temperature.

    Args:
        p: a density over z.
        temperature: T > 0.

    Raises:
        ConfigError: the density has no scale.

    References:
        Glow, Kingma & Dhariwal, 2018, https://arxiv.org/abs/1807.03039 (section 6)

    Example:
        >>> tempered(dist.Normal(3.0, 2.0), 0.5).scale
        tensor(1.)
    """
    if not (hasattr(p, "loc") and hasattr(p, "scale")):
        raise ConfigError(
            f"temperature = {temperature:g} scales draws about the centers of the prior, but a "
            f"{type(p).__name__} has no scale.\nDraw at temperature=1, from the prior itself."
        )
    new = p.expand(p.batch_shape)
    new.scale = temperature * p.scale
    return new


@tempered.register
def _(p: torchs.Independent, temperature: float) -> torchs.Distribution:
    return dist.Independent(tempered(p.base_dist, temperature), p.reinterpreted_batch_ndims)


@tempered.register
def _(p: torchs.MultivariateNormal, temperature: float) -> torchs.Distribution:
    return dist.MultivariateNormal(p.loc, scale_tril=temperature * p.scale_tril)


@tempered.register
def _(p: torchs.LowRankMultivariateNormal, temperature: float) -> torchs.Distribution:
    factor, diagonal = temperature * p.cov_factor, temperature**2 * p.cov_diag
    return dist.LowRankMultivariateNormal(p.loc, factor, diagonal)


@tempered.register
def _(p: torchs.MixtureSameFamily, temperature: float) -> torchs.Distribution:
    components = tempered(p.component_distribution, temperature)
    return dist.MixtureSameFamily(p.mixture_distribution, components)


@tempered.register
def _(p: torchs.TransformedDistribution, temperature: float) -> torchs.Distribution:
    return dist.TransformedDistribution(tempered(p.base_dist, temperature), p.transforms)


@tempered.register
def _(p: FlowDistribution, temperature: float) -> torchs.Distribution:
    return FlowDistribution(p.transform, tempered(p.base, temperature))
