"""Half of the cells of a table hidden: does a VAE know them better than other imputers do?

    python tests/benchmarks/missing_data.py breast_cancer wine diabetes --masks 10

Columns are standardized, and each cell is hidden with probability 1/2. A row of the table is the
mean over masks ± its standard error:

    MSE         (E[x | x_observed] − x)², mean over hidden cells
    log p       log p(x_hidden | x_observed) / number of hidden cells, nats, mean over rows
    coverage    of hidden cells by their 90 % intervals, from draws
    k̂           share of rows above the threshold of k̂

The VAE is MIWAE (Mattei & Frellsen 2019) with an encoder that sees the mask. Its settings, one set
for all tables, were chosen on a tenth of the observed cells of another mask (seed 100);
the shrinkage of the multivariate normal, fitted by EM, on a tenth of those of each mask. Hidden
cells are used for this table only.
"""

import argparse
import math
import time
import warnings
from collections.abc import Callable, Iterable
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer, load_diabetes, load_wine
from sklearn.ensemble import ExtraTreesRegressor
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer, KNNImputer, SimpleImputer
from torch import Tensor, nn

import pyrovae as pv
from pyrovae.core.pareto import pareto_k_threshold
from pyrovae.networks import JoinMask, SeesMask, mlp

DATA = {"breast_cancer": load_breast_cancer, "wine": load_wine, "diabetes": load_diabetes}
LATENT_DIM, K, EPOCHS, LEARNING_RATE, WEIGHT_DECAY, DF = 10, 20, 300, 5e-3, 0.3, 10.0
NUM_SAMPLES, NUM_PROPOSALS = 3000, 10_000
SHRINKAGES = (0.0, 0.003, 0.01, 0.03, 0.1, 0.3)


class Result(NamedTuple):
    """What an imputer says of hidden cells; NaN where it says nothing."""

    mse: float
    log_p: float = math.nan
    coverage: float = math.nan
    share_k: float = math.nan


def table(name: str) -> Tensor:
    """Return the standardized columns, (N, D), float64."""
    x = torch.tensor(DATA[name]().data, dtype=torch.float64)
    return (x - x.mean(0)) / x.std(0, correction=0)


