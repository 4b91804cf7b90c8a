"""Warm-up of Hamiltonian chains: step size, scale, path length and style, for each datum.

All C chains of a datum adapt together over W transitions, in Stan's windows:

    first 15 %      step sizes only, while chains leave the guide's draws
    windows         25, 50, 100, … transitions, each of which ends with a new scale A
    last 15 %       the step size of the chosen style only

Scale: A Aᵀ is the covariance of the window's draws. Its variances are averaged with the previous
ones, which count as 5 draws; its correlations with 0, which counts as D draws. A is the lower
Cholesky factor up to D = 100, and diagonal beyond; it starts as the guide's standard deviations.

Styles: Hamiltonian paths, Langevin moves (paths of one step) and random walks take turns, each with
its own step size; random walks are best where gradients jump. The last window chooses for each
datum the one with the largest mean squared jump per transition of L steps: that of u and of |u −
median|, in units of their variances, in the dimension where it is least. Paths that mirror u move
its mean but not its variance.

Step size: log ε ← log ε + t^−0.6 (acceptance − target) after the t-th use of a style in a phase,
which ends with the mean of log ε over its second half.

Path length: the number of steps closest to π / (2 ε), a quarter of the orbit of a normal density,
from 1 to L. Then L is lowered as far as all data have paths of this length, and draws with a
correlation of at most ½.

References:
    The No-U-Turn Sampler, Hoffman & Gelman, 2014, https://arxiv.org/abs/1111.4246
    Stan Reference Manual, HMC algorithm parameters, https://mc-stan.org/docs/reference-manual/
    A Conceptual Introduction to Hamiltonian Monte Carlo, Betancourt, 2017,
    https://arxiv.org/abs/1701.02434
    Optimal scaling for various Metropolis-Hastings algorithms, Roberts & Rosenthal, 2001,
    https://doi.org/10.1214/ss/1015346320
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pyrovae.core.hamiltonian import (
    MAX_PATH,
    TARGET_ACCEPTANCE,
    Kernel,
    Point,
    Style,
    adapted,
    point_at,
    transition,
)
from pyrovae.core.joint import Unconstrained
from pyrovae.evidence.annealing import SCALE_DRAWS, spread

GAIN_POWER = 0.6  # the gain of the stochastic approximation decreases as t^-0.6
FIRST_WINDOW = 25
EDGE = 0.15  # share of the first and of the last phase, as Stan's for short warm-ups
DENSE_LIMIT = 100  # up to here a dense scale pays off where latents correlate
PRIOR_DRAWS = 5  # weight of the previous variances; Stan's is 5 draws too
MAX_CORRELATION = 0.5


class Candidate(NamedTuple):
    """A style that is tried: whether its paths have one step, its drift, and its acceptance."""

    is_short: bool
    drift: float
    target: float


# the last two have the optimal acceptances of Roberts & Rosenthal (2001)
STYLES = (
    Candidate(False, 1.0, TARGET_ACCEPTANCE),
    Candidate(True, 1.0, 0.574),
    Candidate(True, 0.0, 0.35),
)


class Chains(NamedTuple):
    """Chains of all data while they adapt.

    Attributes:
        point: the current state.
        scale: A, (N, D) or (N, D, D).
        steps: ε of each style, (styles, N).
        path: u at the start of the phase and after each transition, (T + 1, C, N, D).
    """

    point: Point
    scale: Tensor
    steps: Tensor
    path: Tensor


def warmed_up(
    density: Unconstrained, num_chains: int, num_warmup: int, num_leapfrog: int
) -> tuple[Point, Kernel]:
    """Return chains near the posterior, and the frozen kernel that W transitions adapted.

    Args:
        density: p and q of the data.
        num_chains: C.
        num_warmup: W.
        num_leapfrog: L, the most leapfrog steps of a transition.
    """
    u, scale = density.draw_guide(num_chains), spread(density.draw_guide(SCALE_DRAWS))
    steps = scale.new_full((len(STYLES), len(scale)), MAX_PATH / num_leapfrog)
    chains = Chains(point_at(density.terms, u), scale, steps, u[None])
    first, *windows, last = phases(num_warmup)
    chains = _adapted(density, chains, first, num_leapfrog)
    best = torch.zeros(len(scale), dtype=torch.long, device=scale.device)
    for num in windows:
        chains = _adapted(density, chains, num, num_leapfrog)
        if num >= len(STYLES):
            best = best_styles(chains.path)
        chains = chains._replace(scale=scale_of(chains.path, chains.scale))
    chains = _adapted(density, chains, last, num_leapfrog, best)
    step = chains.steps.gather(0, best[None])[0]
    style = _style(best, step, num_leapfrog)
    needed = num_needed(chains.path, style.path, num_leapfrog)
    return chains.point, Kernel(1.0, step, chains.scale, needed, style)


def _adapted(
    density: Unconstrained, chains: Chains, num: int, num_leapfrog: int, best: Tensor | None = None
) -> Chains:
    """Make `num` transitions in the best styles, or in each style in turn, and adapt step sizes."""
    point, scale, steps, _ = chains
    path, log_steps, every = [point.position], [], torch.arange(len(scale), device=scale.device)
    targets = scale.new_tensor([style.target for style in STYLES])
    for t in range(num):
        turn = torch.full_like(every, t % len(STYLES)) if best is None else best
        gain = (t // len(STYLES) + 1 if best is None else t + 1) ** -GAIN_POWER
        step = steps[turn, every]
        style = _style(turn, step, num_leapfrog)
        kernel = Kernel(1.0, step, scale, num_leapfrog, style)
        point, info = transition(density.terms, point, kernel)
        steps = steps.clone()
        # random walks move 2.4/√D scales at their best, paths at most a quarter orbit
        shortest = torch.where(style.drift > 0, 1.0, 0.5)
        steps[turn, every] = adapted(step, info.acceptance, shortest, gain, targets[turn])
        path.append(point.position)
        log_steps.append(steps.log())
    if num:
        steps = torch.stack(log_steps[num // 2 :]).mean(0).exp()
    return Chains(point, scale, steps, torch.stack(path))


def _style(index: Tensor, step: Tensor, num_leapfrog: int) -> Style:
    """Return the styles of these indices (N,), with paths of a quarter orbit."""
    is_short = torch.tensor([style.is_short for style in STYLES], device=step.device)[index]
    drift = step.new_tensor([style.drift for style in STYLES])[index]
    length = (MAX_PATH / step).round().clamp(1, num_leapfrog).long()
    return Style(torch.where(is_short, 1, length), drift)


def scale_of(path: Tensor, scale: Tensor) -> Tensor:
    """Return A of the draws in a window, (N, D, D), or (N, D) for more than 100 dimensions.

    Args:
        path: (T, C, N, D); a single draw leaves A as it is.
        scale: the previous A, which counts as 5 draws of variances.
    """
    draws = path.flatten(0, 1)
    num, dim = len(draws), draws.shape[-1]
    if num < 2:
        return scale
    before = scale.square() if scale.dim() == 2 else scale.square().sum(-1)
    variance = draws.var(0)
    width = ((num * variance + PRIOR_DRAWS * before) / (num + PRIOR_DRAWS)).sqrt()
    if dim > DENSE_LIMIT:
        return width
    unit = (draws - draws.mean(0)) / variance.clamp(min=1e-24).sqrt()
    correlation = torch.einsum("snd,sne->nde", unit, unit) / (num - 1)
    eye = torch.eye(dim).to(correlation)
    shrunk = torch.where(eye > 0, 1.0, correlation * num / (num + dim))
    factor, failed = torch.linalg.cholesky_ex(shrunk)
    factor = torch.where(failed[:, None, None] > 0, eye, factor)
    return width[..., None] * factor


def squared_jumps(path: Tensor) -> Tensor:
    """Return the mean over chains of squared jumps of u and |u − median|, (T, N, 2 D).

    In units of their variances, so that independent draws have a mean of 2.

    Args:
        path: (T + 1, C, N, D).
    """
    distance = (path - path.flatten(0, 1).median(0).values).abs()
    both = torch.cat([path, distance], -1)
    variance = both.flatten(0, 1).var(0).clamp(min=1e-24)
    return (both.diff(dim=0).square() / variance).mean(1)


def best_styles(path: Tensor) -> Tensor:
    """Return the index of the style with the largest jumps, (N,), from a path with all in turn."""
    jumps, num = squared_jumps(path), len(STYLES)
    return torch.stack([jumps[i::num].mean(0).amin(-1) for i in range(num)]).argmax(0)


def num_needed(path: Tensor, length: Tensor, num_leapfrog: int) -> int:
    """Return the leapfrog steps per transition that all data need, from 1 to L.

    Where the correlation of a datum is ρ after L steps, it is ρ^(n/L) after n.

    Args:
        path: (T + 1, C, N, D), with L steps per transition.
        length: (N,), leapfrog steps of a path.
        num_leapfrog: L.
    """
    if len(path) == 1:
        return num_leapfrog
    correlation = 1 - squared_jumps(path).mean(0).amin(-1) / 2
    rate = correlation.clamp(0.01, 0.99).log() / num_leapfrog
    needed = torch.maximum((math.log(MAX_CORRELATION) / rate).ceil(), length)
    return int(needed.amax().clamp(max=num_leapfrog))


def phases(num_warmup: int) -> list[int]:
    """Return the lengths of the first phase, the windows and the last phase; W in total.

    A window is the last one if the next, twice as long, would not fit.

    Example:
        >>> phases(300), phases(20), phases(0)
        ([45, 25, 50, 135, 45], [3, 14, 3], [0, 0, 0])
    """
    edge = int(EDGE * num_warmup)
    left, size, windows = num_warmup - 2 * edge, FIRST_WINDOW, []
    while left >= 3 * size:
        windows.append(size)
        left, size = left - size, 2 * size
    return [edge, *windows, left, edge]
