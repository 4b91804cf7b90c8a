"""`pyrovae evaluate`: score a run's model on its held-out data."""

from collections import Counter
from typing import Annotated, Any

from typer import Option

import pyrovae as pv
from pyrovae.cli.base import app, errors_as_exit_codes, say_json
from pyrovae.cli.numbers import NUM_SAMPLES, bound_on, estimate, labels, with_error
from pyrovae.cli.options import DataOption, JsonOption, RunFolder, SamplesOption, SeedOption
from pyrovae.cli.runs import Run, open_run


@app.command("evaluate")
def evaluate_command(
    folder: RunFolder,
    num_samples: SamplesOption = 1000,
    num_data: Annotated[
        int | None, Option(min=2, metavar="N", help="Score at most N held-out data, at random.")
    ] = None,
    seed: SeedOption = 0,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Score a run on its held-out data: ELBO, evidence, active units, k̂.

    \b
    ELBO      −(reconstruction + KL), a lower bound of log p(x)
    log p(x)  for each datum by the cheapest of quadrature (latent ≤ 2),
              importance sampling, refined importance sampling and annealing
              that has an interval; where none has, a lower bound
    active    latent dimensions that have not collapsed: Var_x(E\\[z_d|x]) > 0.01,
              or KL(q(z_d|x) ‖ p(z_d)) > 0.05 nats for more than 1 % of the data
    k̂         tail of the weights p(x, z) / q(z|x) of K draws for a datum; above
              the threshold the encoder misses its posterior

    \b
    Examples:
      pyrovae evaluate runs/mnist
      pyrovae evaluate runs/mnist --num-samples 5000 --num-data 1000 --json
    """
    with errors_as_exit_codes():
        run = open_run(folder, data=data)
        result = scores(run, num_samples=num_samples, num_data=num_data, seed=seed)
        say_json(result) if as_json else show(result)


def scores(run: Run, *, num_samples: int, num_data: int | None, seed: int) -> dict[str, Any]:
    """Compute the numbers of `pyrovae evaluate`, nats per datum unless said otherwise."""
    import torch

    from pyrovae.diagnostics.estimate import mean_of

    x = run.data.test
    if num_data is not None and num_data < len(x):
        rows = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:num_data]
        x = x[rows]
    draws = {"num_samples": num_samples, "seed": seed}
    evidence = pv.log_evidence(run.vae, x, method="auto", **draws)
    reliability = pv.diagnostics.pareto_k(run.vae, x, **draws)
    units = pv.diagnostics.collapsed_dimensions(run.vae, x, seed=seed)
    log_px, failed = mean_of(evidence.log_px), len(reliability.failed) / len(x)
    return {
        "run": str(run.folder),
        "data": run.data.name,
        "unit": "nats per datum",
        "bound_on": bound_on(run.vae, x),
        **estimate(run.vae, x, seed),
        "log_px": {
            "value": log_px.value,
            "std_error": log_px.std_error,
            "draw_error": (evidence.std_error**2).sum().sqrt().item() / len(x),
            "methods": dict(Counter(evidence.methods)),
            "share_lower_bounds": evidence.upper.isinf().double().mean().item(),
        },
        "active_units": {
            "value": units.num_active,
            "of": len(units.names),
            "variance": units.variance.tolist(),
            "mean_kl": units.mean_kl.tolist(),
        },
        "share_above_pareto_k": {
            "value": failed,
            "std_error": (failed * (1 - failed) / len(x)) ** 0.5,
            "threshold": reliability.threshold,
        },
        "seed": seed,
    }


def show(result: dict[str, Any]) -> None:
    """Print the table of `pyrovae evaluate`."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    log_px, active = result["log_px"], result["active_units"]
    share = result["share_above_pareto_k"]
    table = Table(
        f"held out (N={result['num_data']})",
        title=f"{result['run']}: VAE on {result['data']}",
        caption=f"nats per datum ± standard error over the data; {NUM_SAMPLES} draws of z per "
        f"datum; log p(x) by {_methods(log_px)} (error of its draws {log_px['draw_error']:.3f})",
    )
    table.add_column("value", justify="right")
    rows = {name: result[key] for key, name in labels(result["bound_on"]).items()}
    rows[f"evidence, {result['bound_on']} (higher is better)"] = log_px
    for name, number in rows.items():
        table.add_row(Text(name), with_error(number))
    table.add_row("active units", f"{active['value']} of {active['of']}")
    percent, error = 100 * share["value"], 100 * share["std_error"]
    table.add_row(f"data with k̂ > {share['threshold']:.2f}", f"{percent:.1f} ± {error:.1f} %")
    Console(highlight=False).print(table)


def _methods(log_px: dict[str, Any]) -> str:
    return ", ".join(f"{name} ({count})" for name, count in log_px["methods"].items())
