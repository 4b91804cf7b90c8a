"""Resuming bit for bit, and the behavior of a training run when something goes wrong.

H is the digest of everything that a finished run leaves: weights, history without clocks, and its
last checkpoint with optimizer, averages, schedules and random stream. Regardless of what interrupts
a run, the run that resumes from its folder ends with the H of an uninterrupted one.
"""

import functools
import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
import warnings
from contextlib import contextmanager, suppress

import numpy as np
import pytest
import torch
from helpers import N, bits, digest, final_state, generators, small_vae, with_dropout
from pyro.infer import Trace_ELBO
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import pyrovae as pv
from pyrovae import guides, likelihoods, objectives, priors
from pyrovae.errors import (
    CheckpointError,
    ConfigError,
    DivergenceError,
    RunLockedError,
    StateMismatchError,
)
from pyrovae.networks import mlp
from pyrovae.runtime.run_folder import RunFolder
from pyrovae.training import loop
from pyrovae.training.checkpointer import modules_of
from pyrovae.training.step import TrainingStep
from tests.contracts import GUIDES, LIKELIHOODS, PRIORS
from tests.test_faults import contents, in_child

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="children are forked")

SETTINGS = {"epochs": 3, "batch_size": 10, "seed": 1, "compile": "eager"}  # 12 steps of 4 + …


def outcome(program, history, folder):
    """Return H."""
    rows = [[*r[:7], r.learning_rate] for r in history]
    kept = [history.best_epoch, history.stopped_early, rows]
    state = final_state(folder)
    state["history"].pop("changes")
    return digest([dict(program.state_dict()), kept, state])


def fit(folder, make=small_vae, x=None, *, resume=True, **settings):
    """Return H of a run that resumes from the folder, or begins there."""
    program, x = make(), bits() if x is None else x() if callable(x) else x
    history = pv.fit(program, x, run_dir=folder, resume=resume, **SETTINGS | settings)
    return outcome(program, history, folder)


@contextmanager
def at_step(number, act):
    """Call act(program) before a step of a run, numbered from 1."""
    take = TrainingStep.take

    def watched(self, batch, where):
        if number and self.num_steps == number - 1:
            act(self.program)
        return take(self, batch, where)

    TrainingStep.take = watched
    try:
        yield
    finally:
        TrainingStep.take = take


def interrupt(_):
    os.kill(os.getpid(), signal.SIGINT)


def kill(_):
    os.kill(os.getpid(), signal.SIGKILL)


def stopped(folder, step, **settings):
    """Start a run that Ctrl-C stops at the end of a step."""
    with at_step(step, interrupt), pytest.raises(KeyboardInterrupt):
        fit(folder, **settings)


# Bit for bit.


def loader():
    """Return a loader with its own generator, which orders the data."""
    data = TensorDataset(bits())
    return DataLoader(data, batch_size=10, shuffle=True, generator=torch.Generator())


def mapped(folder):
    path = folder / "x.npy"
    if not path.exists():
        np.save(path, bits().numpy())
    return np.load(path, mmap_mode="r")


class Stream(torch.utils.data.IterableDataset):
    """Data of unknown length."""

    def __init__(self, x):
        self.x = x

    def __iter__(self):
        return iter(self.x)


RUNS = {
    "plain": {},
    "dropout": {"make": with_dropout},
    "ema_decay": {"ema_decay": 0.9, "make": with_dropout},
    "average, validation": {"ema_decay": 0.9, "validation": bits(9, seed=2)},
    "scheduler": {"scheduler": "CosineAnnealingLR"},
    "plateau": {
        "scheduler": functools.partial(
            torch.optim.lr_scheduler.ReduceLROnPlateau, patience=0, threshold=9.0
        )
    },
    "rate": {"learning_rate": lambda progress: 0.01 * (1 - progress)},
    "clip, another optimizer": {"max_grad_norm": 0.1, "optimizer": "NAdam"},
    "accumulate_batches": {"accumulate_batches": 3, "make": with_dropout},
    "stream": {
        "x": lambda: Stream(bits()),
        "learning_rate": lambda progress: 0.01 * (1 - progress),
        "validation": Stream(bits(5, seed=3)),
    },
    "patience": {"validation": bits(5, seed=3), "patience": 1, "learning_rate": 0.3, "epochs": 9},
    "loader": {"x": loader, "make": with_dropout},
    "beta": {"objective": objectives.BetaELBO(objectives.cyclical(2))},
    "particles": {"objective": objectives.IWAE(3), "batch_size": 500, "epochs": 8},
    "graph": {"compile": "graph", "make": with_dropout, "ema_decay": 0.9, "accumulate_batches": 2},
}


@functools.cache
def uninterrupted(name, folder_of=None):
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        return fit(folder, **RUNS[name])


AROUND = [3, 4, 5]  # before, at and after the ragged batch
LATER = {"graph": [5], "stream": [3, 4, 6, 7]}  # the first epoch shows a stream's length


