"""The evidence log p(x): what the ELBO bounds from below, estimated or exact.

    p(x) = ∫ p(x|z) p(z) dz,    log p(x) = ELBO + KL(q(z|x) ‖ p(z|x))

Two estimators, per datum and in nats:

- "iwae": log (1/K) Σ_k w_k with w = p(x, z) / q(z|x), z ~ q(z|x): a lower bound in
  expectation that tightens with K (Burda et al. 2016),
- "grid": quadrature over the latent space, for latent dimension 1 or 2: Bayes' rule
  without Monte-Carlo error.
"""

import copy
import math
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor, nn

from pyrovae.admission import admit
from pyrovae.batches import Batch
from pyrovae.checks import seed_number, whole_number
from pyrovae.errors import ConfigError
from pyrovae.handlers import RandomStream, evaluation
from pyrovae.networks import given
from pyrovae.terms import draw_traces, terms_of
from pyrovae.vae import fill, observed_only

NUMBERS_AT_A_TIME = 2**24  # bounds the memory of one chunk of draws or grid points
MAX_POINTS = {1: 200_000, 2: 1500}  # along one axis of the grid, by latent dimension


class Evidence(NamedTuple):
    """log p(x) per datum, in nats; higher is better.

    Attributes:
        log_px: (N,), the estimate of log p(x).
        std_error: (N,), its Monte-Carlo standard error (delta method); 0 for "grid".
        ess: (N,), the effective sample size (Σ w)² / Σ w² of the K importance weights; for
            "grid" that of the posterior's weights over the grid points.
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
    """Widen and refine a grid over z until no datum's log p(x) moves by more than 1e-6 nat.

    In float64, because 1e-6 nat is below the rounding of float32 log-densities.
    """
    vae = copy.deepcopy(vae).double()
    batch = Batch(batch.x.double(), batch.y, batch.mask)
    dim = _latent_dim(vae, batch)
    draws = vae.encoder(fill(batch.x, batch.mask), *given(batch.y, vae.encoder)).sample((32,))
    joint_at_draws = _log_joint(vae, batch, draws)  # (32, N)
    reach = 1.5 * float(vae.prior(*given(batch.y, vae.prior)).sample((1000,)).abs().max())
    step = reach / {1: 250, 2: 50}[dim]
    before = torch.full((len(batch.x),), math.inf, dtype=torch.float64)
    while 2 * reach / step < MAX_POINTS[dim]:
        after, ess = _log_sum_over_grid(vae, batch, reach, step, dim)
        # where the guide has found joint density that matters, the grid must reach
        matters = joint_at_draws > after - 25
        needed = 1.2 * draws.abs().amax(-1)[matters].max().item() if matters.any() else 0.0
        if (after - before).abs().max() < 1e-6 and needed <= reach:
            return Evidence(after, torch.zeros_like(after), ess)
        before, reach, step = after, max(1.25 * reach, needed), step / 1.3
    raise ConfigError(
        f"the grid has not settled: log p(x) still moves by {(after - before).abs().max():.2g} nat "
        f"at a step of {step:.2g} on [-{reach:.3g}, {reach:.3g}] in {dim} dimensions.\n"
        "The posterior is too narrow or too far out for a regular grid; use method='iwae'."
    )


def _latent_dim(vae: nn.Module, batch: Batch) -> int:
    dim = vae.prior(*given(batch.y, vae.prior)).event_shape.numel()
    if dim > 2:
        raise ConfigError(
            f"method='grid' covers the latent space with points, but this one has {dim} dimensions."
            "\nIt works up to 2; use method='iwae'."
        )
    return dim


def _log_sum_over_grid(
    vae: nn.Module, batch: Batch, reach: float, step: float, dim: int
) -> tuple[Tensor, Tensor]:
    """log Σ_g exp[log p(x, z_g)] ΔV, (N,), and the effective number of points that carry it."""
    points = 2 * math.ceil(reach / step) + 1
    axis = torch.linspace(-reach, reach, points, dtype=batch.x.dtype, device=batch.x.device)
    z = torch.cartesian_prod(*[axis] * dim).reshape(-1, dim)  # (G, D)
    log_volume = dim * math.log(2 * reach / (points - 1))
    log_sum = torch.full((2, len(batch.x)), -math.inf, dtype=torch.float64, device=z.device)
    rows = max(1, NUMBERS_AT_A_TIME // max(1, 4 * batch.x.numel()))
    for part in z.split(rows):
        log_joint = _log_joint(vae, batch, part[:, None]).double() + log_volume  # (g, N)
        log_sum = torch.logaddexp(
            log_sum, torch.stack([log_joint.logsumexp(0), (2 * log_joint).logsumexp(0)])
        )
    return log_sum[0], (2 * log_sum[0] - log_sum[1]).exp()


def _log_joint(vae: nn.Module, batch: Batch, z: Tensor) -> Tensor:
    """log p(x, z), (S, N), at the points z (S, 1 or N, D)."""
    p_x = vae.decoder(z, *given(batch.y, vae.decoder))
    observed = observed_only(p_x, batch.mask).log_prob(fill(batch.x, batch.mask, p_x.support))
    return vae.prior(*given(batch.y, vae.prior)).log_prob(z) + observed
