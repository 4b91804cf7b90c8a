"""The card of a run: summary.json, read with suspicion, and the hashes in it.

A card tells what was trained (spec, settings, command), on what (SHA-256 of each part of the
data, as tensors), with what (versions, seed), what came out (numbers with their errors) and
which file holds it (SHA-256 of model.safetensors). It is no signature: it finds mix-ups and
damage, not fraud.
"""

from pathlib import Path
from typing import Any

from pyrovae.errors import (
    CheckpointError,
    ConfigError,
    CorruptCheckpointError,
    VersionMismatchError,
)
from pyrovae.runtime.files import parse_json, sha256

FORMAT = 1
CARD, MODEL = "summary.json", "model.safetensors"
KEYS = {
    **dict.fromkeys(("spec", "settings", "data_sha256", "versions", "training", "held_out"), dict),
    **{
        "history": list,
        "seed": int,
        "num_samples": int,
        "data": str,
        "model_sha256": str,
        "command": str,
    },
}
DRAWN = ("elbo", "reconstruction", "kl")  # each with a value and two errors


def read_card(folder: Path) -> dict[str, Any]:
    """The card in a run folder.

    Args:
        folder: as `pyrovae fit --out` made it.

    Raises:
        ConfigError: there is no such folder.
        CheckpointError: it is no run.
        CorruptCheckpointError: the card is damaged, or lacks a part.
        VersionMismatchError: it is in another format.

    Example:
        >>> read_card(Path("nowhere"))
        Traceback (most recent call last):
        pyrovae.errors.ConfigError: nowhere is no folder...
    """
    if not folder.is_dir():
        raise ConfigError(
            f"{folder} is no folder.\nA run is what pyrovae fit --out {folder} makes."
        )
    path = folder / CARD
    if not path.is_file():
        raise CheckpointError(
            f"{folder} has no {CARD}, so it is no finished run.\n"
            "Give the folder that pyrovae fit named when it ended."
        )
    card = parse_json(path.read_bytes(), path)
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        found = card.get("format", "none") if isinstance(card, dict) else "no object"
        raise VersionMismatchError(
            f"{path}: its format is {found}, but this version of pyrovae reads format {FORMAT}.\n"
            "Read it with the version that wrote it, or train again."
        )
    _check(card, path)
    return card


def _check(card: dict[str, Any], path: Path) -> None:
    for key, kind in KEYS.items():
        if not isinstance(card.get(key), kind):
            raise CorruptCheckpointError(
                f"{path}: {key!r} is {type(card.get(key)).__name__}, not {kind.__name__}: the card "
                "was altered or cut.\nUse another copy of the run.",
                path,
            )
    for part in ("training", "held_out"):
        for name in DRAWN:
            number = card[part].get(name)
            fields = ("value", "std_error", "draw_error")
            if not isinstance(number, dict) or not all(_is_number(number.get(f)) for f in fields):
                raise CorruptCheckpointError(
                    f"{path}: {part}.{name} is no number with its two errors: the card was altered "
                    "or cut.\nUse another copy of the run.",
                    path,
                )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def file_hash(path: Path) -> str:
    """SHA-256 of a file, in hex.

    Raises:
        CheckpointError: it cannot be read.
    """
    try:
        return sha256(path.read_bytes())
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read: {error.strerror or error}.\nA run without it cannot be used."
        ) from error


def data_hashes(train: Any, valid: Any, test: Any) -> dict[str, str | None]:
    """SHA-256 of each part of the data: of its dtype, its shape and its bytes, row by row.

    Example:
        >>> import torch
        >>> one = data_hashes(torch.zeros(2, 3), None, torch.zeros(3, 2))
        >>> one["train"] == one["test"], one["valid"]
        (False, None)
    """
    return {
        name: None if x is None else _tensor_hash(x)
        for name, x in {"train": train, "valid": valid, "test": test}.items()
    }


def _tensor_hash(x: Any) -> str:
    array = x.detach().cpu().contiguous().numpy()
    head = f"{array.dtype.str} {array.shape}\n".encode()
    return sha256(head + array.tobytes())
