"""Hamiltonian Monte Carlo for many data at once, each with its own chains and step size.

A kernel that leaves the tempered density of every datum i invariant,

    f(u) ∝ exp(b_i(u) + β d_i(u)),    u (S, N, D): S chains, N data, D numbers each

with momentum r ~ N(0, I) and leapfrog steps of size ε_i ξ along a scale A_i, so that the mass
matrix is (A_i A_iᵀ)⁻¹; ξ ~ U(0.8, 1.2) avoids periodic orbits:

    r ← r + ½ ε ξ Aᵀ ∇log f(u),   u ← u + ε ξ A r,   r ← r + ½ ε ξ Aᵀ ∇log f(u)

The end of a path is accepted with probability min(1, e^−ΔH), H = −log f(u) + |r|²/2. Nothing is
shared between data: a batch of N is N chains, not one of dimension N·D with a single step size and
acceptance for all. All data take L leapfrog steps, each cut into paths of its own length (`Style`).

ε and A must not depend on the chain that the kernel moves: adapt them on other draws, then
freeze them. Proposals whose density is not finite are rejected.

References:
    MCMC using Hamiltonian dynamics, Neal, 2011, https://arxiv.org/abs/1206.1901
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
MAX_ENERGY_ERROR = 1000.0  # nats; a path with a larger one diverged (Stan's threshold)


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


class Style(NamedTuple):
    """How each datum uses the L leapfrog steps of a transition.

    Attributes:
        path: (N,), leapfrog steps from one momentum to the next, each path accepted or rejected on
            its own; the last one of a transition ends with it.
        drift: (N,), 1 to follow the gradient; 0 makes a path of one step a random walk.
    """

    path: Tensor
    drift: Tensor


class Kernel(NamedTuple):
    """Parameters of one transition.

    Attributes:
        beta: β in [0, 1], of f ∝ exp(b + β d).
        step_size: ε, (N,), in units of the scale.
        scale: A in the units of u: (N, D) if it is diagonal, (N, D, D) otherwise.
        num_leapfrog: L.
        style: None for one path of L steps.
    """

    beta: float
    step_size: Tensor
    scale: Tensor
    num_leapfrog: int
    style: Style | None = None


class Info(NamedTuple):
    """What happened in a transition, (S, N) each.

    Attributes:
        acceptance: mean acceptance probability of its paths.
        energy: H at the end of the last path, as accepted or rejected, nats.
        is_divergent: whether the energy of a path rose by more than 1000 nats or was not finite;
            false for a random walk.
    """

    acceptance: Tensor
    energy: Tensor
    is_divergent: Tensor


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


def transition(density: Tempered, point: Point, kernel: Kernel) -> tuple[Point, Info]:
    """Make one transition of L leapfrog steps of all chains, with the global generator.

    Args:
        density: u (S, N, D) → b, d, (S, N) each, nats, differentiable.
        point: the current point, evaluated at the kernel's β.
        kernel: the frozen kernel.

    Returns:
        The next point, and what happened.

    References:
        MCMC using Hamiltonian dynamics, Neal, 2011, https://arxiv.org/abs/1206.1901

    Example:
        >>> def normal(u):
        ...     return -(u**2).sum(-1) / 2, torch.zeros(u.shape[:-1])
        >>> _ = torch.manual_seed(0)
        >>> kernel = Kernel(1.0, torch.full((3,), 0.3), torch.ones(3, 2), 5)
        >>> point, info = transition(normal, point_at(normal, torch.zeros(4, 3, 2)), kernel)
        >>> point.position.shape, bool((info.acceptance > 0.9).all())
        (torch.Size([4, 3, 2]), True)
    """
    num_chains, num_data, _ = point.position.shape
    scale, num_leapfrog, style = kernel.scale, kernel.num_leapfrog, kernel.style
    first = torch.randn_like(point.position)
    uniform = torch.rand(num_chains, num_data, dtype=torch.float32).to(point.position)
    jitter = 1 + JITTER * (2 * uniform - 1)
    step = (kernel.step_size * jitter)[..., None]  # (S, N, 1)
    kick = step if style is None else step * style.drift[:, None]
    new, half = point, first + 0.5 * _across(kick, scale, point.gradient)
    ends = []
    for i in range(1, num_leapfrog + 1):
        new = point_at(density, new.position + _along(step, scale, half), kernel.beta)
        push = _across(kick, scale, new.gradient)
        if style is None and i < num_leapfrog:
            half = half + push
            continue
        end = _end(point, first, new, half + 0.5 * push, kernel, i)
        ends.append(end)
        point = _choose(end.is_accepted, new, point)
        if i < num_leapfrog:
            fresh, is_end = torch.randn_like(first), end.is_end[:, None]
            new = _choose(end.is_end.expand_as(point.base), point, new)
            first = torch.where(is_end, fresh, first)
            half = torch.where(
                is_end, fresh + 0.5 * _across(kick, scale, point.gradient), half + push
            )
    return point, _summary(ends)


def _along(step: Tensor, scale: Tensor, momentum: Tensor) -> Tensor:
    """Return the move ε A r, (S, N, D)."""
    if scale.dim() == 2:
        return step * scale * momentum
    return step * (scale @ momentum[..., None])[..., 0]


def _across(step: Tensor, scale: Tensor, gradient: Tensor) -> Tensor:
    """Return the change of momentum ε Aᵀ g, (S, N, D)."""
    if scale.dim() == 2:
        return step * scale * gradient
    return step * (scale.mT @ gradient[..., None])[..., 0]


class _End(NamedTuple):
    """The end of a path where `is_end`, (N,); the rest are (S, N)."""

    is_end: Tensor
    is_accepted: Tensor
    acceptance: Tensor
    energy: Tensor
    is_divergent: Tensor


def _end(
    old: Point, first: Tensor, new: Point, momentum: Tensor, kernel: Kernel, step: int
) -> _End:
    """Accept or reject the paths that end after this step of the transition."""
    before, after = _energy(old, first, kernel.beta), _energy(new, momentum, kernel.beta)
    error = after - before
    acceptance = error.neg().clamp(max=0.0).exp().nan_to_num(nan=0.0)
    is_divergent = ~(error <= MAX_ENERGY_ERROR)
    is_end = torch.ones_like(kernel.step_size, dtype=torch.bool)
    if kernel.style is not None:
        path, drift = kernel.style
        is_end = (step % path == 0) | (step == kernel.num_leapfrog)
        is_divergent = is_divergent & is_end & (drift > 0)
    is_accepted = is_end & (torch.rand_like(acceptance) < acceptance)
    energy = torch.where(is_accepted, after, before)
    return _End(is_end, is_accepted, acceptance, energy, is_divergent)


def _summary(ends: list[_End]) -> Info:
    is_end, _, acceptance, energy, is_divergent = map(torch.stack, zip(*ends, strict=True))
    total = torch.where(is_end[:, None], acceptance, 0.0).sum(0)
    return Info(total / is_end.sum(0), energy[-1], is_divergent.any(0))


def _energy(point: Point, momentum: Tensor, beta: float) -> Tensor:
    """Return H = |r|²/2 − log f(u), (S, N)."""
    return 0.5 * (momentum**2).sum(-1) - (point.base + beta * point.part)


def _choose(is_accepted: Tensor, new: Point, old: Point) -> Point:
    return Point(
        *(
            torch.where(is_accepted if n.dim() == 2 else is_accepted[..., None], n, o)
            for n, o in zip(new, old, strict=True)
        )
    )


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
    longest = torch.as_tensor(MAX_PATH / num_leapfrog, dtype=moved.dtype, device=moved.device)
    return moved.clamp(max=longest)
