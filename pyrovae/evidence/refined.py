"""Estimate log p(x) by importance sampling from a normal density refined for each datum.

    q_i(u) = N(m_i, L_i L_iᵀ) on the real line, z = T(u),
    (m_i, L_i) = argmax E_q[log p(x_i, u) − log q_i(u)]        by Adam, from the guide's moments

An encoder's guide is often too far from the posterior to sample from: its means are amortized, and
its covariance is usually diagonal. Refined with a full covariance, it is near enough for most data.
m and L are in units of the guide's mean and standard deviation, so that a step of Adam has the same
meaning for all data. The gradients are pathwise without the score term (Roeder et al. 2017), which
vanish without noise where q_i is the posterior. Then the mixture of q_i, its widened versions and
the prior is sampled, as in `evidence.importance`: E[log p̂] ≤ log p(x) whatever q_i is.

References:
    Inference Suboptimality in Variational Autoencoders, Cremer, Li & Duvenaud, 2018,
    https://arxiv.org/abs/1801.03558
    Sticking the Landing, Roeder, Wu & Duvenaud, 2017, https://arxiv.org/abs/1703.09194
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal

from pyrovae.checks import real_number, whole_number
from pyrovae.core.joint import ProgramJoint, Unconstrained, VAEJoint, joint_of
from pyrovae.core.proposals import Guide, Mixture
from pyrovae.core.summed import without_discrete
from pyrovae.data import Batch, Source
from pyrovae.densities.supports import covers_line
from pyrovae.errors import ConfigError
from pyrovae.evidence.annealing import SCALE_DRAWS, rows_at_a_time, spread
from pyrovae.evidence.importance import Draws, sampled
from pyrovae.evidence.record import Evidence, concat

DRAWS_PER_STEP = 4
MAX_DENSE = 100  # D: beyond it the covariance is diagonal


@dataclass(frozen=True)
class Refined(Draws):
    """Importance sampling from a normal density refined for each datum.

    For programs with local latents that map from the real line; discrete latents with few values
    are summed out.

    Args:
        num_samples, std_error, ess, max_samples: draws per datum, as for `Draws`.
        num_steps: number of Adam steps, each with 4 draws per datum.
        learning_rate: its initial rate, in standard deviations of the guide.

    References:
        Inference Suboptimality in Variational Autoencoders, Cremer, Li & Duvenaud, 2018,
        https://arxiv.org/abs/1801.03558

    Example:
        >>> import pyrovae as pv
        >>> vae = pv.build((2,), latent_dim=1, seed=0)
        >>> x = torch.ones(1, 2)
        >>> found = pv.log_evidence(vae, x, method=Refined(num_steps=50))
        >>> exact = pv.log_evidence(vae, x, method="grid").log_px
        >>> bool(found.lower < exact < found.upper)
        True
    """

    num_steps: int = 200
    learning_rate: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        whole_number(self.num_steps, "num_steps", 1)
        real_number(self.learning_rate, "learning_rate", above=0.0)

    def __call__(
        self, program: nn.Module, data: Source | Batch, *, memory_budget: int | None = None
    ) -> Evidence:
        """Return the estimate of log p(x) for each datum; errors as in `log_evidence`."""
        program, parts = without_discrete(program, data), []
        for rows in rows_at_a_time(program, data, DRAWS_PER_STEP, memory_budget):
            space = _line_of(joint_of(program, rows))
            found = optimized(space, self.num_steps, self.learning_rate)
            guide = Guide(lambda n, q=found: q.sample((n,)), found.log_prob)
            chunk = 3 * DRAWS_PER_STEP  # without gradients, as large as a step with them
            parts.append(sampled(Mixture(space, guide), self, chunk))
        return concat(parts)


class Parameters(NamedTuple):
    """N(m, L Lᵀ) in units of the guide's moments, by datum.

    Attributes:
        center, scale: mean and standard deviation of the guide, (N, D).
        loc: (N, D), (m − center) / scale.
        log_diagonal: (N, D), of L relative to scale.
        below: (N, D, D), whose entries below the diagonal are those of L relative to the diagonal
            of their row; (N, 0, 0) for a diagonal covariance.
    """

    center: Tensor
    scale: Tensor
    loc: Tensor
    log_diagonal: Tensor
    below: Tensor

    def density(self) -> Distribution:
        """Return the density, of batch shape (N,)."""
        mean = self.center + self.scale * self.loc
        diagonal = self.scale * self.log_diagonal.exp()
        if not self.below.numel():
            return Independent(Normal(mean, diagonal), 1)
        factor = self.below.tril(-1) * diagonal[..., None] + torch.diag_embed(diagonal)
        return MultivariateNormal(mean, scale_tril=factor)


def optimized(space: Unconstrained, num_steps: int, learning_rate: float) -> Distribution:
    """Return the normal density that maximizes the ELBO of each datum, from the guide's moments."""
    start = space.draw_guide(SCALE_DRAWS)
    found = _start(start.mean(0), spread(start))
    free = [value.requires_grad_() for value in found[2:] if value.numel()]
    # many entries below the diagonal move each number of u together
    rates = (learning_rate, learning_rate, learning_rate / math.sqrt(start.shape[-1]))
    groups = [{"params": [value], "lr": rate} for value, rate in zip(free, rates, strict=False)]
    optimizer = torch.optim.Adam(groups)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    for _ in range(num_steps):
        with torch.enable_grad():
            u = found.density().rsample((DRAWS_PER_STEP,))
            fixed = Parameters(*(value.detach() for value in found)).density()
            log_weights = sum(space.terms(u)) - fixed.log_prob(u)
            # a sum over data: parameters of a datum enter its own term only, and Adam is per entry
            gradients = torch.autograd.grad(-log_weights.mean(0).sum(), free)
        for value, gradient in zip(free, gradients, strict=True):
            value.grad = gradient.nan_to_num(0.0, 0.0, 0.0)
        optimizer.step()
        schedule.step()
    return Parameters(*(value.detach() for value in found)).density()


def _line_of(joint: VAEJoint | ProgramJoint) -> Unconstrained:
    space = Unconstrained(joint, method="method='refined'")
    if around := [name for name, support in joint.supports.items() if not covers_line(support)]:
        raise ConfigError(
            f"method='refined' samples from a normal density on the real line, but {around[0]!r} "
            "is an angle, so that a point of the circle is many points of the line.\n"
            "Write method='importance', or 'ais', which moves around the circle."
        )
    return space


def _start(center: Tensor, scale: Tensor) -> Parameters:
    num_data, dim = center.shape
    size = dim if 1 < dim <= MAX_DENSE else 0
    zeros = torch.zeros_like(center)
    return Parameters(center, scale, zeros, zeros.clone(), zeros.new_zeros(num_data, size, size))
