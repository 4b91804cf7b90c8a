"""Does a report name what is wrong with a model, over seeds and data sets?

    python tests/benchmarks/report_verdicts.py --seeds 0 1 2 3 4

Trains a good model and five broken ones (weight β of the KL, epochs, a guide whose width is held,
a likelihood of another shape) on scikit-learn's digits in bits and in 17 levels of gray, fixed
binarized MNIST (needs PYROVAE_DATA, left out without it) and simulated counts, examines each as
`pyrovae report` does, and prints the faults that the verdicts name, with the numbers that decide,
then a row of their ranges. The verdicts do not know β. `pytest -m slow
tests/test_report_verdicts.py -k five_seeds` asserts the same of five seeds.
"""

import argparse
import math
import os
import time
import warnings
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor, nn

import pyrovae as pv
from pyrovae.report.findings import Findings, examine
from pyrovae.report.trials import Training
from pyrovae.report.verdicts import problems, verdicts

GOOD = "good"
CONDITIONS = (
    GOOD,
    "posterior collapse",
    "over-regularized",
    "undertrained",
    "guide too narrow",
    "wrong likelihood",
)
HELD_WIDTH = 0.05  # of the guide that is too narrow, in units of the prior


class Setting(NamedTuple):
    """One data set with what makes a good model of it, and the broken ones.

    Attributes:
        latent_dim: of all models.
        epochs: of all but the undertrained ones, which have 2.
        over_regularized, collapsed: the β that does it; a code of few dimensions of 8 × 8 bits
            collapses where one of 28 × 28 is only over-regularized.
        likelihood, wrong: of the good model, and one of another shape.
        learning_rate: of all models.
    """

    latent_dim: int
    epochs: int
    over_regularized: float
    collapsed: float
    likelihood: Any = "Bernoulli"
    wrong: Any = "Normal"
    learning_rate: float = 1e-3

    def recipe(self, condition: str) -> tuple[float, int]:
        """β and epochs."""
        beta = {"over-regularized": self.over_regularized, "posterior collapse": self.collapsed}
        return beta.get(condition, 1.0), 2 if condition == "undertrained" else self.epochs


LEARNED = {"name": "Normal", "learn_scale": True, "scale": 0.2}
SETTINGS = {
    "digits": Setting(2, 100, over_regularized=2, collapsed=20, wrong=LEARNED),
    "binarized_mnist": Setting(10, 40, over_regularized=4, collapsed=100, wrong=LEARNED),
    "gray": Setting(
        4, 100, 4, 100, {"name": "DiscretizedLogistic", "num_levels": 17}, wrong=LEARNED
    ),
    "counts": Setting(
        3, 100, 2, 100, likelihood="NegativeBinomial", wrong="Poisson", learning_rate=5e-3
    ),
}
NEEDS_FILES = ("binarized_mnist",)


def load(name: str) -> tuple[Tensor, Tensor]:
    """Training and held-out data.

    1437 and 360 digits, or 5000 and 1000 of MNIST, in {0, 1}; the digits in 17 levels of gray;
    2000 and 600 rows of 40 counts.
    """
    if name == "counts":
        return counts(2000, 1), counts(600, 2)
    if name in ("digits", "gray"):
        data = pv.datasets.digits()
        parts = data.train, data.test
        return parts if name == "gray" else tuple(map(pv.datasets.binarize, parts))
    data = pv.datasets.binarized_mnist()
    chosen = torch.randperm(len(data.test), generator=torch.Generator().manual_seed(0))
    return data.train[:5000], data.test[chosen[:1000]]  # the test file is sorted by class


def counts(n: int, seed: int) -> Tensor:
    """n rows of 40 negative binomial counts with 3 successes, whose log-means are W z + b."""
    rule = torch.Generator().manual_seed(7)
    weight, bias = torch.randn(3, 40, generator=rule) / 2, torch.rand(40, generator=rule) * 2 + 0.5
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        mean = (torch.randn(n, 3) @ weight + bias).exp()
        return torch.poisson(torch.distributions.Gamma(3.0, 3.0 / mean).sample())


