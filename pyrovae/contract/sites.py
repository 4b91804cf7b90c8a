"""Kinds of sites in the traces of a program: local, auxiliary, observed."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import pyro.distributions as dist
from pyro import poutine
from torch import nn

from pyrovae.data import Batch
from pyrovae.data.batch import is_by_site
from pyrovae.errors import ConfigError, DataError


def auxiliary_sites(guide_trace: poutine.Trace) -> list[str]:
    """Return the guide's sites that the model lacks on purpose, as AutoGuides declare them."""
    sites = guide_trace.iter_stochastic_nodes()
    return [name for name, site in sites if site["infer"].get("is_auxiliary")]


def is_data(site: dict) -> bool:
    """Return whether a traced site holds data; `pyro.factor` observes nothing."""
    return site["is_observed"] and not isinstance(site["fn"], dist.Unit)


def is_marked(site: dict) -> bool:
    """Return whether a traced site is to be summed out: Pyro's mark for enumeration."""
    has_values = getattr(site["fn"], "has_enumerate_support", False)
    return has_values and site["infer"].get("enumerate") == "parallel"


def is_local(site: dict) -> bool:
    """Return whether a traced site is inside the plate "data"."""
    return any(frame.name == "data" for frame in site["cond_indep_stack"])


def observed_site(model_trace: poutine.Trace, name: str = "x") -> dict:
    """Return an observed site of the model; raise ConfigError if there is none."""
    site = model_trace.nodes.get(name)
    if site is None or not site["is_observed"]:
        raise ConfigError(
            f"the model has no observed site {name!r}, so its data cannot be checked or scored.\n"
            f"Name the data's site {name!r}: pyro.sample({name!r}, p_{name}, obs=…)."
        )
    return site


def check_sites(program: nn.Module, batch: Batch) -> None:
    """Raise DataError unless x and mask are arrays, or dicts of arrays of the same data."""
    x, _, mask = batch
    if not is_by_site(x):
        if isinstance(mask, Mapping):
            raise DataError(
                "mask is a dict, but x is one array: it is unclear which cells the mask hides.\n"
                "Pass a mask of x's shape."
            )
        return
    if hasattr(program, "check_parts"):
        raise DataError(
            f"x is a dict with the keys {_listed(x)}, but a {type(program).__name__} observes one "
            "array.\nPass that array; a Dataset names it 'x'."
        )
    if not isinstance(mask, Mapping | None) or not set(mask or ()) <= set(x):
        arrived = f"has the keys {_listed(mask)}" if isinstance(mask, Mapping) else "is not a dict"
        raise DataError(
            f"x is a dict with the keys {_listed(x)}, but mask {arrived}: a mask says which cells "
            "of a site are observed.\nPass a dict of masks, for the sites with missing values."
        )
    rows = {name: array.shape[:1].numel() for name, array in x.items()}
    if len(set(rows.values())) != 1:
        raise DataError(
            f"the arrays of x have different numbers of rows, {rows}, but row i of each belongs to "
            "datum i.\nPass arrays of as many rows; a missing site is a mask that is false there."
        )


def for_each_site(batch: Batch, check: Callable[[str, Batch], None]) -> None:
    """Check the data of each observed site; errors about one site of several name it."""
    if not is_by_site(batch.x):
        check("x", batch)
        return
    for name, site in batch.sites.items():
        try:
            check(name, site)
        except DataError as error:
            raise DataError(f"in x[{name!r}]: {error}") from None


@contextmanager
def missing_site_explained(batch: Batch) -> Iterator[None]:
    """Let a KeyError of a program that looks up a site in x say what x lacks."""
    try:
        yield
    except KeyError as error:
        name = error.args[0] if error.args else None
        if not is_by_site(batch.x) or not isinstance(name, str) or name in batch.x:
            raise
        raise DataError(
            f"the program looks up {name!r}, but x is a dict with the keys {_listed(batch.x)}.\n"
            f"Pass x[{name!r}] too; where it is missing for all data, with a mask that is false."
        ) from error


def _listed(names: Mapping) -> str:
    return ", ".join(map(repr, names))
