"""Training from a memory-mapped file against training from memory, on a warm cache.

    python tests/benchmarks/memory_mapped.py --repeats 5

Same numbers, network, seed and batches of 128. The runs alternate; the seconds per epoch exclude
the validation and the first epoch, and the fastest epoch of a run counts. CPU seconds are printed
alongside wall-clock seconds: on a warm cache nothing waits for a disk, and CPU seconds exclude
other work on the machine. Smaller networks hide less of the reading.
"""

import argparse
import statistics
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

import pyrovae as pv


def seconds_per_epoch(x: np.ndarray, hidden: tuple[int, ...], epochs: int) -> tuple[float, float]:
    """Seconds of the clock and of the CPU, each of the fastest epoch but the first."""
    vae = pv.build((x.shape[1],), latent_dim=10, hidden=hidden, seed=0)
    ends = []
    see = lambda *args: ends.append((time.perf_counter(), time.process_time()))  # noqa: E731
    pv.fit(vae, x, epochs=epochs, callbacks=[see], progress=False)
    return tuple(min(b - a for a, b in pairwise(clock)) for clock in zip(*ends, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--width", type=int, default=784)
    parser.add_argument("--hidden", type=int, nargs="+", default=[300, 300])
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dtype", default="float32")
    settings = parser.parse_args()
    torch.set_num_threads(1)
    x = np.random.default_rng(0).integers(0, 2, (settings.rows, settings.width), "u1")
    x, hidden = x.astype(settings.dtype), tuple(settings.hidden)
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.npy")
        np.save(path, x)
        for _ in range(settings.repeats):
            inside = seconds_per_epoch(x, hidden, settings.epochs)
            mapped = seconds_per_epoch(np.load(path, mmap_mode="r"), hidden, settings.epochs)
            ratios.append([b / a for a, b in zip(inside, mapped, strict=True)])
            print(
                f"in memory {inside[0]:.3f} s (CPU {inside[1]:.3f} s), "
                f"mapped {mapped[0]:.3f} s (CPU {mapped[1]:.3f} s) an epoch",
                flush=True,
            )
        megabytes = path.stat().st_size / 1e6
    clock, cpu = (statistics.median(ratio) for ratio in zip(*ratios, strict=True))
    print(
        f"hidden {hidden}, {megabytes:.0f} MB of {settings.dtype}: "
        f"median ratio {clock:.3f}, of CPU time {cpu:.3f}"
    )


if __name__ == "__main__":
    main()
