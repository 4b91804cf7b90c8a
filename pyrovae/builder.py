"""A complete VAE in one call.

`build` is shorthand for VAE(prior, encoder, decoder): it combines a prior, a guide family, a
likelihood and a kind of network by name, with matching widths. The names are the public names
of the part families. The argument names of a part's constructor declare what it needs
(latent_dim, event_shape, encoder), and its hook `from_data` declares the arguments that it takes
from training data (`protocols.StartsFromData`). The result stores its JSON-serializable
specification, and the shapes of the tensors taken from data.
"""

import inspect
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext, suppress
from functools import partial
from typing import Any

import torch
from torch import nn

from pyrovae import guides, likelihoods, priors
from pyrovae.checks import nearest, seed_number
from pyrovae.data import Annotated, Batch, Source, Table, is_by_site, open_source
from pyrovae.errors import ConfigError
from pyrovae.heads import as_event_shape, as_latent_shape
from pyrovae.networks import (
    NETWORKS,
    Given,
    Inputs,
    JoinMask,
    SeesMask,
    Transformed,
    features_of,
    joined_shape,
    start_at_mean,
)
from pyrovae.runtime.random_stream import RandomStream
from pyrovae.vae import VAE

Choice = str | dict[str, Any]
MOST_NUMBERS = 2**26  # of data that are not in memory, to start parts from

# what a specification may name, by argument of `build`
NAMES = {
    "prior": priors.__all__,
    "guide": guides.__all__,
    "likelihood": likelihoods.__all__,
    "network": NETWORKS,
}


def build(
    event_shape: int | Sequence[int] | Table | Annotated,
    *,
    latent_dim: int = 2,
    prior: Choice = "StandardNormal",
    guide: Choice = "DiagonalNormal",
    likelihood: Choice | None = None,
    network: Choice = "mlp",
    hidden: Sequence[int] | None = None,
    inputs: str | Sequence[Any] | None = None,
    sees_mask: bool | None = None,
    num_covariates: int | None = None,
    data: Any = None,
    seed: int | None = None,
) -> VAE:
    """Construct a VAE(prior, encoder, decoder) from names and sizes.

    A choice is a public name, or a dict of that name and the part's options, such as
    {"name": "GaussianMixture", "num_components": 20}. Likelihoods of counts also take a size
    per datum as y.

    Args:
        event_shape: the shape of one datum: x.shape[1:]; or a `data.table`, for the VAE of its
            columns, started from its rows. It then reads data frames with these columns.
        latent_dim: D, the width of the bottleneck z.
        prior: a name in `pyrovae.priors`.
        guide: a name in `pyrovae.guides`.
        likelihood: a name in `pyrovae.likelihoods`; by default "Bernoulli", or the columns' kinds.
        network: "mlp", "gated_mlp", "residual_mlp" or "conv".
        hidden: the encoder's hidden widths, or channels of "conv"; the decoder has them in reverse.
            None stands for (200,), or (32, 64, 64) of "conv".
        inputs: what the encoder sees of x (`networks.Inputs`): "standardized", "log", "log1p" (for
            counts), a list of these by column, or "raw", x itself. None takes what the likelihood
            asks for: by kind of column for `Columns`, "standardized" for `Normal`,
            `HeteroscedasticNormal` and `StudentT` that start from data, else "raw".
        sees_mask: whether the encoder also sees which cells are missing (`networks.SeesMask`); None
            stands for whether cells of a `Table` are missing.
        num_covariates: columns of y that a decoder of counts sees after the size; None stands for
            those of an `Annotated`.
        data: (N, *event), training data in any container, to initialize parts from: the decoder's
            bias at their mean, center and spread of real data, the units of the encoder's inputs,
            the pseudo-inputs of a VampPrior at 500 of them; {"name": "VampPrior",
            "pseudo_inputs": x[:50]} overrides these.
        seed: the seed of the initial weights; None draws them from the global generator.

    Returns:
        A VAE whose `spec` holds these arguments except for data and seed, and whose `data_spec`
        holds the shape and range of each argument that a part took from the data.

    Raises:
        ConfigError: a name is unknown (the nearest one is suggested), the part does not have an
            option, or a size is not a whole number ≥ 1.

    Example:
        >>> vae = build((8, 8), latent_dim=10, hidden=(100,))
        >>> vae.prior
        StandardNormal(latent_dim=10)
        >>> build((8, 8), prior={"name": "LearnedNormal", "full": True}).spec["prior"]["full"]
        True
    """
    described = event_shape if isinstance(event_shape, Table | Annotated) else None
    if described is not None:
        event_shape, data = described.event_shape, described if data is None else data
        inputs = described.inputs if inputs is None else inputs
    if likelihood is None:
        likelihood = "Bernoulli" if described is None else described.likelihood
    event_shape = as_event_shape(event_shape)
    if isinstance(hidden, int):
        raise ConfigError(
            f"hidden = {hidden}, but it must hold a width for each hidden layer.\n"
            f"Write hidden=({hidden},)."
        )
    as_latent_shape(latent_dim)
    data = None if data is None else _some_rows(open_source(data))
    if sees_mask is None:
        sees_mask = bool(described is not None and data.mask is not None and not data.mask.all())
    if num_covariates is None:
        has_covariates = described is not None and data.y is not None
        num_covariates = data.y[0].numel() - 1 if has_covariates else 0
    known: dict[str, Any] = {"latent_dim": latent_dim, "event_shape": tuple(event_shape)}
    data_spec: dict[str, Any] = {}
    made = partial(_made, known=known, data=data, data_spec=data_spec)
    with nullcontext() if seed is None else RandomStream(seed_number(seed)):
        q = made(guides, guide)
        p = made(likelihoods, likelihood)
        _check_same_event(p, event_shape)
        name, options = _name_and_options(network)
        networks = NETWORKS[_checked_name("network", name, NETWORKS)]
        hidden = networks.hidden if hidden is None else hidden
        into_q = partial(networks.encoder, hidden=hidden, **options)
        seen = _inputs(inputs, p, event_shape, data)
        encoder = _encoder(into_q, q, event_shape, seen=seen, sees_mask=sees_mask)
        known["encoder"] = encoder
        into_p = latent_dim + num_covariates
        from_z = networks.decoder(into_p, features_of(p), hidden=hidden[::-1], **options)
        vae = VAE(made(priors, prior), encoder, _decoder(from_z, p, data, num_covariates))
    vae.spec = {
        "event_shape": list(event_shape),
        "latent_dim": latent_dim,
        "prior": prior,
        "guide": guide,
        "likelihood": likelihood,
        "network": network,
        "hidden": list(hidden),
        "inputs": inputs,
        "sees_mask": sees_mask,
        "num_covariates": num_covariates,
    }
    vae.data_spec = data_spec
    vae.schema = getattr(described, "schema", None)
    return vae


