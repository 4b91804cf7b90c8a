"""The folder of a training run: its steps, and its lock.

    run/lock                        held by flock during the run; says who holds it
    run/step-00001000/              a complete step, renamed from .tmp once it is written
        tensors.safetensors         the tensors of the state
        state.json                  the rest of the state
        manifest.json               size and SHA-256 of both, with a seal
    run/step-00001000.2/            the same step, reached again after the first was damaged
    run/diverged-00001204/          for inspection; never resumed from
    run/*.tmp                       leftovers of a killed run; removed by the next one

At least two complete steps are kept, so the run can be resumed even if one is damaged.
"""

import hashlib
import io
import json
import os
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from pyrovae import _version
from pyrovae.checks import as_path, shortened, warn_caller, whole_number
from pyrovae.errors import (
    CheckpointError,
    ConfigError,
    CorruptCheckpointError,
    RunLockedError,
    StateMismatchError,
)
from pyrovae.runtime.files import (
    MAX_JSON,
    NO_SEAL,
    check_seal,
    fsync_folder,
    json_bytes,
    locked_file,
    opened,
    parse_json,
    read_exactly,
    readable_json,
    sealed,
    sha256,
    write_new,
    writing,
)
from pyrovae.runtime.random_stream import RandomStream
from pyrovae.runtime.state_tree import check_like, pack, unpack
from pyrovae.runtime.tensor_file import (
    FORMAT,
    check_format,
    check_tensors,
    read_tensor_file,
    tensor_file,
)

TENSORS, STATE, MANIFEST = "tensors.safetensors", "state.json", "manifest.json"
STATE_NAME = "the state of the run without its tensors"
_NAME = re.compile(r"(step|diverged)-([0-9]{8,18})(?:\.([0-9]{1,9}))?")
_LEFTOVER = re.compile(rf"(?:{_NAME.pattern}|\..*)\.tmp")


class Checkpoint(NamedTuple):
    """A complete step of a run.

    Attributes:
        step: the number of batches so far; several may share an update.
        state: as passed to `save_step`.
        path: its folder.
    """

    step: int
    state: Any
    path: Path


