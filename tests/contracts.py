"""Everything under contract: one line each, and every invariant of its family is tested.

A new prior, guide family, likelihood, program, objective or container joins its table here,
and nothing else.
`tests/test_parts.py` and `tests/test_containers.py` run the tables.
"""

import warnings
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyro.distributions as dist
import pytest
import scipy.sparse
import torch
from helpers import (
    N,
    conditional,
    not_at_random,
    semi_supervised,
    shifted,
    small_vae,
    tied,
    vamp_vae,
    with_dropout,
    with_global_latents,
)
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from pyrovae import data, guides, likelihoods, objectives, priors
from pyrovae.densities import flows
from pyrovae.networks import mlp


class Part(NamedTuple):
    """A constructor of the part, and where its density lives.

    space: "real" (quadrature over [−reach, reach]^D, D ≤ 2), "counts" (all x with `reach` values
    0, 1, … an entry), "levels" (likewise, scaled to [0, 1]), "binary", "one-hot" (all blocks of
    `reach` numbers), "unit" (quadrature over [0, 1]^D), "logit" (likewise, even in the logits,
    |logit| ≤ reach), "half-line" (positive numbers, even in the logs), "pair" (like "logit", for
    (z, 1 − z)), "simplex" (the same, as one vector rather than a block) or "sphere" (quadrature
    over the circle).
    """

    make: Callable[[], nn.Module]
    space: str = "real"
    reach: float = 12.0
    points: int = 401  # of the quadrature, along an axis


def _laplace(b):
    return dist.Laplace(torch.zeros_like(b), b).to_event(1)


def _student_t(df, loc, scale):
    return dist.StudentT(df, loc, scale).to_event(1)


def _vamp_prior(guide, **options):
    encoder = nn.Sequential(mlp(3, guide.num_features, hidden=(4,)), guide)
    return priors.VampPrior(encoder, torch.eye(3), **options)


# small ones: the quadrature has 2.6 million points
SMALL_COUPLING = partial(flows.coupling, num_transforms=2, hidden=(4,))
SMALL_SPLINE = partial(flows.spline, num_transforms=1, hidden=(4,))
SMALL_AUTOREGRESSIVE = partial(flows.autoregressive, num_transforms=2, hidden=(4,))


FLOWS = {"coupling": flows.coupling, "autoregressive": flows.autoregressive, "spline": flows.spline}

PRIORS = {
    "StandardNormal": Part(lambda: priors.StandardNormal(2)),
    "Fixed: Laplace": Part(
        lambda: priors.Fixed(_laplace, b=torch.tensor([2.0, 3.0])), reach=40, points=1601
    ),
    "Fixed: StudentT": Part(
        lambda: priors.Fixed(_student_t, df=9.0, loc=torch.zeros(2), scale=torch.ones(2)), reach=40
    ),
    "LearnedNormal": Part(lambda: priors.LearnedNormal(2)),
    "LearnedNormal, full": Part(lambda: priors.LearnedNormal(2, full=True)),
    "GaussianMixture": Part(lambda: priors.GaussianMixture(2, num_components=3)),
    "VampPrior": Part(lambda: _vamp_prior(guides.DiagonalNormal(2))),
    "VampPrior, learned weights": Part(
        lambda: _vamp_prior(guides.FullNormal(2), learn_weights=True)
    ),
    "FlowPrior, coupling": Part(lambda: priors.FlowPrior(2, flow=SMALL_COUPLING)),
    "FlowPrior, autoregressive": Part(lambda: priors.FlowPrior(2, flow=SMALL_AUTOREGRESSIVE)),
    "FlowPrior, spline": Part(lambda: priors.FlowPrior(2, flow=SMALL_SPLINE), reach=9, points=501),
    "Fixed: Dirichlet": Part(
        lambda: priors.Fixed(dist.Dirichlet, concentration=torch.tensor([0.7, 1.5])), "simplex", 40
    ),
    "HypersphericalUniform": Part(lambda: priors.HypersphericalUniform(2), "sphere"),
    "Bernoulli": Part(lambda: priors.Bernoulli(3, 0.3), "binary"),
    "Bernoulli, learned": Part(lambda: priors.Bernoulli(3, 0.3, learn_probs=True), "binary"),
    "Categorical": Part(lambda: priors.Categorical(6, 3), "one-hot", 3),
    "Categorical, learned": Part(
        lambda: priors.Categorical(6, 3, probs=[0.2, 0.3, 0.5], learn_probs=True), "one-hot", 3
    ),
    "RelaxedBernoulli": Part(lambda: priors.RelaxedBernoulli(2, probs=0.3), "logit", 34),
    "RelaxedCategorical": Part(lambda: priors.RelaxedCategorical(2, probs=[0.3, 0.7]), "pair", 40),
}

