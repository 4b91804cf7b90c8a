"""Names of files: what a caller wrote, as a path that a file system and a log can take."""

import os
from pathlib import Path
from typing import Any

from pyrovae.errors import ConfigError


def as_path(path: Any) -> Path:
    """The path, when it can be the name of a file.

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
            f"path = {shortened(text)}, but a path must have no control characters (a newline, "
            "a NUL), which shells and logs cannot show.\nGive a printable name."
        )
    longest = max(len(os.fsencode(part)) for part in Path(text).parts or ("",))
    if longest > 250 or len(os.fsencode(text)) > 4000:
        raise ConfigError(
            f"path = {shortened(text)} has {len(text):,} characters, but no file system takes it."
            "\nGive a shorter name: at most 250 bytes a part."
        )
    return Path(text)


def shortened(text: Any, limit: int = 60) -> str:
    """repr of a text that may be long.

    Example:
        >>> shortened("a" * 100, 5)
        "'aaaaa…'"
    """
    text = str(text)
    return repr(text if len(text) <= limit else text[:limit] + "…")
