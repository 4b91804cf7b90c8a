"""Programs of many kinds, each a linear-Gaussian model: x ~ N(0, C) or a mixture, given globals.

A row has a program and C, the covariance of one datum's three numbers; None where a global latent
makes the data dependent. `tests/test_any_program.py` runs every method on every row.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.contrib.easyguide import EasyGuide
from pyro.infer import ELBO, Trace_ELBO, TraceEnum_ELBO
from pyro.infer.autoguide import AutoDelta, AutoMultivariateNormal, AutoNormal
from torch import Tensor, nn

from pyrovae import priors, programs

MOVES = torch.tensor([[0.9, 0.1], [0.2, 0.8]])  # of the states of `Switching`, from the first
WEIGHTS = torch.tensor([0.2, 0.5, 0.3])
CENTERS = torch.tensor([[2.0, 0.0, 0.0], [-1.0, 1.0, 0.0], [0.0, -1.0, 2.0]])
LOADINGS = torch.tensor([[1.0, 0.0], [0.5, 1.0], [0.0, -1.0]])
NUM_STEPS, FLOW, NOISE = 3, 0.8, 0.6  # a chain: z_t = FLOW z_{t-1} + N(0, 1), x_t = z_t + noise


class Plated(nn.Module):
    """A global w in its own plate, used as a vector; x is centered at z + w."""

    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.tensor([0.1, -0.2, 0.3]))
        self.encoder = nn.Linear(3, 3)

    def model(self, x, y=None, mask=None):
        pyro.module("program", self)
        with pyro.plate("features", 3):
            w = pyro.sample("w", dist.Normal(self.loc.new_zeros(()), 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(self.loc), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z + w, NOISE).to_event(1), obs=x)

    def guide(self, x, y=None, mask=None):
        pyro.module("program", self)
        with pyro.plate("features", 3):
            pyro.sample("w", dist.Normal(self.loc, 0.4))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.encoder(x), 0.7).to_event(1))


class Factors(nn.Module):
    """Factor analysis with a global loading matrix, whose guide is Pyro's own."""

    def __init__(self, autoguide: Callable):
        super().__init__()
        self.encoder = nn.Linear(3, 2)
        self.auto = autoguide(poutine.block(self.model, expose=["w"]))

    def model(self, x, y=None, mask=None):
        pyro.module("program", self)
        w = pyro.sample("w", dist.Normal(x.new_zeros(2, 3), 1.0).to_event(2))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            mean = (z[..., None, :] @ w).squeeze(-2)
            pyro.sample("x", dist.Normal(mean, NOISE).to_event(1), obs=x)

    def guide(self, x, y=None, mask=None):
        pyro.module("program", self)
        self.auto(x)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.encoder(x), 0.7).to_event(1))