@cache
def hidden_at_random(x: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Return which cells are observed, and which of these are left for training."""
    generator = torch.Generator().manual_seed(seed)
    observed = torch.rand(x.shape, generator=generator) < 0.5
    return observed, observed & (torch.rand(x.shape, generator=generator) < 0.9)


def per_cell(log_p: Tensor, cells: Tensor) -> float:
    """Mean over rows of log p(cells | others) / number of cells; rows without cells left out."""
    count = cells.sum(-1)
    return (log_p.double()[count > 0] / count[count > 0]).mean().item()


# The multivariate normal.


def cut(covariance: Tensor, mask: Tensor) -> Tensor:
    """Covariances of the observed cells, (N, D, D), with 1 on the diagonal of missing ones."""
    both = mask[:, :, None] & mask[:, None]
    return torch.where(both, covariance, torch.eye(mask.shape[-1], dtype=covariance.dtype))


def normal_log_prob(x: Tensor, mask: Tensor, mean: Tensor, covariance: Tensor) -> Tensor:
    """log N(x_o; μ_o, Σ_oo), (N,)."""
    centered = torch.where(mask, x - mean, 0.0)
    factor = torch.linalg.cholesky(cut(covariance, mask))
    white = torch.linalg.solve_triangular(factor, centered[..., None], upper=False)[..., 0]
    log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return -0.5 * (white**2).sum(-1) - log_det - 0.5 * mask.sum(-1) * math.log(2 * math.pi)


def conditional(x: Tensor, mask: Tensor, mean: Tensor, covariance: Tensor) -> tuple:
    """E[x | x_o], (N, D), and Cov[x | x_o], (N, D, D)."""
    centered = torch.where(mask, x - mean, 0.0)
    across = covariance * mask[:, None]  # Σ_{·o}
    gain = torch.linalg.solve(cut(covariance, mask), across.mT).mT
    return mean + (gain @ centered[..., None])[..., 0], covariance - gain @ across.mT


def expectation_maximization(x: Tensor, mask: Tensor, shrinkage: float) -> tuple[Tensor, Tensor]:
    """Return μ and Σ of the penalized likelihood, off-diagonals times 1 − shrinkage."""
    d = x.shape[-1]
    mean, covariance = torch.zeros(d, dtype=x.dtype), torch.eye(d, dtype=x.dtype)
    for _ in range(200):
        filled, spread = conditional(x, mask, mean, covariance)
        filled = torch.where(mask, x, filled)
        before, mean = mean, filled.mean(0)
        centered = filled - mean
        full = centered.T @ centered / len(x) + spread.mean(0)
        covariance = full * (1 - shrinkage) + full.diag().diag() * shrinkage
        covariance = (covariance + covariance.T) / 2 + 1e-6 * torch.eye(d, dtype=x.dtype)
        if (mean - before).abs().max() < 1e-5:
            break
    return mean, covariance


def multivariate_normal(x: Tensor, observed: Tensor, train: Tensor) -> Result:
    """EM, with the shrinkage chosen on the observed cells that are not in `train`."""

    def held_out(shrinkage: float) -> float:
        fitted = expectation_maximization(x, train, shrinkage)
        gain = normal_log_prob(x, observed, *fitted) - normal_log_prob(x, train, *fitted)
        return per_cell(gain, observed & ~train)

    fitted = expectation_maximization(x, observed, max(SHRINKAGES, key=held_out))
    mean, spread = conditional(x, observed, *fitted)
    whole = normal_log_prob(x, torch.ones_like(observed), *fitted)
    log_p = per_cell(whole - normal_log_prob(x, observed, *fitted), ~observed)
    sd = spread.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt()
    covered = ((x - mean).abs() <= 1.6449 * sd)[~observed]
    return Result(mse(mean, x, observed), log_p, covered.double().mean().item())


def mse(mean: Tensor, x: Tensor, observed: Tensor) -> float:
    """Mean squared error over hidden cells."""
    return (mean.double() - x)[~observed].square().mean().item()


# The VAE.


class Skip(nn.Module):
    """W z + b + network(z), from a network that starts at 0."""

    def __init__(self, before: int, after: int):
        super().__init__()
        self.linear = nn.Linear(before, after)
        self.network = mlp(before, after, hidden=(64,), activation=nn.Tanh)
        nn.init.zeros_(self.network[-1].weight)
        nn.init.zeros_(self.network[-1].bias)

    def forward(self, z: Tensor) -> Tensor:
        return self.linear(z) + self.network(z)


def model(d: int, seed: int, *, sees_mask: bool) -> pv.VAE:
    """A VAE whose decoder is a linear map plus a small network, with heavy tails."""
    torch.manual_seed(seed)
    q = pv.guides.DiagonalNormal(LATENT_DIM)
    p = pv.likelihoods.StudentT(d, DF, torch.full((d,), 0.5))
    width = (2, d) if sees_mask else d
    encoder = nn.Sequential(mlp(width, q.num_features, hidden=(128, 128), activation=nn.Tanh), q)
    encoder = SeesMask(JoinMask(encoder, d)) if sees_mask else encoder
    decoder = nn.Sequential(Skip(LATENT_DIM, p.num_features), p)
    return pv.VAE(pv.priors.StandardNormal(LATENT_DIM), encoder, decoder)


def adam(parameters: Iterable[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    """AdamW that decays weights, not biases nor scales."""
    of = {True: [], False: []}
    for parameter in parameters:
        of[parameter.dim() > 1].append(parameter)
    decayed = {"params": of[True], "weight_decay": WEIGHT_DECAY}
    return torch.optim.AdamW([decayed, {"params": of[False], "weight_decay": 0.0}], lr=lr)


def fitted(x: Tensor, mask: Tensor, seed: int, *, sees_mask: bool) -> pv.VAE:
    """A VAE trained by IWAE on the cells of the mask."""
    vae = model(x.shape[-1], seed, sees_mask=sees_mask)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a collapsed dimension
        pv.fit(
            vae,
            x,
            mask=mask,
            objective=pv.objectives.IWAE(K),
            epochs=EPOCHS,
            batch_size=64,
            learning_rate=lambda t: LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * t)),
            optimizer=adam,
            seed=seed,
            progress=False,
        )
    return vae


def log_p_of(vae: pv.VAE, x: Tensor, mask: Tensor) -> Tensor:
    """log p(x_mask) by importance sampling, (N,)."""
    return pv.log_evidence(vae, x, mask=mask, num_samples=NUM_SAMPLES).log_px.double()


class Fit(NamedTuple):
    """What one VAE says: draws (S, N, D), E[x|x_o] (N, D), log p(x_m|x_o) (N,), k̂ (N,)."""

    draws: Tensor
    mean: Tensor
    log_p: Tensor
    pareto_k: Tensor


@cache
def imputed(x: Tensor, observed: Tensor, seed: int, sees_mask: bool) -> Fit:
    """Fit and impute."""
    clean = torch.where(observed, x, 0.0).float()
    one = fitted(clean, observed, seed, sees_mask=sees_mask)
    how = {"num_samples": 200, "num_proposals": NUM_PROPOSALS}
    found = pv.impute(one, clean, mask=observed, **how)
    whole = log_p_of(one, x.float(), torch.ones_like(observed))
    log_p = whole - log_p_of(one, clean, observed)
    return Fit(found.draws, found.mean.double(), log_p, found.pareto_k)


def vae(num_fits: int, *, sees_mask: bool) -> Callable:
    """The even mixture of fits with several seeds."""

    def fill(x: Tensor, observed: Tensor, train: Tensor, seed: int) -> Result:
        fits = [imputed(x, observed, 1000 * seed + i, sees_mask) for i in range(num_fits)]
        low, high = np.quantile(torch.cat([each.draws for each in fits]), [0.05, 0.95], axis=0)
        covered = (torch.tensor(low) <= x) & (x <= torch.tensor(high))
        log_p = torch.stack([each.log_p for each in fits]).logsumexp(0) - math.log(num_fits)
        k = torch.cat([each.pareto_k for each in fits])
        return Result(
            mse(torch.stack([each.mean for each in fits]).mean(0), x, observed),
            per_cell(log_p, ~observed),
            covered[~observed].double().mean().item(),
            (k > pareto_k_threshold(NUM_PROPOSALS)).double().mean().item(),
        )

    return fill


def of_sklearn(imputer: Callable) -> Callable:
    """An imputer of scikit-learn."""

    def fill(x: Tensor, observed: Tensor, train: Tensor, seed: int) -> Result:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of convergence
            filled = imputer().fit_transform(torch.where(observed, x, torch.nan).numpy())
        return Result(mse(torch.tensor(filled), x, observed))

    return fill


def forest() -> IterativeImputer:
    """A MissForest-like imputer: regressions by trees in turn."""
    trees = ExtraTreesRegressor(n_estimators=30, min_samples_leaf=2, random_state=0)
    return IterativeImputer(trees, max_iter=5, random_state=0)


METHODS = {
    "VAE": vae(1, sees_mask=True),
    "VAE, mask unseen": vae(1, sees_mask=False),
    "VAE, three fits": vae(3, sees_mask=True),
    "multivariate normal, EM": lambda x, observed, train, seed: multivariate_normal(
        x, observed, train
    ),
    "IterativeImputer": of_sklearn(lambda: IterativeImputer(random_state=0)),
    "IterativeImputer of ExtraTrees": of_sklearn(forest),
    "KNNImputer": of_sklearn(KNNImputer),
    "mean": of_sklearn(SimpleImputer),
}


def row(name: str, results: list[Result]) -> str:
    """Return a line of the table: means over masks ± standard errors."""
    cells = []
    for values in zip(*results, strict=True):
        v = torch.tensor(values).double()
        error = f" ± {v.std().item() / math.sqrt(len(v)):.3f}" if len(v) > 1 else ""
        cells.append("" if v.isnan().any() else f"{v.mean():.3f}{error}")
    return f"| {name} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", nargs="+", choices=DATA)
    parser.add_argument("--masks", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="the seed of the first mask")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--verbose", action="store_true", help="print each mask")
    args = parser.parse_args()
    for name in args.data:
        x = table(name)
        print(f"\n{name}, {len(x)} × {x.shape[1]}, {args.masks} masks\n")
        print("| imputer | MSE | log p per hidden cell | coverage of 90 % | k̂ |")
        print("|---|---|---|---|---|")
        for method in args.methods:
            start, results = time.time(), []
            for seed in range(args.first, args.first + args.masks):
                results.append(METHODS[method](x, *hidden_at_random(x, seed), seed))
                if args.verbose:
                    print(method, seed, results[-1], flush=True)
            print(row(f"{method}, {time.time() - start:.0f} s", results), flush=True)


if __name__ == "__main__":
    main()
