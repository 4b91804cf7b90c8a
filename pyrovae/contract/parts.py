"""Check the contract of a prior, an encoder and a decoder on two rows.

    prior()     batch_shape ()        event_shape (D,)
    encoder(x)  batch_shape (2,)      event_shape (D,)
    decoder(z)  batch_shape (3, 2)    event_shape x.shape[1:],   z of shape (3, 2, D)

There are two rows, because with one row a part that mixes up data would broadcast unnoticed, and
three draws, because evidence and posteriors decode many draws at once.
"""

from typing import Any

import pyro.distributions as dist
from torch import Tensor, nn

from pyrovae.errors import ConfigError, DataError
from pyrovae.networks import Given, given

NUM_SAMPLES = 3


def check_parts(
    prior: nn.Module,
    encoder: nn.Module,
    decoder: nn.Module,
    x: Tensor,
    y: Any,
    seen: tuple[Tensor, ...],
) -> None:
    """Raise ConfigError, naming the part, unless each returns a density of the right shapes.

    Args:
        prior, encoder, decoder: the parts.
        x: (2, *event), two rows of the data.
        y: (2, …), their covariates, or None.
        seen: x as the encoder sees it, with missing cells filled, and the mask if it takes it.

    Example:
        >>> import torch
        >>> from pyrovae import guides, likelihoods, networks, priors
        >>> q, p = guides.DiagonalNormal(3), likelihoods.Bernoulli(4)
        >>> encoder = nn.Sequential(networks.mlp(4, q.num_features), q)
        >>> decoder = nn.Sequential(networks.mlp(2, p.num_features), p)
        >>> x = torch.ones(2, 4)
        >>> check_parts(priors.StandardNormal(2), encoder, decoder, x, None, (x,))
        Traceback (most recent call last):
            ...
        pyrovae.errors.ConfigError: p(z) is over shape (2,), but q(z|x) is over (3,); ...
    """
    p_z = _called("prior", prior, y)
    is_conditional = isinstance(prior, Given) and p_z.batch_shape[:1] == (2,)
    if extra := len(p_z.batch_shape) - is_conditional:
        raise ConfigError(
            f"the prior returned batch_shape {tuple(p_z.batch_shape)} and event_shape "
            f"{tuple(p_z.event_shape)}, but p(z) is one density over the vector z: batch_shape ()."
            f"\nEnd it with .to_event({extra}), if these are dimensions of z."
        )
    try:
        is_worth_a_try = encoder_fits(x, decoder, p_z, y)
    except ConfigError:
        # a decoder built for the encoder's latents rejects the prior's: report that instead
        if latents := _latents_of(encoder, y, seen):
            _check_same_latents(p_z, latents)
        raise
    if is_worth_a_try:
        q_z = _called("encoder", encoder, y, *seen)
        _check_batch("encoder", q_z, (2,), "one density for each row of x")
        _check_same_latents(p_z, q_z)


def _latents_of(encoder: nn.Module, y: Any, seen: tuple[Tensor, ...]) -> dist.Distribution | None:
    """Return q(z|x), or None if the encoder itself fails."""
    try:
        q_z = encoder(*seen, *given(y, encoder))
    except Exception:
        return None
    return q_z if isinstance(q_z, dist.Distribution) else None


def _check_same_latents(p_z: dist.Distribution, q_z: dist.Distribution) -> None:
    if q_z.event_shape != p_z.event_shape:
        raise ConfigError(
            f"p(z) is over shape {tuple(p_z.event_shape)}, but q(z|x) is over "
            f"{tuple(q_z.event_shape)}; the KL between them does not exist.\n"
            "Give prior and encoder the same latent_dim."
        )


def encoder_fits(x: Tensor, decoder: nn.Module, p_z: dist.Distribution, y: Any) -> bool:
    """Return whether x has the decoder's event shape, so that the encoder can be tried on it.

    Raises:
        ConfigError: the decoder violates its own contract.
    """
    z = p_z.expand((2,)).sample((NUM_SAMPLES,))
    p_x = _called("decoder", decoder, y, z)
    batch = tuple(z.shape[: z.dim() - len(p_z.event_shape)])
    if p_x.batch_shape == batch:
        return p_x.event_shape == x.shape[1:]
    whole = tuple(p_x.batch_shape + p_x.event_shape)
    if whole[: len(batch)] == batch and whole[len(batch) :] == tuple(x.shape[1:]):
        raise ConfigError(
            f"the decoder returned batch_shape {tuple(p_x.batch_shape)} and event_shape "
            f"{tuple(p_x.event_shape)} for z of shape {tuple(z.shape)}: the dimensions of a datum "
            f"count as data.\nEnd it with .to_event({len(p_x.batch_shape) - len(batch)})."
        )
    _check_batch("decoder", p_x, batch, "z.shape[:-1]", z)
    return True


def _called(name: str, part: nn.Module, y: Any, *inputs: Tensor) -> dist.Distribution:
    try:
        density = part(*inputs, *given(y, part))
    except (ConfigError, DataError):
        raise
    except Exception as error:
        arrived = f" on an input of shape {tuple(inputs[0].shape)}" if inputs else ""
        reason = str(error).strip().partition("\n")[0][:200]
        advice = _advice(name, is_given=isinstance(part, Given))
        raise ConfigError(f"the {name} failed{arrived}: {reason}\n{advice}") from error
    if not isinstance(density, dist.Distribution):
        kind = f"{type(density).__module__.partition('.')[0]} {type(density).__name__}"
        raise ConfigError(
            f"the {name} returned a {kind}, but must return a pyro.distributions.Distribution.\n"
            "Write import pyro.distributions as dist, and return for example "
            "dist.Normal(loc, scale).to_event(1)."
        )
    return density


def _advice(name: str, *, is_given: bool) -> str:
    covariates = "" if is_given else " If it takes y, wrap it: networks.Given(part)."
    if name == "decoder":
        if is_given:
            covariates = (
                "\ny is (B, …), without sample dimensions: join it to z with "
                "networks.concat(z, y), or use networks.Concat."
            )
        return (
            "A decoder takes z (*S, B, D), D as in the prior, S any sample dimensions. Reshape\n"
            "with *z.shape[:-1], or wrap the network in networks.FlattenBatch." + covariates
        )
    return f"Check that the {name}'s sizes match the data." + covariates


def _check_batch(
    name: str, density: dist.Distribution, wanted: tuple, meaning: str, z: Tensor | None = None
) -> None:
    if density.batch_shape == wanted:
        return
    at = "two rows of x" if z is None else f"z of shape {tuple(z.shape)}"
    extra = len(density.batch_shape) - len(wanted)
    if extra > 0 and density.batch_shape[: len(wanted)] == wanted:
        fix = f"End it with .to_event({extra}), if the others are dimensions of a datum."
    elif z is not None:
        fix = "Reshape with *z.shape[:-1], or wrap in networks.FlattenBatch."
    else:
        fix = "Labels in y are (N,), not (N, 1)."
    raise ConfigError(
        f"the {name} returned batch_shape {tuple(density.batch_shape)} and event_shape "
        f"{tuple(density.event_shape)} for {at}, but batch_shape must be {wanted}: {meaning}.\n"
        f"Otherwise data would share a density or have several. {fix}"
    )
