"""The exceptions that pyrovae raises deliberately.

Each subclasses the builtin that a caller would expect, so `except ValueError` keeps
working. A message has four parts: what was expected, what arrived and where, why it
matters, and what to write instead. It has at most six lines and never contains a
whole tensor.
"""

import re
from typing import Any


class DataError(ValueError):
    """The data do not fit the model (shape, dtype, support, NaN)."""

    def __init__(self, *args: Any):
        super().__init__(*map(_without_shapes, args))


class ConfigError(ValueError):
    """An argument or a combination of parts is invalid regardless of the data."""

    def __init__(self, *args: Any):
        super().__init__(*map(_without_shapes, args))


def _without_shapes(message: Any) -> Any:
    """Remove the table that Pyro's tracing appends when it re-raises an error."""
    return re.split(r"\n *Trace Shapes:", message)[0] if isinstance(message, str) else message


class DivergenceError(FloatingPointError):
    """A loss or a gradient is not finite; the corresponding update was skipped."""


class WorkerLostError(RuntimeError):
    """Another process of a distributed run exited or timed out."""


class CheckpointError(RuntimeError):
    """A saved model or run cannot be used, or saving failed."""


class CorruptCheckpointError(CheckpointError):
    """A file is not what was written: truncated, altered, or with impossible contents.

    Attributes:
        path: the file.
        expected: the expected SHA-256 or number of bytes, or None.
        got: the actual one, or None.
    """

    def __init__(self, message: str, path: object = None, expected: Any = None, got: Any = None):
        super().__init__(message)
        self.path, self.expected, self.got = path, expected, got


class UnsafeFormatError(CheckpointError):
    """A file is not a pyrovae tensor file, or refers to names unknown to pyrovae."""


class VersionMismatchError(CheckpointError):
    """A file has the format of a later release."""


class StateMismatchError(CheckpointError):
    """A saved state does not match the current model, data or settings."""


class RunLockedError(CheckpointError):
    """Another process, or another run of this one, is using the run folder.

    Attributes:
        pid: its process id, or None if it could not be read.
        host: the machine that it runs on.
        start: when it locked the folder, ISO 8601.
    """

    def __init__(self, message: str, pid: int | None = None, host: str = "?", start: str = "?"):
        super().__init__(message)
        self.pid, self.host, self.start = pid, host, start
