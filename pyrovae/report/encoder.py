"""The weight of the KL that an encoder was trained with, estimated from the encoder itself.

Scale q(z|x) about its mean m(x): z_s = m + s (z − m). At s = 1 the two terms of the ELBO change by

    a = −d/ds E_q[log p(x|z_s)] = −E_q[(z − m) · ∇_z log p(x|z)]
    b = −d/ds KL(q_s ‖ p)       = D + E_q[(z − m) · ∇_z log p(z)]

An encoder that minimizes reconstruction + β KL, and can scale all its posteriors at once, has
a = β b on average over its training data. So β̂ = mean(a) / mean(b): 1 for an encoder trained on
the ELBO, β for that of a β-VAE, regardless of decoder and data. If all of z has collapsed to the
prior, b is 0 and β̂ is undefined; latents outside ℝ^D cannot be scaled.

References:
    beta-VAE, Higgins et al., 2017, https://openreview.net/forum?id=Sy2fzU9gl
    Fixing a Broken ELBO, Alemi et al., 2018, https://arxiv.org/abs/1711.00464 (β as the slope of
    the rate-distortion curve)
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, constraints

from pyrovae.contract import validated
from pyrovae.contract.densities import coordinate_of
from pyrovae.core.draws import diagnosing
from pyrovae.core.joint import VAEJoint
from pyrovae.densities.supports import support_of
from pyrovae.diagnostics import Estimate
from pyrovae.vae import is_plain_vae

ROWS = 500  # data at a time


def kl_weight(
    vae: nn.Module,
    x: Any,
    y: Any = None,
    mask: Any = None,
    *,
    num_samples: int = 10,
    seed: int = 0,
) -> Estimate:
    """Estimate β̂ on training data x, unitless, with its error over data.

    NaN for other programs than a `VAE`, if the latents are not in ℝ^D (scaled about their mean,
    they would leave a sphere), or if b cannot be distinguished from 0 (collapse).
    """
    if not is_plain_vae(vae):
        return Estimate(math.nan, math.nan)
    data, parts = validated(vae, x, y, mask), []
    with diagnosing(vae, seed):
        for rows in data.read(ROWS):
            found = _slopes(VAEJoint(vae, rows), num_samples)
            if found is None:
                return Estimate(math.nan, math.nan)
            parts.append(found)
    a, b = torch.cat(parts, 1).double()
    return _ratio(a, b)


def _ratio(a: Tensor, b: Tensor) -> Estimate:
    """Return mean(a) / mean(b) of paired (N,) numbers, delta-method error; NaN if mean(b) ≈ 0."""
    root = math.sqrt(len(b))
    mean = b.mean()
    if len(b) < 2 or not mean > 5 * b.std() / root:
        return Estimate(math.nan, math.nan)
    value = a.mean() / mean
    return Estimate(value.item(), ((a - value * b).std() / root / mean).item())


def _slopes(joint: VAEJoint, num_samples: int) -> Tensor | None:
    """Return a and b, (2, n), means over draws; None if z is not in ℝ^D."""
    q = joint.guide
    if not (_is_real(q) and _is_real(joint.prior)):
        return None
    z = q.sample((num_samples,))
    try:
        mean = q.mean
    except NotImplementedError:  # a flow
        mean = z.mean(0) if num_samples > 1 else z[0]
    with torch.enable_grad():
        z_s = z.detach().requires_grad_()
        log_prior, log_likelihood = joint.terms({"z": z_s})
        slopes = [_gradient(term, z_s) for term in (log_likelihood, log_prior)]
    by_likelihood, by_prior = (((z - mean) * slope).sum(-1).mean(0) for slope in slopes)
    return torch.stack([-by_likelihood, z.shape[-1] + by_prior]).detach()


def _is_real(density: Distribution) -> bool:
    support = support_of(density)
    return support is None or coordinate_of(support) is constraints.real


def _gradient(term: Tensor, z: Tensor) -> Tensor:
    if not term.requires_grad:
        return torch.zeros_like(z)
    (slope,) = torch.autograd.grad(term.sum(), z, allow_unused=True)
    return torch.zeros_like(z) if slope is None else slope
