"""Checks of file names, for file systems and logs."""

import os
from pathlib import Path
from typing import Any

from pyrovae.errors import ConfigError


def as_path(path: Any) -> Path:
    """Return the path if it is a valid file name.

    Raises:
        ConfigError: it is empty or blank, has control characters, or is too long.

    Example:
        >>> as_path("runs/my model").name
        'my model'
    """
    try:
        text = os.fspath(path)
    except TypeError:
        text = b""
    if not isinstance(text, str) or not text.strip():
        raise ConfigError(f"path = {path!r}, but it must name a file: a non-empty str or Path.")
    if any(ord(c) < 32 or ord(c) == 127 for c in text):
        raise ConfigError(
            f"path = {shortened(text)}, but a path must not contain control characters (newline, "
            "NUL), which shells and logs cannot show.\nUse a printable name."
        )
    longest = max(len(os.fsencode(part)) for part in Path(text).parts or ("",))
    if longest > 250 or len(os.fsencode(text)) > 4000:
        raise ConfigError(
            f"path = {shortened(text)} has {len(text):,} characters, too many for a file system."
            "\nUse a shorter name: at most 250 bytes per part."
        )
    return Path(text)


def shortened(text: Any, limit: int = 60) -> str:
    """Return the repr of a text, truncated to `limit` characters.

    Example:
        >>> shortened("a" * 100, 5)
        "'aaaaa…'"
    """
    text = str(text)
    return repr(text if len(text) <= limit else text[:limit] + "…")
