"""Data files: found, downloaded, and checked against their hashes; `formats` parses them.

A known file is a name below a folder. It is looked up in the folder that PYROVAE_DATA names,
then in the cache (PYROVAE_CACHE, else the user's cache folder), gzipped or not, and downloaded
into the cache if it has a mirror. `FILES` maps each name to the hash of its content; a missing
file, or one with other content, raises `DataError`. Nothing unchecked enters the cache, and
nothing is ever unpickled.
"""

import hashlib
import io
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from pyrovae.checks import as_path
from pyrovae.datasets.formats import gunzip, parse_file
from pyrovae.datasets.formats import read_idx as parse_idx
from pyrovae.errors import DataError

MNIST_MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
FASHION_MNIST_MIRRORS = ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",)

# Hashes are of the content before gzip, whose output differs between versions. The Fashion labels
# have no published hash: `counts` is how often each class 0..9 occurs in them.
_TABLE = """
mnist/train-images-idx3-ubyte sha256:ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db
mnist/train-labels-idx1-ubyte sha256:65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5
mnist/t10k-images-idx3-ubyte sha256:0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7
mnist/t10k-labels-idx1-ubyte sha256:ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2
fashion_mnist/train-images-idx3-ubyte md5:f4a8712d7a061bf5bd6d2ca38dc4d50a
fashion_mnist/train-labels-idx1-ubyte counts:6000 6000 6000 6000 6000 6000 6000 6000 6000 6000
fashion_mnist/t10k-images-idx3-ubyte md5:8181f5470baa50b63fa0f6fddb340f0a
fashion_mnist/t10k-labels-idx1-ubyte counts:1000 1000 1000 1000 1000 1000 1000 1000 1000 1000
binarized_mnist/binarized_mnist.npz sha256:50de2c8299a5a297789293ab2c30f6fc3cb8c359a15e5e88d5501aa18ebb8fa5
omniglot/omniglot28-images-idx3-ubyte sha256:52d91800db301388fa91f2af3c02d96d3fd08494bb7e941e553e252b87f0f9b9
omniglot/omniglot-labels.npz sha256:c8e700ffde9f21bc2a9f4d2707164b88f1dd242675c69133bb94f3fc3233b873
frey_faces/frey-images-idx3-ubyte sha256:c943677a3bcb83ed2de1207d4355c360cabfee597a538f9735ec3254886c365f
pbmc3k/pbmc3k_hvg2000.npz sha256:b1186c58b03a10b47b943ce03f4339a1c5c207ebed46db6d877455579cdc0df8
"""  # noqa: E501
FILES = MappingProxyType(dict(line.split(maxsplit=1) for line in _TABLE.strip().splitlines()))

MOST_BYTES = 2**30  # of content in a known file; the largest has 47 MB


def from_file(path: str | os.PathLike[str], key: str | None = None) -> Tensor:
    """Read one array of numbers: an array, a sparse matrix, a table or IDX.

    `.npy`, `.npz`                numpy's, or one matrix written by `scipy.sparse.save_npz`
    `.csv`, `.parquet`, `.feather`  columns of numbers; missing cells are NaN
    `…-idx3-ubyte`, `.idx`        IDX, also `.gz`

    Shape, values and dtype are those of the file (uint8 stays uint8; a table of several dtypes
    is float64): nothing is scaled. A `.csv` has a header unless its first line is all numbers.

    Args:
        path: The file; its name determines the format.
        key: Which array of an `.npz`; required if it holds several.

    Raises:
        DataError: Unknown format, damaged file, pickled objects, no numbers, an unknown key, a
            `.csv` with an index column, not a regular file, or more than fits free memory.
        ImportError: `.parquet` and `.feather` need pyarrow.
        FileNotFoundError: The file does not exist.
        ConfigError: The path is not a valid file name.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.save(f"{folder}/x.npy", np.array([0, 255], dtype=np.uint8))
        ...     from_file(f"{folder}/x.npy")
        tensor([  0, 255], dtype=torch.uint8)
    """
    path = as_path(path)
    return _tensor(parse_file(path, key), path)


