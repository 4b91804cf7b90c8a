"""The evidence log p(x): what the ELBO bounds from below, estimated or exact.

    p(x) = ∫ p(x|z) p(z) dz,    log p(x) = ELBO + KL(q(z|x) ‖ p(z|x))

Two estimators, per datum and in nats:

- "iwae": log (1/K) Σ_k w_k with w = p(x, z) / q(z|x), z ~ q(z|x): a lower bound in
  expectation that tightens with K (Burda et al. 2016),
- "grid": quadrature over the latent space, for latent dimension 1 or 2: Bayes' rule
  without Monte-Carlo error.
"""

import math
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor, nn

from pyrovae.admission import admit
from pyrovae.batches import Batch
from pyrovae.checks import seed_number, whole_number
from pyrovae.errors import ConfigError
from pyrovae.evidence.quadrature import grid_evidence
from pyrovae.handlers import RandomStream, evaluation
from pyrovae.terms import draw_traces, terms_of

NUMBERS_AT_A_TIME = 2**24  # bounds the memory of one chunk of draws or grid points


class Evidence(NamedTuple):
    """log p(x) per datum, in nats; higher is better.

    Attributes:
        log_px: (N,), the estimate of log p(x).
        std_error: (N,), its Monte-Carlo standard error (delta method); 0 for "grid".
        ess: (N,), the effective sample size (Σ w)² / Σ w² of the K importance weights; for
            "grid" infinite.
    """

    log_px: Tensor
    std_error: Tensor
    ess: Tensor


def log_evidence(
    vae: nn.Module,
    x: Any,
    y: Any = None,
    mask: Any = None,
    *,
    method: str = "iwae",
    num_samples: int = 1000,
    seed: int | None = 0,
) -> Evidence:
    """log p(x) for each datum, in nats.

    Args:
        vae: the model; "iwae" takes any program, "grid" a `VAE` of latent dimension ≤ 2.
        x: (N, *event).
        y: (N, …), covariates.
        mask: of x's shape, true where x is observed; then it is log p(x_observed).
        method: "iwae" or "grid".
        num_samples: K, the draws per datum of "iwae"; not used by "grid".
        seed: of the draws; None takes a fresh one.

    Returns:
        Evidence, arrays (N,).

    Raises:
        DataError: x does not fit the program.
        ConfigError: an unknown method, or "grid" above two latent dimensions.

    References:
        Importance Weighted Autoencoders, Burda, Grosse & Salakhutdinov, 2016,
        https://arxiv.org/abs/1509.00519

    Example:
        >>> import pyrovae as pv
        >>> vae = pv.build((2,), latent_dim=1, seed=0)
        >>> x = torch.ones(1, 2)
        >>> exact = log_evidence(vae, x, method="grid").log_px
        >>> estimate = log_evidence(vae, x, num_samples=2000)
        >>> bool(abs(estimate.log_px - exact) < 5 * estimate.std_error)
        True
    """
    methods = {"iwae": _iwae, "grid": _grid}
    if method not in methods:
        raise ConfigError(f"method = {method!r}, but it is one of {', '.join(map(repr, methods))}.")
    num_samples = whole_number(num_samples, "num_samples", 1)
    batch = Batch(*admit(vae, x, y, mask))
    with RandomStream(seed_number(seed)), evaluation(vae), pyro.validation_enabled(False):
        return methods[method](vae, batch, num_samples)


def _iwae(vae: nn.Module, batch: Batch, num_samples: int) -> Evidence:
    num_data = len(batch.x)
    chunk = max(1, NUMBERS_AT_A_TIME // max(1, 4 * batch.x.numel()))
    # running log Σ w and log Σ w²: the draws themselves are never all in memory
    log_sum = torch.full((2, num_data), -math.inf, dtype=torch.float64, device=batch.x.device)
    for start in range(0, num_samples, chunk):
        size = min(chunk, num_samples - start)
        traces = draw_traces(vae.model, vae.guide, *batch, num_samples=size)
        log_w = terms_of(traces, num_data).log_weights.double()
        log_sum = torch.logaddexp(
            log_sum, torch.stack([log_w.logsumexp(0), (2 * log_w).logsumexp(0)])
        )
    ess = (2 * log_sum[0] - log_sum[1]).exp()
    log_px = log_sum[0] - math.log(num_samples)
    # Var(ŵ) / (K mean²) = 1 / ESS − 1 / K, and d log w̄ = d w̄ / w̄
    std_error = (1 / ess - 1 / num_samples).clamp(min=0).sqrt()
    return Evidence(log_px, std_error, ess)


def _grid(vae: nn.Module, batch: Batch, num_samples: int) -> Evidence:
    log_px = grid_evidence(vae, batch)
    return Evidence(log_px, torch.zeros_like(log_px), torch.full_like(log_px, math.inf))
