"""Everything is on the device of the program, checked without a GPU.

On the device "meta" tensors have shapes and no values, and as on a GPU it is an error to mix them
with tensors of the main memory. What needs values, such as the checks of data, is tested on
a GPU in `test_cuda.py`.
"""

import re

import pyro
import pytest
import torch
from contracts import OBJECTIVES, all_parts, features_for

import pyrovae as pv
from pyrovae import objectives
from pyrovae.data import Batch
from pyrovae.handlers import own_store
from pyrovae.runtime.random_stream import RandomStream
from pyrovae.training.eager import EagerLoss, Settings

NEED_VALUES = r"\.item\(\) cannot be called|attempted to run this operator with Meta|nonzero"


@all_parts
def test_a_part_computes_where_its_parameters_are(part):
    module = part.make().to("meta")
    features = features_for(module, 3).to("meta") if hasattr(module, "num_features") else None
    with pyro.validation_enabled(False):
        try:
            density = module() if features is None else module(features)
            draws = density.rsample() if density.has_rsample else density.sample()
            log_prob = density.log_prob(draws)
        except (RuntimeError, NotImplementedError) as error:
            if not re.search(NEED_VALUES, str(error)):
                raise
            pytest.skip("an operation of torch needs values")
    assert log_prob.device.type == draws.device.type == "meta"


@pytest.mark.parametrize("name", OBJECTIVES)
def test_loss_gradients_and_reported_terms_are_on_the_programs_device(name):
    vae = pv.build((4,), latent_dim=2, hidden=(8,), prior="LearnedNormal", seed=0).to("meta")
    loss = EagerLoss(vae, OBJECTIVES[name](), lambda _: Settings(num_data=10))
    with own_store(), pyro.validation_enabled(False):
        outcome = loss(Batch(torch.ones(5, 4, device="meta")))
    assert outcome.loss.device.type == outcome.sums.device.type == "meta"
    assert outcome.gradient_sum.device.type == "meta"


def test_so_are_those_of_global_latents():
    vae = pv.build((4,), latent_dim=2, hidden=(8,), seed=0)
    scale = pv.priors.StandardNormal(1), pv.priors.LearnedNormal(1)
    program = pv.programs.BayesianVAE(vae.prior, vae.encoder, vae.decoder, *scale).to("meta")
    loss = EagerLoss(program, objectives.TraceELBO(), lambda _: Settings(10, has_globals=True))
    with own_store(), pyro.validation_enabled(False):
        outcome = loss(Batch(torch.ones(5, 4, device="meta")))
    assert outcome.loss.device.type == outcome.sums.device.type == "meta"


class Gpus:
    """Stand-in for torch.cuda with two GPUs, in use or not yet."""

    def __init__(self, monkeypatch, *, is_used):
        self.states, self.is_used = [torch.tensor([0]), torch.tensor([0])], is_used
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: self.is_used)
        for name in ("get_rng_state_all", "set_rng_state_all", "manual_seed_all"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))

    def get_rng_state_all(self):
        return [state.clone() for state in self.states]

    def set_rng_state_all(self, states):
        self.states = [state.clone() for state in states]

    def manual_seed_all(self, seed):
        self.states = [torch.tensor([seed]), torch.tensor([seed])]

    def draw(self):
        for state in self.states:
            state += 1
        return [int(state) for state in self.states]


def test_a_stream_has_the_generators_of_gpus_too(monkeypatch):
    gpus = Gpus(monkeypatch, is_used=True)
    stream = RandomStream(70)
    gpus.draw()
    with stream:
        assert gpus.draw() == [71, 71]
    with stream:
        assert gpus.draw() == [72, 72]
    assert gpus.draw() == [2, 2]


def test_a_stream_does_not_seed_gpus_that_are_not_used_yet(monkeypatch):
    """torch.manual_seed would: the caller's first draws there would be ours."""
    gpus = Gpus(monkeypatch, is_used=False)
    stream = RandomStream(70)
    assert gpus.draw() == [1, 1]
    gpus.is_used = True
    with stream:
        assert gpus.draw() == [71, 71]
    assert gpus.draw() == [2, 2]
