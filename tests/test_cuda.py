"""Tests that need a GPU: training in each engine, bf16, resuming, evidence, generators."""

import numpy as np
import pytest
import scipy.sparse
import torch
from helpers import bits, digest, final_state, small_vae, state_of, with_dropout
from torch.utils.data import DataLoader, TensorDataset

import pyrovae as pv
from pyrovae import objectives
from pyrovae.diagnostics import decompose_elbo

DEVICE = "cuda"
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
SETTINGS = {"epochs": 3, "batch_size": 10, "seed": 1, "device": DEVICE}


def is_there(program):
    return all(t.device.type == DEVICE for t in program.state_dict().values())


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # in torch itself
@pytest.mark.parametrize("compile", ["eager", "graph", "inductor"])
def test_it_trains_there_as_on_the_cpu(compile):
    """The draws are others, so after 60 epochs the ELBO is compared: 0.3 nat is 5 SE of 37 data."""
    elbos = []
    for device in ("cpu", DEVICE):
        program = small_vae()
        settings = SETTINGS | {"device": device, "epochs": 60, "compile": compile}
        history = pv.fit(program, bits(), validation=bits(9), learning_rate=0.01, **settings)
        assert history.engine == compile
        elbos.append(history[-1].elbo)
    assert is_there(program)
    assert abs(elbos[0] - elbos[1]) < 0.3


def test_the_recorded_step_is_that_of_the_handlers():
    found = []
    for compile in ("eager", "graph"):
        program = with_dropout()
        pv.fit(program, bits(), **SETTINGS | {"compile": compile})
        found.append(state_of(program))
    for name in found[0]:
        torch.testing.assert_close(found[0][name], found[1][name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize(
    "objective", [objectives.TraceELBO(), objectives.IWAE(3), objectives.FreeBits(0.1)]
)
def test_objectives_and_precisions_train(objective, precision):
    program = small_vae()
    history = pv.fit(program, bits(), objective=objective, precision=precision, **SETTINGS)
    assert is_there(program)
    assert all(torch.isfinite(torch.tensor(history["elbo"])))
    assert all(p.dtype == torch.float32 for p in program.parameters())


@pytest.mark.parametrize("compile", ["eager", "graph"])
def test_a_stopped_run_goes_on_bit_for_bit(compile, tmp_path):
    """Stopped after its third epoch; the newest checkpoint is from within that epoch."""

    def run(folder, **settings):
        program = with_dropout()
        settings = SETTINGS | settings | {"ema_decay": 0.9, "compile": compile, "epochs": 4}
        pv.fit(program, bits(), run_dir=folder, resume=True, **settings)
        return digest([state_of(program), final_state(folder)])

    def stop(_, record):
        if record.epoch == 3:
            raise InterruptedError

    whole = run(tmp_path / "whole")
    with pytest.raises(InterruptedError):
        run(tmp_path / "run", save_every=5, callbacks=[stop])
    torch.rand(3, device=DEVICE)  # what the process draws meanwhile does not matter
    assert run(tmp_path / "run") == whole


def test_a_run_of_a_gpu_goes_on_without_one(tmp_path):
    """And the other way round; the draws that are left are others, the weights are not."""
    for first, second in ((DEVICE, "cpu"), ("cpu", DEVICE)):
        folder, program = tmp_path / first, small_vae()
        options = SETTINGS | {"run_dir": folder, "resume": True, "compile": "eager"}
        pv.fit(program, bits(), **options | {"device": first})
        again = small_vae()
        with pytest.warns(UserWarning, match="bitwise equality .* not guaranteed"):
            pv.fit(again, bits(), **options | {"device": second})  # all epochs are done
        for name, tensor in state_of(program).items():
            assert torch.equal(state_of(again)[name], tensor)
        with pytest.warns(UserWarning, match="bitwise equality .* not guaranteed"):
            history = pv.fit(again, bits(), **options | {"device": second, "epochs": 5})
        assert len(history) == 5


def test_the_callers_generators_there_are_as_they_were():
    torch.rand(1, device=DEVICE)
    before = torch.cuda.get_rng_state()
    program = small_vae()
    pv.fit(program, bits(), **SETTINGS)
    pv.log_evidence(program, bits(), num_samples=50)
    program.sample(3, seed=0)
    assert torch.equal(torch.cuda.get_rng_state(), before)


def test_data_of_any_kind_go_there(tmp_path):
    x = bits()
    np.save(tmp_path / "x.npy", x.numpy())
    kinds = [
        x.to(DEVICE),
        np.load(tmp_path / "x.npy", mmap_mode="r"),
        scipy.sparse.csr_array(x.numpy()),
        DataLoader(TensorDataset(x), batch_size=10, shuffle=True, pin_memory=True),
    ]
    for data in kinds:
        history = pv.fit(small_vae(), data, **SETTINGS)
        assert history.num_data == len(x)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("iwae", {"num_samples": 3000}),
        ("ais", {"num_samples": 20, "num_temperatures": 100}),
        ("grid", {}),
    ],
)
def test_evidence_is_that_of_the_cpu(method, options):
    program, x = small_vae(), bits(6)
    exact = pv.log_evidence(program, x, method="grid").log_px
    found = pv.log_evidence(program.to(DEVICE), x, method=method, **options)
    error = torch.nan_to_num(found.std_error.cpu(), nan=0.0)
    assert ((found.log_px.cpu() - exact).abs() < 5 * error + 1e-3).all()


def test_diagnostics_and_draws_are_made_there():
    program, x = small_vae().to(DEVICE), bits(20)
    assert decompose_elbo(program, x, num_samples=3).mean_elbo.value < 0
    assert pv.diagnostics.active_units(program, x).num_active >= 0
    assert pv.posterior.sir(program, x, num_samples=20).draws.shape[2] == 20
    assert pv.posterior.hmc(program, x[:3], num_samples=5, num_warmup=5).draws.shape[2] == 3


def test_a_full_gpu_halves_the_chunk():
    """A limit on what the process may take there, which the default budget does not know."""
    program = pv.build((784,), latent_dim=2, hidden=(400,), seed=0).to(DEVICE)
    x = (torch.rand(64, 784) < 0.5).float()
    expected = pv.log_evidence(program, x, num_samples=4000).log_px
    torch.cuda.empty_cache()
    free = torch.cuda.memory_allocated() + 2**28
    torch.cuda.set_per_process_memory_fraction(free / torch.cuda.mem_get_info()[1])
    try:
        budget = 2**32
        found = pv.log_evidence(program, x, num_samples=4000, memory_budget=budget)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert (found.log_px - expected).abs().max() < 5 * (found.std_error * 2**0.5).max()


def test_a_model_of_a_gpu_is_loaded_on_the_cpu(tmp_path):
    program = small_vae().to(DEVICE)
    path = pv.save(program, tmp_path / "vae.safetensors")
    again = pv.load(path)
    assert all(p.device.type == "cpu" for p in again.parameters())
    for name, tensor in program.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor.cpu())
