"""Batches of one row in programs with batch normalization: refused before the weights move."""

import pytest
import torch
from helpers import bits, digest, small_vae, unchanged
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import pyrovae as pv
from pyrovae.errors import ConfigError


class Counting(nn.Module):
    """A layer with a Python attribute that counts its calls in train mode."""

    calls = 0

    def forward(self, features):
        self.calls += self.training
        return features


def with_layer(layer):
    vae = small_vae()
    vae.encoder[0].insert(1, layer)
    return vae


@pytest.mark.parametrize(
    ("x", "settings", "advice"),
    [
        (bits(33), {"batch_size": 16}, r"N = 33, batch_size = 16.*\n.*Write batch_size=15;"),
        (bits(33), {"batch_size": 16, "accumulate_batches": 2}, "batch_size=15"),
        (bits(5), {"batch_size": 1}, "batch_size=3; or use nn.LayerNorm"),
        (bits(1), {}, "Train on more rows"),
        (TensorDataset(bits(9)), {"batch_size": 4}, "batch_size=3"),
        (DataLoader(bits(9), 4, shuffle=True), {}, "batch_size=3"),
    ],
)
def test_a_batch_of_one_row_is_refused_before_training(x, settings, advice):
    vae = with_layer(nn.BatchNorm1d(8))
    with unchanged(vae), pytest.raises(ConfigError, match=r"has one row(.|\n)*" + advice) as caught:
        pv.fit(vae, x, epochs=1, **settings)
    assert str(caught.value).count("\n") < 6
    assert vae.training


def test_the_advised_batch_size_and_a_loader_that_drops_it_train():
    pv.fit(with_layer(nn.BatchNorm1d(8)), bits(33), epochs=1, batch_size=15)
    pv.fit(with_layer(nn.BatchNorm1d(8)), DataLoader(bits(33), 16, drop_last=True), epochs=1)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(bits(9))


def test_a_stream_of_unknown_length_stops_before_the_update():
    vae = with_layer(nn.BatchNorm1d(8))
    seen = []
    vae.encoder[0][0].register_forward_pre_hook(lambda *_: seen.append(digest(vae)))
    with pytest.raises(ConfigError, match=r"one row(.|\n)*as after step 2"):
        pv.fit(vae, Stream(), epochs=1, batch_size=4)
    assert digest(vae) == seen[-1]


@pytest.mark.parametrize("layer", [nn.LayerNorm(8), nn.Dropout(0.1)])
def test_other_programs_train_on_one_row_as_before(layer):
    pv.fit(with_layer(layer), bits(33), epochs=1, batch_size=16)


def test_the_trial_leaves_no_trace():
    """Attributes and running statistics are those of the steps alone."""
    layer = nn.Sequential(Counting(), nn.BatchNorm1d(8, eps=1e-3))
    vae = with_layer(layer)
    with pytest.raises(ConfigError, match="one row"):
        pv.fit(vae, bits(33), epochs=1, batch_size=16)
    assert layer[0].calls == 0
    assert layer[1].num_batches_tracked == 0
    torch.manual_seed(0)
    counting = with_layer(Counting())
    pv.fit(counting, bits(33), epochs=1, batch_size=16)
    assert counting.encoder[0][1].calls == 3
