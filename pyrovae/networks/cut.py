"""Networks with fewer inputs or outputs: the linear layers around a latent z, cut to some of it.

Layers are found by running the network: those whose input is z, and those whose output is the
input of the head. Modules are changed in place; pass copies.
"""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn


def layers_with(
    network: nn.Module, run: Callable[[], Any], *, before: Tensor | None = None, after: Any = None
) -> list[nn.Linear]:
    """Return the linear layers whose input is `before`, or whose output is the input of `after`.

    Args:
        network: a module; only its plain `nn.Linear` layers are found.
        run: runs it once.
        before: (…, F), compared by value.
        after: a module of the network that takes features.

    Example:
        >>> network = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 3), nn.Identity())
        >>> z = torch.randn(4, 2)
        >>> layers_with(network, lambda: network(z), before=z) == [network[0]]
        True
        >>> layers_with(network, lambda: network(z), after=network[3]) == [network[2]]
        True
    """
    found: list[tuple[nn.Linear, Tensor, Tensor]] = []
    features = []
    with ExitStack() as stack:
        for module in network.modules():
            if type(module) is nn.Linear:
                hook = module.register_forward_hook(
                    lambda m, args, out: found.append((m, args[0].detach(), out.detach()))
                )
                stack.callback(hook.remove)
        if after is not None:
            hook = after.register_forward_pre_hook(lambda m, args: features.append(args[0]))
            stack.callback(hook.remove)
        run()
    if after is None:
        layers = [m for m, value, _ in found if _is_same(value, before)]
    else:
        layers = [m for m, _, value in found if any(_is_same(value, f) for f in features)]
    return list(dict.fromkeys(layers))


def _is_same(a: Tensor, b: Tensor) -> bool:
    width = b.shape[-1]
    return a.shape[-1] == width and torch.equal(a.reshape(-1, width), b.reshape(-1, width))


def cut_inputs(layer: nn.Linear, kept: Tensor, values: Tensor) -> None:
    """Leave the inputs `kept` of a layer; the others are constant: W_K z_K + (b + W_C c).

    Args:
        layer: changed in place.
        kept: (K,), indices.
        values: (F,), c, for all inputs.

    Example:
        >>> layer, z = nn.Linear(3, 2), torch.tensor([1.0, 2.0, 3.0])
        >>> full = layer(z)
        >>> cut_inputs(layer, torch.tensor([0, 2]), z)
        >>> torch.allclose(layer(z[[0, 2]]), full)
        True
    """
    weight = layer.weight.detach()
    constant = values.index_fill(0, kept, 0.0) @ weight.T
    if layer.bias is not None or constant.any():
        bias = constant if layer.bias is None else layer.bias.detach() + constant
        layer.bias = _like(layer.bias if layer.bias is not None else layer.weight, bias)
    layer.weight = _like(layer.weight, weight[:, kept])
    layer.in_features = len(kept)


def cut_outputs(layer: nn.Linear, kept: Tensor) -> None:
    """Leave the outputs `kept` of a layer.

    Example:
        >>> layer = nn.Linear(2, 3)
        >>> cut_outputs(layer, torch.tensor([2]))
        >>> layer
        Linear(in_features=2, out_features=1, bias=True)
    """
    layer.weight = _like(layer.weight, layer.weight.detach()[kept])
    if layer.bias is not None:
        layer.bias = _like(layer.bias, layer.bias.detach()[kept])
    layer.out_features = len(kept)


def cut_tensors(module: nn.Module, size: int, kept: Tensor) -> None:
    """Leave the rows `kept` of each parameter and buffer of a module that has `size` of them.

    Example:
        >>> layer = nn.LayerNorm(3)
        >>> cut_tensors(layer, 3, torch.tensor([0, 1]))
        >>> layer.weight.shape
        torch.Size([2])
    """
    for part in module.modules():
        for name, value in [*part._parameters.items(), *part._buffers.items()]:
            if value is None or not value.dim() or len(value) != size:
                continue
            rows = value.detach()[kept].clone()
            is_parameter = isinstance(value, nn.Parameter)
            setattr(part, name, _like(value, rows) if is_parameter else rows)


def _like(parameter: nn.Parameter, value: Tensor) -> nn.Parameter:
    return nn.Parameter(value.clone().contiguous(), requires_grad=parameter.requires_grad)
