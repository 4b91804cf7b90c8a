"""Several threads of one process: each finds the numbers that it finds alone, to the bit."""

import contextlib
import os
import signal
import sys
import threading
import time
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import bits, digest, small_vae, unchanged, with_dropout
from torch.utils.data import DataLoader

import pyrovae as pv
from pyrovae.handlers import RandomStream
from pyrovae.runtime.turns import TURN, Turn

X = bits(12)
PATIENCE = 60  # seconds until a test says that its threads wait for each other


def fitted(vae, seed, **settings):
    vae = with_dropout()
    history = pv.fit(vae, X, epochs=1, batch_size=2, seed=seed, validation=X, **settings)
    return [history[-1].elbo, history[-1].validation_elbo, *vae.state_dict().values()]


def loss(vae, seed):
    """The loss in train mode, dropout included."""
    with RandomStream(seed):
        return vae.loss(X)


def fitted_to_a_loader(vae, seed):
    return fitted_on(DataLoader(X, 3, shuffle=True), seed)


def fitted_on(x, seed):
    vae = small_vae()
    return [pv.fit(vae, x, epochs=2, seed=seed)[-1].elbo, *vae.state_dict().values()]


def saved(vae, seed, folder):
    path = pv.save(small_vae(seed=seed), folder / f"{seed}.safetensors")
    return list(pv.load(path).state_dict().values())


# name → (a VAE that all threads share, seed, folder) → numbers
JOBS = {
    "fit, eager": lambda vae, seed, _: fitted(vae, seed, compile="eager"),
    "fit, graph": lambda vae, seed, _: fitted(vae, seed, compile="graph"),
    "fit, loader": lambda vae, seed, _: fitted_to_a_loader(vae, seed),
    "log_evidence": lambda vae, seed, _: pv.log_evidence(vae, X, num_samples=20, seed=seed)[:4],
    "elbo_terms": lambda vae, seed, _: pv.elbo_terms(vae, X, seed=seed)[:3],
    "hmc": lambda vae, seed, _: (
        pv.posterior.hmc(vae, X[:2], num_samples=4, num_warmup=4, seed=seed).draws
    ),
    "loss": lambda vae, seed, _: loss(vae, seed),
    "encode": lambda vae, seed, _: vae.encode(X).mean,
    "sample": lambda vae, seed, _: vae.sample(3, seed=seed),
    "to_arviz": lambda vae, seed, _: (
        pv.to_arviz(vae, X, num_samples=5, seed=seed).posterior["z"].values
    ),
    "decompose_elbo": lambda vae, seed, _: (
        pv.diagnostics.decompose_elbo(vae, X, num_samples=3, seed=seed).mean_elbo
    ),
    "save and load": saved,
}


def bytes_of(found):
    if isinstance(found, list | tuple):
        return [part for one in found for part in bytes_of(one)]
    array = found.detach().numpy() if isinstance(found, torch.Tensor) else np.asarray(found)
    return [array.tobytes()]


def at_once(*calls):
    """Return the results of calls, each in its own thread, all started together."""
    found, start = [None] * len(calls), threading.Barrier(len(calls))

    def run(i):
        start.wait()
        try:
            found[i] = calls[i]()
        except BaseException as error:
            found[i] = error

    threads = [threading.Thread(target=run, args=(i,), daemon=True) for i in range(len(calls))]
    [thread.start() for thread in threads]
    [thread.join(PATIENCE) for thread in threads]
    assert not any(thread.is_alive() for thread in threads), "the threads wait for each other"
    for result in found:
        if isinstance(result, BaseException):
            raise result
    return found


