"""Faults of disks, processes and files: each must end in a typed error or an intact run.

A fault is made in a forked child, in which functions of `os` are replaced by wrappers that kill the
process, write part of the data, or fail at the n-th call. The package itself has no hooks for
faults. Children are forked from this process, with everything imported, so each costs milliseconds.
"""

import errno
import functools
import hashlib
import json
import math
import os
import pickle
import random
import re
import resource
import signal
import stat
import struct
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import pyrovae as pv
from pyrovae.errors import (
    CheckpointError,
    ConfigError,
    CorruptCheckpointError,
    RunLockedError,
    StateMismatchError,
    UnsafeFormatError,
)
from pyrovae.model_file import _Budget, load, save
from pyrovae.runtime.files import NO_SEAL, json_bytes, sealed, sha256
from pyrovae.runtime.random_stream import RandomStream
from pyrovae.runtime.run_folder import RunFolder, restore_stream
from pyrovae.runtime.state_tree import pack
from pyrovae.runtime.tensor_file import tensor_file

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="children are forked")


# The harness.


def in_child(function, *args):
    """Run in a forked child: ("killed", signal) or ("done", None) or ("failed", traceback)."""
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # 3.12 warns of fork with threads
        pid = os.fork()
    if pid == 0:
        try:
            function(*args)
            os._exit(0)
        except BaseException:
            REAL["write"](writer, traceback.format_exc()[-3000:].encode())
            os._exit(1)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        text = pipe.read()
    status = os.waitpid(pid, 0)[1]
    if os.WIFSIGNALED(status):
        return "killed", os.WTERMSIG(status)
    return ("failed", text) if os.WEXITSTATUS(status) else ("done", None)


CALLS = ("open", "mkdir", "ftruncate", "write", "fsync", "replace", "rename", "unlink", "rmdir")
REAL = {name: getattr(os, name) for name in CALLS}
PARTS = (1, 0.5)  # of a write: one byte, or half; none and all are the neighboring points


class Calls:
    """Counts the calls of `os`, and calls `fault(name, args)` at the n-th."""

    def __init__(self, at=math.inf, fault=None, names=CALLS, until=None):
        self.at, self.fault, self.names, self.seen = at, fault, names, []
        self.until = at if until is None else until

    def __enter__(self):
        for name in self.names:
            setattr(os, name, functools.partial(self.call, name))
        return self

    def __exit__(self, *exception):
        for name in self.names:
            setattr(os, name, REAL[name])

    def call(self, name, *args, **kwargs):
        self.seen.append(name)
        if self.at <= len(self.seen) <= self.until:
            self.fault(name, args)
        return REAL[name](*args, **kwargs)


