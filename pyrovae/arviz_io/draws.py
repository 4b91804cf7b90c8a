"""Draws of a program's posterior, prior and predictives, exported to ArviZ."""

import math
from collections.abc import Collection
from typing import Any

from torch import Tensor, nn

from pyrovae.arviz_io.container import (
    DATA,
    DRAWS,
    Arrays,
    Variables,
    attributes_of,
    container_of,
    of_draws,
)
from pyrovae.arviz_io.observed import data_groups, labels_of
from pyrovae.checks import seed_number, whole_number
from pyrovae.contract import validated
from pyrovae.core.draws import LATENT, OBSERVED, concat, diagnosing, guide_terms, named
from pyrovae.core.joint import by_site, joint_of
from pyrovae.core.pareto import pareto_k
from pyrovae.core.replay import Sites, guide_at, sites_of
from pyrovae.core.replicates import observed_data, replicated
from pyrovae.data import Batch
from pyrovae.errors import ConfigError
from pyrovae.posterior import METHODS
from pyrovae.runtime.ambient import exclusive

ROWS = 256


@exclusive
def to_arviz(
    program: nn.Module,
    x: Any,
    y: Any = None,
    mask: Any = None,
    *,
    labels: Any = None,
    num_samples: int = 100,
    posterior: str = "guide",
    predictive: bool = True,
    seed: int | None = 0,
    **options: Any,
) -> Any:
    """Export draws of posterior, prior and predictives to ArviZ, with their log-densities.

    Args:
        program: a `VAE` or another program. Latents outside the plate "data" require
            posterior="guide", and their draws have no dimension "datum".
        x: (N, *event).
        y: (N, …), covariates.
        mask: of x's shape, true where x is observed.
        labels: (N,), numbers or names, kept in constant_data.
        num_samples: S, draws per chain. The predictive groups hold S · N data each.
        posterior: source of the draws: "guide" (q(z|x), one chain; weighted by log_weight they
            represent p(z|x)), "sir" (resampled, one chain) or "hmc" (four chains).
        predictive: whether to draw the groups prior, prior_predictive and posterior_predictive.
        seed: random seed; None uses a fresh one, which the attributes record.
        **options: further arguments of `posterior.sir` or `posterior.hmc`.

    Returns:
        arviz.InferenceData for arviz < 1, xarray.DataTree since arviz 1. The module docstring
        lists groups, dimensions and units. Attributes: library versions, seed, posterior,
        program.

    Raises:
        DataError: x does not fit the program, or there is not one label per datum.
        ConfigError: the posterior is unknown or does not support the program, or a setting is
            invalid.

    References:
        ArviZ, Kumar, Carroll, Hartikainen & Martin, 2019, https://doi.org/10.21105/joss.01143
        The schema: https://python.arviz.org/en/stable/schema/schema.html

    Example:
        >>> import torch, pyrovae as pv
        >>> vae = pv.build((2,), latent_dim=1, seed=0)
        >>> data = to_arviz(vae, torch.ones(5, 2), num_samples=10)
        >>> dict(data.posterior["z"].sizes)
        {'chain': 1, 'draw': 10, 'datum': 5, 'latent': 1}
    """
    if posterior != "guide" and posterior not in METHODS:
        known = ", ".join(map(repr, ("guide", *METHODS)))
        raise ConfigError(f"posterior = {posterior!r}, but it must be one of {known}.")
    if posterior == "guide" and options:
        raise ConfigError(
            f"{', '.join(options)}: posterior='guide' has no further options.\n"
            "Leave them out, or write posterior='sir' or posterior='hmc'."
        )
    num_samples, seed = whole_number(num_samples, "num_samples", 1), seed_number(seed)
    batch = validated(program, x, y, mask).whole()
    draws = stats = None
    if posterior != "guide":
        how = {"num_samples": num_samples, "seed": seed} | options
        drawn = METHODS[posterior](program, *batch, **how)
        draws, stats = drawn.draws, drawn.stats
    with diagnosing(program, seed):
        sites = sites_of(program, batch)
    with diagnosing(program, seed):
        of_guide = _guide_draws(program, batch, num_samples)
        found = of_guide if draws is None else _scored(program, batch, draws)
    groups = _scored_groups(found, _log_weights(of_guide)[0], sites.shared)
    if stats is not None:
        groups["sample_stats"] |= of_draws(stats._asdict())
    if predictive:
        with diagnosing(program, seed):
            drawn = _predictive_groups(program, batch, found, sites)
        groups["posterior"] |= drawn.pop("posterior")
        groups |= drawn
    with diagnosing(program, seed):
        observed = observed_data(program, batch, sites)
    groups |= data_groups(batch, observed, labels_of(labels, batch.num_data))
    attributes = attributes_of(
        program=type(program).__name__,
        spec=str(getattr(program, "spec", "")),
        posterior=posterior,
        seed=str(seed),
    )
    return container_of(groups, attributes, batch.labels)


