"""Sources of minibatches: every container yields the same data, checked, in the expected order."""

import gc
import json
import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import scipy.sparse
import torch
from helpers import unchanged
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

import pyrovae as pv
from pyrovae.checks import places
from pyrovae.contract import validated
from pyrovae.data import (
    ArraySource,
    LoaderSource,
    MappedSource,
    SparseSource,
    StreamSource,
    tables,
)
from pyrovae.data.orders import BlockOrder
from pyrovae.errors import ConfigError, DataError
from pyrovae.networks import Given
from pyrovae.runtime.random_stream import RandomStream

N, D, B = 23, 4, 5


def counts(n=N):
    """Distinct rows of integers, many of them 0; row i ends in i."""
    x = np.random.default_rng(0).poisson(0.7, (n, D)).astype("f4")
    x[:, -1] = np.arange(n)
    return x


def program(likelihood="Poisson", **settings):
    settings = {"latent_dim": 2, "hidden": (8,), "seed": 0} | settings
    return pv.build((D,), likelihood=likelihood, **settings)


class Conditional(nn.Module):
    """A part that accepts any y and ignores it."""

    def __init__(self, part):
        super().__init__()
        self.part = part

    def forward(self, x, y):
        return self.part(x)


def conditional(**settings):
    """Program of real data and any covariates."""
    vae = program("Normal", **settings)
    vae.encoder = Given(Conditional(vae.encoder))
    return vae


class Rowwise(Dataset):
    """A map-style Dataset of NumPy rows that may declare another length."""

    def __init__(self, x, length=None):
        self.x, self.length = x, len(x) if length is None else length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        return self.x[index]


class Stream(IterableDataset):
    """A stream of rows without a length."""

    def __init__(self, x):
        self.x = x

    def __iter__(self):
        return iter(self.x)


class Sized(Stream):
    """A stream that declares a length."""

    def __init__(self, x, length):
        super().__init__(x)
        self.length = length

    def __len__(self):
        return self.length


def saved(folder, x, name="x.npy", mode="r"):
    """Return the array memory-mapped from a file by `numpy.load`."""
    np.save(folder / name, x)
    return np.load(folder / name, mmap_mode=mode)


def raw_file(folder, x):
    x.tofile(folder / "x.bin")
    return np.memmap(folder / "x.bin", x.dtype, "r", shape=x.shape)


CONTAINERS = {
    "tensor": (lambda f, x: torch.tensor(x), ArraySource),
    "array": (lambda f, x: x, ArraySource),
    "list": (lambda f, x: x.tolist(), ArraySource),
    "npy": (saved, MappedSource),
    "npy, writable": (lambda f, x: saved(f, x, mode="r+"), MappedSource),
    "memmap": (raw_file, MappedSource),
    "memmap of bytes": (lambda f, x: raw_file(f, x.astype("u1")), MappedSource),
    "big-endian memmap": (lambda f, x: raw_file(f, x.astype(">f8")), MappedSource),
    "Fortran npy": (lambda f, x: saved(f, np.asfortranarray(x)), MappedSource),
    "view of a memmap": (lambda f, x: saved(f, np.repeat(x, 2, 0))[::2], MappedSource),
    "array over a memmap": (lambda f, x: np.asarray(saved(f, x)), MappedSource),
    "csr matrix": (lambda f, x: scipy.sparse.csr_matrix(x), SparseSource),
    "csc array": (lambda f, x: scipy.sparse.csc_array(x), SparseSource),
    "coo array of int64": (lambda f, x: scipy.sparse.coo_array(x.astype("i8")), SparseSource),
    "Dataset": (lambda f, x: Rowwise(x), LoaderSource),
    "DataLoader": (lambda f, x: DataLoader(torch.tensor(x), B, shuffle=True), LoaderSource),
    "stream": (lambda f, x: Stream(x), StreamSource),
    "stream with a length": (lambda f, x: Sized(x, len(x)), StreamSource),
    "DataLoader of a stream": (lambda f, x: DataLoader(Stream(x), B), StreamSource),
}


@pytest.fixture
def small_windows(monkeypatch):
    """Windows of two batches, of blocks of three rows: several of each, as for a large file."""
    monkeypatch.setattr(tables, "BLOCK_BYTES", 3 * (4 * D + 8))
    monkeypatch.setattr(tables, "WINDOW_BYTES", 2 * B * (4 * D + 8))
    monkeypatch.setattr(tables, "NUMBERS_AT_A_TIME", 3 * D)


def epoch(source, shuffle=True, skip=0, seed=1):
    torch.manual_seed(seed)
    return [batch.x for batch in source.epoch(shuffle, skip)]


def assert_same(batches, others):
    assert len(batches) == len(others)
    assert all(torch.equal(a, b) for a, b in zip(batches, others, strict=True))


# The contract of every source.


