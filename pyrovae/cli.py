"""The `pyrovae` command: train a VAE, print the terms of its ELBO, and keep its pictures.

    ELBO = E_q[log p(x|z)] − KL(q(z|x) ‖ p(z))  ≤  log p(x)        nats per datum

`fit_command` parses options into `Settings`; `run` does the work. torch, Pyro and matplotlib
are imported when it begins, so that `--help` answers at once. What cannot work is refused
before training, and a run that fails leaves no folder.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import typer
from typer import Option

import pyrovae as pv
from pyrovae.errors import CheckpointError, ConfigError, DataError, DivergenceError

DATA_SETS = ("digits", "mnist", "fashion_mnist", "binarized_mnist", "omniglot", "frey_faces")
NUM_SAMPLES = 10  # draws of z per datum behind each number of the table

PIXELS = {
    "threshold": "thresholded: 1 where grey > 0.5",
    "sampled": "sampled: x ~ Bernoulli(grey), afresh each epoch; one fixed draw is scored",
    "none": "taken as they are",
}
TERMS = {
    "elbo": "ELBO (higher is better)",
    "reconstruction": "reconstruction, −E_q[log p(x|z)]",
    "kl": "KL(q(z|x) ‖ p(z))",
}


class App(typer.Typer):
    """The command as a process: what a process can set before torch, and how it writes."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # spinning threads that wait for each other made small nets 10 times slower on busy cores
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(errors="replace")  # not every pipe or terminal can write "‖"
        return super().__call__(*args, **kwargs)


app = App(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True)
class Settings:
    """What a run was asked for; None is what the data and the date decide."""

    data: str
    binarize: str | None
    prior: str
    guide: str
    likelihood: str
    network: str
    latent_dim: int
    hidden: tuple[int, ...]
    epochs: int
    batch_size: int
    learning_rate: float
    beta: float
    seed: int
    out: Path | None


class Images(NamedTuple):
    """Binary data: what is trained on, and fixed tensors (N, *event) to score."""

    source: Any
    train: Any
    valid: Any
    test: Any
    test_labels: Any
    name: str
    pixels: str
    split: str


def widths(text: str) -> tuple[int, ...]:
    """The hidden widths in a text: "300,100" → (300, 100)."""
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise typer.BadParameter(f"{text!r} is no list of widths such as 200 or 300,300.")
    return tuple(map(int, parts))


@app.callback()
def main() -> None:
    """Train variational autoencoders (VAEs) and look at them.

    A VAE describes a datum x by a few hidden numbers z: its encoder turns x into
    a density q(z|x) over codes, its decoder turns a code into a density p(x|z).
    Both are trained together, so that codes rebuild their data and yet look like
    draws from the prior p(z); new data then come from z ~ p(z), x ~ p(x|z).

    \b
    ELBO = E_q\\[log p(x|z)] − KL(q(z|x) ‖ p(z)) ≤ log p(x)
           −reconstruction   regulariser         evidence

    in nats per datum; higher is better. Begin with: [bold]pyrovae fit[/bold]
    """