def read_idx(name: str, mirrors: Sequence[str] = ()) -> Tensor:
    """Read the tensor in a known IDX file, found, downloaded if needed, and checked."""
    return _tensor(_idx(_read(name, mirrors), name), name)


def read_npz(name: str) -> dict[str, np.ndarray]:
    """Read the arrays in a known .npz file, found and checked."""
    with np.load(io.BytesIO(_read(name)), allow_pickle=False) as arrays:
        return dict(arrays)


def _read(name: str, mirrors: Sequence[str] = ()) -> bytes:
    """Return the checked content of `name`, from the first folder that has it or a mirror."""
    import pooch

    cache = os.environ.get("PYROVAE_CACHE") or pooch.os_cache("pyrovae")
    folders = [Path(f).expanduser() for f in (os.environ.get("PYROVAE_DATA"), cache) if f]
    for path in (folder / f"{name}{suffix}" for folder in folders for suffix in ("", ".gz")):
        if path.is_file():
            return _checked(path.read_bytes(), name, path)
    failures = []
    for url in (f"{mirror.rstrip('/')}/{Path(name).name}.gz" for mirror in mirrors):
        try:
            payload = _download(url)
            content = _checked(payload, name, url)
        except (OSError, DataError) as error:  # what requests raises is an OSError
            failures.append(f"{type(error).__name__}: {error}".splitlines()[0])
        else:
            _store(payload, folders[-1] / f"{name}.gz")
            return content
    raise _missing(name, folders, failures)


def _download(url: str) -> bytes:
    import pooch

    payload = io.BytesIO()
    pooch.HTTPDownloader(chunk_size=2**16, timeout=30)(url, payload, None)  # seconds of silence
    return payload.getvalue()


def _store(payload: bytes, path: Path) -> None:
    """Write a file whole or not at all, even if two processes write it at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        partial = Path(folder, path.name)
        partial.write_bytes(payload)
        partial.replace(path)


def _missing(name: str, folders: list[Path], failures: list[str]) -> DataError:
    folder = Path(name).parent
    needed = ", ".join(file for file in FILES if Path(file).parent == folder)
    tried = f"the download failed: {'; '.join(failures)}" if failures else "it is not downloadable"
    return DataError(
        f"{name}: expected this file, or it with .gz, in one of: {', '.join(map(str, folders))}.\n"
        f"It was not found, and {tried}.\n"
        f"Without it, {folder} cannot be loaded. Set the environment variable PYROVAE_DATA to a "
        f"folder that holds {needed} (each also as .gz)."
    )


def _checked(payload: bytes, name: str, source: Path | str) -> bytes:
    """Return the uncompressed content of `payload`; raise DataError unless it matches `FILES`."""
    content = gunzip(payload, source, MOST_BYTES)
    kind, expected = FILES[name].split(":")
    if kind == "counts":
        got = " ".join(map(str, np.bincount(_idx(content, source).ravel().view(np.uint8))))
    else:
        got = hashlib.new(kind, content, usedforsecurity=False).hexdigest()
    if got != expected:
        raise DataError(
            f"{source}: expected content of {kind} {expected}, got {got}.\n"
            "Results on other content are not comparable with published ones.\n"
            f"Put the original {name} there, or read this one with from_file."
        )
    return content


def _idx(content: bytes, source: Path | str) -> np.ndarray:
    return parse_idx(io.BytesIO(content), source, len(content))


def _tensor(array: np.ndarray, source: Path | str) -> Tensor:
    """Convert to a tensor of the same dtype, in this machine's byte order and writable."""
    try:
        return torch.from_numpy(np.require(array, array.dtype.newbyteorder("="), ["C", "W"]))
    except TypeError as error:
        raise DataError(
            f"{source}: expected an array of numbers, got dtype {array.dtype}.\n"
            "A tensor holds numbers only. Write array.astype('float32') first."
        ) from error
