"""Do the richer likelihoods pay off on the data that they are meant for?

    python tests/benchmarks/likelihoods.py

Held-out log p(x) [IWAE-500], paired: NegativeBinomial against Poisson on the counts of pbmc3k
(with each cell's size), and a learned-scale Normal against a fixed one on frey_faces. Same
networks, epochs and seed within a pair. Needs PYROVAE_DATA.
"""

import math

import torch

import pyrovae as pv


def compare(name: str, x, x_test, sizes, sizes_test, likelihoods: dict, epochs: int) -> None:
    """Train one VAE for each likelihood, and print its evidence and the gain over the first."""
    first = None
    for label, likelihood in likelihoods.items():
        settings = {"latent_dim": 10, "hidden": (128,), "seed": 0, "data": x}
        vae = pv.build(x.shape[1:], likelihood=likelihood, **settings)
        pv.fit(vae, x, sizes, epochs=epochs, batch_size=128, progress=False)
        log_px = pv.log_evidence(vae, x_test, sizes_test, method="iwae", num_samples=500).log_px
        first = log_px if first is None else first
        gain = log_px - first
        error = gain.std().item() / math.sqrt(len(gain))
        z = f"{gain.mean() / error:.0f} standard errors" if error else ""
        print(f"{name:10} {label:28} log p(x) {log_px.mean():9.2f} nats  {gain.mean():+9.2f} {z}")


def main() -> None:
    counts = pv.datasets.pbmc3k()
    totals = counts.train.sum(-1), counts.test.sum(-1)
    typical = totals[0].mean()
    compare(
        "pbmc3k",
        counts.train,
        counts.test,
        totals[0] / typical,
        totals[1] / typical,
        {"Poisson": "Poisson", "NegativeBinomial": "NegativeBinomial"},
        epochs=30,
    )
    faces = pv.datasets.frey_faces()
    fixed = {"name": "Normal", "scale": 0.1}
    compare(
        "frey_faces",
        faces.train,
        torch.cat([faces.valid, faces.test]),
        None,
        None,
        {"Normal, scale 0.1": fixed, "Normal, learned scale": fixed | {"learn_scale": True}},
        epochs=60,
    )


if __name__ == "__main__":
    main()
