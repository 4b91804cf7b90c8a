"""Loaders, file formats, downloads and binarization of `pyrovae.datasets`.

The real files are read only where PYROVAE_DATA names a folder that holds them; everything else
runs on files that the tests make, and on a server at 127.0.0.1.
"""

import functools
import gzip
import hashlib
import math
import os
import pickle
import struct
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch
from helpers import unchanged
from torch.utils.data import DataLoader

from pyrovae import datasets
from pyrovae.datasets import files
from pyrovae.errors import ConfigError, DataError

REAL = os.environ.get("PYROVAE_DATA")


def needs(folder):
    """Skip unless the real files of this data set are here."""
    if not REAL or not Path(REAL, folder).is_dir():
        pytest.skip(f"PYROVAE_DATA names no folder that holds {folder}/")


def idx(array):
    """Encode as IDX, independently of the parser: 00 00, type, rank, big-endian sizes, elements."""
    kinds = {"u1": 8, "i1": 9, "i2": 11, "i4": 12, "f4": 13, "f8": 14}
    kind = kinds[array.dtype.str[1:]]
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, kind, array.ndim, *array.shape)
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


def readable(error):
    """At most six lines."""
    return len(str(error.value).splitlines()) <= 6


@pytest.mark.parametrize("name", ["", "a\0b.npy", "a\nb.npy", "ü" * 10**6 + ".npy"])
def test_a_name_that_no_file_can_have(name):
    with pytest.raises(ConfigError, match="path = ") as caught:
        datasets.from_file(name)
    assert readable(caught)
    assert len(str(caught.value)) < 500


GRAY = {
    "mnist": (60000, None, 10000, (28, 28)),
    "fashion_mnist": (60000, None, 10000, (28, 28)),
    "omniglot": (19280, None, 13180, (28, 28)),
    "frey_faces": (1565, 200, 200, (28, 20)),
    "digits": (1437, None, 360, (8, 8)),
}


@pytest.mark.parametrize("name", GRAY)
def test_gray_images_have_their_split_and_stay_gray(name):
    if name != "digits":
        needs(name)
    data = getattr(datasets, name)()
    num_train, num_valid, num_test, event = GRAY[name]
    assert data.name == name
    assert data.train.shape == (num_train, *event)
    assert data.test.shape == (num_test, *event)
    assert (data.valid is None) == (num_valid is None)
    if num_valid:
        assert data.valid.shape == (num_valid, *event)
    for x in (data.train, data.test):
        assert x.dtype == torch.float32
        assert x.is_contiguous()
        assert x.min() >= 0
        assert 0.9 < x.max() <= 1
        assert len(x[:300].unique()) > 10


@pytest.mark.parametrize(
    ("name", "num_train", "num_test"),
    [("mnist", 10, 10), ("digits", 10, 10), ("omniglot", 964, 659), ("pbmc3k", 9, 9)],
)
def test_labels_are_int64_and_of_the_parts_length(name, num_train, num_test):
    if name != "digits":
        needs(name)
    data = getattr(datasets, name)()
    assert data.train_labels.dtype == data.test_labels.dtype == torch.int64
    assert data.train_labels.shape == data.train.shape[:1]
    assert data.test_labels.shape == data.test.shape[:1]
    assert len(data.train_labels.unique()) == num_train
    assert len(data.test_labels.unique()) == num_test


def test_mnist_labels_belong_to_their_images():
    needs("mnist")
    data = datasets.mnist()
    means = torch.stack([data.train[data.train_labels == k].mean(0).flatten() for k in range(10)])
    nearest = torch.cdist(data.test.flatten(1), means).argmin(1)
    accuracy = (nearest == data.test_labels).float().mean()
    assert accuracy > 0.8  # the nearest mean finds 82 %, chance 10 %


def test_omniglot_parts_share_no_character():
    needs("omniglot")
    data = datasets.omniglot()
    assert not set(data.train_labels.tolist()) & set(data.test_labels.tolist())
    assert data.train.mean() < 0.2  # paper is 0, ink is 1


