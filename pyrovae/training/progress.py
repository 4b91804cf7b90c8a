"""The progress bar of `fit`."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pyrovae.history import Epoch


@contextmanager
def progress_bar(epochs: int, progress: bool | None) -> Iterator[Callable[[Epoch], None]]:
    """Yield a function that shows an epoch's record on stderr, or does nothing."""
    # pythonw and services have no stderr, and others have closed it
    is_open = not getattr(sys.stderr, "closed", True)
    if progress is False or not is_open or (progress is None and not sys.stderr.isatty()):
        yield lambda record: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (MofNCompleteColumn(), BarColumn(bar_width=8), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=epochs)
        yield lambda record: bar.update(task, completed=record.epoch, description=_one_line(record))


def _one_line(record: Epoch) -> str:
    line = f"ELBO {record.elbo:.2f} = -({record.reconstruction:.2f} + KL {record.kl:.2f})"
    if record.validation_elbo is not None:
        line += f", held out {record.validation_elbo:.2f}"
    return line + " nats/datum"
