"""From what users have to minibatches (x, y, mask) that a program takes.

Two sources share one interface: arrays in memory, which are shuffled by index, and
torch Datasets and DataLoaders, which are iterated. Either is looked at whole, at the
door, before training changes anything. `num_data` is the number of data in one epoch.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from pyrovae.admission import admit
from pyrovae.errors import ConfigError, DataError


class Batch(NamedTuple):
    """The arguments of a program: x (B, *event), y (B, …) or None, mask of x's shape or None."""

    x: Tensor
    y: Tensor | None = None
    mask: Tensor | None = None


class ArrayBatches:
    """Minibatches of arrays in memory; the last one of an epoch may be smaller.

    Args:
        program: whose parameters fix dtype and device, and whose decoder fixes the support.
        x, y, mask: as for `fit`.
        batch_size: B; one batch when it exceeds N.

    Raises:
        DataError: the data do not fit the program.
    """

    def __init__(self, program: nn.Module, x: Any, y: Any, mask: Any, *, batch_size: int):
        self.data = Batch(*admit(program, x, y, mask))
        self.num_data = len(self.data.x)
        self.batch_size = batch_size
        self.num_batches = -(-self.num_data // batch_size)

    def epoch(self, *, shuffle: bool) -> Iterator[Batch]:
        """One pass over the data, each datum once, in an order drawn from the global generator."""
        device = self.data.x.device
        order = torch.randperm(self.num_data) if shuffle else torch.arange(self.num_data)
        for index in order.to(device).split(self.batch_size):
            yield Batch(*(None if t is None else t[index] for t in self.data))


class LoaderBatches:
    """Minibatches of a DataLoader, in its own order and batch size.

    A batch is x, (x, y) or (x, y, mask), as a tensor, a tuple or a list.

    Args:
        program: as for `ArrayBatches`.
        loader: a re-iterable over batches.

    Raises:
        DataError: a batch does not fit the program, or there is none.
    """

    def __init__(self, program: nn.Module, loader: DataLoader):
        self.program, self.loader = program, loader
        sizes = [len(batch.x) for batch in self.epoch(shuffle=False)]
        self.num_data, self.num_batches = sum(sizes), len(sizes)
        self.batch_size = max(sizes, default=0)
        if not self.num_data:
            raise DataError(
                "the DataLoader gives no batch (N = 0): there is nothing to learn from.\n"
                "With drop_last=True it needs at least batch_size data."
            )

    def epoch(self, *, shuffle: bool) -> Iterator[Batch]:
        """One pass of the loader; whether it shuffles was decided when it was made."""
        for item in self.loader:
            parts = item if isinstance(item, tuple | list) else (item,)
            yield Batch(*admit(self.program, *parts[:3], is_whole=False))


def as_batches(
    program: nn.Module, x: Any, y: Any = None, mask: Any = None, *, batch_size: int
) -> ArrayBatches | LoaderBatches:
    """The source of minibatches for arrays, a Dataset or a DataLoader, checked whole.

    Args:
        program: whose data these are.
        x: an array (N, *event), a map-style Dataset of data x, (x, y) or (x, y, mask), or a
            DataLoader of batches of these.
        y: covariates, (N, …), beside an array.
        mask: of x's shape, beside an array.
        batch_size: B for arrays and Datasets; a DataLoader has its own.

    Raises:
        DataError: the data do not fit the program.
        ConfigError: an iterator that could be read only once; y or mask beside a loader.

    Example:
        >>> import pyrovae as pv
        >>> vae = pv.build((2,), latent_dim=1)
        >>> batches = as_batches(vae, torch.ones(5, 2), batch_size=2)
        >>> [len(batch.x) for batch in batches.epoch(shuffle=True)]
        [2, 2, 1]
    """
    if hasattr(x, "__next__") or isinstance(x, IterableDataset):
        raise ConfigError(
            f"x is a {type(x).__name__}, which is not re-iterable or has no length: an epoch of it "
            "is not defined.\nPass an array, a map-style Dataset or a DataLoader."
        )
    if not isinstance(x, Dataset | DataLoader):
        return ArrayBatches(program, x, y, mask, batch_size=batch_size)
    if y is not None or mask is not None:
        raise ConfigError(
            f"x is a {type(x).__name__}, so y and mask must come with each datum.\n"
            "Let it give tuples (x, y) or (x, y, mask)."
        )
    if isinstance(x, Dataset):
        if not len(x):
            raise DataError(f"the {type(x).__name__} has no data (N = 0): nothing to learn from.")
        x = DataLoader(x, batch_size=batch_size, shuffle=True, collate_fn=_collate)
    return LoaderBatches(program, x)


def _collate(items: Any) -> Any:
    # a Dataset with __getitems__ may give a whole batch as one tensor
    return items if isinstance(items, Tensor) else default_collate(items)
