"""The data of a run, by name or from a file, split and binarized according to the options."""

from pathlib import Path
from typing import Any, NamedTuple

import pyrovae as pv
from pyrovae.errors import ConfigError, DataError

DATA_SETS = ("digits", "mnist", "fashion_mnist", "binarized_mnist", "omniglot", "frey_faces")

PIXELS = {
    "threshold": "thresholded: 1 where gray > 0.5",
    "sampled": "sampled: x ~ Bernoulli(gray), redrawn each epoch; one fixed draw is scored",
    "none": "unchanged",
}


class Images(NamedTuple):
    """The source of training data, and fixed tensors (N, *event) to score."""

    source: Any
    train: Any
    valid: Any
    test: Any
    test_labels: Any
    name: str
    pixels: str
    split: str


def load(
    name: str, *, binarize: str | None = None, likelihood: str = "Bernoulli", seed: int = 0
) -> Images:
    """Load the named data set or file, binarized.

    `binarize=None` chooses what the likelihood needs; only Bernoulli needs pixels in {0, 1}. The
    seed determines the split of a file and the fixed draw of "sampled".
    """
    data, split = _gray(name, seed)
    pixels = binarize or default_pixels(data.name, likelihood)
    gray = (data.train, data.valid, data.test)
    parts = [None if x is None else _binary(x, pixels, likelihood) for x in gray]
    fixed = [_fixed(part, seed) for part in parts]
    return Images(parts[0], *fixed, data.test_labels, data.name, pixels, split)


def default_pixels(data: str, likelihood: str) -> str:
    """Return the binarization of this data set that the likelihood needs, or "none"."""
    is_done = data == "binarized_mnist" or likelihood != "Bernoulli"
    return "none" if is_done else "threshold"


def _gray(name: str, seed: int) -> tuple[Any, str]:
    """Return the raw data, and a description of the held-out split."""
    if name in DATA_SETS:
        return getattr(pv.datasets, name)(), "its test split"
    if not Path(name).suffix and not Path(name).is_file():
        raise ConfigError(
            f"--data {name!r} is neither a data set nor a file.\nData sets: {', '.join(DATA_SETS)}."
            "\nFiles: .npy, .npz, .csv, .parquet, .feather, IDX: images (N, H, W) or rows (N, D)."
        )
    import torch

    x, is_bytes = gray_images(name)
    if x.dim() < 2 or len(x) < 10:
        raise DataError(
            f"{name} holds an array of shape {tuple(x.shape)}, but each row must be one datum, "
            "(N, H, W), (N, 3, H, W) or (N, D), with N ≥ 10: a fifth is held out."
        )
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    test, train = x[order].tensor_split([len(x) // 5])
    split = f"a fifth of the rows, at random{'; gray = byte / 255' if is_bytes else ''}"
    return pv.datasets.Data(train, test, name=Path(name).name.partition(".")[0]), split


def gray_images(path: str) -> tuple[Any, bool]:
    """Read the images in a file as floats (bytes / 255), and whether they were bytes."""
    import torch

    x = pv.datasets.from_file(path)
    x = x[:, 0] if x.dim() == 4 and x.shape[1] == 1 else x  # one gray channel
    is_bytes = x.dtype == torch.uint8 and bool((x > 1).any())
    return (x.float() / 255 if is_bytes else x.float()), is_bytes


def rows_of(path: str, run: Any) -> tuple[Any, Any]:
    """Read images, binarized like a run's data, and the mask: true where observed (not NaN)."""
    x, _ = gray_images(path)
    shape = tuple(run.vae.spec["event_shape"])
    if tuple(x.shape[1:]) != shape or not len(x):
        raise DataError(
            f"{path} holds an array of shape {tuple(x.shape)}, but the model of {run.folder} takes "
            f"rows of shape {shape}: (N, {', '.join(map(str, shape))})."
        )
    binary = _binary(x.nan_to_num(0.0), run.pixels, run.card["settings"]["likelihood"])
    return _fixed(binary, run.card["seed"]), ~x.isnan()


def _fixed(x: Any, seed: int) -> Any:
    return x.draw(seed) if isinstance(x, pv.datasets.Sampled) else x


def _binary(x: Any, pixels: str, likelihood: str) -> Any:
    if pixels != "none":
        return pv.datasets.binarize(x, pixels)
    if likelihood != "Bernoulli" or ((x == 0) | (x == 1)).all():
        return x
    raise DataError(
        "--binarize none needs pixels that are 0 or 1, but these have other values "
        f"(range {x.min():g} to {x.max():g}).\nWrite --binarize threshold or sampled."
    )
