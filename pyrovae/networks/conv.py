"""Residual convolutions for images of any height and width, (H, W) or (C, H, W).

The encoder halves the sizes once per hidden width, H → ⌈H/2⌉; the decoder goes through
the same sizes in reverse. Both consist of one block, where R changes the resolution:

    h = a(P R x + K₂ a(K₁ R x)),    K 3×3 kernels, P a 1×1 kernel, a the nonlinearity

In the encoder R is a stride of 2 in K₁ and P. In the decoder R repeats pixels, which,
unlike a transposed convolution, supports odd sizes and avoids checkerboard artifacts
(Odena, Dumoulin & Olah 2016, https://distill.pub/2016/deconv-checkerboard).

Images are channels-first, as in torch; (H, W) is an image of one channel, and (H, W, C) with C in
1, 3, 4 is channels-last (`checks.channel_dim`): it is transposed inside the networks.
"""

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from pyrovae.errors import ConfigError
from pyrovae.heads import as_event_shape
from pyrovae.images import channel_dim
from pyrovae.networks.flatten_batch import FlattenBatch


def conv_encoder(
    in_features: Sequence[int],
    out_features: int | Sequence[int],
    *,
    hidden: Sequence[int] = (32, 64, 64),
    activation: Callable[[], nn.Module] = nn.SiLU,
) -> nn.Module:
    """Return a strided residual convolutional network, (*S, B, *in_features) → (*S, B, F).

    Args:
        in_features: the shape of an image: (H, W), (C, H, W) or (H, W, C), of any size.
        out_features: F, or a shape with F elements.
        hidden: the channels of the blocks, from input to output; each block halves the sizes.
        activation: a constructor of the nonlinearity.

    Raises:
        ConfigError: in_features is not the shape of an image, hidden is empty, or a size is not
            a whole number ≥ 1.

    References:
        Deep Residual Learning for Image Recognition, He et al., 2016,
        https://arxiv.org/abs/1512.03385

    Example:
        >>> network = conv_encoder((3, 28, 20), 10, hidden=(8, 16))
        >>> network(torch.zeros(5, 7, 3, 28, 20)).shape
        torch.Size([5, 7, 10])
    """
    event_shape = as_event_shape(in_features, name="in_features")
    channels, *size = _as_image(_channels_first(event_shape), "in_features")
    widths = [channels, *as_event_shape(tuple(hidden), name="hidden")]
    height, width = _sizes(size, len(hidden))[-1]
    last = as_event_shape(out_features, name="out_features").numel()
    network = nn.Sequential(
        *([nn.Unflatten(1, (1, size[0]))] if len(event_shape) == 2 else []),
        *([MoveDim(-1, -3)] if channel_dim(event_shape) == -1 else []),
        *(_Block(a, b, activation, stride=2) for a, b in itertools.pairwise(widths)),
        nn.Flatten(),
        nn.Linear(widths[-1] * height * width, last),
    )
    return FlattenBatch(network, event_dims=len(event_shape))


