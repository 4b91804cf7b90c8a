"""`pyrovae sample`, `encode` and `impute`: use a trained model."""

from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option

import pyrovae as pv
from pyrovae.cli.base import app, errors_as_exit_codes, file_name, new_file, out_path, path_of
from pyrovae.cli.data import rows_of
from pyrovae.cli.options import DataOption, ForceOption, RunFolder, SeedOption
from pyrovae.cli.runs import open_run
from pyrovae.errors import ConfigError, DataError
from pyrovae.images import can_be_drawn


@app.command("sample")
def sample_command(
    folder: RunFolder,
    out: Annotated[
        Path, Option(parser=path_of, metavar="FILE", help="A picture .png, or arrays .npz.")
    ],
    num: Annotated[int, Option("-n", "--num", min=1, metavar="N", help="Number of draws.")] = 64,
    seed: SeedOption = 0,
    force: ForceOption = False,
) -> None:
    """Draw new data from a run's model: z ~ p(z), x ~ p(x|z).

    A .png shows E\\[x|z] at the draws of z, which is smoother than draws of x. An
    .npz holds z (n, D), mean = E\\[x|z] and x (n, *event).

    \b
    Examples:
      pyrovae sample runs/mnist --out samples.png
      pyrovae sample runs/mnist -n 1000 --out samples.npz
    """
    with errors_as_exit_codes():
        from pyrovae.core.draws import diagnosing

        is_picture = out_path(out, (".png", ".npz")).suffix.lower() == ".png"
        run = open_run(folder, with_data=False)
        with new_file(out, force=force) as path:
            with diagnosing(run.vae, seed):
                z = run.vae.prior().expand([num]).sample()
                p_x = run.vae.decode(z)
                mean, x = p_x.mean, p_x.sample()
            if is_picture:
                _picture(mean, f"{folder}: E[x|z] at draws z ~ p(z)", path)
            else:
                _write_npz(path, z=z, mean=mean, x=x)
        typer.echo(f"{num} draws: {out}")


def _picture(mean: Any, title: str, path: Path) -> None:
    if not can_be_drawn(mean.shape[1:]):
        raise DataError(
            f"a datum has shape {tuple(mean.shape[1:])}, which is not an image.\n"
            "Give --out an .npz file."
        )
    pv.plots.images(mean, title=title).figure.savefig(path, dpi=120, format="png")


def _write_npz(path: Path, **tensors: Any) -> None:
    import numpy as np

    with path.open("wb") as file:
        np.savez_compressed(file, **{name: t.detach().cpu().numpy() for name, t in tensors.items()})


@app.command("encode")
def encode_command(
    folder: RunFolder,
    out: Annotated[
        Path, Option(parser=path_of, metavar="FILE", help="Arrays .npz, or netCDF .nc.")
    ],
    file: Annotated[
        str | None,
        Argument(
            metavar="[FILE]", help="Data in any format that fit reads; held-out data if omitted."
        ),
    ] = None,
    num_draws: Annotated[
        int, Option(min=0, metavar="S", help="Draws of z per datum; 0 writes none.")
    ] = 0,
    seed: SeedOption = 0,
    data: DataOption = None,
    force: ForceOption = False,
) -> None:
    """Write the codes of data: mean and scale of q(z|x), and draws.

    mean and scale (N, D) are those of q(z|x) per latent dimension. If q has none
    in closed form (a flow), they are those of 1000 draws, and a netCDF says so.
    draws is (S, N, D). Images are binarized like the run's own data.

    \b
    Examples:
      pyrovae encode runs/mnist --out codes.npz
      pyrovae encode runs/mnist faces.npy --num-draws 100 --out codes.nc
    """
    with errors_as_exit_codes():
        is_netcdf = out_path(out, (".npz", ".nc")).suffix.lower() == ".nc"
        run = open_run(folder, with_data=file is None, data=data)
        x, mask = (run.data.test, None) if file is None else rows_of(file, run)
        mask = None if mask is None or mask.all() else mask
        arrays, origin = codes(run.vae, x, mask, num_draws=num_draws, seed=seed)
        with new_file(out, force=force) as path:
            if is_netcdf:
                _write_netcdf(path, arrays, {"run": str(folder), "moments": origin, "seed": seed})
            else:
                _write_npz(path, **arrays)
        shape = tuple(arrays["mean"].shape)
        typer.echo(f"codes of shape {shape}, mean and scale {origin}: {out}")


