"""A topic model: codes on the simplex, counts of words."""

import pyro
import torch
from torch import Tensor, nn

from pyrovae import densities
from pyrovae.checks import whole_number
from pyrovae.errors import DataError
from pyrovae.vae import register


class Topics(nn.Module):
    """Topics as distributions over words, π = θ B: p(word j) = Σ_k θ_k B_kj, rows of B softmaxed.

    Args:
        num_topics: K.
        num_words: V.

    Example:
        >>> Topics(3, 10)(torch.full((4, 3), 1 / 3)).shape
        torch.Size([4, 10])
    """

    def __init__(self, num_topics: int, num_words: int):
        super().__init__()
        shape = whole_number(num_topics, "num_topics", 1), whole_number(num_words, "num_words", 2)
        self.logits = nn.Parameter(torch.randn(shape))

    @property
    def words(self) -> Tensor:
        """B, (K, V): the probability of each word in each topic."""
        return self.logits.softmax(-1)

    def forward(self, theta: Tensor) -> Tensor:
        """Return log π, (…, V), from θ (…, K)."""
        with torch.autocast(theta.device.type, enabled=False):  # 3 digits are not enough
            return (theta @ self.words).log()


class TopicVAE(nn.Module):
    """Topic model of word counts: θ ~ p(θ) on the simplex, x ~ Multinomial(n, π(θ)).

    n = Σ_j x_j is the length of the document, which is not modeled.

    Args:
        prior: `prior()` → p(θ) on the simplex of K topics, such as
            `priors.Fixed(dist.Dirichlet, concentration=torch.full((K,), 0.1))`.
        encoder: `encoder(x)` → q(θ|x): a network and `guides.Dirichlet(K)` or
            `guides.LogisticNormal(K)`.
        topics: θ → log π, such as `Topics(K, V)` (latent Dirichlet allocation), or
            `nn.Sequential(nn.Linear(K, V), nn.LogSoftmax(-1))` (products of experts, ProdLDA).

    Raises:
        DataError: a document has no words.

    References:
        Latent Dirichlet Allocation, Blei, Ng & Jordan, 2003,
        https://www.jmlr.org/papers/v3/blei03a.html
        Autoencoding Variational Inference for Topic Models, Srivastava & Sutton, 2017,
        https://arxiv.org/abs/1703.01488

    Example:
        >>> import pyro.distributions as dist
        >>> import pyrovae as pv
        >>> q = pv.guides.Dirichlet(3)
        >>> program = TopicVAE(
        ...     pv.priors.Fixed(dist.Dirichlet, concentration=torch.full((3,), 0.5)),
        ...     nn.Sequential(pv.networks.mlp(10, q.num_features), q),
        ...     Topics(3, 10),
        ... )
        >>> x = torch.poisson(torch.ones(5, 10)) + 1
        >>> pv.elbo_terms(program, x).latents["theta"].sum(-1).round(decimals=4)
        tensor([[1., 1., 1., 1., 1.]])
    """

    def __init__(self, prior: nn.Module, encoder: nn.Module, topics: nn.Module):
        super().__init__()
        self.prior, self.encoder, self.topics = prior, encoder, topics

    def check_data(self, x: Tensor, y: Tensor | None) -> None:
        """Raise DataError if a document has no words."""
        empty = (x.sum(-1) == 0).nonzero()
        if len(empty):
            raise DataError(
                f"x[{int(empty[0])}] has no words ({len(empty):,} documents in all), so it says "
                "nothing about its topics.\nDrop these rows."
            )

    def model(self, x: Tensor, y: Tensor | None = None, mask: Tensor | None = None) -> None:
        """Run p(x, θ): plate "data", sites "theta" and "x"; y is not used.

        Args:
            x: (B, V), counts of words.
            y: not used.
            mask: not used; `fit` rejects one, because single words cannot be left out.
        """
        register(self)
        with pyro.plate("data", len(x), dim=-1):
            theta = pyro.sample("theta", self.prior())
            p_x = densities.Multinomial(self.topics(theta), x.sum(-1))
            pyro.sample("x", p_x, obs=x)

    def guide(self, x: Tensor, y: Tensor | None = None, mask: Tensor | None = None) -> None:
        """Run q(θ|x): site "theta". Arguments as for `model`."""
        register(self)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("theta", self.encoder(x))
