"""The results of `pyrovae fit`: pictures, the card summary.json, and the printed table."""

import platform
import shlex
import sys
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyrovae as pv
from pyrovae.cli.data import DATA_SETS, PIXELS, Images
from pyrovae.cli.numbers import NUM_SAMPLES, bound_on, estimate, labels, with_error
from pyrovae.images import can_be_drawn


def plain(settings: Any) -> dict[str, Any]:
    """Return the settings as JSON values."""
    return asdict(settings) | {"out": settings.out and str(settings.out)}


def pictures(vae: Any, data: Images, history: Any, seed: int, prior: str) -> dict[str, Any]:
    """Draw the figures by file name; image grids only if the data are images."""
    import torch

    from pyrovae.core.draws import diagnosing

    with diagnosing(vae, seed):
        rows = torch.randperm(len(data.test))[:3000]  # more points would hide each other
        codes = _mean(vae.encode(data.test[rows]))
        samples = vae.decode(vae.prior().expand([64]).sample()).mean
    labels = None if data.test_labels is None else data.test_labels[rows]
    title = f"{data.name}: mean of q(z|x) for {len(rows)} held-out data, prior {prior}"
    figures = {
        "training.png": pv.plots.training_curve(history),
        "latent.png": pv.plots.latent_scatter(codes, labels, title=title).figure,
    }
    if can_be_drawn(data.test.shape[1:]):
        x = data.test[rows[:30]]
        mean = vae.reconstruct(x, seed=seed)
        title = f"{data.name}: held-out data x, and E[x|z] at a draw z ~ q(z|x)"
        figures["reconstructions.png"] = pv.plots.reconstructions(x, mean, title=title).figure
        title = f"{data.name}: samples, E[x|z] at draws z ~ p(z)"
        figures["samples.png"] = pv.plots.images(samples, title=title).figure
    return figures


def _mean(q_z: Any) -> Any:
    try:
        return q_z.mean
    except NotImplementedError:  # a flow
        return q_z.sample((100,)).mean(0)


def summary(settings: Any, vae: Any, data: Images, history: Any) -> dict[str, Any]:
    """Return the contents of summary.json: settings, versions, numbers with unit, history."""
    packages = {name: version(name) for name in ("torch", "pyro-ppl", "numpy")}
    return {
        "data": data.name,
        "pixels": PIXELS[data.pixels],
        "held_out_is": data.split,
        "unit": "nats per datum; elbo = -(reconstruction + kl), for any beta",
        "bound_on": bound_on(vae, data.test),
        "num_samples": NUM_SAMPLES,
        "training": estimate(vae, data.train, history.seed),
        "held_out": estimate(vae, data.test, history.seed),
        "seed": history.seed,
        "engine": history.engine,
        "settings": plain(settings),
        "versions": {"pyrovae": pv.__version__, **packages, "python": platform.python_version()},
        "best_epoch": history.best_epoch,
        "history": [epoch._asdict() for epoch in history.epochs],
    }


def provenance(settings: Any, vae: Any, data: Images, folder: Path) -> dict[str, Any]:
    """Return what makes summary.json a card: the model's spec, hashes, and the command."""
    from pyrovae.report import card

    is_file = settings.data not in DATA_SETS
    return {
        "format": card.FORMAT,
        "command": command_line(),
        "spec": vae.spec,
        "num_parameters": sum(p.numel() for p in vae.parameters()),
        "data_file": str(Path(settings.data).resolve()) if is_file else None,
        "data_sha256": card.data_hashes(data.train, data.valid, data.test),
        "model_sha256": card.file_hash(folder / card.MODEL),
    }


def command_line() -> str:
    """Return the command as typed, or "pyrovae …" if another program called it."""
    name = Path(sys.argv[0]).name
    is_ours = name in ("pyrovae", "pyrovae.exe", "__main__.py")
    return shlex.join(["pyrovae", *sys.argv[1:]]) if is_ours else "pyrovae fit (from Python)"


def show(result: dict[str, Any], folder: Path) -> None:
    """Print the table of the ELBO's terms, how they were obtained, and the files."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    parts = {"training": result["training"], "held out": result["held_out"]}
    caption = f"± standard error over the data, {NUM_SAMPLES} draws of z per datum"
    table = Table("nats per datum", title=f"VAE on {result['data']}", caption=caption)
    for name, part in parts.items():
        table.add_column(f"{name} (N={part['num_data']})", justify="right")
    for key, name in labels(result["bound_on"]).items():
        table.add_row(Text(name), *(with_error(part[key]) for part in parts.values()))
    settings, beta = result["settings"], result["settings"]["beta"]
    epochs = str(len(result["history"]))
    if result["history"][-1]["validation_elbo"] is not None:
        epochs += f", weights of epoch {result['best_epoch']} (best validation ELBO)"
    files = sorted(path for path in folder.iterdir() if path.is_file())
    facts = {
        "pixels": result["pixels"],
        "held out": result["held_out_is"],
        "latent": f"dimension {settings['latent_dim']}; hidden {tuple(result['spec']['hidden'])}",
        "parts": f"{settings['prior']}, {settings['guide']}, {settings['likelihood']}",
        "trained": f"with β = {beta:g}{'' if beta == 1 else '; the ELBO above is that of β = 1'}",
        "epochs": f"{epochs}; seed {result['seed']}; {result['seconds']:.0f} s in total",
        "wrote": "\n         ".join(str(path) for path in files if path.name != "lock"),
    }
    console = Console(highlight=False)
    console.print(table)
    for name, fact in facts.items():
        console.print(f"{name:<8}", fact, soft_wrap=True, markup=False)
