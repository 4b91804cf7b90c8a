"""Networks: the deterministic middle of an encoder or a decoder, and `Given`.

A network maps an event to a feature vector, (*S, B, *event) → (*S, B, F). It knows
nothing of densities: `nn.Sequential(network, head)` is the part. Any torch module
with that signature will do; the ones here save typing.
"""

import itertools
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from pyrovae.heads import as_event_shape

__all__ = ["Given", "mlp"]


def mlp(
    in_features: int | Sequence[int],
    out_features: int,
    *,
    hidden: Sequence[int] = (200,),
    activation: Callable[[], nn.Module] = nn.SiLU,
) -> nn.Sequential:
    """A multi-layer perceptron, (*S, B, *in_features) → (*S, B, out_features).

    h₀ = flatten(x), hₗ₊₁ = activation(Wₗ hₗ + bₗ), and a last layer without activation.

    Args:
        in_features: the size of a vector input, or the shape of an array input such as
            (28, 28), whose trailing dimensions are flattened in row-major order.
        out_features: the width that the head after it asks for (`head.num_features`).
        hidden: the widths between, from input to output; () is an affine map.
        activation: a constructor of the nonlinearity.

    Raises:
        ConfigError: a width is not a whole number ≥ 1.

    Example:
        >>> import torch
        >>> network = mlp((8, 8), 4, hidden=(100, 50))
        >>> network(torch.zeros(7, 8, 8)).shape
        torch.Size([7, 4])
    """
    event_shape = as_event_shape(in_features, name="in_features")
    widths = [event_shape.numel()]
    widths += [as_event_shape(width, name="hidden width").numel() for width in hidden]
    layers: list[nn.Module] = []
    if len(event_shape) > 1:
        layers.append(nn.Flatten(start_dim=-len(event_shape)))
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), activation()]
    last = as_event_shape(out_features, name="out_features").numel()
    return nn.Sequential(*layers, nn.Linear(widths[-1], last))


class Given(nn.Module):
    """A part that also sees the covariates y: p(x|z, y), q(z|x, y) or p(z|y).

    `VAE` calls a part that is wrapped with y as its last argument, `encoder(x, y)`,
    `decoder(z, y)`, `prior(y)`; a part that is not wrapped never sees y.

    Args:
        part: a module whose forward takes y last and returns a Distribution.

    Example:
        >>> import pyro.distributions as dist, torch
        >>> class ClassPrior(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.loc = nn.Parameter(torch.zeros(10, 2))
        ...     def forward(self, y):
        ...         return dist.Normal(self.loc[y], 1.0).to_event(1)
        >>> prior = Given(ClassPrior())
        >>> prior(torch.tensor([3, 7])).batch_shape
        torch.Size([2])
    """

    def __init__(self, part: nn.Module):
        super().__init__()
        self.part = part

    def forward(self, *args: Tensor):
        return self.part(*args)


def given(y: Tensor | None, part: nn.Module) -> tuple[Tensor, ...]:
    """The covariates as extra arguments for `part`: (y,) when it is `Given`, else ()."""
    return (y,) if isinstance(part, Given) else ()
