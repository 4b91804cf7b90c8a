"""Parsers of data files: numpy's formats, sparse matrices, tables and IDX.

Files come from anywhere. A file is read as far as its header declares, after the declared size was
compared with that of the file and with free memory; any failure of a parser becomes a `DataError`;
nothing is ever unpickled.
"""

import csv
import gzip
import io
import math
import re
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

import numpy as np

from pyrovae.errors import DataError
from pyrovae.runtime.memory import free_memory

# The third byte of an IDX file is the element type (LeCun, yann.lecun.com/exdb/mnist).
IDX_TYPES = MappingProxyType({8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"})
SPARSE_KEYS = frozenset({"format", "shape", "data"})  # of scipy.sparse.save_npz
BLOCK = 2**20  # bytes read at a time
MOST_AXES = 32  # of an array, in all versions of numpy
MOST_TEXT = 200  # characters of a file's own text in a message


def parse_file(path: Path, key: str | None = None) -> np.ndarray:
    """Return the array in a file; its name determines the format.

    Raises:
        DataError: it is not a regular file, has an unknown format, is damaged, holds pickled
            objects, does not fit free memory, or lacks the key.
        FileNotFoundError, PermissionError: it cannot be opened.
    """
    parse = _parser_of(path)
    if key is not None and parse is not _parse_npz:
        raise DataError(
            f"{path}: expected no key, got {key!r}.\nOnly an .npz has keys. Write from_file(path)."
        )
    if not stat.S_ISREG(path.stat().st_mode):  # a pipe could be waited for forever
        raise DataError(
            f"{path}: expected a regular file, got a {'folder' if path.is_dir() else 'device'}.\n"
            "Its size must be known before it is read. Give the name of a file."
        )
    try:
        return parse(path, key) if parse is _parse_npz else parse(path)
    except (DataError, FileNotFoundError, PermissionError, ImportError):
        raise
    except Exception as error:  # whatever a parser raises about a file that anyone wrote
        raise damaged(path, CONTENTS.get(path.suffix, "IDX"), _reason(error)) from error


def _reason(error: Exception) -> str:
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0][:MOST_TEXT]}" if lines else type(error).__name__


def _parser_of(path: Path) -> Callable[..., np.ndarray]:
    if path.suffix in PARSERS:
        return PARSERS[path.suffix]
    if re.search(r"[.-]idx\d?(-\w+)?(\.gz)?$", path.name):
        return _parse_idx
    raise DataError(
        f"{path}: expected a name that ends in {', '.join(PARSERS)}, -idx3-ubyte or .idx (IDX also "
        ".gz).\n"
        "The name determines the format. Write np.save('x.npy', array), then from_file('x.npy')."
    )


def _parse_npy(path: Path) -> np.ndarray:
    with path.open("rb") as file:
        return _read_npy(file, path.stat().st_size, path)


def _parse_npz(path: Path, key: str | None) -> np.ndarray:
    """Read one array, or the one matrix that scipy.sparse.save_npz wrote."""
    with zipfile.ZipFile(path) as archive:
        members = {
            info.filename.removesuffix(".npy"): info
            for info in archive.infolist()
            if info.filename.endswith(".npy")
        }
        if key is None and members.keys() >= SPARSE_KEYS:
            return _read_sparse(
                {name: _read_member(archive, members[name], path) for name in members}, path
            )
        return _read_member(archive, members[_one_key(path, key, list(members))], path)


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> np.ndarray:
    with archive.open(info) as file:
        return _read_npy(file, info.file_size, path)


def _read_sparse(arrays: dict[str, np.ndarray], path: Path) -> np.ndarray:
    """Build a scipy matrix from its arrays, check its indices, and make it dense."""
    import scipy.sparse

    rewritten = io.BytesIO()
    np.savez(rewritten, **arrays)
    rewritten.seek(0)
    matrix = scipy.sparse.load_npz(rewritten)
    if hasattr(matrix, "check_format"):  # an index outside of the matrix would write anywhere
        matrix.check_format(full_check=True)
    _check_fits(math.prod(matrix.shape) * matrix.dtype.itemsize, path)
    return matrix.toarray()


def _one_key(path: Path, key: str | None, keys: list[str]) -> str:
    if key in keys or (key is None and len(keys) == 1):
        return key or keys[0]
    raise DataError(
        f"{path}: expected {'one array' if key is None else f'a key {key!r}'}, got keys {keys}.\n"
        f"One array is one data set. Write from_file(path, key={keys[0] if keys else key!r})."
    )


def _read_npy(file: IO[bytes], size: int, path: Path) -> np.ndarray:
    """Read a whole `.npy` of `size` bytes."""
    version = np.lib.format.read_magic(file)
    if version not in NPY_HEADERS:
        raise damaged(path, "numpy's format 1.0 or 2.0", version)
    shape, is_fortran, dtype = NPY_HEADERS[version](file)
    if dtype.hasobject:
        raise DataError(
            f"{path}: expected arrays of numbers, got pickled objects, which could run any code "
            "when loaded.\n"
            "Write np.save('x.npy', array.astype('float32')), then from_file('x.npy')."
        )
    content = _read_declared(file, shape, dtype, path, size)
    return np.frombuffer(content, dtype).reshape(shape, order="F" if is_fortran else "C")