@pytest.mark.parametrize("name", RUNS)
def test_a_run_stopped_anywhere_ends_like_an_uninterrupted_one(name, tmp_path):
    """One run, stopped and resumed at each of these steps in turn."""
    for step in LATER.get(name, AROUND):
        stopped(tmp_path, step, **RUNS[name])
    assert fit(tmp_path, **RUNS[name]) == uninterrupted(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_run_stopped_after_every_step_ends_like_an_uninterrupted_one(name, tmp_path):
    settings = RUNS[name]
    for step in range(1, settings.get("epochs", 3) * (1 if name == "particles" else 4)):
        with at_step(step, interrupt):
            try:
                fit(tmp_path, **settings)
            except KeyboardInterrupt:
                continue
            break
    assert fit(tmp_path, **settings) == uninterrupted(name)


def test_the_digest_detects_a_difference(tmp_path):
    """Negative control: another batch order in one step changes H."""
    h_full = uninterrupted("plain")
    assert fit(tmp_path / "again") == h_full
    with at_step(7, lambda _: torch.rand(1)):  # a draw too many
        assert fit(tmp_path / "draw") != h_full
    with at_step(12, lambda p: next(p.parameters()).data[0].mul_(1 + 2**-23)):
        assert fit(tmp_path / "bit") != h_full


def test_a_memory_mapped_file(tmp_path):
    h_full = fit(tmp_path / "whole", x=mapped(tmp_path))
    stopped(tmp_path / "run", 3, x=mapped(tmp_path))
    assert fit(tmp_path / "run", x=mapped(tmp_path)) == h_full


@pytest.mark.parametrize("name", ["dropout", "loader"])
def test_another_process_resumes(name, tmp_path):
    assert in_child(lambda: stopped(tmp_path, 6, **RUNS[name])) == ("done", None)

    def go_on():
        assert fit(tmp_path, **RUNS[name]) == uninterrupted(name)

    assert in_child(go_on) == ("done", None)


def test_more_epochs_continue_from_the_last_weights_not_from_the_best_ones(tmp_path):
    settings = {"validation": bits(5, seed=3), "patience": None, "ema_decay": 0.8}
    settings["learning_rate"] = 0.3
    fit(tmp_path / "run", epochs=4, **settings)
    assert fit(tmp_path / "run", epochs=7, **settings) == fit(
        tmp_path / "whole", epochs=7, **settings
    )


def test_resuming_a_finished_run_changes_nothing(tmp_path):
    first = fit(tmp_path)
    before = contents(tmp_path)
    assert fit(tmp_path) == first
    after = contents(tmp_path)
    assert before.keys() == after.keys()
    assert all(after[f] == before[f] for f in before if f.name not in ("lock", "history.csv"))


def test_save_every_does_not_change_the_run(tmp_path):
    assert fit(tmp_path, save_every=1) == uninterrupted("plain")
    assert len(list(tmp_path.glob("step-*"))) == 2


def test_without_resume_a_used_folder_is_refused_untouched(tmp_path):
    fit(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(ConfigError, match="already holds the steps of a run"):
        fit(tmp_path, resume=False)
    assert {f: c for f, c in contents(tmp_path).items() if f.name != "lock"} == {
        f: c for f, c in before.items() if f.name != "lock"
    }


@pytest.mark.parametrize("settings", [{"resume": True}, {"save_every": 5}])
def test_resume_and_save_every_need_a_folder(settings):
    with pytest.raises(ConfigError, match="run_dir is None"):
        pv.fit(small_vae(), bits(), **settings)


def test_save_every_waits_for_the_update_that_a_batch_is_part_of(tmp_path):
    """In epochs of 10 batches, whose last two wait for the end of the epoch."""
    seen = []

    def look(_, record):
        seen.append(sorted(path.name for path in tmp_path.glob("step-*"))[-1])

    settings = {"batch_size": 4, "accumulate_batches": 4, "callbacks": [look]}
    fit(tmp_path, save_every=10, **settings)
    assert seen == ["step-00000010", "step-00000020", "step-00000030"]
    seen.clear()
    fit(tmp_path / "run", save_every=9, **settings)  # batches 9 and 27 wait
    assert [p.name for p in sorted((tmp_path / "run").glob("step-*"))] == [
        "step-00000028",
        "step-00000030",
    ]


@pytest.mark.parametrize("step", range(1, 9))
def test_ctrl_c_while_gradients_are_pending_stops_after_their_update(step, tmp_path):
    """In epochs of 4 batches, the updates come after the third and the fourth."""
    settings = RUNS["accumulate_batches"]
    stopped(tmp_path, step, **settings)
    (path,) = tmp_path.glob("step-*")
    assert path.name == f"step-{(3, 3, 3, 4)[(step - 1) % 4] + 4 * ((step - 1) // 4):08d}"
    assert fit(tmp_path, **settings) == uninterrupted("accumulate_batches")


# kill -9.


def kill_and_resume(folder, step, name, save_every):
    def child():
        with at_step(step, kill):
            fit(folder, save_every=save_every, **RUNS[name])

    assert in_child(child) == ("killed", signal.SIGKILL)
    assert fit(folder, save_every=save_every, **RUNS[name]) == uninterrupted(name)


@pytest.mark.parametrize(
    ("step", "name", "save_every"),
    [(1, "dropout", None), (6, "dropout", 2), (12, "accumulate_batches", 1), (7, "loader", 3)],
)
def test_killed_at_a_step(step, name, save_every, tmp_path):
    kill_and_resume(tmp_path, step, name, save_every)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_killed_at_a_random_instant(seed, tmp_path):
    chance = random.Random(seed)
    name = chance.choice(["dropout", "ema_decay", "accumulate_batches", "loader", "scheduler"])
    settings = RUNS[name] | {"epochs": 30, "save_every": chance.randint(1, 9)}
    h_full = fit(tmp_path / "whole", **settings)
    for _ in range(3):
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            tell = functools.partial(os.write, writer, b".")
            with at_step(1, lambda _, tell=tell: tell()):
                fit(tmp_path / "run", **settings)
            os._exit(0)
        os.close(writer)
        os.read(reader, 1)  # it is running, or has ended
        os.close(reader)
        time.sleep(chance.uniform(0.0, 0.5))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert fit(tmp_path / "run", **settings) == h_full


# Losses and gradients that are not finite.


class Poisoned(nn.Module):
    """Multiplies features by a buffer that is 1, until it is poisoned."""

    def __init__(self):
        super().__init__()
        self.register_buffer("factor", torch.ones(()))

    def forward(self, features):
        return features * self.factor


def poisonable():
    vae = small_vae()
    network, head = vae.decoder
    return pv.VAE(vae.prior, vae.encoder, nn.Sequential(network, Poisoned(), head))


def by_value(program):
    program.decoder[1].factor.fill_(torch.nan)


def by_gradient(program):
    next(program.decoder.parameters()).register_hook(lambda gradient: gradient * torch.nan)


class Poisoning(objectives.TraceELBO):
    """The ELBO, or NaN on request."""

    def __init__(self, what):
        super().__init__()
        self.what = what

    def surrogate(self, traces, num_data):
        loss = super().surrogate(traces, num_data)
        return loss * torch.nan if torch.nan in self.what else loss


def parameters(program):
    return digest({n: p.detach().clone() for n, p in program.named_parameters()})


@pytest.mark.parametrize("step", [1, *(pytest.param(s, marks=pytest.mark.slow) for s in (6, 12))])
def test_a_loss_that_is_not_finite_in_a_graph(step, tmp_path):
    check_not_finite("value, graph", step, tmp_path)


@pytest.mark.filterwarnings("ignore:Encountered NaN")  # Pyro's own, in the first batch
@pytest.mark.parametrize(
    ("way", "step"),
    [("value", 1), ("value", 6), ("gradient", 1), ("gradient", 6), ("loss", 12)]
    + [pytest.param(*c, marks=pytest.mark.slow) for c in [("value", 12), ("gradient", 12)]],
)
def test_a_loss_or_gradient_that_is_not_finite(way, step, tmp_path):
    check_not_finite(way, step, tmp_path)


def check_not_finite(way, step, tmp_path):
    what, seen, program = [], [], poisonable()
    objective = Poisoning(what) if way == "loss" else None
    settings = {**SETTINGS, "objective": objective, "save_every": 2}
    settings["compile"] = "graph" if "graph" in way else "eager"

    def poison(program):
        seen.append(parameters(program))
        if way == "loss":
            what.append(torch.nan)
        else:
            (by_gradient if way == "gradient" else by_value)(program)

    with at_step(step, poison), pytest.raises(DivergenceError) as caught:
        pv.fit(program, bits(), run_dir=tmp_path, **settings)
    epoch, batch = divmod(step - 1, 4)
    assert caught.match(rf" at step {step} \(epoch {epoch + 1}, batch {batch + 1}\)")
    assert caught.match(f"Parameters are as after step {step - 1}")
    assert len(str(caught.value).splitlines()) <= 6
    assert parameters(program) == seen[0]
    (diverged,) = tmp_path.glob("diverged-*")
    assert diverged.name == f"diverged-{step - 1:08d}"
    assert json.loads((diverged / "manifest.json").read_bytes())["is_diverged"] is True
    good = sorted(tmp_path.glob("step-*"))
    if step > 2:
        assert caught.match(f"Last good checkpoint: .*{good[-1].name}")
    else:
        assert not good
        assert "Last good" not in str(caught.value)

    what.clear()
    program = poisonable()
    resumed = pv.fit(program, bits(), run_dir=tmp_path, resume=True, **settings)
    again = poisonable()
    whole = pv.fit(again, bits(), run_dir=tmp_path / "whole", **settings)
    assert outcome(program, resumed, tmp_path) == outcome(again, whole, tmp_path / "whole")


# Spikes.

LONG = {"epochs": 15, "batch_size": 10, "compile": "eager"}


def test_a_warning_names_step_and_size_of_a_spike(tmp_path):
    """From step 41 of 60, the learning rate is 10⁴ times larger."""

    def rate(progress):
        return 1e-3 * (1e4 if progress >= 40 / 60 else 1.0)

    vae = pv.build((4,), latent_dim=2, hidden=(8,), likelihood="Normal", seed=0)
    match = r"jumped to [\d.e+]+ nats per datum at step 4[2-5] \(epoch 11, batch"
    with pytest.warns(UserWarning, match=match) as said:
        pv.fit(vae, bits(), learning_rate=rate, optimizer="SGD", max_grad_norm=1.0, **LONG)
    assert [w.filename for w in said if "jumped" in str(w.message)] == [__file__]


@pytest.mark.parametrize(
    "schedule", [objectives.linear_warmup(0.5), objectives.cyclical(3), lambda t: 100 * t**2]
)
def test_a_schedule_of_beta_is_not_a_spike(schedule):
    """Warnings are errors here."""
    pv.fit(small_vae(), bits(), objective=objectives.BetaELBO(schedule), **LONG)


@pytest.mark.parametrize("step", [30, 50])
def test_a_resumed_run_warns_like_an_uninterrupted_one(step, tmp_path):
    """Once: the spike is detected from the losses before the stop, and not reported again."""

    def warned(folder, **settings):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            with suppress(KeyboardInterrupt):
                vae = pv.build((4,), latent_dim=2, hidden=(8,), likelihood="Normal", seed=0)
                options = {"optimizer": "SGD", "max_grad_norm": 1.0, "learning_rate": rate}
                pv.fit(vae, bits(), run_dir=folder, resume=True, **options, **settings, **LONG)
        return [str(w.message) for w in said if "jumped" in str(w.message)]

    def rate(progress):
        return 1e-3 * (1e4 if progress >= 40 / 60 else 1.0)

    whole = warned(tmp_path / "whole")
    with at_step(step, interrupt):
        found = warned(tmp_path / "run")
    assert found + warned(tmp_path / "run") == whole
    assert len(whole) == 1


def test_a_nan_validation_elbo_is_not_the_best_and_is_restored_as_nan(tmp_path, monkeypatch):
    """None would mean an epoch without validation."""
    found = iter([math.nan, -3.0, math.nan, -4.0])
    monkeypatch.setattr(loop, "evaluate", lambda *_: (next(found), 1.0, math.nan))
    settings = {"validation": bits(5), "patience": None, "epochs": 4}
    stopped(tmp_path, 6, **settings)
    history = pv.fit(small_vae(), bits(), run_dir=tmp_path, resume=True, **SETTINGS | settings)
    assert str(history["validation_elbo"]) == "[nan, -3.0, nan, -4.0]"
    assert str(history["validation_kl"]) == "[nan, nan, nan, nan]"
    assert history.best_epoch == 2


@pytest.mark.parametrize("elbo", [math.nan, -math.inf])
def test_without_a_finite_validation_elbo_the_last_weights_are_kept(elbo, monkeypatch):
    last, kept = small_vae(), small_vae()
    pv.fit(last, bits(), **SETTINGS)
    monkeypatch.setattr(loop, "evaluate", lambda *_: (elbo, 1.0, 1.0))
    assert pv.fit(kept, bits(), validation=bits(5), **SETTINGS).best_epoch == 3
    assert digest(dict(kept.state_dict())) == digest(dict(last.state_dict()))


def test_the_monitor_uses_the_same_rows_after_resuming(tmp_path):
    """Of data that are not in memory, it uses the first batch of the run."""

    def monitor(folder, stop=None):
        program = small_vae()
        settings = SETTINGS | {"diagnostics_every": 2}
        with at_step(stop, interrupt), suppress(KeyboardInterrupt):
            history = pv.fit(program, loader(), run_dir=folder, resume=True, **settings)
            return history.monitor, repr(history.collapse)

    whole = monitor(tmp_path / "whole")
    assert monitor(tmp_path / "run", stop=5) is None
    assert monitor(tmp_path / "run") == whole
    assert len(whole[0]) == 6


# Ctrl-C and SIGTERM.


def run_until_signal(folder, delays, number, epochs=2000):
    """Return the exit code, as a shell shows it, of a child that receives signals."""
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        code = 99
        try:
            with at_step(1, lambda _: os.write(writer, b".")):
                fit(folder, with_dropout, epochs=epochs)
            code = 0
        except KeyboardInterrupt:
            code = 130  # what a shell shows when SIGINT ends the interpreter
        except SystemExit as exit:
            code = exit.code
        finally:
            os._exit(code)
    os.close(writer)
    os.read(reader, 1)
    os.close(reader)
    for delay in delays:
        time.sleep(delay)
        os.kill(pid, number)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    # a second signal may arrive after fit has restored the handlers: what a shell shows then
    return 128 - code if code < 0 else code


CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}


def check_signals(folder, delays, number):
    assert run_until_signal(folder, delays, number) == CODES[number]
    steps = sorted(folder.glob("step-*"))
    if len(delays) == 1:
        assert len(steps) == 1  # at the boundary, there is a checkpoint
    epochs = 12
    if steps:
        with RunFolder(folder, resume=True) as run:
            epochs = max(epochs, run.newest_complete().state["loop"]["epoch"] + 1)
    resumed = fit(folder, with_dropout, epochs=epochs)
    assert resumed == fit(folder / "whole", with_dropout, epochs=epochs)


@pytest.mark.parametrize("number", CODES)
def test_a_signal_ends_the_step_and_writes_a_checkpoint(number, tmp_path):
    check_signals(tmp_path, [0.013], number)


def test_two_signals_within_100_ms(tmp_path):
    check_signals(tmp_path, [0.02, 0.0], signal.SIGINT)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(50))