@pytest.mark.parametrize("case", CONTAINERS)
def test_an_epoch_gives_each_datum_once_in_full_batches(case, tmp_path):
    make, kind = CONTAINERS[case]
    vae = program().double()
    source = validated(vae, make(tmp_path, counts()), batch_size=B)
    assert type(source) is kind
    for shuffle in (False, True):
        batches = epoch(source, shuffle)
        assert [len(batch) for batch in batches] == [5, 5, 5, 5, 3]
        rows = torch.cat(batches)
        assert rows.dtype == torch.float64
        assert torch.equal(rows[rows[:, -1].argsort()], torch.tensor(counts()).double())
    assert (source.num_data, source.num_batches, source.batch_size) == (N, 5, B)
    assert (source.preloaded is None) == (kind is not ArraySource)


@pytest.mark.parametrize("case", [name for name in CONTAINERS if "Data" not in name])
def test_a_last_batch_of_one_datum_is_kept(case, tmp_path):
    """23 rows in batches of 11; in order, it is the last row. Loaders have sizes of their own."""
    make, _ = CONTAINERS[case]
    source = validated(program(), make(tmp_path, counts()), batch_size=11)
    for shuffle in (False, True):
        assert [len(batch) for batch in epoch(source, shuffle)] == [11, 11, 1]
    assert torch.equal(epoch(source, False)[2], torch.tensor(counts()).float()[-1:])


@pytest.mark.parametrize("case", CONTAINERS)
def test_an_epoch_that_skips_goes_on_as_the_whole_one(case, tmp_path, small_windows):
    make, _ = CONTAINERS[case]
    source = validated(program(), make(tmp_path, counts()), batch_size=B)
    whole = epoch(source)
    after = torch.get_rng_state()
    for skip in range(7):
        assert_same(epoch(source, skip=skip), whole[skip:])
        assert torch.equal(torch.get_rng_state(), after)
    assert_same(epoch(source, shuffle=False, skip=2), epoch(source, shuffle=False)[2:])


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("case", CONTAINERS)
def test_the_shares_of_a_batch_are_its_rows(case, shuffle, tmp_path, small_windows):
    """Two processes take 3 and 2 of 5 rows; one of four processes takes none of the last 3."""
    make, _ = CONTAINERS[case]
    source = validated(program(), make(tmp_path, counts()), batch_size=B)
    whole = epoch(source, shuffle)
    for size in (2, 4):
        for rank in range(size):
            torch.manual_seed(1)
            found = [b.x for b in source.epoch(shuffle, 1, slice(rank, None, size))]
            assert_same(found, [x[rank::size] for x in whole[1:]])
    assert [len(x) for x in found] == [1, 1, 1, 0]


@pytest.mark.parametrize("case", CONTAINERS)
def test_the_order_is_drawn_when_the_epoch_is_asked_for(case, tmp_path, small_windows):
    make, _ = CONTAINERS[case]
    if isinstance(make(tmp_path, counts()), Dataset | DataLoader):
        pytest.skip("torch draws the order of a loader, at the first batch")
    source = validated(program(), make(tmp_path, counts()), batch_size=B)
    torch.manual_seed(1)
    batches = source.epoch(True)
    after = torch.get_rng_state()
    torch.manual_seed(2)
    rest = [batch.x for batch in batches]
    assert_same(rest, epoch(source))
    epoch(source)
    assert torch.equal(torch.get_rng_state(), after)
    assert not all(map(torch.equal, rest, epoch(source, seed=3)))


@pytest.mark.parametrize("case", CONTAINERS)
def test_a_fingerprint_is_flat_and_tells_other_data(case, tmp_path):
    make, kind = CONTAINERS[case]
    other = counts()
    other[20, 1] += 1
    prints = []
    for number, x in enumerate((counts(), counts(), other)):
        (tmp_path / str(number)).mkdir()
        torch.manual_seed(0)  # as fit does before its look: it orders a loader
        source = validated(program(), make(tmp_path / str(number), x), batch_size=B)
        prints.append(source.fingerprint())
        torch.manual_seed(0)
        list(source.epoch(True))
        assert source.fingerprint() == prints[-1]
        assert json.loads(json.dumps(prints[-1])) == prints[-1]
    assert prints[0] == prints[1]
    if kind is StreamSource:
        assert set(prints[0]) == {"loader", "num_data"}
        return
    differs = {name for name in prints[0] if prints[0][name] != prints[2][name]}
    assert differs == {"x sha256"}
    assert kind is LoaderSource or prints[0]["x shape"] == [N, D]


def test_a_fingerprint_holds_y_mask_and_the_callers_dtype(tmp_path):
    x, mask, vae = counts(), np.ones((N, D), "u1"), conditional()
    for data in (x, saved(tmp_path, x)):
        facts = validated(vae, data, np.arange(N), mask, batch_size=B).fingerprint()
        assert (facts["y shape"], facts["y dtype"]) == ([N], "torch.int64")
        assert facts["mask shape"] == [N, D]
        other = validated(vae, data, np.arange(N) + 1, mask, batch_size=B).fingerprint()
        assert {name for name in facts if facts[name] != other[name]} == {"y sha256"}
    assert facts["x file bytes"] == os.path.getsize(tmp_path / "x.npy")
    double = validated(program(), x.astype("f8"), batch_size=B).fingerprint()
    assert double["x dtype"] == "torch.float64"


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_batch_is_a_copy(shuffle, tmp_path):
    x = torch.tensor(counts())
    for data in (x, saved(tmp_path, counts()), scipy.sparse.csr_array(counts())):
        source = validated(program(), data, batch_size=N)
        for batch in source.epoch(shuffle):
            batch.x.fill_(7.0)
        assert torch.equal(torch.cat(epoch(source, False)), torch.tensor(counts()))


