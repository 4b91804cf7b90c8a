"""`pyrovae report`: write one HTML page about a run."""

from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Option

import pyrovae as pv
from pyrovae.cli.base import app, errors_as_exit_codes, new_file, out_path, path_of, say_json
from pyrovae.cli.evaluate import DataOption, RunFolder, SeedOption
from pyrovae.cli.runs import Run, open_run

SYMBOLS = {"fine": "ok", "look": "look", "problem": "PROBLEM", "unknown": "?"}


@app.command("report")
def report_command(
    folder: RunFolder,
    out: Annotated[
        Path | None, Option(parser=path_of, metavar="FILE", help="RUN/report.html by default.")
    ] = None,
    num_samples: Annotated[
        int, Option(min=21, metavar="K", help="Draws of z per datum, for log p(x).")
    ] = 1000,
    seed: SeedOption = 0,
    data: DataOption = None,
    as_json: Annotated[bool, Option("--json", help="Also print the verdicts as JSON.")] = False,
    force: Annotated[bool, Option("--force", help="Replace an existing file.")] = False,
) -> None:
    """Write one HTML page about a run: what it is, and whether to trust it.

    The page needs no network. Its verdicts come from numbers with errors:

    \b
    undertrained        a copy trained further gains much on held-out data
    posterior collapse  q(z|x) is the prior for every x
    over-regularized    the encoder is optimal for more KL than the ELBO has
    overfitting         training data are scored far better than held-out data

    and, worth a look, data whose posterior the encoder misses, the inference gap,
    prior misfit, and calibration. They use at most 1000 random rows each of the
    training and the held-out data.

    \b
    Example:
      pyrovae report runs/mnist
    """
    with errors_as_exit_codes():
        target = out_path(out or folder / "report.html", (".html", ".htm"))
        run = open_run(folder, data=data)
        with new_file(target, force=force) as path:
            judged, page = written(run, num_samples=num_samples, seed=seed)
            path.write_text(page, encoding="utf-8")
        if as_json:
            verdicts = [verdict._asdict() for verdict in judged]
            say_json({"run": str(folder), "report": str(target), "verdicts": verdicts})
        else:
            show(judged, target)


def written(run: Run, *, num_samples: int, seed: int) -> tuple[tuple[Any, ...], str]:
    """Return the verdicts on a run, and its page."""
    from pyrovae.report.figures import pictures
    from pyrovae.report.findings import Training, examine
    from pyrovae.report.page import render
    from pyrovae.report.verdicts import verdicts

    settings = run.card["settings"]
    training = Training(settings["beta"], settings["batch_size"], settings["learning_rate"])
    options = {"training": training, "num_samples": num_samples, "seed": seed}
    found = examine(run.vae, run.data.train, test=run.data.test, **options)
    judged = verdicts(found, beta=settings["beta"])
    labels = run.data.test_labels
    drawn = pictures(
        run.vae,
        found,
        history=_columns(run.card["history"]),
        labels=None if labels is None else labels[found.rows],
        seed=seed,
    )
    made = (
        f"pyrovae {pv.__version__}, {datetime.now():%Y-%m-%d %H:%M}; diagnostics with seed {seed}."
    )
    page = render(
        run.card,
        run.vae,
        found=found,
        judged=judged,
        pictures=drawn,
        folder=str(run.folder),
        footer=made,
    )
    return judged, page


def _columns(history: list[dict[str, Any]]) -> dict[str, list[Any]]:
    return {name: [epoch[name] for epoch in history] for name in history[0]}


def show(judged: tuple[Any, ...], target: Path) -> None:
    """Print the verdicts in short, and the path of the page."""
    for verdict in judged:
        line = f"{SYMBOLS[verdict.status]:<8} {verdict.name}: {verdict.number or verdict.meaning}"
        typer.echo(line)
    typer.echo(f"wrote    {target}")
