"""A VAE without its collapsed latent dimensions.

    p(x|z_K) = p(x|z_K, z_C = E[z_C])        K kept, C collapsed

In a collapsed dimension the decoder does not depend on z_C, and q(z_C|x) = p(z_C). Then p(x), the
ELBO and q(z_K|x) are those of the smaller model:

    decoder   W z + b = W_K z_K + (b + W_C E[z_C])    in each layer that z enters
    encoder   the rows of the last layers that parametrize z_C are left out
    prior     p(z) = Π_d p(z_d) without the factors of C

What it takes: a prior that factorizes over dimensions, a guide head that factorizes and has
`num_features` per dimension, and linear layers around z. After the cut, all three densities are
compared with those of the original at random inputs, so that networks of other kinds are refused
instead of cut in the wrong place.

References:
    Don't Blame the ELBO! A Linear VAE Perspective on Posterior Collapse, Lucas et al., 2019,
    https://arxiv.org/abs/1911.02469
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent

from pyrovae.checks import whole_number
from pyrovae.contract import validated
from pyrovae.core.chunking import chunked
from pyrovae.core.draws import diagnosing
from pyrovae.core.joint import joint_of
from pyrovae.data import Batch
from pyrovae.diagnostics.collapse import collapsed_dimensions
from pyrovae.diagnostics.estimate import Estimate, mean_of
from pyrovae.errors import ConfigError
from pyrovae.networks import given
from pyrovae.networks.cut import cut_inputs, cut_outputs, cut_tensors, layers_with
from pyrovae.runtime.ambient import exclusive
from pyrovae.vae import VAE, is_plain_vae, log_likelihood, visible

ROWS = 16  # data, and latents, at which densities are compared
TOLERANCE = 1e-4  # relative, of log-densities in float32


class Pruned(NamedTuple):
    """VAE with fewer latent dimensions.

    Attributes:
        vae: a new `VAE`; the original one is unchanged. One that `build` made can be saved and
            loaded like any other.
        kept: (K,), the dimensions of the original that are left, in order.
        removed: (C,), the others.
        change: log p(x) after minus before, nats per datum, importance-weighted at the same draws,
            with its error over data and draws.
    """

    vae: VAE
    kept: Tensor
    removed: Tensor
    change: Estimate

    @property
    def message(self) -> str:
        """One sentence for the user."""
        total = len(self.kept) + len(self.removed)
        return (
            f"{len(self.removed)} of {total} latent dimensions removed; log p(x) changes by "
            f"{self.change} nats per datum."
        )


@exclusive
def prune(
    vae: nn.Module,
    x: Any,
    y: Any = None,
    mask: Any = None,
    *,
    dimensions: Sequence[int] | None = None,
    num_samples: int = 200,
    seed: int | None = 0,
    memory_budget: int | None = None,
) -> Pruned:
    """Remove the collapsed latent dimensions of a VAE, without changing p(x) beyond an error.

    Args:
        vae: a `VAE` with a prior that factorizes, such as `StandardNormal`, a guide that does,
            such as `DiagonalNormal`, and linear layers next to z.
        x: (N, *event), the data that tell what has collapsed, and on which the change is measured.
        y: (N, …), covariates.
        mask: of x's shape, true where x is observed.
        dimensions: to remove, numbered from 0; those that `collapsed_dimensions` finds if None.
        num_samples: importance-weighted draws per datum for `change`.
        seed: random seed; None uses a fresh one.
        memory_budget: bytes per chunk, as in `log_evidence`.

    Returns:
        Pruned. Check that `change` is within its error before you use it.

    Raises:
        DataError: x does not fit the program.
        ConfigError: the vae lacks one of these properties, all dimensions have collapsed, or
            there is no such dimension.

    References:
        Lucas et al., 2019, https://arxiv.org/abs/1911.02469

    Example:
        >>> import pyrovae as pv
        >>> vae = pv.build((2,), latent_dim=3, seed=0)
        >>> found = prune(vae, torch.eye(2), dimensions=[1])
        >>> found.kept, found.vae.encode(torch.eye(2)).event_shape
        (tensor([0, 2]), torch.Size([2]))
    """
    if not is_plain_vae(vae):
        raise ConfigError(
            f"prune cuts the parts of a VAE, but this program is a {type(vae).__name__} with a "
            "model or guide of its own.\nBuild it again with a smaller latent_dim."
        )
    whole = validated(vae, x, y, mask).whole()
    batch = whole.head(ROWS)
    with diagnosing(vae, seed):
        dim = vae.prior(*given(batch.y, vae.prior)).event_shape.numel()
    if dimensions is None:
        options = {"seed": seed, "memory_budget": memory_budget}
        is_removed = collapsed_dimensions(vae, *whole, **options).is_collapsed.cpu()
    else:
        is_removed = torch.zeros(dim, dtype=torch.bool)
        is_removed[[_index(i, dim) for i in dimensions]] = True
    if is_removed.all():
        raise ConfigError(
            f"all {dim} latent dimensions are to be removed, but a VAE has at least one: then "
            "z tells nothing about x, and p(x) is the density p(x|z) at any z."
        )
    kept = (~is_removed).nonzero()[:, 0]
    with diagnosing(vae, seed):
        smaller = _cut(vae, batch, kept)
        change = torch.cat(_changes(vae, smaller.eval(), whole, kept, num_samples, memory_budget))
    smaller.train(vae.training)
    return Pruned(smaller, kept, is_removed.nonzero()[:, 0], mean_of(change))


def _changes(
    vae: VAE, smaller: VAE, data: Batch, kept: Tensor, num_samples: int, memory_budget: int | None
) -> list[Tensor]:
    """Return log p̂(x) after minus before at the same draws, in pieces of (N,)."""

    def draw(rows: Batch) -> Callable[[int], tuple[Tensor, Tensor]]:
        before, after = joint_of(vae, rows), joint_of(smaller, rows)

        def weights(size: int) -> tuple[Tensor, Tensor]:
            z, log_w = before.weighted_draws(size)
            left = {"z": z["z"][..., kept.to(log_w.device)]}
            return sum(after.terms(left)) - after.log_guide(left), log_w

        return weights

    found = []
    for rows, sizes in chunked(data, num_samples, draw, memory_budget=memory_budget):
        one = draw(rows)
        after, before = (torch.cat(w).double() for w in zip(*map(one, sizes), strict=True))
        found.append((after.logsumexp(0) - before.logsumexp(0)).cpu())
    return found


def _index(value: Any, dim: int) -> int:
    index = whole_number(value, "a dimension", 0)
    if index >= dim:
        raise ConfigError(f"dimension {index} of {dim}, but they are numbered 0 … {dim - 1}.")
    return index


def _cut(vae: VAE, batch: Batch, kept: Tensor) -> VAE:
    """Return a smaller copy, each part of which was compared with the original at these data."""
    smaller = copy.deepcopy(vae)
    x, y, mask = batch
    y_of = {part: given(y, getattr(vae, part)) for part in ("prior", "encoder", "decoder")}
    p_z = vae.prior(*y_of["prior"])
    dim = p_z.event_shape.numel()
    kept, z = kept.to(batch.device), p_z.expand((len(x),)).sample()  # (B, D)

    factors = _factors(p_z, "prior")
    cut_tensors(smaller.prior, dim, kept)
    now = smaller.prior(*y_of["prior"])
    _check(factors.log_prob(z)[..., kept].sum(-1), lambda: now.log_prob(z[:, kept]), "prior")

    seen = (*visible(x, mask, vae.encoder), *y_of["encoder"])
    head, q_z = _head(smaller.encoder, dim), vae.encoder(*seen)
    factors = _factors(q_z, "encoder")

    def encode() -> Distribution:
        return smaller.encoder(*seen)

    index = (torch.arange(head.num_features // dim)[:, None] * dim + kept.cpu()).flatten()
    for layer in layers_with(smaller.encoder, encode, after=head):
        cut_outputs(layer, index.to(batch.device))
    head.event_shape, head.num_features = torch.Size([len(kept)]), len(index)
    expected = factors.log_prob(z)[..., kept].sum(-1)
    _check(expected, lambda: encode().log_prob(z[:, kept]), "encoder")

    mean = _factors(p_z, "prior").mean.expand(z.shape)[0]
    full = mean.expand_as(z).index_copy(1, kept, z[:, kept])

    def score(part: VAE, value: Tensor) -> Tensor:
        return log_likelihood(part.decoder(value, *y_of["decoder"]), x, mask)

    layers = layers_with(smaller.decoder, lambda: score(smaller, full), before=full)
    for layer in layers:
        cut_inputs(layer, kept, mean)
    _check(score(vae, full), lambda: score(smaller, z[:, kept]), "decoder")
    if isinstance(getattr(vae, "spec", None), dict):
        smaller.spec = {**vae.spec, "latent_dim": len(kept)}
    return smaller


def _factors(density: Distribution, part: str) -> Distribution:
    """Return one density per dimension of z."""
    while isinstance(density, Independent | dist.ExpandedDistribution):
        density = density.base_dist
    if density.event_shape:
        raise _refusal(
            part,
            f"{type(density).__name__} does not factorize over the dimensions of z, so that its "
            "marginal is not known",
        )
    return density


def _head(encoder: nn.Module, dim: int) -> nn.Module:
    """Return the only module that turns features into q(z|x)."""
    heads = [
        module
        for module in encoder.modules()
        if getattr(module, "event_shape", None) == (dim,) and hasattr(module, "num_features")
    ]
    if len(heads) != 1 or heads[0].num_features % dim:
        raise _refusal("encoder", f"it has {len(heads)} heads of {dim} latent dimensions, not one")
    return heads[0]


def _check(expected: Tensor, found: Callable[[], Tensor], part: str) -> None:
    """Raise unless the smaller part gives the same log-densities."""
    why = "cutting the linear layers next to z gives another density"
    try:
        value = found()
    except (RuntimeError, ValueError, ConfigError) as error:
        raise _refusal(part, why) from error
    size = TOLERANCE * (1 + expected.abs())
    if value.shape != expected.shape or not ((value - expected).abs() <= size).all():
        raise _refusal(part, why)


def _refusal(part: str, why: str) -> ConfigError:
    return ConfigError(
        f"prune cannot cut the {part}: {why}.\nIt needs a prior and a guide that factorize over z, "
        "such as StandardNormal and DiagonalNormal, and nn.Linear layers next to z, as in "
        "networks.mlp. Otherwise fit a model with a smaller latent_dim."
    )
