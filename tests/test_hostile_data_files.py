"""Damaged and hostile data files end in a `DataError` or in data, with bounded memory."""

import gzip
import io
import os
import random
import struct
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch

from pyrovae.datasets import from_file
from pyrovae.errors import DataError

ZEROS = bytes(2**20)


def npy(header: str, content: bytes = b"", declared: int | None = None) -> bytes:
    """A `.npy` of format 1.0, or 2.0 if the length of its header is declared."""
    text = header.encode("latin1")
    if declared is None:
        return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + content
    return b"\x93NUMPY\x02\x00" + struct.pack("<I", declared) + text + content


def described(shape: str, descr: str = "'<f4'") -> str:
    return f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n"


def zipped(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def array(value: object) -> bytes:
    file = io.BytesIO()
    np.save(file, value)
    return file.getvalue()


def patched(content: bytes, old: bytes, new: bytes) -> bytes:
    assert old in content
    return content.replace(old, new)


def encrypted(content: bytes) -> bytes:
    """Set the flag of encryption in the local header and in the directory."""
    data = bytearray(content)
    data[6] |= 1
    data[data.index(b"PK\x01\x02") + 8] |= 1
    return bytes(data)


def of_method(content: bytes, number: int) -> bytes:
    data = bytearray(content)
    data[8:10] = struct.pack("<H", number)
    start = data.index(b"PK\x01\x02")
    data[start + 10 : start + 12] = struct.pack("<H", number)
    return bytes(data)


def bomb(head: bytes, num_blocks: int = 1024) -> bytes:
    """A gzip file of a gibibyte of zeros after `head`."""
    packer = zlib.compressobj(wbits=31)
    return (
        packer.compress(head)
        + b"".join(packer.compress(ZEROS) for _ in range(num_blocks))
        + packer.flush()
    )


def idx(*sizes: int, content: bytes = b"") -> bytes:
    return struct.pack(f">BBBB{len(sizes)}I", 0, 0, 8, len(sizes), *sizes) + content


def sparse(**changes: object) -> bytes:
    parts = {
        "format": b"csr",
        "shape": np.array([2, 3]),
        "data": np.ones(2, "f4"),
        "indices": np.array([0, 2]),
        "indptr": np.array([0, 1, 2]),
    }
    return zipped({f"{name}.npy": array(value) for name, value in (parts | changes).items()})


X = array(np.ones((2, 3), "f4"))
HOSTILE = {
    "text in a zip.npz": zipped({"readme.txt": b"hello"}),
    "text named as an array.npz": zipped({"x.npy": b"hello"}),
    "no zip.npz": b"PK\x03\x04" + bytes(40),
    "encrypted.npz": encrypted(zipped({"x.npy": X}, zipfile.ZIP_STORED)),
    "foreign compression.npz": of_method(zipped({"x.npy": X}), 97),
    "wrong compression.npz": of_method(zipped({"x.npy": X}, zipfile.ZIP_STORED), 12),
    "wrong checksum.npz": patched(zipped({"x.npy": X}, zipfile.ZIP_STORED), X[-8:], bytes(8)),
    "member larger than its header says.npz": zipped({"x.npy": X + bytes(2**20)}),
    "bomb in a zip.npz": zipped({"x.npy": npy(described("(2,)"), bytes(2**28))}),
    "pickle in a zip.npz": zipped({"x.npy": npy(described("(1,)", "'|O'"), b"cos\nsystem\n")}),
    "pickle.npy": npy(described("(1,)", "'|O'"), b"cos\nsystem\n(S'true'\ntR."),
    "header of 4 GB.npy": npy(described("(2,)"), declared=2**32 - 1),
    "header of code.npy": npy("__import__('os').abort()\n"),
    "nested lists.npy": npy("[" * 9000 + "]" * 9000 + "\n"),
    "nested parentheses.npy": npy("(" * 60_000 + "\n"),
    "long header.npy": npy(described("(2,)") + " " * 60_000, bytes(8)),
    "10^18 numbers.npy": npy(described("(1000000000, 1000000000)")),
    "10^400 numbers.npy": npy(described(f"({10**400},)")),
    "negative shape.npy": npy(described("(-1,)"), bytes(4)),
    "shape of words.npy": npy(described("('a',)"), bytes(4)),
    "shape of 99 axes.npy": npy(described(str((1,) * 99)), bytes(4)),
    "dtype in a dtype.npy": npy(described("(1,)", "[('a', [('b', '<f4')])]"), bytes(4)),
    "no numbers.npy": npy(described("(1,)", "'<M8[s]'"), bytes(8)),
    "version 9.npy": b"\x93NUMPY\x09\x00" + bytes(100),
    "cut.npy": X[:-1],
    "longer.npy": X + b"0",
    "65 axes-idx3-ubyte": idx(*[1] * 65, content=b"0"),
    "255 axes-idx3-ubyte": idx(*[2] * 255),
    "empty axis of 2^32-idx3-ubyte": idx(2**32 - 1, 2**32 - 1, 2**32 - 1),
    "bomb-idx3-ubyte.gz": bomb(idx(3)),
    "bomb without a header-idx3-ubyte.gz": bomb(b""),
    "10^18 numbers-idx3-ubyte.gz": gzip.compress(idx(10**9, 10**9)),
    "cut-idx3-ubyte.gz": gzip.compress(idx(3, content=b"abc"))[:-5],
    "index outside.npz": sparse(indices=np.array([0, 10**6])),
    "negative index.npz": sparse(indices=np.array([0, -7])),
    "pointers that fall.npz": sparse(indptr=np.array([0, 5, 2])),
    "coordinates outside.npz": sparse(format=b"coo", row=np.array([0, 99]), col=np.array([0, 1])),
    "unknown format.npz": sparse(format=b"evil"),
    "format of bytes.npz": sparse(format=np.float64(3)),
    "sparse of 10^18.npz": sparse(
        shape=np.array([10**9, 10**9]), format=b"coo", row=np.array([0, 1]), col=np.array([0, 1])
    ),
    "zeros.csv": bytes(1000),
    "not utf-8.csv": b"a,b\n\xff\xfe,\xff\n",
    "one long cell.csv": b"1" * 200_000 + b",2\n",
    "quotes.csv": b'"' * 10_001,
    "words.parquet": b"PAR1" + b"\xff" * 100 + b"PAR1",
    "words.feather": b"ARROW1\0\0" + b"\xff" * 100 + b"ARROW1",
}


def memory(key: str) -> int:
    text = Path("/proc/self/status").read_text()
    return int(text.split(key + ":")[1].split()[0]) // 1024  # MiB


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_quickly_and_with_little_memory(name, tmp_path):
    path = tmp_path / name
    path.write_bytes(HOSTILE[name])
    watched = Path("/proc/self/clear_refs").exists()
    if watched:
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM becomes VmRSS
        before = memory("VmRSS")
    start = time.perf_counter()
    with pytest.raises(DataError) as caught:
        from_file(path)
    assert time.perf_counter() - start < 5
    if watched:
        assert memory("VmHWM") - before < 150  # pandas and pyarrow are imported by some
    assert len(str(caught.value).splitlines()) <= 6
    assert len(str(caught.value)) < 800
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
def test_what_is_not_a_regular_file_is_not_read(kind, tmp_path):
    path = tmp_path / "x.npy"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(DataError, match="expected a regular file"):
        from_file(path)


def test_text_alongside_the_one_array_of_a_zip_is_left_alone(tmp_path):
    (tmp_path / "x.npz").write_bytes(zipped({"readme.txt": b"hello", "x.npy": X}))
    assert from_file(tmp_path / "x.npz").tolist() == [[1.0] * 3] * 2


def test_an_array_that_does_not_fit_memory_is_refused_before_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr("pyrovae.datasets.formats.free_memory", lambda: 20)
    for name, content in {"x.npy": X, "x-idx1-ubyte": idx(24, content=bytes(24))}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=r"(?s)fits memory.*mmap_mode"):
            from_file(tmp_path / name)
    pd.DataFrame({"a": range(3)}).to_parquet(tmp_path / "x.parquet")
    with pytest.raises(DataError, match="fits memory"):
        from_file(tmp_path / "x.parquet")


