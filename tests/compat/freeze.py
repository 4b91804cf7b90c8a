"""Make the frozen files of this release: `python -m tests.compat.freeze`, once per release.

    vae-<version>.safetensors   a trained model; the .json of this name has data x and their log_p
    run-<version>/              a run stopped within an epoch; the .json of this name has the data,
                                the settings, and the ELBO of each epoch of the complete run

Existing files are never overwritten, so those of earlier releases stay.
"""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import pyrovae as pv
from pyrovae.history import Epoch
from pyrovae.model_file import save

FOLDER = Path(__file__).parent
BUILD = {"event_shape": 4, "latent_dim": 2, "hidden": [5], "prior": "VampPrior"}
SETTINGS = {
    "epochs": 6,
    "batch_size": 5,
    "learning_rate": 0.02,
    "scheduler": "CosineAnnealingLR",
    "ema_decay": 0.9,
    "max_grad_norm": 5.0,
    "compile": "eager",
    "seed": 7,
}


def log_p(vae: pv.VAE, x: Tensor) -> Tensor:
    """(B,), nats: log p(x|z) + log p(z) − log q(z|x) at the mean z of q(z|x); draws nothing."""
    with torch.no_grad():
        q_z = vae.encode(x)
        z = q_z.mean
        return vae.decode(z).log_prob(x) + vae.prior().log_prob(z) - q_z.log_prob(z)


def run(stored: dict[str, Any], *, initial_seed: int = 0, **options: Any) -> list[list[float]]:
    """Train as stored; return each epoch's ELBO in training and validation, nats per datum."""
    x, held_out = torch.tensor(stored["x"]), torch.tensor(stored["validation"])
    vae = pv.build(**stored["build"], data=x, seed=initial_seed)
    history = pv.fit(vae, x, validation=held_out, **stored["settings"], **options)
    return [[record.elbo, record.validation_elbo] for record in history]


def freeze_model(path: Path, x: Tensor) -> None:
    """Write a trained model, and its log_p of x."""
    vae = pv.build((4,), hidden=(6,), prior="VampPrior", data=x[:5], seed=0)
    pv.fit(vae, x, epochs=20, learning_rate=0.02)
    save(vae, path)
    write(path.with_suffix(".json"), {"x": x.tolist(), "log_p": log_p(vae, x).tolist()})


def freeze_run(path: Path, x: Tensor) -> None:
    """Write a checkpoint within the third epoch of a run: after 2 of its 3 batches."""
    stored = {"build": BUILD, "settings": SETTINGS}
    stored |= {"x": x.tolist(), "validation": x[:5].tolist()}

    def stop(_: Any, record: Epoch) -> None:
        if record.epoch == 3:
            raise InterruptedError

    with tempfile.TemporaryDirectory() as folder:
        try:
            run(stored, run_dir=folder, save_every=4, callbacks=[stop])
        except InterruptedError:
            shutil.copytree(Path(folder, "step-00000008"), path / "step-00000008")
    write(path.with_name(f"{path.name}.json"), stored | {"elbo": run(stored)})


def write(path: Path, value: Any) -> None:
    """Write JSON that is readable in a diff."""
    path.write_text(json.dumps(value, indent=1) + "\n")


def main() -> None:
    x = torch.randint(2, (12, 4), generator=torch.Generator().manual_seed(0)).float()
    frozen = {
        f"vae-{pv.__version__}.safetensors": freeze_model,
        f"run-{pv.__version__}": freeze_run,
    }
    for name, freeze in frozen.items():
        if not (FOLDER / name).exists():
            freeze(FOLDER / name, x)


if __name__ == "__main__":
    main()
