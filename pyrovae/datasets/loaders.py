"""The named data sets, each a function that returns a `Data` record."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyrovae.datasets import files


class Data(NamedTuple):
    """Split data set: x of shape (N, *event) and int64 labels (N,) for each part, or None.

    Example:
        >>> train, test, *_ = digits()
    """

    train: Tensor
    test: Tensor
    valid: Tensor | None = None
    train_labels: Tensor | None = None
    test_labels: Tensor | None = None
    valid_labels: Tensor | None = None
    name: str = ""


def digits(seed: int = 0) -> Data:
    """Load 1797 handwritten digits, gray (8, 8), labels 0..9: the default, without a download.

    Split into 1437 train and 360 test, stratified by label and shuffled by `seed`. Pixels are
    those of scikit-learn's `load_digits`, 0..16, / 16. Source: Alpaydin & Kaynak 1998 (UCI).

    Example:
        >>> data = digits()
        >>> data.train.shape, data.train.max()
        (torch.Size([1437, 8, 8]), tensor(1.))
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    x, y = bunch.images.astype(np.float32) / 16, bunch.target.astype(np.int64)
    parts = train_test_split(x, y, test_size=360, random_state=seed, stratify=y)
    train, test, train_labels, test_labels = map(torch.from_numpy, parts)
    return Data(train, test, None, train_labels, test_labels, name="digits")


def mnist(*, mirrors: Sequence[str] = files.MNIST_MIRRORS) -> Data:
    """Load MNIST: 60000 train and 10000 test digits, gray (28, 28), labels 0..9.

    Source: LeCun, Bottou, Bengio & Haffner 1998. The content is checked by SHA-256.

    Args:
        mirrors: Base URLs, tried in turn for each file that is not found locally.

    Raises:
        DataError: A file is missing and could not be downloaded, or its content is wrong.

    Example:
        >>> train, test, *_ = mnist()  # doctest: +SKIP
    """
    return _mnist_like("mnist", mirrors)


def fashion_mnist(*, mirrors: Sequence[str] = files.FASHION_MNIST_MIRRORS) -> Data:
    """Load Fashion-MNIST: 60000 train and 10000 test garments, gray (28, 28), labels 0..9.

    Source: Xiao, Rasul & Vollgraf 2017. Images are checked by MD5; labels, whose content has no
    published hash, by their format and class frequencies. `mirrors` and errors as for `mnist`.

    Example:
        >>> train, test, *_ = fashion_mnist()  # doctest: +SKIP
    """
    return _mnist_like("fashion_mnist", mirrors)


def binarized_mnist() -> Data:
    """Load the fixed binarized MNIST: 50000 train, 10000 valid, 10000 test, (28, 28) in {0, 1}.

    The test part is sorted by class: its first 1000 images are all zeros and ones, so draw a
    subset at random. Source: Salakhutdinov & Murray 2008, files by Larochelle. No labels.

    Example:
        >>> subset = binarized_mnist().test[torch.randperm(10000)[:1000]]  # doctest: +SKIP
    """
    bits = files.read_npz("binarized_mnist/binarized_mnist.npz")
    train, test, valid = (
        torch.from_numpy(np.unpackbits(bits[part], axis=1)).float().view(-1, 28, 28)
        for part in ("train", "test", "valid")
    )
    return Data(train, test, valid, name="binarized_mnist")


def omniglot() -> Data:
    """Load Omniglot: 19280 train and 13180 test drawings, gray (28, 28), ink near 1.

    Labels are characters, 0..1622; the standard split is by alphabet, so the parts do not share
    characters. Source: Lake et al. 2015, area averages of the 105x105 originals. This is not the
    28x28 file of Burda et al. 2016: numbers published for that are similar, not comparable.

    Example:
        >>> train, test, *_ = omniglot()  # doctest: +SKIP
    """
    about = files.read_npz("omniglot/omniglot-labels.npz")
    is_test = torch.from_numpy(about["is_evaluation"]).bool()
    labels = torch.from_numpy(about["character"].astype(np.int64))
    x = files.read_idx("omniglot/omniglot28-images-idx3-ubyte").float() / 255
    return Data(x[~is_test], x[is_test], None, labels[~is_test], labels[is_test], name="omniglot")


def frey_faces(seed: int = 0) -> Data:
    """Load 1965 frames of Brendan Frey's face, gray (28, 20): 1565 train, 200 valid, 200 test.

    The file is in video order, where neighbors are near copies, so the split is shuffled by
    `seed`. Source: Roweis & Saul 2000; no license stated.

    Example:
        >>> train, test, valid, *_ = frey_faces()  # doctest: +SKIP
    """
    x = files.read_idx("frey_faces/frey-images-idx3-ubyte").float() / 255
    train, test, valid = x[_permutation(len(x), seed)].split((1565, 200, 200))
    return Data(train, test, valid, name="frey_faces")


def pbmc3k(seed: int = 0) -> Data:
    """Load counts of 2000 genes in 2638 blood cells, shuffled by `seed`: 2110 train, 528 test.

    Labels 0..8 are the cell types in alphabetical order: B, CD14+ Mono, CD8 T, DC, FCGR3A+ Mono,
    Memory CD4 T, NK, Naive CD4 T, Platelet. Source: 10x Genomics PBMC 3k, Seurat tutorial.

    Example:
        >>> train, test, *_ = pbmc3k()  # doctest: +SKIP
    """
    csr = files.read_npz("pbmc3k/pbmc3k_hvg2000.npz")
    x = np.zeros(csr["shape"], dtype=np.float32)
    x[np.repeat(np.arange(len(x)), np.diff(csr["indptr"])), csr["indices"]] = csr["data"]
    _, labels = np.unique(csr["labels"], return_inverse=True)
    order = _permutation(len(x), seed)
    train, test = torch.from_numpy(x)[order].split((2110, 528))
    train_labels, test_labels = torch.from_numpy(labels)[order].split((2110, 528))
    return Data(train, test, None, train_labels, test_labels, name="pbmc3k")


def _permutation(n: int, seed: int) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))


def _mnist_like(name: str, mirrors: Sequence[str]) -> Data:
    names = [n for n in files.FILES if n.startswith(f"{name}/")]  # in the order of the next line
    x, labels, x_test, labels_test = (files.read_idx(n, mirrors) for n in names)
    train, test = x.float() / 255, x_test.float() / 255
    return Data(train, test, None, labels.long(), labels_test.long(), name=name)
