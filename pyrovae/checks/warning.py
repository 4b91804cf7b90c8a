"""Warnings that point at the caller's own line."""

import sys
import warnings
from contextlib import suppress

LIBRARIES = {"pyrovae", "pyro", "torch", "contextlib"}


def warn_caller(message: str) -> None:
    """Warn at the innermost line outside the libraries, which is the one to change.

    Example:
        >>> with warnings.catch_warnings(record=True, action="always") as said:
        ...     warn_caller("look here")
        >>> said[0].message
        UserWarning('look here')
    """
    frame, level = sys._getframe(1), 2
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in LIBRARIES:
        frame, level = frame.f_back, level + 1
    with suppress(ValueError):  # of a stderr that was closed, which must not end a run
        warnings.warn(message, stacklevel=level)
