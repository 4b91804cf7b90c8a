"""Loggers: the records of a run as files for other tools, alongside its `History`.

    pv.fit(vae, x, callbacks=[pv.loggers.CSV("run.csv")])

A logger is a callback of `fit`, called as logger(program, record) after each epoch. It opens and
closes its file for each record, so that a failing run leaves nothing open. With a `run_dir`,
`fit` writes history.csv itself.
"""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pyrovae.checks import as_path
from pyrovae.errors import CheckpointError, ConfigError


class CSV:
    """CSV logger: a header with the fields of `Epoch`, then a row per epoch, in nats per datum.

    Args:
        path: the file; an existing one is replaced when the first epoch ends.

    Raises:
        ConfigError: path is not a valid file name.
        CheckpointError: the file cannot be written.

    Example:
        >>> import tempfile
        >>> import pyrovae as pv, torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     vae = pv.build((2,), latent_dim=1, seed=0)
        ...     logger = CSV(Path(folder, "run.csv"))
        ...     _ = pv.fit(vae, torch.ones(3, 2), epochs=2, callbacks=[logger])
        ...     len(logger.path.read_text().splitlines())
        3
    """

    def __init__(self, path: str | Path):
        self.path = as_path(path)
        self.is_begun = False

    def __call__(self, program: Any, record: Any) -> None:
        if not self.is_begun:
            self.begin(record._fields)
        self._write("a", [record])

    def begin(self, fields: Sequence[str], records: Iterable[Any] = ()) -> None:
        """Write a new file with the header and the given records."""
        self._write("w", [fields, *records])
        self.is_begun = True

    def _write(self, mode: str, rows: Iterable[Any]) -> None:
        try:
            with open(self.path, mode, newline="", encoding="utf-8") as file:
                csv.writer(file).writerows(rows)
        except OSError as error:
            raise CheckpointError(
                f"{self.path} cannot be written: {error}.\nPass CSV a path in an existing folder."
            ) from error


class TensorBoard:
    """TensorBoard logger: training/elbo, validation/elbo and so on by epoch, in nats per datum.

    Args:
        folder: the folder for the event files.

    Raises:
        ConfigError: TensorBoard is not installed, or folder is not a valid name.

    Example:
        >>> TensorBoard("runs/first").folder
        PosixPath('runs/first')
    """

    def __init__(self, folder: str | Path):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise ConfigError(
                "loggers.TensorBoard needs the package tensorboard, which is not installed.\n"
                "Install it: pip install 'pyrovae[loggers]', or use loggers.CSV."
            ) from None
        self.folder, self.make_writer = as_path(folder), SummaryWriter

    def __call__(self, program: Any, record: Any) -> None:
        with self.make_writer(str(self.folder)) as writer:
            for name, value in record._asdict().items():
                if name != "epoch" and value is not None:
                    part, _, term = name.rpartition("validation_")
                    tag = f"validation/{term}" if part or name != term else f"training/{name}"
                    writer.add_scalar(tag, value, record.epoch)