class RunFolder:
    """The folder of one training run, locked while the `with` block runs.

    Entering creates the folder, takes the lock (the kernel releases it when the process ends, even
    by kill -9) and removes the leftovers of a killed run.

    Args:
        path: path of the folder, created with its parents if needed. It may hold other files.
        resume: continue from the steps in the folder; otherwise it must hold none.
        keep: the number of complete steps to keep, at least 2.

    Raises:
        RunLockedError: another run is using it.
        ConfigError: the folder holds steps, but resume is false; or an argument is invalid.
        CheckpointError: the folder cannot be written to.

    Example:
        >>> import tempfile, torch
        >>> with tempfile.TemporaryDirectory() as folder, RunFolder(folder) as run:
        ...     path = run.save_step(100, {"weights": torch.ones(2), "epoch": 3})
        ...     run.newest_complete().state
        {'weights': tensor([1., 1.]), 'epoch': 3}
    """

    def __init__(self, path: Any, *, resume: bool = False, keep: int = 2):
        self.path, self.resume = as_path(path), resume
        self.keep = whole_number(keep, "keep", 2)
        self._good: set[str] = set()  # written or verified by this object
        self._lock: int | None = None

    def __enter__(self) -> "RunFolder":
        with writing(self.path):
            os.makedirs(self.path, exist_ok=True)
            self._lock = self._locked()
        try:
            if not self.resume and next(self._folders(), None):
                raise ConfigError(
                    f"{self.path} already holds the steps of a run.\nPass resume=True to continue "
                    "from the newest one, or give another run_dir."
                )
            with writing(self.path):
                self._remove_leftovers()
                fsync_folder(self.path)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def save_step(self, step: int, state: Any, *, is_diverged: bool = False) -> Path:
        """Write the state after a step, atomically, then remove steps that are no longer kept.

        Args:
            step: the number of batches so far, ≥ 0; several may share an update.
            state: nested dicts, lists and tuples of tensors, arrays, numbers and strings.
            is_diverged: whether the step is for inspection only, and never resumed from.

        Returns:
            The folder of the step.

        Raises:
            CheckpointError: the step cannot be written; the existing steps are unchanged.
            ConfigError: the state holds something that cannot be stored (see `pack`), or more
                besides its tensors than could be read again; nothing is written or removed.
        """
        step = whole_number(step, "step", 0)
        if self._lock is None:
            raise ConfigError("the run folder is not locked: write inside `with RunFolder(…)`.")
        files = _files(step, state, is_diverged)
        final = self._free_name("diverged" if is_diverged else "step", step)
        temporary = final.with_name(final.name + ".tmp")
        with writing(final, sum(map(len, files.values()))):
            if temporary.exists():  # left by a failed write that could not be cleaned up
                shutil.rmtree(temporary)
            try:
                os.mkdir(temporary)
                for name, data in files.items():
                    write_new(temporary / name, data)
                fsync_folder(temporary)
                os.rename(temporary, final)
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                raise
            fsync_folder(self.path)
            self._good.add(final.name)
            self._prune()
        return final

    def newest_complete(self) -> Checkpoint | None:
        """Return the newest step whose files are unchanged; None if there is no step.

        Damaged ones are skipped with one warning.

        Raises:
            CorruptCheckpointError: there are steps, but all are damaged.
            VersionMismatchError: a later release wrote the newest.
        """
        damage: CheckpointError | None = None
        for path in self._steps():
            try:
                checkpoint = _read(path)
            except CorruptCheckpointError as error:
                damage = damage or error
                continue
            self._good.add(path.name)
            if damage:
                warn_caller(f"{damage}\nUsing {path} instead.")
            return checkpoint
        if damage:
            raise damage
        return None

    @property
    def newest_path(self) -> Path | None:
        """The folder of the newest step that this run wrote or resumed from."""
        return next((path for path in self._steps() if path.name in self._good), None)

    def _locked(self) -> int:
        path = self.path / "lock"
        try:
            fd = locked_file(path, wait=False)
        except BlockingIOError:
            raise _run_locked(self.path, path) from None
        start = datetime.now(UTC).isoformat(timespec="seconds")
        who = {"pid": os.getpid(), "host": socket.gethostname(), "start": start}
        try:
            os.ftruncate(fd, 0)
            os.write(fd, json_bytes(who))
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _folders(self) -> Iterator[tuple[str, int, int, Path]]:
        """Yield (kind, step, attempt, path) of each complete or damaged step."""
        for entry in list(os.scandir(self.path)):
            match = _NAME.fullmatch(entry.name)
            if match and entry.is_dir(follow_symlinks=False):
                yield match[1], int(match[2]), int(match[3] or 1), self.path / entry.name

    def _steps(self, kind: str = "step") -> list[Path]:
        """Return the folders of the steps, newest first."""
        return [path for k, *_, path in sorted(self._folders(), reverse=True) if k == kind]

    def _free_name(self, kind: str, step: int) -> Path:
        """Return an unused name: a rename cannot replace a folder that has files."""
        taken = [attempt for k, s, attempt, _ in self._folders() if (k, s) == (kind, step)]
        attempt = max(taken, default=0) + 1
        return self.path / (f"{kind}-{step:08d}" + (f".{attempt}" if attempt > 1 else ""))

    def _prune(self) -> None:
        kept = 0
        for path in self._steps():
            if kept < self.keep and self._is_intact(path):
                kept += 1
            else:
                shutil.rmtree(path)
        for path in self._steps("diverged")[1:]:
            shutil.rmtree(path)

    def _is_intact(self, path: Path) -> bool:
        with suppress(CheckpointError):
            if path.name not in self._good:
                _read(path)
                self._good.add(path.name)
        return path.name in self._good

    def _remove_leftovers(self) -> None:
        for entry in list(os.scandir(self.path)):
            if _LEFTOVER.fullmatch(entry.name):
                is_folder = entry.is_dir(follow_symlinks=False)
                (shutil.rmtree if is_folder else os.unlink)(entry.path)


def check_savable(state: Any) -> None:
    """Raise a ConfigError if `RunFolder.save_step` would refuse the state; write nothing."""
    tensors, plain = pack(state)
    check_tensors(tensors)
    readable_json(plain, STATE_NAME)


def _files(step: int, state: Any, is_diverged: bool) -> dict[str, bytes]:
    """Return the files of a step, by name, the manifest last."""
    tensors, plain = pack(state)
    text = readable_json(plain, STATE_NAME)
    files = {TENSORS: tensor_file(tensors, {"kind": "step"}), STATE: text}
    manifest = {
        "format": FORMAT,
        "pyrovae": _version.__version__,
        "step": step,
        "is_diverged": is_diverged,
        "files": {n: {"bytes": len(data), "sha256": sha256(data)} for n, data in files.items()},
        "seal": NO_SEAL,
    }
    return files | {MANIFEST: sealed(json.dumps(manifest, indent=1).encode("ascii"))}


def _read(folder: Path) -> Checkpoint:
    """Return a step, after checking that all of its files are unchanged."""
    manifest = _manifest(folder)
    with _part(folder / TENSORS) as (fd, size):
        _check_file(fd, size, folder / TENSORS, manifest["files"][TENSORS])
        # copies, because the file may be removed during the run
        file = read_tensor_file(fd, folder / TENSORS)
        tensors = {name: tensor.clone() for name, tensor in file.tensors.items()}
    with _part(folder / STATE) as (fd, size):
        _check_file(fd, size, folder / STATE, manifest["files"][STATE])
        text = read_exactly(fd, min(size, MAX_JSON + 1), folder / STATE)
        plain = parse_json(text, folder / STATE)
    return Checkpoint(manifest["step"], unpack(tensors, plain), folder)


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    with _part(path) as (fd, size):
        if size > 2**16:
            raise CorruptCheckpointError(
                f"{path}: {size:,} bytes are too large for a manifest.", path
            )
        text = read_exactly(fd, size, path)
    manifest = parse_json(text, path)
    check_seal(text, path)
    check_format(manifest, path)
    step, files = manifest.get("step"), manifest.get("files")
    if type(step) is not int or not isinstance(files, dict) or set(files) != {TENSORS, STATE}:
        raise CorruptCheckpointError(f"{path}: it must list exactly {TENSORS} and {STATE}.", path)
    return manifest


