"""A VAE with several layers of latents, and a guide that combines both directions."""

from collections.abc import Sequence

import pyro
from torch import Tensor, nn

from pyrovae.checks import check_event_shape
from pyrovae.errors import ConfigError
from pyrovae.programs.experts import product_of_normals
from pyrovae.vae import fill, observed_only, register, visible


class LadderVAE(nn.Module):
    """Ladder VAE: L layers of latents, z_0 next to x; the guide corrects the model's prediction.

        p(x, z)  = p(x|z_0) p(z_0|z_1) … p(z_{L−2}|z_{L−1}) p(z_{L−1})
        q(z|x)   = N(z_{L−1}; m_{L−1}, s²_{L−1}) Π_{l < L−1} q(z_l|z_{l+1}, x)
        q(z_l|z_{l+1}, x) ∝ N(z_l; m_l, s_l²) p(z_l|z_{l+1})

    m_l and s_l are functions of d_l, where d_l = f_l(d_{l−1}) and d_{−1} = x.

    Args:
        prior: `prior()` → p(z_{L−1}).
        layers: L − 1 parts, `layers[l](z_{l+1})` → p(z_l|z_{l+1}), diagonal normals.
        networks: L modules of the bottom-up pass, `networks[l](d_{l−1})` → d_l.
        heads: L parts, `heads[l](d_l)` → N(m_l, diag s_l²).
        decoder: `decoder(z_0)` → p(x|z_0).

    Raises:
        ConfigError: the numbers of layers, networks and heads do not fit; at run time, a layer is
            not a diagonal normal.

    References:
        Ladder Variational Autoencoders, Sønderby et al., 2016, https://arxiv.org/abs/1602.02282

    Example:
        >>> import torch
        >>> import pyrovae as pv
        >>> from torch.nn import Sequential
        >>> mlp, p, q0, q1 = pv.networks.mlp, pv.likelihoods.Bernoulli(6), *map(
        ...     pv.guides.DiagonalNormal, (4, 2)
        ... )
        >>> ladder = LadderVAE(
        ...     pv.priors.StandardNormal(2),
        ...     [Sequential(mlp(2, q0.num_features), q0)],
        ...     [mlp(6, 16), mlp(16, 16)],
        ...     [Sequential(nn.Linear(16, q0.num_features), q0),
        ...      Sequential(nn.Linear(16, q1.num_features), q1)],
        ...     Sequential(mlp(4, p.num_features), p),
        ... )
        >>> terms = pv.elbo_terms(ladder, torch.ones(5, 6), num_samples=3)
        >>> {name: tuple(z.shape) for name, z in terms.latents.items()}
        {'z_1': (3, 5, 2), 'z_0': (3, 5, 4)}
    """

    def __init__(
        self,
        prior: nn.Module,
        layers: Sequence[nn.Module],
        networks: Sequence[nn.Module],
        heads: Sequence[nn.Module],
        decoder: nn.Module,
    ):
        super().__init__()
        if not len(layers) + 1 == len(networks) == len(heads):
            raise ConfigError(
                f"{len(networks)} networks and {len(heads)} heads with {len(layers)} layers, but L "
                "layers of latents need L of each, and L − 1 layers between them.\n"
                "layers[l] predicts z_l from z_{l+1}; the prior is that of the last."
            )
        self.prior, self.decoder = prior, decoder
        self.layers, self.networks, self.heads = map(nn.ModuleList, (layers, networks, heads))

    def model(self, x: Tensor, y: Tensor | None = None, mask: Tensor | None = None) -> None:
        """Run p(x, z): plate "data", sites "z_{L−1}" … "z_0" and "x"; y is not used."""
        register(self)
        top = len(self.layers)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample(f"z_{top}", self.prior())
            for number in reversed(range(top)):
                z = pyro.sample(f"z_{number}", self.layers[number](z))
            p_x = self.decoder(z)
            check_event_shape(x, p_x.event_shape)
            pyro.sample("x", observed_only(p_x, mask), obs=fill(x, mask, p_x.support))

    def guide(self, x: Tensor, y: Tensor | None = None, mask: Tensor | None = None) -> None:
        """Run q(z|x): sites "z_{L−1}" … "z_0". Arguments as for `model`."""
        register(self)
        features, found = visible(x, mask, self.networks[0]), []
        for network, head in zip(self.networks, self.heads, strict=True):
            features = (network(*features),)
            found.append(head(*features))
        top = len(self.layers)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample(f"z_{top}", found[top])
            for number in reversed(range(top)):
                q_z = product_of_normals([found[number], self.layers[number](z)])
                z = pyro.sample(f"z_{number}", q_z)
