"""ELBOs with a reweighted KL: β, its schedules, and free bits."""

import math
from collections.abc import Callable

from torch import Tensor
from torch.distributions import Independent, kl_divergence

from pyrovae.checks import real_number, whole_number
from pyrovae.core.terms import Traces, terms_of
from pyrovae.errors import ConfigError
from pyrovae.objectives.base import Objective, scaled_total

Schedule = Callable[[float], float]


class BetaELBO(Objective):
    """Negative β-ELBO, −Σ_i (E_q[log p(x_i|z)] − β KL(q(z|x_i) ‖ p(z))); lower is better.

    β = 1 is the negative ELBO; β = 0 drops the regularizer, β > 1 strengthens it. The KL
    covers all latents, including global ones.

    Args:
        beta: β ≥ 0, or a schedule: a function of the fraction of training done, in [0, 1],
            such as `linear_warmup(0.3)`.
        num_particles: S, draws per datum; the loss is their mean.

    Raises:
        ConfigError: beta is negative or not finite; the guide is not reparameterized.

    References:
        beta-VAE, Higgins et al., 2017, https://openreview.net/forum?id=Sy2fzU9gl

    Example:
        >>> BetaELBO(0.5).beta(0.0)
        0.5
        >>> BetaELBO(linear_warmup(0.2)).beta(0.1)
        0.5
    """

    needs_reparameterized = True

    def __init__(self, beta: float | Schedule, num_particles: int = 1):
        super().__init__(num_particles)
        self.beta = beta if callable(beta) else constant(beta)

    def weights(self) -> dict[str, float]:
        return {"beta": real_number(self.beta(self.progress), "beta", least=0.0)}

    def surrogate(self, traces: Traces, num_data: int) -> Tensor:
        beta = self.weight("beta")
        terms = terms_of(traces, num_data)
        local = scaled_total(beta * terms.kl - terms.log_likelihood, traces)
        return (local + beta * (terms.global_log_guide - terms.global_log_prior)).mean()


class FreeBits(Objective):
    """Free bits, −Σ_i E_q[log p(x_i|z)] + B Σ_d max(λ, KL_d), KL_d the minibatch mean for dim d.

    Each latent dimension may carry λ nats for free, so none collapses early in training.
    The KL per dimension is the closed form of a factorized guide and prior.

    Args:
        threshold: λ ≥ 0, nats per dimension.
        num_particles: S, draws per datum.

    Raises:
        ConfigError: threshold is negative; the KL has no closed form per dimension; the guide
            is not reparameterized, or the program has global latents.

    References:
        Improved Variational Inference with Inverse Autoregressive Flow, Kingma et al., 2016,
        appendix C.8, https://arxiv.org/abs/1606.04934

    Example:
        >>> FreeBits(0.1).threshold
        0.1
    """

    needs_reparameterized = True
    needs_local_latents = True

    def __init__(self, threshold: float, num_particles: int = 1):
        super().__init__(num_particles)
        self.threshold = real_number(threshold, "threshold", least=0.0)

    def surrogate(self, traces: Traces, num_data: int) -> Tensor:
        reconstruction = -terms_of(traces, num_data).log_likelihood.mean(0)  # (N,)
        for name, q in traces.guide.iter_stochastic_nodes():
            kl = kl_by_dimension(q["fn"], traces.model.nodes[name]["fn"])  # (…, N, D)
            mean = kl.reshape(-1, kl.shape[-1]).mean(0)
            reconstruction = reconstruction + mean.clamp(min=self.threshold).sum()
        return scaled_total(reconstruction, traces)


def kl_by_dimension(q: object, p: object) -> Tensor:
    """Return KL(q_d ‖ p_d) for each latent dimension d, (*batch, D), in nats.

    Raises:
        ConfigError: q or p does not factorize, or the pair has no closed form.

    Example:
        >>> import pyro.distributions as dist, torch
        >>> q = dist.Normal(torch.ones(3, 2), 1.0).to_event(1)
        >>> kl_by_dimension(q, dist.Normal(torch.zeros(2), 1.0).to_event(1))[0]
        tensor([0.5000, 0.5000])
    """
    bases = [d.base_dist if isinstance(d, Independent) else d for d in (q, p)]
    try:
        if any(base.event_shape for base in bases):
            raise NotImplementedError
        return kl_divergence(*bases)
    except NotImplementedError:
        raise ConfigError(
            f"the KL per dimension needs a factorized guide and prior with a closed form, but "
            f"they are {type(bases[0]).__name__} and {type(bases[1]).__name__}.\n"
            "Use DiagonalNormal with StandardNormal, or objectives.BetaELBO with a warm-up."
        ) from None


def constant(beta: float) -> Schedule:
    """Return a schedule with constant β.

    Example:
        >>> constant(2.0)(0.7)
        2.0
    """
    beta = real_number(beta, "beta", least=0.0)
    return lambda progress: beta


def linear_warmup(fraction: float = 0.2, *, beta: float = 1.0) -> Schedule:
    """Return a schedule that rises linearly from 0 to β over the first `fraction` of training.

    References:
        Generating Sentences from a Continuous Space, Bowman et al., 2016,
        https://arxiv.org/abs/1511.06349

    Example:
        >>> [linear_warmup(0.5)(t) for t in (0.0, 0.25, 0.5, 1.0)]
        [0.0, 0.5, 1.0, 1.0]
    """
    fraction = _share(fraction, "fraction", "the training")
    return lambda progress: beta * min(1.0, progress / fraction)


def cosine_warmup(fraction: float = 0.2, *, beta: float = 1.0) -> Schedule:
    """Return a schedule that rises along a half cosine to β over the first `fraction` of training.

    Example:
        >>> round(cosine_warmup(0.5)(0.25), 3)
        0.5
    """
    ramp = linear_warmup(fraction)
    return lambda progress: beta * 0.5 * (1.0 - math.cos(math.pi * ramp(progress)))


def cyclical(cycles: int = 4, *, rise: float = 0.5, beta: float = 1.0) -> Schedule:
    """Return a schedule of cycles that rise from 0 to β over a fraction `rise`, then stay at β.

    References:
        Cyclical Annealing Schedule, Fu et al., 2019, https://arxiv.org/abs/1903.10145

    Example:
        >>> [cyclical(2)(t) for t in (0.0, 0.125, 0.25, 0.49, 0.5)]
        [0.0, 0.5, 1.0, 1.0, 0.0]
    """
    cycles = whole_number(cycles, "cycles", 1)
    ramp = linear_warmup(_share(rise, "rise", "a cycle"), beta=beta)
    return lambda progress: beta if progress >= 1.0 else ramp(progress * cycles % 1.0)


def _share(value: float, name: str, whole: str) -> float:
    value = real_number(value, name, above=0.0)
    if value > 1.0:
        raise ConfigError(
            f"{name} = {value:g}, but it must be a fraction of {whole}, in (0, 1]: β would never "
            f"reach its value.\nFor 10 epochs of 100 write {name}=0.1."
        )
    return value