def codes(vae: Any, x: Any, mask: Any, *, num_draws: int, seed: int) -> tuple[dict[str, Any], str]:
    """Return mean, scale (N, D), draws (S, N, D) if requested, and the origin of the moments."""
    from pyrovae.core.draws import diagnosing

    with diagnosing(vae, seed):
        q = vae.encode(x, mask=mask)
        try:
            mean, scale, origin = q.mean, q.variance.sqrt(), "of q(z|x) itself"
        except NotImplementedError:  # a flow
            z = q.sample((1000,))
            mean, scale, origin = z.mean(0), z.std(0), "over 1000 draws of q(z|x)"
        arrays = {"mean": mean, "scale": scale}
        if num_draws:
            arrays["draws"] = q.sample((num_draws,))
    return arrays, origin


def _write_netcdf(path: Path, arrays: dict[str, Any], about: dict[str, Any]) -> None:
    import xarray

    dims = ("draw", "datum", "latent")
    values = {n: (dims[-t.dim() :], t.detach().cpu().numpy()) for n, t in arrays.items()}
    # netCDF 3 through scipy, which scikit-learn requires; HDF5 would need another package
    xarray.Dataset(values, attrs=about).to_netcdf(path, engine="scipy")


@app.command("impute")
def impute_command(
    folder: RunFolder,
    file: Annotated[
        str,
        Argument(
            parser=file_name,
            metavar="FILE",
            help="Data with NaN where missing, in any format that fit reads.",
        ),
    ],
    out: Annotated[Path, Option(parser=path_of, metavar="FILE", help="Arrays .npz.")],
    num_samples: Annotated[int, Option(min=1, metavar="S", help="Draws per datum.")] = 100,
    num_proposals: Annotated[
        int, Option(min=21, metavar="K", help="Draws of q(z|x) to resample from.")
    ] = 10_000,
    seed: SeedOption = 0,
    force: ForceOption = False,
) -> None:
    """Fill in missing pixels (NaN in FILE) with draws of p(x_missing | x_observed).

    The .npz holds draws (S, N, *event), mean (N, *event), mask (true where a
    pixel was observed), and ess and pareto_k (N,) of the importance weights. An
    ess near 1, or k̂ above its threshold (0.7 for 2,200 proposals or more), means
    that the encoder misses the posterior of that datum: do not trust its draws.

    \b
    Example:
      pyrovae impute runs/mnist holes.npy --out filled.npz
    """
    with errors_as_exit_codes():
        out_path(out, (".npz",))
        run = open_run(folder, with_data=False)
        x, mask = rows_of(file, run)
        if mask.all():
            raise ConfigError(
                f"{file} has no NaN, so nothing is missing.\nMark missing pixels as NaN (floats)."
            )
        counts = {"num_samples": num_samples, "num_proposals": num_proposals}
        with new_file(out, force=force) as path:
            found = pv.impute(run.vae, x, mask=mask, **counts, seed=seed)
            arrays = found._asdict()
            del arrays["data"]  # the file itself
            _write_npz(path, **arrays)
        typer.echo(_in_words(found, num_proposals, out))


def _in_words(found: Any, num_proposals: int, out: Path) -> str:
    from pyrovae.core.pareto import pareto_k_threshold

    ess, threshold = found.ess, pareto_k_threshold(num_proposals)
    num_bad = int((found.pareto_k > threshold).sum())
    return (
        f"{len(found.draws)} draws of {len(ess)} data: {out}\n"
        f"effective sample size of {num_proposals} weights: median {ess.median():.0f}, "
        f"smallest {ess.min():.1f} (row {int(ess.argmin())})\n"
        f"k̂ > {threshold:.2f}, unreliable: {num_bad} of {len(ess)} data"
    )