def kill(part, name, args):
    if part and name == "write":
        fd, data = args
        REAL["write"](fd, data[: 1 if part == 1 else len(data) // 2])
    os.kill(os.getpid(), signal.SIGKILL)


def fail(code, name, args):
    raise OSError(code, os.strerror(code))


def points(seen):
    """(n, part) of each place to kill at: before every call, and inside every write."""
    for n, name in enumerate(seen, 1):
        yield n, None
        if name == "write":
            yield from ((n, part) for part in PARTS)


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def leftovers(folder):
    return [p for p in folder.rglob("*") if p.name.endswith(".tmp")]


# A run with everything that a real one must restore.


def vae_of(seed):
    return pv.build((4,), latent_dim=1, hidden=(3,), seed=seed)


def train(folder, num_steps=6):
    """Train to the end, from the newest step in the folder if any; return the final hash."""
    vae, stream = vae_of(0), RandomStream(0)
    optimizer = torch.optim.Adam(vae.parameters(), 0.01, fused=True)
    step, losses, order = 0, [], torch.arange(6)
    with RunFolder(folder, resume=True) as run:
        if newest := run.newest_complete():
            step, state = newest.step, newest.state
            losses, order = state["losses"], state["order"]
            vae.load_state_dict(state["vae"])
            optimizer.load_state_dict(state["optimizer"])
            restore_stream(stream, state["stream"])
        while step < num_steps:
            with stream:
                if step % 3 == 0:
                    order = torch.randperm(6)
                loss = vae.loss(DATA[order[2 * (step % 3) :][:2]]).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            losses.append(loss.item())
            state = {
                "vae": vae.state_dict(),
                "optimizer": optimizer.state_dict(),
                "stream": stream.state,
                "losses": losses,
                "order": order,
            }
            if step % 2 == 0:
                run.save_step(step, state)
    tensors, plain = pack(state)
    return hashlib.sha256(tensor_file(tensors, {}) + json_bytes(plain)).hexdigest()


DATA = torch.randint(2, (6, 4), generator=torch.Generator().manual_seed(0)).float()


@functools.cache
def run_calls():
    """Return the calls of an undisturbed run, and its final hash."""
    with tempfile.TemporaryDirectory() as folder:
        h_full = train(Path(folder) / "warm")  # the first run imports modules
        with Calls() as calls:
            assert train(Path(folder) / "run") == h_full
    return calls.seen, h_full


def kill_and_resume(folder, at, part):
    def child():
        with Calls(at, functools.partial(kill, part)):
            train(folder)

    assert in_child(child) == ("killed", signal.SIGKILL)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # half a step is not a damaged one
        assert train(folder) == run_calls()[1]
    assert not leftovers(folder)
    assert len(list(folder.glob("step-*"))) >= 2


@pytest.mark.parametrize("share", [0, 1])
def test_a_run_killed_while_saving_a_step_ends_like_an_undisturbed_one(share, tmp_path):
    """At half of the points of the sweep below."""
    for at, part in list(points(run_calls()[0]))[share::4]:
        kill_and_resume(tmp_path / f"run {at} {part}", at, part)


@pytest.mark.slow
def test_killed_at_every_point(tmp_path):
    seen = run_calls()[0]
    assert {"mkdir", "open", "write", "fsync", "rename", "unlink", "rmdir"} <= set(seen)
    places = list(points(seen))
    for at, part in places:
        kill_and_resume(tmp_path / f"run {at} {part}", at, part)
    print(f"\nkilled and resumed at {len(places)} points of {len(seen)} system calls")


@pytest.mark.slow
def test_killed_again_while_resuming(tmp_path):
    for number, (at, part) in enumerate(points(run_calls()[0])):
        folder = tmp_path / str(number)
        for again in (at, 1 + number % 20):

            def child(again=again, folder=folder, part=part):
                with Calls(again, functools.partial(kill, part)):
                    train(folder)

            in_child(child)
        assert train(folder) == run_calls()[1]


def same_weights(a, b):
    a, b = a.state_dict(), b.state_dict()
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


def test_killed_while_saving_a_model_leaves_the_old_or_the_new_one(tmp_path):
    old, new, path = vae_of(0), vae_of(1), tmp_path / "vae"
    save(old, path)
    with Calls() as calls:
        save(old, path)
    for at, part in points(calls.seen):
        save(old, path)

        def child(at=at, part=part):
            with Calls(at, functools.partial(kill, part)):
                save(new, path)

        assert in_child(child) == ("killed", signal.SIGKILL)
        found = load(path)
        assert same_weights(found, old) or same_weights(found, new)
        save(new, path)  # takes over what the killed process left
        assert same_weights(load(path), new)
        assert [p.name for p in tmp_path.iterdir()] == ["vae"]


def test_files_are_synced_before_the_rename_and_folders_after_it(tmp_path):
    """A kill keeps what the kernel holds; only a power cut would show a missing fsync."""
    with Calls() as calls:
        save(vae_of(0), tmp_path / "vae")
    assert calls.seen == ["open", "ftruncate", "write", "fsync", "replace", "open", "fsync"]
    with RunFolder(tmp_path / "run") as run, Calls() as calls:
        run.save_step(1, {})
    assert calls.seen == [
        "mkdir",
        *("open", "write", "fsync") * 3,
        *("open", "fsync", "rename", "open", "fsync"),
    ]


# A full disk.

ERRORS = {"ENOSPC": errno.ENOSPC, "EDQUOT": errno.EDQUOT, "EIO": errno.EIO}


@pytest.mark.parametrize("lasting", [True, False])
@pytest.mark.parametrize("code", ERRORS)
def test_a_step_that_cannot_be_written_leaves_the_earlier_ones(code, lasting, tmp_path):
    with RunFolder(tmp_path / "probe") as run:
        for step in (1, 2, 3):
            with Calls() as calls:
                run.save_step(step, {"w": torch.ones(9)})
    # a full disk still allows removal; a single failure may hit any call before the step exists
    names = (
        ("mkdir", "write", "fsync") if lasting else ("mkdir", "open", "write", "fsync", "rename")
    )
    num_calls = sum(name in names for name in calls.seen[: calls.seen.index("rename") + 1])
    for at in range(1, num_calls + 1):
        folder = tmp_path / f"run {at}"
        with RunFolder(folder) as run:
            for step in (1, 2):
                run.save_step(step, {"w": torch.full((9,), float(step))})
            before = contents(folder)
            fault = functools.partial(fail, ERRORS[code])
            with Calls(at, fault, names, until=math.inf if lasting else None):
                with pytest.raises(CheckpointError, match=r"step-00000003.* bytes needed, ") as e:
                    run.save_step(3, {"w": torch.full((9,), 3.0)})
            assert os.strerror(ERRORS[code]) in str(e.value)
            assert len(str(e.value).splitlines()) <= 6
            assert contents(folder) == before
            assert run.newest_complete().step == 2
            run.save_step(3, {"w": torch.full((9,), 3.0)})  # space was freed
            assert run.newest_complete().state["w"].tolist() == [3.0] * 9
        assert not leftovers(folder)


@pytest.mark.parametrize("code", ERRORS)
def test_a_model_that_cannot_be_written_leaves_the_earlier_one(code, tmp_path):
    old, new, path = vae_of(0), vae_of(1), tmp_path / "vae"
    with Calls() as calls:
        save(old, path)
    before = path.read_bytes()
    for at in range(1, calls.seen.index("replace") + 2):
        with Calls(at, functools.partial(fail, ERRORS[code])):
            with pytest.raises(CheckpointError, match=r"vae could not be written"):
                save(new, path)
        assert path.read_bytes() == before
        assert [p.name for p in tmp_path.iterdir()] == ["vae"]
    assert torch.isfinite(new.loss(DATA)).all()
    save(new, path)
    assert same_weights(load(path), new)


def test_a_limit_on_the_size_of_files(tmp_path):
    """EFBIG from the kernel itself, in the middle of a write."""
    path = tmp_path / "vae"
    save(vae_of(0), path)
    before = path.read_bytes()

    def child():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        with pytest.raises(CheckpointError, match="too large"):
            save(vae_of(1), path)
        with RunFolder(tmp_path / "run") as run, pytest.raises(CheckpointError, match="too large"):
            run.save_step(1, {"w": torch.ones(1000)})
        assert [p.name for p in (tmp_path / "run").iterdir()] == ["lock"]

    assert in_child(child) == ("done", None)
    assert path.read_bytes() == before
    assert not leftovers(tmp_path)


# Truncation and bit flips.


def run_of_two(folder):
    with RunFolder(folder) as run:
        for step in (1, 2):
            newest = run.save_step(step, {"w": torch.full((50,), float(step)), "step": step})
    return newest


@pytest.mark.parametrize("file", ["tensors.safetensors", "state.json", "manifest.json"])
def test_a_cut_file_makes_the_run_fall_back_with_one_warning(file, tmp_path):
    newest = run_of_two(tmp_path)
    whole = (newest / file).read_bytes()
    for share in range(50):
        (newest / file).write_bytes(whole[: len(whole) * share // 50])
        with RunFolder(tmp_path, resume=True) as run, warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            found = run.newest_complete()
        assert (found.step, found.state["step"]) == (1, 1)
        assert len(said) == 1
        assert f"step-00000002/{file}" in str(said[0].message)
        assert "Using" in str(said[0].message)
    (newest / file).unlink()
    with RunFolder(tmp_path, resume=True) as run, pytest.warns(UserWarning, match="Using") as said:
        assert run.newest_complete().step == 1
    assert said[0].filename == __file__


def test_a_cut_model_is_refused(tmp_path):
    whole = save(vae_of(0), tmp_path / "vae").read_bytes()
    other = vae_of(1)
    for share in range(50):
        (tmp_path / "cut").write_bytes(whole[: len(whole) * share // 50])
        for into in (None, other):
            with pytest.raises(CorruptCheckpointError, match="cut") as caught:
                load(tmp_path / "cut", into=into)
            assert caught.value.path == tmp_path / "cut"
            assert caught.value.expected != caught.value.got
    assert same_weights(other, vae_of(1))


def test_a_run_whose_steps_are_all_damaged_does_not_start_over(tmp_path):
    run_of_two(tmp_path)
    for path in tmp_path.glob("step-*/state.json"):
        path.write_bytes(b"")
    with (
        RunFolder(tmp_path, resume=True) as run,
        pytest.raises(CorruptCheckpointError, match="00002"),
    ):
        run.newest_complete()


def test_a_damaged_step_does_not_count_among_the_two_that_are_kept(tmp_path):
    newest = run_of_two(tmp_path)
    (newest / "state.json").write_bytes(b"")
    with RunFolder(tmp_path, resume=True) as run:
        run.save_step(3, {})
        assert sorted(p.name for p in tmp_path.glob("step-*")) == ["step-00000001", "step-00000003"]


UNREADABLE = {
    "bytes": lambda: {"text": "x" * 2**22},
    "brackets": lambda: [[]] * 100_001,
    "names of tensors": lambda: {f"{i:0900}": torch.zeros(()) for i in range(4500)},
    "many tensors": lambda: [[torch.zeros(())] for _ in range(35_000)],
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_states_that_could_not_be_read_again_are_not_written(name, tmp_path):
    """Otherwise the earlier steps would be removed."""
    run_of_two(tmp_path)
    before = contents(tmp_path)
    with RunFolder(tmp_path, resume=True) as run:
        with pytest.raises(ConfigError, match=r"could not be loaded again.\nNothing was written"):
            run.save_step(3, UNREADABLE[name]())
        assert run.newest_complete().step == 2
    after = contents(tmp_path)
    assert {f: c for f, c in after.items() if f.name != "lock"} == {
        f: c for f, c in before.items() if f.name != "lock"
    }


def flipped(data, bit):
    data = bytearray(data)
    data[bit // 8] ^= 1 << bit % 8
    return bytes(data)


def flip_bits(folder, count):
    newest = run_of_two(folder / "run")
    model = save(vae_of(0), folder / "vae")
    files = [model, *(newest / n for n in ("tensors.safetensors", "state.json", "manifest.json"))]
    other, choice = vae_of(1), random.Random(0)
    for number in range(count):
        path = files[number % len(files)]
        whole = path.read_bytes()
        path.write_bytes(flipped(whole, choice.randrange(8 * len(whole))))
        if path is model:
            with pytest.raises(CheckpointError):
                load(path, into=other)
        else:
            with RunFolder(folder / "run", resume=True) as run:
                with pytest.warns(UserWarning, match="Using"):
                    assert run.newest_complete().step == 1
        path.write_bytes(whole)
    assert same_weights(other, vae_of(1))


def test_flipped_bits_are_detected(tmp_path):
    flip_bits(tmp_path, 100)


@pytest.mark.slow
def test_500_flipped_bits_are_detected(tmp_path):
    flip_bits(tmp_path, 500)


@pytest.mark.slow
def test_every_flipped_bit_of_a_file_is_detected(tmp_path):
    path = save(nn.Linear(1, 1), tmp_path / "m")
    whole, other = path.read_bytes(), nn.Linear(1, 1)
    for bit in range(8 * len(whole)):
        path.write_bytes(flipped(whole, bit))
        with pytest.raises(CheckpointError):
            load(path, into=other)
    print(f"\n{8 * len(whole):,} files of one flipped bit were refused")


# Hostile files.


def forged(header, data=b"", about=None, spec="none"):
    """Return a tensor file with a valid seal, regardless of its content."""
    about = {
        "seal": NO_SEAL,
        "format": 1,
        "kind": "model",
        "aliases": {},
        "frozen": [],
        "parts": {},
        "spec": None if spec == "none" else spec,
        "data_spec": {},
    } | (about or {})
    if isinstance(header, dict):
        header = json_bytes({"__metadata__": {"pyrovae": json.dumps(about)}, **header})
    file = struct.pack("<Q", len(header)) + header + data
    return sealed(file) if NO_SEAL.encode() in file else file


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def unsealed(file):
    return re.sub(rb"[0-9a-f]{64}", NO_SEAL.encode(), file)


EIGHT = struct.pack("<ff", 1.0, 2.0)
DEEP = b'{"a":' + b"[" * 10**6 + b"]" * 10**6 + b"}"
HOSTILE = {
    "header of 2^63": struct.pack("<Q", 2**63) + b"{}",
    "header of 2^64 - 1": struct.pack("<Q", 2**64 - 1) + b'{"a":1}',
    "header longer than the file": struct.pack("<Q", 10**6) + b"{}",
    "deep JSON": forged(DEEP),
    "deep JSON within the limits": forged(b'{"a":' + b"[" * 50_000 + b"]" * 50_000 + b"}"),
    "3 MB of empty dicts": forged(b'{"a":[' + b"{}," * 10**6 + b"{}]}"),
    "50 MB of JSON": forged(b'{"a":"' + b"x" * 50_000_000 + b'"}'),
    "a number of 10^6 digits": forged(b'{"a":' + b"9" * 10**6 + b"}"),
    "no UTF-8": forged(b'{"\xff\xfe":1}'),
    "overlapping offsets": forged({"a": entry(), "b": entry(offsets=(4, 12))}, EIGHT + EIGHT),
    "gap": forged({"a": entry(), "b": entry(offsets=(12, 20))}, EIGHT * 3),
    "same offsets": forged({"a": entry(), "b": entry()}, EIGHT),
    "trailing bytes": forged({"a": entry()}, EIGHT + EIGHT),
    "negative offsets": forged({"a": entry(offsets=(-8, 0))}, EIGHT),
    "offsets of floats": forged({"a": entry(offsets=(0.0, 8.0))}, EIGHT),
    "shape of booleans": forged({"a": entry(shape=(True, 2))}, EIGHT),
    "shape of a text": forged({"a": {**entry(), "shape": "22"}}, EIGHT),
    "negative shape": forged({"a": entry(shape=(-1, -2))}, EIGHT),
    "declared 1 TB": forged({"a": entry("F64", (2**37,), (0, 2**40))}, EIGHT),
    "declared 2^70": forged({"a": entry("F64", (2**40, 2**30), (0, 2**73))}, EIGHT),
    "65 dimensions": forged({"a": entry(shape=[1] * 64 + [2])}, EIGHT),
    "unknown dtype": forged({"a": entry("F128")}, EIGHT),
    "dtype is a list": forged({"a": entry([])}, EIGHT),
    "entry is a list": forged({"a": [1, 2, 3]}, EIGHT),
    "one field more": forged({"a": {**entry(), "file": "/etc/passwd"}}, EIGHT),
    "duplicate keys": forged(
        unsealed(forged({"w": entry()}, EIGHT))[8:-8].replace(b'{"__meta', b'{"w":{},"__meta', 1),
        EIGHT,
    ),
    "duplicate keys, both valid": forged(
        unsealed(forged({"w": entry()}, EIGHT))[8:-8].replace(
            b'{"__meta', b'{"w":' + json_bytes(entry()) + b',"__meta', 1
        ),
        EIGHT,
    ),
    "10,000 tensors": forged({str(i): entry(shape=(0,), offsets=(0, 0)) for i in range(10_000)}),
    "metadata is a text": forged(json_bytes({"__metadata__": "pyrovae", "w": entry()}), EIGHT),
    "description is no JSON": forged({"w": entry()}, EIGHT).replace(b"format", b"f\\rmat", 1),
    "NaN weights": forged({"w": entry()}, struct.pack("<ff", math.nan, 1.0)),
    "extra key": forged({"w": entry(), "v": entry(offsets=(8, 16))}, EIGHT + EIGHT),
    "missing key": forged({}),
    "wrong shape": forged({"w": entry(shape=(1, 2))}, EIGHT),
    "wrong dtype": forged({"w": entry("I32")}, EIGHT),
    "aliases is a list": forged({"w": entry()}, EIGHT, {"aliases": []}),
    "alias of nothing": forged({"w": entry()}, EIGHT, {"aliases": {"x": "y"}}),
    "alias of a list": forged({"w": entry()}, EIGHT, {"aliases": {"w": ["w"]}}),
    "frozen is a text": forged({"w": entry()}, EIGHT, {"frozen": "w"}),
    "parts is a list": forged({"w": entry()}, EIGHT, {"parts": []}),
    "no format": forged({"w": entry()}, EIGHT, {"format": None}),
    "format is true": forged({"w": entry()}, EIGHT, {"format": True}),
    "a step of a run": forged({"w": entry()}, EIGHT, {"kind": "step"}),
    "wrong data hash": forged({"w": entry()}, EIGHT)[:-8] + b"\0" * 8,
    "no seal": forged(json_bytes({"__metadata__": {"pyrovae": "{}"}, "w": entry()}), EIGHT),
    "zip bomb": b"PK\x03\x04" + b"\0" * 10**6,
    "gzip": b"\x1f\x8b\x08" + b"\0" * 100,
    "empty": b"",
    "one byte": b"\x08",
    "text": b"root:x:0:0:root:/root:/bin/bash\n" * 9,
}
SPEC = {"event_shape": [4], "latent_dim": 1, "hidden": [3]}
BOMBS = {
    "10^12 latents": SPEC | {"latent_dim": 10**12},
    "10^9 latents": SPEC | {"latent_dim": 10**9},
    "2^200 latents": SPEC | {"latent_dim": 2**200},
    "wide": SPEC | {"hidden": [10**5, 10**5]},
    "large images": SPEC | {"event_shape": [10**5, 10**5]},
    "100,000 layers": SPEC | {"hidden": [1] * 90_000},
    "a layer of many": SPEC | {"hidden": [2, 2, 10**9]},
    "many components": SPEC | {"prior": {"name": "GaussianMixture", "num_components": 10**9}},
    "many categories": SPEC | {"likelihood": {"name": "Categorical", "num_categories": 10**9}},
    "full covariance": SPEC | {"latent_dim": 20_000, "guide": "FullNormal"},
    "convolutions": SPEC | {"event_shape": [1, 8, 8], "network": "conv", "hidden": [10**6, 10**6]},
    "no shape": {"latent_dim": 2},
    "shape of texts": SPEC | {"event_shape": ["4"]},
    "hidden is null": SPEC | {"hidden": None},
    "option that is none": SPEC | {"prior": {"name": "StandardNormal", "loc": 3}},
    "event_shape as option": SPEC | {"likelihood": {"name": "Bernoulli", "event_shape": 10**9}},
    "a fixed prior": SPEC | {"prior": {"name": "Fixed", "constructor": "os.system"}},
    "a VampPrior without data": SPEC | {"prior": "VampPrior"},
    "a VampPrior of texts": SPEC | {"prior": {"name": "VampPrior", "encoder": "x"}},
    "a scale of texts": SPEC | {"likelihood": {"name": "Normal", "scale": ["x"] * 4}},
    "many levels": SPEC | {"likelihood": {"name": "DiscretizedLogistic", "num_levels": 10**9}},
    "a total of 10^18": SPEC | {"likelihood": {"name": "Multinomial", "total": 10**18}},
    "10^9 latents of two categories": SPEC
    | {"latent_dim": 10**9, "guide": {"name": "Categorical", "num_categories": 2}},
    "a rank of 10^9": SPEC | {"guide": {"name": "LowRankNormal", "rank": 10**9}},
    "a full prior": SPEC | {"latent_dim": 10**5, "prior": {"name": "LearnedNormal", "full": True}},
}
BOMBS |= {
    f"a {flow} flow as the {kind}, of {size:,}": SPEC
    | {"latent_dim": size, kind: {"name": name, "flow": flow}}
    for kind, name in (("prior", "FlowPrior"), ("guide", "FlowGuide"))
    for size in (500, 5_000, 10**9)
    for flow in ("coupling", "autoregressive", "spline")
}
BOMBS |= {
    "a context of 10^9": SPEC | {"guide": {"name": "FlowGuide", "num_context": 10**9}},
}
HOSTILE |= {name: forged({"w": entry()}, EIGHT, spec=spec) for name, spec in BOMBS.items()}
HOSTILE |= {
    f"pseudo-inputs {name}": forged(
        {"w": entry()},
        EIGHT,
        {"data_spec": {"prior": {"pseudo_inputs": facts}}},
        spec=SPEC | {"prior": "VampPrior"},
    )
    for name, facts in {
        "huge": {"shape": [10**6, 10**6], "range": [0, 1]},
        "text": {"shape": "ab", "range": [0, 1]},
        "nan": {"shape": [5, 4], "range": [math.nan, 1]},
        "list": [1, 2],
        "of other shape": {"shape": [5, 3], "range": [0, 1]},
        "without range": {"shape": [5, 4]},
    }.items()
}
HOSTILE |= {
    f"pseudo-inputs: data_spec is {name}": forged(
        {"w": entry()}, EIGHT, {"data_spec": data_spec}, spec=SPEC
    )
    for name, data_spec in {
        "missing": None,
        "a list": [1],
        "of no part": {"os.system": {"x": {"shape": [1], "range": [0, 1]}}},
        "of the width": {"latent_dim": {"x": {"shape": [1], "range": [0, 1]}}},
    }.items()
}


def memory(key):
    text = Path("/proc/self/status").read_text()
    return int(text.split(key + ":")[1].split()[0]) // 1024  # MiB


GROUPS = [list(HOSTILE)[first : first + 8] for first in range(0, len(HOSTILE), 8)]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
@pytest.mark.parametrize("names", GROUPS, ids=", ".join)
def test_a_hostile_file_raises_a_typed_error_quickly_and_with_little_memory(names, tmp_path):
    """Eight of them, one after another, in each child."""
    path = tmp_path / "hostile.safetensors"

    def child():
        for name in names:
            try:
                path.write_bytes(HOSTILE[name])
                refuse(name)
            except BaseException as error:
                error.add_note(f"hostile file: {name}")
                raise

    def refuse(name):
        into = nn.Module()
        into.w = nn.Parameter(torch.zeros(2))
        for target in (None, into):
            if target is not None and name in (*BOMBS, *(n for n in HOSTILE if "pseudo" in n)):
                continue  # `into` is filled; the specification is not used
            Path("/proc/self/clear_refs").write_text("5")  # VmHWM becomes VmRSS
            start, before = time.perf_counter(), memory("VmRSS")
            with pytest.raises(CheckpointError) as caught:
                load(path, into=target)
            assert time.perf_counter() - start < 2
            assert memory("VmHWM") - before < 50
            assert len(str(caught.value)) < 800
            assert len(str(caught.value).splitlines()) <= 6
            assert torch.is_grad_enabled()
            assert torch.equal(torch.get_rng_state(), random_state)
        assert into.w.tolist() == [0.0, 0.0]

    random_state = torch.get_rng_state()
    assert in_child(child) == ("done", None)
    assert [p.name for p in tmp_path.iterdir()] == ["hostile.safetensors"]


def test_the_forger_can_write_valid_files(tmp_path):
    """Otherwise every hostile file would be refused for its seal alone."""
    path = tmp_path / "m"
    path.write_bytes(forged({"w": entry()}, EIGHT))
    into = nn.Module()
    into.w = nn.Parameter(torch.zeros(2))
    assert load(path, into=into).w.tolist() == [1.0, 2.0]


@pytest.mark.parametrize("size", [1, 11])
def test_a_refused_specification_leaves_the_process_as_it_was(size):
    """`no_grad` restores the mode by an operation, which must not be refused too."""

    def work():
        with _Budget(10, 5), torch.no_grad():
            for _ in range(10):
                torch.zeros(size)

    with pytest.raises(CorruptCheckpointError, match="far larger"):
        work()
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("kind", ["symlink", "hardlink", "folder", "fifo", "device"])
def test_links_folders_and_devices_in_a_run_are_not_read(kind, tmp_path):
    newest, secret = run_of_two(tmp_path / "run"), tmp_path / "secret"
    secret.write_text("root:x:0:0")
    for file in ("tensors.safetensors", "state.json", "manifest.json"):
        path = newest / file
        whole = path.read_bytes()
        path.unlink()
        if kind == "symlink":
            (tmp_path / "copy").write_bytes(whole)
            path.symlink_to(tmp_path / "copy")  # even with the right content
        elif kind == "hardlink":
            path.hardlink_to(secret)
        elif kind == "folder":
            path.mkdir()
        elif kind == "fifo":
            os.mkfifo(path)
        else:
            path.symlink_to("/dev/zero")
        with RunFolder(tmp_path / "run", resume=True) as run:
            with pytest.warns(UserWarning, match="Using") as said:
                assert run.newest_complete().step == 1
        assert "root:x" not in str(said[0].message)
        path.rmdir() if kind == "folder" else path.unlink()
        path.write_bytes(whole)
    assert secret.read_text() == "root:x:0:0"


def test_links_in_the_place_of_files_are_not_written_through(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("root:x:0:0")
    for link in ("symlink_to", "hardlink_to"):
        run = tmp_path / link
        run.mkdir()
        getattr(run / "lock", link)(secret)
        with pytest.raises(CheckpointError):
            RunFolder(run).__enter__()
        getattr(run / ".vae.tmp", link)(secret)
        with pytest.raises(CheckpointError):
            save(vae_of(0), run / "vae")
        getattr(run / "model", link)(secret)
        save(vae_of(0), run / "model")  # replaces the link
        assert stat.S_ISREG(os.lstat(run / "model").st_mode)
    assert secret.read_text() == "root:x:0:0"


def test_linked_folders_are_not_steps_and_their_targets_are_kept(tmp_path):
    outside = run_of_two(tmp_path / "other").parent
    run = tmp_path / "run"
    run.mkdir()
    (run / "step-00000009").symlink_to(outside / "step-00000002")
    (run / "step-00000008.tmp").symlink_to(outside / "step-00000002")
    with RunFolder(run) as folder:
        assert folder.newest_complete() is None
        for step in (1, 2, 3):
            folder.save_step(step, {})
    assert contents(outside / "step-00000002")


MANIFESTS = {
    "names ../x": {"files": {"../x": {}, "state.json": {}}},
    "names one more": {"files": {"tensors.safetensors": {}, "state.json": {}, "x": {}}},
    "names none": {"files": {}},
    "files is a list": {"files": ["state.json"]},
    "entry is a text": {"files": {"tensors.safetensors": "x", "state.json": "x"}},
    "step is a text": {"step": "2"},
    "no format": {"format": None},
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_hostile_manifest(name, tmp_path):
    newest = run_of_two(tmp_path)
    manifest = json.loads((newest / "manifest.json").read_text())
    manifest |= MANIFESTS[name] | {"seal": NO_SEAL}
    (newest / "manifest.json").write_bytes(sealed(json_bytes(manifest)))
    with RunFolder(tmp_path, resume=True) as run, pytest.warns(UserWarning, match="Using"):
        assert run.newest_complete().step == 1


@pytest.mark.parametrize(
    "state",
    [b"{}", b"[" * 10**5, b'{"tensor":"../x"}', b'{"dict":{"a":{"tensor":1}}}', b"nul", b""],
)
def test_a_hostile_state_with_the_right_hash(state, tmp_path):
    newest = run_of_two(tmp_path)
    (newest / "state.json").write_bytes(state)
    manifest = json.loads((newest / "manifest.json").read_text())
    manifest["files"]["state.json"] = {"bytes": len(state), "sha256": sha256(state)}
    manifest["seal"] = NO_SEAL
    (newest / "manifest.json").write_bytes(sealed(json_bytes(manifest)))
    with RunFolder(tmp_path, resume=True) as run, pytest.warns(UserWarning, match="Using"):
        assert run.newest_complete().step == 1


# Code in files.


class Evil:
    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


def pickles(folder, canary):
    """Return file name → bytes of files that run code when they are unpickled."""
    files = {f"protocol {n}.pkl": pickle.dumps(Evil(canary), n) for n in range(6)}
    torch.save({"w": torch.ones(2), "x": Evil(canary)}, folder / "model.pt")
    files["model.pt"] = (folder / "model.pt").read_bytes()
    np.save(folder / "x.npy", np.array([Evil(canary)], dtype=object), allow_pickle=True)
    files["x.npy"] = (folder / "x.npy").read_bytes()
    files |= {f"{Path(n).stem}.safetensors": data for n, data in list(files.items())}
    text = pickle.dumps(Evil(canary), 0).decode()
    for name, spec in {
        "as the prior": SPEC | {"prior": text},
        "as a name": SPEC | {"prior": {"name": text}},
        "as a key": SPEC | {text: 1},
        "as the specification": text,
    }.items():
        files[f"{name}.json.safetensors"] = forged({"w": entry()}, EIGHT, spec=spec)
    return files


FORBIDDEN = ("pickle.", "os.system", "os.exec", "os.posix_spawn", "subprocess.", "exec", "compile")


def test_a_pickle_is_refused_unread_under_any_name(tmp_path):
    canary = tmp_path / "canary"
    files = pickles(tmp_path, canary)
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(UnsafeFormatError):  # triggers lazy imports
        load(tmp_path / "model.pt")
    into = vae_of(0)

    def child():
        seen = []
        sys.addaudithook(
            lambda event, args: (
                seen.append(event) if event.startswith((*FORBIDDEN, "socket.")) else None
            )
        )
        for name in files:
            for target in (None,) if "json" in name else (None, into):
                with pytest.raises(UnsafeFormatError) as caught:
                    load(tmp_path / name, into=target)
                assert len(str(caught.value)) < 800
        assert not seen, seen

    assert in_child(child) == ("done", None)
    assert not canary.exists()
    pickle.loads(files["protocol 2.pkl"])
    assert canary.exists()  # the files do run code


def test_loading_a_valid_file_runs_no_code_either(tmp_path):
    path = save(vae_of(0), tmp_path / "vae")
    load(path)

    def child():
        seen = []
        sys.addaudithook(lambda event, args: seen.append(event))
        load(path)
        assert not [e for e in seen if e.startswith((*FORBIDDEN, "socket."))], seen
        assert "import" not in seen

    assert in_child(child) == ("done", None)


@pytest.mark.parametrize(
    "change",
    [
        {"encoder": "os.system"},
        {"prior": "os.system"},
        {"prior": "priors.StandardNormal"},
        {"prior": "__class__"},
        {"prior": {"name": "os.system", "command": "touch canary"}},
        {"guide": ["os", "system"]},
        {"likelihood": {"name": {"name": "Bernoulli"}}},
        {"likelihood": {}},
        {"network": "os.system"},
        {"network": None},
        {"data": [[1.0]]},
        {"seed": 1},
        {"__class__": "x"},
    ],
)
def test_names_that_are_not_parts_of_pyrovae_are_refused(change, tmp_path):
    path = tmp_path / "m"
    path.write_bytes(forged({"w": entry()}, EIGHT, spec=SPEC | change))
    with pytest.raises(UnsafeFormatError, match="is not a part of pyrovae; nothing"):
        load(path)


@pytest.mark.parametrize("flow", ["os.system", "pyrovae.densities.flows.coupling", ["a"], 3])
def test_an_option_that_should_be_a_function_stays_a_value(flow, tmp_path):
    path = tmp_path / "m"
    prior = {"name": "FlowPrior", "flow": flow}
    path.write_bytes(forged({"w": entry()}, EIGHT, spec=SPEC | {"prior": prior}))
    with pytest.raises(StateMismatchError, match="builds no model"):
        load(path)


# Places that cannot be written to.


def test_paths_that_cannot_be_written_to_are_refused_at_once(tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    for bad in (file, file / "run", Path("/proc/run")):
        with pytest.raises(CheckpointError, match="could not be written"):
            RunFolder(bad).__enter__()
    for bad in (tmp_path, file / "vae", tmp_path / "missing" / "vae"):
        with pytest.raises(CheckpointError, match="could not be written") as caught:
            save(vae_of(0), bad)
        assert str(bad) in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert file.read_text() == "mine"


def test_a_read_only_folder():
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "a b  c", "  run 1")  # spaces are fine
        folder.mkdir(parents=True)
        save(vae_of(0), folder / "my vae")
        os.chmod(name, 0o755)
        folder.chmod(0o555)

        def child():
            if os.getuid() == 0:
                os.setuid(65534)  # root may write anywhere
            for bad in (folder, folder / "run"):
                with pytest.raises(CheckpointError, match="Permission denied"):
                    RunFolder(bad).__enter__()
            with pytest.raises(CheckpointError, match="Permission denied"):
                save(vae_of(1), folder / "my vae")
            assert same_weights(load(folder / "my vae"), vae_of(0))

        assert in_child(child) == ("done", None)
        assert [p.name for p in folder.iterdir()] == ["my vae"]
        folder.chmod(0o755)


@pytest.mark.parametrize("name", ["missing", "missing/vae", ".", "file/vae"])
def test_a_missing_file(name, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"cannot be opened|not a regular file") as caught:
        load(tmp_path / name)
    assert str(tmp_path) in str(caught.value)


# Two runs in one folder.


def test_a_second_run_is_refused_at_once_and_touches_nothing(tmp_path):
    with RunFolder(tmp_path) as run:
        run.save_step(1, {})
        (tmp_path / "step-00000002.tmp").mkdir()  # as if half-written
        before = contents(tmp_path)

        def second():
            start = time.perf_counter()
            with pytest.raises(
                RunLockedError, match=f"in use by process {os.getppid()} on "
            ) as caught:
                RunFolder(tmp_path, resume=True).__enter__()
            assert time.perf_counter() - start < 1
            assert caught.value.pid == os.getppid()
            assert caught.value.host
            assert caught.value.start.startswith("20")

        assert in_child(second) == ("done", None)
        with pytest.raises(RunLockedError) as caught:  # in the same process as well
            RunFolder(tmp_path).__enter__()
        assert caught.value.pid == os.getpid()
        assert contents(tmp_path) == before
        assert (tmp_path / "step-00000002.tmp").exists()
        run.save_step(2, {})  # the first run still has the lock


def test_the_lock_of_a_killed_run_is_released(tmp_path):
    def killed():
        with RunFolder(tmp_path) as run:
            run.save_step(1, {})
            os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(killed) == ("killed", signal.SIGKILL)
    assert json.loads((tmp_path / "lock").read_text())["pid"] != os.getpid()
    with RunFolder(tmp_path, resume=True) as run:
        assert run.newest_complete().step == 1
        assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()


@pytest.mark.parametrize(
    "content", [b"", b"\0" * 99, b'{"pid":', b"[1]", b'{"pid":[]}', b"x" * 10**5]
)
def test_the_kernel_decides_about_a_lock_not_the_text_in_its_file(content, tmp_path):
    (tmp_path / "lock").write_bytes(content)
    with RunFolder(tmp_path):
        (tmp_path / "lock").write_bytes(content)
        with pytest.raises(RunLockedError, match="in use by process"):
            RunFolder(tmp_path).__enter__()


# The same path repeatedly.


def test_saving_a_loaded_model_gives_the_same_bytes(tmp_path):
    path = save(pv.build((4,), prior="VampPrior", data=DATA, seed=0), tmp_path / "vae")
    first = path.read_bytes()
    for _ in range(3):
        save(load(path), path)
        assert path.read_bytes() == first


def save_and_load_at_once(path, num_saves, num_writers=1):
    models = [vae_of(seed) for seed in range(2)]
    save(models[0], path)

    def writer():
        for number in range(num_saves):
            save(models[number % 2], path)
        os.kill(os.getpid(), signal.SIGKILL)

    children = []
    for _ in range(num_writers):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            children.append(os.fork())
        if children[-1] == 0:
            try:
                writer()
            finally:
                os._exit(1)
    into, num_seen, alive = vae_of(2), [0, 0], set(children)
    while alive:
        load(path, into=into)
        num_seen[not same_weights(into, models[0])] += 1
        assert same_weights(into, models[0]) or same_weights(into, models[1])
        for pid in list(alive):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                alive.remove(pid)
                assert os.WIFSIGNALED(status)  # it reached the end
    assert min(num_seen) > 0
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_reader_sees_the_old_or_the_new_file(tmp_path):
    save_and_load_at_once(tmp_path / "vae", 150)


def test_two_writers_take_turns(tmp_path):
    save_and_load_at_once(tmp_path / "vae", 60, num_writers=2)


@pytest.mark.slow
def test_a_reader_sees_the_old_or_the_new_file_1000_times(tmp_path):
    save_and_load_at_once(tmp_path / "vae", 1000)
