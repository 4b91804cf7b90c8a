"""Hamiltonian Monte Carlo for many data at once, each with its own chains and step size.

A kernel that leaves the tempered density of every datum i invariant,

    f(u) ∝ exp(b_i(u) + β d_i(u)),    u (S, N, D): S chains, N data, D numbers each

with momentum r ~ N(0, I) and L leapfrog steps of size ε_i ξ along scales s_i, ξ ~ U(0.8, 1.2) to
avoid periodic orbits, accepted with probability min(1, e^ΔH). Nothing is shared between data: a
batch of N is N chains, not one of dimension N·D with a single step size and acceptance for all.

ε and s must not depend on the chain that the kernel moves: adapt them on other draws, then
freeze them. Proposals whose density is not finite are rejected.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Tempered = Callable[[Tensor], tuple[Tensor, Tensor]]  # u (S, N, D) → b, d: (S, N) each

JITTER = 0.2
TARGET_ACCEPTANCE = 0.8
# in units of the scales: a quarter of the orbit around a Gaussian of that scale forgets its
# start; half an orbit mirrors it, so that means mix fast and variances never do
MAX_PATH = math.pi / 2


class Point(NamedTuple):
    """Current state of the chains.

    Attributes:
        position: u, (S, N, D).
        base, part: b(u) and d(u), (S, N), nats.
        gradient: gradient of b + β d, (S, N, D), at the β of the point's kernel.
    """

    position: Tensor
    base: Tensor
    part: Tensor
    gradient: Tensor


class Kernel(NamedTuple):
    """Parameters of one transition.

    Attributes:
        beta: β in [0, 1], of f ∝ exp(b + β d).
        step_size: ε, (N,), in units of the scales.
        scale: s, (N, D), in the units of u.
        num_leapfrog: L.
    """

    beta: float
    step_size: Tensor
    scale: Tensor
    num_leapfrog: int


def point_at(density: Tempered, position: Tensor, beta: float = 1.0) -> Point:
    """Return the point at a position, with its densities and gradient.

    Example:
        >>> point = point_at(lambda u: (-(u**2).sum(-1) / 2, 0 * u[..., 0]), torch.ones(1, 3, 2))
        >>> point.base[0], point.gradient[0, 0]
        (tensor([-1., -1., -1.]), tensor([-1., -1.]))
    """
    with torch.enable_grad():
        position = position.detach().requires_grad_()
        base, part = density(position)
        (gradient,) = torch.autograd.grad((base + beta * part).sum(), position)
    return Point(position.detach(), base.detach(), part.detach(), gradient)


def transition(density: Tempered, point: Point, kernel: Kernel) -> tuple[Point, Tensor]:
    """Make one Hamiltonian transition of all chains, with draws from the global generator.

    Args:
        density: u (S, N, D) → b, d, (S, N) each, nats, differentiable.
        point: the current point, evaluated at the kernel's β.
        kernel: the frozen kernel.

    Returns:
        The next point, and the acceptance probability, (S, N).

    References:
        MCMC using Hamiltonian dynamics, Neal, 2011, https://arxiv.org/abs/1206.1901

    Example:
        >>> def normal(u):
        ...     return -(u**2).sum(-1) / 2, torch.zeros(u.shape[:-1])
        >>> _ = torch.manual_seed(0)
        >>> kernel = Kernel(1.0, torch.full((3,), 0.3), torch.ones(3, 2), 5)
        >>> point, acceptance = transition(normal, point_at(normal, torch.zeros(4, 3, 2)), kernel)
        >>> point.position.shape, bool((acceptance > 0.9).all())
        (torch.Size([4, 3, 2]), True)
    """
    num_chains, num_data, _ = point.position.shape
    momentum = torch.randn_like(point.position)
    jitter = 1 + JITTER * (2 * torch.rand(num_chains, num_data).to(point.position) - 1)
    step = (kernel.step_size * jitter)[..., None]  # (S, N, 1)
    new, half = point, momentum + 0.5 * step * kernel.scale * point.gradient
    for i in range(kernel.num_leapfrog):
        new = point_at(density, new.position + step * kernel.scale * half, kernel.beta)
        last = i == kernel.num_leapfrog - 1
        half = half + (0.5 if last else 1.0) * step * kernel.scale * new.gradient
    gain = _energy(new, half, kernel.beta) - _energy(point, momentum, kernel.beta)
    acceptance = gain.clamp(max=0.0).exp().nan_to_num(nan=0.0)
    return _choose(torch.rand_like(acceptance) < acceptance, new, point), acceptance


def _energy(point: Point, momentum: Tensor, beta: float) -> Tensor:
    """Return log f(u) − |r|²/2, minus the Hamiltonian, (S, N)."""
    return point.base + beta * point.part - 0.5 * (momentum**2).sum(-1)


def _choose(is_accepted: Tensor, new: Point, old: Point) -> Point:
    return Point(
        *(
            torch.where(is_accepted if n.dim() == 2 else is_accepted[..., None], n, o)
            for n, o in zip(new, old, strict=True)
        )
    )


class Style(NamedTuple):
    """How the L density evaluations of a transition are used, for each datum.

    Attributes:
        is_short: (N,), whether every leapfrog step is accepted or rejected on its own, with new
            momentum: L short moves instead of one long one, for densities with kinks.
        drift: (N,), 1 to follow the gradient; 0 makes a short move a random walk.
        target: (N,), the acceptance that the step size is adapted to.
    """

    is_short: Tensor
    drift: Tensor
    target: Tensor


# long Hamiltonian paths, Langevin moves, random walks: (is_short, drift, target acceptance), the
# last two at the optima of Roberts & Rosenthal (2001), https://doi.org/10.1214/ss/1015346320
STYLES = ((False, 1.0, TARGET_ACCEPTANCE), (True, 1.0, 0.574), (True, 0.0, 0.35))


def styled_transition(
    density: Tempered, point: Point, kernel: Kernel, style: Style
) -> tuple[Point, Tensor]:
    """Make one transition of L density evaluations of all chains, each datum in its own style.

    Args:
        density, point, kernel: as for `transition`.
        style: for each datum.

    Returns:
        The next point, and the mean acceptance probability of its moves, (S, N).
    """
    num_chains, num_data, _ = point.position.shape
    jitter = 1 + JITTER * (2 * torch.rand(num_chains, num_data).to(point.position) - 1)
    step = (kernel.step_size * jitter)[..., None] * kernel.scale  # (S, N, D)
    kick = 0.5 * step * style.drift[:, None]
    new, first = point, torch.randn_like(point.position)
    momentum, accepted = first, torch.zeros_like(point.base)
    for i in range(kernel.num_leapfrog):
        half = momentum + kick * new.gradient
        new = point_at(density, new.position + step * half, kernel.beta)
        momentum = half + kick * new.gradient
        ends = style.is_short if i < kernel.num_leapfrog - 1 else torch.ones_like(style.is_short)
        gain = _energy(new, momentum, kernel.beta) - _energy(point, first, kernel.beta)
        acceptance = gain.clamp(max=0.0).exp().nan_to_num(nan=0.0)
        point = _choose(ends & (torch.rand_like(acceptance) < acceptance), new, point)
        new = _choose(ends.expand_as(acceptance), point, new)
        fresh = torch.randn_like(momentum)
        first, momentum = (torch.where(ends[:, None], fresh, r) for r in (first, momentum))
        accepted = accepted + torch.where(ends, acceptance, 0.0)
    num_moves = torch.where(style.is_short, kernel.num_leapfrog, 1)
    return point, accepted / num_moves


def adapted(
    step_size: Tensor,
    acceptance: Tensor,
    num_leapfrog: int | Tensor,
    gain: float,
    target: float | Tensor = TARGET_ACCEPTANCE,
) -> Tensor:
    """Move log ε by gain · (acceptance − target), with paths of at most a quarter orbit.

    Args:
        step_size: ε, (N,).
        acceptance: (S, N), of the transition at ε; averaged over chains.
        num_leapfrog: L of a path, or (N,).
        gain: gain of the stochastic approximation.
        target: the acceptance to reach, (N,).

    Returns:
        (N,), the next ε.

    Example:
        >>> adapted(torch.tensor([0.1]), torch.zeros(4, 1), 5, 0.5) < 0.1
        tensor([True])
    """
    moved = step_size * (gain * (acceptance.mean(0) - target)).exp()
    return moved.clamp(max=torch.as_tensor(MAX_PATH / num_leapfrog).to(moved))
