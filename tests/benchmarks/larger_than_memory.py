"""Memory while training from a file of many gigabytes, which is written first and then deleted.

    python tests/benchmarks/larger_than_memory.py --gigabytes 20 --seconds 120

`fit` validates the whole file, then trains on shuffled blocks spread over all of it, and is stopped
by Ctrl-C after the given seconds of training. RssAnon is the process's own memory, sampled ten
times a second; it does not include pages of the file, which the system reclaims when needed.
"""

import argparse
import re
import signal
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

import pyrovae as pv
from pyrovae.training.step import TrainingStep


def anonymous() -> int:
    """Bytes of memory that belong to no file."""
    text = Path("/proc/self/status").read_text()
    return int(re.search(r"RssAnon:\s+(\d+) kB", text)[1]) * 1024


class Peak(threading.Thread):
    """The largest `anonymous` since the start."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.start_bytes = self.most = anonymous()

    def run(self) -> None:
        while True:
            self.most = max(self.most, anonymous())
            time.sleep(0.1)


def write(path: Path, num_rows: int, width: int, dtype: str) -> None:
    """A .npy of zeros and ones: 64 MiB at random, over and over, each time moved by some bytes."""
    header = np.lib.format.header_data_from_array_1_0(np.empty((0, width), dtype))
    block = np.random.default_rng(0).integers(0, 2, 2**26 // np.dtype(dtype).itemsize, "u1")
    block, left = block.astype(dtype), num_rows * width
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header | {"shape": (num_rows, width)})
        while left:
            part = np.roll(block, left % 9973)[:left]
            part.tofile(file)
            left -= len(part)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=20.0)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--width", type=int, default=784)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--folder", default=None)
    settings = parser.parse_args()
    torch.set_num_threads(1)
    row = settings.width * np.dtype(settings.dtype).itemsize
    steps = []

    def counted(self, batch, where, take=TrainingStep.take):
        if not steps:
            signal.setitimer(signal.ITIMER_REAL, settings.seconds)
        steps.append(time.perf_counter())
        return take(self, batch, where)

    TrainingStep.take = counted
    signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
    with tempfile.TemporaryDirectory(dir=settings.folder) as folder:
        path, start = Path(folder, "x.npy"), time.perf_counter()
        write(path, int(settings.gigabytes * 1e9) // row, settings.width, settings.dtype)
        size, seconds = path.stat().st_size, time.perf_counter() - start
        print(f"wrote {size / 1e9:.2f} GB in {seconds:.0f} s", flush=True)
        vae = pv.build((settings.width,), latent_dim=10, hidden=(16,), seed=0)
        pv.fit(vae, torch.ones(2000, settings.width), epochs=2, batch_size=1000)  # what torch loads
        steps.clear()
        peak, start = Peak(), time.perf_counter()
        peak.start()
        with suppress(KeyboardInterrupt):
            x = np.load(path, mmap_mode="r")
            pv.fit(vae, x, epochs=1, batch_size=1000, progress=False)
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(
            f"looked at it in {steps[0] - start:.0f} s, then {len(steps):,} steps of 1000 of "
            f"{len(x):,} rows in {steps[-1] - steps[0]:.0f} s"
        )
        more = (peak.most - peak.start_bytes) / 1e6
        print(f"RssAnon {peak.start_bytes / 1e6:.0f} MB at the start, at most {more:.0f} MB more")


if __name__ == "__main__":
    main()