NPY_HEADERS = MappingProxyType(
    {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
)


def _parse_idx(path: Path) -> np.ndarray:
    with path.open("rb") as file:
        is_gzip = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        if not is_gzip:
            return read_idx(file, path, path.stat().st_size)
        with gzip.open(file) as content:
            return read_idx(content, path)


def read_idx(file: IO[bytes], source: Path | str, size: int | None = None) -> np.ndarray:
    """Read IDX: two zero bytes, element type, number of axes, big-endian sizes, elements.

    Args:
        file: at its start.
        source: its name in messages.
        size: its size in bytes; None if it is compressed.
    """
    head = file.read(4)
    if len(head) < 4 or head[:2] != b"\0\0" or head[2] not in IDX_TYPES:
        raise damaged(source, "IDX (bytes 00 00, then an element type)", head.hex(" "))
    dtype, num_axes = np.dtype(IDX_TYPES[head[2]]), head[3]
    sizes = file.read(4 * num_axes)
    if len(sizes) < 4 * num_axes:
        raise damaged(source, f"the sizes of {num_axes} axes", f"{4 + len(sizes)} bytes")
    shape = tuple(int.from_bytes(sizes[i : i + 4], "big") for i in range(0, len(sizes), 4))
    return np.frombuffer(_read_declared(file, shape, dtype, source, size), dtype).reshape(shape)


def _read_declared(
    file: IO[bytes], shape: tuple, dtype: np.dtype, source: Path | str, size: int | None
) -> bytearray:
    """Read the rest of a file, which must be as long as an array of this shape and dtype.

    Args:
        size: of the whole file in bytes; None if it is known only at the end.
    """
    if len(shape) > MOST_AXES:
        raise damaged(source, f"at most {MOST_AXES} axes", len(shape))
    num_bytes = math.prod(shape) * dtype.itemsize
    start = file.tell()
    expected = f"{start + num_bytes} bytes for shape {shape} of {dtype.name}"[:MOST_TEXT]
    if size not in (None, start + num_bytes):
        raise damaged(source, expected, f"{size} bytes")
    _check_fits(num_bytes, source)
    content = bytearray()
    while block := file.read(min(BLOCK, num_bytes + 1 - len(content))):
        content += block
    if len(content) != num_bytes:
        raise damaged(source, expected, f"{start + len(content)} bytes or more")
    return content


def _check_fits(num_bytes: int, source: Path | str) -> None:
    """Raise DataError if an array of this size does not fit free memory."""
    free = free_memory()
    if num_bytes > free:
        raise DataError(
            f"{source}: expected an array that fits memory, got one of {num_bytes / 2**30:,.1f} "
            f"GiB, but {free / 2**30:,.1f} GiB are free.\n"
            "A file is read whole. Open an .npy with np.load(path, mmap_mode='r') and pass that."
        )


def gunzip(payload: bytes, source: Path | str, most: int) -> bytes:
    """Return the content of a gzip file of at most `most` bytes; other content unchanged."""
    if not payload.startswith(b"\x1f\x8b"):
        return payload
    try:
        with gzip.open(io.BytesIO(payload)) as file:
            content = file.read(most + 1)
    except Exception as error:  # OSError, EOFError, zlib.error
        raise damaged(source, "a whole gzip file", _reason(error)) from error
    if len(content) > most:
        raise damaged(source, f"at most {most:,} bytes of content", "more")
    return content


def _parse_csv(path: Path) -> np.ndarray:
    import pandas as pd

    return _numbers(pd.read_csv(path, header=0 if _has_header(path) else None), path)


def _parse_parquet(path: Path) -> np.ndarray:
    import pandas as pd
    from pyarrow import parquet

    metadata = parquet.read_metadata(path)
    _check_fits(8 * metadata.num_rows * metadata.num_columns, path)
    return _numbers(pd.read_parquet(path), path)


def _parse_feather(path: Path) -> np.ndarray:
    import pandas as pd

    return _numbers(pd.read_feather(path), path)


def _numbers(frame: Any, path: Path) -> np.ndarray:
    """Return the columns of a table, (N, D), missing cells as NaN."""
    import pandas as pd

    for name, dtype in frame.dtypes.items():
        shown = repr(name)[:MOST_TEXT]
        if str(name).startswith("Unnamed: "):
            raise DataError(
                f"{path}: column {shown} has no name, so it is probably an index, which would be "
                "trained on as data.\nWrite frame.to_csv('x.csv', index=False)."
            )
        if not pd.api.types.is_numeric_dtype(dtype):
            raise DataError(
                f"{path}: expected numbers, got dtype {dtype} in column {shown}.\n"
                "A density needs numbers. Encode the column, or drop it."
            )
    has_nullable = any(pd.api.types.is_extension_array_dtype(dtype) for dtype in frame.dtypes)
    return frame.to_numpy("float64", na_value=np.nan) if has_nullable else frame.to_numpy()


def _has_header(path: Path) -> bool:
    """Return whether a cell in the first line of a `.csv` is not a number."""
    with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
        cells = next(csv.reader(file), [])
    return not all(_is_number(cell) for cell in cells)


def _is_number(cell: str) -> bool:
    try:
        float(cell or "nan")
    except ValueError:
        return False
    return True


def damaged(source: Path | str, expected: str, got: object) -> DataError:
    """Return the error about a file whose content is not as expected."""
    return DataError(
        f"{source}: expected {expected}, got {got}.\n"
        "It is damaged or in another format. Copy or save it again; arrays go to .npy, .npz."
    )


PARSERS = MappingProxyType(
    {
        ".npy": _parse_npy,
        ".npz": _parse_npz,
        ".csv": _parse_csv,
        ".parquet": _parse_parquet,
        ".feather": _parse_feather,
    }
)
NUMPYS = "arrays of numbers in numpy's format, without pickled objects (np.save('x.npy', array))"
CONTENTS = MappingProxyType(
    {
        ".npy": NUMPYS,
        ".npz": NUMPYS,
        ".csv": "a table",
        ".parquet": "a table",
        ".feather": "a table",
        ".gz": "a whole gzip file of IDX",
    }
)