@app.command("fit")
def fit_command(
    data: Annotated[str, Option(help=f"{', '.join(DATA_SETS)}, or a file of images.")] = "digits",
    binarize: Annotated[
        Literal["threshold", "sampled", "none"] | None,
        Option(
            metavar="METHOD",
            help="threshold: 1 where grey > 0.5, the default. sampled: 1 with probability grey, "
            "afresh each epoch. none: as they are, the default for other likelihoods.",
        ),
    ] = None,
    prior: Annotated[str, Option(metavar="NAME", help="p(z): a name in pyrovae.priors.")] = (
        "StandardNormal"
    ),
    guide: Annotated[str, Option(metavar="NAME", help="q(z|x): a name in pyrovae.guides.")] = (
        "DiagonalNormal"
    ),
    likelihood: Annotated[
        str, Option(metavar="NAME", help="p(x|z): a name in pyrovae.likelihoods.")
    ] = "Bernoulli",
    network: Annotated[
        str, Option(metavar="NAME", help="mlp, gated_mlp, residual_mlp or conv.")
    ] = "mlp",
    latent_dim: Annotated[int, Option(min=1, metavar="D", help="Length of a code z.")] = 2,
    hidden: Annotated[
        Any, Option(parser=widths, metavar="WIDTHS", help="Such as 300,200; reversed for decoding.")
    ] = "200,200",
    epochs: Annotated[int, Option(min=1, metavar="N", help="Passes over the data.")] = 100,
    batch_size: Annotated[int, Option(min=1, metavar="N", help="Data in a step of Adam.")] = 64,
    learning_rate: Annotated[float, Option(metavar="RATE", help="Adam's.")] = 1e-3,
    beta: Annotated[float, Option(metavar="β", help="Weight of the KL in training.")] = 1.0,
    seed: Annotated[int, Option(min=0, metavar="N", help="Of weights and all draws.")] = 0,
    out: Annotated[Path | None, Option(metavar="DIR", help="New; runs/DATA-DATE-TIME.")] = None,
) -> None:
    """Train a VAE on images, score it on held-out ones, and draw pictures.

    \b
    By default:
    prior    p(z)   = N(0, I)
    encoder  q(z|x) = N(μ(x), diag σ²(x))           a network gives μ and σ
    decoder  p(x|z) = Π_j Bernoulli(x_j; π_j(z))    a network gives π
    loss     −E_q\\[log p(x|z)] + β KL(q(z|x) ‖ p(z)),   −ELBO at β = 1

    The run folder gets model.safetensors (for pyrovae.load), summary.json
    (settings, versions, numbers, history), and reconstructions.png,
    samples.png, latent.png and training.png.

    \b
    Examples:
      pyrovae fit
      pyrovae fit --data mnist --binarize sampled --latent-dim 20 --out runs/mnist
      pyrovae fit --prior VampPrior --latent-dim 10
      pyrovae fit --likelihood Normal   grey pixels, not binarised
      pyrovae fit --beta 4              the table still shows the ELBO of β = 1
      pyrovae fit --data faces.npy      (N, H, W), floats 0..1 or bytes 0..255

    Files are .npy, .npz or IDX; a fifth of their rows, drawn by the seed, is held
    out. Data sets keep their test split; validation data, where there are any,
    stop training early. All but digits are looked up in the folder PYROVAE_DATA;
    MNIST and Fashion-MNIST are downloaded if they are not there.
    """
    settings = Settings(**locals())  # the options, before there is any other local
    with errors_as_exit_codes():
        run(settings)


@contextmanager
def errors_as_exit_codes() -> Iterator[None]:
    """A message on stderr and an exit code: 2 cannot work as asked, 1 diverged, 130 Ctrl-C."""
    try:
        yield
    except (ConfigError, DataError, CheckpointError, DivergenceError, OSError) as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(1 if isinstance(error, DivergenceError) else 2) from None
    except KeyboardInterrupt:
        typer.echo("Interrupted.", err=True)
        raise typer.Exit(130) from None


def run(settings: Settings) -> None:
    """Train, score and draw as the settings say, and show what came out."""
    from pyrovae.checks import seed_number

    start = time.perf_counter()
    seed = seed_number(settings.seed)
    data = load(settings)
    training = {k: getattr(settings, k) for k in ("epochs", "batch_size", "learning_rate", "seed")}
    sizes = {"latent_dim": settings.latent_dim, "hidden": settings.hidden}
    parts = {k: getattr(settings, k) for k in ("prior", "guide", "likelihood", "network")}
    vae = pv.build(data.train.shape[1:], **parts, **sizes, data=data.train, seed=seed)
    objective = None if settings.beta == 1 else pv.objectives.BetaELBO(settings.beta)
    with run_folder(settings.out, data.name) as folder:
        history = pv.fit(vae, data.source, validation=data.valid, objective=objective, **training)
        result = summary(settings, vae, data, history)
        pv.save(vae, folder / "model.safetensors")
        for name, figure in pictures(vae, data, history, seed, settings.prior).items():
            figure.savefig(folder / name, dpi=120)
        result["seconds"] = round(time.perf_counter() - start, 2)
        (folder / "summary.json").write_text(json.dumps(result, indent=2), encoding="utf-8")
    show(result, folder)