def test_signals_at_random_instants(seed, tmp_path):
    chance = random.Random(seed)
    delays = [chance.uniform(0, 0.3)] + [chance.uniform(0, 0.1)] * (seed % 2)
    check_signals(tmp_path, delays, chance.choice(list(CODES)))


def test_an_interrupted_process_can_train_again(tmp_path):
    handlers = [signal.getsignal(s) for s in CODES]
    for delay in (0.005, 0.02, 0.05):
        timer = threading.Timer(delay, os.kill, (os.getpid(), signal.SIGINT))

        def begin(_, record, timer=timer):
            # once training is running: before, Python's own handler would raise, maybe within a
            # destructor, where Python drops exceptions
            if record.epoch == 1:
                timer.start()

        options = SETTINGS | {"epochs": 5000, "callbacks": [begin]}
        with pytest.raises(KeyboardInterrupt):
            pv.fit(with_dropout(), bits(), **options)
        assert [signal.getsignal(s) for s in CODES] == handlers
    assert fit(tmp_path, with_dropout) == uninterrupted("dropout")


def test_a_second_signal_does_not_wait_for_the_step(tmp_path):
    """Both arrive within one step; the checkpoints before it are unchanged."""

    def twice(_):
        interrupt(_)
        interrupt(_)

    program = small_vae()
    with at_step(6, twice), pytest.raises(KeyboardInterrupt):
        pv.fit(program, bits(), run_dir=tmp_path, save_every=2, **SETTINGS)
    assert all(p.grad is None for p in program.parameters())
    assert sorted(tmp_path.glob("step-*"))[-1].name == "step-00000004"
    assert fit(tmp_path, save_every=2) == uninterrupted("plain")


