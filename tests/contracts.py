"""The parts under contract: one line each, and every invariant of its family is tested.

A new prior, guide family or likelihood joins its table here and nothing else.
`tests/test_contracts.py` runs the tables.
"""

from collections.abc import Callable
from typing import NamedTuple

import pyro.distributions as dist
import torch
from torch import nn

from pyrovae import guides, likelihoods, priors


class Part(NamedTuple):
    """A constructor of the part, and where its density lives.

    space: "real" (quadrature over [−reach, reach]^D, D ≤ 2), "counts" (all x with entries in
    0..reach), "binary", or "unit" (quadrature over [0, 1]^D).
    """

    make: Callable[[], nn.Module]
    space: str = "real"
    reach: float = 12.0


def _laplace(b):
    return dist.Laplace(torch.zeros_like(b), b).to_event(1)


def _student_t(df, loc, scale):
    return dist.StudentT(df, loc, scale).to_event(1)


PRIORS = {
    "StandardNormal": Part(lambda: priors.StandardNormal(2)),
    "Fixed: Laplace": Part(lambda: priors.Fixed(_laplace, b=torch.tensor([2.0, 3.0])), reach=40),
    "Fixed: StudentT": Part(
        lambda: priors.Fixed(_student_t, df=9.0, loc=torch.zeros(2), scale=torch.ones(2)), reach=40
    ),
}

GUIDES = {
    "DiagonalNormal": Part(lambda: guides.DiagonalNormal(2)),
}

LIKELIHOODS = {
    "Bernoulli": Part(lambda: likelihoods.Bernoulli((2, 3)), "binary"),
    "Normal, fixed scale": Part(lambda: likelihoods.Normal(2, scale=0.5)),
    "Normal, one learned scale": Part(lambda: likelihoods.Normal(2, 0.5, learn_scale=True)),
    "Normal, a learned scale each": Part(
        lambda: likelihoods.Normal(2, torch.tensor([0.5, 2.0]), learn_scale=True)
    ),
}
