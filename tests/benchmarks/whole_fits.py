"""Whole training runs: `fit`, a hand-written loop, and the trainer of pythae 0.1.2.

    python -m venv /tmp/pythae && /tmp/pythae/bin/pip install torch==2.13.0 pythae==0.1.2
    python tests/benchmarks/whole_fits.py --epochs 4 --pythae /tmp/pythae/bin/python

The same network (784-400-50-400-784), objective, Adam and 60 000 × 784 random bits for all. They
take turns, each run in a separate process. The script prints medians over the rounds: seconds of
the whole call (including checks, tracing or compiling, and a progress bar, but not making the data
or importing, torch's compiler included), ms per step in the epochs after the first, both also as
ratios to the hand-written loop, and the process's peak memory.
"""

import argparse
import importlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import torch
from torch import nn

NUM_DATA, EVENT, HIDDEN, LATENT = 60_000, 784, 400, 50


class Clock:
    """Seconds since the start: of the ends of the epochs, and of the whole."""

    def __init__(self) -> None:
        self.start, self.ends = time.perf_counter(), []

    def end_epoch(self, *_: Any) -> None:
        self.ends.append(time.perf_counter() - self.start)

    def times(self, steps: int) -> tuple[float, float]:
        """Seconds of the whole, and ms a step in the epochs after the first."""
        whole, (first, *_, last) = time.perf_counter() - self.start, self.ends
        return whole, (last - first) / (len(self.ends) - 1) / steps * 1e3


def bits() -> torch.Tensor:
    torch.manual_seed(0)
    return (torch.rand(NUM_DATA, EVENT) > 0.7).float()


def by_hand(x: torch.Tensor, epochs: int, batch_size: int) -> Clock:
    """The loop of training_speed.py."""
    from training_speed import SIZES, handwritten

    clock = Clock()
    run = handwritten(x, batch_size, SIZES["mnist"])
    for _ in range(epochs):
        run(-(-len(x) // batch_size))
        clock.end_epoch()
    return clock


def by_pyrovae(x: torch.Tensor, epochs: int, batch_size: int, compile: str = "auto") -> Clock:
    """`fit`."""
    import pyrovae as pv

    vae, fit = pv.build((EVENT,), latent_dim=LATENT, hidden=(HIDDEN,)), pv.fit  # imports both
    settings = {"epochs": epochs, "batch_size": batch_size, "compile": compile, "progress": True}
    clock = Clock()
    fit(vae, x, callbacks=[clock.end_epoch], **settings)
    return clock


def by_inductor(x: torch.Tensor, epochs: int, batch_size: int) -> Clock:
    """`fit` that compiles, worth it or not."""
    return by_pyrovae(x, epochs, batch_size, compile="inductor")


def by_pythae(x: torch.Tensor, epochs: int, batch_size: int) -> Clock:
    """`BaseTrainer.train`, with its defaults."""
    from pythae.data.datasets import BaseDataset
    from pythae.models import VAE, VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder
    from pythae.trainers import BaseTrainer, BaseTrainerConfig
    from pythae.trainers.training_callbacks import TrainingCallback

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
    data = BaseDataset(x, torch.zeros(len(x)))
    with tempfile.TemporaryDirectory() as folder:
        settings = BaseTrainerConfig(
            output_dir=folder,
            per_device_train_batch_size=batch_size,
            num_epochs=epochs,
            learning_rate=1e-3,
            no_cuda=True,
        )
        callback, clock = TrainingCallback(), Clock()
        callback.on_epoch_end = lambda *_, **__: clock.end_epoch()
        BaseTrainer(model, data, training_config=settings, callbacks=[callback]).train()
        return clock


ROLES = {
    "hand-written": by_hand,
    "pyrovae": by_pyrovae,
    "pyrovae, compiled": by_inductor,
    "pythae": by_pythae,
}


def measured(role: str, python: str, options: argparse.Namespace) -> list[float]:
    """Return seconds, ms per step and peak MiB of one training in a separate process."""
    command = [python, __file__, "--role", role, "--epochs", str(options.epochs)]
    command += ["--batch-size", str(options.batch_size)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    return [float(word) for word in ran.stdout.splitlines()[-1].split()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pythae", metavar="PYTHON", help="of an environment with pythae")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--role", choices=ROLES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role:
        importlib.import_module("torch._dynamo")  # as the first optimizer does, for seconds
        clock = ROLES[options.role](bits(), options.epochs, options.batch_size)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(*clock.times(-(-NUM_DATA // options.batch_size)), peak)
        return
    pythons = dict.fromkeys(ROLES, sys.executable) | {"pythae": options.pythae}
    found: dict[str, list[list[float]]] = {r: [] for r, p in pythons.items() if p}
    for _ in range(options.rounds):
        for role, results in found.items():
            results.append(measured(role, pythons[role], options))
            print(f"{role:18} {results[-1][0]:7.2f} s", flush=True)
    print(f"{options.epochs} epochs, batch {options.batch_size}, {torch.get_num_threads()} threads")
    medians = {r: [statistics.median(c) for c in zip(*v, strict=True)] for r, v in found.items()}
    whole, of_step, _ = medians["hand-written"]
    for role, (seconds, ms, peak) in medians.items():
        whole_ratio, step_ratio = seconds / whole, ms / of_step
        print(f"{role:18} {seconds:7.2f} s ({whole_ratio:.2f})", end="   ")
        print(f"{ms:6.2f} ms a step ({step_ratio:.2f})   {peak:6.0f} MiB")


if __name__ == "__main__":
    main()
