"""Export to ArviZ: draws of prior, posterior and predictives as named arrays.

    group                  variables (dimensions)
    posterior              z (chain, draw, datum, latent); other sites …_dim_0, …; with predictive
                           groups also c ~ p(c|x, z) for discrete latents that are summed out
    posterior_predictive   x (chain, draw, datum, x_dim_0, …), and other observed sites
    prior                  z (chain, draw, datum, latent): a draw of the latents of each datum
    prior_predictive       x: replicated data sets
    observed_data          x (datum, x_dim_0, …), NaN where masked
    constant_data          label, y, mask (datum, …), if given
    log_likelihood         x (chain, draw, datum), log p(x|z), nats, for each observed site
    log_prior              z (chain, draw, datum), log p(z), nats
    sample_stats           log_guide, log_weight (chain, draw, datum), nats;
                           pareto_k, elbo (datum) of the guide, from as many draws
                           (without log_weight and pareto_k if data share a latent);
                           of "hmc" also acceptance_rate, diverging, step_size, energy, n_steps
                           (chain, draw, datum)

The container is an `arviz.InferenceData` for arviz < 1 and an `xarray.DataTree` since arviz 1, with
the same datasets. This is the only file that imports arviz and xarray, and only when called.

Avoid: `az.loo` of log p(x_n|z_n), whose z_n was inferred from x_n (compare models with
`diagnostics.compare_priors`); R̂ and ESS of the i.i.d. draws of a guide, which carry no
information; `az.psens` over many data at once, whose weights degenerate (select one datum, or
use `diagnostics.prior_sensitivity`).
"""

import math
import warnings
from collections.abc import Collection, Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
import pyro
import torch
from torch import Tensor, nn

from pyrovae import _version
from pyrovae.checks import as_tensor, seed_number, warn_caller, whole_number
from pyrovae.contract import validated
from pyrovae.core.draws import LATENT, OBSERVED, concat, diagnosing, guide_terms, named
from pyrovae.core.joint import by_site, joint_of
from pyrovae.core.pareto import pareto_k
from pyrovae.core.replay import Sites, guide_at, sites_of
from pyrovae.core.replicates import observed_data, replicated
from pyrovae.data import Batch, Labels
from pyrovae.data.batch import NO_LABELS
from pyrovae.diagnostics.comparison import Comparison
from pyrovae.errors import ConfigError, DataError
from pyrovae.history import History
from pyrovae.posterior import METHODS

if TYPE_CHECKING:
    import xarray as xr

ROWS = 256
Arrays = dict[str, Tensor]
Variables = dict[str, tuple[tuple[str, ...], Any]]  # name → leading dimensions, array

DRAWS = ("chain", "draw", "datum")
SHARED = ("chain", "draw")  # for a latent that all data share
DATA = ("datum",)


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
        >>> import pyrovae as pv
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
        groups["sample_stats"] |= _of_draws(stats._asdict())
    if predictive:
        with diagnosing(program, seed):
            drawn = _predictive_groups(program, batch, found, sites)
        groups["posterior"] |= drawn.pop("posterior")
        groups |= drawn
    with diagnosing(program, seed):
        observed = observed_data(program, batch, sites)
    groups |= _data_groups(batch, observed, _labels(labels, batch.num_data))
    attributes = _attributes(
        program=type(program).__name__,
        spec=str(getattr(program, "spec", "")),
        posterior=posterior,
        seed=str(seed),
    )
    return _container(groups, attributes, batch.labels)


def history_to_arviz(history: History) -> Any:
    """Export the history of `fit` as the group "training" with one dimension "epoch".

    Its variables are elbo, reconstruction, kl and their validation_… counterparts, nats per datum
    (NaN without validation), and seconds. The records of a training monitor are the group
    "monitor" with the dimension "step" (and "latent", for kl_per_dimension).

    Args:
        history: the history of `fit`, with at least one epoch.

    Returns:
        arviz.InferenceData for arviz < 1, xarray.DataTree since arviz 1.

    Raises:
        DataError: the history has no epochs.

    Example:
        >>> import pyrovae as pv
        >>> vae = pv.build((2,), latent_dim=1, seed=0)
        >>> history = pv.fit(vae, torch.ones(5, 2), epochs=3)
        >>> history_to_arviz(history).training["elbo"].dims
        ('epoch',)
    """
    if not len(history):
        raise DataError("the history has no epochs: there is nothing to export.\nTrain first.")
    import xarray as xr

    facts = {"num_data": history.num_data, "best_epoch": history.best_epoch}
    attributes = _attributes(seed=str(history.seed), **facts)
    by_time = {"training": ("epoch", [epoch._asdict() for epoch in history.epochs])}
    if history.monitor:
        by_time["monitor"] = ("step", history.monitor)
    return _as_container(
        {
            group: xr.Dataset(*_columns(records, time), attrs=attributes)
            for group, (time, records) in by_time.items()
        }
    )


