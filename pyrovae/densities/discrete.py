"""Binary and categorical vectors z in R^D with enumerable joint values.

    BernoulliVector(l)   z in {0, 1}^D       p(z) = Π_j σ(l_j)^z_j σ(−l_j)^(1−z_j)
    OneHotVector(l)      L one-hot blocks    p(z) = Π_b softmax(l_b)[category of block b]

Logits l are (*B, D), or (*B, L, K) for blocks, which are concatenated in z: D = L·K. Values
are floats, as decoders take them; log-probabilities are (*S, *B), in nats.

Both enumerate their 2^D or K^L joint values (`enumerate_support`), so that Pyro can sum
over them; `Bernoulli(logits=l).to_event(1)` cannot, and Pyro silently draws it instead.
Not modeled: order, dependence between coordinates. Relaxations: `pyrovae.densities.relaxed`.
"""

import itertools
from collections.abc import Sequence
from typing import ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints, register_kl
from torch.nn.functional import logsigmoid, softplus

from pyrovae.checks import whole_number
from pyrovae.errors import ConfigError

MAX_JOINT_VALUES = 2**12


class OneHotBlocks(constraints.Constraint):
    """Constraint to concatenated one-hot blocks of K numbers."""

    event_dim = 1
    is_discrete = True

    def __init__(self, num_categories: int):
        self.num_categories = num_categories
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        blocks = value.unflatten(-1, (-1, self.num_categories))
        is_binary = ((blocks == 0) | (blocks == 1)).all(-1)
        return (is_binary & (blocks.sum(-1) == 1)).all(-1)

    def __repr__(self) -> str:
        return f"one-hot blocks of {self.num_categories}"


class LogitVector(TorchDistribution):
    """Base class of the vectors: logits (*B, *rows), event_shape (D,), D = rows.numel()."""

    num_event_dims = 1

    def __init__(self, logits: Tensor, *, validate_args: bool | None = None):
        self.logits = logits
        batch_shape = logits.shape[: -self.num_event_dims]
        event_shape = torch.Size([logits.shape[-self.num_event_dims :].numel()])
        super().__init__(batch_shape, event_shape, validate_args=validate_args)

    def expand(self, batch_shape, _instance=None):
        rows = self.logits.shape[-self.num_event_dims :]
        new = self._with_logits(self.logits.expand(*batch_shape, *rows))
        new._validate_args = self._validate_args
        return new

    def _with_logits(self, logits: Tensor) -> "LogitVector":
        return type(self)(logits, validate_args=False)

    def _all_values(self, values: Tensor, expand: bool) -> Tensor:
        """Expand values (num_values, D) to (num_values, *B, D), or with 1s in place of B."""
        values = values.reshape(-1, *[1] * len(self.batch_shape), *self.event_shape)
        return values.expand(-1, *self.batch_shape, -1) if expand else values


class BernoulliVector(LogitVector):
    """Independent Bernoulli vector, p(z) = Π_j σ(l_j)^z_j σ(−l_j)^(1−z_j) for z in {0, 1}^D.

    Args:
        logits: l, (*B, D).

    Example:
        >>> p = BernoulliVector(torch.zeros(2))
        >>> p.enumerate_support().tolist()
        [[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]
        >>> p.log_prob(p.enumerate_support()).exp()
        tensor([0.2500, 0.2500, 0.2500, 0.2500])
    """

    arg_constraints: ClassVar = {"logits": constraints.real_vector}
    support = constraints.independent(constraints.boolean, 1)
    has_enumerate_support = True

    @property
    def mean(self) -> Tensor:
        return self.logits.sigmoid()

    @property
    def variance(self) -> Tensor:
        return self.logits.sigmoid() * (-self.logits).sigmoid()

    @torch.no_grad()
    def sample(self, sample_shape=()) -> Tensor:
        return self.mean.expand(self._extended_shape(torch.Size(sample_shape))).bernoulli()

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return (value * self.logits - softplus(self.logits)).sum(-1)

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """Return every z, (2^D, *B, D), the last coordinate fastest; 1s for B unless expand."""
        dim = self.event_shape[0]
        check_joint_values(2, dim)
        pair = self.logits.new_tensor([0.0, 1.0])
        return self._all_values(torch.cartesian_prod(*[pair] * dim), expand)


class OneHotVector(LogitVector):
    """Concatenated one-hot codes z of categories k_1 … k_L, p(z) = Π_b softmax(l_b)[k_b].

    Args:
        logits: l, (*B, L, K): L independent categorical latents of K categories.

    Example:
        >>> import math
        >>> p = OneHotVector(torch.tensor([[0.0, 0.0, math.log(2.0)]]))
        >>> p.event_shape, p.log_prob(p.enumerate_support()).exp()
        (torch.Size([3]), tensor([0.2500, 0.2500, 0.5000]))
    """

    arg_constraints: ClassVar = {"logits": constraints.independent(constraints.real, 2)}
    num_event_dims = 2
    has_enumerate_support = True

    @property
    def support(self) -> constraints.Constraint:
        return OneHotBlocks(self.logits.shape[-1])

    @property
    def mean(self) -> Tensor:
        return self.logits.softmax(-1).flatten(-2)

    @property
    def variance(self) -> Tensor:
        return self.mean * (1 - self.mean)

    @torch.no_grad()
    def sample(self, sample_shape=()) -> Tensor:
        shape = torch.Size([*sample_shape, *self.logits.shape])
        probs = self.logits.softmax(-1).expand(shape).reshape(-1, shape[-1])
        category = torch.multinomial(probs, 1)
        return torch.zeros_like(probs).scatter_(-1, category, 1.0).reshape(shape).flatten(-2)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return (value * self.logits.log_softmax(-1).flatten(-2)).sum(-1)

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """Return every z, (K^L, *B, L·K), the last block fastest; 1s for B unless expand."""
        num_blocks, num_categories = self.logits.shape[-2:]
        check_joint_values(num_categories, num_blocks)
        categories = itertools.product(range(num_categories), repeat=num_blocks)
        index = torch.tensor(list(categories), device=self.logits.device)
        one_hot = torch.eye(num_categories, dtype=self.logits.dtype, device=self.logits.device)
        return self._all_values(one_hot[index].flatten(-2), expand)


