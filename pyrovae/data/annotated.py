"""Annotated matrices of counts, AnnData, as data: genes have names, cells covariates.

    x    adata.X or a layer, (cells, genes): dense, sparse, or backed by a file
    y    the size of each cell, and one column for each batch, (cells, 1 + batches)

A sparse matrix stays sparse, and a backed one is read a few rows at a time. AnnData is recognized
by its attributes; this package does not import it.

How to fit cells and keep their codes:

    cells = pv.data.anndata(adata, layer="counts", batch="donor")
    vae = pv.build(cells, latent_dim=10, seed=0)
    pv.fit(vae, cells)
    cells.write_codes(vae)                       # adata.obsm["X_pyrovae"]
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyrovae.data.batch import Labels
from pyrovae.data.rows import Rows
from pyrovae.data.tables import TableSource
from pyrovae.errors import ConfigError, DataError

ROWS = 4096  # encoded at a time
UNIT = 10_000  # counts, of a size of 1; not a mean of the data, which would differ for new cells
BATCH = "batch: "  # before the name of a batch, as a column of y


def anndata(
    adata: Any,
    *,
    layer: str | None = None,
    size: str | None = "total",
    batch: str | None = None,
) -> Any:
    """Return an AnnData as data for `fit` and every other function.

    Args:
        adata: an AnnData, in memory or backed; or a MuData, whose modalities become a dict by site,
            without covariates.
        layer: the layer that holds the counts; None takes X.
        size: "total", the sum of a cell's counts in units of 10,000; a column of adata.obs, in the
            same units for all data of a model; or None, no covariate of this kind.
        batch: a column of adata.obs with categories, such as the donor.

    Returns:
        An `Annotated`; for a MuData, a dict of matrices.

    Raises:
        ConfigError: adata is not an AnnData, or a layer or column is missing.
        DataError: a size is not positive, or modalities differ in cells.

    References:
        anndata: Annotated data, Virshup et al., 2021, https://doi.org/10.1101/2021.12.16.473007
    """
    if hasattr(adata, "mod"):
        return _modalities(adata, layer)
    if not all(hasattr(adata, name) for name in ("obs", "var_names", "layers", "obsm")):
        raise ConfigError(
            f"adata is a {type(adata).__name__}, not an AnnData.\n"
            "Pass arrays, sparse matrices and data frames to fit as they are."
        )
    return Annotated(adata, layer=layer, size=size, batch=batch)


def _modalities(mdata: Any, layer: str | None) -> dict[str, Any]:
    names = list(mdata.obs_names)
    for name, adata in mdata.mod.items():
        if list(adata.obs_names) != names:
            raise DataError(
                f"the modality {name!r} has other cells than the MuData, or in another order.\n"
                "Keep the cells that all have: muon.pp.intersect_obs(mdata)."
            )
    return {name: _matrix_of(adata, layer) for name, adata in mdata.mod.items()}


def _matrix_of(adata: Any, layer: str | None) -> Any:
    if layer is not None and layer not in adata.layers:
        names = [name for name in adata.layers if name is not None]  # None is X since anndata 0.13
        raise ConfigError(f"layer = {layer!r}, but the layers are {names}.")
    matrix = adata.X if layer is None else adata.layers[layer]
    return BackedRows(matrix) if _is_backed(matrix) else matrix


def _is_backed(matrix: Any) -> bool:
    return not isinstance(matrix, np.ndarray) and not hasattr(matrix, "tocsr")


class BackedRows(Rows):
    """Rows of a matrix in an open file, dense or sparse, read on demand.

    Args:
        matrix: (N, D), with slices and sorted indices of rows.
        name: its name in messages.
    """

    def __init__(self, matrix: Any, name: str = "x"):
        super().__init__(tuple(matrix.shape), np.zeros((0, matrix.shape[1]), matrix.dtype), name)
        self.matrix = matrix

    def _read(self, place: slice | np.ndarray) -> np.ndarray:
        if isinstance(place, slice):
            return self._dense(self.matrix[place])
        ordered, back = np.unique(place, return_inverse=True)  # as files are read
        return self._dense(self.matrix[ordered])[back]

    def _dense(self, rows: Any) -> np.ndarray:
        rows = rows.toarray() if hasattr(rows, "toarray") else rows
        return np.asarray(rows).astype(self._native, order="C", copy=False)


class Annotated:
    """The counts of an AnnData, with the size and batch of each cell as covariates.

    Attributes:
        adata: the AnnData.
        matrix: (N, D) counts: dense, sparse, or `BackedRows`.
        column_names: names of the genes.
    """

    inputs = "log1p"

    def __init__(
        self, adata: Any, *, layer: str | None, size: str | None, batch: str | None
    ) -> None:
        self.adata, self.layer, self.size, self.batch = adata, layer, size, batch
        for name in {size, batch} - {None, "total"}:
            if name not in adata.obs:
                raise ConfigError(
                    f"adata.obs has no column {name!r}; it has {list(adata.obs.columns)[:10]}."
                )
        self.matrix = _matrix_of(adata, layer)
        self.column_names = tuple(map(str, adata.var_names))

    @property
    def likelihood(self) -> dict[str, Any]:
        """Counts whose rates are shares of a total, for `build`."""
        return {"name": "NegativeBinomial", "total": UNIT}

    @property
    def event_shape(self) -> tuple[int]:
        """The shape of a cell, (D,)."""
        return (len(self.column_names),)

    @property
    def labels(self) -> Labels:
        """Names of cells and genes."""
        return Labels(np.asarray(self.adata.obs_names, dtype=object), self.column_names)

    def __len__(self) -> int:
        return len(self.adata.obs_names)

    def __repr__(self) -> str:
        y = ", ".join(name.removeprefix(BATCH) for name in self.y_names)
        return f"Annotated({len(self):,} cells × {self.event_shape[0]:,} genes; y: {y or 'none'})"

    @property
    def y_names(self) -> tuple[str, ...]:
        """Names of the covariates: "size", then one for each batch."""
        size = () if self.size is None else ("size",)
        return size + tuple(f"{BATCH}{name}" for name in self._batches())

    def _batches(self) -> list[str]:
        if self.batch is None:
            return []
        column = self.adata.obs[self.batch]
        categories = getattr(getattr(column, "cat", None), "categories", None)
        names = sorted(set(map(str, column))) if categories is None else map(str, categories)
        return list(names)

    def y(self, names: Sequence[str] | None = None) -> Tensor | None:
        """Return the covariates (N, E), or None if there are none.

        Args:
            names: of the model's covariates; those of this data by default.

        Raises:
            DataError: a cell is of a batch that the model does not know, or has no counts.
        """
        names = self.y_names if names is None else names
        if not names:
            return None
        columns = []
        for name in names:
            is_size = name == "size"
            columns.append(self._sizes() if is_size else self._is_batch(name.removeprefix(BATCH)))
        y = torch.from_numpy(np.stack(columns, 1)).float()
        batches = [j for j, name in enumerate(names) if name.startswith(BATCH)]
        if batches and not bool((y[:, batches].sum(1) == 1).all()):
            row = int((y[:, batches].sum(1) != 1).byte().argmax())
            known = ", ".join(name.removeprefix(BATCH) for name in names if name != "size")
            raise DataError(
                f"cell {row} is of batch {self.adata.obs[self.batch].iloc[row]!r}, but the model "
                f"knows {known}.\nFit a model with all batches, or leave the cell out."
            )
        return y

    def _sizes(self) -> np.ndarray:
        if self.size is None:
            raise DataError(
                "this model needs the size of each cell.\nWrite pv.data.anndata(adata, size=…)."
            )
        if self.size != "total":
            return self.adata.obs[self.size].to_numpy("float64")
        totals = [np.asarray(part.sum(1)).ravel() for part in self._parts()]
        return np.concatenate(totals).astype("float64") / UNIT

    def _is_batch(self, name: str) -> np.ndarray:
        if self.batch is None:
            raise DataError(
                "this model needs the batch of each cell.\nWrite pv.data.anndata(adata, batch=…)."
            )
        return (self.adata.obs[self.batch].astype(str) == name).to_numpy("float64")

    def _parts(self) -> Any:
        if not isinstance(self.matrix, BackedRows):
            return [self.matrix]
        return (self.matrix[i : i + ROWS].numpy() for i in range(0, len(self), ROWS))

    def in_columns(self, names: Sequence[str]) -> "Annotated":
        """Return the data with these genes, in this order; others are left out.

        Raises:
            DataError: a gene is missing.
        """
        if self.column_names == tuple(names):
            return self
        missing = [name for name in names if name not in set(self.column_names)]
        if missing:
            raise DataError(
                f"adata lacks {len(missing):,} of the model's {len(names):,} genes, such as "
                f"{missing[0]!r}.\nGenes are matched by name: pass the same ones."
            )
        chosen = self.adata[:, list(names)]
        return Annotated(chosen, layer=self.layer, size=self.size, batch=self.batch)

    def write_codes(self, vae: Any, key: str = "X_pyrovae") -> None:
        """Write the mean of q(z|x) of each cell, (N, D), to adata.obsm[key].

        Args:
            vae: a VAE that was fitted on such data.
            key: the name in adata.obsm.
        """
        names = getattr(getattr(vae, "schema", None), "y_names", None)
        y = self.y(names) if vae.sees_covariates else None
        codes = []
        for start in range(0, len(self), ROWS):
            at = slice(start, start + ROWS)
            x = self.matrix[at]
            x = x.toarray() if hasattr(x, "toarray") else x
            with torch.no_grad():
                codes.append(vae.encode(x, None if y is None else y[at]).mean.cpu())
        self.adata.obsm[key] = torch.cat(codes).numpy()


class AnnotatedSource(TableSource):
    """An `Annotated`, read a few rows at a time.

    Args:
        x: the data.
        y: other covariates than the data's own.
        mask: of x's shape.
        batch_size: B.
    """

    def __init__(self, x: Annotated, y: Any = None, mask: Any = None, *, batch_size: int):
        y = x.y() if y is None else y
        super().__init__(x.matrix, y, mask, batch_size=batch_size)
        self.labels = x.labels
        self.table = replace(self.table, labels=self.labels)

    @classmethod
    def takes(cls, x: Any) -> bool:
        """Return whether x is an `Annotated`."""
        return isinstance(x, Annotated)
