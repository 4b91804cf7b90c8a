"""What does log p(x) cost where the guide is poor?

    python tests/benchmarks/poor_guides.py [--num-data 200]

Fixed binarized MNIST (784-300-300-40, 12 epochs) and the counts of pbmc3k (2000-128-10, 60 epochs,
negative binomial): time of each method of `log_evidence` on the same held-out data relative to the
IWAE bound at K = 1000, its mean log p(x), and the shares of data with k̂ above the threshold and
without an interval. Needs PYROVAE_DATA.
"""

import argparse
import statistics
import time
from collections import Counter

import torch

import pyrovae as pv
from pyrovae.core.pareto import pareto_k_threshold

METHODS = ("iwae", "importance", "refined", "auto")
ROUNDS = 3


def models() -> dict[str, tuple[pv.VAE, torch.Tensor]]:
    """Return name → trained model and held-out data."""
    digits, cells = pv.datasets.binarized_mnist(), pv.datasets.pbmc3k()
    of_digits = pv.build(digits.train.shape[1:], latent_dim=40, hidden=(300, 300), seed=0)
    pv.fit(of_digits, digits.train, epochs=12, batch_size=100, progress=False)
    sizes = {"latent_dim": 10, "hidden": (128,), "data": cells.train}
    of_cells = pv.build(cells.train.shape[1:], likelihood="NegativeBinomial", seed=0, **sizes)
    pv.fit(of_cells, cells.train, epochs=60, batch_size=64, progress=False)
    return {"binarized_mnist": (of_digits, digits.test), "pbmc3k": (of_cells, cells.test)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-data", type=int, default=200)
    num_data = parser.parse_args().num_data
    for name, (vae, x) in models().items():
        seconds: dict[str, list[float]] = {method: [] for method in METHODS}
        for _ in range(ROUNDS):
            for method in METHODS:
                start = time.perf_counter()
                found = pv.log_evidence(vae, x, method=method, num_data=num_data)
                seconds[method].append(time.perf_counter() - start)
                if len(seconds[method]) == 1:
                    _say(name, method, found)
        base = statistics.median(seconds["iwae"])
        ratios = {m: round(statistics.median(s) / base, 2) for m, s in seconds.items()}
        print(f"{name}: seconds for {num_data} data, relative to iwae ({base:.1f} s): {ratios}")


def _say(name: str, method: str, found: pv.evidence.Evidence) -> None:
    heavy = (found.pareto_k > pareto_k_threshold(1000)).double().mean()
    bounds = found.upper.isinf().double().mean()
    print(
        f"{name:16} {method:11} log p(x) {found.log_px.mean():9.3f}   k̂ too high "
        f"{100 * heavy:5.1f} %   no interval {100 * bounds:5.1f} %   median error "
        f"{found.std_error.median():.3f}   {dict(Counter(found.methods))}",
        flush=True,
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
