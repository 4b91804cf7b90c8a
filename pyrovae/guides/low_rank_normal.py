"""The Gaussian guide with a diagonal plus low-rank covariance."""

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae.checks import whole_number
from pyrovae.heads import as_latent_shape, positive, split_features


class LowRankNormal(nn.Module):
    """Low-rank normal guide, q(z|x) = N(z; μ(x), S (I + W(x) W(x)ᵀ) S), S = diag σ(x), W (D, R).

    z = μ + σ ⊙ (ε + W η), ε ~ N(0, I_D), η ~ N(0, I_R): between `DiagonalNormal` (R = 0) and
    `FullNormal`, with a number of features linear in D. The features are (μ, s, w): σ =
    softplus(s) + 1e-5 and W = 10 tanh(w / 10), bounded so that ±1e6 stay finite in float32.

    Args:
        latent_dim: D.
        rank: R.

    Attributes:
        num_features: D (2 + R).

    Raises:
        ConfigError: latent_dim or rank is not a whole number ≥ 1, or the features have the
            wrong width.

    References:
        Stochastic Backpropagation and Approximate Inference in Deep Generative Models,
        Rezende, Mohamed & Wierstra, 2014 (rank 1), https://arxiv.org/abs/1401.4082

    Example:
        >>> head = LowRankNormal(3, rank=1)
        >>> q_z = head(torch.zeros(7, head.num_features))
        >>> q_z.batch_shape, q_z.event_shape
        (torch.Size([7]), torch.Size([3]))
    """

    def __init__(self, latent_dim: int, *, rank: int = 2):
        super().__init__()
        (self.latent_dim,) = as_latent_shape(latent_dim)
        self.rank = whole_number(rank, "rank", 1)
        self.num_features = latent_dim * (2 + rank)

    def forward(self, features: Tensor) -> dist.Distribution:
        columns = split_features(features, torch.Size([self.latent_dim]), 2 + self.rank)
        loc, scale = columns[0], positive(columns[1])
        w = 10 * torch.tanh(torch.stack(columns[2:], dim=-1) / 10)  # (*S, B, D, R)
        return dist.LowRankMultivariateNormal(loc, scale[..., None] * w, scale**2)

    def extra_repr(self) -> str:
        return f"latent_dim={self.latent_dim}, rank={self.rank}"