@contextmanager
def run_folder(out: Path | None, name: str) -> Iterator[Path]:
    """A folder for the run's files, removed again when the block fails before it wrote one."""
    folder = out or Path("runs", f"{name}-{datetime.now():%Y%m%d-%H%M%S}")
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ConfigError(f"{folder} is no empty folder; a run overwrites nothing.\nGive another.")
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=out is not None)
    try:
        tempfile.TemporaryFile(dir=folder).close()  # a folder that refuses files does so now
        yield folder
    except BaseException:
        for path in made:
            with suppress(OSError):
                path.rmdir()
        raise


def load(settings: Settings) -> Images:
    """The data of the settings, binarised."""
    data, split = _grey(settings.data, settings.seed)
    is_binary = settings.likelihood == "Bernoulli"
    is_done = data.name == "binarized_mnist" or not is_binary
    pixels = settings.binarize or ("none" if is_done else "threshold")
    grey = (data.train, data.valid, data.test)
    parts = [None if x is None else _binary(x, pixels, is_binary) for x in grey]
    fixed = [part.draw(settings.seed) if hasattr(part, "draw") else part for part in parts]
    return Images(parts[0], *fixed, data.test_labels, data.name, pixels, split)


def _grey(name: str, seed: int) -> tuple[Any, str]:
    """The data as they come, and in words how the held-out ones were chosen."""
    if name in DATA_SETS:
        return getattr(pv.datasets, name)(), "its test split"
    if not Path(name).suffix and not Path(name).is_file():
        raise ConfigError(
            f"--data {name!r} is neither a data set nor a file.\nData sets: {', '.join(DATA_SETS)}."
            "\nFiles: .npy, .npz with one array, or IDX, of images (N, H, W)."
        )
    import torch

    x = pv.datasets.from_file(name)
    x = x[:, 0] if x.dim() == 4 and x.shape[1] == 1 else x  # one grey channel
    if x.dim() < 2 or len(x) < 10:
        raise DataError(
            f"{name} holds an array of shape {tuple(x.shape)}, but one datum is one row, (N, H, W) "
            "or (N, D), and there must be 10 or more: a fifth is held out."
        )
    is_bytes = x.dtype == torch.uint8 and bool(x.max() > 1)
    x = x.float() / 255 if is_bytes else x.float()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    test, train = x[order].tensor_split([len(x) // 5])
    split = f"a fifth of the rows, at random{'; grey = byte / 255' if is_bytes else ''}"
    return pv.datasets.Data(train, test, name=Path(name).name.partition(".")[0]), split


def _binary(x: Any, pixels: str, is_binary: bool) -> Any:
    if pixels != "none":
        return pv.datasets.binarize(x, pixels)
    if not is_binary or ((x == 0) | (x == 1)).all():
        return x
    raise DataError(
        "--binarize none needs pixels that are 0 or 1, but these also have values between or "
        f"beyond ({x.min():g} to {x.max():g}).\nWrite --binarize threshold, or sampled."
    )


def pictures(vae: Any, data: Images, history: Any, seed: int, prior: str) -> dict[str, Any]:
    """File name → figure; images only where a datum is one."""
    import torch

    from pyrovae.handlers import RandomStream, evaluation

    with RandomStream(seed), evaluation(vae):
        rows = torch.randperm(len(data.test))[:3000]  # more points hide each other
        codes = _mean(vae.encode(data.test[rows]))
        samples = vae.decode(vae.prior().expand([64]).sample()).mean
    labels = None if data.test_labels is None else data.test_labels[rows]
    title = f"{data.name}: mean of q(z|x) for {len(rows)} held-out data, prior {prior}"
    figures = {
        "training.png": pv.plots.training_curve(history),
        "latent.png": pv.plots.latent_scatter(codes, labels, title=title).figure,
    }
    if data.test.dim() == 3:
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


def summary(settings: Settings, vae: Any, data: Images, history: Any) -> dict[str, Any]:
    """What summary.json holds: settings, versions, numbers with their unit, history."""
    return {
        "data": data.name,
        "pixels": PIXELS[data.pixels],
        "held_out_is": data.split,
        "unit": "nats per datum; elbo = -(reconstruction + kl), whatever beta",
        "num_samples": NUM_SAMPLES,
        "training": estimate(vae, data.train, history.seed),
        "held_out": estimate(vae, data.test, history.seed),
        "seed": history.seed,
        "settings": asdict(settings) | {"out": settings.out and str(settings.out)},
        "versions": {"pyrovae": pv.__version__} | {n: version(n) for n in ("torch", "pyro-ppl")},
        "best_epoch": history.best_epoch,
        "history": [epoch._asdict() for epoch in history.epochs],
    }


def estimate(vae: Any, x: Any, seed: int) -> dict[str, Any]:
    """ELBO, reconstruction and KL of x (N, *event), in nats per datum, with standard errors."""
    import torch

    rows = max(1, 2**23 // (NUM_SAMPLES * x[0].numel()))  # bounds the memory of a chunk
    chunks = []
    for index, part in enumerate(x.split(rows)):
        terms = pv.elbo_terms(vae, part, num_samples=NUM_SAMPLES, seed=(seed + index) % 2**64)
        chunks.append(torch.stack([terms.log_weights, -terms.log_likelihood, terms.kl]).mean(1))
    columns = zip(TERMS, torch.cat(chunks, 1).double(), strict=True)
    return {"num_data": len(x)} | {
        name: {"value": c.mean().item(), "std_error": c.std().item() / len(c) ** 0.5}
        for name, c in columns
    }


def show(result: dict[str, Any], folder: Path) -> None:
    """The table of the ELBO's terms, how they came about, and the files, on stdout."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    parts = {"training": result["training"], "held out": result["held_out"]}
    caption = f"± standard error over the data, with {NUM_SAMPLES} draws of z each"
    table = Table("nats per datum", title=f"VAE on {result['data']}", caption=caption)
    for name, part in parts.items():
        table.add_column(f"{name} (N={part['num_data']})", justify="right")
    for key, name in TERMS.items():
        numbers = (part[key] for part in parts.values())
        table.add_row(Text(name), *(f"{n['value']:.2f} ± {n['std_error']:.2f}" for n in numbers))
    settings, beta = result["settings"], result["settings"]["beta"]
    epochs = str(len(result["history"]))
    if result["history"][-1]["validation_elbo"] is not None:
        epochs += f", weights of epoch {result['best_epoch']} (best validation ELBO)"
    facts = {
        "pixels": result["pixels"],
        "held out": result["held_out_is"],
        "latent": f"dimension {settings['latent_dim']}; hidden {settings['hidden']}",
        "parts": f"{settings['prior']}, {settings['guide']}, {settings['likelihood']}",
        "trained": f"with β = {beta:g}{'' if beta == 1 else '; the ELBO above is that of β = 1'}",
        "epochs": f"{epochs}; seed {result['seed']}; {result['seconds']:.0f} s in all",
        "wrote": "\n         ".join(str(path) for path in sorted(folder.iterdir())),
    }
    console = Console(highlight=False)
    console.print(table)
    for name, fact in facts.items():
        console.print(f"{name:<8}", fact, soft_wrap=True, markup=False)
