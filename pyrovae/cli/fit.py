"""`pyrovae fit`: train a VAE on images, score it on held-out ones, write model, card and plots.

    ELBO = E_q[log p(x|z)] − KL(q(z|x) ‖ p(z))  ≤  log p(x)        nats per datum

`fit_command` parses options into `Settings`; `run` does the work. Invalid settings are refused
before training, and a run that fails before its first checkpoint leaves no folder. settings.json is
written first, so an interrupted or killed run resumes with `--resume DIR` alone. With several
processes (`torchrun`), only the first writes and prints.
"""

import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer import Option

import pyrovae as pv
from pyrovae.cli.base import app, errors_as_exit_codes, file_name, path_of
from pyrovae.cli.data import DATA_SETS, Images, load
from pyrovae.cli.results import pictures, plain, provenance, show, summary
from pyrovae.cli.settings import choice, from_settings_file, name_of, widths
from pyrovae.errors import CheckpointError, ConfigError

SETTINGS = "settings.json"
PARTS = ("prior", "guide", "likelihood", "network")


@dataclass(frozen=True)
class Settings:
    """Settings of a run; None is decided by the data or the date."""

    data: str
    key: str | None
    binarize: str | None
    prior: str
    guide: str
    likelihood: str
    network: str
    latent_dim: int
    hidden: tuple[int, ...] | None
    epochs: int
    batch_size: int
    learning_rate: float
    beta: float
    seed: int
    compile: str
    precision: str
    device: str | None
    out: Path | None


def engine(text: str) -> str:
    """Parse the name of an engine, or "auto"."""
    from pyrovae.training.plan import COMPILE

    if text not in COMPILE:
        raise typer.BadParameter(f"{text!r} is not one of {', '.join(COMPILE)}.")
    return text