def test_outside_the_main_thread_the_callers_signal_handlers_stay(tmp_path):
    found = []
    thread = threading.Thread(target=lambda: found.append(fit(tmp_path)))
    thread.start()
    thread.join()
    assert found == [uninterrupted("plain")]


# Changed data and settings.


def edited(x):
    x[17, 2] = 1 - x[17, 2]
    return x


CHANGED = {
    "row edited": (edited, "x sha256"),
    "reordered": (lambda x: x.flip(0), "x sha256"),
    "dtype": (lambda x: x.double(), r"x dtype was torch.float32, is torch.float64"),
    "appended": (lambda x: torch.cat([x, x[:1]]), r"x shape was \[37, 4\], is \[38, 4\]"),
    "mask": (lambda x: (x, None, torch.ones(N, 4).bool()), "mask shape was None"),
}


@pytest.mark.parametrize("name", CHANGED)
def test_changed_data_are_refused_unless_allowed(name, tmp_path):
    change, match = CHANGED[name]
    stopped(tmp_path, 4)
    before = contents(tmp_path)
    changed = change(bits())
    data = changed if isinstance(changed, tuple) else (changed,)
    program = small_vae()
    start = digest(dict(program.state_dict()))
    settings = SETTINGS | {"run_dir": tmp_path, "resume": True}
    with pytest.raises(StateMismatchError, match="training data changed since") as caught:
        pv.fit(program, *data, **settings)
    assert re.search(match, str(caught.value).replace("'", ""))
    assert digest(dict(program.state_dict())) == start
    assert contents(tmp_path).keys() == before.keys()
    history = pv.fit(program, *data, allow_data_change=True, **settings)
    assert history.changes == ["data changed after step 4"]
    assert history.num_data == len(data[0])
    again = pv.fit(small_vae(), *data, **settings)  # now they are the run's own
    assert again.changes == ["data changed after step 4"]


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8])
def test_a_mask_may_be_of_numpy_or_of_torch(dtype, tmp_path):
    mask = (torch.arange(N * 4).reshape(N, 4) % 5 > 0).to(dtype)
    whole = fit(tmp_path / "whole", mask=mask)
    stopped(tmp_path / "run", 4, mask=mask.numpy())
    assert fit(tmp_path / "run", mask=mask) == whole


