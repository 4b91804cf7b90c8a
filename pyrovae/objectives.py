"""Training objectives: what a step minimises, each a `pyro.infer.ELBO` that SVI accepts.

    TraceELBO      −Σ_i ELBO_i
    BetaELBO(β)    −Σ_i (E_q[log p(x_i|z)] − β KL(q(z|x_i) ‖ p(z)))

An objective is a function of a pair of traces (`terms.Traces`). Unlike Pyro's own, none
calls `.item()`, so a step needs no synchronisation and can be traced as one graph.
Whatever the objective, what is reported as "elbo" is the β = 1 ELBO (`terms.terms_of`).
"""

from typing import Any

import torch
from pyro.infer import ELBO, Trace_ELBO
from torch import Tensor

from pyrovae.checks import real_number, whole_number
from pyrovae.terms import Traces, draw_traces, is_local, terms_of

__all__ = ["BetaELBO", "Objective", "TraceELBO"]


class Objective(ELBO):
    """Base of the objectives here: subclasses say what a pair of traces costs.

    Args:
        num_particles: S, draws of z per datum and step.

    Raises:
        ConfigError: num_particles is not a whole number ≥ 1.
    """

    def __init__(self, num_particles: int = 1):
        super().__init__(num_particles=whole_number(num_particles, "num_particles", 1))

    def surrogate(self, traces: Traces, num_data: int) -> Tensor:
        """(), nats: the value of the loss, with the gradient that a step should take."""
        raise NotImplementedError

    def traces(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Traces:
        """Draw the traces that `surrogate` takes."""
        return draw_traces(model, guide, *args, num_samples=self.num_particles, **kwargs)

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Traces:
        return self.traces(model, guide, *args, **kwargs)  # pyro.infer.ELBO asks for this name

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """(), nats: the loss, with gradients. Arguments after the guide are the program's."""
        return self.surrogate(self.traces(model, guide, *args, **kwargs), len(args[0]))

    def loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """(), nats: the loss, without gradients."""
        with torch.no_grad():
            return self.differentiable_loss(model, guide, *args, **kwargs)

    def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """(), nats: the loss; its gradients are added to the parameters' `.grad`."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward()
        return loss.detach()


class TraceELBO(Objective):
    """−Σ_i ELBO_i = Σ_i E_q[log q(z|x_i) − log p(z) − log p(x_i|z)]; lower is better.

    The same value and the same gradient as `pyro.infer.Trace_ELBO` on the same draws: the
    pathwise gradient where q(z|x) is reparameterised, Pyro's score-function estimator
    where it is not.

    Args:
        num_particles: S, draws per datum; the loss is their mean.

    References:
        Automated Variational Inference in Probabilistic Programming, Wingate & Weber, 2013,
        https://arxiv.org/abs/1301.1299

    Example:
        >>> import pyrovae as pv
        >>> vae = pv.build((2,), latent_dim=1, seed=0)
        >>> x = torch.ones(5, 2)
        >>> with torch.random.fork_rng():
        ...     ours = TraceELBO().loss(vae.model, vae.guide, x)
        >>> with torch.random.fork_rng():
        ...     pyros = Trace_ELBO().loss(vae.model, vae.guide, x)
        >>> bool(abs(ours - pyros) < 1e-5)
        True
    """

    def surrogate(self, traces: Traces, num_data: int) -> Tensor:
        loss = traces.guide.log_prob_sum() - traces.model.log_prob_sum()
        if not is_reparameterised(traces):
            _, with_score = Trace_ELBO()._differentiable_loss_particle(*traces)
            loss = loss.detach() + with_score - with_score.detach()
        return loss / self.num_particles


class BetaELBO(Objective):
    """−Σ_i (E_q[log p(x_i|z)] − β KL(q(z|x_i) ‖ p(z))); lower is better.

    β = 1 is the negative ELBO; β = 0 drops the regulariser, β > 1 strengthens it. The KL is
    that of all latents, global ones included.

    Args:
        beta: β ≥ 0.
        num_particles: S, draws per datum; the loss is their mean.

    Raises:
        ConfigError: beta is negative or not finite; the guide is not reparameterised.

    References:
        beta-VAE, Higgins et al., 2017, https://openreview.net/forum?id=Sy2fzU9gl

    Example:
        >>> BetaELBO(0.0).beta
        0.0
    """

    def __init__(self, beta: float, num_particles: int = 1):
        super().__init__(num_particles)
        self.beta = real_number(beta, "beta", least=0.0)

    def surrogate(self, traces: Traces, num_data: int) -> Tensor:
        terms = terms_of(traces, num_data)
        local = data_scale(traces) * (self.beta * terms.kl - terms.log_likelihood).sum(-1)
        return (local + self.beta * (terms.global_log_guide - terms.global_log_prior)).mean()


def is_reparameterised(traces: Traces) -> bool:
    """Whether every latent of the guide is drawn with `rsample`, so that z carries gradients."""
    return all(site["fn"].has_rsample for _, site in traces.guide.iter_stochastic_nodes())


def data_scale(traces: Traces) -> float | Tensor:
    """The scale that handlers put on the plate "data" (N / B for a minibatch); 1 without any."""
    observed = [
        site["scale"]
        for site in traces.model.nodes.values()
        if site["type"] == "sample" and site["is_observed"] and is_local(site)
    ]
    return observed[0] if observed else 1.0
