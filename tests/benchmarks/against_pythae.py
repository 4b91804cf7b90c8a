"""Whole trainings beside those of pythae 0.1.2, which runs in an environment of its own.

    python -m venv /tmp/pythae && /tmp/pythae/bin/pip install torch==2.13.0 pythae==0.1.2
    python tests/benchmarks/against_pythae.py /tmp/pythae/bin/python --epochs 4

The same network (784-400-50-400-784), objective, Adam, batch 64, 60 000 random bits. The two take
turns, a training in a process of its own each; printed are seconds of `fit` and of
`BaseTrainer.train` (imports and data outside), medians, and their ratio.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time

import torch
from torch import nn

NUM_DATA, EVENT, HIDDEN, LATENT, BATCH = 60_000, 784, 400, 50, 64


def bits() -> torch.Tensor:
    torch.manual_seed(0)
    return (torch.rand(NUM_DATA, EVENT) > 0.7).float()


def fit_pyrovae(x: torch.Tensor, epochs: int) -> float:
    """Seconds of a whole `fit`."""
    import pyrovae as pv

    vae = pv.build((EVENT,), latent_dim=LATENT, hidden=(HIDDEN,))
    start = time.perf_counter()
    pv.fit(vae, x, epochs=epochs, batch_size=BATCH, progress=True)
    return time.perf_counter() - start


def train_pythae(x: torch.Tensor, epochs: int) -> float:
    """Seconds of `BaseTrainer.train`, with its defaults."""
    from pythae.data.datasets import BaseDataset
    from pythae.models import VAE, VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder
    from pythae.trainers import BaseTrainer, BaseTrainerConfig

    class Encoder(BaseEncoder):
        def __init__(self):
            super().__init__()
            self.hidden = nn.Sequential(nn.Linear(EVENT, HIDDEN), nn.SiLU())
            self.loc, self.log_var = nn.Linear(HIDDEN, LATENT), nn.Linear(HIDDEN, LATENT)

        def forward(self, x):
            h = self.hidden(x)
            return ModelOutput(embedding=self.loc(h), log_covariance=self.log_var(h))

    class Decoder(BaseDecoder):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(
                nn.Linear(LATENT, HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, EVENT), nn.Sigmoid()
            )

        def forward(self, z):
            return ModelOutput(reconstruction=self.layers(z))

    config = VAEConfig(input_dim=(EVENT,), latent_dim=LATENT, reconstruction_loss="bce")
    model = VAE(config, encoder=Encoder(), decoder=Decoder())
    with tempfile.TemporaryDirectory() as folder:
        trainer = BaseTrainer(
            model,
            BaseDataset(x, torch.zeros(len(x))),
            training_config=BaseTrainerConfig(
                output_dir=folder,
                per_device_train_batch_size=BATCH,
                num_epochs=epochs,
                learning_rate=1e-3,
                no_cuda=True,
            ),
        )
        start = time.perf_counter()
        trainer.train()
        return time.perf_counter() - start


ROLES = {"pyrovae": fit_pyrovae, "pythae": train_pythae}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("python", help="of the environment with pythae")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--role", choices=ROLES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role:
        return print("seconds", ROLES[options.role](bits(), options.epochs))
    seconds: dict[str, list[float]] = {role: [] for role in ROLES}
    for _ in range(options.rounds):
        for role, python in (("pyrovae", sys.executable), ("pythae", options.python)):
            command = [python, __file__, python, "--role", role, "--epochs", str(options.epochs)]
            ran = subprocess.run(command, capture_output=True, text=True, check=True)
            seconds[role].append(float(ran.stdout.rsplit("seconds", 1)[1]))
    medians = {role: statistics.median(values) for role, values in seconds.items()}
    for role, value in medians.items():
        print(f"{role:8} {value:7.2f} s for {options.epochs} epochs, batch {BATCH}")
    return print(f"ratio {medians['pythae'] / medians['pyrovae']:.2f}")


if __name__ == "__main__":
    main()
