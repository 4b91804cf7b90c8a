"""Bounds and gradients from several draws: with log w_k = log p(x, z_k) − log q(z_k|x),

    IWAE       log (1/K) Σ_k w_k                          a tighter bound (Burda et al. 2016)
    Renyi(α)   1/(1−α) log (1/K) Σ_k w_k^(1−α)            IWAE at α = 0, ELBO at α → 1
    STL, DReG  the ELBO and IWAE with lower-variance guide gradients
    WakeSleep  a loss for each network, weights w_k / Σ w_k, no gradient through z

Everything is per datum; the data scale multiplies outside the log-sum-exp.
"""

from typing import Any, NamedTuple

import torch
from pyro import poutine
from pyro.poutine.replay_messenger import ReplayMessenger
from torch import Tensor

from pyrovae.checks import real_number, whole_number
from pyrovae.contract.layout import layouts_of
from pyrovae.core.draws import log_mean_exp
from pyrovae.core.terms import Traces, terms_of
from pyrovae.errors import ConfigError
from pyrovae.objectives.base import Objective, scaled_total, with_gradient_of


class IWAE(Objective):
    """Negative importance-weighted bound, −Σ_i log (1/K) Σ_k w_ik; lower is better.

    Args:
        num_particles: K, draws per datum.

    Raises:
        ConfigError: the guide is not reparameterized, or the program has global latents.

    References:
        Importance Weighted Autoencoders, Burda, Grosse & Salakhutdinov, 2016,
        https://arxiv.org/abs/1509.00519

    Example:
        >>> IWAE(num_particles=50).num_particles
        50
    """

    needs_reparameterized = True
    needs_local_latents = True

    def __init__(self, num_particles: int):
        super().__init__(num_particles)

    def surrogate(self, traces: Traces, num_data: int) -> Tensor:
        return -scaled_total(log_mean_exp(terms_of(traces, num_data).log_weights), traces)


class Renyi(Objective):
    """Negative variational Rényi bound, −Σ_i 1/(1−α) log (1/K) Σ_k w_ik^(1−α).

    α = 0 is IWAE, α → 1 the ELBO (α = 1 is an error: use TraceELBO), α > 1 lies below it.

    Args:
        alpha: α ≠ 1.
        num_particles: K ≥ 2, draws per datum.

    Raises:
        ConfigError: alpha is 1 or not finite; otherwise as for `IWAE`.

    References:
        Rényi Divergence Variational Inference, Li & Turner, 2016,
        https://arxiv.org/abs/1602.02311

    Example:
        >>> Renyi(0.5, num_particles=8).alpha
        0.5
    """

    needs_reparameterized = True
    needs_local_latents = True

    def __init__(self, alpha: float, num_particles: int = 2):
        super().__init__(whole_number(num_particles, "num_particles", 2))
        self.alpha = real_number(alpha, "alpha")
        if self.alpha == 1.0:
            raise ConfigError("alpha = 1 is the ELBO itself: write objectives.TraceELBO().")

    def surrogate(self, traces: Traces, num_data: int) -> Tensor:
        power = 1.0 - self.alpha
        log_w = terms_of(traces, num_data).log_weights
        return -scaled_total(log_mean_exp(power * log_w) / power, traces)


class PathTraces(NamedTuple):
    """Traces at copies of the latents, which are leaves of the gradient, and the draws themselves.

    Attributes:
        model, guide: at the copies.
        drawn: the guide's trace, whose latents depend on its parameters.
    """

    model: poutine.Trace
    guide: poutine.Trace
    drawn: poutine.Trace