OTHER_VALIDATION = {
    "edited": (bits(9, seed=2), bits(9, seed=3), "x sha256 was"),
    "fewer": (bits(9, seed=2), bits(8, seed=2), r"x shape was \[9, 4\], is \[8, 4\]"),
    "dropped": (bits(9, seed=2), None, "is given was True, is False"),
    "added": (None, bits(9, seed=2), "is given was False, is True"),
}


@pytest.mark.parametrize("name", OTHER_VALIDATION)
def test_changed_validation_data_are_refused_unless_allowed(name, tmp_path):
    """ELBOs of other data cannot say which epoch is best, so the search starts over."""
    then, now, match = OTHER_VALIDATION[name]
    settings = {"learning_rate": 0.1, "epochs": 6, "patience": None}
    stopped(tmp_path, 10, validation=then, **settings)  # in the third epoch
    with pytest.raises(StateMismatchError, match="validation data changed since the ch") as caught:
        fit(tmp_path, validation=now, **settings)
    assert re.search(match, str(caught.value).replace("'", ""))
    assert caught.match("best epoch will be one of the remaining ones")
    options = SETTINGS | settings | {"run_dir": tmp_path, "resume": True, "validation": now}
    program = small_vae()
    history = pv.fit(program, bits(), allow_data_change=True, **options)
    assert history.changes == ["validation data changed after step 10"]
    scores = history["validation_elbo"]
    best = 6 if now is None else scores.index(max(scores[2:]), 2) + 1
    assert history.best_epoch == best
    again = pv.fit(small_vae(), bits(), **options)  # now they are the run's own
    assert (again.best_epoch, again.changes) == (best, history.changes)


def test_a_finished_run_without_its_validation_data_keeps_its_last_weights(tmp_path):
    settings = SETTINGS | {"learning_rate": 0.3, "epochs": 4, "run_dir": tmp_path}
    best = pv.fit(small_vae(), bits(), validation=1 - bits(), patience=None, **settings).best_epoch
    assert best < 4
    program = small_vae()
    history = pv.fit(program, bits(), resume=True, allow_data_change=True, **settings)
    assert history.best_epoch == 4
    with RunFolder(tmp_path, resume=True) as run:
        last = run.newest_complete().state["loop"]["program"]
    assert digest(dict(program.state_dict())) == digest(last)


@pytest.mark.parametrize("change", [edited, lambda x: x.flip(0)], ids=["edited", "reordered"])
def test_a_replaced_data_file_is_refused(change, tmp_path):
    """With the same size and path, in the process that has cached the first pass."""
    stopped(tmp_path / "run", 4, x=mapped(tmp_path))
    np.save(tmp_path / "new.npy", change(bits()).numpy())
    os.replace(tmp_path / "new.npy", tmp_path / "x.npy")
    with pytest.raises(StateMismatchError, match=r"training data changed since .*: x sha256 was"):
        fit(tmp_path / "run", x=mapped(tmp_path))


def loader_of(x, shuffle):
    return DataLoader(TensorDataset(x), batch_size=10, shuffle=shuffle)


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("name", ["row edited", "reordered", "appended"])
def test_changed_data_of_a_loader_are_refused(name, shuffle, tmp_path):
    whole = fit(tmp_path / "whole", x=loader_of(bits(), shuffle))
    stopped(tmp_path / "run", 4, x=loader_of(bits(), shuffle))
    changed = loader_of(CHANGED[name][0](bits()), shuffle)
    with pytest.raises(StateMismatchError, match=r"training data changed since .*x sha256 was"):
        fit(tmp_path / "run", x=changed)
    assert fit(tmp_path / "run", x=loader_of(bits(), shuffle)) == whole


STEP_LR = functools.partial(torch.optim.lr_scheduler.StepLR, step_size=1)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"batch_size": 9}, "batch_size was 10, is 9"),
        ({"seed": 2}, "seed was 1, is 2"),
        ({"max_grad_norm": 1.0}, "max_grad_norm was None, is 1.0"),
        ({"accumulate_batches": 2}, "accumulate_batches was 1, is 2"),
        ({"ema_decay": 0.9}, "ema_decay was None, is 0.9"),
        ({"optimizer": "SGD"}, "optimizer was .?Adam.?, is .?SGD"),
        ({"scheduler": STEP_LR}, r"scheduler was None, is StepLR\(step_size=1\)"),
        ({"precision": "bf16"}, "precision was"),
        ({"objective": objectives.IWAE(2)}, "objective was"),
        ({"make": lambda: pv.build((4,), latent_dim=3, hidden=(8,))}, r"the program changed"),
        ({"make": lambda: pv.build((4,), latent_dim=2, hidden=(9,))}, r"was \(8, 4\), is \(9, 4\)"),
        ({"seed": 2, "max_grad_norm": 1.0}, "max_grad_norm was None.*seed was 1"),
    ],
)
def test_changed_settings_are_refused_by_name(change, match, tmp_path):
    stopped(tmp_path, 3)
    before = {f: c for f, c in contents(tmp_path).items() if f.name != "lock"}
    with pytest.raises(StateMismatchError, match="changed since the checkpoint") as caught:
        fit(tmp_path, **change)
    assert re.search(match, str(caught.value).replace("'", ""))
    assert len(str(caught.value).splitlines()) <= 6
    assert {f: c for f, c in contents(tmp_path).items() if f.name != "lock"} == before
    assert fit(tmp_path) == uninterrupted("plain")


