"""Half of the cells of a table hidden: does a VAE know them better than other imputers do?

    python tests/benchmarks/missing_data.py breast_cancer wine diabetes --masks 10

Columns are standardized, and each cell is hidden with probability 1/2. A row of the table is the
mean over masks ± its standard error:

    MSE         (E[x | x_observed] − x)², mean over hidden cells
    log p       log p(x_hidden | x_observed) / number of hidden cells, nats, mean over rows
    coverage    of hidden cells by their 90 % intervals, from draws
    k̂           share of rows above the threshold of `diagnostics.pareto_k_threshold`

The VAE (MIWAE, Mattei & Frellsen 2019) is trained on 9 of 10 observed cells for up to EPOCHS;
the number of epochs with the largest log p of the tenth cells is then used on all observed cells.
The shrinkage of the multivariate normal, fitted by EM, is chosen on the same cells. Hidden cells
are used for the table only.
"""

import argparse
import math
import time
import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from sklearn.datasets import load_breast_cancer, load_diabetes, load_wine
from sklearn.ensemble import ExtraTreesRegressor
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer, KNNImputer, SimpleImputer
from torch import Tensor, nn

import pyrovae as pv
from pyrovae.networks import JoinMask, SeesMask, mlp

DATA = {"breast_cancer": load_breast_cancer, "wine": load_wine, "diabetes": load_diabetes}
LATENT_DIM, HIDDEN, K = 10, (128, 128), 20
EPOCHS, EVERY = 400, 25
WEIGHT_DECAY = 0.3
SHRINKAGES = (0.0, 0.01, 0.03, 0.1, 0.3, 0.6)
KINDS = {  # per column: the tails of wine and breast cancer are heavy
    "StudentT": lambda d: pv.likelihoods.StudentT(
        d, torch.full((d,), 4.0), torch.full((d,), 0.5), learn_df=True
    ),
    "Normal": lambda d: pv.likelihoods.Normal(d, torch.full((d,), 0.5), learn_scale=True),
}


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


def model(d: int, seed: int, args: argparse.Namespace) -> pv.VAE:
    """A VAE with the networks of MIWAE."""
    torch.manual_seed(seed)
    q, p = pv.guides.DiagonalNormal(args.latent_dim), KINDS[args.likelihood](d)
    how = {"activation": nn.Tanh}
    width = (2, d) if args.sees_mask else d
    encoder = nn.Sequential(mlp(width, q.num_features, hidden=args.hidden, **how), q)
    encoder = SeesMask(JoinMask(encoder, d)) if args.sees_mask else encoder
    decoder = nn.Sequential(
        mlp(args.latent_dim, p.num_features, hidden=args.decoder_hidden, **how), p
    )
    return pv.VAE(pv.priors.StandardNormal(args.latent_dim), encoder, decoder)


def conditional_log_p(vae: pv.VAE, x: Tensor, mask: Tensor, more: Tensor, num: int) -> Tensor:
    """log p(x_more | x_mask) = log p(x_{mask ∪ more}) − log p(x_mask), (N,)."""
    both = [pv.log_evidence(vae, x, mask=m, num_samples=num) for m in (mask | more, mask)]
    return both[0].log_px - both[1].log_px


def fit(vae: pv.VAE, x: Tensor, mask: Tensor, epochs: int, args: argparse.Namespace, watch=()):
    """Train by IWAE on the cells of the mask."""

    def adam(parameters, lr):
        return torch.optim.AdamW(parameters, lr=lr, weight_decay=args.weight_decay)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a collapsed dimension
        pv.fit(
            vae,
            x,
            mask=mask,
            objective=pv.objectives.IWAE(K),
            epochs=epochs,
            batch_size=64,
            optimizer=adam,
            callbacks=watch,
            seed=args.seed,
            progress=False,
        )


def vae(x: Tensor, observed: Tensor, train: Tensor, args: argparse.Namespace) -> Result:
    """Choose the epochs on observed cells, fit, impute."""
    clean, found = torch.where(observed, x, 0.0).float(), {}

    def watch(program: nn.Module, epoch) -> None:
        if epoch.epoch % EVERY == 0:
            gain = conditional_log_p(program, clean, train, observed & ~train, 200)
            found[epoch.epoch] = per_cell(gain, observed & ~train)

    fit(model(x.shape[-1], args.seed, args), clean, train, args.epochs, args, [watch])
    epochs = max(found, key=found.get)
    if args.verbose:
        print({n: round(v, 3) for n, v in found.items()})
    chosen = model(x.shape[-1], args.seed, args)
    fit(chosen, clean, observed, epochs, args)
    imputed = pv.impute(chosen, clean, mask=observed, num_samples=400, num_proposals=10_000)
    low, high = imputed.draws.double().quantile(torch.tensor([0.05, 0.95]).double(), 0)
    covered = ((low <= x) & (x <= high))[~observed]
    log_p = conditional_log_p(chosen, x.float(), observed, ~observed, 5000)
    return Result(
        mse(imputed.mean, x, observed),
        per_cell(log_p, ~observed),
        covered.double().mean().item(),
        (imputed.pareto_k > pv.diagnostics.pareto_k_threshold(10_000)).double().mean().item(),
    )


def of_sklearn(imputer: Callable) -> Callable:
    """An imputer of scikit-learn."""

    def fill(x: Tensor, observed: Tensor, train: Tensor, args: argparse.Namespace) -> Result:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of convergence
            filled = imputer().fit_transform(torch.where(observed, x, torch.nan).numpy())
        return Result(mse(torch.tensor(filled), x, observed))

    return fill


def forest() -> IterativeImputer:
    """A MissForest-like imputer: regressions by trees in turn."""
    trees = ExtraTreesRegressor(n_estimators=50, min_samples_leaf=2, random_state=0)
    return IterativeImputer(trees, max_iter=5, random_state=0)


METHODS = {
    "VAE": vae,
    "multivariate normal, EM": lambda x, observed, train, args: multivariate_normal(
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
    parser.add_argument("--latent-dim", type=int, default=LATENT_DIM)
    parser.add_argument("--hidden", type=int, nargs="*", default=HIDDEN)
    parser.add_argument("--decoder-hidden", type=int, nargs="*", default=HIDDEN)
    parser.add_argument("--likelihood", choices=KINDS, default="StudentT")
    parser.add_argument("--weight-decay", type=float, default=WEIGHT_DECAY)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--sees-mask", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--verbose", action="store_true")
    args = parser.parse_args()
    for name in args.data:
        x = table(name)
        print(f"\n{name}, {len(x)} × {x.shape[1]}, {args.masks} masks\n")
        print("| imputer | MSE | log p per hidden cell | coverage of 90 % | k̂ |\n|---|---|---|---|---|")
        for method in args.methods:
            start, results = time.time(), []
            for args.seed in range(args.first, args.first + args.masks):
                results.append(METHODS[method](x, *hidden_at_random(x, args.seed), args))
            print(row(f"{method}, {time.time() - start:.0f} s", results), flush=True)


if __name__ == "__main__":
    main()