def _guide_draws(program: nn.Module, batch: Batch, num_samples: int) -> Arrays:
    """Return terms (1, S, N) and latents by site (1, S, …) from the guide."""
    terms = guide_terms(program, batch, num_samples)
    found = {name: getattr(terms, name) for name in terms._fields[:3]}
    found |= {LATENT + name: value for name, value in terms.latents.items()}
    found |= {OBSERVED + name: value for name, value in terms.log_likelihoods.items()}
    return {name: value[None] for name, value in found.items()}


def _scored(program: nn.Module, batch: Batch, draws: Tensor) -> Arrays:
    """Return terms and latents at given draws (C, S, N, D) of the local latents, concatenated."""
    num_chains, num_samples = draws.shape[:2]
    parts, start = [], 0
    for rows in batch.read(ROWS):
        joint, stop = joint_of(program, rows), start + rows.num_data
        z = by_site(draws[:, :, start:stop].flatten(0, 1), joint.draw_prior(1))
        log_prior, log_likelihood = joint.terms(z)
        terms = {"log_prior": log_prior, "log_likelihood": log_likelihood}
        terms |= {LATENT + name: value for name, value in z.items()}
        terms |= {OBSERVED + name: v for name, v in joint.log_likelihoods(z).items()}
        log_guide = joint.log_guide(z) if joint.scores_latents else log_prior * math.nan
        parts.append(terms | {"log_guide": log_guide})
        start = stop
    shape = (num_chains, num_samples)
    return {name: v.unflatten(0, shape) for name, v in concat(parts, 1).items()}


def _scored_groups(
    found: Arrays, guide_log_weights: Tensor, shared: Collection[str]
) -> dict[str, Variables]:
    """Return groups with densities; k̂ and ELBO always use the guide's log-weights (S, N).

    With shared latents there are no weights per datum: they weight all data together.
    """
    latents = named(found, LATENT)
    local = [name for name in latents if name not in shared]
    of_latents = local[0] if len(local) == 1 else "latents"
    weights = {}
    if not shared:
        weights = {
            "log_weight": (DRAWS, _log_weights(found)),
            "pareto_k": (DATA, pareto_k(guide_log_weights)),
        }
    return {
        "posterior": of_draws(latents, shared),
        "log_likelihood": of_draws(named(found, OBSERVED)),
        "log_prior": of_draws({of_latents: found["log_prior"]}),
        "sample_stats": {
            "log_guide": (DRAWS, found["log_guide"]),
            "elbo": (DATA, guide_log_weights.mean(0)),
            **weights,
        },
    }


def _log_weights(found: Arrays) -> Tensor:
    """Return log w = log p(x, z) − log q(z|x), (C, S, N) float64, nats."""
    return (found["log_likelihood"] + found["log_prior"] - found["log_guide"]).double()


def _predictive_groups(
    program: nn.Module, batch: Batch, found: Arrays, sites: Sites
) -> dict[str, Variables]:
    """Draw prior, prior_predictive and posterior_predictive, (C, S) each, and p(c|x, z)."""
    shape = found["log_prior"].shape[:2]
    posterior = {name: value.flatten(0, 1) for name, value in named(found, LATENT).items()}

    def at_draws(draws: slice) -> Any:
        return guide_at({n: v[draws] for n, v in posterior.items()}, sites.layouts)

    def replicates(guide_for: Any) -> Arrays:
        options = {"num_samples": shape.numel(), "memory_budget": None}
        chunks = list(replicated(program, batch, guide_for, **options))
        return {name: v.unflatten(0, shape) for name, v in concat(chunks, 0).items()}

    prior, given_x = replicates(None), replicates(at_draws)

    def of(arrays: Arrays, names: Collection[str]) -> Variables:
        return of_draws({name: arrays[name] for name in names}, sites.shared)

    return {
        "posterior_predictive": of(given_x, sites.observed),
        "prior": of(prior, (*sites.latents, *sites.summed)),
        "prior_predictive": of(prior, sites.observed),
        "posterior": of(given_x, sites.summed),
    }