@pytest.mark.parametrize("case", ["npy", "memmap of bytes", "csr matrix", "csc array"])
def test_training_is_bitwise_that_of_the_array_in_memory(case, tmp_path):
    make, _ = CONTAINERS[case]
    runs = []
    for x in (counts(), make(tmp_path, counts())):
        vae = program()
        history = pv.fit(vae, x, validation=x, epochs=2, batch_size=B, progress=False)
        weights = torch.cat([p.detach().flatten() for p in vae.parameters()])
        runs.append((history["elbo"], history["validation_elbo"], weights.tolist()))
    assert runs[0] == runs[1]


@pytest.mark.parametrize("case", ["npy", "csr matrix"])
def test_y_and_mask_follow_their_rows(case, tmp_path, small_windows):
    x = counts()
    y = np.stack([x[:, -1], x[:, -1]], 1)
    mask = x < 3
    columns = {
        "tensors": (torch.tensor(y), torch.tensor(mask)),
        "files": (saved(tmp_path, y, "y.npy"), saved(tmp_path, mask, "mask.npy")),
        "sparse mask": (y, scipy.sparse.csr_array(mask)),
        "whole numbers": (y[:, 0].astype("i8"), mask.astype("i8")),
    }
    data = CONTAINERS[case][0](tmp_path, x)
    for given_y, given_mask in columns.values():
        source = validated(conditional(), data, given_y, given_mask, batch_size=B)
        for batch in (*source.epoch(True), *source.epoch(False)):
            assert torch.equal(batch.y.reshape(len(batch.x), -1)[:, 0].float(), batch.x[:, -1])
            assert torch.equal(batch.mask, batch.x < 3)
            assert batch.mask.dtype == torch.bool


# The order of blocks.


@pytest.mark.parametrize("num_rows", [1, 2, 9, 10, 11, 40, 97])
@pytest.mark.parametrize(("block", "window"), [(1, 1), (3, 10), (10, 3), (4, 8), (7, 96), (200, 5)])
def test_a_block_order_has_each_row_once(num_rows, block, window):
    order = BlockOrder(num_rows, block=block, window=window)
    parts = [order.rows(w) for w in range(order.num_windows)]
    assert [len(part) for part in parts[:-1]] == [window] * (len(parts) - 1)
    assert torch.cat(parts).sort().values.tolist() == list(range(num_rows))
    again = [order.rows(w) for w in range(order.num_windows)]
    assert_same(parts, again)


def test_an_order_within_one_window_is_that_of_data_in_memory():
    torch.manual_seed(3)
    order = BlockOrder(50, block=4, window=60).rows(0)
    torch.manual_seed(3)
    assert torch.equal(order, torch.randperm(50))


def test_each_row_is_as_likely_at_each_place():
    """12 rows in 4 windows: the place of a row is uniform, and its block's neighbors follow it."""
    draws, places_of = 1500, torch.zeros(12, 12)
    for _ in range(draws):
        order = BlockOrder(12, block=2, window=3)
        rows = torch.cat([order.rows(w) for w in range(4)])
        places_of[rows, torch.arange(12)] += 1
    p = 1 / 12
    # 144 cells, so 4.5 standard errors are passed by chance once in a thousand runs
    assert ((places_of / draws - p).abs() < 4.5 * (p * (1 - p) / draws) ** 0.5).all()


def test_a_window_is_read_in_few_runs():
    order = BlockOrder(10_000, block=100, window=1000)
    for w in range(order.num_windows):
        runs = order.runs(w)
        assert len(runs) <= 11
        assert sum(run.stop - run.start for run in runs) == 1000


# Validation of data that are not in memory.


def spoilt(*cells):
    x = counts(60)
    for row, column, value in cells:
        x[row, column] = value
    return x


