"""`pyrovae verify`: is a run what its card says?"""

import math
from typing import Annotated, NamedTuple

import typer
from typer import Option

from pyrovae.cli.base import app, errors_as_exit_codes, say_json
from pyrovae.cli.evaluate import DataOption, JsonOption, RunFolder
from pyrovae.cli.numbers import TERMS, estimate
from pyrovae.cli.runs import Run, open_run

LIMIT = 3.0  # standard errors of the difference; six true numbers all stay within in 98 % of seeds
OTHER_DRAWS = 2**31  # torch's CPU generator keeps 32 bits of a seed: change one of these


class Check(NamedTuple):
    """One line of a verification."""

    name: str
    reported: str
    found: str
    distance: float | None
    is_fine: bool


@app.command("verify")
def verify_command(
    folder: RunFolder,
    seed: Annotated[
        int | None, Option(min=0, metavar="N", help="Of the draws; not the run's own.")
    ] = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Recompute the numbers on a run's card with other draws, and check its hashes.

    The model file and the data must have the SHA-256 on the card. Each mean term
    of the ELBO is computed again on the same data with other draws of z, and must
    be within three standard errors of the difference, over the draws of both. A
    run whose card is true fails by chance about once in 60 seeds.

    Exit code 1: one of them fails.

    \b
    Example:
      pyrovae verify runs/mnist
    """
    with errors_as_exit_codes():
        from pyrovae.checks import seed_number

        run = open_run(folder, data=data)
        fresh = (run.card["seed"] + OTHER_DRAWS) % 2**64 if seed is None else seed_number(seed)
        checks = [*hash_checks(run), *number_checks(run, fresh)]
        is_fine = all(check.is_fine for check in checks)
        if as_json:
            lines = [check._asdict() for check in checks]
            say_json({"run": str(folder), "seed": fresh, "is_fine": is_fine, "checks": lines})
        else:
            show(run, checks, fresh)
    if not is_fine:
        raise typer.Exit(1)


def hash_checks(run: Run) -> list[Check]:
    """The model file's hash; the data's were compared when the run was opened."""
    from pyrovae.report.card import MODEL, file_hash

    reported, found = run.card["model_sha256"], file_hash(run.folder / MODEL)
    hashes = [Check(f"sha256 of {MODEL}", reported[:12], found[:12], None, reported == found)]
    for part, value in run.card["data_sha256"].items():
        if value is not None:
            hashes.append(Check(f"sha256 of the {part} data", value[:12], value[:12], None, True))
    return hashes


def number_checks(run: Run, seed: int) -> list[Check]:
    """Each number of the card beside the same with other draws."""
    checks = []
    for part, x in (("training", run.data.train), ("held_out", run.data.test)):
        fresh = estimate(run.vae, x, seed)
        for key in TERMS:
            old, new = run.card[part][key], fresh[key]
            error = math.hypot(old["draw_error"], new["draw_error"])
            difference = abs(old["value"] - new["value"])
            # a term without noise (a deterministic one) is compared up to float32's rounding
            distance = difference / max(error, 1e-6 * (1 + abs(old["value"])))
            values = (f"{n['value']:.3f} ± {n['draw_error']:.3f}" for n in (old, new))
            name = f"{part.replace('_', ' ')}: {key}"
            checks.append(Check(name, *values, distance, distance <= LIMIT))
    return checks


def show(run: Run, checks: list[Check], seed: int) -> None:
    """The table of `pyrovae verify`, and what it comes to."""
    from rich.console import Console
    from rich.table import Table

    table = Table(
        "",
        title=f"{run.folder}: the card, and the same computed again",
        caption=f"nats per datum ± standard error over draws; seed {seed}, the run's is "
        f"{run.card['seed']}",
    )
    for name in ("card", "now", "standard errors apart", ""):
        table.add_column(name, justify="right")
    for check in checks:
        apart = "" if check.distance is None else f"{check.distance:.1f}"
        mark = "ok" if check.is_fine else "FAILS"
        table.add_row(check.name, check.reported, check.found, apart, mark)
    console = Console(highlight=False)
    console.print(table)
    failed = [check.name for check in checks if not check.is_fine]
    verdict = f"{len(failed)} of {len(checks)} checks fail: {', '.join(failed)}."
    console.print(verdict if failed else f"All {len(checks)} checks hold.", soft_wrap=True)
