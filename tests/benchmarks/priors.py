"""Which prior explains held-out digits best, at equal networks, epochs and draws?

    python tests/benchmarks/priors.py --epochs 150 StandardNormal VampPrior

Trains the same networks (784-300-300-40, KL warm-up, Adam) on the fixed binarized MNIST with
each prior, keeps the weights of the best validation epoch, and prints IWAE evidence of a
random subset of the test images with paired differences. Needs PYROVAE_DATA.
"""

import argparse
import math
import time

import torch

import pyrovae as pv


def trained(prior: str, data, epochs: int) -> pv.VAE:
    """The VAE with this prior after training, its weights those of the best validation epoch."""
    vae = pv.build((28, 28), latent_dim=40, hidden=(300, 300), prior=prior, data=data.train, seed=0)
    warmup = pv.objectives.BetaELBO(pv.objectives.linear_warmup(0.3))
    settings = {"batch_size": 256, "learning_rate": 1e-3, "patience": None, "progress": False}
    pv.fit(vae, data.train, validation=data.valid, objective=warmup, epochs=epochs, **settings)
    return vae


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("priors", nargs="+")
    parser.add_argument("--epochs", type=int, default=150)
    parser.add_argument("--num-data", type=int, default=2000)
    parser.add_argument("--num-samples", type=int, default=500)
    settings = parser.parse_args()
    data = pv.datasets.binarized_mnist()
    # the test file is sorted by class
    chosen = torch.randperm(len(data.test), generator=torch.Generator().manual_seed(0))
    x = data.test[chosen[: settings.num_data]]
    print(f"IWAE-{settings.num_samples} on {len(x)} random test images, {settings.epochs} epochs")
    first = None
    for prior in settings.priors:
        start = time.perf_counter()
        vae = trained(prior, data, settings.epochs)
        seconds = time.perf_counter() - start
        log_px = pv.log_evidence(vae, x, method="iwae", num_samples=settings.num_samples).log_px
        first = log_px if first is None else first
        gain = log_px - first
        error = gain.std() / math.sqrt(len(gain))
        print(
            f"{prior:16} log p(x) {log_px.mean():8.2f} nats   over {settings.priors[0]} "
            f"{gain.mean():+6.2f} ± {error:.2f}   {seconds:6.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
