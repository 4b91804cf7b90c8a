"""A VAE of data that go missing depending on their own values.

    z ~ p(z),  x ~ p(x|z),  s ~ p(s|x);      s = 1 where x is observed: the mask is data as well

`VAE` maximizes log p(x_o), which is right if s depends on observed cells only. If large values go
missing more often, x_o is a biased sample, and the mask itself tells about the missing cells:

    log p(x_o, s) = log ∫∫ p(x_o|z) p(x_m|z) p(s|x_o, x_m) p(z) dx_m dz

Symbols: x_o observed cells, x_m missing ones, others as in `pyrovae.vae`.
"""

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from pyrovae.checks import check_event_shape
from pyrovae.data.batch import spread
from pyrovae.errors import ConfigError
from pyrovae.heads import as_event_shape
from pyrovae.networks import given
from pyrovae.vae import fill, observed_only, register, visible


class SelfMasking(nn.Module):
    """Missing-data model in which a cell goes missing depending on its own value.

        p(s_d = 1 | x) = sigmoid(b_d + a_d x_d),        s_d = 1: observed

    Args:
        event_shape: the shape of a datum; each cell has its own a and b.
        sign: of a, if it is known: −1 if larger values go missing more often, a = −softplus(w);
            1 if smaller ones do. None learns it, a = w, starting at 0. Often the data do not tell
            the sign, since p(x|z) with a longer tail explains them as well: then it must be known.

    Raises:
        ConfigError: sign is not −1, 1 or None.

    Example:
        >>> missing = SelfMasking(2, sign=-1)
        >>> p = missing(torch.tensor([[0.0, 3.0]])).base_dist.probs
        >>> bool(p[0, 0] > p[0, 1])
        True
    """

    def __init__(self, event_shape: Any, *, sign: int | None = None):
        super().__init__()
        if sign not in (-1, 1, None):
            raise ConfigError(
                f"sign = {sign!r}, but it is −1 (larger values go missing more often), 1 (smaller "
                "ones do) or None (unknown)."
            )
        self.sign = sign
        self.weight = nn.Parameter(torch.zeros(as_event_shape(event_shape)))
        self.bias = nn.Parameter(torch.zeros(as_event_shape(event_shape)))

    @property
    def slope(self) -> Tensor:
        """a, of shape event_shape, per unit of x: of the log-odds of being observed."""
        return self.weight if self.sign is None else self.sign * softplus(self.weight)

    def forward(self, x: Tensor) -> dist.Distribution:
        logits = self.bias + self.slope * x
        return dist.Bernoulli(logits=logits, validate_args=False).to_event(self.weight.dim())

    def extra_repr(self) -> str:
        return f"event_shape={tuple(self.weight.shape)}, sign={self.sign}"


