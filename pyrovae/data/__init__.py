"""From what users have to minibatches (x, y, mask) that a program takes.

One interface (`Batches`), one class for each way in which data are held:

    tensor, array, data frame          ArrayBatches    in memory, shuffled by index
    numpy.memmap                       MappedBatches   read in windows of shuffled blocks
    scipy sparse matrix                SparseBatches   rows filled in batch by batch
    map-style Dataset, DataLoader      LoaderBatches   iterated; looked at whole beforehand
    IterableDataset, its DataLoader    StreamBatches   iterated; each batch looked at in its turn

All but streams are looked at whole, at the door, before training changes anything.
"""

from typing import Any

from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from pyrovae.data.arrays import ArrayBatches
from pyrovae.data.batch import Batch, Batches
from pyrovae.data.loaders import LoaderBatches, StreamBatches
from pyrovae.data.rows import mapped_file
from pyrovae.data.tables import MappedBatches, SparseBatches
from pyrovae.errors import ConfigError, DataError

__all__ = [
    "ArrayBatches",
    "Batch",
    "Batches",
    "LoaderBatches",
    "MappedBatches",
    "SparseBatches",
    "StreamBatches",
    "as_batches",
]


def as_batches(
    program: nn.Module, x: Any, y: Any = None, mask: Any = None, *, batch_size: int
) -> Batches:
    """The source of minibatches for any container of data, checked whole unless it is a stream.

    Args:
        program: whose data these are.
        x: an array (N, *event), in memory, memory-mapped or scipy sparse; a Dataset of data x,
            (x, y) or (x, y, mask), tuples or dicts; or a DataLoader of batches of these.
        y: covariates, (N, …), beside an array.
        mask: of x's shape, beside an array.
        batch_size: B for arrays and Datasets; a DataLoader has its own.

    Raises:
        DataError: the data do not fit the program.
        ConfigError: an iterator that could be read only once; y or mask beside a loader.

    Example:
        >>> import pyrovae as pv, torch
        >>> vae = pv.build((2,), latent_dim=1)
        >>> batches = as_batches(vae, torch.ones(5, 2), batch_size=2)
        >>> [len(batch.x) for batch in batches.epoch(shuffle=True)]
        [2, 2, 1]
    """
    if hasattr(x, "__next__"):
        raise ConfigError(
            f"x is a {type(x).__name__}, which is not re-iterable: a second epoch of it would be "
            "empty.\nPass an array, a Dataset (an IterableDataset for a stream) or a DataLoader."
        )
    if isinstance(x, Dataset | DataLoader):
        return _loader_batches(program, x, y, mask, batch_size)
    source = ArrayBatches
    if hasattr(x, "tocsr"):
        source = SparseBatches
    elif mapped_file(x) is not None:
        source = MappedBatches
    return source(program, x, y, mask, batch_size=batch_size)


def _loader_batches(
    program: nn.Module, x: Any, y: Any, mask: Any, batch_size: int
) -> LoaderBatches:
    if y is not None or mask is not None:
        raise ConfigError(
            f"x is a {type(x).__name__}, so y and mask must come with each datum.\n"
            "Let it give tuples (x, y) or (x, y, mask)."
        )
    name = type(x).__name__
    is_stream = isinstance(x.dataset if isinstance(x, DataLoader) else x, IterableDataset)
    if isinstance(x, Dataset):
        if not is_stream and not len(x):
            raise DataError(f"the {name} has no data (N = 0): there is nothing to learn from.")
        x = DataLoader(x, batch_size=batch_size, shuffle=not is_stream, collate_fn=_collate)
    return (StreamBatches if is_stream else LoaderBatches)(program, x, name=name)


def _collate(items: Any) -> Any:
    # a Dataset with __getitems__ may give a whole batch as one tensor
    return items if isinstance(items, Tensor) else default_collate(items)
