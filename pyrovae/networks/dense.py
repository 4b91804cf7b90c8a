"""Multi-layer perceptrons from three kinds of layers.

    h₀ = flatten(x),  hₗ₊₁ = layerₗ(hₗ),  features = W h_L + b

`stack` is that recursion for any layer; `mlp`, `gated_mlp` and `residual_mlp` use `Dense`,
`GatedDense` and `Residual`. A layer is a constructor (before, after) → Module, so custom
layers are one argument. Batch normalization is left out: it would make the density of one
datum depend on the others.
"""

import itertools
from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor, nn

from pyrovae.heads import as_event_shape

Activation = Callable[[], nn.Module]
Norm = Callable[[int], nn.Module]


class Dense(nn.Sequential):
    """Dense layer, h = a(norm(W x + b)): (…, before) → (…, after).

    Args:
        before: the width of x.
        after: the width of h.
        activation: a constructor of the nonlinearity a.
        norm: a constructor of a normalization of that width, such as `nn.LayerNorm`, or None.

    Example:
        >>> [type(m).__name__ for m in Dense(4, 3, activation=nn.ReLU, norm=nn.LayerNorm)]
        ['Linear', 'LayerNorm', 'ReLU']
    """

    def __init__(
        self, before: int, after: int, *, activation: Activation = nn.SiLU, norm: Norm | None = None
    ):
        normalized = [] if norm is None else [norm(after)]
        super().__init__(nn.Linear(before, after), *normalized, activation())


class GatedDense(nn.Module):
    """Gated layer, h = norm(W x + b) ⊙ sigmoid(V x + c): (…, before) → (…, after).

    The gate is the nonlinearity, so there is no activation to choose.

    Args:
        before: the width of x.
        after: the width of h.
        norm: a constructor of a normalization of that width, or None.

    References:
        VAE with a VampPrior, Tomczak & Welling, 2018, https://arxiv.org/abs/1705.07120

    Example:
        >>> import torch
        >>> GatedDense(4, 3)(torch.zeros(7, 4)).shape
        torch.Size([7, 3])
    """

    def __init__(self, before: int, after: int, *, norm: Norm | None = None):
        super().__init__()
        self.linear = nn.Linear(before, after)
        self.norm = nn.Identity() if norm is None else norm(after)
        self.gate = nn.Linear(before, after)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.linear(x)) * self.gate(x).sigmoid()


