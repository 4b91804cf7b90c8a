"""Kinds of sites in the traces of a program: local, auxiliary, observed."""

from pyro import poutine

from pyrovae.errors import ConfigError


def auxiliary_sites(guide_trace: poutine.Trace) -> list[str]:
    """Return the guide's sites that the model lacks on purpose, as AutoGuides declare them."""
    sites = guide_trace.iter_stochastic_nodes()
    return [name for name, site in sites if site["infer"].get("is_auxiliary")]


def is_local(site: dict) -> bool:
    """Return whether a traced site is inside the plate "data"."""
    return any(frame.name == "data" for frame in site["cond_indep_stack"])


def observed_site(model_trace: poutine.Trace) -> dict:
    """Return the model's observed site "x"; raise ConfigError if there is none."""
    site = model_trace.nodes.get("x")
    if site is None or not site["is_observed"]:
        raise ConfigError(
            "the model has no observed site 'x', so its data cannot be checked or scored.\n"
            "Name the data's site 'x': pyro.sample('x', p_x, obs=x)."
        )
    return site
