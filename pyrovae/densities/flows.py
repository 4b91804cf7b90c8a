"""Normalizing flows, z = f(u) with u ~ N(0, I), for priors and guides.

    log p(z) = log N(u; 0, I) − log |det ∂f/∂u|,    u = f⁻¹(z)

`FlowDistribution` is that density as a Pyro distribution. The bijections are zuko's;
`coupling`, `autoregressive` and `spline` construct the three common kinds, initialized
near the identity. Each is a function (D, size of the context) → zuko flow, as is any
class in `zuko.flows`: `priors.FlowPrior` and `guides.FlowGuide` take either.

Symbols: u, z (*S, B, D); context (B, C), what f is conditioned on. The caller chooses the
direction of f: a prior needs densities in one pass, a guide needs draws.
Not used: zuko's own distributions, which `pyro.infer.Predictive` cannot handle.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import AffineTransform, Distribution, Transform, constraints

from pyrovae.densities.drawn import RemembersDraw
from pyrovae.errors import ConfigError
from pyrovae.runtime.turns import TURN

__all__ = ["autoregressive", "coupling", "spline"]


Flow = Callable[[int, int], nn.Module]  # (D, size of the context) → zuko flow


class FlowDistribution(RemembersDraw, TorchDistribution):
    """Density of z = f(u), u ~ base: log p(z) = log base(u) − log |det ∂f/∂u|, in nats.

    A draw evaluates f once; the log-density of another point evaluates f⁻¹ once. The
    log-density of the latest draw is cached (`RemembersDraw`), so log q(z) at z ~ q needs no
    inverse: one of the two directions of an autoregressive flow takes D passes.

    Args:
        transform: f, a bijection of vectors with zuko's `call_and_ladj` and `inv`.
        base: the distribution of u: the same batch_shape, event_shape (D,), reparameterized.

    Example:
        >>> flow = autoregressive(2)
        >>> p = FlowDistribution(flow.transform(), flow.base())
        >>> z = p.expand([7]).rsample((3,))
        >>> z.shape, p.log_prob(z).shape
        (torch.Size([3, 7, 2]), torch.Size([3, 7]))
    """

    arg_constraints: dict = {}  # noqa: RUF012  (torch's name for it)
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, transform: Transform, base: Distribution, validate_args: Any = None):
        self.transform, self.base = transform, base
        super().__init__(base.batch_shape, base.event_shape, validate_args=validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> "FlowDistribution":
        new = self._get_checked_instance(FlowDistribution, _instance)
        new.transform, new.base = self.transform, self.base.expand(torch.Size(batch_shape))
        super(FlowDistribution, new).__init__(
            torch.Size(batch_shape), self.event_shape, validate_args=False
        )
        new._validate_args = self._validate_args
        return new

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        u = self.base.rsample(torch.Size(sample_shape))
        z, log_jacobian = self.transform.call_and_ladj(u)
        return self._remember(z, self.base.log_prob(u) - log_jacobian)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        if (known := self._remembered(value)) is not None:
            return known
        u, log_jacobian = self.transform.inv.call_and_ladj(value)
        return self.base.log_prob(u) + log_jacobian


def coupling(
    features: int, context: int = 0, *, num_transforms: int = 4, hidden: Sequence[int] = (64, 64)
) -> nn.Module:
    """Return an affine coupling flow: the halves of z scale and shift each other in turn.

    z_a = u_a,  z_b = u_b exp(s(u_a, c)) + t(u_a, c);  one pass in either direction. In one
    dimension it is an affine map.

    Args:
        features: D.
        context: C, the width of the context; 0 for none.
        num_transforms: the number of layers, with alternating halves.
        hidden: the hidden widths of each layer's network.

    Returns:
        A `zuko.lazy.Flow`.

    References:
        Density estimation using Real NVP, Dinh, Sohl-Dickstein & Bengio, 2017,
        https://arxiv.org/abs/1605.08803

    Example:
        >>> coupling(2, num_transforms=2).transform()(torch.zeros(7, 2)).shape
        torch.Size([7, 2])
    """
    flow = _zuko().flows.RealNVP
    return _near_identity(flow(features, context, num_transforms, **_network(hidden)))


def autoregressive(
    features: int, context: int = 0, *, num_transforms: int = 3, hidden: Sequence[int] = (64, 64)
) -> nn.Module:
    """Return an affine autoregressive flow: previous coordinates scale and shift the next.

    z_i = u_i exp(s_i(u_{<i}, c)) + t_i(u_{<i}, c);  one pass forward, D passes to invert.
    Used for densities it is MAF, used for draws IAF.

    Args:
        features: D.
        context: C, the width of the context; 0 for none.
        num_transforms: the number of layers, with alternating order of the coordinates.
        hidden: the hidden widths of each layer's masked network.

    Returns:
        A `zuko.lazy.Flow`.

    References:
        Improving Variational Inference with Inverse Autoregressive Flow, Kingma et al., 2016,
        https://arxiv.org/abs/1606.04934
        Masked Autoregressive Flow for Density Estimation, Papamakarios, Pavlakou & Murray,
        2017, https://arxiv.org/abs/1705.07057

    Example:
        >>> autoregressive(2).transform()(torch.zeros(7, 2)).shape
        torch.Size([7, 2])
    """
    flow = _zuko().flows.MAF
    return _near_identity(flow(features, context, num_transforms, **_network(hidden)))


def spline(
    features: int,
    context: int = 0,
    *,
    num_transforms: int = 3,
    num_bins: int = 8,
    hidden: Sequence[int] = (64, 64),
) -> nn.Module:
    """Return an autoregressive flow of monotone rational-quadratic splines.

    The splines warp [−5, 5] and are the identity outside, so it can represent several
    modes where affine flows cannot. One pass forward, D passes to invert.

    Args:
        features: D.
        context: C, the width of the context; 0 for none.
        num_transforms: the number of layers, with alternating order of the coordinates.
        num_bins: the number of bins of each spline.
        hidden: the hidden widths of each layer's masked network.

    Returns:
        A `zuko.lazy.Flow`.

    References:
        Neural Spline Flows, Durkan, Bekasov, Murray & Papamakarios, 2019,
        https://arxiv.org/abs/1906.04032

    Example:
        >>> spline(2, num_bins=4).transform()(torch.zeros(7, 2)).shape
        torch.Size([7, 2])
    """
    flow = _zuko().flows.NSF
    options = {"transforms": num_transforms, "bins": num_bins, **_network(hidden)}
    return _near_identity(flow(features, context, **options))


def flow_named(flow: str | Flow) -> Flow:
    """Return the flow constructor of this name; any other function is returned unchanged."""
    named = {"autoregressive": autoregressive, "coupling": coupling, "spline": spline}
    if callable(flow) or flow in named:
        return named.get(flow, flow) if isinstance(flow, str) else flow
    raise ConfigError(
        f"flow = {flow!r}, but it must be {', '.join(named)}, or a function (D, C) → zuko flow.\n"
        "Write flow='coupling', or functools.partial(flows.coupling, hidden=(32,))."
    )


def located(transform: Transform, loc: Tensor, scale: Tensor) -> Transform:
    """Return the transform u → loc + scale · f(u), for loc and scale (*B, D)."""
    affine = AffineTransform(loc, scale, event_dim=1)
    return _zuko().transforms.ComposedTransform(transform, affine)


def _zuko() -> Any:
    """Import zuko on first use, keeping torch's argument validation, which zuko disables."""
    with TURN:
        validates = Distribution._validate_args
        import zuko

        Distribution.set_default_validate_args(validates)
    return zuko


def _network(hidden: Sequence[int]) -> dict[str, Any]:
    return {"hidden_features": tuple(hidden), "activation": nn.SiLU}  # smooth, as is ∂ log p / ∂z


def _near_identity(flow: nn.Module) -> nn.Module:
    """Shrink the flow's last layers so that f ≈ identity while no gradient vanishes."""
    with torch.no_grad():
        for module in flow.modules():
            last = module.hyper[-1].parameters() if hasattr(module, "hyper") else ()
            for parameter in (*last, *getattr(module, "phi", ())):
                parameter.mul_(0.01)
    return flow