def test_binarized_mnist_is_bits_of_mnist_digits():
    needs("binarized_mnist")
    data = datasets.binarized_mnist()
    assert data.train.shape == (50000, 28, 28)
    assert data.valid.shape == data.test.shape == (10000, 28, 28)
    assert data.train_labels is data.valid_labels is data.test_labels is None
    assert data.test.unique().tolist() == [0, 1]
    assert data.train.dtype == torch.float32
    assert 0.12 < data.train.mean() < 0.14  # the mean gray of MNIST is 0.131


def test_binarized_mnist_test_part_is_sorted_by_class_as_its_docstring_warns():
    needs("binarized_mnist")
    x = datasets.binarized_mnist().test.flatten(1)
    first, rest = x[:980].mean(0), x[980:2115].mean(0)  # MNIST's test has 980 zeros, 1135 ones
    center = 14 * 28 + 14
    assert first[center] < 0.05 < 0.8 < rest[center]


def test_pbmc3k_counts_are_whole_and_dense():
    needs("pbmc3k")
    data = datasets.pbmc3k()
    assert data.train.shape == (2110, 2000)
    assert data.test.shape == (528, 2000)
    x = torch.cat([data.train, data.test])
    assert x.dtype == torch.float32
    assert torch.equal(x, x.round())
    assert x.min() == 0
    stored = datasets.from_file(Path(REAL, "pbmc3k", "pbmc3k_hvg2000.npz"), key="data")
    assert x.sum() == stored.long().sum()
    assert (x > 0).sum() == len(stored)
    labels = torch.cat([data.train_labels, data.test_labels])
    assert labels.bincount().tolist() == [344, 480, 271, 32, 162, 483, 155, 697, 14]


def test_pbmc3k_labels_belong_to_their_cells():
    needs("pbmc3k")
    data = datasets.pbmc3k()
    with np.load(Path(REAL, "pbmc3k", "pbmc3k_hvg2000.npz")) as arrays:
        genes = arrays["genes"].tolist()
    markers = {"PPBP": 8, "MS4A1": 0, "GNLY": 6}  # platelets, B cells, NK: the tutorial's markers
    for x, labels in ((data.train, data.train_labels), (data.test, data.test_labels)):
        for gene, cell_type in markers.items():
            count = x[:, genes.index(gene)]
            means = torch.stack([count[labels == k].mean() for k in range(9)])
            assert means.argmax() == cell_type


@pytest.mark.parametrize("name", ["digits", "frey_faces", "pbmc3k"])
def test_seed_fixes_the_split_and_touches_no_generator(name):
    if name != "digits":
        needs(name)
    loader = getattr(datasets, name)
    with unchanged():
        once, again, other = loader(), loader(seed=0), loader(seed=1)
    assert torch.equal(once.train, again.train)
    assert torch.equal(once.test, again.test)
    assert not torch.equal(once.train, other.train)
    both = [
        torch.cat([d.train, d.test, *([] if d.valid is None else [d.valid])]) for d in (once, other)
    ]
    assert torch.equal(*(x.flatten(1).double().sum(1).sort()[0] for x in both))  # the same data


def test_frey_faces_are_not_in_video_order():
    needs("frey_faces")
    x = datasets.frey_faces().train
    video = datasets.from_file(Path(REAL, "frey_faces", "frey-images-idx3-ubyte.gz")).float() / 255
    step, video_step = ((y[1:] - y[:-1]).abs().mean() for y in (x, video))
    assert step > 2 * video_step


def test_digits_are_stratified_and_pixels_are_sixteenths():
    data = datasets.digits()
    share = [y.bincount() / len(y) for y in (data.train_labels, data.test_labels)]
    assert torch.allclose(*share, atol=2 / 360)
    assert torch.equal(data.train * 16, (data.train * 16).round())


