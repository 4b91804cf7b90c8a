"""A VAE of sequences whose codes follow a Gaussian process over each datum's own times."""

import math
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae.checks import check_event_shape, whole_number
from pyrovae.errors import DataError
from pyrovae.heads import positive
from pyrovae.programs.experts import loc_and_scale
from pyrovae.vae import fill, observed_only, register, visible

JITTER = 1e-4  # of the variance, added to the diagonal


def rbf(distance: Tensor) -> Tensor:
    """Return exp(−r²/2), the kernel of smooth paths, at distances r in length scales."""
    return torch.exp(-0.5 * distance**2)


def ornstein_uhlenbeck(distance: Tensor) -> Tensor:
    """Return exp(−r), the kernel of a stationary Markov process, at distances in length scales."""
    return torch.exp(-distance)


class GaussianProcess(nn.Module):
    """Gaussian process prior of each latent dimension, p(z_d) = N(0, k(|t − t'| / ℓ_d)).

    Args:
        latent_dim: D.
        kernel: a correlation as a function of the distance in length scales, such as `rbf`, or
            `ornstein_uhlenbeck` for a Markov process.
        length_scale: the initial ℓ of all dimensions, in units of time; learned.

    Example:
        >>> p_z = GaussianProcess(2)(torch.arange(5.0).expand(3, 5))
        >>> p_z.batch_shape, p_z.event_shape
        (torch.Size([3]), torch.Size([2, 5]))
    """

    def __init__(
        self,
        latent_dim: int,
        kernel: Callable[[Tensor], Tensor] = rbf,
        length_scale: float = 1.0,
    ):
        super().__init__()
        self.kernel = kernel
        raw = torch.full(
            (whole_number(latent_dim, "latent_dim", 1),), math.log(math.expm1(length_scale))
        )
        self.raw_length_scale = nn.Parameter(raw)

    def forward(self, times: Tensor) -> dist.Distribution:
        length = positive(self.raw_length_scale)[:, None, None]
        distance = (times[..., None, :, None] - times[..., None, None, :]).abs() / length
        noise = JITTER * torch.eye(times.shape[-1], dtype=times.dtype, device=times.device)
        covariance = self.kernel(distance) + noise  # (B, D, T, T)
        loc = covariance.new_zeros(covariance.shape[:-1])
        return dist.MultivariateNormal(loc, covariance_matrix=covariance).to_event(1)


class SequenceVAE(nn.Module):
    """VAE of sequences: z ~ p(z|t) over all times of a datum, x_t ~ p(x_t|z_t).

        p(x, z) = p(z|t_0 … t_{T−1}) Π_t p(x_t|z_t)

    x is (N, T, *event), and y the times of each datum, (N, T), which may differ between data.

    Args:
        prior: `prior(y)` → p(z), event_shape (D, T), such as `GaussianProcess(D)`.
        encoder: `encoder(x_t)` → q(z_t|x_t), a diagonal normal over D dimensions, for all times.
        decoder: `decoder(z_t)` → p(x_t|z_t).

    Raises:
        DataError: y is missing, or is not one time for each x_t.
        ConfigError: at run time, the encoder's density is not a diagonal normal.

    References:
        Gaussian Process Prior Variational Autoencoders, Casale et al., 2018,
        https://arxiv.org/abs/1810.11738
        GP-VAE: Deep Probabilistic Time Series Imputation, Fortuin et al., 2020,
        https://arxiv.org/abs/1907.04155

    Example:
        >>> import pyrovae as pv
        >>> vae = pv.build((6,), latent_dim=2, likelihood="Normal", seed=0)
        >>> program = SequenceVAE(GaussianProcess(2), vae.encoder, vae.decoder)
        >>> x, times = torch.zeros(4, 5, 6), torch.rand(4, 5).sort(1).values
        >>> pv.elbo_terms(program, x, times).latents["z"].shape
        torch.Size([1, 4, 2, 5])
    """

    def __init__(self, prior: nn.Module, encoder: nn.Module, decoder: nn.Module):
        super().__init__()
        self.prior, self.encoder, self.decoder = prior, encoder, decoder

    def check_data(self, x: Tensor, y: Tensor | None) -> None:
        """Raise DataError unless y holds one time for each x_t."""
        if y is None or y.shape != x.shape[:2]:
            num = x.shape[1]
            arrived = "missing" if y is None else f"of shape {tuple(y.shape[1:])} for each datum"
            raise DataError(
                f"y must hold the times of x, {num} for each datum, but it is {arrived}.\n"
                "For equally spaced data pass torch.arange(T).expand(N, T)."
            )

    def model(self, x: Tensor, y: Tensor | None = None, mask: Tensor | None = None) -> None:
        """Run p(x, z): plate "data", sites "z" and "x".

        Args:
            x: (B, T, *event).
            y: (B, T), times.
            mask: of x's shape, true where x is observed.
        """
        register(self)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", self.prior(y.to(x.dtype)))
            p_x = self.decoder(z.mT).to_event(1)
            check_event_shape(x, p_x.event_shape)
            pyro.sample("x", observed_only(p_x, mask), obs=fill(x, mask, p_x.support))

    def guide(self, x: Tensor, y: Tensor | None = None, mask: Tensor | None = None) -> None:
        """Run q(z|x) = Π_t q(z_t|x_t): site "z". Arguments as for `model`."""
        register(self)
        seen = visible(x, mask, self.encoder)
        q_z = self.encoder(*(part.flatten(0, 1) for part in seen))
        pair = loc_and_scale(q_z, "q(z_t|x_t)", "the times are independent under q")
        loc, scale = (part.unflatten(0, x.shape[:2]).mT for part in pair)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(loc, scale).to_event(2))
