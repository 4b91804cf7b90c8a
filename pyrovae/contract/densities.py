"""Check that a program's densities are valid, and that prior and guide fit each other.

Three errors that no gradient can repair, found in the traces of one datum:

1. a parameter outside its range (a scale ≤ 0, a probability > 1, NaN),
2. draws outside the density's own support, or a log-density that is NaN or not one number
   per datum,
3. a guide with mass where the prior has none: KL(q ‖ p) = ∫ q log (q / p) dz = ∞.

Only latents are drawn, and only a few times; the guard in training catches errors at other data
or draws. `pyrovae.contract` compares the event shapes.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import Distribution, constraints
from torch.distributions.utils import lazy_property

from pyrovae.contract.sites import auxiliary_sites, is_local
from pyrovae.densities.supports import support_of, transform_onto
from pyrovae.errors import ConfigError
from pyrovae.runtime.random_stream import RandomStream

NUM_DRAWS = 16
PROBES = (-1e4, -2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 3.0, 1e4)  # test points for supports


def check_densities(model_trace: poutine.Trace, guide_trace: poutine.Trace) -> None:
    """Raise ConfigError unless all densities are valid and p(z) covers the support of q(z|x).

    Args:
        model_trace: trace of the model on the first datum, without subsample sites.
        guide_trace: trace of the guide on the same datum, with the event shapes of the model.

    Raises:
        ConfigError: names the part, its output and the correction.

    Example:
        >>> import pyrovae as pv
        >>> vae = pv.build((2,), latent_dim=1)
        >>> from pyrovae.contract.program import trace_once
        >>> check_densities(*trace_once(vae, torch.ones(1, 2)))
    """
    with RandomStream(0), torch.no_grad(), pyro.validation_enabled(False):
        for name, site in guide_trace.iter_stochastic_nodes():
            check_density(site["fn"], f"the encoder's q({name}|x)")
        auxiliary = [n for n in auxiliary_sites(guide_trace) if is_local(guide_trace.nodes[n])]
        if auxiliary:  # a point there may be the image of a draw
            check_images(model_trace, guide_trace, auxiliary)
        for name, site in model_trace.iter_stochastic_nodes():
            check_density(site["fn"], f"the prior p({name})")
            if name not in guide_trace:  # summed out
                continue
            if is_local(site) and not auxiliary:
                check_spread(site["fn"], guide_trace.nodes[name]["fn"], name)
            check_supports(site["fn"], guide_trace.nodes[name]["fn"], name)
        for name in model_trace.observation_nodes:
            check_parameters_of(model_trace.nodes[name]["fn"], f"the decoder's p({name}|z)")


def check_density(density: Distribution, what: str) -> None:
    """Raise ConfigError unless parameters, draws and their log-densities are valid.

    Args:
        density: the density of one latent site.
        what: its name in the message.

    Example:
        >>> import pyro.distributions as dist
        >>> check_density(dist.Normal(torch.zeros(1, 2), 1.0).to_event(1), "the prior p(z)")
    """
    check_parameters_of(density, what)
    draws = density.sample(torch.Size([NUM_DRAWS]))
    support = support_of(density)
    if support is not None and not support.check(draws).all():
        raise ConfigError(
            f"{what}, a {_name(density)}, draws values outside its own support, {support}: its "
            "sampler and its density disagree.\nCorrect `sample`, or declare the actual `support`."
        )
    log_prob = density.log_prob(draws)
    expected = (NUM_DRAWS, *density.batch_shape)
    if tuple(log_prob.shape) != expected:
        raise ConfigError(
            f"{what}, a {_name(density)}, returns log_prob of shape {tuple(log_prob.shape)} for "
            f"draws of shape {tuple(draws.shape)}, but needs one number per draw: {expected}.\n"
            "Sum over the latent dimensions: .to_event(1), or log_prob(...).sum(-1)."
        )
    if log_prob.isnan().any():
        raise ConfigError(
            f"{what}, a {_name(density)}, returns log_prob = nan for "
            f"{int(log_prob.isnan().sum())} of {log_prob.numel()} of its own draws: every loss "
            "would be nan.\nLook for a scale that is 0 or negative, a logarithm of 0, or nan in "
            "its parameters."
        )


def check_spread(p: Distribution, q: Distribution, name: str) -> None:
    """Raise ConfigError if q(z|x) is a point, in some dimension, where p(z) has a density.

    The KL of a point is infinite: its "density" is of another measure than the prior's.

    Args:
        p: the prior's density of a site.
        q: the guide's density of the site.
        name: the site's name.

    Example:
        >>> import pyro.distributions as dist
        >>> check_spread(dist.Normal(0.0, 1.0), dist.Normal(0.0, 1e-9), "z")
    """
    support = support_of(p)
    if support is None or support.is_discrete:
        return
    draws = q.sample(torch.Size([NUM_DRAWS]))
    is_point = (draws == draws[:1]).all(0)
    with suppress(NotImplementedError):  # a narrow density rounds to one number, but has a variance
        is_point = is_point & ~(q.variance > 0)
    if is_point.any():
        raise ConfigError(
            f"the encoder's q({name}|x), a {_name(q)}, is a point{_in_which(is_point, q)}, but the "
            f"prior p({name}) has a density there: KL(q ‖ p) is infinite, so there is no ELBO.\n"
            "Give it a spread, e.g. guides.DiagonalNormal, or make what is fixed a parameter."
        )


def check_images(
    model_trace: poutine.Trace, guide_trace: poutine.Trace, auxiliary: list[str]
) -> None:
    """Raise ConfigError unless the latents that are points are the image of the auxiliary draws.

    The model has no density of an auxiliary r, so log p(x, z) − log q(r) is a bound only if z is a
    one-to-one function of r: a `Delta` with as many free numbers.

    Args:
        model_trace: as for `check_densities`.
        guide_trace: as for `check_densities`.
        auxiliary: the auxiliary sites inside the plate "data".
    """
    sites = [site for name, site in model_trace.iter_stochastic_nodes() if name in guide_trace]
    points = [s for s in sites if is_local(s) and is_delta(guide_trace.nodes[s["name"]]["fn"])]
    drawn, needed = map(_free_numbers, ([guide_trace.nodes[name] for name in auxiliary], points))
    if drawn != needed:
        raise ConfigError(
            f"the guide draws the auxiliary {', '.join(map(repr, auxiliary))}, which the model "
            "lacks, but the latents are not one-to-one functions of it: log q counts draws that "
            "log p does not, so the objective would not be a bound.\n"
            "Sample the latents as dist.Delta(f(auxiliary)), or add the site to the model."
        )


def is_delta(density: Distribution) -> bool:
    """Return whether a density is a point by construction.

    Example:
        >>> import pyro.distributions as dist
        >>> is_delta(dist.Delta(torch.zeros(2)).to_event(1))
        True
    """
    return isinstance(_innermost(density), dist.Delta)


def _free_numbers(sites: list[dict[str, Any]]) -> int:
    """Return how many numbers the values of sites have on the real line."""
    total = 0
    for site in sites:
        value = site["value"]
        with suppress(NotImplementedError):  # of a support without a map: as many as it has
            value = transform_onto(support_of(site["fn"])).inv(value)
        total += value.numel()
    return total


def _in_which(is_point: Tensor, q: Distribution) -> str:
    dims = is_point.reshape(-1, max(1, q.event_shape.numel())).any(0)
    return "" if dims.all() else f" in dimension {int(dims.nonzero()[0])}"


def check_parameters_of(density: Distribution, what: str) -> None:
    """Raise ConfigError if a parameter of the density is outside the range that torch declares.

    Example:
        >>> check_parameters_of(torch.distributions.Poisson(torch.ones(2)), "the decoder's p(x|z)")
    """
    base = _innermost(density)
    for name, constraint in _arg_constraints(base).items():
        is_derived = isinstance(getattr(type(base), name, None), lazy_property)
        if constraints.is_dependent(constraint) or (is_derived and name not in vars(base)):
            continue
        value = getattr(base, name)
        good = constraint.check(value)
        if not good.all():
            raise ConfigError(
                f"{what} is a {_name(density)} with {name} = {_first_bad(value, good)}, but {name} "
                f"must satisfy {constraint}.\nMap the network's output into that range (with "
                "heads.positive for a scale, logits= for a probability), or end with one of "
                "pyrovae's heads."
            )


def check_supports(p: Distribution, q: Distribution, name: str) -> None:
    """Raise ConfigError if q(z|x) has mass where p(z) has none, so that their KL is infinite.

    Supports of coordinates (intervals, whole numbers) are compared point by point; those
    that couple coordinates (simplex, sphere) must be of the same kind.

    Args:
        p: the prior's density of a site.
        q: the guide's density of the site.
        name: the site's name.

    Example:
        >>> import pyro.distributions as dist
        >>> check_supports(dist.Normal(0.0, 1.0), dist.Uniform(0.0, 1.0), "z")
    """
    p_support, q_support = support_of(p), support_of(q)
    if p_support is None or q_support is None:
        return
    p_coordinate, q_coordinate = coordinate_of(p_support), coordinate_of(q_support)
    if repr(p_coordinate) == repr(q_coordinate):
        return
    where = ""
    if not p_coordinate.event_dim and not q_coordinate.event_dim:
        where = _outside(p_coordinate, q_coordinate)
        if p_coordinate.is_discrete == q_coordinate.is_discrete and not where:
            return
    raise ConfigError(
        f"the prior p({name}) lives on {_in_words(p_coordinate)}, but the encoder's q({name}|x) on "
        f"{_in_words(q_coordinate)}{where}: KL(q ‖ p) is infinite or undefined.\n"
        f"Use a guide with the prior's support{_such_as('guides', p_coordinate)}, or a "
        f"prior with the guide's{_such_as('priors', q_coordinate)}."
    )


@contextmanager
def plate_errors_explained() -> Iterator[None]:
    """Convert Pyro's error for a part with too many batch dimensions into a ConfigError.

    Example:
        >>> import pyro.distributions as dist
        >>> with plate_errors_explained(), pyro.plate("data", 3):
        ...     pyro.sample("z", dist.Normal(torch.zeros(3, 2), 1.0))
        Traceback (most recent call last):
            ...
        pyrovae.errors.ConfigError: the density of 'z' has batch size 2 ...
    """
    pattern = r"Shape mismatch inside plate\('(.*)'\) at site (\S+) dim (-?\d+), (\d+) vs (\d+)"
    try:
        yield
    except ValueError as error:
        found = re.search(pattern, str(error))
        if not found:
            raise
        plate, site, dim, rows, size = found.groups()
        raise ConfigError(
            f"the density of {site!r} has batch size {size} at dimension {dim}, but the plate "
            f"{plate!r} has size {rows} there: each number would count as a separate datum.\n"
            "Declare the dimensions of a datum as event dimensions: end the part with .to_event(1)."
        ) from None


def _arg_constraints(density: Distribution) -> dict[str, constraints.Constraint]:
    try:
        return density.arg_constraints
    except NotImplementedError:  # a custom density may declare none
        return {}


def _outside(p: constraints.Constraint, q: constraints.Constraint) -> str:
    """Return " (at …, for example)" if q's support contains a point outside p's, else ""."""
    for probe in PROBES:
        value = torch.tensor(probe)
        if (q.check(value) & ~p.check(value)).any():
            return f" (at {probe:g}, for example)"
    return ""


def coordinate_of(support: constraints.Constraint) -> Any:
    """Return the constraint on one coordinate, or on the vector if it couples coordinates."""
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    return support


# support of a coordinate → its description, and pyrovae's parts that have it
WORDS = {
    "Real": ("the real numbers", {"guides": "DiagonalNormal", "priors": "StandardNormal"}),
    "Boolean": ("{0, 1}", {"guides": "Bernoulli", "priors": "Bernoulli"}),
    "OneHotBlocks": ("one-hot vectors", {"guides": "Categorical", "priors": "Categorical"}),
    "Circle": ("the circle", {}),
    "Sphere": ("the unit sphere", {"guides": "PowerSpherical", "priors": "HypersphericalUniform"}),
}


def _in_words(support: constraints.Constraint) -> str:
    return WORDS.get(_kind(support), (str(support), {}))[0]


def _such_as(family: str, support: constraints.Constraint) -> str:
    part = WORDS.get(_kind(support), ("", {}))[1].get(family)
    return f" ({family}.{part})" if part else ""


def _kind(support: constraints.Constraint) -> str:
    return type(support).__name__.strip("_")


def _innermost(density: Distribution) -> Distribution:
    while hasattr(density, "base_dist"):
        density = density.base_dist
    return density


def _name(density: Distribution) -> str:
    return type(_innermost(density)).__name__


def _first_bad(value: Tensor, good: Tensor) -> str:
    if good.shape != value.shape:
        return "an array"
    bad = value[~good]
    return f"{bad[0].item():.6g}" + (f" and {len(bad) - 1} more like it" if len(bad) > 1 else "")