@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "i4", "f4", "f8"])
@pytest.mark.parametrize("name", ["x-idx3-ubyte", "x.idx", "x.idx3-ubyte.gz"])
def test_idx_of_every_type_round_trips(tmp_path, dtype, name):
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)
    content = idx(array)
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    x = datasets.from_file(tmp_path / name)
    assert torch.equal(x, torch.from_numpy(array))
    assert x.dtype == torch.from_numpy(array).dtype


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int64", "float32", "float64", "bool", ">f4"])
def test_npy_and_npz_keep_the_dtype(tmp_path, dtype):
    array = np.array([[0, 1, 0], [1, 1, 0]]).astype(dtype)
    np.save(tmp_path / "x.npy", array)
    np.savez(tmp_path / "one.npz", x=array)
    np.savez(tmp_path / "two.npz", x=array, y=np.zeros(3))
    native = torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))
    for x in (
        datasets.from_file(tmp_path / "x.npy"),
        datasets.from_file(str(tmp_path / "one.npz")),
        datasets.from_file(tmp_path / "two.npz", key="x"),
    ):
        assert torch.equal(x, native)
        assert x.dtype == native.dtype


@pytest.mark.parametrize("sparse_format", ["csr", "csc", "coo", "bsr", "dia"])
def test_a_sparse_matrix_of_scipy_is_read_as_dense(tmp_path, sparse_format):
    dense = np.eye(4, 3, k=1, dtype="float32") * 2
    matrix = scipy.sparse.coo_array(dense).asformat(sparse_format)
    scipy.sparse.save_npz(tmp_path / "x.npz", matrix)
    x = datasets.from_file(tmp_path / "x.npz")
    assert x.dtype == torch.float32
    assert x.tolist() == dense.tolist()


@pytest.mark.parametrize("suffix", ["csv", "parquet", "feather"])
@pytest.mark.parametrize("kind", ["float32", "missing", "nullable", "mixed"])
def test_a_table_is_read_by_its_columns(tmp_path, suffix, kind):
    frame = pd.DataFrame({"a": [0.5, 1.0], "b": [2.0, -3.0]}).astype("float32")
    if kind == "missing":
        frame.loc[0, "b"] = np.nan
    if kind == "nullable":
        frame["b"] = pd.array([None, 1], dtype="Int64")
    if kind == "mixed":
        frame["b"] = np.array([3, 2**40])
    options = {"index": False} if suffix != "feather" else {}
    getattr(frame, f"to_{suffix}")(tmp_path / f"x.{suffix}", **options)
    x = datasets.from_file(tmp_path / f"x.{suffix}")
    expected = torch.tensor(frame.to_numpy("float64", na_value=np.nan))
    assert torch.equal(x.double().nan_to_num(9), expected.nan_to_num(9))


@pytest.mark.parametrize(("text", "rows"), [("1,2\n3,4\n", 2), ("a,b\n3,4\n", 1), ("1,\n3,4", 2)])
def test_the_first_line_of_a_csv_is_data_if_it_is_all_numbers(tmp_path, text, rows):
    (tmp_path / "x.csv").write_text(text)
    x = datasets.from_file(tmp_path / "x.csv")
    assert x.shape == (rows, 2)
    assert x[-1].tolist() == [3, 4]


def test_npz_with_an_object_beside_the_wanted_array_can_be_read(tmp_path):
    np.savez(tmp_path / "x.npz", x=np.ones(2), about=np.array([{}], dtype=object))
    assert datasets.from_file(tmp_path / "x.npz", key="x").tolist() == [1, 1]


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("unpickled",))


