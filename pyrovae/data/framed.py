"""Tables as a source of batches."""

from typing import Any

from torch import Tensor

from pyrovae.checks import as_labels, as_tensor
from pyrovae.data.arrays import ArraySource
from pyrovae.data.batch import Batch, Labels, spread
from pyrovae.data.schema import Table


class FrameSource(ArraySource):
    """A `Table`: its numbers, with missing cells left out, and the labels of its data frame.

    Args:
        x: the table.
        y: as for `fit`.
        mask: cells to leave out besides the missing ones, false there; None leaves out none.
        batch_size: B.

    Example:
        >>> import pandas as pd
        >>> from pyrovae.data import table
        >>> frame = pd.DataFrame({"a": [1.5, None, 2.5]}, index=["r", "s", "t"])
        >>> batch = FrameSource(table(frame), batch_size=3).whole()
        >>> batch.mask[:, 0], batch.labels.rows.tolist()
        (tensor([ True, False,  True]), ['r', 's', 't'])
    """

    def __init__(self, x: Table, y: Any = None, mask: Any = None, *, batch_size: int):
        rows, _ = as_labels(x.frame)
        self.labels = Labels(rows, x.schema.names)
        seen = self._observed(x, mask)
        self.preloaded = Batch(x.x, y, seen, self.labels).map_named(as_tensor)
        self.dtypes = {name: array.dtype for name, array in self.preloaded.columns.items()}
        self.batch_size = batch_size

    @classmethod
    def takes(cls, x: Any) -> bool:
        """Return whether x is a `Table`."""
        return isinstance(x, Table)

    @staticmethod
    def _observed(x: Table, mask: Any) -> Tensor | None:
        """Return which cells are present and not masked; None if all are."""
        if mask is None:
            return None if bool(x.mask.all()) else x.mask
        mask = spread(as_tensor(mask, "mask"), x.x)
        is_valid = mask.shape == x.mask.shape and bool(((mask == 0) | (mask == 1)).all())
        return mask.bool().cpu() & x.mask if is_valid else mask  # others are refused later