def good_files(folder: Path) -> list[Path]:
    x = np.arange(12, dtype="f4").reshape(4, 3)
    frame = pd.DataFrame(x, columns=list("abc"))
    np.save(folder / "x.npy", x)
    np.savez_compressed(folder / "y.npz", x=x)
    scipy.sparse.save_npz(folder / "z.npz", scipy.sparse.csr_array(x))
    scipy.sparse.save_npz(folder / "b.npz", scipy.sparse.bsr_array(x))
    scipy.sparse.save_npz(folder / "d.npz", scipy.sparse.dia_array(x))
    (folder / "x-idx2-ubyte.gz").write_bytes(gzip.compress(idx(4, 3, content=bytes(12))))
    frame.to_csv(folder / "x.csv", index=False)
    frame.to_parquet(folder / "x.parquet")
    frame.to_feather(folder / "x.feather")
    return sorted(folder.iterdir())


def damage(folder: Path, times: int) -> dict[str, int]:
    """Flip bits, cut and overwrite; return how many files were refused, and how many read."""
    chance, found = random.Random(0), {"refused": 0, "read": 0}
    for path in good_files(folder):
        whole = path.read_bytes()
        for _ in range(times):
            data = bytearray(whole)
            for _ in range(chance.choice([1, 1, 4])):
                data[chance.randrange(len(data))] = chance.randrange(256)
            path.write_bytes(data[: chance.choice([len(data), chance.randrange(len(data))])])
            try:
                assert isinstance(from_file(path), torch.Tensor)
                found["read"] += 1
            except DataError:
                found["refused"] += 1
    return found


@pytest.mark.filterwarnings("ignore")
def test_damaged_files_are_refused_or_read(tmp_path):
    assert damage(tmp_path, 20)["refused"] > 60


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_3000_damaged_files(tmp_path):
    found = damage(tmp_path, 334)
    print(f"\n{found['refused']:,} damaged data files were refused, {found['read']:,} read")
    assert found["refused"] > 1000
