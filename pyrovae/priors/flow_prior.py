"""A normalizing flow as the prior."""

import pyro.distributions as dist
from torch import nn

from pyrovae.densities.flows import Flow, FlowDistribution, flow_named
from pyrovae.heads import as_latent_shape


class FlowPrior(nn.Module):
    """Normalizing-flow prior, p(z) = N(f(z); 0, I) |det ∂f/∂z|, f a learned bijection.

    f maps z to noise, so the density, which training needs, takes one pass; sampling inverts
    f: one pass for a coupling flow, D passes for an autoregressive one. With the flows of
    `pyrovae.densities.flows` it starts near N(0, I).

    Args:
        latent_dim: D.
        flow: "spline", "autoregressive" (MAF) or "coupling" (RealNVP) from `densities.flows`; or a
            function (D, 0) → zuko flow, such as any class in `zuko.flows`; `functools.partial`
            sets its options.

    Raises:
        ConfigError: latent_dim is not a whole number ≥ 1, or the name of the flow is unknown.

    References:
        Variational Lossy Autoencoder, Chen et al., 2017, https://arxiv.org/abs/1611.02731
        Neural Spline Flows, Durkan et al., 2019, https://arxiv.org/abs/1906.04032

    Example:
        >>> import torch
        >>> from functools import partial
        >>> from pyrovae.densities import flows
        >>> prior = FlowPrior(2, flow=partial(flows.coupling, hidden=(32,)))
        >>> prior().log_prob(torch.zeros(7, 2)).shape
        torch.Size([7])
    """

    def __init__(self, latent_dim: int, *, flow: str | Flow = "spline"):
        super().__init__()
        (self.latent_dim,) = as_latent_shape(latent_dim)
        self.flow = flow_named(flow)(latent_dim, 0)

    def forward(self) -> dist.Distribution:
        return FlowDistribution(self.flow.transform().inv, self.flow.base())

    def __repr__(self) -> str:  # one line; zuko's repr draws from the global generator
        return f"FlowPrior({type(self.flow).__name__}, latent_dim={self.latent_dim})"
