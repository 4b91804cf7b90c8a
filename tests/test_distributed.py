"""Several processes: equal to one process, resumable, and none waits forever.

This file is also what `torchrun` launches on two gloo processes: the tasks run one after another in
each of them, and their results are written as JSON, by task and rank, for the tests to read. So
most tests share one launch.
"""

import hashlib
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from functools import partial
from pathlib import Path

import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.distributed import HashStore, destroy_process_group, init_process_group, is_initialized
from torch.utils.data import DataLoader, TensorDataset

import pyrovae as pv
from pyrovae.contract import validated
from pyrovae.errors import ConfigError, DivergenceError, WorkerLostError
from pyrovae.runtime import process_group
from pyrovae.runtime.process_group import is_first, processes

TIMEOUT = 20.0  # seconds that processes wait for each other here

# Rows 0 … 12, each a different pattern of bits: N is odd, and two processes get 7 and 6 of them.
ROWS = (torch.arange(13)[:, None] >> torch.arange(4)) % 2


class Still(dist.Normal):
    """A Normal whose draws are its mean: it substitutes the latent."""

    def rsample(self, sample_shape=()):
        return self.loc.expand(self._extended_shape(torch.Size(sample_shape)))

    sample = rsample


class Stilled(nn.Module):
    def __init__(self, part):
        super().__init__()
        self.part = part

    def forward(self, *args):
        q = self.part(*args).base_dist
        return Still(q.loc, q.scale).to_event(1)


class ARD(nn.Module):
    def __init__(self, part):
        super().__init__()
        self.part = part

    def forward(self, z, w):
        return self.part(z * w.exp())


def small_vae(seed=0):
    return pv.build((4,), latent_dim=2, hidden=(8,), seed=seed)


def still_vae(seed=0):
    vae = small_vae(seed)
    return pv.VAE(vae.prior, Stilled(vae.encoder), vae.decoder).double()


def still_hierarchical(seed=0):
    vae, guide = still_vae(seed), pv.priors.LearnedNormal(2)
    nn.init.normal_(next(guide.parameters()), generator=torch.Generator().manual_seed(seed))
    decoder = pv.programs.GivenGlobal(ARD(vae.decoder))
    parts = vae.prior, vae.encoder, decoder, pv.priors.StandardNormal(2), Stilled(guide)
    return pv.programs.BayesianVAE(*parts).double()


class WithSpare(nn.Module):
    """A part with an unused parameter, which has no gradient."""

    def __init__(self, part):
        super().__init__()
        self.part, self.spare = part, nn.Parameter(torch.ones(2))

    def forward(self, z):
        return self.part(z)


def with_spare(seed=0):
    vae = still_vae(seed)
    return pv.VAE(vae.prior, vae.encoder, WithSpare(vae.decoder)).double()


DECAYING = {"optimizer": partial(torch.optim.SGD, weight_decay=0.5)}

CASES = {
    "one odd batch": (still_vae, {"batch_size": 13, "epochs": 1}),
    "a last batch of one": (still_vae, {"batch_size": 4}),
    "accumulate, clip": (
        still_vae,
        {"batch_size": 4, "accumulate_batches": 2, "max_grad_norm": 0.1},
    ),
    "graph": (still_vae, {"batch_size": 4, "compile": "graph"}),
    "averaged weights": (still_vae, {"batch_size": 5, "ema_decay": 0.9}),
    "a parameter without gradient": (with_spare, {"batch_size": 4} | DECAYING),
    "global latents": (still_hierarchical, {"batch_size": 4}),
}


def fitted(name, seed=0, **more):
    """Return weights and history of a case, by SGD: steps are gradients times the rate."""
    make, settings = CASES[name]
    settings = {"epochs": 2, "optimizer": "SGD", "learning_rate": 0.05, **settings, **more}
    x = ROWS.double()
    loader = DataLoader(TensorDataset(x), batch_size=settings.pop("batch_size"))
    program = make(seed)
    history = pv.fit(program, loader, validation=x.flip(1), **settings)
    weights = torch.cat([p.detach().reshape(-1) for p in program.parameters()]).tolist()
    columns = ("elbo", "reconstruction", "kl", "validation_elbo")
    numbers = {column: history[column] for column in columns}
    return {"weights": weights, "engine": history.engine, **numbers}


def digest(program):
    state = (t.detach().numpy().tobytes() for t in program.state_dict().values())
    return hashlib.sha256(b"".join(state)).hexdigest()


def bits(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, (n, 4), generator=generator).float()


