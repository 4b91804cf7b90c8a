"""Minibatches of torch DataLoaders: counted and checked whole, or checked as they stream by.

A batch is x, (x, y) or (x, y, mask), as a tensor, a tuple, a list, or a dict with these keys.
How a loader shuffles, and how many workers it has, was decided when it was made.

The look at all batches also feeds a SHA-256, in the order in which they come. It is the data's
fingerprint where a resumed run meets the same numbers in the same order: the order is one of
torch's own, which the seed fixes, and rows that are read twice are equal. Random augmentation has
none, unless the Dataset has a method `fingerprint` of its own that gives a flat dict.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from pyrovae.checks import as_tensor
from pyrovae.contract.validation import Door
from pyrovae.data.batch import ALL, Batch, shared
from pyrovae.errors import ConfigError, DataError
from pyrovae.runtime.hashing import as_bytes, sha256
from pyrovae.runtime.random_stream import RandomStream

SEEDED = (SequentialSampler, RandomSampler, SubsetRandomSampler, WeightedRandomSampler)
NUM_READ_TWICE = 8


class LoaderBatches:
    """Minibatches of a DataLoader over a map-style Dataset, in its own order and batch size.

    All batches are looked at once when this is made, and each again before its step, because
    a Dataset may draw its data anew. N is what an epoch gives: with `drop_last` less than the
    Dataset has.

    Args:
        program: as for `ArrayBatches`.
        loader: a re-iterable over batches.
        name: what the caller passed, for the fingerprint.

    Raises:
        DataError: a batch does not fit the program, there is none, or the Dataset fails.

    Example:
        >>> import pyrovae as pv, torch
        >>> loader = DataLoader(torch.eye(3, 2), batch_size=2)
        >>> batches = LoaderBatches(pv.build((2,), latent_dim=1), loader)
        >>> batches.num_data, [len(batch.x) for batch in batches.epoch(shuffle=False)]
        (3, [2, 1])
    """

    preloaded = None
    num_data: int | None = None
    num_batches: int | None = None

    def __init__(self, program: nn.Module, loader: DataLoader, *, name: str = "DataLoader"):
        self.loader, self.name, self.door = loader, name, Door(program)
        self.batch_size = loader.batch_size or 1
        self._count()

    def _count(self) -> None:
        hashes: dict[str, Any] = {}
        sizes = []
        try:
            for batch in self._checked(self._items(), 0, 0):
                sizes.append(len(batch.x))
                for name, column in batch._asdict().items():
                    if column is not None:
                        hashes.setdefault(name, hashlib.sha256()).update(as_bytes(column))
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            # of a killed worker torch tells by a signal, wherever Python then is
            raise self._failure(len(sizes) + 1, error) from error
        self.digests = {f"{name} sha256": digest.hexdigest() for name, digest in hashes.items()}
        self.num_data, self.num_batches = sum(sizes), len(sizes)
        self.batch_size = max(sizes)

    def epoch(self, shuffle: bool, skip: int = 0, share: slice = ALL) -> Iterator[Batch]:
        """One pass of the loader; batches that are skipped are read, and dropped unseen."""
        items = self._items()
        skipped = [len(batch_of(item).x) for _, item in zip(range(skip), items, strict=False)]
        return (shared(b, share) for b in self._checked(items, len(skipped), sum(skipped)))

    def fingerprint(self) -> dict[str, Any]:
        """The type of the loader, or of the Dataset, N, and each column's SHA-256 or None."""
        return dict(self._fingerprint)

    @cached_property
    def _fingerprint(self) -> dict[str, Any]:
        facts = {"loader": self.name, "num_data": self.num_data}
        own = getattr(self.loader.dataset, "fingerprint", None)
        if callable(own):
            return facts | own()
        is_fixed = gives_the_same_again(self.loader)
        return facts | {n: d if is_fixed else None for n, d in self.digests.items()}

    def _checked(self, items: Iterator[Any], num_batches: int, num_data: int) -> Iterator[Batch]:
        """The batches that are left of a pass of which some have been given."""
        for number, item in enumerate(items, num_batches + 1):
            given = batch_of(item)
            try:
                batch = Batch(*self.door(*given))
            except (DataError, ConfigError) as error:
                raise type(error)(f"{error}\n(In batch {number} of the {self.name}.)") from None
            num_batches, num_data = number, num_data + len(batch.x)
            self.batch_size = max(self.batch_size, len(batch.x))
            yield batch
        self._end(num_batches, num_data)

    def _items(self) -> Iterator[Any]:
        """What the loader gives; an error of it, or of a worker, named in one line and chained."""
        number = 0
        try:
            for item in self.loader:
                number += 1
                if item is None:
                    raise DataError(
                        f"batch {number} of the {self.name} is None, but a batch is x, (x, y) or "
                        "(x, y, mask): it cannot be told how many data were left out.\n"
                        "Let collate_fn leave bad items out of their batch and give the others, "
                        "or leave them out of the Dataset."
                    )
                yield item
        except (DataError, ConfigError, MemoryError):
            raise
        except Exception as error:
            raise self._failure(number + 1, error) from error

    def _failure(self, number: int, error: Exception) -> DataError:
        return DataError(
            f"the {self.name} failed to give batch {number}: {_in_one_line(error)}\n"
            "The error above this one says where; the parameters are as after the last step."
        )

    def _end(self, num_batches: int, num_data: int) -> None:
        """DataError unless an epoch gave some data, and as many as the one before."""
        if not num_data:
            raise DataError(
                f"the {self.name} gives no batch (N = 0): there is nothing to learn from.\n"
                "With drop_last=True it needs at least batch_size data; an iterator that ends once "
                "must be started anew in __iter__."
            )
        if self.num_data not in (None, num_data):
            raise DataError(
                f"the {self.name} says that it holds {self.num_data:,} data, but an epoch of it "
                f"gave {num_data:,}: what is reported per datum would be wrong by that factor.\n"
                "Correct its __len__, or what it leaves out or gives twice (each worker of an "
                "iterable Dataset gives all of it unless it takes its share)."
            )