def check_joint_values(num_values: int, num_latents: int) -> None:
    """Raise ConfigError if num_values ^ num_latents exceeds 4,096."""
    total = num_values**num_latents
    if total > MAX_JOINT_VALUES:
        raise ConfigError(
            f"z has {num_values}^{num_latents} = {total:.4g} joint values, but at most "
            f"{MAX_JOINT_VALUES:,} can be summed over: the decoder runs once for each.\n"
            "Use fewer latents, or draw z: objectives.TraceELBO, or a relaxed prior and guide."
        )


@register_kl(BernoulliVector, BernoulliVector)
def _kl_bernoulli(q: BernoulliVector, p: BernoulliVector) -> Tensor:
    """Return KL(q ‖ p) = Σ_j Σ_{z_j} q(z_j) log q(z_j)/p(z_j), nats; finite for finite logits."""
    one = q.logits.sigmoid() * (logsigmoid(q.logits) - logsigmoid(p.logits))
    zero = (-q.logits).sigmoid() * (logsigmoid(-q.logits) - logsigmoid(-p.logits))
    return (one + zero).sum(-1)


@register_kl(OneHotVector, OneHotVector)
def _kl_one_hot(q: OneHotVector, p: OneHotVector) -> Tensor:
    """Return KL(q ‖ p) = Σ_b Σ_k q_bk log q_bk/p_bk, nats."""
    log_q, log_p = q.logits.log_softmax(-1), p.logits.log_softmax(-1)
    return (log_q.exp() * (log_q - log_p)).sum((-2, -1))


def block_shape(latent_dim: int, num_categories: int | None) -> torch.Size:
    """Return (L, K) for z of latent_dim = L·K numbers; by default one block, K = latent_dim."""
    latent_dim = whole_number(latent_dim, "latent_dim", 2)
    k = whole_number(latent_dim if num_categories is None else num_categories, "num_categories", 2)
    if latent_dim % k:
        raise ConfigError(
            f"latent_dim = {latent_dim} must be a multiple of num_categories = {k}, because z is "
            f"L one-hot codes of {k} numbers each.\n"
            f"Write latent_dim={max(1, latent_dim // k) * k}, or another num_categories."
        )
    return torch.Size([latent_dim // k, k])


def bernoulli_logits(probs: float | Tensor | Sequence[float], latent_dim: int) -> Tensor:
    """Return the logits log p/(1 − p), (D,), of the probabilities of z_j = 1, one or D of them."""
    probs = torch.as_tensor(probs, dtype=torch.get_default_dtype())
    if probs.shape not in (torch.Size(), torch.Size([latent_dim])):
        raise ConfigError(
            f"probs has shape {tuple(probs.shape)}, but there are {latent_dim} latents.\n"
            f"Pass one number, or {latent_dim} numbers."
        )
    _check_open(probs)
    return torch.logit(probs).expand(latent_dim).clone()


def categorical_logits(probs: Tensor | Sequence | None, shape: torch.Size) -> Tensor:
    """Return the logits log p, (L, K), of probabilities (K,) or (L, K); None is uniform."""
    if probs is None:
        return torch.zeros(shape)
    probs = torch.as_tensor(probs, dtype=torch.get_default_dtype())
    if probs.shape not in (shape, shape[1:]):
        raise ConfigError(
            f"probs has shape {tuple(probs.shape)}, but there are {shape[0]} latents of {shape[1]} "
            f"categories.\nPass {shape[1]} numbers, or an array of shape {tuple(shape)}."
        )
    _check_open(probs)
    if ((probs.sum(-1) - 1).abs() > 1e-5).any():
        total = probs.sum(-1).flatten()[(probs.sum(-1) - 1).abs().argmax()].item()
        raise ConfigError(
            f"probs of a latent sum to {total:.6g}, but the probabilities of its categories must "
            "sum to 1.\nNormalize them: probs / probs.sum(-1, keepdim=True)."
        )
    return probs.log().expand(shape).clone()


def _check_open(probs: Tensor) -> None:
    is_bad = ~((probs > 0) & (probs < 1))
    if is_bad.any():
        raise ConfigError(
            f"probs holds {probs[is_bad][0].item():.6g}, but a prior probability must lie inside "
            "(0, 1): at 0, the KL of a guide that allows the value is infinite.\n"
            "Write for example probs=0.01."
        )
