"""The layout of images: gray (H, W), channels first (C, H, W) or last (H, W, C).

torch, and this package, put channels first; PIL, matplotlib and TensorFlow put them last. A shape
is read as channels last if its last size is 1, 3 or 4 and its first is not: nobody has pictures
of 28 channels and 28×3 pixels.
"""

from collections.abc import Sequence

COUNTS = (1, 3, 4)  # channels that can be drawn: gray, RGB, RGB and opacity


def channel_dim(event_shape: Sequence[int]) -> int | None:
    """Return the dimension of an image's channels: −3, −1, or None for (H, W).

    Example:
        >>> channel_dim((28, 28)), channel_dim((3, 28, 28)), channel_dim((28, 28, 3))
        (None, -3, -1)
    """
    if len(event_shape) != 3:
        return None
    return -1 if event_shape[-1] in COUNTS and event_shape[0] not in COUNTS else -3


def can_be_drawn(event_shape: Sequence[int]) -> bool:
    """Return whether a datum of this shape is a picture, in gray or in color.

    Example:
        >>> can_be_drawn((28, 28, 3)), can_be_drawn((5, 8, 8)), can_be_drawn((8,))
        (True, False, False)
    """
    dim = channel_dim(event_shape)
    return len(event_shape) == 2 or (dim is not None and event_shape[dim] in COUNTS)
