"""A report on any program, from Python."""

import os
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from pyrovae._version import __version__
from pyrovae.checks import seed_number
from pyrovae.contract import validated
from pyrovae.errors import ConfigError, DataError
from pyrovae.history import History
from pyrovae.report.figures import pictures
from pyrovae.report.findings import examine
from pyrovae.report.levels import Verdict
from pyrovae.report.page import of_findings, render
from pyrovae.report.trials import Training
from pyrovae.report.verdicts import verdicts


def write_report(
    program: nn.Module,
    x: Any,
    path: str | Path,
    *,
    y: Any = None,
    mask: Any = None,
    train: Any = None,
    history: History | None = None,
    labels: Any = None,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
    num_samples: int = 1000,
    seed: int | None = 0,
    overwrite: bool = False,
) -> tuple[Verdict, ...]:
    """Write one HTML page about a trained program: what it is, and whether to trust it.

    The page needs no network. It uses at most 1000 random rows each of the held-out and of the
    training data, and says of a section that does not apply to the program why it is missing.

    Args:
        program: a `VAE` or another program, trained.
        x: held-out data, (N, *event), in any container that `fit` takes.
        path: the file to write, .html.
        y: (N, …), covariates; mask: of x's shape, true where x is observed.
        train: training data, x, (x, y) or (x, y, mask); without them, unfinished training and
            overfitting are not judged.
        history: as returned by `fit`, for the curves.
        labels: (N,), of x, which color the codes.
        batch_size, learning_rate: of training; a copy is trained further with them, by Adam.
        num_samples: K ≥ 21, draws per datum for log p(x).
        seed: random seed; None uses a fresh one, which the page records.
        overwrite: whether a file at this path may be replaced.

    Returns:
        The verdicts, the most serious first.

    Raises:
        DataError: the data do not fit the program, or there is not one label per datum.
        ConfigError: the path is not a new .html file in an existing folder, or a setting is
            invalid; nothing is written then.

    Example:
        >>> import tempfile, torch
        >>> import pyrovae as pv
        >>> vae = pv.build((2,), latent_dim=1, seed=0)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     found = write_report(vae, torch.eye(2), f"{folder}/page.html", num_samples=50)
        >>> found[0].name, found[0].status
        ('undertrained', 'unknown')
    """
    path, seed = _checked(Path(path), overwrite=overwrite), seed_number(seed)
    if labels is not None:
        labels = _per_datum(labels, validated(program, x, y, mask).count())
    training = Training(1.0, batch_size, learning_rate)
    options = {"training": training, "num_samples": num_samples, "seed": seed}
    found = examine(program, train, test=(x, y, mask), **options)
    judged = verdicts(found)
    labels = None if labels is None else labels[found.rows.numpy(force=True)]
    drawn = pictures(program, found, history=history, labels=labels, seed=seed)
    names = ("pyrovae", "torch", "pyro-ppl")
    versions = ", ".join(f"{n} {__version__ if n == 'pyrovae' else version(n)}" for n in names)
    about = of_findings(program, found, history, facts={"seed": str(seed), "versions": versions})
    footer = (
        f"pyrovae {__version__}, {datetime.now():%Y-%m-%d %H:%M}; diagnostics with seed {seed}."
    )
    how = {"found": found, "judged": judged, "pictures": drawn, "footer": footer}
    temporary = path.with_name(f".{os.getpid()}.tmp.html")
    try:
        temporary.write_text(render(about, program, **how), encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return judged


def _per_datum(labels: Any, num_data: int) -> np.ndarray:
    """Return labels as an array; raise DataError unless there is one for each datum."""
    labels = np.asarray(labels.cpu() if isinstance(labels, Tensor) else labels)
    if labels.shape != (num_data,):
        raise DataError(
            f"labels has shape {labels.shape}, but x has {num_data} rows: each datum of x has one "
            "label.\nFor one-hot rows write labels.argmax(-1)."
        )
    return labels


def _checked(path: Path, *, overwrite: bool) -> Path:
    """Return the path, or raise ConfigError unless a page can be written there."""
    if path.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"path = {str(path)!r}, but the page is HTML: let it end in .html.")
    if not path.parent.is_dir():
        raise ConfigError(f"{path.parent} is not a folder.\nCreate it first.")
    if path.exists() and not overwrite:
        raise ConfigError(f"{path} already exists.\nGive another path, or write overwrite=True.")
    return path
