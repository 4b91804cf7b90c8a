"""Densities that torch lacks or does not compute stably in float32.

Those of likelihoods are exported here; those of priors and guides are in `flows`, `sphere`,
`discrete` and `relaxed`.

Each is a Pyro distribution whose log-density stays accurate for extreme parameters, where
torch's own continuous Bernoulli and negative binomial no longer sum to 1. Parameters
broadcast against each other. Values are data, without gradients with respect to them.
Log-densities are in nats.
"""

from pyrovae.densities.beta import Beta
from pyrovae.densities.by_width import Categories, Levels
from pyrovae.densities.categorical import Categorical
from pyrovae.densities.columns import Columns
from pyrovae.densities.continuous_bernoulli import ContinuousBernoulli
from pyrovae.densities.counts import NegativeBinomial, Poisson, ZeroInflatedNegativeBinomial
from pyrovae.densities.discretized_logistic import DiscretizedLogistic
from pyrovae.densities.multinomial import Multinomial
from pyrovae.densities.positive import Gamma, LogNormal
from pyrovae.densities.student_t import StudentT

__all__ = [
    "Beta",
    "Categorical",
    "Categories",
    "Columns",
    "ContinuousBernoulli",
    "DiscretizedLogistic",
    "Gamma",
    "Levels",
    "LogNormal",
    "Multinomial",
    "NegativeBinomial",
    "Poisson",
    "StudentT",
    "ZeroInflatedNegativeBinomial",
]
