"""How often do the 95 % intervals of `log_evidence` contain log p(x)?

    python tests/benchmarks/interval_coverage.py            # all models and methods
    python tests/benchmarks/interval_coverage.py --quick    # a tenth of the repetitions

Four models whose log p(x) is exact (closed form or quadrature), each after 0, 30 and 300 epochs of
training, 50 data. A cell: share of data with an interval, and its coverage, over data and seeds.
Beside them the coverage of log p̂ ± 1.96 standard errors by draws from the guide alone, among data
whose k̂ is below its threshold.
"""

import argparse
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.distributions as dist
from torch import nn

import pyrovae as pv
from pyrovae.core.pareto import pareto_k_threshold
from pyrovae.evidence import AIS, IWAE, Importance, Refined

METHODS = {
    "importance, K = 100": (Importance(100), 40),
    "importance, K = 1000": (Importance(1000), 20),
    "refined, K = 100": (Refined(100), 20),
    "refined, K = 1000": (Refined(1000), 10),
    "ais, 70 temperatures": (AIS(num_temperatures=70), 10),
}
ALONE = "guide alone, k̂ good"


def linear(latent_dim: int, likelihood: nn.Module, weight: torch.Tensor) -> pv.VAE:
    """Return a VAE with this linear decoder and an untrained encoder with one hidden layer."""
    torch.manual_seed(0)
    guide = pv.guides.DiagonalNormal(latent_dim)
    network = pv.networks.mlp(weight.shape[1], guide.num_features, hidden=(16,))
    decoder = nn.Linear(latent_dim, likelihood.num_features)
    decoder.weight.data[: weight.shape[1]] = weight.T
    prior = pv.priors.StandardNormal(latent_dim)
    return pv.VAE(prior, nn.Sequential(network, guide), nn.Sequential(decoder, likelihood))


def models() -> dict[str, tuple[pv.VAE, torch.Tensor, torch.Tensor | None]]:
    """Return name → model, x and mask."""
    torch.manual_seed(0)
    bits = (torch.rand(50, 12) > 0.5).float()
    three, two = torch.randn(3, 6), torch.randn(2, 8)
    normal = torch.randn(50, 3) @ three + 0.5 * torch.randn(50, 6)
    factors = torch.randn(50, 2) @ two + (torch.rand(8) + 0.3) * torch.randn(50, 8)
    counts = torch.poisson((torch.randn(50, 2) @ (0.7 * two) + 1).exp())
    of_normal = linear(3, pv.likelihoods.Normal(6, scale=0.5), three)
    return {
        "Bernoulli, 2 latents": (pv.build((12,), latent_dim=2, hidden=(16,), seed=0), bits, None),
        "linear-Gaussian, 3": (of_normal, normal, None),
        "factor analysis, 2, masked": (
            linear(2, pv.likelihoods.Normal(8), two),
            factors,
            torch.rand(50, 8) > 0.3,
        ),
        "Poisson-lognormal, 2": (linear(2, pv.likelihoods.Poisson(8), 0.7 * two), counts, None),
    }


def exact(vae: pv.VAE, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Return log p(x): by quadrature, or of the linear-Gaussian model in closed form."""
    if vae.prior().event_shape[0] <= 2:
        return pv.log_evidence(vae, x, mask=mask, method="grid").log_px
    with torch.no_grad():
        weight, bias = vae.decoder[0].weight.double(), vae.decoder[0].bias.double()
        scale = vae.decoder(torch.zeros(1, weight.shape[1])).stddev[0].double()
    return dist.MultivariateNormal(bias, weight @ weight.T + scale.diag() ** 2).log_prob(x.double())


class Cell(NamedTuple):
    """Coverage of a method on a model: share of data with an interval, and of those that hold."""

    epochs: int
    model: str
    method: str
    share: float
    coverage: float
    num_intervals: int


def cells(shorter: int = 1) -> Iterator[Cell]:
    """Yield the table row by row, with this fraction of the repetitions."""
    for epochs in (0, 30, 300):
        for name, (vae, x, mask) in models().items():
            if epochs:
                pv.fit(vae, x, mask=mask, epochs=epochs, progress=False)
            given = (vae, x, mask, exact(vae, x, mask))
            for label, (method, repetitions) in METHODS.items():
                seeds = range(max(1, repetitions // shorter))
                covered = torch.cat([_covered(*given, method, seed) for seed in seeds])
                held = covered[covered.isfinite()]
                share = len(held) / len(covered)
                yield Cell(epochs, name, label, share, held.mean().item(), len(held))
            for count in (100, 1000):
                held = torch.cat([_naive(*given, count, seed) for seed in range(5)])
                share = len(held) / (5 * len(x))
                label = f"{ALONE}, K = {count}"
                yield Cell(epochs, name, label, share, held.mean().item(), len(held))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    torch.set_num_threads(1)
    for cell in cells(10 if parser.parse_args().quick else 1):
        print(
            f"{cell.epochs:3} epochs  {cell.model:27} {cell.method:31} {100 * cell.share:5.1f} %  "
            f"covers {100 * cell.coverage:5.1f} %  ({cell.num_intervals})",
            flush=True,
        )


def _covered(vae, x, mask, truth, method, seed) -> torch.Tensor:
    """Return 1 where the interval contains log p(x), 0 where not, NaN without an interval."""
    found = pv.log_evidence(vae, x, mask=mask, method=method, seed=seed)
    contains = ((found.lower <= truth) & (truth <= found.upper)).double()
    return contains.where(found.upper.isfinite(), torch.nan)


def _naive(vae, x, mask, truth, count, seed) -> torch.Tensor:
    found = pv.log_evidence(vae, x, mask=mask, method=IWAE(count), seed=seed)
    is_good = found.pareto_k < pareto_k_threshold(count)
    return ((found.log_px - truth).abs() < 1.96 * found.std_error)[is_good].double()


if __name__ == "__main__":
    main()
