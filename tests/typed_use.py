"""Uses of the public interface, for `mypy --strict --follow-imports=silent tests/typed_use.py`."""

import torch

import pyrovae as pv

data = pv.datasets.digits()
x = pv.datasets.binarize(data.train)
vae = pv.VAE(
    pv.priors.StandardNormal(2),
    torch.nn.Sequential(torch.nn.Linear(64, 4), pv.guides.DiagonalNormal(2)),
    torch.nn.Sequential(torch.nn.Linear(2, 64), pv.likelihoods.Bernoulli((8, 8))),
)
built: pv.VAE = pv.build((8, 8), latent_dim=2)
history = pv.fit(vae, x, epochs=5)
elbo: float = history[-1].elbo
loss: torch.Tensor = vae.loss(x)
found = pv.log_evidence(vae, x, method="auto")
upper: torch.Tensor = found.upper
terms = pv.elbo_terms(vae, x)
parts = pv.diagnostics.decompose_elbo(vae, x)
value: float = parts.mean_elbo.value
draws: torch.Tensor = pv.posterior.hmc(vae, x).draws
pv.save(vae, "a.safetensors")
again: pv.VAE = pv.load("a.safetensors")