def with_guide(guide=guides.DiagonalNormal, likelihood=likelihoods.Bernoulli, p=0.1, hidden=(6,)):
    """Return a program whose shapes depend on `hidden` only."""
    torch.manual_seed(0)
    guide, likelihood = guide(2), likelihood(4)
    encoder = nn.Sequential(mlp(4, guide.num_features, hidden=hidden), nn.Dropout(p), guide)
    decoder = nn.Sequential(mlp(2, likelihood.num_features, hidden=hidden), likelihood)
    return pv.VAE(priors.StandardNormal(2), encoder, decoder)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"guide": guides.Laplace}, "encoder.2 was DiagonalNormal(latent_dim=2), is Laplace(lat"),
        ({"likelihood": likelihoods.ContinuousBernoulli}, "is ContinuousBernoulli(event_shape=(4"),
        ({"p": 0.2}, "encoder.1 was Dropout(p=0.1, inplace=False), is Dropout(p=0.2, inplace"),
    ],
)
def test_parts_of_the_same_shapes_are_distinguished(change, match, tmp_path):
    stopped(tmp_path / "run", 3, make=with_guide)
    program = with_guide(**change)
    before = digest(dict(program.state_dict()))
    with pytest.raises(StateMismatchError, match="the program changed since") as caught:
        fit(tmp_path / "run", make=lambda: program)
    assert match in str(caught.value).replace("'", "")
    assert digest(dict(program.state_dict())) == before
    whole = fit(tmp_path / "whole", make=with_guide)
    assert fit(tmp_path / "run", make=with_guide) == whole


def test_another_version_may_describe_modules_differently(tmp_path, monkeypatch):
    stopped(tmp_path, 3, make=with_guide)
    monkeypatch.setattr(torch, "__version__", "99.0.0")
    monkeypatch.setattr(nn.Dropout, "extra_repr", lambda self: f"{self.p} of 1")
    with pytest.raises(StateMismatchError, match=r"encoder.2 was 'DiagonalNormal', is 'Laplace'"):
        fit(tmp_path, make=lambda: with_guide(guides.Laplace))
    with pytest.warns(UserWarning, match=r"\(torch 2.* not guaranteed"):
        fit(tmp_path, make=with_guide)


class Told(nn.Module):
    """A module that shows a parameter's value."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def extra_repr(self):
        return f"weight={self.weight:.3g}"


class Plain(nn.Module):
    """A module that shows a function, whose address changes, and draws to do so."""

    def extra_repr(self):
        return f"{halves}" + " drawn" * len(torch.rand(1))


FAMILIES = {"prior": PRIORS, "guide": GUIDES, "likelihood": LIKELIHOODS}
UNDER_CONTRACT = [(family, name) for family in FAMILIES for name in FAMILIES[family]]


@pytest.mark.parametrize(("family", "name"), UNDER_CONTRACT)
def test_training_does_not_change_the_description_of_a_part(family, name):
    part = FAMILIES[family][name].make()
    before, state = modules_of(part), generators()
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.mul_(0.7).add_(0.1)
    assert modules_of(part) == before
    assert generators() == state
    assert before["program"].startswith(type(part).__name__)


def test_settings_that_depend_on_values_are_left_out():
    said, state = modules_of(nn.Sequential(Told(), Plain())), generators()
    assert (said["0"], said["1"]) == ("Told", "Plain(<function halves> drawn)")
    assert modules_of(nn.Sequential(Told(), Plain())) == said
    assert generators() == state


def halves(epoch):
    return 0.5**epoch


SCHEDULED = {
    "none": (None, [1.0, 1.0]),
    "StepLR": (functools.partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5), None),
    "LambdaLR": (functools.partial(torch.optim.lr_scheduler.LambdaLR, lr_lambda=halves), None),
}


@pytest.mark.parametrize("name", SCHEDULED)
def test_a_new_learning_rate_is_allowed_and_applied(name, tmp_path):
    """The optimizer's state would restore the old one."""
    scheduler = SCHEDULED[name][0]
    rates = [1.0, 1.0, 1.0] if scheduler is None else [1.0, 0.5, 0.25]
    settings = SETTINGS | {"scheduler": scheduler, "run_dir": tmp_path}
    with at_step(5, interrupt), pytest.raises(KeyboardInterrupt):
        pv.fit(small_vae(), bits(), learning_rate=1e-3, **settings)
    history = pv.fit(small_vae(), bits(), learning_rate=2e-2, resume=True, **settings)
    assert history.changes == ["learning_rate was 0.001, is 0.02"]
    expected = [1e-3 * rates[0], 2e-2 * rates[1], 2e-2 * rates[2]]
    assert history["learning_rate"] == pytest.approx(expected, rel=1e-12)
    with RunFolder(tmp_path, resume=True) as run:
        (group,) = run.newest_complete().state["loop"]["optimizer"]["param_groups"]
    assert group["lr"] == pytest.approx(2e-2 * (1 if scheduler is None else 0.125), rel=1e-12)
    again = pv.fit(small_vae(), bits(), learning_rate=1e-3, resume=True, **settings)
    assert again.changes == [*history.changes, "learning_rate was 0.02, is 0.001"]


@pytest.mark.parametrize(("then", "now"), [("eager", "graph"), ("graph", "eager")])
def test_an_engine_with_the_same_results_is_accepted_and_noted(then, now, tmp_path, monkeypatch):
    monkeypatch.setattr("pyrovae.training.traced.REPAID", 0)
    stopped(tmp_path, 6, compile=then)
    program = small_vae()
    settings = SETTINGS | {"run_dir": tmp_path, "resume": True, "compile": now}
    history = pv.fit(program, bits(), **settings)
    assert (history.engine, history.changes) == (now, [f"compile was {then}, is {now}"])
    assert outcome(program, history, tmp_path) == uninterrupted("plain")


def test_auto_keeps_the_engine_of_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr("pyrovae.training.traced.REPAID", 0)
    stopped(tmp_path, 6, compile="graph")  # "auto" would not, for 12 steps
    settings = SETTINGS | {"run_dir": tmp_path, "resume": True, "compile": "auto"}
    history = pv.fit(small_vae(), bits(), **settings)
    assert (history.engine, history.changes) == ("graph", [])


@pytest.mark.parametrize(("then", "now"), [("eager", "inductor"), ("inductor", "graph")])
def test_an_engine_with_other_results_is_refused(then, now, tmp_path, monkeypatch):
    stopped(tmp_path, 6)
    with RunFolder(tmp_path, resume=True) as run:
        step, state, _ = run.newest_complete()
        run.save_step(step, state | {"engine": then})  # without the compiler's seconds
    program = small_vae()
    before = digest(dict(program.state_dict()))
    match = f"compile was '{then}', is '{now}'.*\nWrite compile='{then}' or 'auto'"
    with pytest.raises(StateMismatchError, match=match):
        fit(tmp_path, make=lambda: program, compile=now)
    assert digest(dict(program.state_dict())) == before


