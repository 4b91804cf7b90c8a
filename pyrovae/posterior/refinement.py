"""Semi-amortized inference: variational parameters optimized per datum, from the encoder's output.

    λ_i* = argmax_λ E_{q(z; λ)}[log p(x_i, z) − log q(z; λ)],    λ_i⁰ = the encoder's at x_i

The family stays, without the network. ELBO(λ*) − ELBO(λ⁰) is the amortization gap, and the
remainder to log p(x) the approximation gap (Cremer et al. 2018). λ are the parameters that the
guide's distribution declares in `arg_constraints`, optimized on the real line by the inverse of
`transform_to`. Gradients are pathwise without the score term (Roeder et al. 2017): unbiased,
and free of noise where the family contains the posterior.
"""

import inspect
import math
from typing import Any, NamedTuple

import torch
from pyro.distributions import constraints
from torch import Tensor, nn
from torch.distributions import Distribution, transform_to
from torch.nn.functional import normalize

from pyrovae.checks import real_number, whole_number
from pyrovae.contract import validated
from pyrovae.core.draws import diagnosing
from pyrovae.core.joint import VAEJoint
from pyrovae.errors import ConfigError
from pyrovae.evidence.annealing import BACKWARD_COST, rows_at_a_time
from pyrovae.runtime.random_stream import RandomStream
from pyrovae.vae import is_plain_vae

CHECK_DRAWS = 100  # for the ELBO before and after


class Refined(NamedTuple):
    """A guide refined for each datum, with its gain in ELBO.

    Attributes:
        guide: q(z; λ*), batch_shape (N,), event_shape (D,).
        elbo: (N,) float64, its ELBO at 100 draws, nats; higher is better.
        start_elbo: (N,) float64, the encoder's ELBO with the same noise; elbo − start_elbo
            estimates the amortization gap.
    """

    guide: Distribution
    elbo: Tensor
    start_elbo: Tensor


class Leaf(NamedTuple):
    """A parameter of the guide in unconstrained form: value = transform(free)."""

    transform: Any
    free: Tensor