GUIDES = {
    "DiagonalNormal": Part(lambda: guides.DiagonalNormal(2)),
    "FullNormal": Part(lambda: guides.FullNormal(2)),
    "LowRankNormal": Part(lambda: guides.LowRankNormal(2, rank=1)),
    "Laplace": Part(lambda: guides.Laplace(2), reach=9, points=801),
    "StudentT": Part(lambda: guides.StudentT(2), reach=60),
    "StudentT, learned df": Part(lambda: guides.StudentT(2, learn_df=True), reach=60),
    "Dirichlet": Part(lambda: guides.Dirichlet(2), "simplex", 40),
    "LogisticNormal": Part(lambda: guides.LogisticNormal(2), "simplex", 40),
    "FlowGuide, coupling": Part(lambda: guides.FlowGuide(2, num_context=2, flow=SMALL_COUPLING)),
    "FlowGuide, autoregressive": Part(
        lambda: guides.FlowGuide(2, num_context=2, flow=SMALL_AUTOREGRESSIVE)
    ),
    "PowerSpherical": Part(lambda: guides.PowerSpherical(2), "sphere"),
    "Bernoulli": Part(lambda: guides.Bernoulli(3), "binary"),
    "Categorical": Part(lambda: guides.Categorical(6, 3), "one-hot", 3),
    "RelaxedBernoulli": Part(lambda: guides.RelaxedBernoulli(2), "logit", 34),
    "RelaxedCategorical": Part(lambda: guides.RelaxedCategorical(2), "pair", 40),
}

