"""Semi-amortized inference: variational parameters optimized per datum, from the encoder's output.

    λ_i* = argmax_λ E_{q(z; λ)}[log p(x_i, z) − log q(z; λ)],    λ_i⁰ = the encoder's at x_i

The family stays, without the network. ELBO(λ*) − ELBO(λ⁰) is the amortization gap, and the
remainder to log p(x) the approximation gap (Cremer et al. 2018). λ are the parameters that the
guide's distribution declares in `arg_constraints`, optimized on the real line (`leaves`); in other
programs than a `VAE`, offsets of them (`offsets`). The gradients of a `VAE` are pathwise without
the score term (Roeder et al. 2017): unbiased, and free of noise where the family contains the
posterior.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from pyrovae.checks import real_number, whole_number
from pyrovae.contract import validated
from pyrovae.core.conditional import given_globals
from pyrovae.core.draws import diagnosing
from pyrovae.core.joint import VAEJoint
from pyrovae.data import Source
from pyrovae.evidence.annealing import BACKWARD_COST, rows_at_a_time
from pyrovae.posterior.leaves import Leaf, leaves_of, rebuilt, units_of
from pyrovae.posterior.offsets import joined, no_worse, optimized
from pyrovae.runtime.ambient import exclusive
from pyrovae.runtime.random_stream import RandomStream
from pyrovae.vae import is_plain_vae

LOCATION_STEP = 4.0  # standard deviations of the guide at a learning rate of 1
CHECK_DRAWS = 100  # for the ELBO before and after


class Refined(NamedTuple):
    """A guide refined for each datum, with its gain in ELBO.

    Attributes:
        guide: q(z; λ*), batch_shape (N,), event_shape (D,); of another program than a `VAE`, the
            program with the refined guide, for these data in this order.
        elbo: (N,) float64, its ELBO at 100 draws, nats; higher is better. Given global
            latents w, and averaged over draws w ~ q(w).
        start_elbo: (N,) float64, the encoder's ELBO with the same noise; elbo − start_elbo
            estimates the amortization gap.
    """

    guide: Distribution | nn.Module
    elbo: Tensor
    start_elbo: Tensor


@exclusive
def refine(
    program: nn.Module,
    x: Any,
    y: Any = None,
    mask: Any = None,
    *,
    num_steps: int = 200,
    learning_rate: float = 0.05,
    num_samples: int = 8,
    seed: int | None = 0,
    memory_budget: int | None = None,
) -> Refined:
    """Optimize the guide's parameters for each datum by Adam, from the encoder's output.

    The model's parameters and q(w) of global latents are unchanged. The learning rate decays to 0
    along a cosine.

    Args:
        program: a program, the local densities of whose guide are reparameterized and declare their
            parameters.
        x: (N, *event).
        y: (N, …), covariates.
        mask: of x's shape, true where x is observed.
        num_steps: number of Adam steps.
        learning_rate: initial rate of Adam, for unconstrained parameters such as log-scales; a
            location moves by four of the guide's standard deviations at a rate of 1, so that the
            units of the latent space do not matter. Other programs than a `VAE` have no such units.
        num_samples: S, draws of z per datum and step.
        seed: random seed; None uses a fresh one.
        memory_budget: bytes for the draws of one chunk of data, as in `log_evidence`.

    Returns:
        Refined: the guide, and ELBOs (N,).

    Raises:
        DataError: x does not fit the program.
        ConfigError: the guide lacks pathwise gradients or declared parameters (a flow), or a
            setting is invalid.

    References:
        Semi-Amortized Variational Autoencoders, Kim et al., 2018,
        https://arxiv.org/abs/1802.02550
        Inference Suboptimality in Variational Autoencoders, Cremer, Li & Duvenaud, 2018,
        https://arxiv.org/abs/1801.03558

    Example:
        >>> import pyrovae as pv
        >>> vae = pv.build((2,), latent_dim=1, seed=0)
        >>> found = refine(vae, torch.ones(3, 2), num_steps=100)
        >>> found.guide.batch_shape, bool(found.elbo.mean() > found.start_elbo.mean())
        (torch.Size([3]), True)
    """
    num_steps = whole_number(num_steps, "num_steps", 1)
    num_samples = whole_number(num_samples, "num_samples", 1)
    learning_rate = real_number(learning_rate, "learning_rate", above=0.0)
    data = validated(program, x, y, mask)
    if not is_plain_vae(program):
        how = (num_steps, learning_rate, num_samples)
        return _refined_program(program, data, how, seed, memory_budget)
    with diagnosing(program, seed):
        chunks = rows_at_a_time(program, data, num_samples, memory_budget)
        pieces = [VAEJoint(program, rows) for rows in chunks]
        moved = [_optimized(joint, num_steps, learning_rate, num_samples) for joint in pieces]
        chunk = BACKWARD_COST * num_samples  # without gradients, as large as a step with them
        checked = [_no_worse(*p, chunk) for p in zip(pieces, moved, strict=True)]
        found, elbos = zip(*checked, strict=True)
    return Refined(
        rebuilt(pieces[0].guide, _joined(found)),
        *(torch.cat(side) for side in zip(*elbos, strict=True)),
    )


def _refined_program(
    program: nn.Module,
    data: Source,
    how: tuple[int, float, int],
    seed: int | None,
    memory_budget: int | None,
) -> Refined:
    parts = []
    with diagnosing(program, seed):
        one = given_globals(program, data, 1)[0]  # takes as much memory as the program
        for rows in rows_at_a_time(one, data, how[-1], memory_budget):
            chunk = BACKWARD_COST * how[-1]  # without gradients, as large as a step with them
            parts.append(no_worse(optimized(program, rows, *how), rows, CHECK_DRAWS, chunk))
    found, after, before = zip(*parts, strict=True)
    return Refined(joined(list(found)), torch.cat(after), torch.cat(before))


def _optimized(joint: VAEJoint, num_steps: int, rate: float, num_samples: int) -> list[Leaf]:
    starts, units = leaves_of(joint.guide), units_of(joint.guide, location=LOCATION_STEP)
    free = [torch.zeros_like(leaf.free).requires_grad_() for leaf in starts]
    optimizer = torch.optim.Adam(free, lr=rate)

    def leaves() -> list[Leaf]:
        rows = zip(starts, units, free, strict=True)
        return [s._replace(free=s.free + u * d) for s, u, d in rows]

    for step in range(num_steps):
        optimizer.param_groups[0]["lr"] = rate * 0.5 * (1 + math.cos(math.pi * step / num_steps))
        with torch.enable_grad():
            moved = leaves()
            q_z = rebuilt(joint.guide, moved)
            fixed = rebuilt(joint.guide, [leaf._replace(free=leaf.free.detach()) for leaf in moved])
            z = q_z.rsample((num_samples,))
            log_w = sum(joint.terms({"z": z})) - fixed.log_prob(z)
            # a sum over data: parameters of a datum enter its own term only, and Adam is per entry
            gradients = torch.autograd.grad(-log_w.mean(0).sum(), free)
        for parameter, gradient in zip(free, gradients, strict=True):
            parameter.grad = gradient.nan_to_num(0.0, 0.0, 0.0)
        optimizer.step()
    return [leaf._replace(free=leaf.free.detach()) for leaf in leaves()]


def _joined(found: list[list[Leaf]]) -> list[Leaf]:
    """Concatenate the leaves of consecutive chunks of data."""
    return [
        Leaf(leaves[0].transform, torch.cat([leaf.free for leaf in leaves]))
        for leaves in zip(*found, strict=True)
    ]


def _no_worse(
    joint: VAEJoint, leaves: list[Leaf], chunk: int
) -> tuple[list[Leaf], tuple[Tensor, Tensor]]:
    """Keep each datum's start where its ELBO is higher; return leaves, and ELBO after and before.

    Adam takes full steps even for the smallest gradients, so it moves away from an optimum.
    """
    seed = int(torch.randint(2**31, ()))  # the same noise for both
    guides = (rebuilt(joint.guide, leaves), joint.guide)
    after, before = (_elbo(joint, q, seed, chunk) for q in guides)
    is_better = after >= before
    kept = [
        Leaf(new.transform, torch.where(_expanded(is_better, new.free), new.free, start.free))
        for new, start in zip(leaves, leaves_of(joint.guide), strict=True)
    ]
    return kept, (torch.maximum(after, before), before)


def _expanded(is_better: Tensor, free: Tensor) -> Tensor:
    return is_better.reshape(-1, *[1] * (free.dim() - 1))


def _elbo(joint: VAEJoint, q_z: Distribution, seed: int, chunk: int) -> Tensor:
    total = torch.zeros(())
    with RandomStream(seed):
        for start in range(0, CHECK_DRAWS, chunk):
            z = q_z.sample((min(chunk, CHECK_DRAWS - start),))
            total = total + (sum(joint.terms({"z": z})) - q_z.log_prob(z)).double().sum(0)
    return total / CHECK_DRAWS