BAD = {
    "fraction": ("Poisson", spoilt((41, 2, 0.5), (50, 0, 1.5)), None, r"^x\[41, 2\] = 0.5.*\(2 of"),
    "negative": ("Poisson", spoilt((59, 3, -1.0)), None, r"^x\[59, 3\] = -1.*from -1 to 58"),
    "NaN": ("Normal", spoilt((33, 1, np.nan)), None, r"^x\[33, 1\] = nan.*\(1 of 240"),
    "infinity": ("Normal", spoilt((0, 0, np.inf)), None, r"^x\[0, 0\] = inf"),
    "too large": ("Normal", spoilt((7, 0, 1e30)), None, r"^x\[7, 0\] = 1e\+30.*overflows"),
    "not binary": ("Bernoulli", spoilt(), None, r"^x\[1, 1\] = 2.*\{0, 1\}"),
    "outside [0, 1]": ("ContinuousBernoulli", spoilt(), None, r"^x.*in \[0, 1\]"),
    "beside the mask": (
        "Poisson",
        spoilt((9, 0, 0.5), (40, 1, 0.5)),
        (9, 0),
        r"^x\[40, 1\].*\(1 of",
    ),
    "wide": ("Poisson", np.ones((60, 5), "f4"), None, r"\(5,\)[\s\S]*\(4,\)"),
    "no rows": ("Poisson", np.ones((0, 4), "f4"), None, "N = 0"),
}


@pytest.mark.parametrize("kind", ["npy", "csr matrix"])
@pytest.mark.parametrize("case", BAD)
def test_bad_data_are_refused_in_the_words_for_arrays_in_memory(
    case, kind, tmp_path, small_windows, monkeypatch
):
    likelihood, x, hidden, match = BAD[case]
    monkeypatch.setattr(places, "NUMBERS_AT_A_TIME", 7 * D)
    mask = np.ones(x.shape, bool)
    mask[hidden] = hidden is None
    if kind == "npy" and not len(x):
        pytest.skip("numpy maps no empty file")
    mask = None if hidden is None else mask
    messages = []
    for data in (x, CONTAINERS[kind][0](tmp_path, x)):
        with pytest.raises(DataError, match=match) as caught:
            validated(program(likelihood), data, None, mask, batch_size=B)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


@pytest.mark.parametrize(
    ("value", "match"),
    [(0.5, r"^mask\[41, 2\] = 0.5"), (None, "no observed entries"), ("shape", r"mask has shape")],
)
def test_a_bad_mask_of_a_file_is_refused(value, match, tmp_path, small_windows):
    mask = np.ones((60, D), "f4")
    if value == "shape":
        mask = mask[:, :1]
    elif value is None:
        mask[:] = 0
    else:
        mask[41, 2] = value
    for given in (mask, saved(tmp_path, mask, "mask.npy")):
        with pytest.raises(DataError, match=match):
            validated(program(), saved(tmp_path, counts(60)), None, given, batch_size=B)


@pytest.mark.parametrize("kind", ["npy", "csr matrix"])
def test_bad_covariates_of_a_file_are_refused(kind, tmp_path, small_windows):
    x = CONTAINERS[kind][0](tmp_path, counts(60))
    y = np.ones(60, "f4")
    with pytest.raises(DataError, match=r"y has shape \(59,\).*60 rows"):
        validated(program(), x, saved(tmp_path, y[1:], "y.npy"), batch_size=B)
    y[40] = np.nan
    for given in (y, saved(tmp_path, y, "y.npy")):
        with pytest.raises(DataError, match=r"^y\[40\] = nan"):
            validated(program(), x, given, batch_size=B)
    sizes = counts(60).sum(1)
    sizes[41] += 1
    with pytest.raises(DataError, match=r"^in rows 39 to 41.*y\[2\] = [\s\S]*sums to"):
        validated(program("Multinomial"), x, sizes, batch_size=B)


def test_a_sparse_matrix_may_store_zeros_and_cells_twice():
    twice = scipy.sparse.coo_array(([1.0, 1.0, 0.0], ([1, 1, 0], [2, 2, 0])), shape=(3, D))
    split = scipy.sparse.csr_array(([0.5, 0.5], [2, 2], [0, 0, 2, 2]), shape=(3, D))
    for matrix, total in ((twice, 2.0), (split, 1.0)):
        stored = matrix.nnz
        rows = torch.cat(epoch(validated(program(), matrix, batch_size=2), False))
        assert rows[1].tolist() == [0.0, 0.0, total, 0.0]
        assert rows.sum() == total
        assert matrix.nnz == stored  # the caller's matrix is as it was


def test_a_sparse_zero_outside_the_support_is_found_where_nothing_is_stored():
    x = np.ones((9, D), "f4")
    x[5, 3] = 0
    vae = pv.build((D,), latent_dim=2, likelihood="Normal")
    vae.decoder = OwnPositive(vae.decoder)
    with pytest.raises(DataError, match=r"^x\[5, 3\] = 0, but a LogNormal"):
        validated(vae, scipy.sparse.csr_array(x), batch_size=B)


class OwnPositive(torch.nn.Module):
    """A decoder over positive numbers."""

    def __init__(self, decoder):
        super().__init__()
        self.decoder = decoder

    def forward(self, z):
        import pyro.distributions as dist

        return dist.LogNormal(self.decoder(z).mean, 1.0).to_event(1)


def test_a_sparse_array_of_one_dimension_is_refused():
    with pytest.raises(DataError, match=r"shape \(4,\)[\s\S]*reshape"):
        validated(program(), scipy.sparse.coo_array(np.ones(D)), batch_size=B)


