"""Priors p(z): modules whose call, without arguments, returns one density over z.

    z ~ p(z),   batch_shape (), event_shape (D,)

Density and sampler are one object, so they cannot disagree. Constants are buffers:
`.to()`, `state_dict` and saving carry them. Latents are in the units of the latent
space; log-densities are in nats.
"""

from pyrovae.priors.fixed import Fixed
from pyrovae.priors.standard_normal import StandardNormal

__all__ = ["Fixed", "StandardNormal"]