def bad_files(folder):
    """Write one bad file of each kind: name -> (arguments of from_file, what the error says)."""
    good = idx(np.arange(6, dtype="u1").reshape(2, 3))
    written = {
        "short-idx2-ubyte": good[:-1],
        "long-idx2-ubyte": good + b"0",
        "header-idx2-ubyte": good[:7],
        "empty-idx2-ubyte": b"",
        "magic-idx2-ubyte": b"\x1a" + good[1:],
        "type-idx2-ubyte": good[:2] + b"\x0a" + good[3:],
        "cut-idx2-ubyte.gz": gzip.compress(good)[:-9],
        "pickle.npy": pickle.dumps(Bomb()),
        "empty.npy": b"",
        "text.npz": b"PK not a zip",
        "x.txt": b"1,2",
        "x.npy.gz": b"",
        "empty.csv": b"",
        "ragged.csv": b"1,2\n1,2,3,4",
        "words.csv": b"a,b\n1,red\n2,blue",
        "index.csv": b",a\n0,1\n1,2",
        "cut.parquet": b"PAR1",
        "cut.feather": b"ARROW1",
    }
    for name, content in written.items():
        (folder / name).write_bytes(content)
    np.save(folder / "whole.npy", np.ones(9))
    (folder / "cut.npy").write_bytes((folder / "whole.npy").read_bytes()[:-8])
    np.save(folder / "object.npy", np.array([{}, 1], dtype=object), allow_pickle=True)
    np.save(folder / "text.npy", np.array(["a", "b"]))
    np.savez(folder / "two.npz", a=np.ones(1), b=np.ones(1))
    np.savez(folder / "none.npz")
    np.savez(folder / "object.npz", a=np.array([Bomb()], dtype=object))


@pytest.mark.parametrize(
    ("name", "key", "match"),
    [
        ("short-idx2-ubyte", None, r"18 bytes for shape \(2, 3\) of uint8, got 17 bytes"),
        ("long-idx2-ubyte", None, "18 bytes.*got 19 bytes"),
        ("header-idx2-ubyte", None, "got 7 bytes"),
        ("empty-idx2-ubyte", None, "expected IDX"),
        ("magic-idx2-ubyte", None, "expected IDX .*got 1a 00 08 02"),
        ("type-idx2-ubyte", None, "expected IDX .*got 00 00 0a 02"),
        ("cut-idx2-ubyte.gz", None, "expected a whole gzip file"),
        ("pickle.npy", None, r"(?s)pickled.*np\.save"),
        ("object.npy", None, r"(?s)pickled.*np\.save"),
        ("object.npz", None, r"(?s)pickled.*np\.save"),
        ("object.npz", "a", r"(?s)pickled.*np\.save"),
        ("empty.npy", None, "damaged"),
        ("cut.npy", None, "damaged"),
        ("text.npz", None, "damaged"),
        ("text.npy", None, "expected an array of numbers, got dtype <U1"),
        ("x.txt", None, r"(?s)ends in \.npy, \.npz, .*-idx3-ubyte or \.idx.*np\.save"),
        ("empty.csv", None, "expected a table"),
        ("ragged.csv", None, "expected a table"),
        ("words.csv", None, "in column 'b'"),
        ("index.csv", None, r"(?s)has no name, .*index=False"),
        ("cut.parquet", None, "expected a table"),
        ("cut.feather", None, "expected a table"),
        ("x.npy.gz", None, r"ends in \.npy"),
        ("two.npz", None, r"(?s)one array, got keys \['a', 'b'\].*key='a'"),
        ("two.npz", "c", r"(?s)a key 'c', got keys \['a', 'b'\].*key='a'"),
        ("none.npz", None, r"got keys \[\]"),
        ("whole.npy", "a", "(?s)expected no key, got 'a'.*from_file"),
        ("short-idx2-ubyte", "a", "expected no key"),
    ],
)
def test_bad_files_are_named_and_explained(tmp_path, name, key, match):
    bad_files(tmp_path)
    with pytest.raises(DataError, match=match) as error:
        datasets.from_file(tmp_path / name, key)
    assert str(tmp_path / name) in str(error.value)
    assert readable(error)


def test_a_path_that_is_not_there_is_the_builtin_error(tmp_path):
    for name in ("x.npy", "x.npz", "x.csv", "x.parquet", "x.feather", "x-idx1-ubyte"):
        with pytest.raises(FileNotFoundError):
            datasets.from_file(tmp_path / name)