LIKELIHOODS = {
    "Bernoulli": Part(lambda: likelihoods.Bernoulli((2, 3)), "binary"),
    "Normal, fixed scale": Part(lambda: likelihoods.Normal(2, scale=0.5)),
    "Normal, one learned scale": Part(lambda: likelihoods.Normal(2, 0.5, learn_scale=True)),
    "Normal, a learned scale each": Part(
        lambda: likelihoods.Normal(2, torch.tensor([0.5, 2.0]), learn_scale=True)
    ),
    "HeteroscedasticNormal": Part(lambda: likelihoods.HeteroscedasticNormal(2), reach=20),
    "StudentT, fixed df": Part(lambda: likelihoods.StudentT(2, df=9.0), reach=40),
    "StudentT, learned df each": Part(
        lambda: likelihoods.StudentT(2, torch.tensor([6.0, 9.0]), 0.5, learn_df=True), reach=40
    ),
    "ContinuousBernoulli": Part(lambda: likelihoods.ContinuousBernoulli(2), "unit"),
    "Categorical": Part(lambda: likelihoods.Categorical((2, 2), 3), "counts", 3),
    "DiscretizedLogistic": Part(lambda: likelihoods.DiscretizedLogistic(2, 17), "levels", 17),
    "DiscretizedLogisticMixture": Part(
        lambda: likelihoods.DiscretizedLogisticMixture(2, 9, 3), "levels", 9
    ),
    "DiscretizedLogisticMixture, in color": Part(
        lambda: likelihoods.DiscretizedLogisticMixture((3, 1, 1), 9, 2), "levels", 9
    ),
    "Poisson": Part(lambda: likelihoods.Poisson(2), "counts", 40),
    "NegativeBinomial": Part(lambda: likelihoods.NegativeBinomial(2, 2.0), "counts", 120),
    "NegativeBinomial, fixed concentration": Part(
        lambda: likelihoods.NegativeBinomial(2, 2.0, learn_concentration=False), "counts", 120
    ),
    "ZeroInflatedNegativeBinomial": Part(
        lambda: likelihoods.ZeroInflatedNegativeBinomial(2, 2.0), "counts", 120
    ),
    "Multinomial": Part(lambda: likelihoods.Multinomial(3, total=4), "counts", 5),
    "Columns, reals": Part(
        lambda: likelihoods.Columns([{"kind": "StudentT", "df": 9.0}, "Normal"]), reach=40
    ),
    "Columns, positive": Part(
        lambda: likelihoods.Columns(["LogNormal", "Gamma"]), "half-line", 30, points=1601
    ),
    "Columns, fractions": Part(lambda: likelihoods.Columns(["Beta", "Beta"]), "logit", 30),
    "Columns, binary": Part(lambda: likelihoods.Columns(["Bernoulli"] * 3), "binary"),
    "Columns, codes": Part(
        lambda: likelihoods.Columns(
            [{"kind": kind, "num_categories": 3} for kind in ("Ordinal", "Categorical", "Ordinal")]
        ),
        "counts",
        3,
    ),
    "Columns, counts": Part(
        lambda: likelihoods.Columns(["NegativeBinomial", "Poisson"]), "counts", 300
    ),
}


class Program(NamedTuple):
    """A constructor of a program of four binary columns, and labels for `bits()` if it takes y."""

    make: Callable[[], nn.Module]
    y: torch.Tensor | None = None


LABELS = torch.arange(N) % 4 - 1  # -1: unknown

PROGRAMS = {
    "VAE": Program(small_vae),
    "dropout": Program(with_dropout),
    "VampPrior": Program(vamp_vae),
    "covariates": Program(conditional, LABELS.clamp(min=0)),
    "semi-supervised": Program(semi_supervised, LABELS),
    "global latents": Program(with_global_latents),
    "not at random": Program(not_at_random),
    "sees the mask": Program(lambda: small_vae(sees_mask=True)),
    "tied weights": Program(tied),
    "two shifts": Program(shifted),
}

OBJECTIVES = {
    "TraceELBO": lambda: objectives.TraceELBO(),
    "TraceELBO, 3 draws": lambda: objectives.TraceELBO(3),
    "MeanFieldELBO": lambda: objectives.MeanFieldELBO(),
    "BetaELBO, warm-up": lambda: objectives.BetaELBO(objectives.linear_warmup(0.6)),
    "BetaELBO, cyclical, 2 draws": lambda: objectives.BetaELBO(objectives.cyclical(2), 2),
    "FreeBits": lambda: objectives.FreeBits(0.1),
    "IWAE": lambda: objectives.IWAE(3),
    "Renyi": lambda: objectives.Renyi(0.5, 3),
    "STL": lambda: objectives.STL(),
    "DReG": lambda: objectives.DReG(3),
    "WakeSleep": lambda: objectives.WakeSleep(3),
}


def slow_unless(names, is_quick):
    """Mark as slow what the default run leaves to `pytest -m slow`."""
    return [pytest.param(n, marks=() if is_quick(n) else pytest.mark.slow) for n in names]


all_flows = pytest.mark.parametrize("flow", FLOWS.values(), ids=FLOWS)
all_parts = pytest.mark.parametrize(
    "part",
    [*PRIORS.values(), *GUIDES.values(), *LIKELIHOODS.values()],
    ids=[*PRIORS, *GUIDES, *LIKELIHOODS],
)


