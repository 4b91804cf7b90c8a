"""A trained decoder as the prior of an inverse problem: a measurement of an unknown x.

    z ~ p(z),   m ~ N(A E[x|z], σ² I)

Only m is observed, say half of the pixels of an image, or a blurred image. The VAE of these parts
has the posterior p(z|m), by HMC or importance sampling, and E[x|z] at its draws are the images that
fit both the measurement and what the decoder has learned.
"""

from collections.abc import Callable

import pyro.distributions as dist
from torch import Tensor, nn

from pyrovae.checks import real_number


class Measurement(nn.Module):
    """Decoder of a measurement, p(m|z) = N(A E[x|z], σ² I), with the decoder of x held fixed.

    Args:
        decoder: the trained `decoder(z)` → p(x|z); its parameters no longer require gradients.
        operator: A, a function of x (…, *event) → (…, *event of m), differentiable.
        scale: σ > 0, the noise of the measurement, in its units.

    References:
        Compressed Sensing using Generative Models, Bora et al., 2017,
        https://arxiv.org/abs/1703.03208

    Example:
        >>> import torch
        >>> import pyrovae as pv
        >>> trained = pv.build((8, 8), latent_dim=2, seed=0)
        >>> upper_half = lambda x: x[..., :4, :]
        >>> problem = pv.VAE(
        ...     trained.prior,
        ...     PriorGuide(trained.prior),
        ...     Measurement(trained.decoder, upper_half, scale=0.3),
        ... )
        >>> measured = upper_half(trained.sample(2, seed=0))
        >>> draws = pv.posterior.hmc(problem, measured, num_samples=5, num_warmup=5).draws
        >>> trained.decode(draws[0]).mean.shape
        torch.Size([5, 2, 8, 8])
    """

    def __init__(self, decoder: nn.Module, operator: Callable[[Tensor], Tensor], scale: float):
        super().__init__()
        self.decoder, self.operator = decoder.requires_grad_(False), operator
        self.scale = real_number(scale, "scale", above=0.0)

    def forward(self, z: Tensor) -> dist.Distribution:
        mean = self.operator(self.decoder(z).mean)
        return dist.Normal(mean, self.scale).to_event(mean.dim() - z.dim() + 1)


class PriorGuide(nn.Module):
    """Guide that has learned nothing, q(z|x) = p(z): the start of HMC or annealing.

    Args:
        prior: `prior()` → p(z).

    Example:
        >>> import torch
        >>> import pyrovae as pv
        >>> PriorGuide(pv.priors.StandardNormal(2))(torch.zeros(7, 3)).batch_shape
        torch.Size([7])
    """

    def __init__(self, prior: nn.Module):
        super().__init__()
        self.prior = prior

    def forward(self, x: Tensor) -> dist.Distribution:
        return self.prior().expand((len(x),))