def test_sparse_counts_with_few_cells_are_not_filled_in_to_be_checked(monkeypatch):
    monkeypatch.setattr(tables.TableSource, "_pass", lambda *_: pytest.fail("filled in"))
    validated(program(), scipy.sparse.csr_array(counts()), batch_size=B)
    with pytest.raises(BaseException, match="filled in"):
        validated(program(), scipy.sparse.csr_array(counts() / 2), batch_size=B)


@pytest.fixture
def passes(monkeypatch):
    """The passes over data so far, as a list that grows."""
    made, true_pass = [], tables.TableSource._pass
    monkeypatch.setattr(tables.TableSource, "_pass", lambda *a: made.append(1) or true_pass(*a))
    return made


def test_an_unchanged_file_is_looked_at_once(tmp_path, passes):
    x, prints = saved(tmp_path, counts()), []
    for data in (x, x, np.load(tmp_path / "x.npy", mmap_mode="r")):
        vae, y = conditional(seed=len(prints)), np.arange(len(data))
        prints.append(validated(vae, data, y, batch_size=B).fingerprint())
    assert len(passes) == 1
    assert prints[0] == prints[1] == prints[2]


LOOKED_AT_AGAIN = {
    "another part": lambda x, f: validated(program(), x[1:], batch_size=B),
    "every second row": lambda x, f: validated(program(), x[::2], batch_size=B),
    "another likelihood": lambda x, f: validated(program("Normal"), x, batch_size=B),
    "another precision": lambda x, f: validated(program().double(), x, batch_size=B),
    "a mask": lambda x, f: validated(program(), x, None, np.ones(x.shape), batch_size=B),
    "sizes that must fit": lambda x, f: validated(
        program("Multinomial"), x, x.sum(1), batch_size=B
    ),
    "another file": lambda x, f: validated(program(), saved(f, counts(), "b.npy"), batch_size=B),
    "the file, writable": lambda x, f: validated(
        program(), np.load(f / "x.npy", mmap_mode="r+"), batch_size=B
    ),
    "the file, written again": lambda x, f: validated(program(), saved(f, counts()), batch_size=B),
}


@pytest.mark.parametrize("case", LOOKED_AT_AGAIN)
def test_what_is_not_the_same_question_is_looked_at_again(case, tmp_path, passes):
    x = saved(tmp_path, counts())
    validated(program(), x, batch_size=B)
    LOOKED_AT_AGAIN[case](x, tmp_path)
    assert len(passes) == 2


def test_a_file_that_was_fine_is_refused_after_a_bad_change(tmp_path):
    x = saved(tmp_path, counts())
    validated(program(), x, batch_size=B)
    with open(tmp_path / "x.npy", "r+b") as file:
        file.seek(-8, os.SEEK_END)
        file.write(np.float32(0.5).tobytes())
    with pytest.raises(DataError, match=r"^x\[22, 2\] = 0.5"):
        validated(program(), np.load(tmp_path / "x.npy", mmap_mode="r"), batch_size=B)


def test_the_memory_of_a_pass_keeps_no_data_alive(tmp_path):
    import gc
    import weakref

    x = saved(tmp_path, counts())
    source = validated(program(), x, batch_size=B)
    dead = weakref.ref(source.table.x)
    del source, x
    gc.collect()
    assert dead() is None


def test_a_deleted_file_still_trains(tmp_path):
    x = saved(tmp_path, counts())
    (tmp_path / "x.npy").unlink()
    source = validated(program(), x, batch_size=B)
    assert len(torch.cat(epoch(source))) == N
    assert source.fingerprint()["x file bytes"] is None


# Memory.

CHILD = """
    import resource, threading
    import numpy as np, torch
    import pyrovae as pv
    torch.set_num_threads(1)

    def kilobytes(name):
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) for line in file if line.startswith(name))

    def build():
        return pv.build((784,), latent_dim=2, hidden=(16,), seed=0)

    x = np.memmap({path!r}, "f4", "r", shape=({rows}, 784))
    pv.fit(build(), np.zeros((2048, 784), "f4"), epochs=1, batch_size=1024, progress=False)
    resource.setrlimit(resource.RLIMIT_DATA, (kilobytes("VmData") * 1024 + {limit},) * 2)
    try:
        np.array(x)
        raise SystemExit("the limit does not bite")
    except MemoryError:
        pass
    start, peak, done = kilobytes("RssAnon"), [0], threading.Event()

    def watch():
        while not done.wait(0.02):
            peak[0] = max(peak[0], kilobytes("RssAnon"))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        history = pv.fit(build(), x, epochs={epochs}, batch_size=1024, progress=False)
    finally:
        done.set()
        thread.join()
    assert history.num_data == {rows}
    print((peak[0] - start) * 1024)
"""


