"""A run folder, opened: its card checked, its model loaded, its data loaded again and compared."""

from pathlib import Path
from typing import Any, NamedTuple

from pyrovae.cli.data import DATA_SETS, Images, load
from pyrovae.errors import DataError


class Run(NamedTuple):
    """A run that can be used.

    Attributes:
        folder: where it lies.
        card: what summary.json says.
        vae: the model.
        pixels: how its gray images were binarized: "threshold", "sampled" or "none".
        data: its data; None where they were not asked for.
    """

    folder: Path
    card: dict[str, Any]
    vae: Any
    pixels: str
    data: Images | None


def open_run(folder: Path, *, with_data: bool = True, data: str | None = None) -> Run:
    """The run in a folder.

    Args:
        folder: as `pyrovae fit --out` made it.
        with_data: load its data too, which must be those that it was trained on.
        data: where the data are now, if their file has moved.

    Raises:
        ConfigError, CheckpointError: the folder is no run, or is damaged.
        DataError: the data are not there, or are not the same.
    """
    import pyrovae as pv
    from pyrovae.report.card import MODEL, data_hashes, read_card

    card = read_card(folder)
    vae = pv.load(folder / MODEL)
    settings = card["settings"]
    pixels = settings["binarize"] or _default_pixels(card)
    if not with_data:
        return Run(folder, card, vae, pixels, None)
    name = data or _place(card)
    how = {k: settings[k] for k in ("binarize", "likelihood")}
    images = load(name, **how, seed=settings["seed"])
    found = data_hashes(images.train, images.valid, images.test)
    wrong = [part for part, value in card["data_sha256"].items() if found.get(part) != value]
    if wrong:
        now, then = (str(hashes[wrong[0]])[:12] for hashes in (found, card["data_sha256"]))
        raise DataError(
            f"{name}: its {wrong[0]} part has sha256 {now}…, but {folder} has {then}… on its "
            "card: other data, or another split.\n"
            "Its numbers say nothing about these. Name the right file with --data."
        )
    return Run(folder, card, vae, pixels, images)


def _default_pixels(card: dict[str, Any]) -> str:
    is_done = card["data"] == "binarized_mnist" or card["settings"]["likelihood"] != "Bernoulli"
    return "none" if is_done else "threshold"


def _place(card: dict[str, Any]) -> str:
    """The data's name; for a file where it was, relative to here or absolute."""
    name, absolute = card["settings"]["data"], card.get("data_file")
    if name in DATA_SETS or Path(name).is_file() or not absolute:
        return name
    if not Path(absolute).is_file():
        raise DataError(
            f"{absolute}, which the run was trained on, is not there any more.\n"
            "Say where it is with --data FILE."
        )
    return absolute
