"""The tensor file: safetensors, with a sealed header that holds a SHA-256 of the data.

    8 bytes n │ n bytes of JSON: names, dtypes, shapes, offsets, description │ the data

Any reader of safetensors can open it. `description` is a JSON text of pyrovae's own in the
header's metadata. Reading goes from what is cheap to what is not: the header's size, its
JSON, that its offsets tile the file exactly, its seal, then the data and their hash. Before
the last step nothing larger than the header is in memory, so a caller can compare names
and shapes with what it expects first.
"""

import json
import math
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
    check_seal,
    json_bytes,
    parse_json,
    read_exactly,
    readable_json,
    sealed,
    sha256,
)

FORMAT = 1  # raise it when files of this release could not be read by the one before

DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}


class Entry(NamedTuple):
    """What a header says of one tensor; begin and end are byte offsets into the data."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


class Header(NamedTuple):
    """A verified header.

    Attributes:
        entries: by tensor name.
        description: pyrovae's own part.
        text: the bytes before the data.
        data_sha256: of the bytes after it.
    """

    entries: dict[str, Entry]
    description: dict[str, Any]
    text: bytes
    data_sha256: str

    @property
    def num_elements(self) -> int:
        return sum(math.prod(entry.shape) for entry in self.entries.values())


def tensor_file(tensors: dict[str, Tensor], description: dict[str, Any]) -> bytes:
    """The bytes of a tensor file; they share no memory with the tensors.

    Raises:
        ConfigError: a tensor that is not dense, or a dtype or name that a file cannot hold.

    Example:
        >>> data = tensor_file({"w": torch.zeros(2)}, {"kind": "test"})
        >>> safetensors.torch.load(data)
        {'w': tensor([0., 0.])}
    """
    check_tensors(tensors)
    plain = {name: _plain(tensor) for name, tensor in tensors.items()}
    about = {"format": FORMAT, "pyrovae": _version.__version__, "torch": torch.__version__}
    text = json_bytes(about | description).decode()
    if len(text) > MAX_JSON // 4:
        raise ConfigError(f"what describes the model has {len(text):,} characters: too many.")
    data = safetensors.torch.save(plain)
    end = 8 + int.from_bytes(data[:8], "little")
    # a header of our own: the library writes its metadata in another order each time
    digest = sha256(memoryview(data)[end:])
    metadata = {"pyrovae": text, "data_sha256": digest, "seal": NO_SEAL}
    entries = json.loads(data[8:end])
    header = readable_json(
        {"__metadata__": metadata, **entries}, f"the header of {len(tensors):,} tensors"
    )
    header += b" " * (-len(header) % 8)
    return sealed(len(header).to_bytes(8, "little") + header) + data[end:]


def check_tensors(tensors: dict[str, Tensor]) -> None:
    """ConfigError unless a tensor file can hold all of them.

    Example:
        >>> check_tensors({"w": torch.zeros(2)})
    """
    for name, tensor in tensors.items():
        check_name(name)
        if tensor.layout is not torch.strided or tensor.dtype not in DTYPES.values():
            kind = tensor.dtype if tensor.layout is torch.strided else tensor.layout
            raise ConfigError(
                f"{name} is a tensor of {kind}, which a tensor file cannot hold.\n"
                "Keep dense tensors of real numbers, for example torch.view_as_real(…)."
            )


def _plain(tensor: Tensor) -> Tensor:
    # a clone, because safetensors refuses storage that is shared with another tensor
    return tensor.detach().resolve_neg().to("cpu", copy=True).contiguous()


def check_name(name: str) -> None:
    """ConfigError unless the text can name a tensor in a file.

    Example:
        >>> check_name("encoder.0.weight")
    """
    is_fine = name and len(name) <= 1000 and name.isprintable() and name != "__metadata__"
    if not is_fine or ".." in name.split("/"):
        raise ConfigError(
            f"{shortened(name)} cannot name a tensor in a file: a name has 1 to 1,000 printable "
            "characters and no '..'.\nRename the module or buffer."
        )


def read_header(fd: int, path: Path) -> Header:
    """The header of the tensor file that `fd` was opened on, verified.

    Raises:
        UnsafeFormatError: it is no tensor file (a pickle, say), or not one of pyrovae's.
        CorruptCheckpointError: it is cut or altered, or its header does not fit the file.
        VersionMismatchError: a later release wrote it.
    """
    size = os.fstat(fd).st_size
    start = bytes(read_exactly(fd, min(size, 9), path))
    if len(start) == 9 and start[8:] != b"{":
        raise UnsafeFormatError(
            f"{path} is no safetensors file{_kind_of(start)}; pyrovae reads no other format, and "
            "never a pickle, which can run any code.\nLoad it with the library that wrote it, if "
            "you trust its source, and save the model with pyrovae.save."
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
    fields = parse_json(text[8:], path)
    metadata = fields.pop("__metadata__", None)
    if not isinstance(metadata, dict) or not isinstance(metadata.get("pyrovae"), str):
        raise UnsafeFormatError(
            f"{path} is a safetensors file, but not one that pyrovae saved.\n"
            "Read it with safetensors.torch.load_file and use vae.load_state_dict(…)."
        )
    entries = {name: _entry(name, field, path) for name, field in fields.items()}
    _check_tiling(entries, size - 8 - length, path)
    check_seal(text, path)
    description = parse_json(metadata["pyrovae"].encode("utf-8", "replace"), path)
    check_format(description, path)
    return Header(entries, description, text, str(metadata.get("data_sha256")))


def check_format(description: Any, path: Path) -> None:
    """Raise unless a description is of a format that this release knows."""
    number = description.get("format") if isinstance(description, dict) else None
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise CorruptCheckpointError(f"{path}: it does not say which format it has.", path)
    if number > FORMAT:
        raise VersionMismatchError(
            f"{path} has format {number}, written by pyrovae "
            f"{shortened(description.get('pyrovae'))}; this is pyrovae {_version.__version__}, "
            f"which reads formats up to {FORMAT}.\nUpgrade: pip install --upgrade pyrovae."
        )


def read_tensors(fd: int, path: Path, header: Header) -> dict[str, Tensor]:
    """All tensors, on the CPU, after the SHA-256 of their bytes was found right.

    Raises:
        CorruptCheckpointError: the bytes are not those that were written.
    """
    size = max((entry.end for entry in header.entries.values()), default=0)
    data = read_exactly(fd, size, path)
    got = sha256(data)
    if got != header.data_sha256:
        raise CorruptCheckpointError(
            f"{path}: the file was altered: the sha256 of its data is {got[:12]}…, its header "
            f"says {shortened(header.data_sha256, 12)}.\nUse another copy of it.",
            path,
            header.data_sha256,
            got,
        )
    try:
        return safetensors.torch.load(header.text + data)
    except safetensors.SafetensorError as error:
        raise CorruptCheckpointError(f"{path}: {shortened(error, 120)}.", path) from None


def _entry(name: str, field: Any, path: Path) -> Entry:
    try:
        dtype, shape, (begin, end) = field["dtype"], field["shape"], field["data_offsets"]
        numbers = [*shape, begin, end]
        is_valid = len(field) == 3 and dtype in DTYPES and len(shape) <= 64
    except (TypeError, KeyError, ValueError):
        numbers, is_valid = [], False
    # the products of 64 numbers below 2^63 are numbers that Python can still print
    if not is_valid or not all(type(n) is int and 0 <= n < 2**63 for n in numbers):
        raise CorruptCheckpointError(
            f"{path}: the header's entry for {shortened(name)} is no dtype, shape and offsets.",
            path,
        )
    entry = Entry(DTYPES[dtype], tuple(shape), begin, end)
    if end - begin != math.prod(shape) * entry.dtype.itemsize:
        raise CorruptCheckpointError(
            f"{path}: {shortened(name)} of shape {shortened(entry.shape)} cannot have "
            f"{end - begin:,} bytes.",
            path,
        )
    return entry


def _check_tiling(entries: dict[str, Entry], size: int, path: Path) -> None:
    """The tensors lie one behind the other, and the file ends with the last one."""
    position = 0
    for entry in sorted(entries.values(), key=lambda entry: (entry.begin, entry.end)):
        if entry.begin != position:
            raise CorruptCheckpointError(f"{path}: its tensors overlap or leave gaps.", path)
        position = entry.end
    if position != size:
        raise CorruptCheckpointError(
            f"{path}: {size:,} bytes of tensors, expected {position:,}: the file was cut or "
            "altered.\nUse another copy of it.",
            path,
            position,
            size,
        )


def _kind_of(start: bytes) -> str:
    """What a file seems to be, from its first bytes."""
    if start.startswith(b"PK"):
        return " but a zip archive, as torch.save writes"
    if start.startswith(b"\x80"):
        return " but a pickle"
    if start.startswith(b"\x93NUMPY"):
        return " but a NumPy array"
    return ""
