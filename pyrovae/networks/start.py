"""Initialization of a decoder at the mean of the data.

    E[x_j | features = b] = mean of x_j over the data

with b the bias of the decoder's last layer: training can then begin with the structure around
the mean instead of the mean itself. The map features ↦ mean is inverted by bisection on the
likelihood's own `.mean`, so likelihoods need not support it.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from pyrovae.checks import as_mask, as_tensor, check_event_shape, check_finite
from pyrovae.errors import ConfigError

MOST = 2.0**40  # of a parameter, as far as the bisection goes
MARGIN = 1e-3  # as in the code of Burda et al. 2016, which clips pixel means to [0.001, 0.999]


def features_of(head: nn.Module) -> torch.Size:
    """Return the shape of a head's features: (count, *event_shape).

    It is the head's `feature_shape` if it declares one, and (F,) if F is not a multiple of the
    event's size. It is the `out_features` of a decoder.

    Args:
        head: a likelihood with `num_features` and `event_shape`.

    Example:
        >>> from pyrovae.likelihoods import Bernoulli
        >>> features_of(Bernoulli((28, 28)))
        torch.Size([1, 28, 28])
    """
    if hasattr(head, "feature_shape"):
        return head.feature_shape
    count, rest = divmod(head.num_features, head.event_shape.numel())
    return torch.Size((head.num_features,) if rest else (count, *head.event_shape))


def start_at_mean(decoder: nn.Sequential, x: Tensor, *, mask: Tensor | None = None) -> nn.Module:
    """Set the last bias so that the likelihood's mean at z-independent features is that of x.

    The mean must increase with one of the likelihood's parameters (logits, location, log-rate).
    A mean at the edge of the support would need an infinite bias: it is moved inside by 0.1 %
    of the width of the support or, for a half-line, of the mean over all cells.

    Args:
        decoder: nn.Sequential(network, head); modified in place. The network ends in a layer
            with one bias per feature, as all of `pyrovae.networks` do.
        x: (N, *event), the training data.
        mask: of x's shape, true where x is observed; never observed cells get the overall mean.

    Returns:
        The decoder.

    Raises:
        ConfigError: the decoder has no such layer, or the mean does not increase with a
            parameter (`Categorical`): set the bias by hand.
        DataError: x does not fit the likelihood's event shape.

    Example:
        >>> from pyrovae import likelihoods, networks
        >>> head = likelihoods.Bernoulli(2)
        >>> decoder = nn.Sequential(networks.mlp(1, head.num_features), head)
        >>> x = torch.tensor([[0.0, 1.0], [0.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
        >>> start_at_mean(decoder, x)[0][-1].bias.sigmoid()
        tensor([0.0010, 0.7500], grad_fn=<SigmoidBackward0>)
    """
    head = _head_of(decoder)
    bias = _last_bias(decoder, head.num_features)
    x = as_tensor(x)
    check_event_shape(x, head.event_shape)
    mask = as_mask(mask, x)
    check_finite(x, mask)
    with torch.no_grad():
        if hasattr(head, "start_at"):
            hidden = x.double() if mask is None else torch.where(mask, x.double(), torch.nan)
            bias.copy_(head.start_at(hidden))
            return decoder
        target = _data_mean(x, mask).to(bias.device, bias.dtype)
        bias.copy_(_features_at(head, bias, _inside(target, head(bias).support)))
    return decoder


def _head_of(decoder: nn.Module) -> nn.Module:
    head = decoder[-1] if isinstance(decoder, nn.Sequential) and len(decoder) else None
    if not hasattr(head, "num_features") or not hasattr(head, "event_shape"):
        raise ConfigError(
            f"the decoder is a {type(decoder).__name__} that does not end in a likelihood head, "
            "whose mean is needed.\nWrite nn.Sequential(network, head)."
        )
    return head


def _last_bias(decoder: nn.Module, num_features: int) -> nn.Parameter:
    for module in reversed(list(decoder[:-1].modules())):
        bias = getattr(module, "bias", None)
        if isinstance(bias, nn.Parameter) and bias.shape == (num_features,):
            return bias
    raise ConfigError(
        f"no layer of the decoder has one bias for each of {num_features} features, so there is "
        "no bias to set.\nEnd the network in nn.Linear(…, head.num_features) or networks.Bias."
    )


def _data_mean(x: Tensor, mask: Tensor | None) -> Tensor:
    """Return the mean over observed data, (*event,), float64."""
    if mask is None:
        return x.double().mean(0)
    total, count = torch.where(mask, x, 0).double().sum(0), mask.sum(0)
    return torch.where(count > 0, total / count.clamp(min=1), total.sum() / count.sum())


def _inside(mean: Tensor, support: constraints.Constraint) -> Tensor:
    """Move the mean away from the edges of the support by MARGIN."""
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    is_boolean = support is constraints.boolean
    low = 0.0 if is_boolean else getattr(support, "lower_bound", None)
    high = 1.0 if is_boolean else getattr(support, "upper_bound", None)
    if low is None:
        return mean
    width = mean.mean() - low if high is None else high - low
    return mean.clamp(low + MARGIN * width, None if high is None else high - MARGIN * width)


def _features_at(head: nn.Module, start: Tensor, target: Tensor) -> Tensor:
    """Return features with mean `target`: `start` with one of the head's parameters changed."""
    target = target.flatten()
    size = len(target)
    for first in range(0, len(start) - len(start) % size, size):

        def features_at(value: Tensor, first: int = first) -> Tensor:
            return torch.cat([start[:first], value, start[first + size :]])

        def mean_at(value: Tensor, at: Callable = features_at) -> Tensor:
            return head(at(value)).mean.flatten()

        far = torch.full_like(target, MOST)
        if ((mean_at(far) < target) | (mean_at(-far) > target)).any():
            continue  # before the many steps of a bisection
        features = features_at(_bisect(mean_at, target))
        if torch.allclose(head(features).mean.flatten(), target, rtol=1e-3, atol=1e-4):
            return features
    raise ConfigError(
        f"{type(head).__name__}: none of its parameters moves its mean to the mean of the data, "
        "so no bias can start it there.\nSet the last layer's bias by hand, or leave it."
    )


def _bisect(function, target: Tensor) -> Tensor:
    """Solve function(t) = target elementwise for an increasing function."""
    reach = torch.ones_like(target)
    for _ in range(40):
        too_small = (function(reach) < target) | (function(-reach) > target)
        reach = torch.where(too_small, 2 * reach, reach)
    low, high = -reach, reach
    for _ in range(80):
        middle = (low + high) / 2
        is_low = function(middle) < target
        low, high = torch.where(is_low, middle, low), torch.where(is_low, high, middle)
    return (low + high) / 2