def anonymous_growth(path, num_bytes, limit, epochs):
    """Return the peak anonymous memory of training on a file of zeros, in bytes."""
    rows = num_bytes // (784 * 4)
    with open(path, "wb") as file:
        file.truncate(rows * 784 * 4)
    code = textwrap.dedent(CHILD).format(path=str(path), rows=rows, limit=limit, epochs=epochs)
    settings = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=settings
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA counts maps on Linux only")
def test_a_file_larger_than_the_memory_limit_trains(tmp_path):
    """160 MiB of data under a limit of 128 MiB above the memory of the process."""
    assert anonymous_growth(tmp_path / "x", 5 * 2**25, limit=2**27, epochs=1) < 2**27


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA counts maps on Linux only")
def test_anonymous_memory_does_not_grow_with_the_file(tmp_path):
    """4 GiB take no more than 1 GiB does, within a quarter of the window.

    The least of three runs each: the allocator's peak differs by 15 MB from run to run.
    """
    settings = {"limit": 2**29, "epochs": 1}
    growth = [
        min(anonymous_growth(tmp_path / "x", n * 2**30, **settings) for _ in range(3))
        for n in (1, 4)
    ]
    assert max(growth) < 2**29
    assert growth[1] - growth[0] < tables.WINDOW_BYTES / 4


# Loaders and streams.


@pytest.mark.parametrize(
    "shape",
    [
        lambda x, y, mask: (x, y, mask),
        lambda x, y, mask: [x, y, mask],
        lambda x, y, mask: {"x": x, "y": y, "mask": mask},
        lambda x, y, mask: {"mask": mask, "x": x, "y": y},
    ],
)
@pytest.mark.parametrize("kind", [Rowwise, Stream])
def test_a_datum_is_a_tuple_a_list_or_a_dict(kind, shape):
    x = torch.tensor(counts())
    rows = [shape(row, i, row < 3) for i, row in enumerate(x)]
    for batch in validated(conditional(), kind(rows), batch_size=B).epoch(False):
        assert torch.equal(batch.x[:, -1].long(), batch.y)
        assert torch.equal(batch.mask, batch.x < 3)


@pytest.mark.parametrize("kind", [Rowwise, Stream])
def test_labels_of_a_dataset_are_left_out_where_no_part_sees_them(kind):
    x = torch.tensor(counts())
    rows = [(row, i % 3) for i, row in enumerate(x)]
    for batch in validated(program("Normal"), kind(rows), batch_size=B).epoch(False):
        assert batch.y is None


@pytest.mark.parametrize("case", ["tensor", "npy", "csr matrix"])
def test_covariates_that_no_part_sees_are_refused(case, tmp_path):
    """A mask in the position of y would be ignored silently."""
    x = CONTAINERS[case][0](tmp_path, counts())
    with pytest.raises(DataError, match=r"no part of this VAE sees covariates[\s\S]*mask="):
        validated(program("Normal"), x, counts() > 0, batch_size=B)


ROW = torch.ones(D)
BAD_ITEMS = {
    "no x": ({"y": ROW}, r"keys 'y'.*takes[\s\S]*'x'"),
    "another key": ({"x": ROW, "label": 1}, r"keys 'x', 'label'[\s\S]*Rename"),
    "four values": ((ROW, 1, ROW, 2), r"tuple of 4 values[\s\S]*Drop them"),
    "another shape": (torch.ones(3), r"\(3,\)[\s\S]*In batch 1 of the "),
}


@pytest.mark.parametrize("case", BAD_ITEMS)
@pytest.mark.parametrize("kind", [Rowwise, Stream])
def test_a_datum_of_another_kind_is_refused(kind, case):
    item, match = BAD_ITEMS[case]
    with pytest.raises(DataError, match=match):
        list(validated(program(), kind([item] * 6), batch_size=2).epoch(False))


@pytest.mark.parametrize(
    ("odd", "match"),
    [
        ((ROW, 0.5 * ROW), r"y of shape \(4,\) per datum.*first one had y \(\)"),
        ((ROW / 2, 1), r"^x\[0, 0\] = 0.5[\s\S]*In batch 3"),
        ((ROW * torch.nan, 1), r"^x\[0, 0\] = nan[\s\S]*In batch 3"),
        ((ROW * 1e30, 1), r"^x\[0, 0\] = 1e\+30.*overflows[\s\S]*In batch 3"),
    ],
)
def test_a_stream_is_checked_batch_by_batch_before_each_step(odd, match):
    rows = [(ROW, 1)] * 4 + [odd] * 2
    batches = validated(program(), Stream(rows), batch_size=2).epoch(False)
    assert [len(next(batches).x) for _ in range(2)] == [2, 2]
    with pytest.raises(DataError, match=match):
        next(batches)
    with pytest.raises(DataError, match=match):  # a Dataset is read through beforehand
        validated(program(), DataLoader(rows, 2), batch_size=2)


def test_the_values_of_later_batches_are_checked_without_running_the_program(monkeypatch):
    vae = program()
    source = validated(vae, Stream(counts()), batch_size=B)
    batches = source.epoch(False)
    next(batches)
    monkeypatch.setattr(vae, "model", lambda *args: pytest.fail("the program ran"))
    assert len(list(batches)) == 4


