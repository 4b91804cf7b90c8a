"""Items of a DataLoader: the batch in each, the order of rows, and whether they come again.

A batch is x, (x, y) or (x, y, mask), as a tensor, a tuple, a list, or a dict with these keys.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from pyrovae.checks import as_tensor
from pyrovae.data.batch import COLUMNS, Batch
from pyrovae.errors import ConfigError, DataError
from pyrovae.runtime.hashing import sha256
from pyrovae.runtime.random_stream import RandomStream

SEEDED = (SequentialSampler, RandomSampler, SubsetRandomSampler, WeightedRandomSampler)
NUM_READ_TWICE = 8


def is_stream(x: Any) -> bool:
    """Return whether x is an IterableDataset or a loader over one."""
    return isinstance(x.dataset if isinstance(x, DataLoader) else x, IterableDataset)


def in_order(loader: DataLoader) -> DataLoader:
    """Return a loader of the same data in the Dataset's order, all rows once.

    A subset's sampler keeps its rows. Streams have one order only.

    Raises:
        ConfigError: the loader has a custom sampler, whose rows are known only when drawn.

    Example:
        >>> import torch
        >>> shuffled = DataLoader(torch.arange(4), batch_size=3, shuffle=True, drop_last=True)
        >>> [batch.tolist() for batch in in_order(shuffled)]
        [[0, 1, 2], [3]]
    """
    if is_stream(loader):
        return loader
    batches, sampler = loader.batch_sampler, loader.sampler
    if type(batches) not in (type(None), BatchSampler):
        sampler = batches
    rows = range(len(loader.dataset))
    if isinstance(sampler, SubsetRandomSampler):
        rows = sampler.indices
    elif isinstance(sampler, Sequence):
        rows = sampler
    elif type(sampler) not in SEEDED:
        raise ConfigError(
            f"the DataLoader draws its rows with a {type(sampler).__name__}, so their order is "
            "unknown, but the result has one row per datum.\nPass the Dataset itself, or a "
            "DataLoader without a custom sampler."
        )
    return DataLoader(
        loader.dataset,
        batch_size=loader.batch_size,
        sampler=rows,
        collate_fn=loader.collate_fn,
        num_workers=loader.num_workers,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context if loader.num_workers else None,
    )


def num_rows(loader: DataLoader) -> int:
    """Return N, the number of rows that a loader in order gives."""
    return len(loader.sampler)


def batch_of(item: Any) -> Batch:
    """Return an item of a loader as x, y and mask, not checked yet.

    Raises:
        DataError: item is a dict without x or with other keys, or a tuple of more than three.

    Example:
        >>> list(batch_of({"x": 1, "mask": 2}))
        [1, None, 2]
    """
    if isinstance(item, Mapping):
        if "x" not in item and not set(item) & set(COLUMNS):
            return Batch(dict(item))
        if "x" in item and set(item) <= set(COLUMNS):
            return Batch(**item)
        raise DataError(
            f"a batch is a dict with the keys {', '.join(map(repr, item))}, but a program takes "
            "'x', and optionally 'y' and 'mask'.\nRename them in the Dataset."
        )
    parts = tuple(item) if isinstance(item, tuple | list) else (item,)
    if not 1 <= len(parts) <= 3:
        raise DataError(
            f"a batch is a tuple of {len(parts)} values, but a program takes x, (x, y) or "
            "(x, y, mask): the meaning of the others is unknown.\nDrop them in the Dataset."
        )
    return Batch(*parts)


def gives_the_same_again(loader: DataLoader) -> bool:
    """Return whether another pass with the same seed would probably yield the same numbers.

    The order must come from one of torch's samplers or a sequence, and rows read twice must agree.

    Example:
        >>> import torch
        >>> gives_the_same_again(DataLoader(torch.eye(3), shuffle=True))
        True
    """
    batches = loader.batch_sampler
    sampler = loader.sampler if batches is None else getattr(batches, "sampler", None)
    if type(batches) not in (type(None), BatchSampler):
        return False
    if not isinstance(sampler, Sequence) and type(sampler) not in SEEDED:
        return False
    return _reads_equal(loader, _some_rows(loader, sampler))


def _some_rows(loader: DataLoader, sampler: Any) -> list[Any]:
    """Return some of the rows that the sampler may draw, evenly spaced."""
    rows = sampler if isinstance(sampler, Sequence) else getattr(sampler, "indices", None)
    rows = range(len(loader.dataset)) if rows is None else rows
    last, number = len(rows) - 1, min(NUM_READ_TWICE, len(rows))
    return [rows[last * i // max(1, number - 1)] for i in range(number)]


def _reads_equal(loader: DataLoader, rows: list[Any]) -> bool:
    """Return whether rows that are read twice in one pass, by one worker, are equal."""
    has_workers = loader.num_workers > 0
    again = DataLoader(
        loader.dataset,
        batch_size=None if loader.batch_sampler is None else len(rows),
        sampler=[*rows, *rows],
        collate_fn=loader.collate_fn,
        num_workers=int(has_workers),
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context if has_workers else None,
    )
    try:
        with RandomStream(0):
            found = [_hashes(item) for item in again]
    except Exception:  # a Dataset may support its own order only: nothing is known then
        return False
    half = len(found) // 2
    return found[:half] == found[half:]


def _hashes(item: Any) -> list[str]:
    return [sha256(as_tensor(column, "x")) for column in batch_of(item).columns.values()]


def in_one_line(error: Exception) -> str:
    """Return the type and text of an error; for workers, the last line of the traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    line = lines[-1] if lines else ""
    kind = type(error).__name__
    return line[:300] if line.startswith(kind) else f"{kind}: {line[:300]}"
