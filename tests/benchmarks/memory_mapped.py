"""Training from a memory-mapped file against training from memory, on a warm cache.

    python tests/benchmarks/memory_mapped.py --repeats 5

Same numbers, network, seed and batches of 128. One run of each in turn; the seconds of an epoch
leave out the check at the door and the first epoch. Once with the network of `build`, once
with a small one, whose steps hide less of the reading.
"""

import argparse
import itertools
import statistics
import tempfile
from pathlib import Path

import numpy as np
import torch

import pyrovae as pv


def seconds_per_epoch(x: np.ndarray, hidden: tuple[int, ...], epochs: int) -> float:
    """The median over all epochs but the first."""
    vae = pv.build((x.shape[1],), latent_dim=10, hidden=hidden, seed=0)
    ends = pv.fit(vae, x, epochs=epochs, progress=False)["seconds"]
    return statistics.median(b - a for a, b in itertools.pairwise(ends))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--width", type=int, default=784)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dtype", default="float32")
    settings = parser.parse_args()
    torch.set_num_threads(1)
    x = np.random.default_rng(0).integers(0, 2, (settings.rows, settings.width)).astype("u1")
    x = x.astype(settings.dtype)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.npy")
        np.save(path, x)
        for hidden in ((300, 300), (16,)):
            pairs = []
            for _ in range(settings.repeats):
                mapped = np.load(path, mmap_mode="r")
                pair = [seconds_per_epoch(data, hidden, settings.epochs) for data in (x, mapped)]
                print("in memory {:.3f} s, mapped {:.3f} s an epoch".format(*pair), flush=True)
                pairs.append(pair)
            ratio = statistics.median(b / a for a, b in pairs)
            megabytes = path.stat().st_size / 1e6
            print(f"hidden {hidden}, {megabytes:.0f} MB of {settings.dtype}: ratio {ratio:.3f}")


if __name__ == "__main__":
    main()