def _columns(records: list[dict[str, Any]], time: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return variables and coordinates of one record per epoch or step; NaN for None."""
    values = {
        name: np.array([np.nan if r[name] is None else r[name] for r in records], float)
        for name in records[0]
        if name != time
    }
    dims = (time, "latent")  # (T,), or (T, D) for records per latent dimension
    variables = {name: (dims[: value.ndim], value) for name, value in values.items()}
    return variables, {time: [record[time] for record in records]}


def comparison_to_arviz(comparison: Comparison) -> dict[str, Any]:
    """Return a comparison of models as the argument of `az.compare`: name → ELPDData.

    ArviZ's slot of leave-one-out scores holds the held-out log p(x) of each datum, in nats. It
    exponentiates them to stack, which underflows below −700: `Comparison.stacking_weights` does
    not.

    Args:
        comparison: as returned by `diagnostics.compare_priors`.

    Example:
        >>> import pyrovae as pv
        >>> models = {p: pv.build((2,), latent_dim=1, prior=p) for p in ("StandardNormal",)}
        >>> found = pv.diagnostics.compare_priors(models, torch.eye(2), num_samples=100)
        >>> list(comparison_to_arviz(found))
        ['StandardNormal']
    """
    return {name: _elpd(log_px) for name, log_px in comparison.log_px.items()}


def _elpd(log_px: Tensor) -> Any:
    import xarray as xr

    num_data = len(log_px)
    total, error = log_px.sum().item(), math.sqrt(num_data) * log_px.std().item()
    each = xr.DataArray(log_px.cpu().numpy(), dims="datum")
    if has_datatree():
        from arviz_stats.utils import ELPDData

        numbers = {"n_samples": 1, "n_data_points": num_data, "scale": "log", "warning": False}
        return ELPDData("loo", total, error, math.nan, **numbers, good_k=0.7, elpd_i=each)
    from arviz.stats.stats_utils import ELPDData

    names = ["elpd_loo", "se", "p_loo", "n_samples", "n_data_points", "warning", "loo_i", "scale"]
    return ELPDData([total, error, math.nan, 1, num_data, False, each, "log"], index=names)


def predictive_to_arviz(
    samples: Mapping[str, Tensor],
    x: Any = None,
    *,
    labels: Any = None,
    group: str = "posterior",
    shared: Collection[str] = (),
) -> Any:
    """Export draws of `pyro.infer.Predictive` as ArviZ groups.

    The site "x" becomes group + "_predictive", all others become group. If the model is
    conditioned on x, like a `VAE`'s, `Predictive` returns the data themselves as "x" in each
    draw. These are not replicates, so that group is left out, with a warning. Wrap the model in
    `poutine.uncondition` for replicates.

    Args:
        samples: the output of `Predictive(…)(x)`: site → (S, N, *event).
        x: (N, *event), for observed_data; None leaves the group out.
        labels: (N,), for constant_data, if x is given.
        group: "posterior" or "prior", the distribution of the latents.
        shared: names of sites outside the plate "data", which have no dimension "datum".

    Returns:
        arviz.InferenceData for arviz < 1, xarray.DataTree since arviz 1.

    Raises:
        ConfigError: the group is unknown, or there are no samples.
        DataError: sites differ in their number of draws, or there is not one label per datum.

    Example:
        >>> import pyrovae as pv
        >>> from pyro import poutine
        >>> from pyro.infer import Predictive
        >>> vae = pv.build((2,), latent_dim=1, seed=0)
        >>> x, model = torch.ones(5, 2), poutine.uncondition(vae.model)
        >>> with pyro.get_param_store().scope():
        ...     samples = Predictive(model, guide=vae.guide, num_samples=10)(x)
        >>> dict(predictive_to_arviz(samples, x).posterior_predictive["x"].sizes)
        {'chain': 1, 'draw': 10, 'datum': 5, 'x_dim_0': 2}
    """
    if group not in ("posterior", "prior") or not samples:
        raise ConfigError(
            f"group = {group!r} with {len(samples)} sites, but there must be samples of the "
            "'posterior' or the 'prior'.\nPass the output of pyro.infer.Predictive(…)(x)."
        )
    sizes = {name: len(value) for name, value in samples.items()}
    if len(set(sizes.values())) > 1:
        raise DataError(
            f"the sites have different numbers of draws, {sizes}, but each row must be one draw of "
            "all sites.\nPass the samples of a single Predictive."
        )
    arrays = _of_draws({name: value[None] for name, value in samples.items()}, shared)
    data = None if x is None else Batch(x).map_named(as_tensor)
    observed = {"x": None} if data is None else {n: site.x for n, site in data.sites.items()}
    is_data = [n for n, x in observed.items() if n in samples and _is_one_data_set(samples[n], x)]
    if is_data:
        warn_caller(_NOT_PREDICTIVE.replace("x", is_data[0], 1))
        arrays = {name: value for name, value in arrays.items() if name not in is_data}
    latents = {name: value for name, value in arrays.items() if name not in observed}
    groups: dict[str, Variables] = {group: latents} if latents else {}
    if len(latents) < len(arrays):
        replicates = {name: value for name, value in arrays.items() if name in observed}
        groups[f"{group}_predictive"] = replicates
    if data:
        groups |= _data_groups(data, observed, _labels(labels, data.num_data))
    return _container(groups, _attributes(posterior="Predictive"))


_NOT_PREDICTIVE = (
    '"x" is the same data set in every draw: Predictive returned the data that the model was '
    "conditioned on, not replicates, so there is no predictive group.\n"
    "For replicates write Predictive(poutine.uncondition(vae.model), guide=vae.guide, …)(x)."
)


def _is_one_data_set(draws: Tensor, x: Tensor | None) -> bool:
    """Return whether (S, N, *event) is S copies of one data set; for S = 1, of x."""
    if len(draws) > 1:
        return bool((draws == draws[:1]).all())
    return x is not None and torch.equal(draws[0], x.to(draws))


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
        parts.append(terms | {"log_guide": joint.log_guide(z)})
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
        "posterior": _of_draws(latents, shared),
        "log_likelihood": _of_draws(named(found, OBSERVED)),
        "log_prior": _of_draws({of_latents: found["log_prior"]}),
        "sample_stats": {
            "log_guide": (DRAWS, found["log_guide"]),
            "elbo": (DATA, guide_log_weights.mean(0)),
            **weights,
        },
    }


def _log_weights(found: Arrays) -> Tensor:
    """Return log w = log p(x, z) − log q(z|x), (C, S, N) float64, nats."""
    return (found["log_likelihood"] + found["log_prior"] - found["log_guide"]).double()


def _of_draws(arrays: Arrays, shared: Collection[str] = ()) -> Variables:
    return {name: (SHARED if name in shared else DRAWS, v) for name, v in arrays.items()}


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
        return _of_draws({name: arrays[name] for name in names}, sites.shared)

    return {
        "posterior_predictive": of(given_x, sites.observed),
        "prior": of(prior, (*sites.latents, *sites.summed)),
        "prior_predictive": of(prior, sites.observed),
        "posterior": of(given_x, sites.summed),
    }


def _data_groups(batch: Batch, observed: Arrays, labels: np.ndarray | None) -> dict[str, Variables]:
    columns = {n.replace(".", "_"): c for n, c in batch.columns.items() if n[0] != "x"}
    constant = {"label": labels} if labels is not None else {}
    constant = {name: (DATA, value) for name, value in (constant | columns).items()}
    seen = {name: (DATA, value) for name, value in observed.items()}
    return {"observed_data": seen} | ({"constant_data": constant} if constant else {})


def _labels(labels: Any, num_data: int) -> np.ndarray | None:
    if labels is None:
        return None
    labels = np.asarray(labels.cpu() if isinstance(labels, Tensor) else labels)
    if labels.shape != (num_data,):
        raise DataError(
            f"labels has shape {labels.shape}, but must be ({num_data},), one label per datum.\n"
            "For one-hot rows write labels.argmax(-1)."
        )
    return _texts(labels) if labels.dtype.kind in "OU" else labels


def _container(
    groups: Mapping[str, Variables], attributes: Mapping[str, Any], labels: Labels = NO_LABELS
) -> Any:
    """Return arrays by group and variable as a container of the installed ArviZ."""
    datasets = {name: _dataset(group, attributes, labels) for name, group in groups.items()}
    return _as_container(datasets)


def _dataset(variables: Variables, attributes: Mapping[str, Any], labels: Labels) -> "xr.Dataset":
    import xarray as xr

    data = {}
    for name, (leading, value) in variables.items():
        value = value.detach().cpu().numpy() if isinstance(value, Tensor) else value
        data[name] = (*leading, *_event_dims(name, value.ndim - len(leading))), value
    dataset = xr.Dataset(data, attrs=dict(attributes))
    coordinates = {dim: np.arange(n) for dim, n in dataset.sizes.items()}
    named = {"datum": labels.rows, "x_dim_0": labels.columns}
    coordinates |= {d: _texts(v) for d, v in named.items() if v is not None and d in coordinates}
    return dataset.assign_coords(coordinates)


def _texts(names: Any) -> np.ndarray:
    """Return names as numbers or strings; multi-level names are joined by commas."""
    names = np.asarray(names)
    if names.dtype.kind in "biuf":
        return names
    parts = ([*name] if isinstance(name, tuple) else [name] for name in names)
    return np.array([", ".join(map(str, part)) for part in parts])


def _event_dims(name: str, num: int) -> list[str]:
    return ["latent"] if (name, num) == ("z", 1) else [f"{name}_dim_{i}" for i in range(num)]


def _attributes(**facts: Any) -> dict[str, Any]:
    versions = {
        "pyro_version": pyro.__version__,
        "torch_version": str(torch.__version__),  # netCDF can store a str only
        "arviz_version": version("arviz"),
    }
    own = {"inference_library": "pyrovae", "inference_library_version": _version.__version__}
    return own | versions | facts


def has_datatree() -> bool:
    """Return whether the installed ArviZ uses xarray.DataTree, as it does since version 1."""
    return int(version("arviz").partition(".")[0]) >= 1


def _as_container(datasets: "dict[str, xr.Dataset]") -> Any:
    if has_datatree():
        import xarray as xr

        return xr.DataTree.from_dict(datasets)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # its announcement of arviz 1.0
        import arviz as az
    return az.InferenceData(**datasets)
