"""Containers of data, each a source of batches.

    Table                                   FrameSource     a data frame read column by column
    Annotated                               AnnotatedSource an AnnData, in memory or backed
    tensor, array, data frame, list         ArraySource     in memory, shuffled by index
    numpy.memmap                            MappedSource    read in windows of shuffled blocks
    scipy sparse matrix                     SparseSource    rows made dense batch by batch
    map-style Dataset, DataLoader           LoaderSource    all batches checked before training
    IterableDataset, iterable of batches    StreamSource    each batch checked as it arrives

`table` reads a data frame of mixed columns, and `anndata` an AnnData. A new container adds one file
here and one line to `SOURCES`. `pyrovae.contract.validated` opens a source and checks it against a
program.
"""

from types import MappingProxyType
from typing import Any

from pyrovae.data.alignment import aligned
from pyrovae.data.annotated import Annotated, AnnotatedSource, anndata
from pyrovae.data.arrays import ArraySource
from pyrovae.data.batch import Batch, Labels, concat, is_by_site
from pyrovae.data.framed import FrameSource
from pyrovae.data.loaders import LoaderSource, StreamSource
from pyrovae.data.proposals import table
from pyrovae.data.schema import Schema, Table
from pyrovae.data.source import Source, Validator
from pyrovae.data.tables import MappedSource, SparseSource
from pyrovae.errors import ConfigError, DataError

__all__ = [
    "SOURCES",
    "Annotated",
    "AnnotatedSource",
    "ArraySource",
    "Batch",
    "FrameSource",
    "Labels",
    "LoaderSource",
    "MappedSource",
    "Schema",
    "Source",
    "SparseSource",
    "StreamSource",
    "Table",
    "Validator",
    "anndata",
    "concat",
    "open_source",
    "table",
]

# the first source that takes a container is used; ArraySource takes the remaining ones
SOURCES = MappingProxyType(
    {
        "table": FrameSource,
        "annotated": AnnotatedSource,
        "loader": LoaderSource,
        "stream": StreamSource,
        "sparse": SparseSource,
        "mapped": MappedSource,
        "array": ArraySource,
    }
)


def open_source(x: Any, y: Any = None, mask: Any = None, *, batch_size: int = 128) -> Source:
    """Return the source of minibatches for any container; values are not checked yet.

    Args:
        x: an array (N, *event), in memory, memory-mapped or scipy sparse; a data frame; a
            Dataset of x, (x, y) or (x, y, mask), tuples or dicts; a DataLoader or another
            iterable of batches of these.
        y: covariates, (N, …), alongside an array.
        mask: of x's shape, alongside an array. Columns and rows of data frames are matched by
            name (`data.alignment`).
        batch_size: B for arrays and Datasets; a DataLoader has its own.

    Raises:
        DataError: x is not a container of numbers.
        ConfigError: x is an iterator, which can be read only once; or y or mask is given alongside
            a loader.

    Example:
        >>> source = open_source([[0.0, 1.0]] * 5, batch_size=2)
        >>> [batch.num_data for batch in source.epoch(shuffle=True)]
        [2, 2, 1]
    """
    if hasattr(x, "__next__"):
        raise ConfigError(
            f"x is a {type(x).__name__}, which is not re-iterable: a second epoch of it would be "
            "empty.\nPass an array, a Dataset (an IterableDataset for a stream) or a DataLoader."
        )
    if is_by_site(x) and not x:
        raise DataError("x is an empty dict, but it needs an array for each observed site.")
    x, y, mask = aligned(x, y, mask)
    kind = next(kind for kind in SOURCES.values() if kind.takes(x))
    return kind(x, y, mask, batch_size=batch_size)
