"""The normal prior with learned mean and covariance."""

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae.heads import as_latent_shape, inverse_positive, positive


class LearnedNormal(nn.Module):
    """Learned normal prior, p(z) = N(z; μ, diag σ²) or, if full, N(z; μ, L Lᵀ); starts at N(0, I).

    σ = softplus(s) + 1e-5 and L = diag(σ) (I + A), A strictly lower triangular: the Cholesky
    factor of any covariance. A decoder whose first layer is affine can represent the same
    model; this prior makes the KL, its dimensions and its units easier to read.

    Args:
        latent_dim: D.
        full: whether to learn A as well, D (D − 1) / 2 numbers; otherwise A = 0.

    Raises:
        ConfigError: latent_dim is not a whole number ≥ 1.

    References:
        Auto-Encoding Variational Bayes, Kingma & Welling, 2014, for A = 0 and μ, σ fixed,
        https://arxiv.org/abs/1312.6114

    Example:
        >>> prior = LearnedNormal(2, full=True)
        >>> prior
        LearnedNormal(latent_dim=2, full=True)
        >>> prior().log_prob(torch.zeros(2)).item()
        -1.837...
    """

    def __init__(self, latent_dim: int, *, full: bool = False):
        super().__init__()
        shape = as_latent_shape(latent_dim)
        self.loc = nn.Parameter(torch.zeros(shape))
        self.raw_scale = nn.Parameter(inverse_positive(torch.ones(shape)))
        self.below = nn.Parameter(torch.zeros(latent_dim * (latent_dim - 1) // 2)) if full else None

    def forward(self) -> dist.Distribution:
        if self.below is None:
            return dist.Normal(self.loc, positive(self.raw_scale)).to_event(1)
        return dist.MultivariateNormal(self.loc, scale_tril=self.scale_tril)

    @property
    def scale_tril(self) -> Tensor:
        """(D, D), L: the Cholesky factor of the covariance."""
        dim = len(self.loc)
        like = {"dtype": self.loc.dtype, "device": self.loc.device}
        below = torch.zeros(dim, dim, **like)
        if self.below is not None:
            row, column = torch.tril_indices(dim, dim, -1, device=self.loc.device)
            below = below.index_put((row, column), self.below)
        return torch.diag_embed(positive(self.raw_scale)) @ (torch.eye(dim, **like) + below)

    def extra_repr(self) -> str:
        return f"latent_dim={len(self.loc)}, full={self.below is not None}"
