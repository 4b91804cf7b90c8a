"""The ELBO itself, with a Monte-Carlo or an analytic KL."""

from pyro.distributions.util import is_identically_zero
from pyro.infer.trace_elbo import _compute_log_r
from torch import Tensor
from torch.distributions import kl_divergence

from pyrovae.core.terms import Traces, is_local, terms_of
from pyrovae.objectives.base import Objective, is_reparameterized, scaled_total, with_gradient_of


class TraceELBO(Objective):
    """Negative ELBO, −Σ_i ELBO_i = Σ_i E_q[log q(z|x_i) − log p(z) − log p(x_i|z)].

    Lower is better. Value and gradient equal those of `pyro.infer.Trace_ELBO` on the same
    draws: the pathwise gradient if q(z|x) is reparameterized, Pyro's score-function estimator
    otherwise.

    Args:
        num_particles: S, draws per datum; the loss is their mean.

    References:
        Automated Variational Inference in Probabilistic Programming, Wingate & Weber, 2013,
        https://arxiv.org/abs/1301.1299

    Example:
        >>> import torch
        >>> import pyrovae as pv
        >>> from pyro.infer import Trace_ELBO
        >>> vae = pv.build((2,), latent_dim=1, seed=0)
        >>> x = torch.ones(5, 2)
        >>> from pyrovae.runtime.random_stream import RandomStream
        >>> from pyrovae.handlers import own_store
        >>> with RandomStream(0), own_store():
        ...     ours = TraceELBO().loss(vae.model, vae.guide, x)
        >>> with RandomStream(0), own_store():
        ...     pyros = Trace_ELBO().loss(vae.model, vae.guide, x)
        >>> bool(abs(ours - pyros) < 1e-5)
        True
    """

    def surrogate(self, traces: Traces, num_data: int) -> Tensor:
        loss = traces.guide.log_prob_sum() - traces.model.log_prob_sum()
        if not is_reparameterized(traces):
            loss = with_gradient_of(loss, score_function_loss(traces))
        return loss / self.num_particles


def score_function_loss(traces: Traces) -> Tensor:
    """Return a loss, (), with the gradient of −ELBO for latents that are not reparameterized.

    Σ log r · log q(z|x) plus the pathwise terms, with log r = log p − log q summed over the
    plates that a site is not in, as in `pyro.infer.Trace_ELBO`, without its `.item()`.
    """
    loss = -traces.model.log_prob_sum()
    log_r = _compute_log_r(*traces)
    for _, site in traces.guide.iter_stochastic_nodes():
        _, score, entropy = site["score_parts"]
        if not is_identically_zero(entropy):
            loss = loss + entropy.sum()
        if not is_identically_zero(score):
            loss = loss - (log_r.sum_to(site["cond_indep_stack"]) * score).sum()
    return loss


class MeanFieldELBO(Objective):
    """Negative ELBO, −Σ_i ELBO_i, with the closed form of KL(q(z|x_i) ‖ p(z)) if torch has one.

    It has the expectation of `TraceELBO` and less variance if the KL is analytic; the KL of
    other latents is evaluated at the draw. Equal to `pyro.infer.TraceMeanField_ELBO` on the
    same draws. The prior of a latent must not depend on another latent.

    Args:
        num_particles: S, draws per datum; the loss is their mean.

    Raises:
        ConfigError: the guide is not reparameterized.

    References:
        Auto-Encoding Variational Bayes, Kingma & Welling, 2014, equation 7,
        https://arxiv.org/abs/1312.6114

    Example:
        >>> MeanFieldELBO(num_particles=2).num_particles
        2
    """

    needs_reparameterized = True

    def surrogate(self, traces: Traces, num_data: int) -> Tensor:
        loss = scaled_total(-terms_of(traces, num_data).log_likelihood, traces).mean()
        for name, q in traces.guide.iter_stochastic_nodes():
            p = traces.model.nodes[name]
            try:
                kl = kl_divergence(q["fn"], p["fn"])
            except NotImplementedError:
                kl = q["unscaled_log_prob"] - p["unscaled_log_prob"]
            loss = loss + (scaled_total(kl, traces) if is_local(q) else kl).mean()
        return loss
