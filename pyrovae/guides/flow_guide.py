"""A conditional normalizing flow as the guide."""

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae.checks import whole_number
from pyrovae.densities.flows import Flow, FlowDistribution, flow_named, located
from pyrovae.heads import as_latent_shape, positive, split_features


class FlowGuide(nn.Module):
    """Flow guide, z = μ(x) + σ(x) ⊙ f(u; c(x)), u ~ N(0, I), f a bijection given the context c.

    log q(z|x) = log N(u; 0, I) − log |det ∂f/∂u| − Σ_i log σ_i. The features are (μ, s, r): σ =
    softplus(s) + 1e-5 and c = tanh(r), bounded so that features of ±1e6 stay finite. With
    the flows of `pyrovae.densities.flows` it starts near `DiagonalNormal`.

    Drawing z takes one pass of f, even if f is autoregressive (IAF), and yields log q(z|x);
    the log-density of any other point needs f⁻¹, which then takes D passes.

    Args:
        latent_dim: D.
        num_context: C, the number of context features that f sees.
        flow: "coupling", "autoregressive" or "spline" from `densities.flows`; or a function (D, C)
            → zuko flow, such as any class in `zuko.flows`; `functools.partial` sets its options.

    Attributes:
        num_features: 2 D + C.

    Raises:
        ConfigError: latent_dim or num_context is not a whole number ≥ 1, the name of the flow is
            unknown, or the features have the wrong width.

    References:
        Variational Inference with Normalizing Flows, Rezende & Mohamed, 2015,
        https://arxiv.org/abs/1505.05770
        Improving Variational Inference with Inverse Autoregressive Flow, Kingma et al., 2016,
        https://arxiv.org/abs/1606.04934

    Example:
        >>> from pyrovae.densities import flows
        >>> head = FlowGuide(3, num_context=8, flow=flows.autoregressive)
        >>> head.num_features
        14
        >>> q_z = head(torch.zeros(7, 14))
        >>> q_z.log_prob(q_z.rsample()).shape
        torch.Size([7])
    """

    def __init__(self, latent_dim: int, *, num_context: int = 16, flow: str | Flow = "coupling"):
        super().__init__()
        (self.latent_dim,) = as_latent_shape(latent_dim)
        self.num_features = 2 * latent_dim + whole_number(num_context, "num_context", 1)
        self.flow = flow_named(flow)(latent_dim, num_context)

    def forward(self, features: Tensor) -> dist.Distribution:
        (features,) = split_features(features, torch.Size([self.num_features]))
        cuts = (self.latent_dim, 2 * self.latent_dim)
        loc, raw_scale, raw_context = features.tensor_split(cuts, dim=-1)
        transform = self.flow.transform(torch.tanh(raw_context))
        base = self.flow.base().expand(features.shape[:-1])
        return FlowDistribution(located(transform, loc, positive(raw_scale)), base)

    def __repr__(self) -> str:  # one line; zuko's repr draws from the global generator
        num_context = self.num_features - 2 * self.latent_dim
        name = type(self.flow).__name__
        return f"FlowGuide({name}, latent_dim={self.latent_dim}, num_context={num_context})"