class Residual(nn.Module):
    """Residual layer, h = P x + W₂ a(W₁ norm(x) + b₁) + b₂: (…, before) → (…, after).

    P is the identity if the widths are equal, else a learned matrix.

    Args:
        before: the width of x.
        after: the width of h and of the hidden layer.
        activation: a constructor of the nonlinearity a.
        norm: a constructor of a normalization of width `before`, or None.

    References:
        Identity Mappings in Deep Residual Networks, He et al., 2016,
        https://arxiv.org/abs/1603.05027

    Example:
        >>> import torch
        >>> Residual(4, 4)(torch.zeros(7, 4)).shape
        torch.Size([7, 4])
    """

    def __init__(
        self, before: int, after: int, *, activation: Activation = nn.SiLU, norm: Norm | None = None
    ):
        super().__init__()
        self.skip = nn.Identity() if before == after else nn.Linear(before, after, bias=False)
        self.branch = nn.Sequential(
            nn.Identity() if norm is None else norm(before),
            nn.Linear(before, after),
            activation(),
            nn.Linear(after, after),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.skip(x) + self.branch(x)


def stack(
    in_features: int | Sequence[int],
    out_features: int | Sequence[int],
    *,
    hidden: Sequence[int],
    layer: Callable[[int, int], nn.Module],
) -> nn.Sequential:
    """Stack layers of one kind and a final affine map, (*S, B, *in_features) → (*S, B, F).

    h₀ = flatten(x), hₗ₊₁ = layerₗ(hₗ), features = W h_L + b.

    Args:
        in_features: the size of a vector input, or the shape of an array input such as
            (28, 28), whose trailing dimensions are flattened in row-major order.
        out_features: F, the input width of the head (`head.num_features`), or a shape with F
            elements; the output is flat either way.
        hidden: the widths of the layers, from input to output; () is an affine map.
        layer: the constructor of a layer, called as layer(before, after).

    Raises:
        ConfigError: a width is not a whole number ≥ 1.

    Example:
        >>> import torch
        >>> layer = partial(GatedDense, norm=nn.LayerNorm)
        >>> stack((8, 8), 4, hidden=(100, 50), layer=layer)(torch.zeros(7, 8, 8)).shape
        torch.Size([7, 4])
    """
    event_shape = as_event_shape(in_features, name="in_features")
    widths = [event_shape.numel()]
    widths += [as_event_shape(width, name="hidden width").numel() for width in hidden]
    flatten = [nn.Flatten(start_dim=-len(event_shape))] if len(event_shape) > 1 else []
    layers = [layer(before, after) for before, after in itertools.pairwise(widths)]
    last = as_event_shape(out_features, name="out_features").numel()
    return nn.Sequential(*flatten, *layers, nn.Linear(widths[-1], last))


def mlp(
    in_features: int | Sequence[int],
    out_features: int | Sequence[int],
    *,
    hidden: Sequence[int] = (200,),
    activation: Activation = nn.SiLU,
    norm: Norm | None = None,
) -> nn.Sequential:
    """Return a multi-layer perceptron of `Dense` layers, (*S, B, *in_features) → (*S, B, F).

    hₗ₊₁ = a(norm(Wₗ hₗ + bₗ)); the last layer has no activation.

    Args:
        in_features: a size or a shape, as for `stack`.
        out_features: F, or a shape with F elements.
        hidden: the hidden widths, from input to output; () is an affine map.
        activation: a constructor of the nonlinearity.
        norm: `nn.LayerNorm`, or None.

    Raises:
        ConfigError: a width is not a whole number ≥ 1.

    Example:
        >>> import torch
        >>> network = mlp((8, 8), 4, hidden=(100, 50))
        >>> network(torch.zeros(7, 8, 8)).shape
        torch.Size([7, 4])
    """
    layer = partial(Dense, activation=activation, norm=norm)
    return stack(in_features, out_features, hidden=hidden, layer=layer)


def gated_mlp(
    in_features: int | Sequence[int],
    out_features: int | Sequence[int],
    *,
    hidden: Sequence[int] = (200,),
    norm: Norm | None = None,
) -> nn.Sequential:
    """Return a perceptron of `GatedDense` layers, (*S, B, *in_features) → (*S, B, F).

    hₗ₊₁ = norm(Wₗ hₗ + bₗ) ⊙ sigmoid(Vₗ hₗ + cₗ). Arguments and errors as for `mlp`.

    References:
        VAE with a VampPrior, Tomczak & Welling, 2018, https://arxiv.org/abs/1705.07120

    Example:
        >>> import torch
        >>> gated_mlp((8, 8), 4, hidden=(300, 300))(torch.zeros(7, 8, 8)).shape
        torch.Size([7, 4])
    """
    return stack(in_features, out_features, hidden=hidden, layer=partial(GatedDense, norm=norm))


def residual_mlp(
    in_features: int | Sequence[int],
    out_features: int | Sequence[int],
    *,
    hidden: Sequence[int] = (200, 200),
    activation: Activation = nn.SiLU,
    norm: Norm | None = None,
) -> nn.Sequential:
    """Return a perceptron of `Residual` layers, (*S, B, *in_features) → (*S, B, F).

    hₗ₊₁ = P hₗ + W₂ a(W₁ norm(hₗ) + b₁) + b₂. Arguments and errors as for `mlp`.

    Example:
        >>> import torch
        >>> residual_mlp((8, 8), 4, norm=nn.LayerNorm)(torch.zeros(7, 8, 8)).shape
        torch.Size([7, 4])
    """
    layer = partial(Residual, activation=activation, norm=norm)
    return stack(in_features, out_features, hidden=hidden, layer=layer)
