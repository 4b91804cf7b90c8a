"""Effective draws per density evaluation: `posterior.hmc`, a random walk, and Pyro's NUTS.

    OMP_NUM_THREADS=1 python tests/benchmarks/hmc.py

An evaluation is one of log p(x, z) and its gradient, for one chain of one datum; the random walk
needs no gradient, which costs about as much again. ESS is the least over latents, of location and
spread (`least_ess`), after warm-up; all start from draws of the guide. The random walk is given
the best of five isotropic step sizes, and NUTS the better of a diagonal and a full mass matrix.
`linear-D`: a linear-Gaussian VAE with D correlated latents. `digits`: two latents, Bernoulli.
`kinked`: 20 noisy pixels of a digit under a ReLU decoder, whose gradients jump.
"""

import argparse
import sys
import warnings
from functools import partial
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import MCMC, NUTS
from torch import Tensor, nn

import pyrovae as pv
from pyrovae.core.draws import diagnosing
from pyrovae.core.joint import Unconstrained, joint_of
from pyrovae.data import Batch
from pyrovae.posterior.chains import least_ess

sys.path.insert(0, str(Path(__file__).parents[1]))
from oracles import LinearGaussian, wide_guide

NUM_CHAINS, THIN = 4, 5
MAX_EVALUATIONS = 20_000  # of NUTS in one transition; it is then given up, as −1
STEPS = (0.1, 0.3, 0.6, 1.2, 2.4)  # of the random walk, over √D


def linear(latent_dim: int) -> tuple[nn.Module, Tensor]:
    truth = LinearGaussian(latent_dim + (3 if latent_dim == 2 else 2), latent_dim)
    return truth.vae(wide_guide(truth)), truth.sample(2)


def digits() -> tuple[nn.Module, Tensor]:
    data = pv.datasets.digits()
    vae = pv.build((8, 8), latent_dim=2, hidden=(50,), seed=0)
    x = pv.datasets.binarize(data.train)
    pv.fit(vae, x, epochs=30, batch_size=100, learning_rate=3e-3, progress=False)
    return vae.double(), pv.datasets.binarize(data.test)[:2].double()


class Pixels(nn.Module):
    """Noisy pixels of what a trained VAE decodes; the guide is its prior."""

    def __init__(self, vae: pv.VAE, pixels: Tensor):
        super().__init__()
        self.vae, self.pixels = vae.requires_grad_(False), pixels

    def model(self, x, y=None, mask=None):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", self.vae.prior())
            mean = self.vae.decode(z).mean.flatten(-2)[..., self.pixels]
            pyro.sample("x", dist.Normal(mean, 0.1).to_event(1), obs=x)

    def guide(self, x, y=None, mask=None):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", self.vae.prior())


def kinked() -> tuple[nn.Module, Tensor]:
    data = pv.datasets.digits()
    vae = pv.build((8, 8), latent_dim=2, likelihood="Normal", seed=0)
    pv.fit(vae, data.train, epochs=30, seed=0, progress=False)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randperm(64, generator=generator)[:20]
    x = data.test[:2].flatten(1)[:, pixels]
    return Pixels(vae.double(), pixels), (x + 0.1 * torch.randn(2, 20)).double()


TARGETS = {
    "linear-2": partial(linear, 2),
    "linear-10": partial(linear, 10),
    "linear-30": partial(linear, 30),
    "digits": digits,
    "kinked": kinked,
}


def of_hmc(program: nn.Module, x: Tensor) -> Tensor:
    found = pv.posterior.hmc(program, x, num_samples=500, num_warmup=300, num_chains=NUM_CHAINS)
    return found.ess / found.stats.n_steps.sum((0, 1))


def of_random_walk(density: Unconstrained, num: int = 500) -> Tensor:
    """Return ESS per evaluation, (N,), of the best step size."""
    found = []
    for step in STEPS:
        u, kept = density.draw_guide(NUM_CHAINS), []
        log_p = sum(density.terms(u))
        for t in range(2 * num * THIN):
            new = u + step / u.shape[-1] ** 0.5 * torch.randn_like(u)
            log_new = sum(density.terms(new))
            is_accepted = torch.rand_like(log_p).log() < log_new - log_p
            u = torch.where(is_accepted[..., None], new, u)
            log_p = torch.where(is_accepted, log_new, log_p)
            if t >= num * THIN and t % THIN == 0:
                kept.append(u)
        found.append(least_ess(torch.stack(kept, 1)) / (NUM_CHAINS * num * THIN))
    return torch.stack(found).nan_to_num(nan=0.0).amax(0)


def of_nuts(density: Unconstrained, num: int, *, full_mass: bool) -> float:
    """Return ESS per evaluation of a single datum, of two chains."""
    count, since, kept, num_evaluations = [0], [0], [], 0

    def potential(values: dict[str, Tensor]) -> Tensor:
        count[0] += 1
        since[0] += 1
        if since[0] > MAX_EVALUATIONS:
            raise TimeoutError
        return -sum(density.terms(values["u"][None, None])).sum()

    def hook(kernel: NUTS, values: dict, stage: str, i: int) -> None:
        since[0] = 0
        if stage.lower().startswith("warm"):
            count[0] = 0

    for seed in range(2):
        pyro.set_rng_seed(seed)
        start = {"u": density.draw_guide(1)[0, 0]}
        kernel = NUTS(potential_fn=potential, full_mass=full_mass)
        options = {"warmup_steps": num, "initial_params": start, "disable_progbar": True}
        chain = MCMC(kernel, num_samples=num, hook_fn=hook, **options)
        try:
            with torch.enable_grad():
                chain.run()
        except TimeoutError:
            return float("nan")
        kept.append(chain.get_samples()["u"])
        num_evaluations += count[0]
    return float(least_ess(torch.stack(kept)[:, :, None])[0]) / num_evaluations


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("targets", nargs="*", default=list(TARGETS))
    parser.add_argument("--nuts", type=int, default=200, help="draws and warm-up of NUTS")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    print("| | `posterior.hmc` | random walk | NUTS |\n|---|---|---|---|")
    for name in arguments.targets:
        program, x = TARGETS[name]()
        rows = [of_hmc(program, x)]
        with diagnosing(program, 0):
            rows.append(of_random_walk(Unconstrained(joint_of(program, Batch(x)), method=name)))
            one = [Unconstrained(joint_of(program, Batch(row[None])), method=name) for row in x]
            masses = [
                [of_nuts(d, arguments.nuts, full_mass=full) for d in one] for full in (False, True)
            ]
            rows.append(torch.tensor(masses).nan_to_num(nan=-1.0).amax(0))
        cells = (" and ".join(f"{value:.4f}" for value in row.tolist()) for row in rows)
        print(f"| {name} |", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    main()
