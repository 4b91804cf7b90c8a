"""A state-space model of sequences: a VAE whose codes form a Markov chain."""

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae.checks import check_event_shape, whole_number
from pyrovae.contract import validated
from pyrovae.handlers import RandomStream, evaluation
from pyrovae.programs.experts import loc_and_scale
from pyrovae.runtime.ambient import exclusive
from pyrovae.vae import fill, observed_only, register, visible


class DeepMarkovModel(nn.Module):
    """Deep Markov model of sequences x = (x_0 … x_{T−1}), with a smoothing guide.

        p(x, z) = p(z_0) Π_t p(z_t|z_{t−1}) Π_t p(x_t|z_t)
        q(z|x)  = Π_t q(z_t|z_{t−1}, h_t),    h_t = RNN(x_{T−1} … x_t), and z_{−1} = 0

    x is (N, T, *event). In sequences of unequal length, and at missing times, mask hides all of
    x_t; q is then p(z_t|z_{t−1}), so the time costs nothing.

    Args:
        prior: `prior()` → p(z_0), event_shape (D,).
        transition: `transition(z_{t−1})` → p(z_t|z_{t−1}).
        decoder: `decoder(z_t)` → p(x_t|z_t).
        rnn: a recurrent network with batch_first, such as `nn.GRU(features, H, batch_first=True)`,
            from the flattened x_t; it runs backward in time.
        combiner: `combiner([z_{t−1}, h_t])` → q(z_t|z_{t−1}, h_t), a diagonal normal; its input is
            concatenated, of width D + H.
        latent_dim: D.

    Raises:
        ConfigError: at run time, with a mask, prior, transition or combiner is not a diagonal
            normal.

    References:
        Structured Inference Networks for Nonlinear State Space Models, Krishnan, Shalit & Sontag,
        2017, https://arxiv.org/abs/1609.09869

    Example:
        >>> import pyrovae as pv
        >>> from torch.nn import Sequential
        >>> mlp, q, p = pv.networks.mlp, pv.guides.DiagonalNormal(2), pv.likelihoods.Bernoulli(6)
        >>> program = DeepMarkovModel(
        ...     pv.priors.StandardNormal(2),
        ...     Sequential(mlp(2, q.num_features), q),
        ...     Sequential(mlp(2, p.num_features), p),
        ...     nn.GRU(6, 8, batch_first=True),
        ...     Sequential(mlp(2 + 8, q.num_features), q),
        ...     latent_dim=2,
        ... )
        >>> x = torch.ones(5, 4, 6)
        >>> list(pv.elbo_terms(program, x).latents)
        ['z_0', 'z_1', 'z_2', 'z_3']
        >>> program.forecast(x, steps=3, num_samples=10).shape
        torch.Size([10, 5, 3, 6])
    """

    def __init__(
        self,
        prior: nn.Module,
        transition: nn.Module,
        decoder: nn.Module,
        rnn: nn.Module,
        combiner: nn.Module,
        *,
        latent_dim: int,
    ):
        super().__init__()
        self.prior, self.transition, self.decoder = prior, transition, decoder
        self.rnn, self.combiner = rnn, combiner
        self.latent_dim = whole_number(latent_dim, "latent_dim", 1)

    def model(self, x: Tensor, y: Tensor | None = None, mask: Tensor | None = None) -> None:
        """Run p(x, z): plate "data", sites "z_0" … "z_{T−1}" and "x"; y is not used.

        Args:
            x: (B, T, *event).
            y: not used.
            mask: of x's shape, true where x is observed.
        """
        register(self)
        with pyro.plate("data", len(x), dim=-1):
            states = [pyro.sample("z_0", self.prior())]
            for t in range(1, x.shape[1]):
                states.append(pyro.sample(f"z_{t}", self.transition(states[-1])))
            p_x = self.emission(states, len(x))
            check_event_shape(x, p_x.event_shape)
            pyro.sample("x", observed_only(p_x, mask), obs=fill(x, mask, p_x.support))

    def guide(self, x: Tensor, y: Tensor | None = None, mask: Tensor | None = None) -> None:
        """Run q(z|x), from the first time to the last. Arguments as for `model`."""
        register(self)
        parts = (part.flatten(2).flip(1) for part in visible(x, mask, self.rnn))
        backward = self.rnn(*parts)[0].flip(1)  # (B, T, H)
        seen = None if mask is None else mask.flatten(2).any(-1)  # (B, T)
        z, p_z = x.new_zeros(len(x), self.latent_dim), self.prior()
        with pyro.plate("data", len(x), dim=-1):
            for t in range(x.shape[1]):
                h = backward[:, t].expand(*z.shape[:-1], -1)
                q_z = self.combiner(torch.cat([z, h], -1))
                if seen is not None:
                    q_z = _where(seen[:, t], q_z, p_z)
                z = pyro.sample(f"z_{t}", q_z)
                p_z = self.transition(z)

    def emission(self, states: list[Tensor], num_data: int) -> dist.Distribution:
        """Return p(x|z_0 … z_{T−1}), event_shape (T, *event)."""
        states = [z.expand(*z.shape[:-2], num_data, -1) for z in states]
        return self.decoder(torch.stack(torch.broadcast_tensors(*states), -2)).to_event(1)

    @exclusive
    def forecast(
        self,
        x: Any,
        mask: Any = None,
        *,
        steps: int,
        num_samples: int = 100,
        seed: int | None = 0,
    ) -> Tensor:
        """Draw x_T … x_{T+h−1} given x_0 … x_{T−1}: (S, N, h, *event).

        The spread over the S draws is that of the forecast: of the state at T − 1 under q, of the
        transitions, and of the observation.

        Args:
            x: (N, T, *event).
            mask: of x's shape, true where x is observed.
            steps: h, the number of times after the last.
            num_samples: S.
            seed: random seed; None uses a fresh one.

        Returns:
            Draws, in the units of x.

        Raises:
            DataError: x does not fit the program.
            ConfigError: steps or num_samples is not a whole number ≥ 1.
        """
        steps = whole_number(steps, "steps", 1)
        num_samples = whole_number(num_samples, "num_samples", 1)
        batch = validated(self, x, None, mask).whole()
        with RandomStream(seed), evaluation(self), pyro.plate("particles", num_samples, dim=-2):
            with pyro.poutine.trace() as tracer:
                self.guide(*batch)
        z = tracer.trace.nodes[f"z_{batch.x.shape[1] - 1}"]["value"]  # (S, N, D)
        with RandomStream(None if seed is None else seed + 1), evaluation(self):
            drawn = []
            for _ in range(steps):
                z = self.transition(z).sample()
                drawn.append(self.decoder(z).sample())
        return torch.stack(drawn, 2)


def _where(
    is_first: Tensor, first: dist.Distribution, second: dist.Distribution
) -> dist.Distribution:
    """Return the normal of each datum: the first where `is_first` (B,), else the second."""
    why = "where x_t is missing, q is p(z_t|z_{t−1})"
    pairs = zip(
        loc_and_scale(first, "the combiner", why),
        loc_and_scale(second, "p(z_t|z_{t−1})", why),
        strict=True,
    )
    loc, scale = (torch.where(is_first[..., None], a, b) for a, b in pairs)
    return dist.Normal(loc, scale).to_event(1)