class StreamBatches(LoaderBatches):
    """Minibatches of a DataLoader over an IterableDataset, each checked before its step.

    N is the Dataset's length where it has one, which each epoch is then held to; else it is
    known after the first epoch, and is that of the latest one.

    Args:
        program, loader, name: as for `LoaderBatches`.

    Example:
        >>> import pyrovae as pv, torch
        >>> class Stream(torch.utils.data.IterableDataset):
        ...     def __iter__(self):
        ...         return iter(torch.eye(3, 2))
        >>> loader = DataLoader(Stream(), batch_size=2)
        >>> batches = StreamBatches(pv.build((2,), latent_dim=1), loader)
        >>> before = batches.num_data
        >>> before, sum(len(batch.x) for batch in batches.epoch(shuffle=False)), batches.num_data
        (None, 3, 3)
    """

    def _count(self) -> None:
        # not len(loader): torch would warn of what is an error here
        has_length = hasattr(self.loader.dataset, "__len__") and self.loader.batch_size is not None
        self.declared = len(self.loader.dataset) if has_length else None
        if self.loader.drop_last:
            self.declared = None
        self.num_data = self.declared
        if self.declared is not None and self.loader.num_workers < 2:
            self.num_batches = -(-self.declared // self.batch_size)

    def fingerprint(self) -> dict[str, Any]:
        """The type of the loader, or of the Dataset, and the length that it states, or None."""
        return {"loader": self.name, "num_data": self.declared}

    def _end(self, num_batches: int, num_data: int) -> None:
        self.num_data = self.declared
        super()._end(num_batches, num_data)
        self.num_data, self.num_batches = num_data, num_batches


def batch_of(item: Any) -> Batch:
    """What a loader gave, as x, y and mask, not checked yet.

    Raises:
        DataError: a dict without x or with other keys; more than three things in a tuple.

    Example:
        >>> batch_of({"x": 1, "mask": 2})
        Batch(x=1, y=None, mask=2)
    """
    if isinstance(item, Mapping):
        if "x" in item and set(item) <= set(Batch._fields):
            return Batch(**item)
        raise DataError(
            f"a batch is a dict with the keys {', '.join(map(repr, item))}, but a program takes "
            "'x', and 'y' and 'mask' where there are some.\nRename them in the Dataset."
        )
    parts = tuple(item) if isinstance(item, tuple | list) else (item,)
    if not 1 <= len(parts) <= 3:
        raise DataError(
            f"a batch is a tuple of {len(parts)} things, but a program takes x, (x, y) or "
            "(x, y, mask): what the others mean cannot be told.\nLeave them out in the Dataset."
        )
    return Batch(*parts)


def gives_the_same_again(loader: DataLoader) -> bool:
    """Whether another pass with the same seed would give the same numbers, as far as one can see.

    The order must be one of torch's samplers, or a sequence; and some rows, read twice, equal.

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
    """Some of what the sampler may ask the Dataset for, spread over all of it."""
    rows = sampler if isinstance(sampler, Sequence) else getattr(sampler, "indices", None)
    rows = range(len(loader.dataset)) if rows is None else rows
    last, number = len(rows) - 1, min(NUM_READ_TWICE, len(rows))
    return [rows[last * i // max(1, number - 1)] for i in range(number)]


def _reads_equal(loader: DataLoader, rows: list[Any]) -> bool:
    """Whether the rows, read twice in one pass, by one worker if it has some, are equal."""
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
    except Exception:  # read otherwise than in its own order: nothing can be said
        return False
    half = len(found) // 2
    return found[:half] == found[half:]


def _hashes(item: Any) -> list[str]:
    return [sha256(as_tensor(column, "x")) for column in batch_of(item) if column is not None]


def _in_one_line(error: Exception) -> str:
    """The kind and text of an error; of a worker's, the last line of its traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    line = lines[-1] if lines else ""
    kind = type(error).__name__
    return line[:300] if line.startswith(kind) else f"{kind}: {line[:300]}"
