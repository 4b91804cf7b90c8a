"""Mixture of discretized logistics over the colors of an image, with coupled channels."""

import math
from itertools import combinations

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.nn.functional import softplus

from pyrovae.densities.discretized_logistic import DiscretizedLogistic, _GrayLevels

NUM_POINTS = 32  # of the lattice rule of the mean


class ColoredLogistics(TorchDistribution):
    """Mixture of K-level logistics per pixel, whose channels depend on the ones before.

    P(x) = Π_pixels Σ_m π_m Π_c P(x_c | μ_mc + Σ_{b<c} κ_mbc (x_b − ½), s_mc), with the bins of
    `DiscretizedLogistic`.

    Args:
        logits: of π, (*batch, H, W, M).
        loc: μ, (*batch, H, W, C, M), in the units of x.
        scale: s, of the shape of loc.
        coupling: κ, (*batch, H, W, C (C − 1) / 2, M), in the order of the pairs (b, c): (0, 1),
            (0, 2), …, (1, 2), ….
        num_levels: K.
        channel_dim: of x, −3 for (C, H, W) or −1 for (H, W, C).

    References:
        PixelCNN++, Salimans et al., 2017, https://arxiv.org/abs/1701.05517

    Example:
        >>> flat = torch.zeros(2, 2, 3, 5)  # 2×2 pixels, 5 components
        >>> p = ColoredLogistics(flat[:, :, 0], flat, flat + 0.1, flat, num_levels=3)
        >>> p.event_shape, p.log_prob(torch.zeros(3, 2, 2)).isfinite()
        (torch.Size([3, 2, 2]), tensor(True))
    """

    arg_constraints = {}  # noqa: RUF012 (torch reads a dict)

    def __init__(
        self,
        logits: Tensor,
        loc: Tensor,
        scale: Tensor,
        coupling: Tensor,
        *,
        num_levels: int,
        channel_dim: int = -3,
    ):
        self.logits, self.loc, self.scale, self.coupling = logits, loc, scale, coupling
        self.num_levels, self.channel_dim = num_levels, channel_dim
        height, width, channels = loc.shape[-4:-1]
        event = (height, width, channels) if channel_dim == -1 else (channels, height, width)
        self.pairs = list(combinations(range(channels), 2))
        super().__init__(loc.shape[:-4], torch.Size(event), validate_args=False)

    @constraints.dependent_property(is_discrete=True, event_dim=3)
    def support(self) -> constraints.Constraint:
        return constraints.independent(_GrayLevels(self.num_levels), 3)

    def expand(self, batch_shape, _instance=None):
        def expanded(parameter: Tensor, num_dims: int) -> Tensor:
            return parameter.expand(*batch_shape, *parameter.shape[-num_dims:])

        arrays = (self.loc, self.scale, self.coupling)
        return type(self)(
            expanded(self.logits, 3),
            *(expanded(array, 4) for array in arrays),
            num_levels=self.num_levels,
            channel_dim=self.channel_dim,
        )

    def log_prob(self, value: Tensor) -> Tensor:
        x = value.to(self.loc.dtype).movedim(self.channel_dim, -1)
        channels = [x[..., c, None] for c in range(x.shape[-1])]
        log_p = self.logits.log_softmax(-1)
        for c, channel in enumerate(channels):
            loc = self._loc(c, channels[:c])
            scale = self.scale[..., c, :]
            log_p = log_p + DiscretizedLogistic(loc, scale, self.num_levels).log_prob(channel)
        return log_p.logsumexp(-1).sum((-2, -1))

    def _loc(self, c: int, before: list[Tensor]) -> Tensor:
        """Return the center of channel c given the channels before it, (*sample, H, W, M)."""
        loc = self.loc[..., c, :]
        for b, channel in enumerate(before):
            loc = loc + self.coupling[..., self.pairs.index((b, c)), :] * (channel - 0.5)
        return loc

    def sample(self, sample_shape=()) -> Tensor:
        with torch.no_grad():
            shape = self._extended_shape(sample_shape)[: len(sample_shape) + len(self.batch_shape)]
            logits = self.logits.expand(*shape, *self.logits.shape[-3:])
            component = torch.distributions.Categorical(logits=logits).sample()[..., None]
            return self._path(component, lambda loc: torch.rand_like(loc))

    def _path(self, component: Tensor, uniform) -> Tensor:
        """Return an image of given components (*s, H, W, 1), from uniform numbers per channel."""
        channels: list[Tensor] = []
        for c in range(self.loc.shape[-2]):
            shape = (*component.shape[:-1], self.loc.shape[-1])
            loc = self._loc(c, channels).expand(shape).gather(-1, component)
            scale = self.scale[..., c, :].expand(shape).gather(-1, component)
            channels.append(self._level(loc + scale * torch.logit(uniform(loc))))
        return torch.cat(channels, -1).movedim(-1, self.channel_dim)

    def _level(self, value: Tensor) -> Tensor:
        last = self.num_levels - 1
        return (value.clamp(0, 1) * last).round() / last

    @property
    def mean(self) -> Tensor:
        """E[x] by a lattice rule over the channels before, and each bin's mean as an integral.

        The error is below half a level plus some 1/32 of the scale.
        """
        weights = self.logits.softmax(-1)
        means: list[Tensor] = []
        before: list[Tensor] = []  # (points, *batch, H, W, M)
        for c in range(self.loc.shape[-2]):
            loc, scale = self._loc(c, before), self.scale[..., c, :]
            clipped = scale * (softplus(loc / scale) - softplus((loc - 1) / scale))  # E[clip(x)]
            means.append(((clipped.mean(0) if before else clipped) * weights).sum(-1))
            before.append(self._level(loc + scale * self._lattice(c).logit()))
        return torch.stack(means, -1).movedim(-1, self.channel_dim)

    def _lattice(self, c: int) -> Tensor:
        """Return coordinate c of points that fill the unit cube evenly, (points, 1, …, 1)."""
        at = torch.arange(NUM_POINTS, device=self.loc.device, dtype=self.loc.dtype) + 0.5
        step = (1 / NUM_POINTS, math.sqrt(2), math.sqrt(3), math.sqrt(5))[c]
        return (at * step % 1).reshape(-1, *[1] * (self.loc.dim() - 1))
