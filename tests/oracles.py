"""Exact answers: a linear-Gaussian VAE, quadrature over spaces of one or two dimensions.

Linear-Gaussian VAE = probabilistic PCA (Tipping & Bishop 1999): z ~ N(0, I_L),
x|z ~ N(W z + μ, σ² I), M = WᵀW + σ² I, and then
log p(x) = log N(x; μ, W Wᵀ + σ² I),  p(z|x) = N(M⁻¹ Wᵀ (x − μ), σ² M⁻¹).
"""

import itertools
import math

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn

from pyrovae import VAE, likelihoods, priors
from pyrovae.networks import mlp
from pyrovae.vae import register


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
        """Return the ELBO under the guide N(V (x − μ), diag d), (N,) nats."""
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
    """The affine guide q(z|x) = N(V (x − μ), diag d)."""

    def __init__(self, v: Tensor, mean: Tensor, d: Tensor):
        super().__init__()
        self.v, self.mean, self.d = v, mean, d

    def forward(self, x: Tensor) -> dist.Distribution:
        loc = (x - self.mean) @ self.v.T
        return dist.Normal(loc, self.d.sqrt().expand_as(loc)).to_event(1)


def wide_guide(truth: LinearGaussian) -> AffineEncoder:
    """The exact posterior's mean, 1.5 × its marginal variances: not exact, and no heavy tail."""
    v = torch.linalg.solve(truth.m, truth.weight.T)
    variance = (truth.sigma**2 * torch.linalg.inv(truth.m)).diag()
    return AffineEncoder(v, truth.mean, 1.5 * variance)


class Ladder(nn.Module):
    """Two local latents: a ~ N(0, 1), b|a ~ N(a, 1) (a scalar site), x|b ~ N(b, 0.5²) twice.

    x ~ N(0, [[2.25, 2], [2, 2.25]]): exact. The guide knows nothing but the mean of x.
    """

    covariance = torch.tensor([[2.25, 2.0], [2.0, 2.25]], dtype=torch.float64)

    def __init__(self):
        super().__init__()
        self.zero = nn.Parameter(torch.zeros(()))

    def model(self, x, y=None, mask=None):
        register(self)
        with pyro.plate("data", len(x), dim=-1):
            a = pyro.sample("a", dist.Normal(self.zero, torch.ones(1)).to_event(1))
            b = pyro.sample("b", dist.Normal(a[..., 0], 1.0))
            pyro.sample("x", dist.Normal(b[..., None].expand(*b.shape, 2), 0.5).to_event(1), obs=x)

    def guide(self, x, y=None, mask=None):
        register(self)
        mean = x.mean(-1) + self.zero
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("b", dist.Normal(mean, 0.6))
            pyro.sample("a", dist.Normal(0.5 * mean[:, None], 1.0).to_event(1))


class Rewritten(nn.Module):
    """The same program as a VAE, of another class: it takes the way of any program."""

    def __init__(self, vae: VAE, scale: float = 1.0):
        super().__init__()
        self.vae, self.scale = vae, scale

    def model(self, x, y=None, mask=None):
        with poutine.scale(scale=self.scale):
            self.vae.model(x, y, mask)

    def guide(self, x, y=None, mask=None):
        with poutine.scale(scale=self.scale):
            self.vae.guide(x, y, mask)


def grid(reach: float, points: int, dim: int) -> tuple[Tensor, float]:
    """Points of a regular grid on [−reach, reach]^dim, (points^dim, dim), and log ΔV. float64."""
    axis = torch.linspace(-reach, reach, points, dtype=torch.float64)
    return torch.cartesian_prod(*[axis] * dim).reshape(-1, dim), dim * float(
        (axis[1] - axis[0]).log()
    )


def all_binary(num: int) -> Tensor:
    """Every binary vector of this length, (2^num, num), float64."""
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=num)), dtype=torch.float64)