def test_threshold_is_strict_and_keeps_the_float_dtype():
    x = torch.tensor([0.0, 0.3, 0.5, 0.51, 1.0], dtype=torch.float64)
    assert datasets.binarize(x).tolist() == [0, 0, 0, 1, 1]
    assert datasets.binarize(x, threshold=0.2).tolist() == [0, 1, 1, 1, 1]
    assert datasets.binarize(x).dtype == torch.float64
    assert x[1] == 0.3


def test_numpy_arrays_are_accepted_even_read_only_reversed_or_integer():
    gray = np.linspace(0, 1, 6, dtype=np.float32).reshape(2, 3)
    frozen = gray.copy()
    frozen.flags.writeable = False
    expected = [[0, 0, 0], [1, 1, 1]]
    assert datasets.binarize(frozen).tolist() == expected
    assert datasets.binarize(gray[::-1]).tolist() == expected[::-1]
    assert datasets.binarize(np.array([0, 1], dtype=np.uint8)).dtype == torch.float32
    assert len(datasets.binarize(frozen, "sampled")) == 2


@pytest.mark.parametrize("method", ["threshold", "sampled"])
@pytest.mark.parametrize(
    ("value", "said"), [(255.0, "255"), (-0.25, "-0.25"), (math.nan, "nan"), (math.inf, "inf")]
)
def test_values_that_are_not_probabilities_are_refused(method, value, said):
    x = torch.zeros(3, 2, 2)
    x[2, 0, 1] = value
    match = rf"(?s)\[0, 1\], got {said} at index \(2, 0, 1\).*ranges from.*x / 255"
    with pytest.raises(DataError, match=match) as error:
        datasets.binarize(x, method)
    assert readable(error)


def test_unknown_method_and_useless_threshold_are_refused():
    with pytest.raises(ConfigError, match="'threshold' or 'sampled', got 'dynamic'"):
        datasets.binarize(torch.zeros(2), "dynamic")
    for threshold in (1, 127, -0.1, math.nan):
        with pytest.raises(ConfigError, match=r"threshold in \[0, 1\)"):
            datasets.binarize(torch.zeros(2), threshold=threshold)


def test_sampled_frequencies_are_the_gray_values():
    n, k = 20000, 5
    gray = torch.tensor([0.0, 0.1, 0.5, 0.9, 1.0])
    sampled = datasets.binarize(gray.expand(n, 5), "sampled")
    torch.manual_seed(0)
    tolerance = k * (gray * (1 - gray) / n).sqrt() + 1e-7  # k·σ/√n, σ² = p(1 - p); k = 5: p < 1e-6
    for draws in (sampled.__getitems__(range(n)), sampled.draw(seed=1)):
        assert draws.unique().tolist() == [0, 1]
        assert ((draws.mean(0) - gray).abs() <= tolerance).all()
    correlation = torch.corrcoef(sampled.draw(seed=2)[:, 1:4].T)  # pixels are independent
    assert (correlation - torch.eye(3)).abs().max() < k / math.sqrt(n)  # σ = 1 for a correlation


def test_every_access_draws_afresh_and_follows_torchs_generator():
    sampled = datasets.Sampled(torch.full((8, 4, 4), 0.5))
    torch.manual_seed(0)
    epochs = [torch.cat(list(loader(sampled))) for _ in range(2)]
    assert epochs[0].shape == (8, 4, 4)
    assert not torch.equal(*epochs)
    assert not torch.equal(sampled[0], sampled[0])
    torch.manual_seed(0)
    assert torch.equal(torch.cat(list(loader(sampled))), epochs[0])


def loader(sampled):
    return DataLoader(sampled, batch_size=3, collate_fn=torch.as_tensor)


def test_batches_hold_the_data_that_were_asked_for():
    sampled = datasets.Sampled(torch.eye(5))  # certain pixels: the draw is the datum
    for indices in ([3, 0], torch.tensor([3, 0]), range(3, -1, -3)):
        assert torch.equal(sampled.__getitems__(indices), torch.eye(5)[[3, 0]])
    assert torch.equal(sampled[2], torch.eye(5)[2])
    assert torch.equal(torch.cat(list(loader(sampled))), torch.eye(5))
    assert len(list(sampled)) == 5