def run(folder, *, epochs=4, program=None, seen=None, **settings):
    """Train with draws, shuffling, validation and checkpoints, in a folder for each rank."""
    program = small_vae(seed=int(os.environ["RANK"])) if program is None else program
    settings = {"batch_size": 8, "seed": 3, "patience": None, "learning_rate": 1e-2} | settings
    seen = [] if seen is None else seen
    history = pv.fit(
        program,
        bits(21),
        validation=bits(9, 1),
        epochs=epochs,
        run_dir=f"{folder}-{os.environ['RANK']}",
        callbacks=[lambda _, record: seen.append(record.epoch)],
        **settings,
    )
    epochs = [record._replace(seconds=0.0) for record in history.epochs]
    return {"digest": digest(program), "epochs": epochs, "callbacks": seen}


def at_forward(program, number, action):
    """Call action(output) in the encoder's n-th forward pass."""
    calls = itertools.count(1)
    hook = lambda module, args, out: action(out) if next(calls) == number else None  # noqa: E731
    program.encoder.register_forward_hook(hook)
    return program


# The tasks of the launched processes.


def task_equal(rank, folder):
    return {name: fitted(name, seed=rank) for name in CASES}


def task_shares(rank, folder):
    program = small_vae()
    with processes(program) as group:
        (noise, order), data = group.streams(0), validated(program, ROWS.float(), batch_size=4)
        start = order.state
        with order:
            epochs = [list(map(numbers, data.epoch(True, share=group.rows))) for _ in range(2)]
            order.state = start
            rest = list(map(numbers, data.epoch(True, 2, group.rows)))
        with noise:
            draws = torch.rand(3).tolist()
    return {"epochs": epochs, "rest": rest, "draws": draws}


def numbers(batch):
    return (batch.x.long() << torch.arange(4)).sum(-1).tolist()


def task_run(rank, folder):
    return run(folder / "run")


def task_resumed(rank, folder):
    run(folder / "resumed", epochs=2)
    return run(folder / "resumed", program=small_vae(seed=9), resume=True)


def task_interrupted(rank, folder):
    program = small_vae()
    if rank == 1:
        at_forward(program, 7, lambda _: os.kill(os.getpid(), signal.SIGINT))
    try:
        run(folder / "interrupted", program=program)
    except KeyboardInterrupt:
        found = sorted(path.name for path in folder.glob("interrupted-0/step-*"))
    return {"found": found} | run(folder / "interrupted", resume=True)


def task_joined(rank, folder):
    init_process_group("gloo")
    program = small_vae(seed=rank)
    history = pv.fit(program, ROWS.float(), epochs=1, batch_size=4, seed=None)
    is_still_joined = is_initialized()
    destroy_process_group()
    return {"seed": history.seed, "digest": digest(program), "joined": is_still_joined}


def task_buffers(rank, folder):
    encoder = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 4), pv.guides.DiagonalNormal(2))
    program = pv.VAE(pv.priors.StandardNormal(2), encoder, small_vae().decoder)
    pv.fit(program, bits(20), epochs=2, batch_size=10)
    return {"digest": digest(program), "mean": encoder[0].running_mean.tolist()}


def task_diverged(rank, folder):
    program = small_vae()
    if rank == 1:
        at_forward(program, 9, lambda q: dist.Normal(q.mean * torch.nan, 1.0).to_event(1))
    with pytest.raises(DivergenceError) as caught:
        run(folder / "diverged", program=program)
    return {"error": str(caught.value), "digest": digest(program)}


def task_unlike(rank, folder):
    with pytest.raises(ConfigError) as caught:
        pv.fit(small_vae(), ROWS.float()[rank:], epochs=1)
    return str(caught.value)


def task_error(rank, folder):
    def fail(_):
        raise KeyError("a disk went away")

    program = at_forward(small_vae(), 9, fail) if rank == 1 else small_vae()
    with pytest.raises((KeyError, WorkerLostError)) as caught:
        run(folder / "error", program=program)
    return f"{caught.type.__name__}: {caught.value}"


def task_late(rank, folder):
    os.environ["PYROVAE_TIMEOUT"], process_group.PATIENCE = "3", 0.5
    program = at_forward(small_vae(), 9, lambda _: time.sleep(8)) if rank == 1 else small_vae()
    with pytest.raises(WorkerLostError) as caught:
        run(folder / "late", program=program)
    return str(caught.value)


# The collective in which rank 1 is killed, by the number of its call: 3 updates and a sum of
# losses per epoch, and a last one before both leave; settings are gathered once, then every save.
FAULTS = {
    "all-reduce": ("all_reduce", 7),
    "save": ("all_gather_object", 5),
    "barrier": ("all_reduce", 17),
}


def task_killed(rank, folder):
    """Train, but kill rank 1 at FAULT when it is started for the first time."""
    program, fault = small_vae(), os.environ["FAULT"]
    if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        if fault in FAULTS:
            meet_death(rank, *FAULTS[fault])
        elif rank == 1:
            at_forward(program, 12, die)
    return run(folder / "killed", program=program, resume=True, save_every=1)


