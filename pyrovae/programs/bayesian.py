"""A VAE with latents that all data share: p(w), p(z_i|w), p(x_i|z_i, w)."""

import pyro
from torch import Tensor, nn

from pyrovae.checks import check_event_shape
from pyrovae.networks import given
from pyrovae.vae import fill, observed_only, register, visible


class GivenGlobal(nn.Module):
    """Part that also sees the global latents w of a `BayesianVAE`, as its last argument.

    prior(w), encoder(x, w), decoder(z, w); with covariates, GivenGlobal(Given(part)) is
    called as part(…, y, w). With vectorized particles w is (S, 1, *event) and broadcasts
    against z (S, B, D) from the right.

    Args:
        part: a module whose forward takes w last and returns a Distribution.

    Example:
        >>> import torch
        >>> class ARD(nn.Module):
        ...     def __init__(self, part):
        ...         super().__init__()
        ...         self.part = part
        ...     def forward(self, z, w):
        ...         return self.part(z * w.exp())
        >>> import pyrovae as pv
        >>> p = pv.likelihoods.Normal(6)
        >>> decoder = GivenGlobal(ARD(nn.Sequential(pv.networks.mlp(2, p.num_features), p)))
        >>> decoder(torch.zeros(7, 2), torch.zeros(2)).batch_shape
        torch.Size([7])
    """

    def __init__(self, part: nn.Module):
        super().__init__()
        self.part = part
        self.sees_mask = getattr(part, "sees_mask", False)

    def forward(self, *args: Tensor):
        return self.part(*args)


class BayesianVAE(nn.Module):
    """VAE with global latents w, shared by all data, with their own prior and guide.

        ELBO(x_1 … x_N) = E_q[Σ_i log p(x_i|z_i, w) + log p(z_i|w) − log q(z_i|x_i, w)]
                          − KL(q(w) ‖ p(w)),    in nats

    w may be the scales of the latent dimensions with a hyper-prior (automatic relevance
    determination), or the weights of a Bayesian decoder layer. A minibatch of B data is scaled
    by N / B, `handlers.data_scale(N / B)`; the KL of w is not.

    Args:
        prior, encoder, decoder: as for `VAE`; those wrapped in `GivenGlobal` also see w.
        global_prior: `global_prior()` → p(w), batch_shape (); any part of `pyrovae.priors`.
        global_guide: `global_guide()` → q(w), with the same batch_shape and event_shape.

    References:
        Auto-Encoding Variational Bayes, appendix F, Kingma & Welling, 2014,
        https://arxiv.org/abs/1312.6114

    Example:
        >>> import torch
        >>> import pyrovae as pv
        >>> class ARD(nn.Module):
        ...     def __init__(self, part):
        ...         super().__init__()
        ...         self.part = part
        ...     def forward(self, z, w):
        ...         return self.part(z * w.exp())
        >>> vae = pv.build(6, latent_dim=2)
        >>> program = BayesianVAE(
        ...     vae.prior,
        ...     vae.encoder,
        ...     GivenGlobal(ARD(vae.decoder)),
        ...     pv.priors.StandardNormal(2),
        ...     pv.priors.LearnedNormal(2),
        ... )
        >>> terms = pv.elbo_terms(program, torch.ones(5, 6), num_samples=3)
        >>> terms.latents["w"].shape, terms.global_log_guide.shape, terms.log_prior.shape
        (torch.Size([3, 2]), torch.Size([3]), torch.Size([3, 5]))
    """

    def __init__(
        self,
        prior: nn.Module,
        encoder: nn.Module,
        decoder: nn.Module,
        global_prior: nn.Module,
        global_guide: nn.Module,
    ):
        super().__init__()
        self.prior, self.encoder, self.decoder = prior, encoder, decoder
        self.global_prior, self.global_guide = global_prior, global_guide

    def model(self, x: Tensor, y: Tensor | None = None, mask: Tensor | None = None) -> None:
        """Run p(x, z, w): site "w" outside the plate "data", "z" and "x" inside, as `VAE.model`."""
        register(self)
        w = pyro.sample("w", self.global_prior())
        p_z = self.prior(*seen(self.prior, y, w))
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", p_z)
            p_x = self.decoder(z, *seen(self.decoder, y, w))
            check_event_shape(x, p_x.event_shape)
            pyro.sample("x", observed_only(p_x, mask), obs=fill(x, mask, p_x.support))

    def guide(self, x: Tensor, y: Tensor | None = None, mask: Tensor | None = None) -> None:
        """Run q(w) Π_i q(z_i|x_i, w): sites "w" and "z". Arguments as for `model`."""
        register(self)
        w = pyro.sample("w", self.global_guide())
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample(
                "z", self.encoder(*visible(x, mask, self.encoder), *seen(self.encoder, y, w))
            )


def seen(part: nn.Module, y: Tensor | None, w: Tensor) -> tuple[Tensor, ...]:
    """Return the later arguments of `part`: y if it is `Given`, then w if `GivenGlobal`."""
    inner = part.part if isinstance(part, GivenGlobal) else part
    return (*given(y, inner), *(() if inner is part else (w,)))
