"""Training with the importance-weighted bound: k = 50 against k = 1 at equal updates.

    python tests/benchmarks/iwae_training.py --epochs 10

Same network (784-200-50, both ways), seed, batches and number of updates on the fixed
binarized MNIST; test evidence [IWAE-1000] on random test images, paired. Needs PYROVAE_DATA.
"""

import argparse
import math
import time

import torch

import pyrovae as pv


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--num-data", type=int, default=1000)
    parser.add_argument("--rows", type=int, default=50_000, help="of the training set")
    settings = parser.parse_args()
    data = pv.datasets.binarized_mnist()
    order = torch.randperm(len(data.test), generator=torch.Generator().manual_seed(0))
    x_test = data.test[order[: settings.num_data]]
    x = data.train[torch.randperm(50_000, generator=torch.Generator().manual_seed(1))]
    x, first = x[: settings.rows], None
    for k in (1, 50):
        start = time.perf_counter()
        vae = pv.build((28, 28), latent_dim=50, hidden=(200,), data=x, seed=0)
        objective = pv.objectives.IWAE(num_particles=k)
        pv.fit(vae, x, objective=objective, epochs=settings.epochs, progress=False)
        seconds = time.perf_counter() - start
        log_px = pv.log_evidence(vae, x_test, method="iwae", num_samples=1000).log_px
        first = log_px if first is None else first
        gain = log_px - first
        error = gain.std().item() / math.sqrt(len(gain))
        z = f"{gain.mean() / error:.1f} standard errors" if error else ""
        updates = settings.epochs * math.ceil(len(x) / 128)
        print(
            f"k = {k:2}: {updates} updates, log p(x) {log_px.mean():8.2f} nats, "
            f"{gain.mean():+.2f} ± {error:.2f} {z}  ({seconds:.0f} s)",
            flush=True,
        )


if __name__ == "__main__":
    main()