@app.command("fit")
def fit_command(
    context: typer.Context,
    data: Annotated[
        str,
        Option(parser=file_name, metavar="NAME", help=f"{', '.join(DATA_SETS)}, or a file."),
    ] = "digits",
    key: Annotated[
        str | None,
        Option(metavar="NAMES", help="Array of an .npz: one, or training,held-out."),
    ] = None,
    binarize: Annotated[
        Literal["threshold", "sampled", "none"] | None,
        Option(
            metavar="METHOD",
            help="threshold: 1 where gray > 0.5, the default. sampled: 1 with probability gray, "
            "redrawn each epoch. none: unchanged, the default for other likelihoods.",
        ),
    ] = None,
    prior: Annotated[
        str, Option(metavar="NAME", help="p(z): a name in pyrovae.priors; ? lists them.")
    ] = ("StandardNormal"),
    guide: Annotated[
        str, Option(metavar="NAME", help="q(z|x): a name in pyrovae.guides; ? lists them.")
    ] = ("DiagonalNormal"),
    likelihood: Annotated[
        str, Option(metavar="NAME", help="p(x|z): a name in pyrovae.likelihoods; ? lists them.")
    ] = "Bernoulli",
    network: Annotated[
        str, Option(metavar="NAME", help="mlp, gated_mlp, residual_mlp or conv.")
    ] = "mlp",
    latent_dim: Annotated[int, Option(min=1, metavar="D", help="Dimension of z.")] = 2,
    hidden: Annotated[
        Any,
        Option(
            parser=widths,
            metavar="WIDTHS",
            help="E.g. 300,200, channels of conv; reversed in the decoder. Default 200,200; conv "
            "32,64,64.",
        ),
    ] = None,
    epochs: Annotated[int, Option(min=1, metavar="N", help="Passes over the data.")] = 100,
    batch_size: Annotated[int, Option(min=1, metavar="N", help="Data per step.")] = 64,
    learning_rate: Annotated[float, Option(metavar="RATE", help="Learning rate of Adam.")] = 1e-3,
    beta: Annotated[float, Option(metavar="β", help="Weight of the KL in training.")] = 1.0,
    seed: Annotated[int, Option(min=0, metavar="N", help="Seed of weights and draws.")] = 0,
    compile: Annotated[
        str,
        Option(
            parser=engine,
            metavar="ENGINE",
            help="eager runs Pyro's handlers at each step; graph replays one traced step; inductor "
            "compiles it; auto chooses by size and length.",
        ),
    ] = "auto",
    precision: Annotated[
        Literal["float32", "bf16"], Option(metavar="TYPE", help="float32, or bf16 for networks.")
    ] = "float32",
    device: Annotated[str | None, Option(metavar="NAME", help="cpu, cuda, …")] = None,
    out: Annotated[
        Path | None, Option(parser=path_of, metavar="DIR", help="New; default runs/DATA-DATE-TIME.")
    ] = None,
    resume: Annotated[
        Path | None,
        Option(
            parser=path_of,
            metavar="DIR",
            help="Resume an interrupted run, or extend one by --epochs; takes no other option.",
        ),
    ] = None,
    settings: Annotated[
        Path | None,
        Option(parser=path_of, metavar="FILE", help="TOML or JSON with any of these options."),
    ] = None,
) -> None:
    """Train a VAE on images, score it on held-out ones, and draw plots.

    \b
    By default:
    prior    p(z)   = N(0, I)
    encoder  q(z|x) = N(μ(x), diag σ²(x))           a network gives μ and σ
    decoder  p(x|z) = Π_j Bernoulli(x_j; π_j(z))    a network gives π
    loss     −E_q\\[log p(x|z)] + β KL(q(z|x) ‖ p(z)),   −ELBO at β = 1

    The run folder gets model.safetensors (for pyrovae.load), summary.json
    (settings, versions, numbers, history), history.csv, checkpoints, and
    reconstructions.png, samples.png, latent.png and training.png. After Ctrl-C
    it holds the current model, and --resume continues bit for bit.

    \b
    Examples:
      pyrovae fit
      pyrovae fit --data mnist --binarize sampled --latent-dim 20 --out runs/mnist
      pyrovae fit --prior VampPrior --latent-dim 10
      pyrovae fit --prior GaussianMixture:num_components=20
      pyrovae fit --network conv --settings run.toml
      pyrovae fit --likelihood Normal   gray pixels, not binarized
      pyrovae fit --beta 4              the table still shows the ELBO of β = 1
      pyrovae fit --data faces.npy      (N, H, W), floats 0..1 or bytes 0..255
      pyrovae fit --data colors.npz --key train,test    two arrays (N, 3, H, W)
      pyrovae fit --data genes.csv --likelihood Normal      one datum a row
      pyrovae fit --resume runs/mnist
      pyrovae fit --resume runs/mnist --epochs 300      train on, or end it early
      torchrun --nproc-per-node 2 -m pyrovae fit --out runs/two

    Files are .npy, .npz (scipy's sparse ones too), .csv, .parquet, .feather or
    IDX; a fifth of their rows, drawn by the seed, is held out. Data sets keep
    their test split; validation data, if any, stop training early. All but digits
    are read from the folder PYROVAE_DATA; MNIST and Fashion-MNIST are downloaded
    if they are missing.
    """
    options = locals()  # before there is any other local
    context, folder, file = (options.pop(name) for name in ("context", "resume", "settings"))
    with errors_as_exit_codes():
        if folder is None:
            run(Settings(**options | (from_settings_file(context, file) if file else {})))
        else:
            changes = {"epochs": epochs} if "epochs" in given_with_resume(context) else {}
            run(replace(settings_of(folder), **changes), resumed=folder)


def given_with_resume(context: typer.Context) -> list[str]:
    """Return the options given besides --resume: --epochs or none, since the run has its own."""
    given = [n for n in context.params if context.get_parameter_source(n).name == "COMMANDLINE"]
    others = [f"--{name.replace('_', '-')}" for name in given if name not in ("resume", "epochs")]
    if others:
        raise ConfigError(
            f"--resume uses the settings of the run, but {', '.join(others)} was also given."
            "\nOnly --epochs may be: it trains on, or ends the run early. Or start a new run."
        )
    return given


def settings_of(folder: Path) -> Settings:
    """Return the settings that a run started with."""
    path = folder / SETTINGS
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        hidden = found["hidden"] and tuple(found["hidden"])
        return Settings(**found | {"hidden": hidden, "out": folder})
    except FileNotFoundError:
        raise ConfigError(
            f"{folder} has no {SETTINGS}, so it cannot be resumed.\nGive the folder that an "
            "interrupted `pyrovae fit` printed."
        ) from None
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{path} is damaged: {error}.\nStart a new run.") from None