class PathObjective(Objective):
    """Base class of objectives whose guide gradient goes through the latents only."""

    needs_reparameterized = True
    needs_local_latents = True

    def traces(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Traces | PathTraces:
        """Draw the traces; with several latents, trace again at copies of them."""
        traces = super().traces(model, guide, *args, **kwargs)
        latents = list(traces.guide.iter_stochastic_nodes())
        if len(latents) == 1 or not any(site["value"].requires_grad for _, site in latents):
            return traces
        copies = traces.guide.copy()
        for name, site in latents:
            leaf = site["value"].detach().requires_grad_()
            copies.nodes[name] = {**site, "value": leaf}
        # around both, so that the plate of the particles still expands the densities
        with ReplayMessenger(trace=copies):
            at = super().traces(model, guide, *args, **kwargs)
        return PathTraces(*at, traces.guide)

    def surrogate(self, traces: Traces | PathTraces, num_data: int) -> Tensor:
        if isinstance(traces, PathTraces):
            return _path_derivative_loss_at(traces, num_data)
        return _path_derivative_loss(traces, num_data)


class STL(PathObjective):
    """Negative ELBO, −Σ_i ELBO_i, with the guide gradient through z only ("sticking the landing").

    ∂/∂φ log w is taken along z(φ) and not along the parameters of log q, whose term has mean 0.
    At q = p(z|x) the guide gradient is exactly 0 for every draw. With several draws in a
    log-sum-exp this would be biased; use `DReG` instead.

    Raises:
        ConfigError: the guide is not reparameterized, or the program has global latents.

    References:
        Sticking the Landing, Roeder, Wu & Duvenaud, 2017, https://arxiv.org/abs/1703.09194

    Example:
        >>> STL().num_particles
        1
    """

    def __init__(self, num_particles: int = 1):
        if num_particles != 1:
            raise ConfigError(
                f"num_particles = {num_particles}, but STL takes one draw: with several in a "
                "log-sum-exp its gradient is biased.\nUse objectives.DReG(num_particles=K)."
            )
        super().__init__(1)


class DReG(PathObjective):
    """IWAE loss, −Σ_i log (1/K) Σ_k w_ik, with a doubly reparameterized guide gradient.

    ∂/∂φ = Σ_k w̃_k² (∂ log w_k / ∂z_k) (∂z_k / ∂φ) with w̃ = w / Σ w: unbiased, and its
    signal-to-noise ratio, unlike that of `IWAE`, does not decrease with K.

    Args:
        num_particles: K, draws per datum.

    Raises:
        ConfigError: the guide is not reparameterized, or the program has global latents.

    References:
        Doubly Reparameterized Gradient Estimators, Tucker et al., 2019,
        https://arxiv.org/abs/1810.04152

    Example:
        >>> DReG(num_particles=8).num_particles
        8
    """

    def __init__(self, num_particles: int):
        super().__init__(num_particles)


class WakeSleep(Objective):
    """Reweighted wake-sleep: model by Σ_k w̃_k log p(x, z_k), guide by Σ_k w̃_k log q(z_k|x).

    Both are maximized; w̃ = w / Σ w per datum. No gradient passes through z, so discrete latents
    work as well as others. The reported loss is −IWAE.

    Args:
        num_particles: K ≥ 2, draws per datum.

    Raises:
        ConfigError: num_particles < 2, or the program has global latents.

    References:
        Reweighted Wake-Sleep, Bornschein & Bengio, 2015, https://arxiv.org/abs/1406.2751

    Example:
        >>> WakeSleep(num_particles=10).num_particles
        10
    """

    needs_local_latents = True
    detaches_draws = True

    def __init__(self, num_particles: int = 10):
        super().__init__(whole_number(num_particles, "num_particles", 2))

    def surrogate(self, traces: Traces, num_data: int) -> Tensor:
        terms = terms_of(traces, num_data)
        log_w = terms.log_weights
        weights = log_w.detach().softmax(0)
        log_joint = terms.log_prior + terms.log_likelihood
        wake = -(weights * (log_joint + terms.log_guide)).sum(0)
        value = -log_mean_exp(log_w)
        return scaled_total(with_gradient_of(value, wake), traces)


def _path_derivative_loss(traces: Traces, num_data: int) -> Tensor:
    """Return −log mean w, with gradients Σ w̃ ∂ log p and Σ w̃² (∂ log w/∂z)(∂z/∂φ).

    The first is the model's, the second the guide's. log p(x, z) depends on φ through z as
    well; this path is replaced by the correct one.
    """
    terms = terms_of(traces, num_data)
    (site,) = (site for _, site in traces.guide.iter_stochastic_nodes())
    z, q_z = site["value"], site["fn"]
    log_joint = terms.log_prior + terms.log_likelihood
    value = -log_mean_exp(terms.log_weights)
    if not z.requires_grad:
        return scaled_total(value, traces)
    weights = terms.log_weights.detach().softmax(0)  # (K, N)
    (d_joint,) = torch.autograd.grad(log_joint.sum(), z, retain_graph=True, materialize_grads=True)
    # at a copy of z, because a flow caches log q of its own draw without a path through z
    leaf = z.detach().requires_grad_()
    (d_guide,) = torch.autograd.grad(q_z.log_prob(leaf).sum(), leaf, materialize_grads=True)
    # a single draw has no leading dimension: z is (N, *event), not (1, N, *event)
    z, d_joint, d_guide = (t.reshape(*weights.shape, -1) for t in (z, d_joint, d_guide))
    w = weights[..., None]
    along_z = ((w**2 * (d_joint - d_guide) - w * d_joint).detach() * z).sum(-1)
    surrogate = -(weights * log_joint + along_z).sum(0)
    return scaled_total(with_gradient_of(value, surrogate), traces)


def _path_derivative_loss_at(traces: PathTraces, num_data: int) -> Tensor:
    """Return the same loss for several latents, which may depend on each other.

    At the copies each density depends on the latents directly only, so that the sum over latents of
    (∂ log w/∂z_l)(∂z_l/∂φ) counts every path once: ∂z_l/∂φ includes those through other latents.
    """
    terms, layouts = terms_of(traces, num_data), layouts_of(*traces)
    log_joint = terms.log_prior + terms.log_likelihood
    names = [name for name, _ in traces.guide.iter_stochastic_nodes()]
    copies = [traces.guide.nodes[name]["value"] for name in names]
    how = {"retain_graph": True, "materialize_grads": True}
    d_log_w = [
        joint - guide
        for joint, guide in zip(
            torch.autograd.grad(log_joint.sum(), copies, **how),
            torch.autograd.grad(terms.log_guide.sum(), copies, **how),
            strict=True,
        )
    ]
    weights = terms.log_weights.detach().softmax(0)  # (K, N)
    surrogate = (weights * log_joint).sum(0)
    for name, gradient in zip(names, d_log_w, strict=True):
        z, along = (
            layouts[name].canonical(t).reshape(*weights.shape, -1)
            for t in (traces.drawn.nodes[name]["value"], gradient)
        )
        surrogate = surrogate + (weights[..., None] ** 2 * along.detach() * z).sum((0, -1))
    value = -log_mean_exp(terms.log_weights)
    return scaled_total(with_gradient_of(value, -surrogate), traces)
