"""A small trained model and the findings on it, shared by the tests of the report."""

import functools

import torch

import pyrovae as pv
from pyrovae.report.findings import examine


def bumps(n, seed):
    """n binary images (8, 8) of one bump at a random place: two latents are the truth."""
    generator = torch.Generator().manual_seed(seed)
    center = torch.rand(n, 1, 1, 2, generator=generator) * 7
    pixel = torch.stack(torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij"), -1)
    gray = 0.03 + 0.94 * torch.exp(-((pixel - center) ** 2).sum(-1) / (2 * 1.5**2))
    return torch.bernoulli(gray, generator=generator)


@functools.cache
def small_model():
    x = bumps(300, 0)
    vae = pv.build((8, 8), latent_dim=2, hidden=(32,), data=x, seed=0)
    pv.fit(vae, x, epochs=40, batch_size=50, learning_rate=5e-3, seed=0)
    return vae


@functools.cache
def small_findings():
    sizes = {"num_samples": 100, "num_steps": 5}
    return examine(small_model(), bumps(300, 0), test=bumps(60, 9), **sizes)


def change(found, **parts):
    """Findings with other fields in some of their records."""
    for name, fields in parts.items():
        found = found._replace(**{name: getattr(found, name)._replace(**fields)})
    return found
