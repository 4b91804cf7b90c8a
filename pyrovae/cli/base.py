"""Shared by all commands: the app, its exit codes, and files that are never overwritten.

    0 success    1 a check failed, or training diverged    2 invalid request    130 Ctrl-C

torch, Pyro and matplotlib are imported when a command starts, so `--help` answers at once.
"""

import json
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from pyrovae.errors import CheckpointError, ConfigError, DataError, DivergenceError, WorkerLostError


class App(typer.Typer):
    """The command-line app, with the environment and streams set up before torch."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # spinning threads made small networks 10 times slower on busy cores
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(errors="replace")  # not every pipe or terminal can write "‖"
        return super().__call__(*args, **kwargs)


app = App(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def main() -> None:
    """Train variational autoencoders (VAEs) and inspect them.

    A VAE describes a datum x by a few hidden numbers z: its encoder turns x into
    a density q(z|x) over codes, its decoder turns a code into a density p(x|z).
    Both are trained together, so that codes reconstruct their data and look like
    draws from the prior p(z); new data then come from z ~ p(z), x ~ p(x|z).

    \b
    ELBO = E_q\\[log p(x|z)] − KL(q(z|x) ‖ p(z)) ≤ log p(x)
           −reconstruction   regularizer         evidence

    in nats per datum; higher is better. Start with: [bold]pyrovae fit[/bold]
    """


@contextmanager
def errors_as_exit_codes() -> Iterator[None]:
    """Turn errors into a message on stderr and an exit code: 2 invalid, 1 diverged, 130 Ctrl-C."""
    try:
        yield
    except (
        ConfigError,
        DataError,
        CheckpointError,
        DivergenceError,
        WorkerLostError,
        OSError,
    ) as error:
        is_of_a_file = isinstance(error, OSError) and error.filename
        text = f"{error.filename}: {error.strerror}." if is_of_a_file else error
        typer.echo(f"Error: {text}", err=True)
        raise typer.Exit(1 if isinstance(error, DivergenceError | WorkerLostError) else 2) from None
    except KeyboardInterrupt as interrupt:
        typer.echo(" ".join(["Interrupted.", *map(str, interrupt.args)]), err=True)
        raise typer.Exit(130) from None


def file_name(text: str) -> str:
    """Parse the name of a file or folder, or raise a short usage error."""
    from pyrovae.checks import as_path

    try:
        as_path(text)
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from None
    return text


def path_of(text: str) -> Path:
    """Parse a `file_name` as a path."""
    return Path(file_name(text))


@contextmanager
def new_file(path: Path, *, force: bool) -> Iterator[Path]:
    """Yield a temporary path in the same folder, moved to `path` if the block succeeds."""
    if path.is_dir():
        raise ConfigError(f"{path} is a folder, but --out names a file.")
    if path.exists() and not force:
        raise ConfigError(f"{path} already exists.\nGive another --out, or add --force.")
    if not path.parent.is_dir():
        raise ConfigError(f"{path.parent} is not a folder.\nCreate it, or give another --out.")
    temporary = path.with_name(f".{os.getpid()}.tmp{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def out_path(path: Path, suffixes: tuple[str, ...]) -> Path:
    """Return the path if its suffix is one of these, or raise a ConfigError."""
    if path.suffix.lower() not in suffixes:
        raise ConfigError(
            f"--out {str(path)!r} does not end in {' or '.join(suffixes)}: the ending determines "
            "the file format."
        )
    return path


def say_json(value: Any) -> None:
    """Print one JSON object; NaN and infinities, which JSON lacks, become null."""
    typer.echo(json.dumps(_finite(value), indent=2))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
