"""Supports of densities, and maps onto them from the real line.

The circle: torch gives VonMises the support ℝ, but an angle and the same angle plus 2π are one
point. Its density is over z in [−π, π), which u ∈ ℝ covers by z = wrap(u), with |dz/du| = 1.
"""

import math

import torch
from pyro.distributions.torch_distribution import ExpandedDistribution, MaskedDistribution
from torch import Tensor
from torch.distributions import (
    AffineTransform,
    Distribution,
    Independent,
    Transform,
    TransformedDistribution,
    VonMises,
    biject_to,
    constraints,
)


class Circle(constraints.Constraint):
    """Angles in [−π, π], whose two ends are the same point."""

    event_dim = 0
    is_discrete = False

    def check(self, value: Tensor) -> Tensor:
        return value.abs() <= math.pi * (1 + 1e-6)

    def __repr__(self) -> str:  # torch's omits the first letter of the class name
        return "Circle()"


circle = Circle()


class Wrap(Transform):
    """The map of the real line onto the circle, z = u modulo 2π; its inverse is the identity.

    Attributes:
        period: 2π.

    Example:
        >>> Wrap()(torch.tensor([0.5, 0.5 + 2 * math.pi]))
        tensor([0.5000, 0.5000])
    """

    domain = constraints.real
    codomain = circle
    bijective = True
    sign = +1
    period = 2 * math.pi

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Wrap)

    __hash__ = Transform.__hash__

    def _call(self, x: Tensor) -> Tensor:
        return (x + math.pi).remainder(self.period) - math.pi

    def _inverse(self, y: Tensor) -> Tensor:
        return y

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.zeros_like(x)


@biject_to.register(Circle)
def _onto_the_circle(_: Circle) -> Wrap:
    return Wrap()


def support_of(density: Distribution) -> constraints.Constraint | None:
    """Return the density's support, the circle for an angle; None if it declares none.

    Example:
        >>> support_of(torch.distributions.Normal(0.0, 1.0))
        Real()
        >>> support_of(torch.distributions.VonMises(0.0, 1.0))
        Circle()
        >>> unit = torch.distributions.Uniform(0.0, 1.0)
        >>> support_of(TransformedDistribution(unit, AffineTransform(-1.0, 2.0)))
        Interval(lower_bound=-1.0, upper_bound=1.0)
    """
    if isinstance(density, Independent):
        base = support_of(density.base_dist)
        num_dims = density.reinterpreted_batch_ndims
        return None if base is None else constraints.independent(base, num_dims)
    if isinstance(density, ExpandedDistribution | MaskedDistribution):
        return support_of(density.base_dist)
    if isinstance(density, VonMises):
        return circle
    if isinstance(density, TransformedDistribution):
        return _image(support_of(density.base_dist), density)
    try:
        support = density.support
    except NotImplementedError:
        return None
    return None if support is None or constraints.is_dependent(support) else support


def _image(
    base: constraints.Constraint | None, density: TransformedDistribution
) -> constraints.Constraint | None:
    """Return the support of a transformed density; torch forgets an edge under an affine map."""
    image = base
    for transform in density.transforms:
        is_affine = isinstance(transform, AffineTransform) and not transform.event_dim
        edges = _edges(image) if is_affine else None
        image = transform.codomain if edges is None else _between(*map(transform, edges))
    num_dims = len(density.event_shape) - (0 if image is None else image.event_dim)
    return constraints.independent(image, num_dims) if image is not None and num_dims else image


def _edges(support: constraints.Constraint | None) -> tuple[Tensor, Tensor] | None:
    """Return the ends of an interval or a half-line; None for any other support."""
    lower = getattr(support, "lower_bound", None)
    upper = getattr(support, "upper_bound", None)
    if support is None or support.is_discrete or (lower is None and upper is None):
        return None
    ends = (-math.inf if lower is None else lower, math.inf if upper is None else upper)
    return torch.as_tensor(ends[0]), torch.as_tensor(ends[1])


def _between(a: Tensor, b: Tensor) -> constraints.Constraint:
    """Return the interval or half-line between two ends, in either order."""
    lower, upper = torch.minimum(a, b), torch.maximum(a, b)
    if lower.isinf().all():
        return constraints.less_than(upper)
    if upper.isinf().all():
        return constraints.greater_than(lower)
    return constraints.interval(lower, upper)


def transform_onto(support: constraints.Constraint) -> Transform:
    """Return the map from the real line onto a support, by `biject_to`.

    Raises:
        NotImplementedError: there is no map, as for a discrete support or a sphere.

    Example:
        >>> transform_onto(constraints.positive)(torch.zeros(1))
        tensor([1.])
    """
    support = _without_mixtures(support)
    if support.is_discrete:
        raise NotImplementedError("a discrete support has no map from the real line")
    return biject_to(support)


def covers_line(support: constraints.Constraint) -> bool:
    """Return whether the real line maps onto a support one to one: not onto a circle.

    Example:
        >>> covers_line(constraints.positive), covers_line(circle), covers_line(constraints.boolean)
        (True, False, False)
    """
    try:
        transform = transform_onto(support)
    except NotImplementedError:
        return False
    return period_of(transform) is None


def period_of(transform: Transform) -> float | None:
    """Return the period of a map onto a circle, else None.

    Example:
        >>> period_of(Wrap()) == 2 * math.pi
        True
    """
    while hasattr(transform, "base_transform"):
        transform = transform.base_transform
    return getattr(transform, "period", None)


def _without_mixtures(support: constraints.Constraint) -> constraints.Constraint:
    """Return the support of the components of a mixture, which all have the same."""
    if isinstance(support, constraints.MixtureSameFamilyConstraint):
        return _without_mixtures(support.base_constraint)
    if isinstance(support, constraints.independent):
        inner = _without_mixtures(support.base_constraint)
        return constraints.independent(inner, support.reinterpreted_batch_ndims)
    return support
