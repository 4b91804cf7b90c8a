"""Does a report name what is wrong with a model, over seeds and real data sets?

    python tests/benchmarks/report_verdicts.py --seeds 0 1 2 3 4

Trains a good model and three broken ones (weight β of the KL, epochs) on scikit-learn's digits
and on fixed binarized MNIST (needs PYROVAE_DATA, left out without it), examines each as
`pyrovae report` does, and prints the problems that the verdicts find, with the numbers that decide,
then a row of their ranges. The verdicts do not know β. `pytest -m slow tests/test_report.py -k
five_seeds` asserts the same of five seeds.
"""

import argparse
import math
import os
import warnings
from typing import NamedTuple

import torch

import pyrovae as pv
from pyrovae.report.findings import Findings, Training, examine
from pyrovae.report.verdicts import problems, verdicts

GOOD = "good"


class Setting(NamedTuple):
    """One data set with what makes a good model of it, and the broken ones.

    Attributes:
        latent_dim: of all models.
        epochs: of all but the undertrained ones, which have 2.
        over_regularized, collapsed: the β that does it; a code of few dimensions of 8 × 8 bits
            collapses where one of 28 × 28 is only over-regularized.
    """

    latent_dim: int
    epochs: int
    over_regularized: float
    collapsed: float

    def recipe(self, condition: str) -> tuple[float, int]:
        """β and epochs."""
        beta = {"over-regularized": self.over_regularized, "posterior collapse": self.collapsed}
        return beta.get(condition, 1.0), 2 if condition == "undertrained" else self.epochs


CONDITIONS = (GOOD, "posterior collapse", "over-regularized", "undertrained")
SETTINGS = {
    "digits": Setting(latent_dim=2, epochs=60, over_regularized=2, collapsed=20),
    "binarized_mnist": Setting(latent_dim=10, epochs=40, over_regularized=4, collapsed=100),
}


def load(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Training and held-out images in {0, 1}: 1437 and 360 digits, or 5000 and 1000 of MNIST."""
    if name == "digits":
        data = pv.datasets.digits()
        return pv.datasets.binarize(data.train), pv.datasets.binarize(data.test)
    data = pv.datasets.binarized_mnist()
    chosen = torch.randperm(len(data.test), generator=torch.Generator().manual_seed(0))
    return data.train[:5000], data.test[chosen[:1000]]  # the test file is sorted by class


def examined(name: str, condition: str, seed: int) -> Findings:
    """What `examine` finds of a model that was trained so that it has the condition."""
    (x, x_test), setting = load(name), SETTINGS[name]
    beta, epochs = setting.recipe(condition)
    vae = pv.build(x.shape[1:], latent_dim=setting.latent_dim, hidden=(100,), data=x, seed=seed)
    objective = None if beta == 1 else pv.objectives.BetaELBO(beta)
    training = Training(beta, batch_size=64, learning_rate=1e-3)
    options = {"batch_size": 64, "learning_rate": 1e-3, "progress": False}
    pv.fit(vae, x, objective=objective, epochs=epochs, seed=seed, **options)
    return examine(vae, x, test=x_test, training=training, num_samples=100, thorough=False)


def named(found: Findings) -> tuple[str, ...]:
    """The conditions that the verdicts name; ("good",) where there is none."""
    return problems(verdicts(found)) or (GOOD,)


def numbers(found: Findings) -> dict[str, float]:
    """The numbers that decide; gains and gaps as shares of the spread over the data."""
    more, ours, theirs = found.continued, found.training, found.held_out
    return {
        "gain": more.gain.value / more.spread,
        "KL": theirs.mean_kl.value,
        "β̂": found.kl_weight.value,
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
    settings = parser.parse_args()
    warnings.filterwarnings("ignore", "Posterior collapse")  # `fit` says it of those that are
    for name in settings.data:
        if name != "digits" and not os.environ.get("PYROVAE_DATA"):
            print(f"{name}: left out, PYROVAE_DATA names no folder")
            continue
        for condition in CONDITIONS:
            rows, right = [], 0
            for seed in settings.seeds:
                found = examined(name, condition, seed)
                rows.append(numbers(found))
                right += named(found) == (condition,)
                told = "   ".join(f"{key} {value:.3f}" for key, value in rows[-1].items())
                print(f"  {name}, seed {seed}: {', '.join(named(found))}   {told}", flush=True)
            count = f"{right} of {len(rows)}"
            print(f"| {name} | {condition} | {count} | {ranges(rows)} |", flush=True)


if __name__ == "__main__":
    main()
