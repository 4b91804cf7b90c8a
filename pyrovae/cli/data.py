"""The data of a run, by name or from a file, split and binarized according to the options."""

from pathlib import Path
from typing import Any, NamedTuple

import pyrovae as pv
from pyrovae.cli.settings import choice, name_of
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
    name: str,
    *,
    binarize: str | None = None,
    likelihood: str = "Bernoulli",
    key: str | None = None,
    seed: int = 0,
) -> Images:
    """Load the named data set or file, binarized.

    `binarize=None` chooses what the likelihood needs; only Bernoulli needs pixels in {0, 1}. The
    seed determines the split of a file and the fixed draw of "sampled". `key` names the array of an
    .npz, or two: training and held-out data.
    """
    data, split = _gray(name, likelihood, key, seed)
    pixels = binarize or default_pixels(data.name, likelihood)
    gray = (data.train, data.valid, data.test)
    parts = [None if x is None else _binary(x, pixels, likelihood) for x in gray]
    fixed = [_fixed(part, seed) for part in parts]
    return Images(parts[0], *fixed, data.test_labels, data.name, pixels, split)


def default_pixels(data: str, likelihood: str) -> str:
    """Return the binarization of this data set that the likelihood needs, or "none"."""
    is_done = data == "binarized_mnist" or name_of(likelihood) != "Bernoulli"
    return "none" if is_done else "threshold"


def _gray(name: str, likelihood: str, key: str | None, seed: int) -> tuple[Any, str]:
    """Return the raw data, and a description of the held-out split."""
    if name in DATA_SETS:
        if key is not None:
            raise ConfigError(f"--key {key!r} names an array of a file, but {name} is a data set.")
        return getattr(pv.datasets, name)(), "its test split"
    if not Path(name).suffix and not Path(name).is_file():
        raise ConfigError(
            f"--data {name!r} is neither a data set nor a file.\nData sets: {', '.join(DATA_SETS)}."
            "\nFiles: .npy, .npz, .csv, .parquet, .feather, IDX: images (N, H, W) or rows (N, D)."
        )
    keys = [None] if key is None else key.split(",")
    if len(keys) > 2:
        raise ConfigError(
            f"--key {key!r} names {len(keys)} arrays, but data are one, or two parts."
        )
    read = [read_rows(name, likelihood, one) for one in keys]
    for x, _ in read:
        if x.dim() < 2 or len(x) < 10:
            raise DataError(
                f"{name} holds an array of shape {tuple(x.shape)}, but each row must be one datum, "
                "(N, H, W), (N, 3, H, W) or (N, D), with N ≥ 10: a fifth is held out."
            )
    (train, *held_out), is_bytes = [x for x, _ in read], read[0][1]
    if held_out:
        (test,), split = held_out, f"the array {keys[1]!r}"
    else:
        order = _permutation(len(train), seed)
        test, train = train[order].tensor_split([len(train) // 5])
        split = "a fifth of the rows, at random"
    if test.shape[1:] != train.shape[1:]:
        raise DataError(
            f"{name}: the arrays {key!r} hold data of shapes {tuple(train.shape[1:])} and "
            f"{tuple(test.shape[1:])}, but both are data of one model.\nGive arrays of equal shape."
        )
    split += "; gray = byte / 255" if is_bytes else ""
    return pv.datasets.Data(train, test, name=Path(name).name.partition(".")[0]), split


def _permutation(num: int, seed: int) -> Any:
    import torch

    return torch.randperm(num, generator=torch.Generator().manual_seed(seed))


def read_rows(path: str, likelihood: str, key: str | None = None) -> tuple[Any, bool]:
    """Read data as floats, and whether they were bytes that were divided by 255.

    Bytes are levels of gray or color, unless the likelihood is one of counts or categories.
    """
    import torch

    x = pv.datasets.from_file(path, key)
    x = x[:, 0] if x.dim() == 4 and x.shape[1] == 1 else x  # one gray channel
    is_bytes = x.dtype == torch.uint8 and bool((x > 1).any()) and not _takes_counts(likelihood)
    return (x.float() / 255 if is_bytes else x.float()), is_bytes


def _takes_counts(likelihood: str) -> bool:
    """Return whether a likelihood is one of whole numbers beyond 0 and 1."""
    import torch

    from pyrovae.builder import part_named
    from pyrovae.densities.supports import support_of

    options = choice(likelihood)
    options = {} if isinstance(options, str) else {k: v for k, v in options.items() if k != "name"}
    try:
        head = part_named(pv.likelihoods, name_of(likelihood))(1, **options)
    except TypeError:  # `build` names the option
        return False
    support = support_of(head(torch.zeros(1, head.num_features)))
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    is_boolean = support is torch.distributions.constraints.boolean
    is_unit = is_boolean or getattr(support, "upper_bound", None) == 1
    return bool(support.is_discrete) and not is_unit


def rows_of(path: str, run: Any) -> tuple[Any, Any]:
    """Read images, binarized like a run's data, and the mask: true where observed (not NaN)."""
    x, _ = read_rows(path, run.card["settings"]["likelihood"])
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
    if name_of(likelihood) != "Bernoulli" or ((x == 0) | (x == 1)).all():
        return x
    raise DataError(
        "--binarize none needs pixels that are 0 or 1, but these have other values "
        f"(range {x.min():g} to {x.max():g}).\nWrite --binarize threshold or sampled."
    )
