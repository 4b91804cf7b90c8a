"""Make the frozen model file of this release: `python -m tests.compat.freeze`, once a release.

`vae-<version>.safetensors` is a trained model, and `vae-<version>.json` beside it holds data x
and `log_p` of them at the time. Files of earlier releases are never made anew.
"""

import json
from pathlib import Path

import torch
from torch import Tensor

import pyrovae as pv
from pyrovae.checkpoint import save


def log_p(vae: pv.VAE, x: Tensor) -> Tensor:
    """(B,), nats: log p(x|z) + log p(z) − log q(z|x) at the mean z of q(z|x); draws nothing."""
    with torch.no_grad():
        q_z = vae.encode(x)
        z = q_z.mean
        return vae.decode(z).log_prob(x) + vae.prior().log_prob(z) - q_z.log_prob(z)


def main() -> None:
    path = Path(__file__).with_name(f"vae-{pv.__version__}.safetensors")
    x = torch.randint(2, (12, 4), generator=torch.Generator().manual_seed(0)).float()
    vae = pv.build((4,), hidden=(6,), prior="VampPrior", data=x[:5], seed=0)
    pv.fit(vae, x, epochs=20, learning_rate=0.02)
    save(vae, path)
    stored = {"x": x.tolist(), "log_p": log_p(vae, x).tolist()}
    path.with_suffix(".json").write_text(json.dumps(stored, indent=1) + "\n")


if __name__ == "__main__":
    main()
