"""The spread of numbers over fits: known spreads, and that of real fits against both errors."""

import math

import pytest
import torch

import pyrovae as pv
from pyrovae.diagnostics import Estimate
from pyrovae.errors import ConfigError
from pyrovae.training.seeds import Headline

X = torch.rand(200, 4, generator=torch.Generator().manual_seed(0)).round()
QUICK = {"epochs": 1, "progress": False}


def make(seed):
    return pv.build((4,), latent_dim=2, seed=seed)


def test_both_errors_of_known_numbers():
    made = []

    def numbered(seed):
        made.append(seed)
        return make(seed)

    def numbers(program, x, y, mask):
        return {"a": Estimate(float(made[-1]), 0.5), "b": 2.0}

    found = pv.seed_spread(numbered, X, numbers=numbers, refits=4, seed=7, **QUICK)
    assert made == [7, 8, 9, 10]
    a, b = found.numbers["a"], found.numbers["b"]
    assert (a.mean, a.data_error) == (8.5, 0.5)
    assert a.seed_error == pytest.approx(math.sqrt(5 / 3))  # of 7, 8, 9, 10
    assert a.of_one_fit.std_error == pytest.approx(math.sqrt(5 / 3 + 0.25))
    assert (b.seed_error, b.data_error) == (0.0, 0.0)
    assert math.isnan(Headline(torch.ones(1), 0.0).seed_error)
    assert str(found).splitlines()[1].split() == ["a", "8.500", "1.291", "0.500"]


def test_each_number_is_that_of_its_own_fit():
    found = pv.seed_spread(make, X, held_out=X[:50], refits=2, **QUICK)
    for index, program in enumerate(found.programs):
        alone = make(index)
        pv.fit(alone, X, seed=index, **QUICK)
        expected = pv.log_evidence(alone, X[:50]).log_px.mean()
        assert found.numbers["log_px"].values[index] == pytest.approx(expected.item(), abs=1e-5)
        assert torch.equal(program.encode(X).mean, alone.encode(X).mean)
    assert found.numbers["elbo"].seed_error > 0
    assert found.numbers["log_px"].data_error > 0


def test_no_spread_without_a_difference():
    """Negative control: the same weights and the same order of batches."""

    def constant(program, x, y, mask):
        return {"mean": program.encode(x).mean.mean().item()}

    spread = [
        pv.seed_spread(f, X, numbers=constant, refits=2, learning_rate=1e-12, **QUICK).numbers[
            "mean"
        ]
        for f in (make, lambda seed: make(0))
    ]
    assert spread[0].seed_error > 1e-3
    assert spread[1].seed_error < 1e-6


def test_covariates_masks_and_mistakes():
    x = X.clone()
    x[0, 0] = torch.nan
    found = pv.seed_spread(make, x, mask=~x.isnan(), refits=1, **QUICK)
    assert math.isnan(found.numbers["elbo"].seed_error)
    vae = make(0)
    with pytest.raises(ConfigError, match="the same program twice"):
        pv.seed_spread(lambda seed: vae, X, refits=2, **QUICK)
    with pytest.raises(ConfigError, match="refits"):
        pv.seed_spread(make, X, refits=0, **QUICK)
