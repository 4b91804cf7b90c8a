"""Histories and comparisons, exported to ArviZ."""

import math
from dataclasses import fields
from typing import Any

import numpy as np
from torch import Tensor

from pyrovae.arviz_io.container import as_container, attributes_of, has_datatree
from pyrovae.core.pareto import MOST
from pyrovae.diagnostics.comparison import Comparison
from pyrovae.errors import DataError
from pyrovae.history import History


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
        >>> import torch, pyrovae as pv
        >>> vae = pv.build((2,), latent_dim=1, seed=0)
        >>> history = pv.fit(vae, torch.ones(5, 2), epochs=3)
        >>> history_to_arviz(history).training["elbo"].dims
        ('epoch',)
    """
    if not len(history):
        raise DataError("the history has no epochs: there is nothing to export.\nTrain first.")
    import xarray as xr

    facts = {"num_data": history.num_data, "best_epoch": history.best_epoch}
    attributes = attributes_of(seed=str(history.seed), **facts)
    by_time = {"training": ("epoch", [epoch._asdict() for epoch in history.epochs])}
    if history.monitor:
        by_time["monitor"] = ("step", history.monitor)
    return as_container(
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
        >>> import torch, pyrovae as pv
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

        own = {"kind": "loo", "elpd": total, "se": error, "p": math.nan, "elpd_i": each}
        own |= {"n_samples": 1, "n_data_points": num_data, "scale": "log", "warning": False}
        known = {field.name for field in fields(ELPDData)}  # kind is gone since version 1
        return ELPDData(**{n: v for n, v in own.items() if n in known}, good_k=MOST)
    from arviz.stats.stats_utils import ELPDData

    names = ["elpd_loo", "se", "p_loo", "n_samples", "n_data_points", "warning", "loo_i", "scale"]
    return ELPDData([total, error, math.nan, 1, num_data, False, each, "log"], index=names)