def test_a_part_that_mixes_data_up_is_found_in_a_loader():
    vae = pv.build((D,), latent_dim=2, hidden=(8,), likelihood="Normal")
    vae.decoder = torch.nn.Sequential(MeanOverData(), vae.decoder)
    with pytest.raises(ConfigError) as plain:
        validated(vae, counts())
    with pytest.raises(ConfigError) as caught:
        validated(vae, Rowwise(counts()), batch_size=B)
    assert str(caught.value).startswith(str(plain.value))


class MeanOverData(torch.nn.Module):
    """A layer in which each datum depends on the others."""

    def forward(self, z):
        return z.mean(0, keepdim=True)


@pytest.mark.parametrize("drop_last", [False, True])
def test_drop_last_counts_what_an_epoch_gives(drop_last):
    expected = 20 if drop_last else N
    for data in (torch.tensor(counts()), Stream(counts()), Sized(counts(), N)):
        source = validated(program(), DataLoader(data, B, drop_last=drop_last), batch_size=1)
        assert sum(len(batch.x) for batch in source.epoch(False)) == expected
        assert source.num_data == expected


def test_a_stream_has_a_number_of_data_after_its_first_epoch():
    stream = Stream(counts())
    source = validated(program(), stream, batch_size=B)
    assert (source.num_data, source.num_batches) == (None, None)
    list(source.epoch(False))
    assert (source.num_data, source.num_batches) == (N, 5)
    stream.x = counts(12)  # a stream may give other data each epoch
    list(source.epoch(False))
    assert (source.num_data, source.num_batches) == (12, 3)


LIARS = {
    "Dataset, too few": (lambda: Rowwise(counts(), N + 4), r"batch \d: IndexError: index 2\d"),
    "stream, too few": (lambda: Sized(counts(), N + 4), r"declares 27 data, but.*yielded 23"),
    "stream, too many": (lambda: Sized(counts(), N - 4), r"declares 19 data, but.*yielded 23"),
    "a share for each worker": (
        lambda: DataLoader(Sized(counts(), N), B, num_workers=2),
        r"declares 23 data, but.*yielded 46[\s\S]*worker",
    ),
    "nothing": (lambda: Stream([]), "N = 0"),
    "nothing, map-style": (lambda: Rowwise([]), "N = 0"),
    "all dropped": (
        lambda: DataLoader(torch.ones(3, D), 4, drop_last=True),
        r"N = 0[\s\S]*drop_last",
    ),
}


@pytest.mark.parametrize("case", LIARS)
def test_a_length_that_lies_is_an_error_at_the_end_of_the_first_epoch(case):
    make, match = LIARS[case]
    with pytest.raises(DataError, match=match):
        list(validated(program(), make(), batch_size=B).epoch(False))


def test_a_dataset_that_shrinks_is_an_error_at_the_end_of_that_epoch():
    data = Rowwise(counts())
    source = validated(program(), data, batch_size=B)
    data.length = 20
    with pytest.raises(DataError, match=r"declares 23 data, but an epoch yielded 20"):
        list(source.epoch(True))


def test_a_stream_that_can_be_read_once_is_an_error_in_the_second_epoch():
    class Once(IterableDataset):
        def __init__(self):
            self.rows = iter(counts())

        def __iter__(self):
            return self.rows

    source = validated(program(), Once(), batch_size=B)
    assert len(list(source.epoch(False))) == 5
    with pytest.raises(DataError, match=r"no batch[\s\S]*__iter__ must return a new iterator"):
        list(source.epoch(False))


@pytest.mark.parametrize("make", [iter, lambda x: (row for row in x), lambda x: map(len, x)])
def test_an_iterator_is_not_re_iterable(make):
    with pytest.raises(ConfigError, match="not re-iterable"):
        validated(program(), make(counts()), batch_size=B)


@pytest.mark.parametrize("make", [Stream, Rowwise, lambda x: DataLoader(Stream(x))])
def test_y_and_mask_come_with_each_datum(make):
    with pytest.raises(ConfigError, match="must come with each datum"):
        validated(program(), make(counts()), np.arange(N), batch_size=B)


class Failing(Dataset):
    """Fails, or dies, at its tenth datum."""

    def __init__(self, how):
        self.how = how

    def __len__(self):
        return N

    def __getitem__(self, index):
        if index == 10:
            self.how()
        return ROW


def tear():
    raise OSError("page 10 is torn")


def die():
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_failing_dataset_is_named_and_chained(workers):
    loader = DataLoader(Failing(tear), B, num_workers=workers, timeout=30 if workers else 0)
    with pytest.raises(DataError, match=r"batch 3: OSError: page 10 is torn") as caught:
        validated(program(), loader, batch_size=B)
    assert isinstance(caught.value.__cause__, OSError)
    assert len(str(caught.value).splitlines()) <= 6


