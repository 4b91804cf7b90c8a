"""Safetensors files with a seal: a SHA-256 of all of their bytes.

    8 bytes n │ n bytes of JSON: names, dtypes, shapes, offsets, description │ the data

The library writes and reads them, and any reader of safetensors can open them. `description` is
pyrovae's own JSON text in the metadata, and contains the seal. The library maps the file into
memory, so tensors are read when they are used, and checks that its offsets fit its size.
"""

import os
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from torch import Tensor

from pyrovae import _version
from pyrovae.checks import shortened
from pyrovae.errors import (
    ConfigError,
    CorruptCheckpointError,
    UnsafeFormatError,
    VersionMismatchError,
)
from pyrovae.runtime.files import (
    MAX_JSON,
    NO_SEAL,
    check_readable,
    check_seal,
    json_bytes,
    parse_json,
    read_exactly,
    sealed,
)

FORMAT = 1  # increase it when the previous release could not read the files of this one

DTYPES = (
    *(torch.bool, torch.uint8, torch.uint16, torch.uint32, torch.uint64),
    *(torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.float8_e4m3fn, torch.float8_e5m2),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
)

KINDS = {
    b"PK": " but a zip archive, as torch.save writes",
    b"\x80": " but a pickle",
    b"\x93NUMPY": " but a NumPy array",
}


class TensorFile(NamedTuple):
    """What a verified file holds.

    Attributes:
        tensors: by name, on the CPU, mapped from the file: copy what must outlive it.
        description: pyrovae's own part of the header.
    """

    tensors: dict[str, Tensor]
    description: dict[str, Any]


def tensor_file(tensors: dict[str, Tensor], description: dict[str, Any]) -> bytes:
    """Return the bytes of a tensor file; they share no memory with the tensors.

    Raises:
        ConfigError: a tensor is not dense, or has a dtype or name that a file cannot hold.

    Example:
        >>> data = tensor_file({"w": torch.zeros(2)}, {"kind": "test"})
        >>> safetensors.torch.load(data)
        {'w': tensor([0., 0.])}
    """
    check_tensors(tensors)
    about = {"seal": NO_SEAL, "format": FORMAT, "pyrovae": _version.__version__}
    text = json_bytes(about | {"torch": torch.__version__} | description).decode()
    # a single entry of metadata, because the library writes several in random order
    data = safetensors.torch.save({n: _plain(t) for n, t in tensors.items()}, {"pyrovae": text})
    end = 8 + int.from_bytes(data[:8], "little")
    check_readable(data[8:end], f"the header of {len(tensors):,} tensors")
    return sealed(data)


def check_tensors(tensors: dict[str, Tensor]) -> None:
    """Raise a ConfigError unless a tensor file can hold all of the tensors."""
    for name, tensor in tensors.items():
        check_name(name)
        if tensor.layout is not torch.strided or tensor.dtype not in DTYPES:
            kind = tensor.dtype if tensor.layout is torch.strided else tensor.layout
            raise ConfigError(
                f"{name} is a tensor of {kind}, which a tensor file cannot hold.\n"
                "Keep dense tensors of real numbers, for example torch.view_as_real(…)."
            )


def _plain(tensor: Tensor) -> Tensor:
    # a clone, because safetensors refuses storage that is shared with another tensor
    return tensor.detach().resolve_neg().to("cpu", copy=True).contiguous()


def check_name(name: str) -> None:
    """Raise a ConfigError unless the text can name a tensor in a file."""
    is_fine = name and len(name) <= 1000 and name.isprintable() and name != "__metadata__"
    if not is_fine or ".." in name.split("/"):
        raise ConfigError(
            f"{shortened(name)} cannot name a tensor in a file: a name has 1 to 1,000 printable "
            "characters and no '..'.\nRename the module or buffer."
        )


def read_tensor_file(fd: int, path: Path) -> TensorFile:
    """Verify and map the tensor file that `fd` was opened on.

    Raises:
        UnsafeFormatError: it is not a tensor file (but a pickle, say), or not one of pyrovae's.
        CorruptCheckpointError: it is cut or altered.
        VersionMismatchError: a later release wrote it.
    """
    text = _header(fd, path)
    try:
        with safetensors.safe_open(_name_of(fd, path), "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise CorruptCheckpointError(
            f"{path}: the file was altered or cut ({shortened(error, 120)}).\n"
            "Use another copy of it.",
            path,
            got=os.fstat(fd).st_size,
        ) from None
    if "pyrovae" not in metadata:
        raise UnsafeFormatError(
            f"{path} is a safetensors file, but not one that pyrovae saved.\n"
            "Read it with safetensors.torch.load_file and use vae.load_state_dict(…)."
        )
    check_seal(text, path, iter(lambda: os.read(fd, 2**20), b""))
    description = parse_json(metadata["pyrovae"].encode(), path)
    check_format(description, path)
    return TensorFile(tensors, description)


def _header(fd: int, path: Path) -> bytes:
    """Return the bytes before the data, after what the library does not check.

    It parses headers of up to 100 MB, and takes the last of duplicate keys.
    """
    size = os.fstat(fd).st_size
    start = bytes(read_exactly(fd, min(size, 9), path))
    if len(start) == 9 and start[8:] != b"{":
        raise UnsafeFormatError(
            f"{path} is not a safetensors file{_kind_of(start)}; pyrovae reads no other format, "
            "and never a pickle, which can run any code.\nLoad it with the library that wrote it, "
            "if you trust its source, and save the model with pyrovae.save."
        )
    length = int.from_bytes(start[:8], "little")
    if len(start) < 9 or length > min(size - 8, MAX_JSON):
        raise CorruptCheckpointError(
            f"{path}: the file is cut: {size:,} bytes, but its header alone "
            f"{f'should have {length:,}' if len(start) == 9 else 'has more'}.",
            path,
            8 + length,
            size,
        )
    text = start + read_exactly(fd, length - 1, path)
    parse_json(text[8:], path)
    return text


def _name_of(fd: int, path: Path) -> str:
    """Return a name under which the library opens this very file, even if the path has changed."""
    folders = (folder for folder in ("/proc/self/fd", "/dev/fd") if os.path.isdir(folder))
    return next((f"{folder}/{fd}" for folder in folders), str(path))


def check_format(description: Any, path: Path) -> None:
    """Raise an error unless a description has a format that this release knows."""
    number = description.get("format") if isinstance(description, dict) else None
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise CorruptCheckpointError(f"{path}: its format is missing.", path)
    if number > FORMAT:
        raise VersionMismatchError(
            f"{path} has format {number}, written by pyrovae "
            f"{shortened(description.get('pyrovae'))}; this is pyrovae {_version.__version__}, "
            f"which reads formats up to {FORMAT}.\nUpgrade: pip install --upgrade pyrovae."
        )


def _kind_of(start: bytes) -> str:
    """Say what a file seems to be, from its first bytes."""
    return next((kind for first, kind in KINDS.items() if start.startswith(first)), "")