def _encoder(
    into_q: Callable[..., nn.Module],
    q: nn.Module,
    event_shape: Any,
    *,
    seen: Inputs | None,
    sees_mask: bool,
) -> nn.Module:
    """Return q(z|x): x, transformed and joined with its mask, through a network into the head."""
    shape = event_shape if seen is None else seen.out_shape
    network = into_q(joined_shape(shape) if sees_mask else shape, q.num_features)
    parts = [network, q]
    if sees_mask:
        parts = [SeesMask(JoinMask(nn.Sequential(*parts), shape))]
    if seen is not None:
        return Transformed(seen, *parts)
    return parts[0] if sees_mask else nn.Sequential(*parts)


def _of_size_1(data: Batch) -> Any:
    """Return x divided by the sizes of the data, if they have any."""
    if data.y is None:
        return data.x
    size = data.y.reshape(data.num_data, -1)[:, 0].double().clamp(min=torch.finfo().tiny)
    return data.x / size.reshape(-1, *[1] * (data.x.dim() - 1))


def _some_rows(source: Source) -> Batch:
    """Return all rows, or evenly spaced ones of data that are large and not in memory."""
    if source.preloaded or source.num_data is None:
        return source.whole()
    size = source.head().x[0].numel() if not is_by_site(source.head().x) else 1
    num = max(1, min(source.num_data, MOST_NUMBERS // max(1, size)))
    return source.take(torch.linspace(0, source.num_data - 1, num).long())


def _decoder(from_z: nn.Module, p: nn.Module, data: Batch | None, num_covariates: int) -> nn.Module:
    """Return p(x|z), started at the mean of the data; a likelihood of counts also sees sizes."""
    decoder = nn.Sequential(from_z, p)
    if data is not None:
        with suppress(ConfigError):  # a Categorical has no mean to start at
            start_at_mean(decoder, _of_size_1(data), mask=data.mask)
    if "size" in inspect.signature(p.forward).parameters:
        return Given(likelihoods.CountDecoder(from_z, p, num_covariates))
    if num_covariates:
        raise ConfigError(
            f"num_covariates = {num_covariates}, but a {type(p).__name__} likelihood takes none: "
            "they follow the size of a datum.\n"
            "Use a likelihood of counts, or Given(Concat(part, …))."
        )
    return decoder


def _inputs(choice: Any, likelihood: nn.Module, event_shape: Any, data: Any) -> Inputs | None:
    """Return the transformation of the encoder's inputs, started from data; None for x itself."""
    wanted = getattr(likelihood, "inputs", None) if choice is None else choice
    if wanted is None or wanted == "raw":
        return None
    inputs = Inputs(event_shape, wanted)
    return inputs if data is None else inputs.start_at(_with_nan(data))


def _with_nan(data: Batch) -> Any:
    """Return x with NaN where it is hidden."""
    return data.x if data.mask is None else torch.where(data.mask.bool(), data.x.float(), torch.nan)


def _check_same_event(likelihood: nn.Module, event_shape: Any) -> None:
    if likelihood.event_shape != event_shape:
        raise ConfigError(
            f"event_shape is {tuple(event_shape)}, but this {type(likelihood).__name__} "
            f"likelihood is over shape {tuple(likelihood.event_shape)}.\n"
            "Give it a kind for each column of x."
        )


def _made(family: Any, choice: Choice, *, known: dict, data: Any, data_spec: dict) -> nn.Module:
    """Construct a member of a family with the arguments that its constructor names."""
    name, options = _name_and_options(choice)
    constructor = part_named(family, name)
    signature = inspect.signature(constructor)
    kind = family.__name__.rpartition(".")[2]
    hooks = {n: f for n, f in getattr(constructor, "from_data", {}).items() if n not in options}
    if data is None:  # what has a default does without
        empty = inspect.Parameter.empty
        hooks = {n: f for n, f in hooks.items() if signature.parameters[n].default is empty}
    if hooks and data is None:
        raise ConfigError(
            f"this {kind[:-1]} starts from data, but none were given.\n"
            "Write build(…, data=x_train)."
        )
    taken = {n: hook(_with_nan(data)) for n, hook in hooks.items()}
    asked = signature.parameters.keys() - options.keys() - taken.keys()
    arguments = {n: known[n] for n in known if n in asked} | taken
    try:
        signature.bind(**arguments, **options)
    except TypeError as error:
        raise ConfigError(
            f"{name}: {error}.\nIts signature is {name}{signature}; pass its options as "
            f"{{'name': {name!r}, …}}, or write VAE(prior, encoder, decoder) with "
            f"{kind}.{name}(…)."
        ) from None
    part = constructor(**arguments, **options)
    if taken:
        data_spec[kind[:-1]] = {
            n: {"shape": list(t.shape), "range": [t.min().item(), t.max().item()]}
            for n, t in taken.items()
        }
    return part


def _name_and_options(choice: Choice) -> tuple[str, dict[str, Any]]:
    if isinstance(choice, nn.Module):
        raise ConfigError(
            f"build combines parts by name, but it received a {type(choice).__name__} module.\n"
            "Pass a name, or combine the modules yourself: VAE(prior, encoder, decoder)."
        )
    if isinstance(choice, dict):
        if "name" not in choice:
            raise ConfigError(
                f"{choice} has options of a part, but not its name.\n"
                "Write {'name': 'GaussianMixture', 'num_components': 20}."
            )
        return choice["name"], {k: v for k, v in choice.items() if k != "name"}
    return choice, {}


def part_named(family: Any, name: str) -> Callable[..., nn.Module]:
    """Return the public member of a family of parts with this name.

    Raises:
        ConfigError: the name is unknown; the message lists all names and suggests the nearest.

    Example:
        >>> part_named(priors, "StandardNormal").__name__
        'StandardNormal'
    """
    return getattr(family, _checked_name(family.__name__, name, family.__all__))


def _checked_name(kind: str, name: str, names: Iterable[str]) -> str:
    names = list(names)
    if name in names:
        return name
    near = nearest(name, names)
    hint = f"\nDid you mean {near!r}?" if near else ""
    raise ConfigError(f"{name!r} is not one of {kind}: {', '.join(names)}.{hint}")
