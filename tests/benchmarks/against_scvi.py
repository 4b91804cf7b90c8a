"""PBMC3k against scvi-tools: held-out evidence, time of an epoch, cell types from the codes.

    python -m venv SCVI && SCVI/bin/pip install scvi-tools
    python tests/benchmarks/against_scvi.py --python SCVI/bin/python

The same split of the 2,638 cells (2,110 for training), 128 hidden units, 10 latent dimensions, a
negative binomial with a dispersion per gene, the observed size of each cell, batches of 128, Adam
at 1e-3, the same number of epochs; scVI's KL warm-up lasts a tenth of them. log p(x | size) of
held-out cells is that of importance sampling with 500 draws of each package's own encoder. Runs are
in turns; the probe is logistic regression of the cell type on mean codes, fitted on training cells.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

NUM_DRAWS = 500


def by_pyrovae(x, size, train, *, epochs, seed):
    """Return log p(x) of held-out cells, seconds per epoch and all codes."""
    import torch

    import pyrovae as pv

    x, y = torch.tensor(x).float(), torch.tensor(size).float()
    counts = {"name": "NegativeBinomial", "total": 10_000}  # shares of the total, as in scVI
    settings = {"inputs": "log1p", "likelihood": counts, "hidden": (128,)}
    vae = pv.build(x.shape[1], latent_dim=10, data=x[train], seed=seed, **settings)
    pv.fit(vae, x[train], y[train], epochs=1, seed=seed)  # what is compiled is compiled
    vae = pv.build(x.shape[1], latent_dim=10, data=x[train], seed=seed, **settings)
    start = time.perf_counter()
    pv.fit(vae, x[train], y[train], epochs=epochs, seed=seed)
    seconds = (time.perf_counter() - start) / epochs
    held_out = ~train
    how = {"method": "iwae", "num_samples": NUM_DRAWS}
    log_px = pv.log_evidence(vae, x[held_out], y[held_out], **how).log_px
    return log_px.numpy(), seconds, vae.encode(x).mean.detach().numpy()


def by_scvi(x, size, train, *, epochs, seed):
    """Return the same by scvi-tools."""
    import warnings

    warnings.simplefilter("ignore")
    import anndata
    import scvi

    scvi.settings.seed = seed
    data = anndata.AnnData(x.astype("float32"))
    inside = data[train].copy()
    scvi.model.SCVI.setup_anndata(inside)
    model = scvi.model.SCVI(
        inside, n_hidden=128, n_latent=10, n_layers=1, gene_likelihood="nb", dropout_rate=0.0
    )
    how = {"accelerator": "cpu", "train_size": 1.0, "batch_size": 128}
    how |= {"enable_progress_bar": False, "logger": False}
    plan = {"n_epochs_kl_warmup": max(1, epochs // 10), "lr": 1e-3}
    start = time.perf_counter()
    model.train(max_epochs=epochs, plan_kwargs=plan, **how)
    seconds = (time.perf_counter() - start) / epochs
    outside = data[~train].copy()
    log_px = model.get_marginal_ll(outside, n_mc_samples=NUM_DRAWS, return_mean=False)
    return np.ravel(log_px), seconds, model.get_latent_representation(data)


def accuracy(codes, labels, train):
    """Return the held-out accuracy of logistic regression on standardized codes."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    return probe.fit(codes[train], labels[train]).score(codes[~train], labels[~train])


def one_side(path: str, out: str, side: str, epochs: int, seed: int) -> None:
    """Run one package on the stored data, in this process."""
    stored = np.load(path)
    run = {"pyrovae": by_pyrovae, "scvi": by_scvi}[side]
    x, size, train = stored["x"], stored["size"], stored["train"]
    log_px, seconds, codes = run(x, size, train, epochs=epochs, seed=seed)
    found = {"log_px": np.asarray(log_px, "float64").tolist(), "seconds": seconds}
    found["accuracy"] = accuracy(codes, stored["labels"], train)
    Path(out).write_text(json.dumps(found))


def stored_data(path: Path) -> None:
    """Write counts, sizes, the split and the cell types, in the order of one array."""
    import pyrovae as pv

    data = pv.datasets.pbmc3k()
    x = np.concatenate([data.train.numpy(), data.test.numpy()])
    labels = np.concatenate([data.train_labels.numpy(), data.test_labels.numpy()])
    train = np.arange(len(x)) < len(data.train)
    np.savez(path, x=x, size=x.sum(1) / 10_000, train=train, labels=labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", help="of the environment with scvi-tools")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        path, out, side, seed = given.side
        one_side(path, out, side, given.epochs, int(seed))
        return
    found: dict[str, list] = {"pyrovae": [], "scvi": []}
    with tempfile.TemporaryDirectory() as folder:
        path, out = Path(folder, "cells.npz"), Path(folder, "out.json")
        stored_data(path)
        for seed in range(given.rounds):
            for side, python in (("pyrovae", sys.executable), ("scvi", given.python)):
                call = [python, __file__, "--epochs", given.epochs, "--side", path, out, side, seed]
                subprocess.run(list(map(str, call)), check=True, stdout=subprocess.DEVNULL)
                found[side].append(json.loads(out.read_text()))
                last = found[side][-1]
                print(side, seed, np.mean(last["log_px"]), last["seconds"], last["accuracy"])
    for side, runs in found.items():
        log_px = np.mean([run["log_px"] for run in runs], 0)
        seconds = statistics.median(run["seconds"] for run in runs)
        right = np.mean([run["accuracy"] for run in runs])
        print(f"{side}: log p(x) {log_px.mean():.2f}, {1e3 * seconds:.0f} ms an epoch, {right:.3f}")
    gain = np.mean([run["log_px"] for run in found["pyrovae"]], 0)
    gain = gain - np.mean([run["log_px"] for run in found["scvi"]], 0)
    print(f"gain {gain.mean():.2f} ± {gain.std() / len(gain) ** 0.5:.2f} nats per cell, paired")


if __name__ == "__main__":
    main()
