"""Training objectives: what a step minimizes, each a `pyro.infer.ELBO` that SVI accepts.

    TraceELBO, MeanFieldELBO   −Σ_i ELBO_i, with a Monte-Carlo or analytic KL
    BetaELBO, FreeBits         a different weight on the KL
    EnumELBO                   the ELBO summed exactly over discrete latents
    IWAE, Renyi, DReG          bounds from several draws
    STL, WakeSleep             other gradients

Regardless of the objective, "elbo" always reports the ELBO with β = 1 (`terms.terms_of`).
"""

from pyrovae.objectives.base import Objective
from pyrovae.objectives.elbo import MeanFieldELBO, TraceELBO
from pyrovae.objectives.enumeration import EnumELBO
from pyrovae.objectives.importance import IWAE, STL, DReG, Renyi, WakeSleep
from pyrovae.objectives.regularized import (
    BetaELBO,
    FreeBits,
    constant,
    cosine_warmup,
    cyclical,
    kl_by_dimension,
    linear_warmup,
)

__all__ = [
    "IWAE",
    "STL",
    "BetaELBO",
    "DReG",
    "EnumELBO",
    "FreeBits",
    "MeanFieldELBO",
    "Objective",
    "Renyi",
    "TraceELBO",
    "WakeSleep",
    "constant",
    "cosine_warmup",
    "cyclical",
    "kl_by_dimension",
    "linear_warmup",
]
