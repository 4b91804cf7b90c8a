"""`pyrovae verify`: check that a run is what its card says.

A number m on the card and m', recomputed from the same data with as many other draws of z,
differ by Monte-Carlo error alone: √2 s, where s is the standard error of one of them. So

    t = |m − m'| / (√2 s') ≤ 3

with s' recomputed: too large an error on the card does not help. One of six correct numbers
exceeds 3 for about 1 in 85 seeds (1.2 %; 1.6 % if they were independent), though each does for
0.27 %. Such a number is recomputed with the run's own draws: if that reproduces it up to rounding,
it is correct and was off by chance. Another machine or version of torch may draw differently;
there a correct card fails at that rate.
"""

import math
from typing import Annotated, Any, NamedTuple

import typer
from typer import Option

from pyrovae.cli.base import app, errors_as_exit_codes, say_json
from pyrovae.cli.numbers import TERMS, estimate
from pyrovae.cli.options import DataOption, JsonOption, RunFolder
from pyrovae.cli.runs import Run, open_run

LIMIT = 3.0  # standard errors of the difference
ERROR_FACTOR = 2.0  # between an error on the card and recomputed; N S draws agree far better
ROUNDING = 1e-6  # of a number computed twice from the same draws
FIELDS = ("value", "std_error", "draw_error")
OTHER_DRAWS = 2**31  # torch's CPU generator keeps 32 bits of a seed: change one of these


class Check(NamedTuple):
    """One line of a verification."""

    name: str
    reported: str
    found: str
    distance: float | None
    is_fine: bool
    note: str = ""


@app.command("verify")
def verify_command(
    folder: RunFolder,
    seed: Annotated[
        int | None, Option(min=0, metavar="N", help="Seed of the draws; not the run's own.")
    ] = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Recompute the numbers on a run's card with other draws, and check its hashes.

    The model file and the data must have the SHA-256 on the card. Each mean term
    of the ELBO is recomputed on the same data with other draws of z, and must
    agree within three standard errors of the difference, over the draws of both;
    its errors must agree within a factor of 2.

    One of six correct numbers is further off by chance for about 1 in 85 seeds.
    It is then recomputed with the run's own draws, and passes only if that gives
    the card's number up to rounding. On a machine that draws differently it
    cannot: there 1 correct card in 85 fails, and another --seed decides.

    Exit code 1: a check fails.

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
    """Check the model file's hash; the data's were compared when the run was opened."""
    from pyrovae.report.card import MODEL, file_hash

    reported, found = run.card["model_sha256"], file_hash(run.folder / MODEL)
    hashes = [Check(f"sha256 of {MODEL}", reported[:12], found[:12], None, reported == found)]
    for part, value in run.card["data_sha256"].items():
        if value is not None:
            hashes.append(Check(f"sha256 of the {part} data", value[:12], value[:12], None, True))
    return hashes


def number_checks(run: Run, seed: int) -> list[Check]:
    """Compare each number on the card with the same from other draws."""
    checks = []
    for part, x in (("training", run.data.train), ("held_out", run.data.test)):
        card = run.card[part]

        def again(seed: int, x: Any = x) -> dict[str, Any]:
            return estimate(run.vae, x, seed, num_samples=run.card.get("num_samples"))

        fresh, own = again(seed), None
        for key in TERMS:
            check = _compared(f"{part.replace('_', ' ')}: {key}", card[key], fresh[key])
            if not check.is_fine:
                own = own or again(run.card["seed"])
                if _is_same(card[key], own[key]):
                    check = check._replace(is_fine=True, note="the run's own draws reproduce it")
            checks.append(check)
    return checks


def _compared(name: str, old: dict[str, float], new: dict[str, float]) -> Check:
    """Compare a number on the card with the same from other draws."""
    error = math.sqrt(2) * new["draw_error"]
    # a term without noise (a deterministic one) is compared up to float32's rounding
    distance = abs(old["value"] - new["value"]) / max(error, ROUNDING * (1 + abs(old["value"])))
    values = (f"{n['value']:.3f} ± {n['draw_error']:.3f}" for n in (old, new))
    wrong = [n for n in ("draw_error", "std_error") if not _is_near(old[n], new[n])]
    note = "; ".join(f"{n} is {old[n]:.3g} on the card, now {new[n]:.3g}" for n in wrong)
    return Check(name, *values, distance, distance <= LIMIT and not wrong, note)


def _is_near(old: float, new: float) -> bool:
    """Return whether two standard errors, possibly 0, agree within `ERROR_FACTOR`."""
    return old <= ERROR_FACTOR * new + ROUNDING and new <= ERROR_FACTOR * old + ROUNDING


def _is_same(old: dict[str, float], new: dict[str, float]) -> bool:
    """Return whether value and errors are equal up to rounding; NaN is not."""
    return all(abs(old[n] - new[n]) <= ROUNDING * (1 + abs(new[n])) for n in FIELDS)


def show(run: Run, checks: list[Check], seed: int) -> None:
    """Print the table of `pyrovae verify`, and its conclusion."""
    from rich.console import Console
    from rich.table import Table

    table = Table(
        "",
        title=f"{run.folder}: the card, and recomputed",
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
    for check in checks:
        if check.note:
            console.print(f"{check.name}: {check.note}.", soft_wrap=True)
    failed = [check.name for check in checks if not check.is_fine]
    verdict = f"{len(failed)} of {len(checks)} checks fail: {', '.join(failed)}."
    console.print(verdict if failed else f"All {len(checks)} checks pass.", soft_wrap=True)