def run(settings: Settings, *, resumed: Path | None = None) -> None:
    """Train, score and draw by the settings, and print the results."""
    from pyrovae.checks import seed_number
    from pyrovae.runtime.process_group import is_first

    start = time.perf_counter()
    seed, is_resumed = seed_number(settings.seed), resumed is not None
    how = {"binarize": settings.binarize, "likelihood": settings.likelihood, "key": settings.key}
    data = load(settings.data, **how, seed=seed)
    parts = {name: choice(getattr(settings, name)) for name in PARTS}
    hidden = settings.hidden or default_widths(settings.network)
    sizes = {"latent_dim": settings.latent_dim, "hidden": hidden}
    vae = pv.build(data.train.shape[1:], **parts, **sizes, data=data.train, seed=seed)
    with run_folder(settings.out, data.name, is_resumed=is_resumed) as folder:
        if is_first():
            write_json(folder / SETTINGS, plain(settings))
        history, is_interrupted = trained(settings, vae, data, folder, is_resumed=is_resumed)
        if not is_first():
            return
        vae.cpu()
        pv.save(vae, folder / "model.safetensors")
        result = summary(settings, vae, data, history) | provenance(settings, vae, data, folder)
        for name, figure in pictures(vae, data, history, seed, settings.prior).items():
            figure.savefig(folder / name, dpi=120)
        result["seconds"] = round(time.perf_counter() - start, 2)
        write_json(folder / "summary.json", result)
    show(result, folder)
    if is_interrupted:
        raise KeyboardInterrupt(how_to_go_on(folder))


def default_widths(network: str) -> tuple[int, ...] | None:
    """Return the network's own default, but at least two layers; None if it is unknown."""
    from pyrovae.networks import NETWORKS

    if name_of(network) not in NETWORKS:  # `build` refuses it
        return None
    hidden = NETWORKS[name_of(network)].hidden
    return 2 * hidden if len(hidden) == 1 else hidden


def trained(
    settings: Settings, vae: Any, data: Images, folder: Path, *, is_resumed: bool
) -> tuple[Any, bool]:
    """Train; return the history, and whether Ctrl-C ended it after at least one epoch."""
    names = ("epochs", "batch_size", "learning_rate", "seed", "compile", "precision", "device")
    options = {name: getattr(settings, name) for name in names}
    if settings.beta != 1:
        options["objective"] = pv.objectives.BetaELBO(settings.beta)
    options |= {"validation": data.valid, "run_dir": folder, "resume": is_resumed}
    try:
        return pv.fit(vae, data.source, **options), False
    except KeyboardInterrupt:
        if not (folder / "history.csv").exists():  # training had not started
            raise
        history = pv.History.from_csv(folder / "history.csv", seed=settings.seed)
        if not len(history):
            raise KeyboardInterrupt(how_to_go_on(folder)) from None
        return history, True


def how_to_go_on(folder: Path) -> str:
    """Return the last line of an interrupted run."""
    return f"Resume with: pyrovae fit --resume {folder}"


def write_json(path: Path, value: Any) -> None:
    """Write one JSON object to a file."""
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")


@contextmanager
def run_folder(out: Path | None, name: str, *, is_resumed: bool) -> Iterator[Path]:
    """Yield a folder for the run's files, removed if the block fails before a checkpoint."""
    from pyrovae.runtime.process_group import is_first

    folder = out or Path("runs", f"{name}-{datetime.now():%Y%m%d-%H%M%S}")
    if is_resumed or not is_first():
        yield folder
        return
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ConfigError(
            f"{folder} is not an empty folder; runs overwrite nothing.\nGive another."
        )
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=out is not None)
    try:
        tempfile.TemporaryFile(dir=folder).close()  # fail now if it is not writable
        yield folder
    except BaseException:
        if not any(folder.glob("*-[0-9]*")):  # no checkpoint: nothing to resume
            for name in (SETTINGS, "history.csv", "lock"):
                (folder / name).unlink(missing_ok=True)
        for path in made:
            with suppress(OSError):
                path.rmdir()
        raise
