"""The mixture of discretized logistics: images in gray or in color."""

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae import densities
from pyrovae.checks import whole_number
from pyrovae.densities.logistic_mixture import ColoredLogistics
from pyrovae.heads import EventShape, as_event_shape, positive, split_features
from pyrovae.images import channel_dim


class DiscretizedLogisticMixture(nn.Module):
    """Mixture of M discretized logistics per pixel, with coupled channels if x is in color.

    P(x|z) = Π_pixels Σ_m π_m Π_c P(x_c | μ_mc + Σ_{b<c} κ_mbc (x_b − ½), s_mc)

    with the levels and bins of `DiscretizedLogistic`: a color image (3, H, W) or (H, W, 3) is
    scaled to [0, 1]. In color, red shifts the centers of green, and both those of blue, so one
    pixel's channels need not be independent given z. For any other shape each number is a pixel of
    its own, and a `mask` can hide it; cells of a color image cannot be masked one by one.

    The features are log π, μ, the raw s and artanh κ for each pixel; the M centers start evenly
    spaced in [0, 1].

    Args:
        event_shape: the shape of one datum.
        num_levels: K ≥ 2; 256 for bytes / 255.
        num_components: M.

    Attributes:
        num_features: 3 M per pixel in gray, 10 M in color.
        feature_shape: (num_features / pixels, *pixels), the order of the features.

    Raises:
        ConfigError: a size is not a whole number, or the features have the wrong width.

    References:
        PixelCNN++: Improving the PixelCNN with Discretized Logistic Mixture Likelihood,
        Salimans et al., 2017, https://arxiv.org/abs/1701.05517

    Example:
        >>> head = DiscretizedLogisticMixture((3, 4, 4), num_components=5)
        >>> p_x = head(torch.zeros(7, head.num_features))
        >>> p_x.batch_shape, p_x.event_shape, head.feature_shape
        (torch.Size([7]), torch.Size([3, 4, 4]), torch.Size([50, 4, 4]))
    """

    def __init__(self, event_shape: EventShape, num_levels: int = 256, num_components: int = 10):
        super().__init__()
        self.event_shape = as_event_shape(event_shape)
        self.num_levels = whole_number(num_levels, "num_levels", 2)
        self.num_components = whole_number(num_components, "num_components", 1)
        dim = channel_dim(self.event_shape)
        channels = 1 if dim is None else self.event_shape[dim]
        self.is_color = channels in (3, 4)
        self.channel_dim = dim
        pixels, per_pixel = self.event_shape, 3
        if self.is_color:
            pixels = self.event_shape[:-1] if dim == -1 else self.event_shape[1:]
            per_pixel = 1 + 2 * channels + channels * (channels - 1) // 2
        self.feature_shape = torch.Size((per_pixel * self.num_components, *pixels))
        self.num_features = self.feature_shape.numel()
        centers = (torch.arange(self.num_components) + 0.5) / self.num_components
        self.register_buffer("centers", centers, persistent=False)

    def forward(self, features: Tensor) -> dist.Distribution:
        pixels = self.feature_shape[1:]
        split = split_features(features, pixels, self.feature_shape[0])
        features = torch.stack(split, -1)  # (*S, B, *pixels, parameters · M)
        parameters = features.unflatten(-1, (-1, self.num_components))  # (…, parameters, M)
        return self._in_color(parameters) if self.is_color else self._in_gray(parameters)

    def _in_gray(self, parameters: Tensor) -> dist.Distribution:
        logits, loc, raw_scale = parameters.unbind(-2)
        components = densities.DiscretizedLogistic(
            loc + self.centers, positive(raw_scale), self.num_levels
        )
        mixture = dist.MixtureSameFamily(dist.Categorical(logits=logits), components)
        return mixture.to_event(len(self.event_shape))

    def _in_color(self, parameters: Tensor) -> dist.Distribution:
        channels = self.event_shape[self.channel_dim]
        num_pairs = channels * (channels - 1) // 2
        logits, loc, raw_scale, coupling = parameters.split([1, channels, channels, num_pairs], -2)
        return ColoredLogistics(
            logits.squeeze(-2),
            loc + self.centers,
            positive(raw_scale),
            coupling.tanh(),
            num_levels=self.num_levels,
            channel_dim=self.channel_dim,
        )

    def extra_repr(self) -> str:
        return (
            f"event_shape={tuple(self.event_shape)}, num_levels={self.num_levels}, "
            f"num_components={self.num_components}"
        )
