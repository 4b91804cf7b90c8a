"""Combination of several normal densities of one latent into a guide.

    product   q(z) ∝ Π_m N(z; μ_m, σ_m²):    1/σ² = Σ_m 1/σ_m²,    μ = σ² Σ_m μ_m/σ_m²
    mixture   q(z) = (1/M) Σ_m N(z; μ_m, σ_m²)

Each expert sees one source of information, such as one modality; an expert that is not observed for
a datum is left out for that datum.
"""

from collections.abc import Sequence

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae.densities.mixture import Mixture
from pyrovae.errors import ConfigError


def product_of_normals(
    experts: Sequence[dist.Distribution], observed: Sequence[Tensor | None] | None = None
) -> dist.Distribution:
    """Return the normalized product of diagonal normals.

    Args:
        experts: diagonal normals with event_shape (D,), whose batch shapes broadcast.
        observed: for each expert, (B,) whether it counts; None where it always does.

    Raises:
        ConfigError: an expert is not a diagonal normal.

    Example:
        >>> one = dist.Normal(torch.tensor([1.0, 2.0]), 1.0).to_event(1)
        >>> product_of_normals([one, one]).mean, product_of_normals([one, one]).variance
        (tensor([1., 2.]), tensor([0.5000, 0.5000]))
    """
    precision, weighted = 0.0, 0.0
    for expert, is_seen in zip(experts, observed or [None] * len(experts), strict=True):
        loc, scale = loc_and_scale(expert)
        own = scale**-2 if is_seen is None else scale**-2 * is_seen[..., None]
        precision, weighted = precision + own, weighted + own * loc
    return dist.Normal(weighted / precision, precision**-0.5).to_event(1)


def mixture_of_normals(
    experts: Sequence[dist.Distribution], observed: Sequence[Tensor | None]
) -> dist.Distribution:
    """Return the equal mixture of the diagonal normals that are observed, or of the last expert.

    Args:
        experts: as for `product_of_normals`; the last one is used where no other is observed.
        observed: for each of the others, (B,) whether it counts; None where it always does.

    Example:
        >>> a, b, none = (dist.Normal(torch.full((3, 2), m), 1.0).to_event(1) for m in (1., 3., 0.))
        >>> q = mixture_of_normals([a, b, none], [None, torch.tensor([True, False, True])])
        >>> q.mean[:, 0]
        tensor([2., 1., 2.])
    """
    pairs = [loc_and_scale(expert) for expert in experts]
    locs, scales = (
        torch.stack(torch.broadcast_tensors(*one), -2) for one in zip(*pairs, strict=True)
    )
    everywhere = torch.ones_like(locs[..., 0, 0], dtype=torch.bool)
    seen = torch.stack([everywhere if one is None else everywhere & one for one in observed], -1)
    seen = torch.cat([seen, ~seen.any(-1, keepdim=True)], -1)
    weights = dist.Categorical(probs=seen.to(locs))
    return Mixture(weights, dist.Normal(locs, scales).to_event(1))


class ProductOfExperts(nn.Module):
    """Guide of several encoders, q(z|x) ∝ p(z) Π_m q̃_m(z|x_m), over the observed modalities.

    References:
        Multimodal Generative Models for Scalable Weakly-Supervised Learning, Wu & Goodman, 2018,
        https://arxiv.org/abs/1802.05335
    """

    def forward(
        self,
        experts: Sequence[dist.Distribution],
        observed: Sequence[Tensor | None],
        p_z: dist.Distribution,
    ) -> dist.Distribution:
        return product_of_normals([*experts, p_z], [*observed, None])


class MixtureOfExperts(nn.Module):
    """Guide of several encoders, q(z|x) = (1/M) Σ_m q_m(z|x_m), over the observed modalities.

    A datum without any is encoded as the prior. The mixture is not reparameterized, so its gradient
    is a score-function estimate.

    References:
        Variational Mixture-of-Experts Autoencoders for Multi-Modal Deep Generative Models, Shi et
        al., 2019, https://arxiv.org/abs/1911.03393
    """

    def forward(
        self,
        experts: Sequence[dist.Distribution],
        observed: Sequence[Tensor | None],
        p_z: dist.Distribution,
    ) -> dist.Distribution:
        return mixture_of_normals([*experts, p_z], observed)


def loc_and_scale(
    density: dist.Distribution,
    name: str = "an expert",
    why: str = "experts are combined by precision",
) -> tuple[Tensor, Tensor]:
    """Return μ and σ of a diagonal normal, (…, D) each.

    Args:
        density: a diagonal normal with event_shape (D,).
        name: what it is, for the error.
        why: why it must be one, for the error.

    Raises:
        ConfigError: it is another density.
    """
    base = density
    while isinstance(base, dist.Independent | dist.ExpandedDistribution):
        base = base.base_dist
    if not isinstance(base, dist.Normal) or len(density.event_shape) != 1:
        raise ConfigError(
            f"{name} is a {type(base).__name__} with event_shape {tuple(density.event_shape)}, "
            f"but {why}, so it must be a diagonal normal.\nEnd it in guides.DiagonalNormal."
        )
    return base.loc, base.scale
