"""ELBO surgery: the parts of the ELBO.

    ELBO = −D − R,    D = −E_q[log p(x|z)] (distortion),    R = KL(q(z|x) ‖ p(z)) (rate)
    (1/N) Σ_i KL(q(z|x_i) ‖ p(z)) = I_q + KL(q(z) ‖ p(z)),    q(z) = (1/N) Σ_i q(z|x_i)
    I_q = (1/N) Σ_i KL(q(z|x_i) ‖ q(z)),    0 ≤ I_q ≤ log N

I_q measures how well z distinguishes the N data; KL(q(z) ‖ p(z)), the marginal KL, is the most
that a better prior could gain. Both are exact for *these* N data, up to the draws. As an estimate
for the population of the data, I_q is biased downwards: it cannot exceed log N, and the marginal
KL has the same bias upwards. The same average without a datum's own term overestimates
(`mutual_information_upper`), so the two bracket the population's value.

References:
    ELBO surgery, Hoffman & Johnson, 2016, http://approximateinference.org/accepted/HoffmanJohnson2016.pdf
    Fixing a Broken ELBO, Alemi et al., 2018, https://arxiv.org/abs/1711.00464 (rate, distortion)
    On Variational Bounds of Mutual Information, Poole et al., 2019,
    https://arxiv.org/abs/1905.06922 (both bounds)
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pyrovae.checks import whole_number
from pyrovae.contract import validated
from pyrovae.core.chunking import budget_of
from pyrovae.core.draws import Arrays, diagnosing, latent_names, over_draws, read_terms
from pyrovae.core.joint import joint_of
from pyrovae.core.terms import Traces, draw_traces, is_local, terms_of
from pyrovae.data import Batch, Source
from pyrovae.diagnostics.by_dimension import read_kl
from pyrovae.diagnostics.estimate import Estimate, mean_of
from pyrovae.networks import given
from pyrovae.runtime.ambient import exclusive
from pyrovae.runtime.memory import bytes_of
from pyrovae.vae import is_plain_vae

NUM_COMPARED = 64  # rows whose priors are compared


class Decomposition(NamedTuple):
    """The ELBO and its parts, in nats; ELBO = −(reconstruction + kl).

    Attributes:
        elbo: (N,), higher is better.
        reconstruction: (N,), −E_q[log p(x|z)], the distortion; lower is better.
        kl: (N,), KL(q(z|x) ‖ p(z)) at the same draws, the rate.
        elbo_std_error: (N,), Monte-Carlo error of elbo over draws; NaN for one draw.
        kl_per_dimension: (N, D), KL(q(z_d|x) ‖ p(z_d)), in closed form if torch has one; of the
            marginals if q does not factorize, NaN if p does not.
        names: D names of the latent dimensions.
        mean_elbo, mean_reconstruction, mean_kl: means over data, with errors.
        mutual_information: I_q of these data, at most log N up to noise; error over draws.
        mutual_information_upper: without a datum's own term. In expectation the population's
            mutual information lies between the two; ∞ or huge if no two posteriors overlap.
        marginal_kl: KL(q(z) ‖ p(z)) of these data; I_q + marginal_kl = mean_kl. The last three are
            NaN with global latents or a prior that depends on y, where there is no such split.
    """

    elbo: Tensor
    reconstruction: Tensor
    kl: Tensor
    elbo_std_error: Tensor
    kl_per_dimension: Tensor
    names: tuple[str, ...]
    mean_elbo: Estimate
    mean_reconstruction: Estimate
    mean_kl: Estimate
    mutual_information: Estimate
    mutual_information_upper: Estimate
    marginal_kl: Estimate


@exclusive
def decompose_elbo(
    program: nn.Module,
    x: Any,
    y: Any = None,
    mask: Any = None,
    *,
    num_samples: int = 10,
    num_aggregate: int = 2000,
    seed: int | None = 0,
    memory_budget: int | None = None,
) -> Decomposition:
    """Decompose the ELBO: distortion and rate per datum, KL per dimension, ELBO surgery.

    Estimates of nonnegative quantities that are negative, or within two standard errors of 0,
    have `Estimate.is_below_noise` and print as "below the noise".

    Args:
        program: any program; the KL of global latents is not part of these per-datum numbers.
        x: (N, *event).
        y: (N, …), covariates.
        mask: of x's shape, true where x is observed.
        num_samples: S, draws per datum.
        num_aggregate: M, draws of q(z) for the surgery; each is compared with all N posteriors.
        seed: random seed; None uses a fresh one.
        memory_budget: bytes per chunk, as in `log_evidence`.

    Returns:
        Decomposition.

    Raises:
        DataError: x does not fit the program.
        ConfigError: a setting is out of range.
        MemoryError: one draw of one datum does not fit memory_budget.

    References:
        ELBO surgery, Hoffman & Johnson, 2016,
        http://approximateinference.org/accepted/HoffmanJohnson2016.pdf

    Example:
        >>> import pyrovae as pv
        >>> vae = pv.build((2,), latent_dim=2, seed=0)
        >>> found = decompose_elbo(vae, torch.ones(5, 2))
        >>> found.elbo.shape, found.kl_per_dimension.shape, found.names
        (torch.Size([5]), torch.Size([5, 2]), ('z[0]', 'z[1]'))
        >>> print(found.mutual_information)  # five equal data
        below the noise (< 0.000)
    """
    num_samples = whole_number(num_samples, "num_samples", 1)
    num_aggregate = whole_number(num_aggregate, "num_aggregate", 2)
    data = validated(program, x, y, mask)
    with diagnosing(program, seed):
        names = latent_names(program, data)
        found = over_draws(
            program, data, _read, num_samples=num_samples, memory_budget=memory_budget
        )
        kl = found["log_guide"] - found["log_prior"]
        information = surgery(
            program, data, kl, num_aggregate=num_aggregate, memory_budget=memory_budget
        )
    log_weights = found["log_likelihood"] - kl
    elbo, reconstruction, kl = (
        log_weights.mean(0),
        -found["log_likelihood"].mean(0),
        kl.mean(0),
    )
    spread = log_weights.std(0) if num_samples > 1 else torch.full_like(elbo, math.nan)
    return Decomposition(
        elbo,
        reconstruction,
        kl,
        spread / math.sqrt(num_samples),
        found["kl_per_dimension"].mean(0),
        names,
        mean_of(elbo),
        mean_of(reconstruction),
        mean_of(kl, is_non_negative=True),
        *information,
    )


def _read(traces: Traces, num_data: int) -> Arrays:
    return read_terms(traces, num_data) | read_kl(traces, num_data)


def surgery(
    program: nn.Module,
    data: Source | Batch,
    kl: Tensor,
    *,
    num_aggregate: int,
    memory_budget: int | None,
) -> tuple[Estimate, Estimate, Estimate]:
    """Estimate I_q, its upper counterpart, and KL(q(z) ‖ p(z)), nats, from M draws of q(z).

    Args:
        program: a program inside `draws.diagnosing`.
        data: validated data.
        kl: (S, N), log q(z|x) − log p(z), whose mean the first and the last add up to.
        num_aggregate: M; each datum contributes ⌊M/N⌋ or ⌈M/N⌉ draws.
        memory_budget: bytes per chunk of the (M, N) log-densities.
    """
    if not _has_one_prior(program, data) or not joint_of(program, data.head()).scores_latents:
        return (Estimate(math.nan, math.nan, True),) * 3
    row, z, terms = _aggregate_draws(program, data, num_aggregate, memory_budget)
    own = terms["log_guide"]
    others = _log_sum_of_others(program, data, row, z, memory_budget)  # (M,)
    num_data = data.count()
    log_aggregate = torch.logaddexp(own, others) - math.log(num_data)
    log_others = others - math.log(num_data - 1) if num_data > 1 else others * math.nan
    marginal = log_aggregate - terms["log_prior"]
    return _corrected(own - log_aggregate, own - log_others, marginal, kl.double())


def _corrected(
    information: Tensor, upper: Tensor, marginal: Tensor, kl: Tensor
) -> tuple[Estimate, Estimate, Estimate]:
    """Return the means of (M,) draws, corrected so that I_q + KL(q(z) ‖ p(z)) is that of kl (S, N).

    Control variates: mean(a) + β (R − mean(r)) with β = cov(a, r) / var(r) has the least error; the
    β of the two parts of r add up to 1.
    """
    rate = information + marginal
    variance = kl.var(0).mean() if len(kl) > 1 else kl.var()  # each datum has as many draws
    error = (variance / kl.numel()).sqrt().item()
    centered = rate - rate.mean()
    share = ((centered * information).sum() / (centered * centered).sum()).nan_to_num(0.5).item()

    def corrected(part: Tensor, share: float, is_non_negative: bool) -> Estimate:
        rest = mean_of(part - share * rate)
        value = rest.value + share * kl.mean().item()
        return Estimate(value, math.hypot(rest.std_error, share * error), is_non_negative)

    return (
        corrected(information, share, True),
        corrected(upper, share, False),
        corrected(marginal, 1 - share, True),
    )


def _has_one_prior(program: nn.Module, data: Source | Batch) -> bool:
    """Return whether all latents are local and p(z) is the same for each datum."""
    if is_plain_vae(program):
        return not program.prior(*given(data.head().y, program.prior)).batch_shape
    sites = draw_traces(program.model, program.guide, *data.head()).model
    if not all(is_local(site) for _, site in sites.iter_stochastic_nodes()):
        return False
    rows = data.head(NUM_COMPARED)
    if rows.y is None:
        return True
    joint = joint_of(program, rows)
    of_first = {n: z[:, :1].expand_as(z) for n, z in joint.draw_prior(1).items()}
    log_prior, _ = joint.terms(of_first)
    return bool(torch.allclose(log_prior, log_prior[:, :1], rtol=1e-4, atol=1e-4))


def _aggregate_draws(
    program: nn.Module, data: Source | Batch, num: int, memory_budget: int | None
) -> tuple[Tensor, Arrays, Arrays]:
    """Draw from q(z): rows (M,), their latents by site (M, *event), and terms (M,)."""
    order = torch.randperm(data.count(), device=data.device)
    row = order.repeat(-(-num // len(order)))[:num]
    chosen = data.take(row)

    def read(traces: Traces, num_data: int) -> Arrays:
        latents = terms_of(traces, num_data).latents
        return read_terms(traces, num_data) | {f"latent {n}": v for n, v in latents.items()}

    found = over_draws(program, chosen, read, num_samples=1, memory_budget=memory_budget)
    found = {name: value[0] for name, value in found.items()}
    z = {n.removeprefix("latent "): v for n, v in found.items() if n.startswith("latent ")}
    return row, z, found


def _log_sum_of_others(
    program: nn.Module, data: Source | Batch, row: Tensor, z: Arrays, memory_budget: int | None
) -> Tensor:
    """Return log Σ_{j ≠ i} q(z_m|x_j) for the draws z_m of datum i = row[m], (M,) float64."""

    def log_guide(rows: Batch) -> Tensor:
        size = rows.num_data
        at = {n: v[:, None].expand(len(v), size, *v.shape[1:]) for n, v in z.items()}
        return joint_of(program, rows).log_guide(at).double()  # (M, n)

    cost = max(1, bytes_of(lambda: log_guide(data.head())))
    budget = budget_of(memory_budget, data.device).num_bytes
    total = torch.full_like(row, -math.inf, dtype=torch.float64)
    start = 0
    for rows in data.read(max(1, budget // cost)):
        column = torch.arange(start, start + rows.num_data, device=row.device)
        others = log_guide(rows).masked_fill(row[:, None] == column, -math.inf)
        total, start = torch.logaddexp(total, others.logsumexp(1)), start + rows.num_data
    return total
