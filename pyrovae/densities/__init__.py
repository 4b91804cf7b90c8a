"""Densities that the parts need and that torch has not, or not stably in float32.

Those of likelihoods are named here; those of priors and guides are in `flows`, `sphere`,
`discrete` and `relaxed`.

Each is a Pyro distribution whose log-density keeps its digits over extreme parameters;
torch's own continuous Bernoulli and negative binomial stop summing to 1. Parameters
broadcast against each other. Values are data: gradients with respect to them are left
out. Log-densities are in nats.
"""

from pyrovae.densities.categorical import Categorical
from pyrovae.densities.continuous_bernoulli import ContinuousBernoulli
from pyrovae.densities.counts import NegativeBinomial, Poisson, ZeroInflatedNegativeBinomial
from pyrovae.densities.discretized_logistic import DiscretizedLogistic
from pyrovae.densities.multinomial import Multinomial
from pyrovae.densities.student_t import StudentT

__all__ = [
    "Categorical",
    "ContinuousBernoulli",
    "DiscretizedLogistic",
    "Multinomial",
    "NegativeBinomial",
    "Poisson",
    "StudentT",
    "ZeroInflatedNegativeBinomial",
]
