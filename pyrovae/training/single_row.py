"""Batches of one row, which batch normalization cannot train on.

    mean and variance over the rows of a batch,    variance = 0 for one row

The last batch of an epoch has N mod B rows. If a batch has a single row, `check_single_row` runs
the program on one in train mode before training starts, so that it does not fail after the weights
have moved. It knows no layer by name: whatever fails on one row is reported.
"""

import pyro
import torch
from torch import nn

from pyrovae.data import Batch, Source
from pyrovae.errors import ConfigError
from pyrovae.handlers import own_store
from pyrovae.runtime.buffers import BuffersBefore
from pyrovae.runtime.guards import Copies
from pyrovae.runtime.modes import module_mode
from pyrovae.runtime.random_stream import RandomStream


def check_single_row(program: nn.Module, data: Source, num_processes: int = 1) -> None:
    """Raise ConfigError if an epoch has a batch of one row that the program cannot train on.

    Args:
        program: the program; its buffers and attributes are restored.
        data: the training data, validated.
        num_processes: W, which divide each batch: of W to 2 W − 1 rows, one of them gets one.
    """
    if data.smallest_batch is None or data.smallest_batch >= 2 * num_processes:
        return
    try:
        _run(program, data.head())
    except Exception as error:
        raise single_row_error(program, error, data) from error


def _run(program: nn.Module, row: Batch) -> None:
    """Run guide and model in train mode, without side effects."""
    buffers, attributes = BuffersBefore(program), Copies(program)
    try:
        with (
            RandomStream(0),
            module_mode(program, training=True),
            torch.no_grad(),
            own_store(),
            pyro.validation_enabled(False),
            pyro.poutine.block(),
        ):
            program.guide(*row)
            program.model(*row)
    finally:
        attributes.restore()
        buffers.restore()


def single_row_error(
    program: nn.Module, error: Exception, data: Source | None = None, *, then: str = ""
) -> ConfigError:
    """Return the error about a batch of one row, with a batch size that avoids it.

    Args:
        program: the program.
        error: what it raised.
        data: the training data; None if their number is unknown.
        then: what the user should know of a run that has started.
    """
    reason = str(error).strip().partition("\n")[0][:200]
    found, advice = "a batch has one row", "Let the loader drop it: DataLoader(…, drop_last=True)"
    if data is not None:
        n, b = data.num_data, data.batch_size
        found = f"a batch of an epoch has one row (N = {n:,}, batch_size = {b:,})"
        fitting = (size for size in (*range(min(b, n), 1, -1), 2, 3) if n % size != 1)
        advice = f"Write batch_size={next(fitting)}" if n > 1 else "Train on more rows"
    return ConfigError(
        f"{found}, and in train mode this {type(program).__name__} fails on it: {reason}.\n"
        f"Batch normalization needs two rows, whose spread it divides by. {then}{advice}; or use "
        "nn.LayerNorm."
    )