def conv_decoder(
    in_features: int | Sequence[int],
    out_features: Sequence[int],
    *,
    hidden: Sequence[int] = (64, 64, 32),
    activation: Callable[[], nn.Module] = nn.SiLU,
) -> nn.Module:
    """Return an upsampling residual convolutional network, (*S, B, *in_features) → (*S, B, F).

    The flat features are row-major over out_features: with out_features = (count,
    *event_shape), which `features_of(head)` returns, they are in the order in which
    `heads.split_features` reads `count` parameters per pixel. The last layer adds a learned
    bias to each feature, which `start_at_mean` sets.

    Args:
        in_features: the size of z (or a shape, flattened).
        out_features: (…, H, W), with all dimensions before H as channels, or (count, H, W, C); F is
            its product.
        hidden: the channels of the blocks, from input to output; each block doubles the sizes.
        activation: a constructor of the nonlinearity.

    Raises:
        ConfigError: out_features is not the shape of an image, hidden is empty, or a size is
            not a whole number ≥ 1.

    Example:
        >>> from pyrovae.likelihoods import Bernoulli
        >>> head = Bernoulli((3, 28, 20))
        >>> decoder = nn.Sequential(conv_decoder(2, (1, 3, 28, 20), hidden=(16, 8)), head)
        >>> decoder(torch.zeros(5, 7, 2)).batch_shape
        torch.Size([5, 7])
    """
    inputs = as_event_shape(in_features, name="in_features")
    shape = as_event_shape(out_features, name="out_features")
    is_last = len(shape) == 4 and channel_dim(shape[1:]) == -1
    first = (shape[0], *_channels_first(shape[1:])) if is_last else shape
    channels, *size = _as_image(torch.Size(first), "out_features")
    widths = as_event_shape(tuple(hidden), name="hidden")
    sizes = _sizes(size, len(widths))[::-1]
    blocks = zip(itertools.pairwise(widths), sizes[1:], strict=False)
    network = nn.Sequential(
        *([nn.Flatten()] if len(inputs) > 1 else []),
        nn.Linear(inputs.numel(), widths[0] * math.prod(sizes[0])),
        nn.Unflatten(-1, (widths[0], *sizes[0])),
        activation(),
        *(_Block(a, b, activation, size=to) for (a, b), to in blocks),
        nn.Upsample(size=tuple(size)),
        # 5×5, so that after the repetition each pixel still sees 3×3 distinct neighbors
        nn.Conv2d(widths[-1], channels, 5, padding=2, bias=False),
        *([nn.Unflatten(1, first[:2]), MoveDim(-3, -1)] if is_last else []),
        nn.Flatten(),
        Bias(channels * math.prod(size)),
    )
    return FlattenBatch(network, event_dims=len(inputs))


class MoveDim(nn.Module):
    """Move a dimension, as torch.movedim.

    Example:
        >>> MoveDim(-1, -3)(torch.zeros(7, 28, 20, 3)).shape
        torch.Size([7, 3, 28, 20])
    """

    def __init__(self, source: int, destination: int):
        super().__init__()
        self.source, self.destination = source, destination

    def forward(self, x: Tensor) -> Tensor:
        return x.movedim(self.source, self.destination)

    def extra_repr(self) -> str:
        return f"{self.source}, {self.destination}"


class Bias(nn.Module):
    """Learned bias per feature, initially 0: (*S, B, F) → (*S, B, F).

    Args:
        num_features: F.

    Example:
        >>> Bias(3)(torch.ones(7, 3)).shape
        torch.Size([7, 3])
    """

    def __init__(self, num_features: int):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(num_features))

    def forward(self, features: Tensor) -> Tensor:
        return features + self.bias

    def extra_repr(self) -> str:
        return f"num_features={len(self.bias)}"


class _Block(nn.Module):
    """Residual block, h = a(P R x + K₂ a(K₁ R x)), R a stride or a repetition to `size`."""

    def __init__(
        self,
        before: int,
        after: int,
        activation: Callable[[], nn.Module],
        stride: int = 1,
        size: tuple[int, int] | None = None,
    ):
        super().__init__()
        self.grow = nn.Identity() if size is None else nn.Upsample(size=size)
        self.skip = nn.Conv2d(before, after, 1, stride=stride, bias=False)
        self.branch = nn.Sequential(
            nn.Conv2d(before, after, 3, stride=stride, padding=1),
            activation(),
            nn.Conv2d(after, after, 3, padding=1),
        )
        self.activation = activation()

    def forward(self, x: Tensor) -> Tensor:
        x = self.grow(x)
        return self.activation(self.skip(x) + self.branch(x))


def _channels_first(shape: torch.Size) -> torch.Size:
    return torch.Size((shape[-1], *shape[:-1])) if channel_dim(shape) == -1 else shape


def _as_image(shape: torch.Size, name: str) -> tuple[int, int, int]:
    """Return (channels, height, width) of a shape (…, H, W)."""
    if len(shape) < 2 or (name == "in_features" and len(shape) > 3):
        raise ConfigError(
            f"{name} = {tuple(shape)}, but a convolution runs over the neighbors of a pixel and "
            "needs images of shape (H, W), (C, H, W) or (H, W, C).\n"
            "Use networks.mlp, or reshape x."
        )
    return math.prod(shape[:-2]), shape[-2], shape[-1]


def _sizes(size: Sequence[int], halvings: int) -> list[tuple[int, int]]:
    """Return (height, width) before and after each halving, rounded up as by a stride of 2."""
    return [tuple(-(-n // 2**k) for n in size) for k in range(halvings + 1)]
