"""What the processes of a run share: batches, and the folder that only rank 0 reads and writes.

Both wrap what a single process uses, `Source` and `RunFolder`, with the same interface.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pyrovae.data import Batch, Source
from pyrovae.runtime.process_group import Group
from pyrovae.runtime.random_stream import RandomStream
from pyrovae.runtime.run_folder import Checkpoint, RunFolder


class Sharded:
    """The shard of each batch that a process takes, with the interface of `Source`.

    `num_data`, `num_batches` and `batch_size` are those of all processes together. A shard can be
    empty, for example of a batch of 1.

    Args:
        batches: the same in all processes.
        group: the processes.
        stream: of the order of data, and of all that a Dataset draws.
    """

    def __init__(self, batches: Source, group: Group, stream: RandomStream):
        self.batches, self.stream = batches, stream
        self.rows = slice(group.rank, None, group.size)

    num_data = property(lambda self: self.batches.num_data)
    num_batches = property(lambda self: self.batches.num_batches)
    batch_size = property(lambda self: self.batches.batch_size)
    preloaded = property(lambda self: self.batches.preloaded)

    def epoch(self, shuffle: bool, skip: int = 0) -> Iterator[Batch]:
        """Make one pass over the shards of all batches, in the order that the stream draws."""
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
        """Return the fingerprint of all the data."""
        return self.batches.fingerprint()


class SharedFolder:
    """The run folder of several processes: rank 0 reads and writes it, and tells the others.

    Args:
        folder: used by rank 0 only, so the machines need no common disk.
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
        """Return what rank 0 finds, on all ranks."""
        found = self.folder.newest_complete() if self.group.is_first else None
        found = self.group.broadcast_object(found and (found.step, found.state, str(found.path)))
        return found and Checkpoint(*found[:2], Path(found[2]))

    def save_step(self, step: int, state: Any, *, is_diverged: bool = False) -> Path | None:
        """Write the state, which all processes have made together, on rank 0."""
        if self.group.is_first:
            return self.folder.save_step(step, state, is_diverged=is_diverged)
        return None

    @property
    def newest_path(self) -> Path | None:
        """The path that rank 0 knows; None elsewhere."""
        return self.folder.newest_path if self.group.is_first else None
