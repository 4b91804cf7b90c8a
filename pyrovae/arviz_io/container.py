"""Arrays by group and variable as the container of the installed ArviZ."""

import warnings
from collections.abc import Collection, Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
import pyro
import torch
from torch import Tensor

from pyrovae import _version
from pyrovae.data import Labels
from pyrovae.data.batch import NO_LABELS

if TYPE_CHECKING:
    import xarray as xr

Arrays = dict[str, Tensor]
Variables = dict[str, tuple[tuple[str, ...], Any]]  # name → leading dimensions, array

DRAWS = ("chain", "draw", "datum")
SHARED = ("chain", "draw")  # for a latent that all data share
DATA = ("datum",)


def container_of(
    groups: Mapping[str, Variables], attributes: Mapping[str, Any], labels: Labels = NO_LABELS
) -> Any:
    """Return arrays by group and variable as a container of the installed ArviZ."""
    datasets = {name: _dataset(group, attributes, labels) for name, group in groups.items()}
    return as_container(datasets)


def _dataset(variables: Variables, attributes: Mapping[str, Any], labels: Labels) -> "xr.Dataset":
    import xarray as xr

    data = {}
    for name, (leading, value) in variables.items():
        value = value.detach().cpu().numpy() if isinstance(value, Tensor) else value
        data[name] = (*leading, *_event_dims(name, value.ndim - len(leading))), value
    dataset = xr.Dataset(data, attrs=dict(attributes))
    coordinates = {dim: np.arange(n) for dim, n in dataset.sizes.items()}
    named = {"datum": labels.rows, "x_dim_0": labels.columns}
    coordinates |= {d: texts(v) for d, v in named.items() if v is not None and d in coordinates}
    return dataset.assign_coords(coordinates)


def texts(names: Any) -> np.ndarray:
    """Return names as numbers or strings; multi-level names are joined by commas."""
    names = np.asarray(names)
    if names.dtype.kind in "biuf":
        return names
    parts = ([*name] if isinstance(name, tuple) else [name] for name in names)
    return np.array([", ".join(map(str, part)) for part in parts])


def _event_dims(name: str, num: int) -> list[str]:
    return ["latent"] if (name, num) == ("z", 1) else [f"{name}_dim_{i}" for i in range(num)]


def attributes_of(**facts: Any) -> dict[str, Any]:
    """Return the versions of the libraries, and these facts, as attributes of a data set."""
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


def as_container(datasets: "dict[str, xr.Dataset]") -> Any:
    """Return data sets by group as the container of the installed ArviZ."""
    if has_datatree():
        import xarray as xr

        return xr.DataTree.from_dict(datasets)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # its announcement of arviz 1.0
        import arviz as az
    return az.InferenceData(**datasets)


def of_draws(arrays: Arrays, shared: Collection[str] = ()) -> Variables:
    """Return variables of draws (C, S, N, …); the shared ones have no dimension of data."""
    return {name: (SHARED if name in shared else DRAWS, v) for name, v in arrays.items()}
