"""Cost of a training step relative to a hand-written loop and the plain Pyro recipe.

    python tests/benchmarks/training_speed.py mnist --batch-size 64
    python tests/benchmarks/training_speed.py digits --batch-size 64

All contenders train the same network by the same objective with Adam on preloaded random
bits. They take turns, a round of steps each, in one process; the script prints medians over the
rounds in ms per step, and ratios to the hand-written loop. whole_fits.py times whole training runs.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import pyro
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

import pyrovae as pv
from pyrovae.contract import validated
from pyrovae.handlers import own_store
from pyrovae.objectives import TraceELBO
from pyrovae.training.eager import EagerLoss, Settings
from pyrovae.training.optimizers import optimizer_of
from pyrovae.training.step import TrainingStep
from pyrovae.training.traced import ENGINES

SIZES = {
    "mnist": {"num_data": 60_000, "event": 784, "hidden": 400, "latent": 50},
    "digits": {"num_data": 1437, "event": 64, "hidden": 100, "latent": 10},
}
Run = Callable[[int], None]


class Handwritten(nn.Module):
    """What a good engineer writes: two networks, one sample, a Monte-Carlo KL."""

    def __init__(self, event: int, hidden: int, latent: int):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Linear(event, hidden), nn.SiLU(), nn.Linear(hidden, 2 * latent)
        )
        self.decoder = nn.Sequential(nn.Linear(latent, hidden), nn.SiLU(), nn.Linear(hidden, event))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        loc, raw = self.encoder(x).chunk(2, -1)
        scale = softplus(raw) + 1e-5
        noise = torch.randn_like(loc)
        z = loc + scale * noise
        logits = self.decoder(z)
        reconstruction = binary_cross_entropy_with_logits(logits, x, reduction="sum")
        kl = (0.5 * (z**2 - noise**2) - scale.log()).sum()
        return (reconstruction + kl) / len(x)


def minibatches(x: torch.Tensor, size: int):
    """For ever: shuffled minibatches, epoch after epoch."""
    while True:
        for index in torch.randperm(len(x)).split(size):
            yield x[index]


def handwritten(x: torch.Tensor, size: int, sizes: dict, autocast: bool = False) -> Run:
    """A loop in plain PyTorch: preloaded tensors, fused Adam."""
    model = Handwritten(sizes["event"], sizes["hidden"], sizes["latent"])
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, fused=True)
    batches = minibatches(x, size)

    def run(num_steps: int) -> None:
        for _ in range(num_steps):
            optimizer.zero_grad()
            model(next(batches)).backward()
            optimizer.step()

    return run


def vae_of(sizes: dict) -> pv.VAE:
    """The same network in pyrovae."""
    return pv.build((sizes["event"],), latent_dim=sizes["latent"], hidden=(sizes["hidden"],))


def plain_pyro(x: torch.Tensor, size: int, sizes: dict) -> Run:
    """Pyro's own recipe: SVI, pyro.optim.Adam, Trace_ELBO, validation on."""
    vae = vae_of(sizes)
    adam = pyro.optim.Adam({"lr": 1e-3})
    svi = pyro.infer.SVI(vae.model, vae.guide, adam, pyro.infer.Trace_ELBO())
    batches, store = minibatches(x, size), pyro.get_param_store().get_state()

    def run(num_steps: int) -> None:
        nonlocal store
        with own_store():
            pyro.get_param_store().set_state(store)
            for _ in range(num_steps):
                svi.step(next(batches))
            store = pyro.get_param_store().get_state()

    return run


def of_pyrovae(x: torch.Tensor, size: int, sizes: dict, *, engine: str, precision="float32") -> Run:
    """The steps of `fit` by one of its engines."""
    vae = vae_of(sizes)
    settings = Settings(len(x), is_bfloat16=precision == "bf16")
    loss = EagerLoss(vae, TraceELBO(), lambda batch: settings)
    optimizer = optimizer_of("Adam", loss.parameters, 1e-3)
    steps = TrainingStep(vae, ENGINES[engine](loss, full_size=size), optimizer)
    data = validated(vae, x, batch_size=size)
    batches = (batch for _ in iter(int, 1) for batch in data.epoch(shuffle=True))

    def run(num_steps: int) -> None:
        with own_store(), pyro.validation_enabled(False):
            for _ in range(num_steps):
                steps.take(next(batches), "")

    return run


def contenders(x: torch.Tensor, size: int, sizes: dict, precision: str) -> dict[str, Run]:
    """Name → a function that makes a number of steps."""
    ours = {
        f"pyrovae, {engine}, {p}": of_pyrovae(x, size, sizes, engine=engine, precision=p)
        for p in dict.fromkeys(["float32", precision])
        for engine in ENGINES
    }
    return {
        "hand-written PyTorch": handwritten(x, size, sizes),
        "plain Pyro recipe": plain_pyro(x, size, sizes),
    } | ours


def compare(runs: dict[str, Run], rounds: int, num_steps: int) -> dict[str, float]:
    """Name → median ms a step; the contenders take turns."""
    for run in runs.values():
        run(20)  # recording and compiling are not part of a step
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run(num_steps)
            times[name].append((time.perf_counter() - start) / num_steps * 1e3)
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sizes", choices=SIZES)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--precision", default="float32")
    options = parser.parse_args()
    sizes, size = SIZES[options.sizes], options.batch_size
    torch.manual_seed(0)
    x = (torch.rand(sizes["num_data"], sizes["event"]) > 0.7).float()
    print(f"{options.sizes}, batch {size}, {torch.get_num_threads()} threads")
    times = compare(contenders(x, size, sizes, options.precision), options.rounds, options.steps)
    base, plain = times["hand-written PyTorch"], times["plain Pyro recipe"]
    for name, ms in times.items():
        print(f"{name:32} {ms:8.3f} ms  {ms / base:5.2f} of hand-written  {plain / ms:5.2f} x Pyro")


if __name__ == "__main__":
    main()