def refine(
    vae: nn.Module,
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

    The model's parameters are unchanged. The learning rate decays to 0 along a cosine.

    Args:
        vae: a `VAE` whose guide is reparameterized and declares its parameters.
        x: (N, *event).
        y: (N, …), covariates.
        mask: of x's shape, true where x is observed.
        num_steps: number of Adam steps.
        learning_rate: initial rate of Adam, for unconstrained parameters such as log-scales.
        num_samples: S, draws of z per datum and step.
        seed: random seed; None uses a fresh one.
        memory_budget: bytes for the draws of one chunk of data, as in `log_evidence`.

    Returns:
        Refined: the guide, and ELBOs (N,).

    Raises:
        DataError: x does not fit the program.
        ConfigError: vae is not a `VAE`, its guide lacks pathwise gradients or declared
            parameters (a flow), or a setting is invalid.

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
    if not is_plain_vae(vae):
        raise ConfigError(
            f"refine optimizes a VAE's q(z|x), but this is a {type(vae).__name__}.\n"
            "posterior.sir and posterior.hmc take any program."
        )
    data = validated(vae, x, y, mask)
    with diagnosing(vae, seed):
        chunks = rows_at_a_time(vae, data, num_samples, memory_budget)
        pieces = [VAEJoint(vae, rows) for rows in chunks]
        moved = [_optimized(joint, num_steps, learning_rate, num_samples) for joint in pieces]
        chunk = BACKWARD_COST * num_samples  # without gradients, as large as a step with them
        checked = [_no_worse(*p, chunk) for p in zip(pieces, moved, strict=True)]
        found, elbos = zip(*checked, strict=True)
    return Refined(
        rebuilt(pieces[0].guide, _joined(found)),
        *(torch.cat(side) for side in zip(*elbos, strict=True)),
    )


def leaves_of(q_z: Distribution) -> list[Leaf]:
    """Return the declared parameters of q(z|x), (N, …) each, unconstrained.

    Raises:
        ConfigError: it has none, or no pathwise gradient.

    Example:
        >>> import pyro.distributions as dist
        >>> leaves = leaves_of(dist.Normal(torch.zeros(3, 2), torch.ones(3, 2)).to_event(1))
        >>> [leaf.free.shape for leaf in leaves]
        [torch.Size([3, 2]), torch.Size([3, 2])]
    """
    base = _base(q_z)
    given = {n: c for n, c in base.arg_constraints.items() if n in vars(base)}
    if not q_z.has_rsample or not given:
        problem = "has no pathwise gradient" if given else "declares no parameters of its own"
        raise ConfigError(
            f"refine optimizes the parameters of q(z|x) by pathwise gradients, but "
            f"{type(base).__name__} {problem}.\n"
            "Use guides.DiagonalNormal or FullNormal, or draw with posterior.sir."
        )
    wanted = inspect.signature(type(base).__init__).parameters.values()
    needed = {w.name for w in wanted if w.default is w.empty and w.kind is w.POSITIONAL_OR_KEYWORD}
    if needed - given.keys() - {"self"}:
        raise ConfigError(
            f"refine rebuilds q(z|x) from its declared parameters, but {type(base).__name__} also "
            f"needs {', '.join(sorted(needed - given.keys() - {'self'}))}.\n"
            "Use guides.DiagonalNormal or FullNormal, or draw with posterior.sir."
        )
    transforms = {n: _transform(c) for n, c in given.items()}
    return [Leaf(t, t.inv(vars(base)[n]).detach().clone()) for n, t in transforms.items()]


def rebuilt(q_z: Distribution, leaves: list[Leaf]) -> Distribution:
    """Return the density of q_z's family with these parameters."""
    base = _base(q_z)
    names = [n for n in base.arg_constraints if n in vars(base)]
    values = {n: leaf.transform(leaf.free) for n, leaf in zip(names, leaves, strict=True)}
    new = type(base)(**values, validate_args=False)
    return new.to_event(len(q_z.event_shape) - len(base.event_shape))


def _base(q_z: Distribution) -> Distribution:
    while isinstance(q_z, torch.distributions.Independent):
        q_z = q_z.base_dist
    return q_z


class _Direction:
    """Map from R^D without 0 to the unit sphere, z/|z|; its inverse is the identity."""

    @staticmethod
    def inv(value: Tensor) -> Tensor:
        return value

    def __call__(self, free: Tensor) -> Tensor:
        return normalize(free, dim=-1)


def _transform(constraint: Any) -> Any:
    return _Direction() if constraint is constraints.sphere else transform_to(constraint)


def _optimized(joint: VAEJoint, num_steps: int, rate: float, num_samples: int) -> list[Leaf]:
    leaves = leaves_of(joint.guide)
    free = [leaf.free.requires_grad_() for leaf in leaves]
    optimizer = torch.optim.Adam(free, lr=rate)
    for step in range(num_steps):
        optimizer.param_groups[0]["lr"] = rate * 0.5 * (1 + math.cos(math.pi * step / num_steps))
        with torch.enable_grad():
            q_z = rebuilt(joint.guide, leaves)
            fixed = rebuilt(
                joint.guide, [leaf._replace(free=leaf.free.detach()) for leaf in leaves]
            )
            z = q_z.rsample((num_samples,))
            log_w = sum(joint.terms({"z": z})) - fixed.log_prob(z)
            # a sum over data: parameters of a datum enter its own term only, and Adam is per entry
            gradients = torch.autograd.grad(-log_w.mean(0).sum(), free)
        for parameter, gradient in zip(free, gradients, strict=True):
            parameter.grad = gradient.nan_to_num(0.0, 0.0, 0.0)
        optimizer.step()
    return [leaf._replace(free=leaf.free.detach()) for leaf in leaves]


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