class HeldWidth(nn.Module):
    """Normal guide whose width is not learned, N(μ(x), 0.05² I)."""

    def __init__(self, latent_dim: int):
        super().__init__()
        self.num_features = latent_dim

    def forward(self, features: Tensor) -> dist.Distribution:
        return dist.Normal(features, HELD_WIDTH).to_event(1)


def built(name: str, condition: str, x: Tensor, seed: int) -> pv.VAE:
    """An untrained model that has the condition, or gets it in training."""
    setting = SETTINGS[name]
    likelihood = setting.wrong if condition == "wrong likelihood" else setting.likelihood
    options = {"latent_dim": setting.latent_dim, "hidden": (100,), "data": x, "seed": seed}
    vae = pv.build(x.shape[1:], likelihood=likelihood, **options)
    if condition != "guide too narrow":
        return vae
    network, _ = vae.encoder
    head = HeldWidth(setting.latent_dim)
    half = nn.Sequential(network, _First(head.num_features), head)
    return pv.VAE(vae.prior, half, vae.decoder)


class _First(nn.Module):
    """The first features only: the means, of those of a diagonal normal."""

    def __init__(self, num: int):
        super().__init__()
        self.num = num

    def forward(self, features: Tensor) -> Tensor:
        return features[..., : self.num]


def examined(name: str, condition: str, seed: int) -> Findings:
    """What `examine` finds of a model that was trained so that it has the condition."""
    (x, x_test), setting = load(name), SETTINGS[name]
    beta, epochs = setting.recipe(condition)
    vae = built(name, condition, x, seed)
    objective = None if beta == 1 else pv.objectives.BetaELBO(beta)
    options = {"batch_size": 64, "learning_rate": setting.learning_rate}
    training = Training(beta, **options)
    pv.fit(vae, x, objective=objective, epochs=epochs, seed=seed, progress=False, **options)
    return examine(vae, x, test=x_test, training=training, num_samples=100, thorough=False)


def named(found: Findings) -> tuple[str, ...]:
    """The faults that the verdicts name; ("good",) where there is none."""
    return problems(verdicts(found)) or (GOOD,)


def numbers(found: Findings) -> dict[str, float]:
    """The numbers that decide; the gain as a share of all that the copy has learned."""
    more, ours, theirs = found.continued, found.training, found.held_out
    return {
        "gain": more.gain.value,
        "learned": more.learned + more.gain.value,
        "KL": theirs.mean_kl.value,
        "β̂": found.kl_weight.value,
        "D": found.rank_distance.value,
        "over held out": (ours.mean_elbo.value - theirs.mean_elbo.value) / theirs.elbo.std().item(),
    }


def ranges(rows: list[dict[str, float]]) -> str:
    """From the least to the most of each number, as cells of a table."""
    cells = []
    for name in rows[0]:
        defined = [row[name] for row in rows if not math.isnan(row[name])]
        few = f" ({len(defined)} of {len(rows)})" if len(defined) < len(rows) else ""
        text = f"{min(defined):.2f} to {max(defined):.2f}{few}" if defined else "undefined"
        cells.append(text.replace("-", "−"))
    return " | ".join(cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    parser.add_argument("--data", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--conditions", nargs="+", choices=CONDITIONS, default=CONDITIONS)
    settings = parser.parse_args()
    warnings.filterwarnings("ignore", "Posterior collapse")  # `fit` says it of those that are
    for name in settings.data:
        if name in NEEDS_FILES and not os.environ.get("PYROVAE_DATA"):
            print(f"{name}: left out, PYROVAE_DATA names no folder")
            continue
        for condition in settings.conditions:
            rows, right, start = [], 0, time.perf_counter()
            for seed in settings.seeds:
                found = examined(name, condition, seed)
                rows.append(numbers(found))
                right += named(found) == (condition,)
                told = "   ".join(f"{key} {value:.3f}" for key, value in rows[-1].items())
                print(f"  {name}, seed {seed}: {', '.join(named(found))}   {told}", flush=True)
            print(f"  {(time.perf_counter() - start) / len(rows):.0f} s per model", flush=True)
            count = f"{right} of {len(rows)}"
            print(f"| {name} | {condition} | {count} | {ranges(rows)} |", flush=True)


if __name__ == "__main__":
    main()