def test_a_seeded_draw_is_fixed_and_does_not_change_torchs_generator():
    sampled = datasets.Sampled(torch.full((4, 9), 0.5))
    with unchanged():
        assert torch.equal(sampled.draw(seed=3), sampled.draw(seed=3))
        assert not torch.equal(sampled.draw(seed=3), sampled.draw(seed=4))


SMALL = {
    "train-images-idx3-ubyte": np.arange(20 * 4, dtype="u1").reshape(20, 2, 2),
    "train-labels-idx1-ubyte": np.arange(20, dtype="u1") % 10,
    "t10k-images-idx3-ubyte": np.arange(10 * 4, dtype="u1").reshape(10, 2, 2),
    "t10k-labels-idx1-ubyte": np.arange(10, dtype="u1"),
}


def write(folder, suffix=".gz", **changed):
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in SMALL.items():
        content = changed.get(name.replace("-", "_"), idx(array))
        (folder / f"{name}{suffix}").write_bytes(gzip.compress(content) if suffix else content)


def files_in(folder):
    return sorted(path.name for path in folder.rglob("*"))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, no data folder, and `FILES` that describe the small data."""
    for variable in ("PYROVAE_DATA", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("PYROVAE_CACHE", str(tmp_path / "cache"))
    hashes = {file: hashlib.sha256(idx(array)).hexdigest() for file, array in SMALL.items()}
    small = {f"mnist/{file}": f"sha256:{digest}" for file, digest in hashes.items()}
    small |= {f"fashion_mnist/{file}": f"sha256:{digest}" for file, digest in hashes.items()}
    small["fashion_mnist/train-labels-idx1-ubyte"] = "counts:" + " ".join("2" * 10)
    small["fashion_mnist/t10k-labels-idx1-ubyte"] = "counts:" + " ".join("1" * 10)
    monkeypatch.setattr(files, "FILES", files.FILES | small)
    return tmp_path / "cache"


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path):
    """Serve tmp_path/www; yields (folder, base URL)."""
    folder = tmp_path / "www"
    folder.mkdir()
    handler = functools.partial(Quiet, directory=folder)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
        thread.start()
        yield folder, f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()
        thread.join()


@pytest.fixture
def unused():
    """The address of a port that was just free: nobody answers."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as httpd:
        port = httpd.server_port
    return f"http://127.0.0.1:{port}/"


def is_small(data):
    return (
        torch.equal(data.train, torch.arange(80.0).view(20, 2, 2) / 255)
        and torch.equal(data.test, torch.arange(40.0).view(10, 2, 2) / 255)
        and torch.equal(data.train_labels, torch.arange(20) % 10)
        and torch.equal(data.test_labels, torch.arange(10))
    )


@pytest.mark.parametrize("load", [datasets.mnist, datasets.fashion_mnist])
def test_a_download_is_checked_cached_and_not_repeated(cache, server, capfd, caplog, load):
    folder, url = server
    write(folder)
    assert is_small(load(mirrors=[url]))
    assert files_in(cache) == sorted([load.__name__, *(f"{name}.gz" for name in SMALL)])
    assert is_small(load(mirrors=[]))
    assert capfd.readouterr() == ("", "")
    assert not [record for record in caplog.records if record.name == "pooch"]


def test_the_next_mirror_is_tried_after_an_answer_of_404_or_wrong_content(cache, server, unused):
    folder, url = server
    write(folder / "good")
    write(folder / "bad", train_images_idx3_ubyte=idx(SMALL["train-images-idx3-ubyte"] + 1))
    mirrors = [unused, f"{url}/absent/", f"{url}/bad/", f"{url}/good"]
    assert is_small(datasets.mnist(mirrors=mirrors))


