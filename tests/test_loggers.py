"""Loggers write what the history says, and leave no file open."""

import csv
import warnings

import pytest
import torch

import pyrovae as pv
from pyrovae.errors import CheckpointError, ConfigError


def trained(logger):
    vae = pv.build((3,), latent_dim=1, hidden=(4,), seed=0)
    x = torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 1.0]])
    return pv.fit(vae, x, validation=x, epochs=3, callbacks=[logger])


def test_csv_holds_the_history(tmp_path):
    history = trained(pv.loggers.CSV(tmp_path / "run.csv"))
    with open(tmp_path / "run.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["elbo"]) for row in rows] == history["elbo"]
    assert [float(row["validation_kl"]) for row in rows] == history["validation_kl"]


def test_csv_replaces_an_old_file(tmp_path):
    for _ in range(2):
        trained(pv.loggers.CSV(tmp_path / "run.csv"))
    assert len((tmp_path / "run.csv").read_text().splitlines()) == 4


def test_csv_in_no_folder_says_so(tmp_path):
    with pytest.raises(CheckpointError, match=r"cannot be written.*\n.*existing folder"):
        trained(pv.loggers.CSV(tmp_path / "missing" / "run.csv"))


@pytest.mark.parametrize("name", ["", "a\0b", "a\nb", "ü" * 10**6])
@pytest.mark.parametrize("make", [pv.loggers.CSV, pv.loggers.TensorBoard])
def test_a_name_that_no_file_can_have(make, name):
    with pytest.raises(ConfigError, match="path = ") as caught:
        make(name)
    assert len(str(caught.value)) < 500


def test_tensorboard_gets_each_scalar_once_an_epoch(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what tensorboard's own imports warn of
        pytest.importorskip("tensorboard", reason="needs pyrovae[loggers]")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        history = trained(pv.loggers.TensorBoard(tmp_path))
        events = EventAccumulator(str(tmp_path))
        events.Reload()
        tags = events.Tags()["scalars"]
        values = [e.value for e in events.Scalars("validation/elbo")]
    assert {"training/elbo", "training/learning_rate", "validation/kl"} <= set(tags)
    assert values == pytest.approx(history["validation_elbo"], rel=1e-6)