@pytest.mark.parametrize("asked", ["graph", "inductor"])
def test_an_engine_that_was_refused_is_not_a_change(asked, tmp_path):
    """Pyro's own objectives cannot be traced; the history still says so."""
    settings = {"objective": Trace_ELBO(), "compile": asked}
    stopped(tmp_path, 6, **settings)
    settings = SETTINGS | settings | {"run_dir": tmp_path, "resume": True}
    history = pv.fit(small_vae(), bits(), **settings)
    assert history.changes == []
    assert history.engine == "eager: Trace_ELBO is one of Pyro's own objectives"


def two_parts(epochs):
    """Return a scheduler of two parts, the second from epoch 1 to the end."""
    schedulers = torch.optim.lr_scheduler

    def make(optimizer):
        parts = schedulers.ConstantLR(optimizer), schedulers.LinearLR(optimizer, total_iters=epochs)
        return schedulers.SequentialLR(optimizer, [*parts], [1])

    return make


ONE_CYCLE = functools.partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=0.01)
WITH_LENGTH = {
    "CosineAnnealingLR": (lambda _: "CosineAnnealingLR", "T_max was 3, is 6"),
    "OneCycleLR": (lambda _: ONE_CYCLE, "total_steps was 3, is 6"),
    "of parts": (two_parts, "total_iters of part 2 was 3, is 6"),
}


@pytest.mark.parametrize("name", WITH_LENGTH)
@pytest.mark.filterwarnings("ignore:The epoch parameter")  # torch's own, of SequentialLR
def test_new_epochs_are_refused_if_they_are_the_length_of_a_schedule(name, tmp_path):
    make, match = WITH_LENGTH[name]
    stopped(tmp_path, 6, scheduler=make(3))
    program = small_vae()
    before = digest(dict(program.state_dict()))
    with pytest.raises(
        StateMismatchError, match=r"(?s)length changed.*Pass epochs=3, or"
    ) as caught:
        fit(tmp_path, make=lambda: program, scheduler=make(6), epochs=6)
    assert match in str(caught.value).replace("'", "")
    assert digest(dict(program.state_dict())) == before
    whole = fit(tmp_path / "whole", scheduler=make(3))
    assert fit(tmp_path, scheduler=make(3)) == whole


@pytest.mark.parametrize(
    "scheduler",
    [None, STEP_LR, functools.partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=6)],
)
def test_new_epochs_are_allowed_if_no_schedule_depends_on_them(scheduler, tmp_path):
    fit(tmp_path / "run", scheduler=scheduler)
    whole = fit(tmp_path / "whole", scheduler=scheduler, epochs=6)
    assert fit(tmp_path / "run", scheduler=scheduler, epochs=6) == whole


# Folders.


@pytest.mark.parametrize("name", ["", "a\0b", "a\nb", "ü" * 10**6, "a" * 251, 3])
def test_an_invalid_run_folder_is_refused_before_anything_changes(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    program = small_vae()
    before = digest(dict(program.state_dict()))
    with pytest.raises(ConfigError, match="path = ") as caught:
        pv.fit(program, bits(), run_dir=name)
    assert len(str(caught.value)) < 500
    assert digest(dict(program.state_dict())) == before
    assert not list(tmp_path.iterdir())


def test_a_run_writes_only_into_its_folder(tmp_path, monkeypatch):
    """A path may contain "..": the folder that it names holds everything."""
    monkeypatch.chdir(tmp_path)
    fit("a/../b", save_every=2)
    assert {path.name for path in tmp_path.iterdir()} <= {"a", "b"}
    assert not list((tmp_path / "a").glob("*"))
    assert (tmp_path / "b" / "model.safetensors").exists()


def test_a_folder_that_cannot_be_written_to_is_refused_before_step_1(tmp_path):
    (tmp_path / "file").write_text("mine")
    program = small_vae()
    before = digest(dict(program.state_dict()))
    for bad in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(CheckpointError, match="file"):
            pv.fit(program, bits(), run_dir=bad, callbacks=[lambda *_: pytest.fail("trained")])
    assert digest(dict(program.state_dict())) == before
    assert (tmp_path / "file").read_text() == "mine"
    assert fit(tmp_path / " a b  c" / "run 1 ") == uninterrupted("plain")


class Remembering(torch.optim.lr_scheduler.LambdaLR):
    """A scheduler whose state would need pickling."""

    def state_dict(self):
        return super().state_dict() | {"lambdas": self.lr_lambdas}


def with_complex_buffer():
    vae = small_vae()
    vae.register_buffer("phase", torch.ones(2, dtype=torch.complex64))
    return vae


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        (
            {"scheduler": functools.partial(Remembering, lr_lambda=halves)},
            "loop/scheduler/lambdas/0 is a function, but a checkpoint holds",
        ),
        ({"make": with_complex_buffer}, "loop/program/phase is a tensor of torch.complex64"),
    ],
)
def test_a_state_that_no_checkpoint_holds_is_refused_before_step_1(settings, match, tmp_path):
    """Not at the first checkpoint, after 30 seconds or more."""
    with at_step(1, lambda _: pytest.fail("trained")), pytest.raises(ConfigError, match=match):
        fit(tmp_path, **settings)
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_a_history_that_cannot_be_written_raises_an_error(tmp_path):
    (tmp_path / "history.csv").mkdir()
    program = small_vae()
    before = digest(dict(program.state_dict()))
    with pytest.raises(CheckpointError, match=r"history\.csv cannot be written"):
        pv.fit(program, bits(), run_dir=tmp_path, **SETTINGS)
    assert digest(dict(program.state_dict())) == before


def test_a_second_run_in_the_folder_is_refused_at_once(tmp_path):
    def second(program, record):
        before = contents(tmp_path)
        start = time.monotonic()
        with pytest.raises(RunLockedError) as caught:
            fit(tmp_path)
        assert time.monotonic() - start < 1
        assert caught.value.pid == os.getpid()
        assert contents(tmp_path) == before

    assert fit(tmp_path, callbacks=[second], save_every=4) == uninterrupted("plain")


