"""`pyrovae report`: write one HTML page about a run."""

from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Option

import pyrovae as pv
from pyrovae.cli.base import app, errors_as_exit_codes, new_file, out_path, path_of, say_json
from pyrovae.cli.options import DataOption, ForceOption, RunFolder, SamplesOption, SeedOption
from pyrovae.cli.runs import Run, open_run
from pyrovae.errors import ConfigError

SYMBOLS = {"fine": "ok", "look": "look", "problem": "PROBLEM", "unknown": "?"}


@app.command("report")
def report_command(
    folder: RunFolder,
    out: Annotated[
        Path | None, Option(parser=path_of, metavar="FILE", help="RUN/report.html by default.")
    ] = None,
    num_samples: SamplesOption = 1000,
    seed: SeedOption = 0,
    data: DataOption = None,
    as_json: Annotated[bool, Option("--json", help="Also print the verdicts as JSON.")] = False,
    force: ForceOption = False,
) -> None:
    """Write one HTML page about a run: what it is, and whether to trust it.

    The page needs no network. Its verdicts are tests of numbers with errors:

    \b
    undertrained        a copy trained further gains much on held-out data
    posterior collapse  q(z|x) is the prior for every x
    over-regularized    the encoder is optimal for more KL than the ELBO has
    guide too narrow    it is optimal for less
    wrong likelihood    x varies about its code otherwise than p(x|z) says
    overfitting         training data are scored far better than held-out data

    Also judged, as limits of its inference: for how many data log p(x) is only
    bounded, data whose posterior the encoder misses, the inference gap, prior
    misfit, and calibration. From these it says what to trust: samples, log p(x),
    q(z|x) as a posterior, comparisons. All use at most 1000 random rows each of
    the training and the held-out data.

    The run_dir of pyrovae.fit has no summary.json: name held-out data by --data.
    Other models than those of pyrovae.build: call pyrovae.write_report in Python.

    \b
    Example:
      pyrovae report runs/mnist
      pyrovae report runs/of_fit --data held_out.npy
    """
    with errors_as_exit_codes():
        target = out_path(out or folder / "report.html", (".html", ".htm"))
        if is_run_of_fit(folder):
            judged = of_run_dir(folder, data, target, num_samples, seed, force=force)
        else:
            run = open_run(folder, data=data)
            with new_file(target, force=force) as path:
                judged, page = written(run, num_samples=num_samples, seed=seed)
                path.write_text(page, encoding="utf-8")
        if as_json:
            verdicts = [verdict._asdict() for verdict in judged]
            say_json({"run": str(folder), "report": str(target), "verdicts": verdicts})
        else:
            show(judged, target)


def is_run_of_fit(folder: Path) -> bool:
    """Return whether a folder is the finished run_dir of `pyrovae.fit`, without a card."""
    from pyrovae.report.card import CARD, MODEL

    return (folder / MODEL).is_file() and not (folder / CARD).is_file()


def of_run_dir(
    folder: Path, data: str | None, target: Path, num_samples: int, seed: int, *, force: bool
) -> tuple[Any, ...]:
    """Write the page about the run_dir of `pyrovae.fit`, and return the verdicts."""
    from pyrovae.report.card import MODEL

    if data is None:
        raise ConfigError(
            f"{folder} was written by pyrovae.fit, which keeps no data, so there is nothing to "
            "judge the model on.\nName held-out data: --data FILE."
        )
    vae = pv.load(folder / MODEL)
    log = folder / "history.csv"
    history = pv.History.from_csv(log) if log.is_file() else None
    how = {"num_samples": num_samples, "seed": seed, "overwrite": force}
    return pv.write_report(vae, pv.datasets.from_file(data), target, history=history, **how)


def written(run: Run, *, num_samples: int, seed: int) -> tuple[tuple[Any, ...], str]:
    """Return the verdicts on a run, and its page."""
    from pyrovae.report.figures import pictures
    from pyrovae.report.findings import examine
    from pyrovae.report.page import of_card, render
    from pyrovae.report.trials import Training
    from pyrovae.report.verdicts import verdicts

    vae, card, data = run.vae, run.card, run.data
    training = Training(**{name: card["settings"][name] for name in Training._fields})
    options = {"training": training, "num_samples": num_samples, "seed": seed}
    found = examine(vae, data.train, test=data.test, **options)
    judged = verdicts(found, beta=training.beta)
    history = {name: [epoch[name] for epoch in card["history"]] for name in card["history"][0]}
    labels = None if data.test_labels is None else data.test_labels[found.rows]
    drawn = pictures(vae, found, history=history, labels=labels, seed=seed)
    now = f"{datetime.now():%Y-%m-%d %H:%M}"
    footer = f"pyrovae {pv.__version__}, {now}; diagnostics with seed {seed}."
    how = {"found": found, "judged": judged, "pictures": drawn, "footer": footer}
    return judged, render(of_card(card, str(run.folder)), vae, **how)


def show(judged: tuple[Any, ...], target: Path) -> None:
    """Print the verdicts in brief, what to trust, and the path of the page."""
    from pyrovae.report.trust import trust

    for verdict in judged:
        line = f"{SYMBOLS[verdict.status]:<8} {verdict.name}: {verdict.number or verdict.meaning}"
        typer.echo(line)
    for use in trust(judged):
        typer.echo(f"trust    {use.use}: {use.answer}")
    typer.echo(f"wrote    {target}")
