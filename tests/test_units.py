"""Raw tables train as standardized ones do, and units are counted in the density."""

import math

import numpy as np
import pytest
import torch
from sklearn.datasets import load_wine

import pyrovae as pv
from pyrovae.errors import ConfigError
from pyrovae.likelihoods import HeteroscedasticNormal, Normal, StudentT
from pyrovae.likelihoods.moments import center_and_spread

HEADS = {
    "Normal": lambda **units: Normal(2, 2.0, **units),
    "Normal, learned": lambda **units: Normal(2, 2.0, learn_scale=True, **units),
    "HeteroscedasticNormal": lambda **units: HeteroscedasticNormal(2, **units),
    "StudentT": lambda **units: StudentT(2, **units),
}
CENTER, SPREAD = torch.tensor([100.0, -3.0]), torch.tensor([5.0, 0.1])


@pytest.mark.parametrize("name", ["HeteroscedasticNormal", "StudentT"])
def test_log_density_is_that_of_standardized_data_less_log_spread(name, float64):
    center, spread = CENTER.double(), SPREAD.double()
    torch.manual_seed(0)
    u = torch.randn(5, 2)
    plain, scaled = HEADS[name](), HEADS[name](center=center, spread=spread)
    features = torch.randn(5, plain.num_features)
    found = scaled(features).log_prob(center + spread * u)
    assert torch.allclose(found, plain(features).log_prob(u) - spread.log().sum(), atol=1e-6)
    assert torch.allclose(scaled(features).mean, center + spread * plain(features).mean)


@pytest.mark.parametrize("learn_scale", [True, False])
def test_a_given_scale_is_in_the_units_of_x(learn_scale):
    head = Normal(2, 2.0, learn_scale=learn_scale, center=CENTER, spread=SPREAD)
    assert torch.allclose(head(torch.zeros(1, 2)).base_dist.scale, torch.tensor(2.0))


def test_a_learned_scale_starts_at_the_spread():
    assert torch.allclose(Normal(2, learn_scale=True, spread=SPREAD).scale, SPREAD, rtol=1e-4)
    assert torch.allclose(StudentT(2, spread=SPREAD).scale, SPREAD, rtol=1e-4)
    assert Normal(2, spread=SPREAD).scale == 1
    assert Normal(2).scale == 1


@pytest.mark.parametrize(
    "units", [{"spread": torch.tensor([1.0, 0.0])}, {"center": torch.ones(3)}, {"spread": math.inf}]
)
def test_wrong_units_are_refused(units):
    with pytest.raises(ConfigError, match=r"HeteroscedasticNormal: (center|spread) has shape"):
        HeteroscedasticNormal(2, **units)


def test_center_and_spread_leave_out_hidden_cells():
    x = torch.tensor([[1.0, math.nan, 7.0], [3.0, math.nan, 7.0], [math.nan, math.nan, 7.0]])
    center, spread = center_and_spread(x)
    assert center.tolist() == [2, 0, 7]
    assert spread.tolist() == [1, 1, 7]


@pytest.mark.parametrize("name", ["Normal", "HeteroscedasticNormal", "StudentT"])
def test_a_built_model_is_in_the_units_of_its_data(name, tmp_path):
    x = torch.tensor(load_wine().data).float()
    settings = {"latent_dim": 1, "hidden": (4,), "seed": 0}
    vae = pv.build(13, likelihood=name, data=x, **settings)
    head = vae.decoder[-1]
    assert torch.allclose(head.center, x.mean(0), rtol=1e-5)
    assert torch.allclose(head.spread, x.std(0, correction=0), rtol=1e-4)
    assert torch.allclose(vae.encoder.inputs(x).mean(0), torch.zeros(13), atol=1e-3)
    again = pv.load(pv.save(vae, tmp_path / "m"))
    assert torch.equal(again.encode(x).mean, vae.encode(x).mean)
    assert torch.equal(again.decoder[-1].spread, head.spread)
    without = pv.build(13, likelihood=name, **settings)
    assert without.decoder[-1].center is None
    assert "center" not in without.state_dict()  # files of earlier models load


def test_raw_data_train_as_standardized_data_do():
    """The same seed, so the same steps up to rounding: log p differs by the Jacobian alone."""
    x = load_wine().data
    z = (x - x.mean(0)) / x.std(0)
    found = []
    for data in (x, z):
        vae = pv.build(13, likelihood="HeteroscedasticNormal", data=data, seed=0, hidden=(20,))
        pv.fit(vae, data, epochs=15, seed=0)
        found.append(pv.elbo_terms(vae, data).log_weights.mean().item())
    assert found[0] == pytest.approx(found[1] - np.log(x.std(0)).sum(), abs=0.01)


def test_fit_warns_of_data_far_from_the_units_of_the_features():
    x = torch.tensor(load_wine().data).float()
    vae = pv.build(13, likelihood="Normal", latent_dim=1, hidden=(4,))
    match = r"(?s)x\[:, 12\] has a standard deviation of 314.*data=x"
    with pytest.warns(UserWarning, match=match) as said:
        pv.fit(vae, x, epochs=1)
    assert len(said) == 1
    kinds = {"name": "Columns", "kinds": ["Normal"] * 12 + ["Poisson"]}
    vae = pv.build(13, likelihood=kinds, latent_dim=1, hidden=(4,))
    with pytest.warns(UserWarning, match=r"x\[:, 4\] has a standard deviation of 28"):
        pv.fit(vae, torch.cat([2 * x[:, :12], x[:, 12:]], 1), epochs=1)


@pytest.mark.parametrize("name", ["Normal", "HeteroscedasticNormal", "StudentT"])
def test_fit_does_not_warn_of_units_where_they_fit(name):
    x = torch.tensor(load_wine().data).float()
    settings = {"latent_dim": 1, "hidden": (4,), "likelihood": name}
    pv.fit(pv.build(13, data=x, **settings), x, epochs=1)
    pv.fit(pv.build(13, **settings), (x - x.mean(0)) / x.std(0), epochs=1)


@pytest.mark.parametrize("network", ["mlp", "conv"])
def test_pixels_share_one_spread(network):
    x = torch.zeros(40, 6, 6)
    x[:, 2:4, 2:4] = torch.rand(40, 2, 2, generator=torch.Generator().manual_seed(0))
    x[0, 0, 0] = 1.0  # a pixel that is on once
    vae = pv.build((6, 6), likelihood="Normal", network=network, hidden=(4,), data=x, seed=0)
    assert vae.decoder[-1].spread.unique().numel() == 1
    assert vae.encoder.inputs(x).abs().max() < 10
    assert type(vae.encoder[-1]).__name__ == "DiagonalNormal"
    assert pv.fit(vae, x, epochs=1)[0].elbo < 0


def test_a_spread_whose_square_would_be_0_counts_as_constant():
    x = torch.tensor([[0.0, 0.0], [1.2e-38, 1e-12]])
    assert center_and_spread(x)[1].tolist() == pytest.approx([1.0, 5e-13])
    vae = pv.build(2, likelihood={"name": "Normal", "learn_scale": True}, data=x, seed=0)
    assert vae.loss(x).isfinite().all()