# Another machine.


@pytest.fixture
def two_threads():
    """Return a function that sets two threads for the rest of the test."""
    before = torch.get_num_threads()
    yield functools.partial(torch.set_num_threads, 2)
    torch.set_num_threads(before)


def test_another_number_of_threads_raises_a_warning(tmp_path, monkeypatch, two_threads):
    """It points to the caller's line."""
    monkeypatch.setattr("pyrovae.runtime.threads.SMALL_STEP", 0)
    stopped(tmp_path, 6)
    two_threads()
    match = r"\(threads in use 1\).*bitwise equality.* not guaranteed"
    with pytest.warns(UserWarning, match=match) as said:
        history = pv.fit(small_vae(), bits(), run_dir=tmp_path, resume=True, **SETTINGS)
    assert [warning.filename for warning in said] == [__file__]
    assert torch.get_num_threads() == 2
    whole = pv.fit(small_vae(), bits(), **SETTINGS)
    assert history["elbo"] == pytest.approx(whole["elbo"], abs=1e-4)


def test_a_small_model_ignores_the_number_of_threads(tmp_path, two_threads):
    """Warnings are errors here."""
    stopped(tmp_path, 6)
    two_threads()
    assert fit(tmp_path) == uninterrupted("plain")


def test_another_version_of_torch_raises_a_warning(tmp_path, monkeypatch):
    stopped(tmp_path, 6)
    monkeypatch.setattr(torch, "__version__", "99.0.0")
    with pytest.warns(UserWarning, match=r"\(torch 2.* not guaranteed"):
        fit(tmp_path)


# The environment.


def test_clocks_that_jump_back(tmp_path, monkeypatch):
    now = iter(range(10**9, 0, -3600))
    for clock in ("time", "monotonic", "perf_counter"):
        monkeypatch.setattr(time, clock, lambda: float(next(now)))
    stopped(tmp_path, 6)
    assert fit(tmp_path) == uninterrupted("plain")


SCRIPT = """
import sys
sys.path[:0] = {path!r}
from test_resume import fit, stopped
stopped({folder!r}, 6)
print(fit({folder!r}))
"""

ENVIRONMENTS = {
    "all": {
        "PYTHONOPTIMIZE": "1",  # with 2 Pyro itself cannot be imported: it formats docstrings
        "PYTHONHASHSEED": "17",
        "HOME": None,
        "TMPDIR": "/nowhere",
    },
    "full": {"TMPDIR": "/dev/full"},
    "hash 0": {"PYTHONHASHSEED": "0"},
    "hash 1": {"PYTHONHASHSEED": "1"},
    "no home": {"HOME": None},
    "optimized": {"PYTHONOPTIMIZE": "1"},
}


@pytest.mark.slow  # a new interpreter each
@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_the_environment_does_not_change_the_run(name, tmp_path):
    env = {k: v for k, v in {**os.environ, **ENVIRONMENTS[name]}.items() if v is not None}
    path = [os.getcwd(), os.path.dirname(__file__)]
    code = SCRIPT.format(path=path, folder=str(tmp_path / "run"))
    command = [sys.executable, "-c", code]
    ran = subprocess.run(command, env=env, capture_output=True, text=True)
    assert ran.stdout.split() == [uninterrupted("plain")], ran.stderr[-2000:]


# Callbacks that raise.


@pytest.mark.parametrize("save_every", [1, None])
def test_a_run_that_a_callback_ended_stays_ended(save_every, tmp_path):
    settings = SETTINGS | {"epochs": 6, "save_every": save_every, "run_dir": tmp_path}

    def at_3(program, record):
        return record.epoch == 3

    ended, again = small_vae(), small_vae(seed=5)
    first = pv.fit(ended, bits(), callbacks=[at_3], **settings)
    second = pv.fit(again, bits(), callbacks=[at_3], resume=True, **settings)
    assert len(first) == len(second) == 3
    assert first.stopped_early
    assert second.stopped_early
    assert digest(ended.state_dict()) == digest(again.state_dict())


def test_a_callback_that_raises_leaves_the_state_intact(tmp_path):
    seen, program = [], small_vae()

    def broken(program, record):
        if record.epoch == 2:
            seen.append(digest(dict(program.state_dict())))
            raise OSError("the logger's disk is full") from ValueError("its cause")

    before = set(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else set()
    handlers = [signal.getsignal(s) for s in CODES]
    with pytest.raises(OSError, match="logger's disk") as caught:
        pv.fit(program, bits(), run_dir=tmp_path, callbacks=[broken], save_every=1, **SETTINGS)
    assert isinstance(caught.value.__cause__, ValueError)
    assert digest(dict(program.state_dict())) == seen[0]
    assert [signal.getsignal(s) for s in CODES] == handlers
    if before:
        assert set(os.listdir("/proc/self/fd")) == before
    assert fit(tmp_path, save_every=1) == uninterrupted("plain")


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_error_in_a_callback_loses_no_epoch(error, tmp_path):
    def broken(program, record):
        if record.epoch == 2:
            raise error("mine")

    with pytest.raises(error, match="mine"):
        fit(tmp_path, callbacks=[broken])
    with RunFolder(tmp_path, resume=True) as run:
        assert run.newest_complete().state["loop"]["epoch"] == 3
    assert fit(tmp_path) == uninterrupted("plain")


def test_history_csv_is_complete_after_every_interruption(tmp_path):
    for step in (3, 6, 11):
        stopped(tmp_path, step)
    fit(tmp_path)
    lines = (tmp_path / "history.csv").read_text().splitlines()
    assert [line.partition(",")[0] for line in lines] == ["epoch", "1", "2", "3"]


def test_the_saved_model_equals_the_program(tmp_path):
    program = small_vae()
    pv.fit(program, bits(), run_dir=tmp_path, ema_decay=0.9, validation=bits(9), **SETTINGS)
    found = pv.load(tmp_path / "model.safetensors")
    assert digest(dict(found.state_dict())) == digest(dict(program.state_dict()))
