"""A whole sensible VAE in one call.

`build` chooses nothing that could not be written out as VAE(prior, encoder, decoder):
it joins one prior, one guide family, one likelihood and one kind of network by name,
with widths that fit. The names are the public names of the part families themselves.
"""

import difflib
from collections.abc import Sequence
from contextlib import nullcontext
from types import ModuleType

from torch import nn

from pyrovae import guides, likelihoods, networks, priors
from pyrovae.checks import seed_number
from pyrovae.errors import ConfigError
from pyrovae.handlers import RandomStream
from pyrovae.heads import as_event_shape
from pyrovae.vae import VAE


def build(
    event_shape: int | Sequence[int],
    *,
    latent_dim: int = 2,
    prior: str = "StandardNormal",
    guide: str = "DiagonalNormal",
    likelihood: str = "Bernoulli",
    network: str = "mlp",
    hidden: Sequence[int] = (200,),
    seed: int | None = None,
) -> VAE:
    """VAE(prior, encoder, decoder) from names and sizes.

    Args:
        event_shape: the shape of one datum: x.shape[1:].
        latent_dim: D, the width of the bottleneck z.
        prior: a name in `pyrovae.priors`.
        guide: a name in `pyrovae.guides`.
        likelihood: a name in `pyrovae.likelihoods`.
        network: a name in `pyrovae.networks`.
        hidden: the encoder's hidden widths; the decoder has them in reverse.
        seed: of the initial weights; None draws them from the global generator.

    Raises:
        ConfigError: an unknown name (the nearest one is suggested), or a size that is no whole
            number ≥ 1.

    Example:
        >>> vae = build((8, 8), latent_dim=10, hidden=(100,))
        >>> vae.prior
        StandardNormal(latent_dim=10)
    """
    event_shape = as_event_shape(event_shape)
    make_network = part_named(networks, network)
    with nullcontext() if seed is None else RandomStream(seed_number(seed)):
        q = part_named(guides, guide)(latent_dim)
        p = part_named(likelihoods, likelihood)(event_shape)
        encoder = make_network(event_shape, q.num_features, hidden=hidden)
        decoder = make_network(latent_dim, p.num_features, hidden=hidden[::-1])
        return VAE(
            part_named(priors, prior)(latent_dim),
            nn.Sequential(encoder, q),
            nn.Sequential(decoder, p),
        )


def part_named(family: ModuleType, name: str):
    """The public member of a family of parts with this name.

    Raises:
        ConfigError: there is none; the message lists the names and suggests the nearest.

    Example:
        >>> part_named(priors, "StandardNormal").__name__
        'StandardNormal'
    """
    if name in family.__all__:
        return getattr(family, name)
    kind = family.__name__.rpartition(".")[2]
    lowered = {known.lower(): known for known in family.__all__}
    near = difflib.get_close_matches(str(name).lower(), lowered, n=1, cutoff=0.4)
    hint = f" Did you mean {lowered[near[0]]!r}?" if near else ""
    raise ConfigError(f"{name!r} is not one of pyrovae.{kind}: {', '.join(family.__all__)}.{hint}")
