"""Parts that also see which cells are missing: q(z|x, s), s the mask.

A missing cell reaches an encoder as 0, like an observed 0. `SeesMask(part)` declares that a part
of x also takes the mask; `JoinMask` is the common way to use it and joins both along a new first
dimension of a datum, or as channels of an image, which then come first:

    forward(x, s) = part([s ⊙ x, s])        s = 1 where x is observed, else 0

Symbols: x (*S, B, *event), s of x's shape. No gradient passes through s.
"""

from typing import Any

import torch
from torch import Tensor, nn

from pyrovae.errors import ConfigError
from pyrovae.heads import as_event_shape
from pyrovae.images import channel_dim
from pyrovae.networks.covariates import Given


class SeesMask(nn.Module):
    """Part that also sees the mask of x: q(z|x, s), so that a missing 0 is not an observed 0.

    Programs call it with x, its missing cells filled with 0, and the mask, true where x is
    observed: `encoder(x, mask)`. Without a mask, all cells are observed. With covariates,
    Given(SeesMask(part)) is called as part(x, mask, y).

    Args:
        part: a module whose forward takes x and the mask; `JoinMask` makes one of a module of x.

    Attributes:
        sees_mask: true, for programs (`protocols.SeesMissing`).

    Raises:
        ConfigError: part is `Given`; the message shows the other order.

    References:
        Partial VAE: EDDI, Ma et al., 2019, https://arxiv.org/abs/1809.11142, where a set network
        sees which cells are observed, and concatenates the mask as a baseline.

    Example:
        >>> from pyrovae import guides, networks
        >>> q = guides.DiagonalNormal(2)
        >>> network = networks.mlp((2, 3), q.num_features)
        >>> encoder = SeesMask(JoinMask(nn.Sequential(network, q), 3))
        >>> x, mask = torch.zeros(1, 3), torch.tensor([[True, True, False]])
        >>> bool((encoder(x).mean == encoder(x, mask).mean).any())
        False
    """

    def __init__(self, part: nn.Module):
        super().__init__()
        if isinstance(part, Given):
            raise ConfigError(
                "SeesMask(Given(part)): the part would be called with y in the place of the mask.\n"
                "Write Given(SeesMask(part)), which is called as part(x, mask, y)."
            )
        self.part = part
        self.sees_mask = True

    def forward(self, x: Tensor, mask: Tensor | None = None, *others: Any):
        mask = torch.ones_like(x, dtype=torch.bool) if mask is None else mask
        return self.part(x, mask, *others)


class JoinMask(nn.Module):
    """Part of x and its mask joined, (x, s) ↦ part([s ⊙ x, s]).

    Args:
        part: a module of the joined input, (*S, B, *joined_shape(event_shape)), such as
            Sequential(network, head).
        event_shape: the shape of a datum.

    Example:
        >>> JoinMask(nn.Identity(), 2)(torch.ones(1, 2), torch.tensor([[True, False]]))
        tensor([[[1., 0.],
                 [1., 0.]]])
    """

    def __init__(self, part: nn.Module, event_shape: Any):
        super().__init__()
        self.part = part
        self.event_shape = as_event_shape(event_shape)

    def forward(self, x: Tensor, mask: Tensor, *others: Any):
        pair = torch.where(mask, x, 0), mask.to(x.dtype)
        channels = channel_dim(self.event_shape)
        if channels is None:
            return self.part(torch.stack(pair, -len(self.event_shape) - 1), *others)
        return self.part(torch.cat([each.movedim(channels, -3) for each in pair], -3), *others)

    def extra_repr(self) -> str:
        return f"event_shape={tuple(self.event_shape)}"


def joined_shape(event_shape: Any) -> torch.Size:
    """Return the shape of a datum and its mask, joined by `JoinMask`.

    Example:
        >>> [tuple(joined_shape(shape)) for shape in (5, (8, 8), (3, 8, 8), (8, 8, 3))]
        [(2, 5), (2, 8, 8), (6, 8, 8), (6, 8, 8)]
    """
    shape = as_event_shape(event_shape)
    channels = channel_dim(shape)
    if channels is None:
        return torch.Size([2, *shape])
    height, width = shape[:2] if channels == -1 else shape[1:]
    return torch.Size([2 * shape[channels], height, width])