class Grouped(nn.Module):
    """x = z + noise; z is a function of the auxiliary site "group" of an `EasyGuide`."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(3, 3)
        self.easy = _Easy(self.model, self.encoder)

    def model(self, x, y=None, mask=None):
        pyro.module("program", self)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, NOISE).to_event(1), obs=x)

    def guide(self, x, y=None, mask=None):
        pyro.module("program", self)
        self.easy(x, y, mask)


class _Easy(EasyGuide):
    def __init__(self, model: Callable, encoder: nn.Module):
        super().__init__(model)
        self.encoder = encoder

    def guide(self, x, y=None, mask=None):
        with self.plate("data", len(x), dim=-1):
            loc = 0.7 * x + 0.1 * self.encoder(x)
            self.group(match="z").sample("group", dist.Normal(loc, 0.6).to_event(1))


class Indexed(nn.Module):
    """Two latents in one site, read as z[:, 0]: right for one draw at a time only."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(3, 2)

    def model(self, x, y=None, mask=None):
        pyro.module("program", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            mean = torch.stack([z[:, 0], z[:, 1], z[:, 0] + z[:, 1]], -1)
            pyro.sample("x", dist.Normal(mean, NOISE).to_event(1), obs=x)

    def guide(self, x, y=None, mask=None):
        pyro.module("program", self)
        with pyro.plate("data", len(x)):
            loc = 0.5 * x[:, :2] + 0.1 * self.encoder(x)
            pyro.sample("z", dist.Normal(loc, 0.7).to_event(1))


class IndexedGuide(Indexed):
    """Two sites; the guide of the second reads the first as z[:, 0], right for one draw only."""

    def model(self, x, y=None, mask=None):
        pyro.module("program", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            u = pyro.sample("u", dist.Normal(0.5 * z[..., 0], 1.0))
            mean = torch.cat([z, u[..., None]], -1)
            pyro.sample("x", dist.Normal(mean, NOISE).to_event(1), obs=x)

    def guide(self, x, y=None, mask=None):
        pyro.module("program", self)
        with pyro.plate("data", len(x)):
            loc = 0.7 * x[:, :2] + 0.1 * self.encoder(x)
            z = pyro.sample("z", dist.Normal(loc, 0.6).to_event(1))
            pyro.sample("u", dist.Normal(0.7 * x[:, 2] + 0.1 * z[:, 0], 0.6))


class Nested(nn.Module):
    """A plate "time" inside a datum, left of the plate "data": x (B, T), one z for each."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.6))

    def model(self, x, y=None, mask=None):
        pyro.module("program", self)
        rows = pyro.plate("data", len(x), dim=-1)
        with rows, pyro.plate("time", NUM_STEPS, dim=-2):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
        with rows:
            mean = z.transpose(-1, -2)  # (…, B, T)
            pyro.sample("x", dist.Normal(mean, NOISE).to_event(1), obs=x)

    def guide(self, x, y=None, mask=None):
        pyro.module("program", self)
        with pyro.plate("data", len(x), dim=-1), pyro.plate("time", NUM_STEPS, dim=-2):
            pyro.sample("z", dist.Normal(self.weight * x.transpose(-1, -2), 0.6))


class Panel(Nested):
    """The same model for any number of draws at once, (S, T, B)."""

    def model(self, x, y=None, mask=None):
        pyro.module("program", self)
        rows = pyro.plate("data", len(x), dim=-1)
        with rows, pyro.plate("time", NUM_STEPS, dim=-2):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
        with rows:
            mean = z.transpose(-1, -2).unsqueeze(-3)  # (S, 1, B, T)
            pyro.sample("x", dist.Normal(mean, NOISE).to_event(1), obs=x)


class Switching(nn.Module):
    """A hidden Markov chain of two states, summed out, switches the sign: x_t = ±z + noise."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(3, 1)

    def model(self, x, y=None, mask=None):
        pyro.module("program", self)
        like = x["x_0"]
        with pyro.plate("data", len(like)):
            z = pyro.sample("z", dist.Normal(like.new_zeros(()), 1.0))
            state = 0
            for t in pyro.markov(range(NUM_STEPS)):
                state = pyro.sample(
                    f"s_{t}",
                    dist.Categorical(MOVES.to(like)[state]),
                    infer={"enumerate": "parallel"},
                )
                sign = 1.0 - 2.0 * state.to(like.dtype)
                pyro.sample(f"x_{t}", dist.Normal(sign * z, NOISE), obs=x[f"x_{t}"])

    def guide(self, x, y=None, mask=None):
        pyro.module("program", self)
        rows = torch.stack(list(x.values()), -1)
        with pyro.plate("data", len(rows)):
            pyro.sample("z", dist.Normal(0.1 * self.encoder(rows).squeeze(-1), 1.0))


class Classified(nn.Module):
    """z ~ N(CENTERS[c], 1), x = z + noise, with a class c that the guide draws as well."""

    def __init__(self):
        super().__init__()
        self.classifier = nn.Linear(3, 3)

    def model(self, x, y=None, mask=None):
        pyro.module("program", self)
        with pyro.plate("data", len(x), dim=-1):
            c = pyro.sample("c", dist.Categorical(WEIGHTS.to(x)))
            z = pyro.sample("z", dist.Normal(CENTERS.to(x)[c], 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, NOISE).to_event(1), obs=x)

    def guide(self, x, y=None, mask=None):
        pyro.module("program", self)
        with pyro.plate("data", len(x), dim=-1):
            c = pyro.sample("c", dist.Categorical(logits=0.1 * self.classifier(x)))
            loc = (x + NOISE**2 * CENTERS.to(x)[c]) / (1 + NOISE**2)
            pyro.sample("z", dist.Normal(loc, 0.6).to_event(1))


class Observations(nn.Module):
    """x (B, T) observed in a plate "time", left of the plate "data"; one z for all times."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.3))

    def model(self, x, y=None, mask=None):
        pyro.module("program", self)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            with pyro.plate("time", NUM_STEPS, dim=-2):
                pyro.sample("x", dist.Normal(z.unsqueeze(-2), NOISE), obs=x.T)

    def guide(self, x, y=None, mask=None):
        pyro.module("program", self)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(self.weight * x.sum(-1), 0.5))


class AtOnce(Observations):
    """The same model for any number of draws at once, (S, T, B)."""

    def model(self, x, y=None, mask=None):
        pyro.module("program", self)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            with pyro.plate("time", NUM_STEPS, dim=-2):
                pyro.sample("x", dist.Normal(z, NOISE), obs=x.T)


class Affine(nn.Module):
    """A part that is normal around A v + b, of one argument v (…, F): layer, decoder or head.

    The noise is that of x by default.
    """

    def __init__(self, weight: Tensor, bias: float = 0.0, scale: float = NOISE):
        super().__init__()
        weight = weight.to(torch.get_default_dtype(), copy=True)
        self.weight, self.bias = (
            nn.Parameter(weight),
            nn.Parameter(torch.full((len(weight),), bias)),
        )
        self.scale = scale

    def forward(self, value: Tensor) -> dist.Distribution:
        return dist.Normal(value @ self.weight.T + self.bias, self.scale).to_event(1)


class Memoryless(nn.Module):
    """A recurrent network whose output is its input."""

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return x, None


def ladder() -> nn.Module:
    """z_0 = LOADINGS z_1 + N(0, 1), x = z_0 + noise."""
    return programs.LadderVAE(
        priors.StandardNormal(2),
        [Affine(LOADINGS, scale=1.0)],
        [nn.Identity(), nn.Identity()],
        [Affine(torch.eye(3), 0.1), Affine(0.3 * LOADINGS.T, scale=0.8)],
        Affine(torch.eye(3)),
    )


def mixture() -> nn.Module:
    """z ~ N(CENTERS[c], 1), x = z + noise; the class c is summed out."""
    components = programs.NormalOfClass(3, 3)
    components.loc.data = CENTERS.to(components.loc, copy=True)
    classes = priors.Fixed(dist.Categorical, probs=WEIGHTS.to(torch.get_default_dtype()))
    encoder = Affine(0.8 * torch.eye(3), 0.1, 0.7)
    return programs.MixtureVAE(classes, components, encoder, Affine(torch.eye(3)))


def multimodal(experts: nn.Module | None = None) -> nn.Module:
    """x = {"a": z + noise, "b": z_0 + z_1 + noise}, (B, 2) and (B, 1)."""
    return programs.MultimodalVAE(
        priors.StandardNormal(2),
        {"a": Affine(torch.eye(2)), "b": Affine(torch.full((2, 1), 0.5))},
        {"a": Affine(torch.eye(2)), "b": Affine(torch.ones(1, 2))},
        experts,
    )


def markov() -> nn.Module:
    """A chain, z_t = FLOW z_{t−1} + N(0, 1), x_t = z_t + noise; x is (B, 3, 1)."""
    return programs.DeepMarkovModel(
        priors.StandardNormal(1),
        Affine(torch.tensor([[FLOW]]), scale=1.0),
        Affine(torch.ones(1, 1)),
        Memoryless(),
        Affine(torch.tensor([[0.2, 0.7]]), scale=0.6),
        latent_dim=1,
    )


class Row(NamedTuple):
    """A program of data (N, 3).

    Attributes:
        make: its constructor.
        covariance: C, (3, 3), of the mixture components of a datum; None with globals.
        weights, centers: of the components, (K,) and (K, 3); one at 0 by default.
        as_data: the program's x from the (N, 3) numbers.
        signal: latents (S, N, D) → the (S, N, 3) means of the numbers.
        elbo: Pyro's objective for the program.
    """

    make: Callable[[], nn.Module]
    covariance: Tensor | None = None
    weights: Tensor = torch.ones(1)
    centers: Tensor = torch.zeros(1, 3)
    as_data: Callable[[Tensor], Any] = lambda x: x
    signal: Callable[[Tensor], Tensor] = lambda z: z
    elbo: Callable[[], ELBO] = Trace_ELBO

    def components(self, x: Tensor) -> Tensor:
        """log π_k + log N(x; m_k, C), (N, K)."""
        p_x = dist.MultivariateNormal(self.centers.to(x), self.covariance.to(x))
        return self.weights.to(x).log() + p_x.log_prob(x[:, None])

    def log_density(self, x: Tensor) -> Tensor:
        """log p(x), (N,)."""
        return self.components(x).logsumexp(-1)

    def posterior_signal(self, x: Tensor) -> Tensor:
        """E[x − noise | x] = Σ_k p(k|x) (m_k + (C − σ²I) C⁻¹ (x − m_k)), (N, 3)."""
        covariance, centers = self.covariance.to(x), self.centers.to(x)
        shrink = torch.linalg.solve(covariance, covariance - NOISE**2 * torch.eye(3).to(x))
        means = centers + (x[:, None] - centers) @ shrink
        return (self.components(x).softmax(-1)[..., None] * means).sum(1)


def _sum_of(loadings: Tensor) -> Tensor:
    return loadings.double() @ loadings.double().T + NOISE**2 * torch.eye(3, dtype=torch.float64)


def _with_sum(z: Tensor) -> Tensor:
    return torch.cat([z, z.sum(-1, keepdim=True)], -1)


_CHAIN = torch.tensor([[FLOW ** max(i - j, 0) * (i >= j) for j in range(3)] for i in range(3)])
_SUM = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
PROGRAMS = {
    "global in a plate": Row(Plated),
    "AutoNormal": Row(lambda: Factors(AutoNormal)),
    "AutoMultivariateNormal": Row(lambda: Factors(AutoMultivariateNormal)),
    "AutoDelta": Row(lambda: Factors(AutoDelta)),
    "EasyGuide": Row(Grouped, _sum_of(torch.eye(3))),
    "counts dimensions from the left": Row(Indexed, _sum_of(_SUM), signal=_with_sum),
    "a guide that counts from the left": Row(
        IndexedGuide, _sum_of(torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.5, 0.0, 1.0]]))
    ),
    "nested plate": Row(Nested, _sum_of(torch.eye(3))),
    "nested plate, at once": Row(Panel, _sum_of(torch.eye(3))),
    "data in a nested plate": Row(
        Observations, _sum_of(torch.ones(3, 1)), signal=lambda z: z.expand(*z.shape[:-1], 3)
    ),
    "data in a nested plate, at once": Row(
        AtOnce, _sum_of(torch.ones(3, 1)), signal=lambda z: z.expand(*z.shape[:-1], 3)
    ),
    "LadderVAE": Row(
        ladder, _sum_of(torch.cat([LOADINGS, torch.eye(3)], 1)), signal=lambda z: z[..., 2:]
    ),
    "MixtureVAE": Row(
        mixture,
        _sum_of(torch.eye(3)),
        WEIGHTS,
        CENTERS,
        elbo=lambda: TraceEnum_ELBO(max_plate_nesting=1),
    ),
    "a class of the guide": Row(
        Classified, _sum_of(torch.eye(3)), WEIGHTS, CENTERS, signal=lambda z: z[..., 1:]
    ),
    "MultimodalVAE": Row(
        multimodal,
        _sum_of(_SUM),
        as_data=lambda x: {"a": x[:, :2], "b": x[:, 2:]},
        signal=_with_sum,
    ),
    "DeepMarkovModel": Row(markov, _sum_of(_CHAIN), as_data=lambda x: x[..., None]),
}


def numbers(num_data: int = 20) -> Tensor:
    """Return the numbers of all programs, (N, 3)."""
    return torch.randn(num_data, 3, generator=torch.Generator().manual_seed(1)).to(
        torch.get_default_dtype()
    )


def data(name: str, num_data: int = 20) -> Any:
    """Return the data of a program."""
    return PROGRAMS[name].as_data(numbers(num_data))
