"""Evidence per epoch on the fixed binarized MNIST: nats, epochs, seconds.

    python tests/benchmarks/evidence.py --epochs 60
    python tests/benchmarks/evidence.py --epochs 200 --prior VampPrior
    python tests/benchmarks/evidence.py --epochs 60 --choose     the validation split instead
    python tests/benchmarks/evidence.py --epochs 60 --model m.safetensors     kept, or taken

Gated networks, Adam with decoupled weight decay, learning rate with warm-up and cosine, KL
warm-up, averaged weights. The recipe was chosen on the validation split (`--choose`);
without it the test split is evaluated, once, by IWAE over all 10 000 images. The hand-written
loop's step (one of the same sizes without gates) is timed in the same run. Needs PYROVAE_DATA.
"""

import argparse
import math
import time
from functools import partial
from pathlib import Path

import torch
from training_speed import SIZES, compare, handwritten

import pyrovae as pv


def cosine(peak: float, warmup: float = 0.03):
    """A learning rate: up in a line for a fraction of training, then down a half cosine."""

    def rate(progress: float) -> float:
        if progress < warmup:
            return peak * (progress + 1e-3) / warmup
        return 0.5 * peak * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))

    return rate


def model_of(data, options: argparse.Namespace) -> tuple[pv.VAE, str]:
    """The model, kept from before or trained now, and what is to be said of its training."""
    path = options.model
    if path and path.exists():
        return pv.load(path), f"from {path}"
    vae, history, seconds = trained(data, options)
    if path:
        pv.save(vae, path)
    return vae, f"{history.engine}, {seconds:.0f} s, training ELBO {history[-1].elbo:.2f}"


def trained(data, options: argparse.Namespace) -> tuple[pv.VAE, pv.History, float]:
    """The model after training, its history, and the seconds that it took."""
    width, latent_dim = options.width, options.latent_dim
    vae = pv.build(
        (28, 28),
        latent_dim=latent_dim,
        hidden=(width, width),
        network="gated_mlp",
        prior=options.prior,
        data=data.train,
        seed=options.seed,
    )
    start = time.perf_counter()
    history = pv.fit(
        vae,
        data.train,
        objective=pv.objectives.BetaELBO(pv.objectives.linear_warmup(options.kl_warmup)),
        epochs=options.epochs,
        batch_size=options.batch_size,
        learning_rate=cosine(options.learning_rate),
        optimizer=partial(torch.optim.AdamW, weight_decay=options.weight_decay),
        ema_decay=options.average,
        precision=options.precision,
        compile=options.compile,
        seed=options.seed,
    )
    return vae, history, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--prior", default="StandardNormal")
    parser.add_argument("--width", type=int, default=300)
    parser.add_argument("--latent-dim", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--weight-decay", type=float, default=0.03)
    parser.add_argument("--kl-warmup", type=float, default=0.2)
    parser.add_argument("--average", type=float, default=0.999)
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--compile", default="auto")
    parser.add_argument("--num-samples", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", type=Path, help="kept here after training, taken where it is")
    parser.add_argument("--choose", action="store_true", help="evaluate 1000 validation images")
    options = parser.parse_args()
    data = pv.datasets.binarized_mnist()
    vae, training = model_of(data, options)
    x = data.valid[::10] if options.choose else data.test
    found = pv.log_evidence(vae, x, method="iwae", num_samples=options.num_samples)
    error = found.log_px.std() / math.sqrt(len(x))
    step = compare({"loop": handwritten(data.train.flatten(1), 64, SIZES["mnist"])}, 3, 100)["loop"]
    split = "validation" if options.choose else "test"
    print(
        f"{options.prior}, {options.epochs} epochs: "
        f"-log p(x) = {-found.log_px.mean():.2f} ± {error:.2f} nats [IWAE-{options.num_samples}] "
        f"on {len(x)} {split} images; {training}; a hand-written step (batch 64, 784-400-50) "
        f"{step:.2f} ms"
    )


if __name__ == "__main__":
    main()
