"""Opening a run folder: check its card, load its model, load its data and compare them."""

from pathlib import Path
from typing import Any, NamedTuple

from pyrovae.cli.data import DATA_SETS, Images, default_pixels, load
from pyrovae.errors import DataError


class Run(NamedTuple):
    """An opened run."""

    folder: Path
    card: dict[str, Any]  # the contents of summary.json
    vae: Any
    pixels: str  # how its gray images were binarized: "threshold", "sampled" or "none"
    data: Images | None  # None if not requested


def open_run(folder: Path, *, with_data: bool = True, data: str | None = None) -> Run:
    """Open the run in a folder, and its data, which must be those that it was trained on.

    `data` is their file, if it has moved.
    """
    import pyrovae as pv
    from pyrovae.report.card import MODEL, data_hashes, read_card

    card = read_card(folder)
    vae = pv.load(folder / MODEL)
    settings = card["settings"]
    pixels = settings["binarize"] or default_pixels(card["data"], settings["likelihood"])
    if not with_data:
        return Run(folder, card, vae, pixels, None)
    name = data or _place(card)
    how = {k: settings.get(k) for k in ("binarize", "likelihood", "key")}
    images = load(name, **how, seed=settings["seed"])
    found = data_hashes(images.train, images.valid, images.test)
    wrong = [part for part, value in card["data_sha256"].items() if found.get(part) != value]
    if wrong:
        now, then = (str(hashes[wrong[0]])[:12] for hashes in (found, card["data_sha256"]))
        raise DataError(
            f"{name}: its {wrong[0]} part has sha256 {now}…, but the card of {folder} has "
            f"{then}…: other data, or another split.\n"
            "The run's numbers do not apply to these. Give the right file with --data."
        )
    return Run(folder, card, vae, pixels, images)


def _place(card: dict[str, Any]) -> str:
    """Return the name of the data, or the relative or absolute path of their file."""
    name, absolute = card["settings"]["data"], card.get("data_file")
    if name in DATA_SETS or Path(name).is_file() or not absolute:
        return name
    if not Path(absolute).is_file():
        raise DataError(
            f"{absolute}, which the run was trained on, no longer exists.\n"
            "Give its new path with --data FILE."
        )
    return absolute