def test_a_killed_worker_is_an_error_in_time(monkeypatch):
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.1)
    loader = DataLoader(Failing(die), B, num_workers=2, timeout=30)
    with pytest.raises(
        DataError, match=r"DataLoader worker .*(killed|exited)|Connection reset"
    ) as caught:
        validated(program(), loader, batch_size=B)
    assert isinstance(caught.value.__cause__, RuntimeError)
    del caught
    gc.collect()  # torch waits for the other worker now, not in the middle of another test


class Augmented(Dataset):
    """Each datum is a draw of NumPy's global generator in the worker."""

    def __len__(self):
        return 16

    def __getitem__(self, index):
        return np.random.random(D).astype("f4")  # noqa: NPY002  (what users write)


def test_workers_draw_distinct_streams_that_the_seed_fixes():
    loader = DataLoader(Augmented(), 4, num_workers=2)
    source = validated(program("Normal"), loader, batch_size=B)
    first = torch.cat(epoch(source))
    assert len(first.unique()) == first.numel()
    assert torch.equal(torch.cat(epoch(source)), first)
    assert not torch.equal(torch.cat(epoch(source, seed=2)), first)


class Drawing(Rowwise):
    """Rows with noise from the Dataset's own generator."""

    def __init__(self, x):
        super().__init__(x)
        self.generator = np.random.default_rng(0)

    def __getitem__(self, index):
        return super().__getitem__(index) + self.generator.random(D)


class OwnOrder(torch.utils.data.Sampler):
    def __iter__(self):
        return iter(np.random.default_rng().permutation(N).tolist())

    def __len__(self):
        return N


def rows_at(index):
    return lambda x: DataLoader(Rowwise(x), sampler=torch.utils.data.SubsetRandomSampler(index))


REPEATABLE = {
    "in order": (lambda x: DataLoader(Rowwise(x), B), True),
    "two workers": (lambda x: DataLoader(Rowwise(x), B, shuffle=True, num_workers=2), True),
    "subset": (rows_at([3, 1, 22]), True),
    "list as sampler": (lambda x: DataLoader(Rowwise(x), B, sampler=[2, 4, 9]), True),
    "no batching": (lambda x: DataLoader([x[:5], x[5:]], batch_size=None), True),
    "drawn by the Dataset": (lambda x: DataLoader(Drawing(x), B), False),
    "drawn in a worker": (lambda x: DataLoader(Drawing(x), B, num_workers=1), False),
    "drawn globally": (lambda x: DataLoader(Augmented(), B), False),
    "own order": (lambda x: DataLoader(Rowwise(x), B, sampler=OwnOrder()), False),
    "own batches": (lambda x: DataLoader(Rowwise(x), batch_sampler=[[0, 1], [2]]), False),
}


@pytest.mark.parametrize("case", REPEATABLE)
def test_only_a_loader_that_gives_the_same_again_is_known_by_its_numbers(case):
    make, is_repeatable = REPEATABLE[case]
    prints = []
    for x in (counts(), counts(), counts() + 1):
        with unchanged():
            with RandomStream(0):
                source = validated(program("Normal"), make(x), batch_size=B)
            prints.append(source.fingerprint()["x sha256"])
    if is_repeatable:
        assert prints[0] == prints[1] != prints[2]
    else:
        assert prints == [None] * 3


def test_a_dataset_may_tell_its_fingerprint():
    """As random binarization does, which draws anew each time."""
    prints = []
    for change in (0.0, 0.0, 0.1):
        gray = torch.full((4, D), 0.5)
        gray[2, 1] += change
        source = validated(program("Bernoulli"), pv.datasets.Sampled(gray), batch_size=B)
        prints.append(source.fingerprint())
    assert prints[0] == prints[1]
    assert {n for n in prints[0] if prints[0][n] != prints[2][n]} == {"gray sha256"}


@pytest.mark.parametrize("data", [Rowwise(counts()), Stream(counts())], ids=["map-style", "stream"])
def test_a_batch_that_is_none_is_no_end_of_the_data(data):
    """The rows after it would be dropped, and N would not count them."""

    def without_row_12(rows):
        kept = [torch.from_numpy(row) for row in rows if row[-1] != 12]
        return torch.stack(kept) if len(kept) == len(rows) else None

    loader = DataLoader(data, batch_size=B, collate_fn=without_row_12)
    with pytest.raises(DataError, match=r"batch 3 of the DataLoader is None.*\n.*collate_fn"):
        list(validated(program(), loader, batch_size=B).epoch(shuffle=False))
    with pytest.raises(DataError, match=r"batch 3 of the DataLoader is None"):
        list(StreamSource(loader, batch_size=B).epoch(shuffle=False, skip=3))


def test_fit_trains_on_a_stream_and_leaves_it_as_it_was_when_refused():
    vae = program()
    history = pv.fit(vae, Stream(counts()), epochs=2, batch_size=B, progress=False)
    assert history.num_data == N
    assert all(np.isfinite(history["elbo"]))
    with unchanged(vae), pytest.raises(DataError, match="In batch 1"):
        pv.fit(vae, Stream(counts() / 2), epochs=1, batch_size=N, progress=False)
