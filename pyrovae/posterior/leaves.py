"""The declared parameters of a density, on the real line, and the density rebuilt from them."""

import inspect
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.distributions import Distribution, transform_to
from torch.nn.functional import normalize

from pyrovae.errors import ConfigError

MAPS = "torch.distributions.transforms"


class Leaf(NamedTuple):
    """A parameter of the guide in unconstrained form: value = transform(free)."""

    transform: Any
    free: Tensor


def leaves_of(q_z: Distribution) -> list[Leaf]:
    """Return the declared parameters of q(z|x), (N, …) each, unconstrained, as leaves of autograd.

    Raises:
        ConfigError: it has none, or no pathwise gradient.
    """
    found = free_parameters(q_z)
    return [leaf._replace(free=leaf.free.detach().clone()) for leaf in found]


def free_parameters(q_z: Distribution) -> list[Leaf]:
    """Return the declared parameters of q(z|x), (N, …) each, unconstrained, with their gradients.

    Those of a density that fixed maps transform, such as a logistic normal, are those before them.

    Raises:
        ConfigError: it has none, or no pathwise gradient.

    Example:
        >>> import pyro.distributions as dist
        >>> leaves = free_parameters(dist.Normal(torch.zeros(3, 2), torch.ones(3, 2)).to_event(1))
        >>> [leaf.free.shape for leaf in leaves]
        [torch.Size([3, 2]), torch.Size([3, 2])]
    """
    base = _base(q_z)
    given = {n: c for n, c in base.arg_constraints.items() if n in vars(base)}
    if not q_z.has_rsample or not given:
        problem = "has no pathwise gradient" if given else "declares no parameters of its own"
        raise ConfigError(
            f"refine optimizes the parameters of q(z|x) by pathwise gradients, but "
            f"{type(base).__name__} {problem}.\n"
            "Use guides.DiagonalNormal or FullNormal, or draw with posterior.sir."
        )
    wanted = inspect.signature(type(base).__init__).parameters.values()
    needed = {w.name for w in wanted if w.default is w.empty and w.kind is w.POSITIONAL_OR_KEYWORD}
    if needed - given.keys() - {"self"}:
        raise ConfigError(
            f"refine rebuilds q(z|x) from its declared parameters, but {type(base).__name__} also "
            f"needs {', '.join(sorted(needed - given.keys() - {'self'}))}.\n"
            "Use guides.DiagonalNormal or FullNormal, or draw with posterior.sir."
        )
    transforms = {n: _transform(c) for n, c in given.items()}
    return [Leaf(t, t.inv(vars(base)[n])) for n, t in transforms.items()]


def units_of(q_z: Distribution, *, location: float) -> list[Tensor | float]:
    """Return a unit for each leaf: for a location, this many scales of the density; else 1.

    Positive parameters are on the real line by their logarithm, which has no unit.
    """
    base = _base(q_z)
    constraint_of = {n: c for n, c in base.arg_constraints.items() if n in vars(base)}
    scale = getattr(base, "scale", None)
    if not isinstance(scale, Tensor):
        scale = base.variance.sqrt() if hasattr(base, "loc") else torch.ones(())
    scale = torch.where(scale.isfinite() & (scale > 0), scale, 1.0).detach()
    units = []
    for name, constraint in constraint_of.items():
        has_unit = name == "loc" and _is_real(constraint) and vars(base)[name].shape == scale.shape
        units.append(location * scale if has_unit else 1.0)
    return units


def _is_real(constraint: Any) -> bool:
    return constraint in (constraints.real, constraints.real_vector)


def rebuilt(q_z: Distribution, leaves: list[Leaf]) -> Distribution:
    """Return the density of q_z's family with these parameters."""
    if isinstance(q_z, torch.distributions.Independent):
        base = rebuilt(q_z.base_dist, leaves)
        return dist.Independent(base, q_z.reinterpreted_batch_ndims)
    if _is_mapped(q_z):
        return dist.TransformedDistribution(rebuilt(q_z.base_dist, leaves), q_z.transforms)
    names = [n for n in q_z.arg_constraints if n in vars(q_z)]
    values = {n: leaf.transform(leaf.free) for n, leaf in zip(names, leaves, strict=True)}
    return type(q_z)(**values, validate_args=False)


def _base(q_z: Distribution) -> Distribution:
    while isinstance(q_z, torch.distributions.Independent) or _is_mapped(q_z):
        q_z = q_z.base_dist
    return q_z


def _is_mapped(q_z: Distribution) -> bool:
    """Return whether torch's own maps, which have no parameters to refine, transform a density."""
    maps = getattr(q_z, "transforms", [])
    return bool(maps) and all(type(t).__module__ == MAPS for t in maps)


class _Direction:
    """Map from R^D without 0 to the unit sphere, z/|z|; its inverse is the identity."""

    @staticmethod
    def inv(value: Tensor) -> Tensor:
        return value

    def __call__(self, free: Tensor) -> Tensor:
        return normalize(free, dim=-1)


def _transform(constraint: Any) -> Any:
    return _Direction() if constraint is constraints.sphere else transform_to(constraint)
