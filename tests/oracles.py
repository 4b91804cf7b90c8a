"""Exact answers: a linear-Gaussian VAE, quadrature over spaces of one or two dimensions.

Linear-Gaussian VAE = probabilistic PCA (Tipping & Bishop 1999): z ~ N(0, I_L),
x|z ~ N(W z + μ, σ² I), M = WᵀW + σ² I, and then
log p(x) = log N(x; μ, W Wᵀ + σ² I),  p(z|x) = N(M⁻¹ Wᵀ (x − μ), σ² M⁻¹).
"""

import itertools
import math

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae import VAE, likelihoods, priors
from pyrovae.networks import mlp


class LinearGaussian(nn.Module):
    """The exact quantities of p(z) = N(0, I), p(x|z) = N(W z + μ, σ² I). float64."""

    def __init__(self, num_features: int = 5, latent_dim: int = 2, sigma: float = 0.6):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        draw = {"generator": generator, "dtype": torch.float64}
        self.weight = torch.randn(num_features, latent_dim, **draw)
        self.mean = torch.randn(num_features, **draw)
        self.sigma = sigma
        eye = torch.eye(latent_dim, dtype=torch.float64)
        self.m = self.weight.T @ self.weight + sigma**2 * eye

    @property
    def covariance(self) -> Tensor:
        eye = torch.eye(len(self.mean), dtype=torch.float64)
        return self.weight @ self.weight.T + self.sigma**2 * eye

    def log_evidence(self, x: Tensor) -> Tensor:
        return dist.MultivariateNormal(self.mean, self.covariance).log_prob(x)

    def posterior(self, x: Tensor) -> dist.Distribution:
        loc = torch.linalg.solve(self.m, self.weight.T @ (x - self.mean).T).T
        return dist.MultivariateNormal(loc, self.sigma**2 * torch.linalg.inv(self.m))

    def elbo(self, x: Tensor, v: Tensor, d: Tensor) -> Tensor:
        """Oracle D2: the ELBO under the guide N(V (x − μ), diag d), (N,) nats."""
        centered = x - self.mean
        m = centered @ v.T
        latent_dim = len(d)
        minus_kl = -0.5 * (d.sum() + (m**2).sum(-1) - latent_dim - d.log().sum())
        residual = ((centered - m @ self.weight.T) ** 2).sum(-1)
        spread = (d * (self.weight**2).sum(0)).sum()
        log_norm = -0.5 * x.shape[-1] * math.log(2 * math.pi * self.sigma**2)
        return minus_kl + log_norm - (residual + spread) / (2 * self.sigma**2)

    def sample(self, n: int, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        z = torch.randn(n, self.weight.shape[1], generator=generator, dtype=torch.float64)
        noise = torch.randn(n, len(self.mean), generator=generator, dtype=torch.float64)
        return z @ self.weight.T + self.mean + self.sigma * noise

    def decoder(self) -> nn.Sequential:
        affine = mlp(self.weight.shape[1], len(self.mean), hidden=()).double()
        affine[0].weight.data, affine[0].bias.data = self.weight.clone(), self.mean.clone()
        return nn.Sequential(affine, likelihoods.Normal(len(self.mean), scale=self.sigma).double())

    def vae(self, encoder: nn.Module) -> VAE:
        return VAE(priors.StandardNormal(self.weight.shape[1]).double(), encoder, self.decoder())


class ExactEncoder(nn.Module):
    """The exact posterior of a LinearGaussian as an encoder, its sd times `sd_factor`."""

    def __init__(self, truth: LinearGaussian, sd_factor: float = 1.0):
        super().__init__()
        self.truth, self.sd_factor = truth, sd_factor

    def forward(self, x: Tensor) -> dist.Distribution:
        exact = self.truth.posterior(x)
        return dist.MultivariateNormal(exact.loc, scale_tril=exact.scale_tril * self.sd_factor)


class AffineEncoder(nn.Module):
    """q(z|x) = N(V (x − μ), diag d), the guide of oracle D2."""

    def __init__(self, v: Tensor, mean: Tensor, d: Tensor):
        super().__init__()
        self.v, self.mean, self.d = v, mean, d

    def forward(self, x: Tensor) -> dist.Distribution:
        loc = (x - self.mean) @ self.v.T
        return dist.Normal(loc, self.d.sqrt().expand_as(loc)).to_event(1)


def grid(reach: float, points: int, dim: int) -> tuple[Tensor, float]:
    """Points of a regular grid on [−reach, reach]^dim, (points^dim, dim), and log ΔV. float64."""
    axis = torch.linspace(-reach, reach, points, dtype=torch.float64)
    return torch.cartesian_prod(*[axis] * dim).reshape(-1, dim), dim * float(
        (axis[1] - axis[0]).log()
    )


def all_binary(num: int) -> Tensor:
    """Every binary vector of this length, (2^num, num), float64."""
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=num)), dtype=torch.float64)