@contextmanager
def _part(path: Path) -> Iterator[tuple[int, int]]:
    """Open a file of a step, with its size; if it cannot be read, the step is damaged."""
    try:
        with opened(path) as fd:
            yield fd, os.fstat(fd).st_size
    except CheckpointError as error:
        if type(error) is not CheckpointError:
            raise
        raise CorruptCheckpointError(str(error), path) from error


def _check_file(fd: int, size: int, path: Path, listed: Any) -> None:
    """Raise a CorruptCheckpointError unless a file has the size and hash in the manifest."""
    listed = listed if isinstance(listed, dict) else {}
    expected, digest = listed.get("bytes"), listed.get("sha256")
    if size != expected:
        text = f"{path}: {size:,} bytes, the manifest says {shortened(expected)}."
        raise CorruptCheckpointError(text, path, expected, size)
    got = hashlib.file_digest(io.FileIO(fd, closefd=False), "sha256").hexdigest()
    if got != digest:
        says = f"its sha256 is {got[:12]}…, the manifest says {shortened(digest, 12)}."
        raise CorruptCheckpointError(f"{path}: {says}", path, digest, got)
    os.lseek(fd, 0, os.SEEK_SET)


def _run_locked(folder: Path, lock: Path) -> RunLockedError:
    who: dict[str, Any] = {}
    with suppress(OSError, CheckpointError):
        found = parse_json(lock.read_bytes()[:1000], lock)
        who = found if isinstance(found, dict) else {}
    pid, host, start = who.get("pid"), who.get("host", "?"), who.get("start", "?")
    text = (
        f"{folder} is in use by process {pid} on {host} since {start}: two runs in one folder "
        "would overwrite each other.\nWait until it ends, or give another run_dir."
    )
    return RunLockedError(text, pid, host, start)


# Comparing and restoring when a run is resumed.


def check_unchanged(then: dict[str, Any], now: dict[str, Any], *, name: str, fix: str) -> None:
    """Raise a StateMismatchError that lists the differences, unless two flat records are equal.

    The message begins with `name`, the subject of the records, and ends with `fix`.
    """
    keys = [*now, *(key for key in then if key not in now)]
    changed = [key for key in keys if then.get(key) != now.get(key)]
    if changed:
        lines = [f"{key} {_was_is(then.get(key), now.get(key))}" for key in changed]
        rest = f" and {len(lines) - 4} more" if len(lines) > 4 else ""
        raise StateMismatchError(
            f"{name} changed since the checkpoint: {'; '.join(lines[:4])}{rest}.\n{fix}"
        )


def _was_is(then: Any, now: Any) -> str:
    """Format both values, long ones from where they differ."""
    then, now = str(then), str(now)
    pairs = enumerate(zip(then, now, strict=False))
    skip = next((i for i, (a, b) in pairs if a != b), 0) - 20
    if max(len(then), len(now)) > 60 and skip > 0:
        then, now = "…" + then[skip:], "…" + now[skip:]
    return f"was {shortened(then)}, is {shortened(now)}"


def restore_stream(stream: RandomStream, state: Any) -> None:
    """Set a random stream to a saved `RandomStream.state`.

    The generators of GPUs are restored if their number is the same.

    Raises:
        StateMismatchError: it is not a state of these generators; nothing changes in that case.

    Example:
        >>> import torch
        >>> stream, other = RandomStream(0), RandomStream(1)
        >>> restore_stream(other, unpack(*pack(stream.state)))
        >>> with stream:
        ...     a = torch.rand(1)
        >>> with other:
        ...     bool(a == torch.rand(1))
        True
    """
    before = stream.state
    if not isinstance(state, tuple) or len(state) != len(before):
        raise StateMismatchError("the checkpoint does not hold a state of the random generators.")
    *general, cuda = state
    check_like(tuple(general), before[:3], "random")
    same_devices = isinstance(cuda, list) and len(cuda) == len(before[3])
    with RandomStream(0):  # so that a state that fails halfway has no effect
        stream.state = (*general, cuda if same_devices else before[3])
        try:
            with stream:
                pass
        except (ValueError, TypeError, RuntimeError, OverflowError) as error:
            stream.state = before
            raise StateMismatchError(f"the random state cannot be restored: {error}.") from None
