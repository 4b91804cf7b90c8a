"""Programs of many kinds, each a linear-Gaussian model with x ~ N(0, C) given its globals.

A row has a program, the data's event shape, and C, the covariance of one datum's numbers; None
where a global latent makes the data dependent. `tests/test_any_program.py` runs every method on
every row.
"""

from collections.abc import Callable
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoDelta, AutoMultivariateNormal, AutoNormal
from torch import Tensor, nn

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


class Chain(nn.Module):
    """A state-space model with a site for each time, z_0 … z_{T-1}."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(NUM_STEPS, NUM_STEPS)

    def model(self, x, y=None, mask=None):
        pyro.module("program", self)
        with pyro.plate("data", len(x)):
            z = x.new_zeros(())
            states = []
            for t in range(NUM_STEPS):
                z = pyro.sample(f"z_{t}", dist.Normal(FLOW * z, 1.0))
                states.append(z)
            mean = torch.stack(torch.broadcast_tensors(*states), -1)
            pyro.sample("x", dist.Normal(mean, NOISE).to_event(1), obs=x)

    def guide(self, x, y=None, mask=None):
        pyro.module("program", self)
        loc = 0.6 * x + 0.1 * self.encoder(x)
        with pyro.plate("data", len(x)):
            for t in range(NUM_STEPS):
                pyro.sample(f"z_{t}", dist.Normal(loc[:, t], 0.6))


class Row(NamedTuple):
    """A program of data (N, D), and the covariance (D, D) of a datum, None with globals."""

    make: Callable[[], nn.Module]
    covariance: Tensor | None = None


def _sum_of(loadings: Tensor) -> Tensor:
    return loadings.double() @ loadings.double().T + NOISE**2 * torch.eye(3, dtype=torch.float64)


_CHAIN = torch.tensor([[FLOW ** max(i - j, 0) * (i >= j) for j in range(3)] for i in range(3)])

PROGRAMS = {
    "global in a plate": Row(Plated),
    "AutoNormal": Row(lambda: Factors(AutoNormal)),
    "AutoMultivariateNormal": Row(lambda: Factors(AutoMultivariateNormal)),
    "AutoDelta": Row(lambda: Factors(AutoDelta)),
    "counts dimensions from the left": Row(
        Indexed, _sum_of(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]))
    ),
    "a guide that counts from the left": Row(
        IndexedGuide, _sum_of(torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.5, 0.0, 1.0]]))
    ),
    "nested plate": Row(Nested, _sum_of(torch.eye(3))),
    "nested plate, at once": Row(Panel, _sum_of(torch.eye(3))),
    "chain of sites": Row(Chain, _sum_of(_CHAIN)),
}


def data(num_data: int = 20) -> Tensor:
    """Return the data of every program, (N, 3)."""
    return torch.randn(num_data, 3, generator=torch.Generator().manual_seed(1)).to(
        torch.get_default_dtype()
    )
