"""The training monitor: it does not change the run, and agrees with the diagnostics."""

import math

import pyro.distributions as dist
import pytest
import torch
from helpers import bits, small_vae, unchanged
from torch import nn

import pyrovae as pv
from pyrovae.errors import ConfigError
from pyrovae.history import History
from pyrovae.runtime.run_folder import RunFolder
from pyrovae.training import monitor

X = bits()
SETTINGS = {"epochs": 3, "batch_size": 10, "seed": 1, "progress": False}


def trained(**settings):
    vae = small_vae()
    return vae, pv.fit(vae, X, **SETTINGS | settings)


@pytest.mark.parametrize("engine", ["eager", "graph"])
def test_a_monitor_does_not_change_the_run(engine):
    (plain, before), (seen, after) = (
        trained(compile=engine, diagnostics_every=every) for every in (None, 2)
    )
    assert all(
        torch.equal(a, b) for a, b in zip(plain.parameters(), seen.parameters(), strict=True)
    )
    assert after["elbo"] == before["elbo"]
    assert before.monitor == []
    assert [record["step"] for record in after.monitor] == [2, 4, 6, 8, 10, 12]


def test_a_monitor_does_not_change_running_statistics():
    found = []
    for every in (None, 2):
        vae = small_vae()
        network, head = vae.encoder
        vae.encoder = nn.Sequential(network, nn.BatchNorm1d(head.num_features), head)
        pv.fit(vae, X, diagnostics_every=every, **SETTINGS)
        found.append(vae.state_dict())
    assert all(torch.equal(t, found[1][name]) for name, t in found[0].items())


def test_a_frozen_encoder_has_no_signal_and_trains():
    vae = small_vae()
    vae.encoder.requires_grad_(False)
    history = pv.fit(vae, X, diagnostics_every=6, **SETTINGS)
    assert [math.isnan(record["signal_to_noise"]) for record in history.monitor] == [True, True]
    assert all(math.isfinite(record["rate"]) for record in history.monitor)


def test_a_program_without_an_encoder_is_refused_before_an_update():
    """It would fail at the first record, hours into a training."""
    prior = pv.priors.LearnedNormal(2)
    vae = small_vae()
    with (
        unchanged(prior, vae),
        pytest.raises(ConfigError, match="no latent inside the plate 'data'"),
    ):
        pv.refit_prior(vae, X, prior, diagnostics_every=1000, **SETTINGS)


@pytest.mark.parametrize(
    ("num_data", "rows"), [(1, [0]), (3, [0, 1, 2]), (2**24 + 4, [0, 2**24 + 3])]
)
def test_the_monitored_rows_range_from_first_to_last(num_data, rows):
    """In float32 the last of 2²⁴ + 4 rows is one beyond the end."""
    x = torch.zeros(num_data, dtype=torch.uint8)
    watched = monitor.Monitor(pv.build((1,), latent_dim=1), None, seed=0)
    x[rows[-1]] = 1
    watched.select_rows(monitor.Batch(x))
    assert watched.rows.x[-1] == 1
    assert len(watched.rows.x) == min(num_data, 500)


FLIGHT = [
    {"step": n, "rate": 0.1 * n, "active_units": n % 3, "kl_per_dimension": [1 / n, 1e-9] * 256}
    for n in range(1, 701)
]
FLIGHT[7] |= {"rate": math.nan}


@pytest.mark.parametrize("records", [FLIGHT, FLIGHT[:1], [], [{"a": 1}, {"b": [1, None]}]])
def test_any_number_of_records_is_restored_from_a_checkpoint(records, tmp_path):
    """700 of 512 dimensions would be 4.8 MB of JSON, more than a checkpoint may hold."""
    history, found = History(monitor=records), History()
    with RunFolder(tmp_path) as run:
        path = run.save_step(1, history.state())
        found.load(run.newest_complete().state)
    assert repr(found.monitor) == repr(records)  # the types, too, and NaN
    assert (path / "state.json").stat().st_size < 2000


def test_records_of_early_checkpoints_are_read():
    found = History()
    found.load(History().state() | {"monitor": FLIGHT[:2]})
    assert found.monitor == FLIGHT[:2]


def test_a_record_agrees_with_the_diagnostics_at_the_weights_of_that_step():
    vae, history = trained(diagnostics_every=4)
    last = history.monitor[-1]
    assert last["step"] == 12  # the last one: the weights are those
    found = pv.diagnostics.decompose_elbo(vae, X, num_samples=5, seed=1)
    assert last["elbo"] == pytest.approx(found.mean_elbo.value, rel=1e-6)
    assert last["rate"] == pytest.approx(found.mean_kl.value, rel=1e-6)
    assert last["distortion"] == pytest.approx(found.mean_reconstruction.value, rel=1e-6)
    assert last["mutual_information"] == pytest.approx(found.mutual_information.value, abs=1e-6)
    assert last["marginal_kl"] == pytest.approx(found.marginal_kl.value, abs=1e-6)
    torch.testing.assert_close(
        torch.tensor(last["kl_per_dimension"], dtype=torch.float64),
        found.kl_per_dimension.mean(0).double(),
    )
    assert last["active_units"] == pv.diagnostics.collapsed_dimensions(vae, X, seed=1).num_active
    assert last["elbo"] == pytest.approx(-last["rate"] - last["distortion"], rel=1e-5)


class Shifted(nn.Module):
    """N(m, s² I) for any x, with a mean to learn."""

    def __init__(self, mean, scale):
        super().__init__()
        self.mean = nn.Parameter(torch.tensor(mean))
        self.scale = scale

    def forward(self, x):
        return dist.Normal(self.mean.expand(len(x), 1), self.scale).to_event(1)


class Unit(nn.Module):
    """N(z, 1)."""

    def forward(self, z):
        return dist.Normal(z, 1.0).to_event(1)


@pytest.mark.filterwarnings("ignore:the decoder has no trainable")
def test_signal_to_noise_is_the_known_one(monkeypatch):
    """x ~ N(z, 1), z ~ N(0, 1), q = N(m, s²): the gradient is the mean of 2 z_i − x_i over i.

    Its mean is 2 m − x̄ and its standard deviation 2 s / √N, with log q's own part canceled.
    """
    num_gradients, mean, scale = 800, 0.8, 1.5
    monkeypatch.setattr(monitor, "NUM_GRADIENTS", num_gradients)
    x = torch.randn(30, 1, generator=torch.Generator().manual_seed(3))
    vae = pv.VAE(pv.priors.StandardNormal(1), Shifted(mean, scale), Unit())
    settings = SETTINGS | {"epochs": 1, "batch_size": 30, "learning_rate": 1e-9}
    history = pv.fit(vae, x, diagnostics_every=1, **settings)
    exact = abs(2 * mean - x.mean().item()) * math.sqrt(len(x)) / (2 * scale)
    # relative error of mean / sd from K draws: √(1 / 2K + 1 / (K SNR²)); five of them
    error = math.sqrt((0.5 + 1 / exact**2) / num_gradients)
    assert history.monitor[0]["signal_to_noise"] == pytest.approx(exact, rel=5 * error)


@pytest.mark.parametrize("every", [0, 1.5])
def test_a_number_of_steps_is_whole(every):
    with pytest.raises(ConfigError, match="diagnostics_every"):
        trained(diagnostics_every=every)
