"""Uses of the public interface, for `mypy --strict --follow-imports=silent tests/typed_use.py`."""

from typing import Any, assert_type

import torch

import pyrovae as pv
from pyrovae.evidence import Evidence


def use() -> None:
    """Call the public interface; only a type checker reads it."""
    data = pv.datasets.digits()
    x: Any = pv.datasets.binarize(data.train)
    vae = pv.VAE(
        pv.priors.StandardNormal(2),
        torch.nn.Sequential(torch.nn.Linear(64, 4), pv.guides.DiagonalNormal(2)),
        torch.nn.Sequential(torch.nn.Linear(2, 64), pv.likelihoods.Bernoulli((8, 8))),
    )
    assert_type(pv.build((8, 8), latent_dim=2), pv.VAE)
    history = pv.fit(vae, x, epochs=5)
    assert_type(history.epochs[-1].elbo, float)
    assert_type(vae.loss(x), torch.Tensor)
    found = pv.log_evidence(vae, x, method="auto")
    assert_type(found, Evidence)
    assert_type(found.upper, torch.Tensor)
    assert_type(pv.elbo_terms(vae, x).elbo, torch.Tensor)
    assert_type(pv.diagnostics.decompose_elbo(vae, x).mean_elbo.value, float)
    assert_type(pv.posterior.hmc(vae, x).draws, torch.Tensor)
    pv.save(vae, "a.safetensors")
    assert_type(pv.load("a.safetensors"), pv.VAE)
    assert_type(pv.load("a.safetensors", into=vae.decoder), torch.nn.Module)
