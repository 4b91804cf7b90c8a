"""`pyrovae compare`: rank runs by paired evidence on the same held-out data."""

from pathlib import Path
from typing import Annotated, Any

from typer import Argument

import pyrovae as pv
from pyrovae.cli.base import app, errors_as_exit_codes, path_of, say_json
from pyrovae.cli.numbers import bound_on, with_error
from pyrovae.cli.options import DataOption, JsonOption, SamplesOption, SeedOption
from pyrovae.cli.runs import Run, open_run
from pyrovae.errors import ConfigError, DataError


@app.command("compare")
def compare_command(
    folders: Annotated[
        list[Path],
        Argument(parser=path_of, metavar="RUN RUN…", help="Folders made by pyrovae fit."),
    ],
    num_samples: SamplesOption = 1000,
    seed: SeedOption = 0,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Rank runs by log p(x) of the held-out data that they share.

    Differences from the best run are paired per datum, so that data that are hard
    for every model cancel. A difference is significant if it exceeds two standard
    errors. Why one run wins: distortion is the reconstruction term, and the KL is
    the information about x in z plus what another prior could save (misfit).
    Runs on other data, or scored on another split, are refused.

    \b
    Example:
      pyrovae compare runs/normal runs/vamp
    """
    with errors_as_exit_codes():
        if len({folder.resolve() for folder in folders}) < 2:
            raise ConfigError(
                f"compare got {len(folders)} folder(s), but a comparison needs at least two "
                "different runs.\nWrite pyrovae compare RUN RUN."
            )
        runs = [open_run(folder, data=data) for folder in folders]
        result = comparison(runs, num_samples=num_samples, seed=seed)
        say_json(result) if as_json else show(result)


def comparison(runs: list[Run], *, num_samples: int, seed: int) -> dict[str, Any]:
    """Return the rows of `pyrovae compare`, the best first; nats per datum."""
    first = runs[0]
    for run in runs[1:]:
        if run.card["data_sha256"]["test"] != first.card["data_sha256"]["test"]:
            raise DataError(
                f"{run.folder} and {first.folder} have different held-out data ({run.data.name}, "
                f"{first.data.name}; by SHA-256): densities of different x are not comparable.\n"
                "Compare runs on the same data set, split and binarization."
            )
    models = {str(run.folder): run.vae for run in runs}
    x = first.data.test
    found = pv.diagnostics.compare_priors(models, x, num_samples=num_samples, seed=seed)
    priors = {str(run.folder): run.card["settings"]["prior"] for run in runs}
    rows = [_row(row, priors[row.name], bound_on(models[row.name], x)) for row in found.rows]
    return {
        "data": first.data.name,
        "num_data": len(x),
        "unit": "nats per datum",
        "estimator": "log_evidence by 'auto'",
        "runs": rows,
        "seed": seed,
    }


def _row(row: Any, prior: str, bound: str) -> dict[str, Any]:
    names = ("log_px", "difference", "reconstruction", "kl", "mutual_information", "marginal_kl")
    estimates = {name: getattr(row, name) for name in names}
    numbers = {n: {"value": e.value, "std_error": e.std_error} for n, e in estimates.items()}
    return {
        "run": row.name,
        "prior": prior,
        "bound_on": bound,
        **numbers,
        "share_lower_bounds": row.share_failed,
        "is_distinguishable": row.is_distinguishable,
    }


def show(result: dict[str, Any]) -> None:
    """Print the table of `pyrovae compare`."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(
        "run",
        "prior",
        title=f"Held-out {result['data']} (N={result['num_data']})",
        caption=f"nats per datum ± standard error over the data; log p(x) by {result['estimator']}",
    )
    for name in (
        "log p(x)",
        "worse by",
        "distortion",
        "information",
        "prior misfit",
        "bounds only",
    ):
        table.add_column(name, justify="right")
    for row in result["runs"]:
        told = "" if row["is_distinguishable"] else " (not significant)"
        worse = f"{with_error(row['difference'])}{told}" if row["difference"]["value"] else "best"
        parts = ("reconstruction", "mutual_information", "marginal_kl")
        table.add_row(
            Text(row["run"]),
            row["prior"] + row["bound_on"].removeprefix("log p(x)"),
            with_error(row["log_px"]),
            worse,
            *(f"{row[part]['value']:.2f}" for part in parts),
            f"{100 * row['share_lower_bounds']:.1f} %",
        )
    Console(highlight=False).print(table)