@pytest.fixture
def _switching():
    """Threads take turns every 10 µs rather than every 5 ms."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@contextlib.contextmanager
def left_as_before(vae):
    """Assert that modes, flags, store, stack and generators are the same after the block."""

    def state():
        flags = [part.util.is_validation_enabled() for part in (dist, pyro.infer, pyro.poutine)]
        modes = [m.training for m in vae.modules()]
        store = list(pyro.get_param_store().keys()), pyro.poutine.runtime.am_i_wrapped()
        threads = torch.get_num_threads(), torch.is_grad_enabled(), threading.active_count()
        return flags, modes, store, threads, TURN.depth, TURN.is_awaited, len(warnings.filters)

    pyro.param("theirs", torch.ones(2))
    before = state()
    with unchanged(vae):
        yield
    assert state() == before


@pytest.mark.usefixtures("_switching")
@pytest.mark.parametrize("job", JOBS)
def test_three_threads_find_what_each_finds_alone(job, tmp_path):
    vae, call = with_dropout(), JOBS[job]
    alone = [bytes_of(call(vae, seed, tmp_path)) for seed in range(3)]
    with left_as_before(vae):
        for _ in range(3):
            calls = [lambda seed=seed: bytes_of(call(vae, seed, tmp_path)) for seed in range(3)]
            assert at_once(*calls) == alone


def test_runs_in_several_threads_leave_the_number_of_torch_threads():
    torch.set_num_threads(2)
    try:
        at_once(*[lambda seed=seed: fitted_on(X, seed) for seed in range(4)])
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


@pytest.mark.usefixtures("_switching")
def test_all_jobs_at_once_on_one_model_find_what_each_finds_alone(tmp_path):
    vae = with_dropout()
    alone = [bytes_of(call(vae, 0, tmp_path)) for call in JOBS.values()]
    with left_as_before(vae):
        for _ in range(3):
            calls = [lambda call=call: bytes_of(call(vae, 0, tmp_path)) for call in JOBS.values()]
            assert at_once(*calls) == alone


def test_a_model_is_read_between_two_steps_of_its_training():
    """The run is undisturbed, and what is read within a turn has the same weights, in eval mode."""

    def trained(vae):
        pv.fit(vae, bits(400), epochs=1, batch_size=1, compile="eager")
        return digest(vae)

    undisturbed = trained(with_dropout())
    vae, done = with_dropout(), []
    thread = threading.Thread(target=lambda: done.append(trained(vae)))
    thread.start()
    num_read = 0
    while thread.is_alive():
        with TURN:
            first, second = vae.encode(X).mean, vae.encode(X).mean
        assert torch.equal(first, second)
        vae.loss(X)
        num_read += thread.is_alive()
        time.sleep(1e-3)
    thread.join()
    assert num_read > 20
    assert done == [undisturbed]
    assert not vae.training


def test_a_callback_may_wait_for_other_threads():
    vae = small_vae()

    def callback(model, record):
        at_once(*[lambda: pv.log_evidence(model, X, num_samples=20)] * 2)

    assert len(pv.fit(vae, X, epochs=2, callbacks=[callback])) == 2


def test_a_signal_handler_may_read_a_model_while_its_thread_waits_or_works():
    vae, seen = small_vae(), []
    expected = vae.encode(X).mean
    before = signal.signal(signal.SIGALRM, lambda *_: seen.append(vae.encode(X).mean))
    release = threading.Event()

    def hold():
        with TURN:
            release.wait(PATIENCE)

    thread = threading.Thread(target=hold)
    try:
        thread.start()
        while not TURN.depth:
            time.sleep(1e-3)
        threading.Timer(0.1, release.set).start()
        signal.setitimer(signal.ITIMER_REAL, 0.02)
        assert torch.equal(vae.encode(X).mean, expected)  # waits, and the signal arrives
        with RandomStream(0):
            signal.raise_signal(signal.SIGALRM)
    finally:
        signal.signal(signal.SIGALRM, before)
    thread.join()
    assert len(seen) == 2
    assert all(torch.equal(mean, expected) for mean in seen)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_process_forked_during_another_threads_evaluation_has_its_own_turn():
    vae, inside, release = small_vae(), threading.Event(), threading.Event()
    expected = bytes_of(pv.elbo_terms(vae, X)[:3])

    def hold():
        with RandomStream(0), pv.handlers.evaluation(vae), pyro.poutine.block():
            inside.set()
            release.wait(PATIENCE)

    thread = threading.Thread(target=hold)
    thread.start()
    inside.wait()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # a fork with threads
        child = os.fork()
    if not child:
        os._exit(0 if bytes_of(pv.elbo_terms(vae, X)[:3]) == expected else 1)
    release.set()
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_process_forked_within_a_turn_continues():
    with TURN:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if not child:
            TURN.__exit__()  # as the end of the block would
            os._exit(TURN.depth)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_given_turn_goes_to_the_thread_that_waits():
    turn, order = Turn(), []

    def wait():
        with turn:
            order.append("other")

    thread = threading.Thread(target=wait)
    with turn:
        thread.start()
        while not turn.is_awaited:
            time.sleep(1e-3)
        turn.give()  # has no effect inside a turn
        order.append("first")
    turn.give()
    with turn:
        order.append("second")
    thread.join()
    assert order == ["first", "other", "second"]


@pytest.mark.slow
@pytest.mark.usefixtures("_switching")
def test_loaders_with_worker_processes_in_several_threads():
    def call(seed):
        return bytes_of(fitted_on(DataLoader(X, 3, shuffle=True, num_workers=2), seed))

    alone = [call(seed) for seed in range(2)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        assert at_once(lambda: call(0), lambda: call(1)) == alone
