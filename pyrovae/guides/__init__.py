"""Guide families q(z|x): heads that turn an encoder's features into a density over z.

    features (B, F) → q(z|x) with batch_shape (B,), event_shape (D,)

`nn.Sequential(network, DiagonalNormal(D))` is a complete encoder. Each head declares
its input width as `num_features`. All scales are `heads.positive` of a feature,
softplus + 1e-5, so that features of ±1e6 stay finite.
"""

from pyrovae.guides.bernoulli import Bernoulli
from pyrovae.guides.categorical import Categorical
from pyrovae.guides.diagonal_normal import DiagonalNormal
from pyrovae.guides.dirichlet import Dirichlet
from pyrovae.guides.flow_guide import FlowGuide
from pyrovae.guides.full_normal import FullNormal
from pyrovae.guides.laplace import Laplace
from pyrovae.guides.logistic_normal import LogisticNormal
from pyrovae.guides.low_rank_normal import LowRankNormal
from pyrovae.guides.power_spherical import PowerSpherical
from pyrovae.guides.relaxed_bernoulli import RelaxedBernoulli
from pyrovae.guides.relaxed_categorical import RelaxedCategorical
from pyrovae.guides.student_t import StudentT

__all__ = [
    "Bernoulli",
    "Categorical",
    "DiagonalNormal",
    "Dirichlet",
    "FlowGuide",
    "FullNormal",
    "Laplace",
    "LogisticNormal",
    "LowRankNormal",
    "PowerSpherical",
    "RelaxedBernoulli",
    "RelaxedCategorical",
    "StudentT",
]