def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def meet_death(rank, name, number):
    """Let rank 0 arrive late at a collective, and kill rank 1 while it waits in it."""
    real, calls = getattr(torch.distributed, name), itertools.count(1)

    def patched(*args, **kwargs):
        if next(calls) == number:
            if rank == 1:
                threading.Timer(0.1, die).start()
            else:
                time.sleep(0.5)
        return real(*args, **kwargs)

    setattr(torch.distributed, name, patched)


def worker(folder, names):
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    for name in names:
        result = globals()[f"task_{name}"](rank, folder)
        (folder / f"{name}-{rank}.json").write_text(json.dumps(result))


def launched(folder, *names, options=(), **environment):
    """Run tasks on two processes; return (exit code, output, seconds)."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", *options, __file__, str(folder), *names]
    settings = {"OMP_NUM_THREADS": "1", "PYROVAE_TIMEOUT": str(TIMEOUT)} | environment
    start = time.monotonic()
    done = subprocess.run(
        command,
        env={**os.environ, **settings},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    return done.returncode, done.stdout, time.monotonic() - start


def results(folder, name):
    """Return the results of a task by rank."""
    return [json.loads((folder / f"{name}-{rank}.json").read_text()) for rank in range(2)]


TOGETHER = (
    *("equal", "shares", "run", "resumed", "interrupted", "joined", "buffers"),
    *("diverged", "unlike", "error", "killed"),
)


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """Return the folder that one launch of all tasks has filled; the last task kills it."""
    folder = tmp_path_factory.mktemp("together")
    code, output, _ = launched(folder, *TOGETHER, FAULT="forward")
    check_killed(folder, code, output)
    return folder


# Two processes are as one.


@pytest.mark.parametrize("name", CASES)
def test_two_processes_equal_one(together, name):
    """Losses and gradients (the steps of SGD) agree to 1e-6, with latents substituted."""
    alone = fitted(name)
    alone.pop("engine")
    for result in results(together, "equal"):
        for key, values in alone.items():
            assert result[name][key] == pytest.approx(values, abs=1e-6), key
        assert result[name]["engine"] == ("graph" if name == "graph" else "eager")


def test_each_datum_is_in_one_shard_of_each_epoch(together):
    shares = results(together, "shares")
    for first, second in zip(*(share["epochs"] for share in shares), strict=True):
        assert [len(rows) for rows in first] == [2, 2, 2, 1]
        assert [len(rows) for rows in second] == [2, 2, 2, 0]
        assert sorted(itertools.chain(*first, *second)) == list(range(13))
    for share in shares:
        assert share["rest"] == share["epochs"][0][2:]
        assert share["epochs"][0] != share["epochs"][1]
    assert shares[0]["draws"] != shares[1]["draws"]


def test_both_end_with_the_same_weights_and_history(together):
    first, second = results(together, "run")
    assert first["digest"] == second["digest"]
    assert first["epochs"] == second["epochs"]
    assert len(first["epochs"]) == 4


def test_only_rank_0_writes_and_calls_back(together):
    first, second = results(together, "run")
    assert first["callbacks"] == [1, 2, 3, 4]
    assert second["callbacks"] == []
    names = {path.name for path in (together / "run-0").iterdir()}
    assert {"history.csv", "model.safetensors", "lock"} < names
    assert not (together / "run-1").exists()
    vae = pv.load(together / "run-0" / "model.safetensors")
    assert digest(vae) == first["digest"]


@pytest.mark.parametrize("how", ["resumed", "interrupted"])
def test_a_resumed_run_on_two_processes_equals_the_uninterrupted_one(together, how):
    whole = results(together, "run")
    for rank, result in enumerate(results(together, how)):
        assert result["digest"] == whole[rank]["digest"]
        assert result["epochs"] == whole[rank]["epochs"]


def test_a_signal_to_one_process_stops_both_after_the_same_update(together):
    """3 updates per epoch, then validation: forward pass 7 is in the middle of an epoch."""
    (found,) = results(together, "interrupted")[0]["found"]
    assert int(found.removeprefix("step-")) % 3


def test_the_callers_group_stays_joined_and_a_random_seed_is_shared(together):
    first, second = results(together, "joined")
    assert first == second
    assert first["joined"]


def test_buffers_are_those_of_rank_0(together):
    first, second = results(together, "buffers")
    assert first == second
    assert any(first["mean"])


def test_a_run_continues_with_fewer_processes(together, tmp_path):
    """One process finishes what two began, in the same order of data."""
    shutil.copytree(together / "resumed-0", tmp_path / "run")
    with pytest.warns(UserWarning, match="processes 2"):
        history = pv.fit(
            small_vae(),
            bits(21),
            validation=bits(9, 1),
            epochs=5,
            batch_size=8,
            seed=3,
            patience=None,
            learning_rate=1e-2,
            run_dir=tmp_path / "run",
            resume=True,
        )
    first, _ = results(together, "resumed")
    assert [list(record._replace(seconds=0.0)) for record in history[:4]] == first["epochs"][:4]
    assert history[4].elbo == pytest.approx(history[3].elbo, abs=0.5)


# An error in one process ends all.


def test_a_killed_process_ends_all(together):
    """The fixture has checked how the launch ended (`check_killed`)."""
    assert not (together / "killed-0.json").exists()
    assert not (together / "killed-0" / "model.safetensors").exists()


def test_a_shard_that_diverges_stops_both(together):
    first, second = results(together, "diverged")
    assert "rank 1 is not finite" in first["error"]
    assert "Last good checkpoint" not in second["error"]
    assert "rank 1: log_" in second["error"]
    assert first["digest"] == second["digest"]
    assert len(list((together / "diverged-0").glob("diverged-*"))) == 1
    assert not (together / "diverged-1").exists()


def test_other_data_on_another_rank_are_refused(together):
    for message in results(together, "unlike"):
        assert message.startswith("the data of rank 1 differ from those of rank 0")
        assert "Give every process all of the data" in message


def test_an_error_of_one_process_is_named_by_the_other(together):
    first, second = results(together, "error")
    assert first.startswith("WorkerLostError: rank 0 of 2 timed out: rank 1 ended with KeyError")
    assert "a disk went away" in first
    assert "resume=True" in first
    assert second.startswith("KeyError")


def check_killed(folder, code, output, *, is_named=True):
    """Check that all ended with an error that names the rank, and only rank 0 has written."""
    assert code != 0, output[-4000:]
    assert re.search(r"rank +: 1 .*\n +exitcode +: -9 ", output), output[-4000:]  # by torchrun
    if is_named:
        assert "WorkerLostError: rank 0 of 2 timed out: rank 1 does not answer" in output
    assert not (folder / "killed-1").exists()
    assert list((folder / "killed-0").glob("step-*"))


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["forward", *FAULTS])
def test_torchrun_restarts_a_killed_run(together, tmp_path, fault):
    """Without a restart all processes end; with one the result is that without a fault."""
    code, output, seconds = launched(made(tmp_path / "a"), "killed", FAULT=fault)
    # at the last barrier `fit` no longer delays signals, and torchrun's SIGTERM may come first
    check_killed(tmp_path / "a", code, output, is_named=fault != "barrier")
    assert seconds < TIMEOUT + 30
    options = ("--max-restarts", "1")
    code, output, _ = launched(made(tmp_path / "b"), "killed", options=options, FAULT=fault)
    assert code == 0, output[-4000:]
    for rank, result in enumerate(results(tmp_path / "b", "killed")):
        assert result["digest"] == results(together, "run")[rank]["digest"]
        assert result["epochs"] == results(together, "run")[rank]["epochs"]


def made(path):
    path.mkdir()
    return path


@pytest.mark.slow
def test_processes_do_not_wait_for_a_late_one(tmp_path):
    code, output, _ = launched(tmp_path, "late")
    assert code == 0, output[-4000:]
    first, _ = results(tmp_path, "late")
    assert "rank 1 does not answer" in first
    assert "Timed out" in first


# In this process alone.


@pytest.fixture
def alone():
    init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    yield
    destroy_process_group()


@pytest.fixture
def launch(monkeypatch):
    """Set the environment of rank 1 of two."""
    names = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in names.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def test_a_group_of_one_changes_nothing(alone):
    program = small_vae()
    pv.fit(program, ROWS.float(), epochs=1, batch_size=4)
    destroy_process_group()
    other = small_vae()
    pv.fit(other, ROWS.float(), epochs=1, batch_size=4)
    init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    assert digest(program) == digest(other)


def test_without_a_launch_there_is_no_group():
    with processes(small_vae()) as group:
        assert group.size == 1
        assert not is_initialized()
    assert is_first()


def test_the_first_rank_is_known_before_the_processes_join(launch):
    assert not is_first()
    launch.setenv("RANK", "0")
    assert is_first()


@pytest.mark.parametrize("text", ["soon", "0", "-1", "nan", "1e300"])
def test_an_invalid_timeout(launch, text):
    launch.setenv("PYROVAE_TIMEOUT", text)
    with pytest.raises(ConfigError, match=r"(?s)PYROVAE_TIMEOUT is .*Set it to a number above 0"):
        pv.fit(small_vae(), ROWS.float(), epochs=1)


def test_a_rank_without_the_others(launch):
    launch.setenv("PYROVAE_TIMEOUT", "0.2")
    with pytest.raises(WorkerLostError, match="rank 1 could not join the 2 processes"):
        pv.fit(small_vae(), ROWS.float(), epochs=1)


if __name__ == "__main__":
    worker(Path(sys.argv[1]), sys.argv[2:])
