"""The groups of the data: observed values, covariates, masks and labels."""

from typing import Any

import numpy as np
from torch import Tensor

from pyrovae.arviz_io.container import DATA, Arrays, Variables, texts
from pyrovae.data import Batch
from pyrovae.errors import DataError


def data_groups(batch: Batch, observed: Arrays, labels: np.ndarray | None) -> dict[str, Variables]:
    """Return the groups observed_data and constant_data, (N, …) each."""
    columns = {n.replace(".", "_"): c for n, c in batch.columns.items() if n[0] != "x"}
    constant = {"label": labels} if labels is not None else {}
    constant = {name: (DATA, value) for name, value in (constant | columns).items()}
    seen = {name: (DATA, value) for name, value in observed.items()}
    return {"observed_data": seen} | ({"constant_data": constant} if constant else {})


def labels_of(labels: Any, num_data: int) -> np.ndarray | None:
    """Return labels (N,) as numbers or strings; raise DataError unless there is one per datum."""
    if labels is None:
        return None
    labels = np.asarray(labels.cpu() if isinstance(labels, Tensor) else labels)
    if labels.shape != (num_data,):
        raise DataError(
            f"labels has shape {labels.shape}, but must be ({num_data},), one label per datum.\n"
            "For one-hot rows write labels.argmax(-1)."
        )
    return texts(labels) if labels.dtype.kind in "OU" else labels