def features_for(head: nn.Module, *batch: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(*batch, head.num_features, generator=generator)


def _table(frame):
    """A table whose codes are the numbers in the frame."""
    return data.table(frame, {str(name): "Normal" for name in frame.columns})


def _saved(folder, x):
    np.save(folder / "x.npy", x.numpy())
    return np.load(folder / "x.npy", mmap_mode="r")


def _raw(folder, x):
    x.numpy().astype("u1" if x.min() >= 0 else "i1").tofile(folder / "x.raw")
    dtype = "u1" if x.min() >= 0 else "i1"
    return np.memmap(folder / "x.raw", dtype, "r", shape=tuple(x.shape))


class _Stream(IterableDataset):
    def __init__(self, x):
        self.x = x

    def __iter__(self):
        return iter(self.x)


class _Batches:
    """An iterable of batches that is not a class of torch."""

    def __init__(self, x):
        self.x = x

    def __iter__(self):
        return iter(self.x.split(5))


# (folder, x) → x in a container; a container of data joins by a line
def _annotated(x):
    import anndata  # takes a second

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of anndata, about options of pandas
        return data.anndata(anndata.AnnData(scipy.sparse.csr_matrix(x.numpy())), size=None)


CONTAINERS = {
    "list": lambda folder, x: x.tolist(),
    "array": lambda folder, x: x.numpy().astype("float64"),
    "Fortran array of int64": lambda folder, x: np.asfortranarray(x.numpy().astype("i8")),
    "npy, memory-mapped": _saved,
    "raw bytes, memory-mapped": _raw,
    "csr matrix": lambda folder, x: scipy.sparse.csr_matrix(x.numpy()),
    "csc array": lambda folder, x: scipy.sparse.csc_array(x.numpy()),
    "coo array": lambda folder, x: scipy.sparse.coo_array(x.numpy()),
    "bsr array": lambda folder, x: scipy.sparse.bsr_array(x.numpy()),
    "dia array": lambda folder, x: scipy.sparse.dia_array(x.numpy()),
    "dok array": lambda folder, x: scipy.sparse.dok_array(x.numpy()),
    "lil array": lambda folder, x: scipy.sparse.lil_array(x.numpy()),
    "pandas": lambda folder, x: pd.DataFrame(x.numpy()),
    "polars": lambda folder, x: pl.DataFrame(x.numpy()),
    "pyarrow": lambda folder, x: pa.table({str(i): c.numpy() for i, c in enumerate(x.T)}),
    "table": lambda folder, x: _table(pd.DataFrame(x.numpy())),
    "table of polars": lambda folder, x: _table(pl.DataFrame(x.numpy())),
    "AnnData": lambda folder, x: _annotated(x),
    "Dataset": lambda folder, x: TensorDataset(x),
    "DataLoader": lambda folder, x: DataLoader(x, 5),
    "DataLoader, shuffled": lambda folder, x: DataLoader(x, 5, shuffle=True, drop_last=True),
    "stream": lambda folder, x: _Stream(x),
    "DataLoader of a stream": lambda folder, x: DataLoader(_Stream(x), 5),
    "iterable of batches": lambda folder, x: _Batches(x),
}

# name → the kind of latent that it takes, and options that cost little
EVIDENCE_METHODS = {
    "importance": ("continuous", {"num_samples": 500}),
    "iwae": ("continuous", {"num_samples": 2000}),
    "refined": ("continuous", {"num_samples": 500, "num_steps": 60}),
    "ais": ("continuous", {"num_samples": 64, "num_temperatures": 20}),
    "grid": ("continuous", {}),
    "enumerate": ("discrete", {}),
    "auto": ("continuous", {}),
}

POSTERIOR_METHODS = {
    "grid": {"num_samples": 500},
    "sir": {"num_samples": 500, "num_proposals": 5000},
    "hmc": {"num_samples": 60, "num_warmup": 45, "num_chains": 16},
}
