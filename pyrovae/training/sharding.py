"""What the processes of a run share: batches, and the folder that rank 0 alone reads and writes.

Both stand before what a single process uses, `Source` and `RunFolder`, with the same interface.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pyrovae.data import Batch, Source
from pyrovae.runtime.process_group import Group
from pyrovae.runtime.random_stream import RandomStream
from pyrovae.runtime.run_folder import Checkpoint, RunFolder


class Sharded:
    """The share that a process takes of each batch; with the interface of `Source`.

    `num_data`, `num_batches` and `batch_size` are those of all processes together. A share
    can be empty: of a batch of 1, say.

    Args:
        batches: the same ones in all processes.
        group: the processes.
        stream: the order of data is drawn from it, and all that a Dataset draws.
    """

    def __init__(self, batches: Source, group: Group, stream: RandomStream):
        self.batches, self.stream = batches, stream
        self.rows = slice(group.rank, None, group.size)

    num_data = property(lambda self: self.batches.num_data)
    num_batches = property(lambda self: self.batches.num_batches)
    batch_size = property(lambda self: self.batches.batch_size)
    preloaded = property(lambda self: self.batches.preloaded)

    def epoch(self, shuffle: bool, skip: int = 0) -> Iterator[Batch]:
        """One pass over the shares of all batches, in the order that the stream gives."""
        with self.stream:
            batches = self.batches.epoch(shuffle, skip, self.rows)
        return self._drawn(batches)

    def _drawn(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        while True:
            with self.stream:
                batch = next(batches, None)
            if batch is None:
                return
            yield batch

    def fingerprint(self) -> dict[str, Any]:
        """That of all the data."""
        return self.batches.fingerprint()


class SharedFolder:
    """The run folder of several processes: rank 0 reads and writes it, all know what it holds.

    Args:
        folder: used by rank 0 only, so that the machines need no common disk.
        group: the processes.
    """

    def __init__(self, folder: RunFolder, group: Group):
        self.folder, self.group, self.path = folder, group, folder.path

    def __enter__(self) -> "SharedFolder":
        if self.group.is_first:
            self.folder.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        if self.group.is_first:
            self.folder.__exit__(*exception)

    def newest_complete(self) -> Checkpoint | None:
        """What rank 0 finds, for all."""
        found = self.folder.newest_complete() if self.group.is_first else None
        found = self.group.broadcast_object(found and (found.step, found.state, str(found.path)))
        return found and Checkpoint(*found[:2], Path(found[2]))

    def save_step(self, step: int, state: Any, *, is_diverged: bool = False) -> Path | None:
        """Write the state, which all processes made together, from rank 0."""
        if self.group.is_first:
            return self.folder.save_step(step, state, is_diverged=is_diverged)
        return None

    @property
    def newest_path(self) -> Path | None:
        """As rank 0 knows it; None elsewhere."""
        return self.folder.newest_path if self.group.is_first else None
