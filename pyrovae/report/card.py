"""The card of a run, summary.json, read as untrusted input, and the hashes in it.

A card records what was trained (spec, settings, command), on which data (SHA-256 of each part,
as tensors), with which versions and seed, the results (numbers with their errors) and the file
that holds the model (SHA-256 of model.safetensors). It is not a signature: it detects mix-ups
and damage, not fraud.
"""

from pathlib import Path
from typing import Any

from pyrovae.errors import (
    CheckpointError,
    ConfigError,
    CorruptCheckpointError,
    VersionMismatchError,
)
from pyrovae.report import TERMS
from pyrovae.runtime.files import parse_json, sha256

FORMAT = 1
CARD, MODEL = "summary.json", "model.safetensors"
KEYS = {
    **dict.fromkeys(("spec", "settings", "data_sha256", "versions", "training", "held_out"), dict),
    **dict.fromkeys(("seed", "num_samples"), int),
    **dict.fromkeys(("data", "model_sha256", "command"), str),
    "history": list,
}


def read_card(folder: Path) -> dict[str, Any]:
    """Read the card in a run folder; a ConfigError or CheckpointError says what is wrong."""
    if not folder.is_dir():
        raise ConfigError(
            f"{folder} is not a folder.\nCreate a run with pyrovae fit --out {folder}."
        )
    path = folder / CARD
    if not path.is_file():
        raise CheckpointError(
            f"{folder} has no {CARD}, so it is not a finished run.\n{_how_to_finish(folder)}"
        )
    card = parse_json(path.read_bytes(), path)
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        found = card.get("format", "missing") if isinstance(card, dict) else "not an object"
        raise VersionMismatchError(
            f"{path}: its format is {found}, but this version of pyrovae reads format {FORMAT}.\n"
            "Read it with the version that wrote it, or train again."
        )
    _check(card, path)
    return card


def _how_to_finish(folder: Path) -> str:
    if not any(folder.glob("step-*")):
        return "Give the folder that pyrovae fit printed at its end."
    return (
        f"It was interrupted: continue by pyrovae fit --resume {folder}, or look at it as it is by "
        f"pyrovae fit --resume {folder} --epochs 1, which trains no further than it was."
    )


def _check(card: dict[str, Any], path: Path) -> None:
    for key, kind in KEYS.items():
        if not isinstance(card.get(key), kind):
            raise _altered(path, f"{key!r} is {type(card.get(key)).__name__}, not {kind.__name__}")
    for part in ("training", "held_out"):
        for name in TERMS:
            number = card[part].get(name)
            fields = ("value", "std_error", "draw_error")
            if not isinstance(number, dict) or not all(_is_number(number.get(f)) for f in fields):
                raise _altered(path, f"{part}.{name} is not a number with two errors")


def _altered(path: Path, how: str) -> CorruptCheckpointError:
    return CorruptCheckpointError(
        f"{path}: {how}: the card was altered or truncated.\nUse another copy of the run.", path
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file, in hex, or raise a CheckpointError."""
    try:
        return sha256(path.read_bytes())
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read: {error.strerror or error}.\nThe run cannot be used without it."
        ) from error


def data_hashes(train: Any, valid: Any, test: Any) -> dict[str, str | None]:
    """Return the SHA-256 of each part of the data: of its dtype, shape and bytes, row by row."""
    parts = {"train": train, "valid": valid, "test": test}
    return {name: None if x is None else _tensor_hash(x) for name, x in parts.items()}


def _tensor_hash(x: Any) -> str:
    array = x.detach().cpu().contiguous().numpy()
    head = f"{array.dtype.str} {array.shape}\n".encode()
    return sha256(head + array.tobytes())
