"""Bytes on disk: written completely or not at all, and read only if they are unchanged.

    write:   temporary file → fsync → rename → fsync of the folder
    seal:    "seal": SHA-256 of all bytes with 64 zeros in the seal's place

A seal inside a file covers every bit of it, the seal included. It detects damage, but is not a
signature: readers must not trust the contents of a sealed file. The temporary file is locked while
it is written, so that two writers of one path take turns, and a writer takes over the leftovers of
a killed one. Links are not followed, and only regular files are read.
"""

import hashlib
import io
import json
import os
import re
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pyrovae.checks import shortened
from pyrovae.errors import CheckpointError, ConfigError, CorruptCheckpointError

try:
    import fcntl
except ImportError:  # Windows has no such locks: there the user must ensure one writer at a time
    fcntl = None

MAX_JSON = 2**22  # bytes; limits the memory that a hostile file can cost
MAX_CONTAINERS = 100_000  # lists and dicts in one JSON text, likewise
NO_SEAL = "0" * 64
_SEAL = re.compile(rb'seal\\?":\s*\\?"([0-9a-f]{64})')  # escaped where it is JSON in JSON
_READ = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)


# Writing.


@contextmanager
def writing(path: Path, num_bytes: int = 0) -> Iterator[None]:
    """Turn any OSError inside into a CheckpointError with the path and the free space."""
    try:
        yield
    except OSError as error:
        folder = next((p for p in (path, *path.parents) if p.is_dir()), Path("/"))
        free = shutil.disk_usage(folder).free
        raise CheckpointError(
            f"{path} could not be written: {error.strerror or error} ({num_bytes:,} bytes needed, "
            f"{free:,} free).\nWhat was saved before is unchanged. Free some space, or give a path "
            "in an existing folder that you may write to."
        ) from error


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` to `path`: readers see the old or the new content, even after a crash.

    Raises:
        CheckpointError: the file cannot be written; the old content stays, without leftovers.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with writing(path, len(data)):
        if path.is_dir():
            raise IsADirectoryError(0, "it is a folder")
        fd = locked_file(temporary, wait=True)
        try:
            os.ftruncate(fd, 0)  # a killed process may have left data
            _write_all(fd, data)
            os.fsync(fd)
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary)
            raise
        finally:
            os.close(fd)
        fsync_folder(path.parent)


def write_new(path: Path, data: bytes) -> None:
    """Write and fsync a file that does not exist yet."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    try:
        _write_all(fd, data)
        os.fsync(fd)
    finally:
        os.close(fd)


def fsync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    if os.name == "nt":
        return
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def locked_file(path: Path, *, wait: bool) -> int:
    """Return a descriptor of the file at `path`, created if needed, under an exclusive lock.

    The lock is released when the descriptor is closed, at the latest when the process ends.

    Raises:
        BlockingIOError: another descriptor has the lock, and wait is false.
        OSError: the file is a link, or not a regular file with a single name.
    """
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | _NO_LINK, 0o666)
        try:
            if fcntl:
                fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if _is_still_at(fd, path):
                is_plain = stat.S_ISREG(os.fstat(fd).st_mode) and os.fstat(fd).st_nlink == 1
                if not is_plain:
                    raise OSError(0, f"{path.name} is not a regular file with a single name")
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)  # the previous holder of the lock has renamed or removed the file


def _is_still_at(fd: int, path: Path) -> bool:
    try:
        there = os.lstat(path)
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(fd), there)


def _write_all(fd: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]


# Reading.


@contextmanager
def opened(path: Path, *, follow_links: bool = False) -> Iterator[int]:
    """Open a regular file for reading, as a descriptor; raise CheckpointError if it cannot be."""
    try:
        fd = os.open(path, _READ | (0 if follow_links else _NO_LINK))
    except OSError as error:
        reason = error.strerror or error
        raise CheckpointError(f"{path} cannot be opened: {reason}. Check the path.") from error
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise CheckpointError(f"{path} is not a regular file. Give the path of a saved file.")
        yield fd
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}.") from error
    finally:
        os.close(fd)


def read_exactly(fd: int, size: int, path: Path) -> bytearray:
    """Return the next `size` bytes of a file; raise CorruptCheckpointError if it ends earlier."""
    try:
        data = bytearray(size)
    except MemoryError:
        raise CorruptCheckpointError(f"{path}: no memory for {size:,} bytes.", path) from None
    rest, file = memoryview(data), io.FileIO(fd, closefd=False)
    while rest:
        count = file.readinto(rest)
        if not count:
            got = size - len(rest)
            raise CorruptCheckpointError(
                f"{path}: the file ends {len(rest):,} bytes too early.", path, size, got
            )
        rest = rest[count:]
    return data


# JSON and seals.


def json_bytes(value: Any, **options: Any) -> bytes:
    """Return compact JSON in ASCII."""
    return json.dumps(value, separators=(",", ":"), **options).encode("ascii")


def readable_json(value: Any, name: str) -> bytes:
    """Return compact JSON; raise ConfigError if it is too large for `parse_json`.

    Example:
        >>> readable_json({"a": [1, None]}, "the state")
        b'{"a":[1,null]}'
    """
    data = json_bytes(value)
    check_readable(data, name)
    return data


def check_readable(data: bytes, name: str) -> None:
    """Raise a ConfigError if a text is too large for `parse_json`."""
    size, containers = _size(data)
    if size > MAX_JSON or containers > MAX_CONTAINERS:
        raise ConfigError(
            f"{name} would take {size:,} bytes and {containers:,} brackets of JSON, but at most "
            f"{MAX_JSON:,} and {MAX_CONTAINERS:,} are read: it could not be loaded again.\n"
            "Nothing was written; what was saved before is unchanged. Keep long lists of numbers "
            "as tensors or arrays, and use fewer parts."
        )


def parse_json(data: bytes | bytearray, path: Path) -> Any:
    """Return the value of a JSON text from a file that may be hostile.

    Raises:
        CorruptCheckpointError: it is not JSON, is too large or too deep, or has duplicate keys.

    Example:
        >>> parse_json(b'{"a": [1, null]}', Path("x"))
        {'a': [1, None]}
    """
    size, containers = _size(data)
    if size > MAX_JSON or containers > MAX_CONTAINERS:
        raise CorruptCheckpointError(
            f"{path}: its JSON has {size:,} bytes and {containers:,} brackets, more than any that "
            f"pyrovae writes ({MAX_JSON:,} and {MAX_CONTAINERS:,}).",
            path,
        )
    try:
        return json.loads(bytes(data).decode("utf-8"), object_pairs_hook=_without_duplicates)
    except RecursionError:
        raise CorruptCheckpointError(f"{path}: its JSON is nested too deeply.", path) from None
    except ValueError as error:
        reason = shortened(error, 120)
        raise CorruptCheckpointError(f"{path}: its JSON cannot be read ({reason}).", path) from None


def _size(data: bytes | bytearray) -> tuple[int, int]:
    """Return the number of bytes, and of brackets, including those inside strings."""
    return len(data), data.count(b"{") + data.count(b"[")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) < len(pairs):
        raise ValueError("a duplicate key")
    return unique


def sealed(text: bytes) -> bytes:
    """Return the text with its seal in place of the zeros of `"seal":"000…"`.

    Example:
        >>> text = sealed(json_bytes({"a": 1, "seal": NO_SEAL}))
        >>> check_seal(text, Path("x"))
    """
    start, end = _SEAL.search(text).span(1)
    return text[:start] + sha256(text).encode() + text[end:]


def check_seal(text: bytes | bytearray, path: Path, rest: Iterable[bytes] = ()) -> None:
    """Raise a CorruptCheckpointError unless a text, and the bytes after it, match the seal."""
    found = _SEAL.search(text)
    start, end = found.span(1) if found else (0, 0)
    expected = text[start:end].decode() or "no seal"
    digest = hashlib.sha256(text[:start] + NO_SEAL.encode() + text[end:])
    for chunk in rest:
        digest.update(chunk)
    got = digest.hexdigest()
    if got != expected:
        raise CorruptCheckpointError(
            f"{path}: the file was altered or cut: sha256 is {got[:12]}…, its seal says "
            f"{expected[:12]}….\nUse another copy of it.",
            path,
            expected,
            got,
        )


def sha256(data: bytes | bytearray | memoryview) -> str:
    """Return the SHA-256 of some bytes, in hex."""
    return hashlib.sha256(data).hexdigest()
