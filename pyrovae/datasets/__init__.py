"""Data sets as tensors, checked against the published files, and explicit binarization.

A loader returns a `Data` record. Gray images are float32 in [0, 1] of event shape (H, W), counts
are float32 whole numbers, labels int64. A gray image becomes binary only through `binarize`.

`digits` ships with scikit-learn. The others are looked up in the folder that the environment
variable PYROVAE_DATA names, then in the cache (PYROVAE_CACHE, else the user's cache folder);
MNIST and Fashion-MNIST are downloaded into the cache if they are in neither.

Left out: augmentation and batching (torch.utils.data), color images, text.
"""

from pyrovae.datasets.binarization import Sampled, binarize
from pyrovae.datasets.files import from_file
from pyrovae.datasets.loaders import (
    Data,
    binarized_mnist,
    digits,
    fashion_mnist,
    frey_faces,
    mnist,
    omniglot,
    pbmc3k,
)

__all__ = [
    "Data",
    "Sampled",
    "binarize",
    "binarized_mnist",
    "digits",
    "fashion_mnist",
    "frey_faces",
    "from_file",
    "mnist",
    "omniglot",
    "pbmc3k",
]
