"""Inference gaps: how far the ELBO is below log p(x), and why.

    log p(x) − ELBO(q) = [log p(x) − ELBO(q*)] + [ELBO(q*) − ELBO(q)]
                          approximation gap       amortization gap

q* is the best member of the guide's family for the datum alone (`posterior.refine`, started
from the encoder). The first gap is due to the family: no encoder closes it. The second is due
to the network, which must predict q* from x in one pass. A third, between the ELBOs of training
and held-out data, is a gap of generalization, not of inference.

Both gaps are estimated with the same noise, so their errors are much smaller than those of the
terms. If refinement stops short of q*, the split changes (approximation too large, amortization
too small), but not the sum.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from pyrovae.checks import seed_number, whole_number
from pyrovae.contract import validated
from pyrovae.core.chunking import budget_of, bytes_per_draw, sizes
from pyrovae.core.conditional import given_globals
from pyrovae.core.draws import (
    Arrays,
    concat,
    diagnosing,
    log_mean_exp,
    over_draws,
    read_terms,
)
from pyrovae.core.joint import VAEJoint, joint_of
from pyrovae.core.pareto import MOST, pareto_k, pareto_k_threshold
from pyrovae.data import Batch
from pyrovae.diagnostics.estimate import Estimate, mean_of
from pyrovae.evidence import log_evidence
from pyrovae.posterior import refine
from pyrovae.posterior.offsets import log_weights
from pyrovae.runtime.ambient import exclusive
from pyrovae.runtime.random_stream import RandomStream

ROWS = 256  # data that are refined together
NEGLIGIBLE = 0.05  # nats: a gap not worth training for


class InferenceGaps(NamedTuple):
    """The gaps between log p(x) and the ELBO, in nats; each ≥ 0 up to noise.

    Attributes:
        log_px: (N,) float64, the estimate of log p(x).
        elbo: (N,), ELBO of the encoder's q(z|x).
        best_elbo: (N,), ELBO of the refined q*.
        approximation: (N,), log_px − best_elbo.
        amortization: (N,), best_elbo − elbo.
        approximation_std_error, amortization_std_error: (N,), over draws.
        pareto_k: (N,), k̂ of the weights for log_px: above `pareto_k_threshold`, log_px and the
            approximation gap are too low. −∞ for a method without weights.
        mean_approximation, mean_amortization, mean_total: means over data, with errors.
        generalization: mean ELBO of x minus that of the held-out data, with its error; None
            without `validation`.
        threshold: largest acceptable k̂ for K draws.
    """

    log_px: Tensor
    elbo: Tensor
    best_elbo: Tensor
    approximation: Tensor
    amortization: Tensor
    approximation_std_error: Tensor
    amortization_std_error: Tensor
    pareto_k: Tensor
    mean_approximation: Estimate
    mean_amortization: Estimate
    mean_total: Estimate
    generalization: Estimate | None
    threshold: float = MOST

    @property
    def advice(self) -> str:
        """One sentence: what to improve first."""
        family, network = self.mean_approximation, self.mean_amortization
        fit = self.generalization
        largest = max(family.value, network.value)
        if fit is not None and not fit.is_below_noise and fit.value > max(largest, NEGLIGIBLE):
            return (
                f"The train/test gap is the largest, {fit} nats: the model overfits; stop earlier, "
                "regularize, or use more data."
            )
        if largest < NEGLIGIBLE or (family.is_below_noise and network.is_below_noise):
            return (
                f"Inference is not the bottleneck: both gaps are below {NEGLIGIBLE} nats or the "
                "noise; work on prior and decoder instead."
            )
        if abs(network.value - family.value) < 2 * math.hypot(family.std_error, network.std_error):
            return (
                f"Guide family ({family} nats) and encoder network ({network} nats) cost about the "
                "same: neither alone is the bottleneck."
            )
        if network.value > family.value:
            return (
                f"The encoder network is the bottleneck, {network} nats of amortization against "
                f"{family}: make it larger, train it longer, or refine at test time."
            )
        return (
            f"The guide family is the bottleneck, {family} nats of approximation against "
            f"{network} of amortization: use a richer one, such as FullNormal or FlowGuide."
        )


@exclusive
def inference_gaps(
    program: nn.Module,
    x: Any,
    y: Any = None,
    mask: Any = None,
    *,
    validation: Any = None,
    method: str = "refined",
    num_samples: int = 1000,
    num_steps: int = 200,
    num_globals: int = 10,
    seed: int | None = 0,
    memory_budget: int | None = None,
) -> InferenceGaps:
    """Split log p(x) − ELBO into the part of the guide family and that of the encoder network.

    Args:
        program: a program whose guide `posterior.refine` supports (pathwise, declared parameters).
        x: (N, *event).
        y: (N, …), covariates.
        mask: of x's shape, true where x is observed.
        validation: held-out data, x, (x, y) or (x, y, mask), for the train/test gap.
        method: method for log p(x): "refined" is importance sampling from q*, better than from
            the encoder's q; or a method of `log_evidence` ("ais", "grid", …).
        num_samples: K, draws per datum for both ELBOs and the weights.
        num_steps: steps of the refinement.
        num_globals: draws of global latents w ~ q(w), at least 2; all terms are means over them of
            those given w, and the spread over w is part of the errors.
        seed: random seed; None uses a fresh one.
        memory_budget: bytes per chunk, as in `log_evidence`.

    Returns:
        InferenceGaps, arrays (N,).

    Raises:
        DataError: x does not fit the program.
        ConfigError: the guide cannot be refined, or a setting is out of range.

    References:
        Inference Suboptimality in Variational Autoencoders, Cremer, Li & Duvenaud, 2018,
        https://arxiv.org/abs/1801.03558

    Example:
        >>> import pyrovae as pv
        >>> vae = pv.build((2,), latent_dim=1, seed=0)
        >>> gaps = inference_gaps(vae, torch.eye(2), num_steps=50)
        >>> gaps.approximation.shape, bool((gaps.approximation > 0).all())
        (torch.Size([2]), True)
    """
    num_samples = whole_number(num_samples, "num_samples", 2)
    num_globals = whole_number(num_globals, "num_globals", 2)
    data = validated(program, x, y, mask)
    seed = seed_number(seed)  # the same for both ELBOs, even if it is a fresh one
    options = {"num_steps": num_steps, "seed": seed, "memory_budget": memory_budget}
    how, parts = (num_samples, seed, memory_budget), []
    for rows in data.read(ROWS):
        refined = refine(program, *rows, **options).guide
        with diagnosing(program, seed):
            given = given_globals(program, rows, num_globals)  # the same for all rows
            gaps = [_gaps_of(*_pair(one, refined, rows, *how)) for one in given]
        parts.append(_over_globals(gaps))
    found = concat(parts, 0)
    log_px, elbo, best_elbo = found["log_px"], found["elbo"], found["best_elbo"]
    error, k = found["approximation_std_error"], found["pareto_k"]
    if method != "refined":
        options = {"num_globals": num_globals, "seed": seed, "memory_budget": memory_budget}
        options |= {"num_samples": num_samples} if method in ("importance", "iwae") else {}
        evidence = log_evidence(program, x, y, mask, method=method, **options)
        log_px, k = evidence.log_px, evidence.pareto_k
        error = torch.hypot(evidence.std_error, found["best_elbo_std_error"])  # other draws
    gaps = log_px - best_elbo, best_elbo - elbo
    return InferenceGaps(
        log_px,
        elbo,
        best_elbo,
        *gaps,
        error,
        found["amortization_std_error"],
        k,
        *(mean_of(gap, is_non_negative=True) for gap in (*gaps, log_px - elbo)),
        _generalization(program, elbo, validation, num_samples, seed, memory_budget),
        pareto_k_threshold(num_samples),
    )


def _pair(
    program: nn.Module,
    refined: Distribution | nn.Module,
    rows: Batch,
    num_samples: int,
    seed: int,
    memory_budget: int | None,
) -> list[Tensor]:
    """Return log w = log p(x, z) − log q(z|x) under q* and under the program's q, (K, n) each."""
    with RandomStream(seed):
        cost = rows.num_data * bytes_per_draw(joint_of(program, rows.head()).weighted_draws)
    chunk = max(1, budget_of(memory_budget, rows.device).num_bytes // cost)
    found = []
    for draw in _draws(program, refined, rows):
        with RandomStream(seed):  # the same noise for both
            found.append(torch.cat([draw(size).double() for size in sizes(num_samples, chunk)]))
    return found


def _draws(
    program: nn.Module, refined: Distribution | nn.Module, rows: Batch
) -> list[Callable[[int], Tensor]]:
    """Return K → log w of K draws, (K, n), under q* and under the program's q."""
    if not isinstance(refined, Distribution):
        return [partial(log_weights, one, rows) for one in (refined.of(program), program)]
    joints = VAEJoint(program, rows), VAEJoint(program, rows)
    joints[0].guide = refined
    return [lambda size, joint=joint: joint.weighted_draws(size)[1] for joint in joints]


def _gaps_of(best: Tensor, start: Tensor) -> Arrays:
    """Return terms and errors, (n,) each, from log-weights under q* and under q, (K, n)."""
    log_px = log_mean_exp(best)
    root = math.sqrt(len(best))
    # log p̂ − ELBO(q*) is a function of the mean of w and that of log w: delta method
    influence = (best - log_px).exp() - best
    return {
        "log_px": log_px,
        "elbo": start.mean(0),
        "best_elbo": best.mean(0),
        "best_elbo_std_error": best.std(0) / root,
        "approximation_std_error": influence.std(0) / root,
        "amortization_std_error": (best - start).std(0) / root,
        "pareto_k": pareto_k(best),
    }


def _over_globals(parts: list[Arrays]) -> Arrays:
    """Return the means over draws of global latents, with the errors of these means."""
    if len(parts) == 1:
        return parts[0]
    each = {name: torch.stack([part[name] for part in parts]) for name in parts[0]}
    log_px, elbo, best = each["log_px"], each["elbo"], each["best_elbo"]
    means = {"log_px": log_px, "elbo": elbo, "best_elbo": best}
    errors = {"best_elbo": best, "approximation": log_px - best, "amortization": best - elbo}
    root = math.sqrt(len(parts))
    return (
        {name: value.mean(0) for name, value in means.items()}
        | {f"{name}_std_error": value.std(0) / root for name, value in errors.items()}
        | {"pareto_k": each["pareto_k"].amax(0)}
    )


def _generalization(vae, elbo, validation, num_samples, seed, memory_budget) -> Estimate | None:
    """Return the mean ELBO of the data minus that of held-out data, two independent means."""
    if validation is None:
        return None
    held_out = validation if isinstance(validation, tuple | list) else (validation,)
    data = validated(vae, *held_out)
    options = {"num_samples": min(num_samples, 100), "memory_budget": memory_budget}
    with diagnosing(vae, seed):
        terms = over_draws(vae, data, read_terms, **options)
    log_weights = terms["log_likelihood"] + terms["log_prior"] - terms["log_guide"]
    ours, theirs = mean_of(elbo), mean_of(log_weights.mean(0))
    return Estimate(ours.value - theirs.value, math.hypot(ours.std_error, theirs.std_error))
