"""A VAE whose code comes from one of K classes, which is summed out."""

from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor, nn

from pyrovae.checks import check_event_shape, whole_number
from pyrovae.contract import validated
from pyrovae.handlers import RandomStream, evaluation
from pyrovae.heads import positive
from pyrovae.runtime.ambient import exclusive
from pyrovae.vae import fill, observed_only, register, visible


class Occupancy(NamedTuple):
    """How many data each class holds.

    Attributes:
        responsibilities: (N, K), p(c|x) in expectation over q(z|x).
        counts: (K,), their sums over data: the expected number of data in each class.
        is_empty: (K,), whether a class holds less than one datum.
    """

    responsibilities: Tensor
    counts: Tensor
    is_empty: Tensor


class NormalOfClass(nn.Module):
    """Learned diagonal normal for each class, p(z|c) = N(μ_c, diag σ_c²).

    Args:
        num_classes: K.
        latent_dim: D.

    Example:
        >>> NormalOfClass(3, 2)(torch.tensor([0, 2])).batch_shape
        torch.Size([2])
    """

    def __init__(self, num_classes: int, latent_dim: int):
        super().__init__()
        shape = (
            whole_number(num_classes, "num_classes", 1),
            whole_number(latent_dim, "latent_dim", 1),
        )
        self.loc = nn.Parameter(torch.randn(shape))
        self.raw_scale = nn.Parameter(torch.full(shape, 0.5413))  # σ = 1

    def forward(self, c: Tensor) -> pyro.distributions.Distribution:
        return pyro.distributions.Normal(self.loc[c], positive(self.raw_scale)[c]).to_event(1)


class MixtureVAE(nn.Module):
    """VAE with a class and a code per datum: c ~ p(c), z ~ p(z|c), x ~ p(x|z).

        ELBO = E_q(z|x)[log p(x|z) + log Σ_c p(c) p(z|c) − log q(z|x)]

    The guide has no c: Pyro sums it out, exactly.

    Args:
        class_prior: `class_prior()` → p(c), a Categorical over K classes.
        components: `components(c)` → p(z|c), c of any shape; such as `NormalOfClass(K, D)`.
        encoder: `encoder(x)` → q(z|x).
        decoder: `decoder(z)` → p(x|z).

    References:
        Deep Unsupervised Clustering with Gaussian Mixture Variational Autoencoders, Dilokthanakul
        et al., 2016, https://arxiv.org/abs/1611.02648
        Variational Deep Embedding, Jiang et al., 2017, https://arxiv.org/abs/1611.05148

    Example:
        >>> import pyro.distributions as dist
        >>> import pyrovae as pv
        >>> vae = pv.build((6,), latent_dim=2, seed=0)
        >>> classes = pv.priors.Fixed(dist.Categorical, logits=torch.zeros(3))
        >>> program = MixtureVAE(classes, NormalOfClass(3, 2), vae.encoder, vae.decoder)
        >>> history = pv.fit(program, torch.ones(8, 6), epochs=2)
        >>> program.occupancy(torch.ones(8, 6)).responsibilities.shape
        torch.Size([8, 3])
    """

    def __init__(
        self, class_prior: nn.Module, components: nn.Module, encoder: nn.Module, decoder: nn.Module
    ):
        super().__init__()
        self.class_prior, self.components = class_prior, components
        self.encoder, self.decoder = encoder, decoder

    def model(self, x: Tensor, y: Tensor | None = None, mask: Tensor | None = None) -> None:
        """Run p(x, z, c): plate "data", sites "c", "z" and "x"; y is not used."""
        register(self)
        with pyro.plate("data", len(x), dim=-1):
            c = pyro.sample("c", self.class_prior(), infer={"enumerate": "parallel"})
            z = pyro.sample("z", self.components(c))
            p_x = self.decoder(z)
            check_event_shape(x, p_x.event_shape)
            pyro.sample("x", observed_only(p_x, mask), obs=fill(x, mask, p_x.support))

    def guide(self, x: Tensor, y: Tensor | None = None, mask: Tensor | None = None) -> None:
        """Run q(z|x): site "z". Arguments as for `model`."""
        register(self)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", self.encoder(*visible(x, mask, self.encoder)))

    @exclusive
    def occupancy(
        self, x: Any, mask: Any = None, *, num_samples: int = 20, seed: int | None = 0
    ) -> Occupancy:
        """Return p(c|x) = E_q(z|x)[p(c|z)] of each datum, and how many data each class holds.

        A class without data costs nothing and explains nothing: fit again with fewer classes.

        Args:
            x: (N, *event).
            mask: of x's shape, true where x is observed.
            num_samples: S, draws of z per datum.
            seed: random seed; None uses a fresh one.

        Returns:
            Occupancy, over the N data and K classes.

        Raises:
            DataError: x does not fit the program.
            ConfigError: num_samples is not a whole number ≥ 1.
        """
        num_samples = whole_number(num_samples, "num_samples", 1)
        x, _, mask = validated(self, x, None, mask).whole()
        with RandomStream(seed), evaluation(self):
            z = self.encoder(*visible(x, mask, self.encoder)).sample((num_samples,))  # (S, N, D)
            p_c = self.class_prior()
            c = p_c.enumerate_support(expand=False).reshape(-1, 1, 1)
            joint = p_c.log_prob(c) + self.components(c).log_prob(z)  # (K, S, N)
            found = joint.softmax(0).mean(1).T
        return Occupancy(found, found.sum(0), found.sum(0) < 1)
