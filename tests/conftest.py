"""Fixtures of every test: one torch thread, fixed seeds, global state unchanged.

Two worker processes share the tests file by file (pytest-xdist, in pyproject.toml), so what a
file trains once is trained once. In one process, say under a debugger: `pytest -n 0`.
"""

import os

import matplotlib
import pyro
import pytest
import torch

from pyrovae.runtime.turns import TURN

matplotlib.use("Agg")
torch.set_num_threads(1)  # small matrices: a second thread only waits for the first


@pytest.fixture(autouse=True)
def _fresh_process_state():
    """Each test starts from seed 0, an empty parameter store, and Pyro's own settings."""
    torch.default_generator.manual_seed(0)  # torch.manual_seed also writes down the whole stack
    if torch.accelerator.is_available():
        torch.manual_seed(0)
    pyro.clear_param_store()
    yield
    pyro.clear_param_store()
    pyro.enable_validation(True)
    assert not TURN.depth, "the turn was not given back: other threads would wait forever"


@pytest.fixture
def float64():
    """Default dtype float64 for tests that compare with exact numbers."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def data_folder() -> str:
    """The folder of real data sets, or a skip with the reason."""
    folder = os.environ.get("PYROVAE_DATA")
    if not folder:
        pytest.skip("needs real data: set PYROVAE_DATA to the folder that holds them")
    return folder