class NotMissingAtRandomVAE(nn.Module):
    """VAE of the data and of which cells are missing (not-MIWAE).

        log p(x_o, s) ≥ E_q[log p(x_o|z) + log p(s|x_o, x_m) + log p(z) − log q(z|x_o)]

    in nats, with z ~ q(z|x_o) and x_m ~ p(x_m|z) as the guide. With `objectives.IWAE` this is
    not-MIWAE. `impute` weights draws by p(s|x): missing cells are imputed from p(x_m | x_o, s). The
    latent "x_missing" has the shape of x, and has no effect in observed cells; without a mask, all
    cells are observed, which has a probability as well.

    Args:
        prior, encoder, decoder: as for `VAE`; a likelihood that factorizes over cells.
        missing: `missing(x)` → p(s|x), event_shape x.shape[1:], on x without missing cells:
            `SelfMasking`, or Sequential(network, likelihoods.Bernoulli(event_shape)).

    References:
        not-MIWAE: Deep Generative Modelling with Missing not at Random Data, Ipsen, Mattei &
        Frellsen, 2021, https://arxiv.org/abs/2006.12871

    Example:
        >>> import pyrovae as pv
        >>> vae = pv.build(3, latent_dim=1, likelihood="Normal", seed=0)
        >>> missing = SelfMasking(3, sign=-1)
        >>> program = NotMissingAtRandomVAE(vae.prior, vae.encoder, vae.decoder, missing)
        >>> x = torch.randn(50, 3)
        >>> history = pv.fit(program, x, mask=x < 1, objective=pv.objectives.IWAE(20), epochs=2)
        >>> pv.impute(program, x, mask=x < 1, num_samples=10).draws.shape
        torch.Size([10, 50, 3])
    """

    def __init__(
        self, prior: nn.Module, encoder: nn.Module, decoder: nn.Module, missing: nn.Module
    ):
        super().__init__()
        self.prior, self.encoder, self.decoder = prior, encoder, decoder
        self.missing = missing

    def model(self, x: Tensor, y: Tensor | None = None, mask: Tensor | None = None) -> None:
        """Run p(x, s, z): plate "data", sites "z", "x_missing", "x" and "s".

        Args:
            x: (B, *event), the observed data.
            y: (B, …), covariates for the parts wrapped in `Given`.
            mask: of x's shape, true where x is observed.
        """
        register(self)
        p_z = self.prior(*given(y, self.prior))
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", p_z)
            p_x = self.decoder(z, *given(y, self.decoder))
            check_event_shape(x, p_x.event_shape)
            drawn = pyro.sample("x_missing", p_x)
            seen = torch.ones_like(x, dtype=torch.bool) if mask is None else spread(mask, x)
            known = observed_only(completed(p_x, seen, drawn), mask)
            x = pyro.sample("x", known, obs=fill(x, mask, p_x.support))
            whole = torch.where(seen, x, drawn)
            pyro.sample("s", self.missing(whole), obs=seen.to(x.dtype))

    def guide(self, x: Tensor, y: Tensor | None = None, mask: Tensor | None = None) -> None:
        """Run q(z|x_o) p(x_m|z): sites "z" and "x_missing". Arguments as for `model`."""
        register(self)
        with pyro.plate("data", len(x), dim=-1):
            inputs = visible(x, mask, self.encoder)
            z = pyro.sample("z", self.encoder(*inputs, *given(y, self.encoder)))
            pyro.sample("x_missing", self.decoder(z, *given(y, self.decoder)))


def completed(p_x: dist.Distribution, seen: Tensor, drawn: Tensor) -> dist.Distribution:
    """Return p(x | z, x_m): that of p_x where x is seen, certain to be `drawn` elsewhere.

    Its log-density counts all cells, so mask the others (`vae.observed_only`).
    """
    base = p_x.base_dist if isinstance(p_x, dist.Independent) else p_x
    if base.event_shape:
        return p_x  # which `observed_only` refuses if cells are masked
    return Completed(base, seen, drawn).to_event(len(p_x.event_shape))


class Completed(dist.TorchDistribution):
    """Density of a cell whose value is known to be `drawn` where it is not seen.

    Args:
        of: density of each cell, batch_shape (*S, B, *event).
        seen: (B, *event), whether the cell is a draw of `of`.
        drawn: (*S, B, *event).
    """

    arg_constraints = {}  # noqa: RUF012 (torch reads a dict)

    def __init__(self, of: dist.Distribution, seen: Tensor, drawn: Tensor):
        self.of, self.seen, self.drawn = of, seen, drawn
        shape = torch.broadcast_shapes(of.batch_shape, seen.shape, drawn.shape)
        super().__init__(shape, validate_args=False)

    @property
    def support(self) -> Any:
        """The support of a cell."""
        return self.of.support

    @property
    def has_rsample(self) -> bool:
        """Whether draws have pathwise gradients."""
        return self.of.has_rsample

    @property
    def mean(self) -> Tensor:
        return torch.where(self.seen, self.of.mean, self.drawn)

    @property
    def variance(self) -> Tensor:
        return torch.where(self.seen, self.of.variance, 0.0)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "Completed":
        of, drawn = self.of.expand(batch_shape), self.drawn.expand(batch_shape)
        return Completed(of, self.seen, drawn)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        with torch.no_grad():
            return torch.where(self.seen, self.of.sample(torch.Size(sample_shape)), self.drawn)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return torch.where(self.seen, self.of.rsample(torch.Size(sample_shape)), self.drawn)

    def log_prob(self, value: Tensor) -> Tensor:
        return self.of.log_prob(value)
