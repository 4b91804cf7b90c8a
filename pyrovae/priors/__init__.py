"""Priors p(z): modules whose call, without arguments, returns one density over z.

    z ~ p(z),   batch_shape (), event_shape (D,)

Density and sampler are one object, so they cannot disagree. Constants are buffers, so
`.to()`, `state_dict` and saving include them. Latents are in the units of the latent
space; log-densities are in nats.
"""

from pyrovae.priors.bernoulli import Bernoulli
from pyrovae.priors.categorical import Categorical
from pyrovae.priors.fixed import Fixed
from pyrovae.priors.flow_prior import FlowPrior
from pyrovae.priors.gaussian_mixture import GaussianMixture
from pyrovae.priors.hyperspherical_uniform import HypersphericalUniform
from pyrovae.priors.learned_normal import LearnedNormal
from pyrovae.priors.relaxed_bernoulli import RelaxedBernoulli
from pyrovae.priors.relaxed_categorical import RelaxedCategorical
from pyrovae.priors.standard_normal import StandardNormal
from pyrovae.priors.vamp_prior import VampPrior

__all__ = [
    "Bernoulli",
    "Categorical",
    "Fixed",
    "FlowPrior",
    "GaussianMixture",
    "HypersphericalUniform",
    "LearnedNormal",
    "RelaxedBernoulli",
    "RelaxedCategorical",
    "StandardNormal",
    "VampPrior",
]