@pytest.mark.parametrize(
    ("load", "changed", "match"),
    [
        ("mnist", {"train_images_idx3_ubyte": b"<html>"}, "expected content of sha256"),
        ("mnist", {"train_images_idx3_ubyte": idx(np.ones((20, 2, 2), "u1"))}, "of sha256"),
        ("fashion_mnist", {"train_labels_idx1_ubyte": b"<html>"}, "expected IDX"),
        ("fashion_mnist", {"train_labels_idx1_ubyte": idx(np.arange(20, dtype="u1"))}, "of counts"),
        ("fashion_mnist", {"train_labels_idx1_ubyte": idx(np.arange(9, dtype="u1"))}, "of counts"),
    ],
)
def test_wrong_content_never_reaches_the_cache(cache, server, load, changed, match):
    folder, url = server
    write(folder, **changed)
    wrong = next(iter(changed)).replace("_", "-")
    with pytest.raises(DataError, match=match) as error:
        getattr(datasets, load)(mirrors=[url])
    assert readable(error)
    assert wrong not in " ".join(files_in(cache))


def test_a_broken_gzip_from_a_mirror_leaves_nothing(cache, server):
    folder, url = server
    write(folder)
    file = folder / "train-images-idx3-ubyte.gz"
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(DataError, match="expected a whole gzip file"):
        datasets.mnist(mirrors=[url])
    assert not cache.exists()


def test_offline_says_what_was_searched_and_what_to_do(cache, unused, monkeypatch, tmp_path):
    monkeypatch.setenv("PYROVAE_DATA", str(tmp_path / "mine"))
    match = "(?s)train-images-idx3-ubyte.*download failed: ConnectionError.*PYROVAE_DATA to"
    with pytest.raises(DataError, match=match) as error:
        datasets.mnist(mirrors=[unused, unused])
    message = str(error.value)
    assert readable(error)
    assert str(tmp_path / "mine") in message
    assert str(cache) in message
    assert all(f"mnist/{name}" in message for name in SMALL)
    assert "fashion" not in message
    assert not cache.exists()


@pytest.mark.parametrize("name", ["binarized_mnist", "omniglot", "frey_faces", "pbmc3k"])
def test_what_cannot_be_downloaded_says_so(cache, name):
    with pytest.raises(DataError, match=r"(?s)not downloadable.*PYROVAE_DATA") as error:
        getattr(datasets, name)()
    assert f"{name}/" in str(error.value)
    assert readable(error)
    assert not cache.exists()


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_the_data_folder_comes_first_and_may_hold_plain_files(cache, monkeypatch, tmp_path, suffix):
    monkeypatch.setenv("PYROVAE_DATA", str(tmp_path / "mine"))
    write(tmp_path / "mine" / "mnist", suffix)
    write(cache / "mnist", train_images_idx3_ubyte=b"never read")
    assert is_small(datasets.mnist(mirrors=[]))


def test_wrong_content_in_a_folder_is_an_error(cache, server):
    folder, url = server
    write(folder)
    write(cache / "mnist", t10k_labels_idx1_ubyte=idx(np.zeros(10, "u1")))
    match = "(?s)expected content of sha256 [0-9a-f]{64}, got [0-9a-f]{64}.*Put the original"
    with pytest.raises(DataError, match=match) as error:
        datasets.mnist(mirrors=[url])
    assert str(cache / "mnist" / "t10k-labels-idx1-ubyte.gz") in str(error.value)
    assert readable(error)


def test_real_mnist_downloads_with_the_published_hashes(tmp_path, monkeypatch, server):
    needs("mnist")
    folder, url = server
    (folder / "mnist").symlink_to(Path(REAL, "mnist"))
    monkeypatch.delenv("PYROVAE_DATA")
    monkeypatch.setenv("PYROVAE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    data = datasets.mnist(mirrors=[f"{url}/mnist/"])
    assert data.train.shape == (60000, 28, 28)
    assert files_in(tmp_path / "cache") == sorted(["mnist", *(f"{name}.gz" for name in SMALL)])
