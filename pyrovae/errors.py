"""The errors that pyrovae raises on purpose.

Each one subclasses the builtin that a caller would expect, so `except ValueError`
keeps working. A message has four parts: what was given, where it is, what is
required, and what to write instead. It is at most six lines long and never holds
a whole tensor.
"""

import re
from typing import Any


class DataError(ValueError):
    """The data cannot be what the model describes (shape, dtype, support, NaN)."""

    def __init__(self, *args: Any):
        super().__init__(*map(_without_shapes, args))


class ConfigError(ValueError):
    """An argument, or a combination of parts, cannot work whatever the data."""

    def __init__(self, *args: Any):
        super().__init__(*map(_without_shapes, args))


def _without_shapes(message: Any) -> Any:
    """The message without the table that Pyro's tracing appends as it raises an error again."""
    return re.split(r"\n *Trace Shapes:", message)[0] if isinstance(message, str) else message


class DivergenceError(FloatingPointError):
    """A loss or a gradient is not finite; the update that it belongs to was not made."""


class WorkerLostError(RuntimeError):
    """Another process of a run on several ended, or did not answer in time."""


class CheckpointError(RuntimeError):
    """A saved model or run cannot be used, or one could not be saved."""


class CorruptCheckpointError(CheckpointError):
    """A file is not what was written: truncated, altered, or holding what no model has.

    Attributes:
        path: the file.
        expected: what it should be (a SHA-256, a number of bytes), or None.
        got: what it is, likewise.
    """

    def __init__(self, message: str, path: object = None, expected: Any = None, got: Any = None):
        super().__init__(message)
        self.path, self.expected, self.got = path, expected, got


class UnsafeFormatError(CheckpointError):
    """A file that is no tensor file of pyrovae's, or names what pyrovae does not have."""


class VersionMismatchError(CheckpointError):
    """A file in a format of a later release."""


class StateMismatchError(CheckpointError):
    """What was saved does not fit the model, the data or the settings at hand."""


class RunLockedError(CheckpointError):
    """Another process, or another run of this one, is using the run folder.

    Attributes:
        pid: its process id, or None where it could not be read.
        host: the machine that it runs on.
        start: when it took the folder, ISO 8601.
    """

    def __init__(self, message: str, pid: int | None = None, host: str = "?", start: str = "?"):
        super().__init__(message)
        self.pid, self.host, self.start = pid, host, start
