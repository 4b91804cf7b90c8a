"""Exported encoders and decoders give the numbers of the VAE, run by other software."""

import onnxruntime
import pytest
import torch
from helpers import bits, conditional, semi_supervised, unchanged
from torch import nn

import pyrovae as pv
from pyrovae.errors import ConfigError, DataError

SETTINGS = {
    "bits": ({}, (4,)),
    "images": ({"network": "conv", "hidden": (4, 4)}, (8, 8)),
    "counts": ({"likelihood": "NegativeBinomial", "guide": "FullNormal"}, (4,)),
}


def in_onnx(path, **inputs):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    named = {name: value.numpy() for name, value in inputs.items()}
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, map(torch.from_numpy, session.run(None, named)), strict=True))


def in_torch(path, **inputs):
    found = torch.export.load(path).module()(*inputs.values())
    return dict(zip(("mean", "stddev"), found, strict=False))


def made(name):
    settings, event = SETTINGS[name]
    vae = pv.build(event, latent_dim=2, seed=0, **settings)
    x = bits(7, *event)
    y = torch.linspace(1, 3, 7) if name == "counts" else None
    return vae, x, y


@pytest.mark.parametrize(("suffix", "run"), [("onnx", in_onnx), ("pt2", in_torch)])
@pytest.mark.parametrize("name", SETTINGS)
def test_the_file_gives_the_numbers_of_the_vae(name, suffix, run, tmp_path):
    vae, x, y = made(name)
    vae.train()
    with unchanged(vae):
        encoder = pv.export(vae, tmp_path / f"encoder.{suffix}", x, y)
        decoder = pv.export(vae, tmp_path / f"decoder.{suffix}", x, y, part="decoder")
    assert vae.training
    z = torch.randn(5, 2)
    q, given_y = vae.encode(x, y), {} if y is None else {"y": y[:5]}
    for rows in (7, 1):  # the number of rows is free
        found = run(encoder, x=x[:rows])
        torch.testing.assert_close(found["mean"], q.mean[:rows], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found["stddev"], q.stddev[:rows], rtol=1e-4, atol=1e-5)
    exact = vae.decode(z, *given_y.values()).mean
    torch.testing.assert_close(run(decoder, z=z, **given_y)["mean"], exact, rtol=1e-4, atol=1e-5)


def test_an_encoder_that_sees_covariates_takes_them(tmp_path):
    vae, x = conditional(), bits(6, 4)
    y = torch.arange(6) % 3
    path = pv.export(vae, tmp_path / "encoder.onnx", x, y)
    mean = in_onnx(path, x=x, y=y)["mean"]
    torch.testing.assert_close(mean, vae.encode(x, y).mean, rtol=1e-4, atol=1e-5)


class Branching(nn.Module):
    """A network that depends on the values of its input."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return self.layer(x) if float(x.sum()) > 0 else -self.layer(x)


def branching():
    vae = pv.build((4,), latent_dim=2)
    q = pv.guides.DiagonalNormal(2)
    return pv.VAE(vae.prior, nn.Sequential(Branching(), q), vae.decoder)


@pytest.mark.parametrize(
    ("vae", "arguments", "match"),
    [
        (pv.build((4,)), {"path": "encoder.pkl"}, r"must end in \.onnx or \.pt2"),
        (pv.build((4,)), {"part": "prior"}, "'encoder' and a 'decoder'"),
        (semi_supervised(), {}, "parts of a VAE"),
        (pv.build((4,), guide="FlowGuide"), {}, "no mean and stddev in closed form"),
        (branching(), {}, "torch.export cannot trace"),
    ],
)
def test_what_cannot_be_exported_is_named(vae, arguments, match, tmp_path):
    arguments = {"path": "encoder.pt2"} | arguments
    path = tmp_path / arguments.pop("path")
    with pytest.raises(ConfigError, match=match):
        pv.export(vae, path, bits(3, 4), **arguments)
    assert not path.exists()


def test_data_that_do_not_fit_write_nothing(tmp_path):
    path = tmp_path / "encoder.onnx"
    path.write_text("before")
    with pytest.raises(DataError):
        pv.export(pv.build((4,)), path, bits(3, 5))
    assert path.read_text() == "before"
