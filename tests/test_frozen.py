"""This release reads the files of earlier ones, which are frozen in `tests/compat/`."""

import json
import shutil

import pytest
import torch

import pyrovae as pv
from tests.compat.freeze import FOLDER, log_p, run

MODELS = sorted(FOLDER.glob("vae-*.safetensors"))
RUNS = sorted(path for path in FOLDER.glob("run-*") if path.is_dir())


def stored_beside(path):
    return json.loads(path.with_name(f"{path.name.removesuffix('.safetensors')}.json").read_text())


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_a_frozen_model_has_the_same_log_p_and_can_be_trained(path):
    stored = stored_beside(path)
    vae = pv.load(path)
    found = log_p(vae, torch.tensor(stored["x"]))
    assert found.tolist() == pytest.approx(stored["log_p"], rel=1e-6, abs=1e-6)
    pv.fit(vae, torch.tensor(stored["x"]), epochs=1)


@pytest.mark.filterwarnings("ignore:the run began elsewhere")
@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.name)
def test_a_frozen_run_ends_like_an_uninterrupted_one(path, tmp_path):
    """It trains on from other initial weights: the rest of epoch 3, and three more epochs."""
    stored = stored_beside(path)
    shutil.copytree(path, tmp_path / "run")
    found = run(stored, run_dir=tmp_path / "run", resume=True, initial_seed=1)
    # on another machine within 1e-4 nat
    assert torch.allclose(torch.tensor(found), torch.tensor(stored["elbo"]), rtol=0, atol=1e-4)


def test_this_release_has_a_frozen_model_and_run():
    """`python -m tests.compat.freeze` makes them."""
    assert {path.stem for path in MODELS} >= {f"vae-{pv.__version__}"}
    assert {path.name for path in RUNS} >= {f"run-{pv.__version__}"}
