"""The one primitive: the terms of the ELBO, per draw and per datum.

For draws z^(s) ~ q(z|x_i) of any program (model, guide), in nats:

    log_prior       log p(z)       (S, N)
    log_likelihood  log p(x_i|z)   (S, N)
    log_guide       log q(z|x_i)   (S, N)

and, for latents outside the plate "data" (global ones), two additional (S,) sums.
The ELBO, its two halves and the log-weights log w = log p(x, z) − log q(z|x) are short
functions of these arrays; so are all bounds and diagnostics. Per datum first, averages
last. Handlers that scale a plate (minibatches) have no effect here: callers that need the
scale multiply outside the log-sum-exp.
"""

from collections.abc import Mapping
from functools import partial, reduce
from types import MappingProxyType
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.infer.enum import get_importance_trace
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from pyrovae.contract.layout import PARTICLES, Layout, layouts_of, nesting_of
from pyrovae.contract.sites import is_data, is_local
from pyrovae.core.marginal import MAX_NESTING, Enumerated, discrete_draws, sum_out
from pyrovae.errors import ConfigError


class ElboTerms(NamedTuple):
    """Terms of the ELBO at S draws from the guide for N data, in nats.

    Attributes:
        log_prior: (S, N), log p(z), summed over the local latents.
        log_likelihood: (S, N), log p(x|z).
        log_guide: (S, N), log q(z|x).
        global_log_prior: (S,), log p of the latents outside the plate "data"; 0 without any.
        global_log_guide: (S,), log q of the same latents.
        latents: site name → its draws, (S, N, *plates, *event), with the sizes of plates other
            than "data", or (S, *plates, *event) for a global one.
        log_likelihoods: observed site → (S, N), log p of that site given the latents; with discrete
            latents that are summed out, given the observed sites before it as well.
    """

    log_prior: Tensor
    log_likelihood: Tensor
    log_guide: Tensor
    global_log_prior: Tensor
    global_log_guide: Tensor
    latents: dict[str, Tensor]
    log_likelihoods: Mapping[str, Tensor] = MappingProxyType({})

    @property
    def kl(self) -> Tensor:
        """(S, N), log q(z|x) − log p(z): its mean over draws is the KL to the prior, in nats."""
        return self.log_guide - self.log_prior

    @property
    def log_weights(self) -> Tensor:
        """(S, N), log w = log p(x, z) − log q(z|x), in nats: its mean over draws is the ELBO."""
        return self.log_likelihood - self.kl

    @property
    def elbo(self) -> Tensor:
        """(N,), the ELBO of each datum: the mean of log w over draws, in nats."""
        return self.log_weights.mean(0)

    @property
    def total_elbo(self) -> Tensor:
        """(S,), the ELBO of all N data and the global latents, in nats; higher is better."""
        return self.log_weights.sum(-1) + self.global_log_prior - self.global_log_guide


class Traces(NamedTuple):
    """A guide's trace and the model's trace replayed against it, with log-probabilities."""

    model: poutine.Trace
    guide: poutine.Trace


def draw_traces(
    model: Any,
    guide: Any,
    *args: Any,
    num_samples: int = 1,
    detach: bool = False,
    nesting: int = 1,
    **kwargs: Any,
) -> Traces:
    """Trace guide and model at `num_samples` draws, vectorized over a plate "particles".

    The plate is left of all plates of the program, at dim −2 where "data" is the only one: sites
    get shape (S, B, *event), or (B, …) for a single draw. Gradients flow, also through the draws
    unless `detach`; surrounding handlers apply. `nesting` is the number of dimensions of the
    program's plates where it is known; it is found otherwise. Discrete sites that are marked for
    enumeration, and that the guide leaves out, are summed out of the model (`marginal`).
    """
    if num_samples == 1:
        return _importance_traces(model, guide, args, kwargs, detach)
    dim = -nesting - 1
    while True:
        both = [_with_particles(program, num_samples, dim) for program in (model, guide)]
        try:
            found = _importance_traces(*both, args, kwargs, detach)
        except ValueError as error:
            if "collide" not in str(error) or dim <= -MAX_NESTING:
                raise
            dim -= 1  # a plate of the program has this dimension
            continue
        nesting = nesting_of(*found)
        if nesting < -dim:
            return found
        dim = -nesting - 1


def _importance_traces(model: Any, guide: Any, args: Any, kwargs: Any, detach: bool) -> Traces:
    with Enumerated() as enumerated:
        model = enumerated.of_model(model)
        found = get_importance_trace("flat", MAX_NESTING, model, guide, args, kwargs, detach)
    traces = Traces(*found)
    sum_out(traces.model)
    return traces


def posterior_trace(
    model: Any, guide: Any, *args: Any, num_samples: int, nesting: int
) -> poutine.Trace:
    """Return a trace of the model at z ~ q(z|x) and c ~ p(c|x, z), c being summed out elsewhere.

    Arguments as for `draw_traces`.
    """
    both = [model, guide]
    if num_samples > 1:
        both = [_with_particles(program, num_samples, -nesting - 1) for program in both]
    guide_trace = prune_subsample_sites(poutine.trace(both[1]).get_trace(*args))
    return discrete_draws(both[0], guide_trace, args)


def _with_particles(program: Any, num_samples: int, dim: int) -> Any:
    def vectorized(*args: Any, **kwargs: Any) -> Any:
        with pyro.plate(PARTICLES, num_samples, dim=dim):
            return program(*args, **kwargs)

    return vectorized


def terms_of(traces: Traces, num_data: int) -> ElboTerms:
    """Compute the terms of the ELBO from a pair of traces, unscaled.

    Args:
        traces: as returned by `draw_traces`.
        num_data: N, the size of the plate "data".

    Returns:
        ElboTerms, differentiable if the traces are.
    """
    model_latents = {n: s for n, s in _sites(traces.model) if not s["is_observed"]}
    observed = {n: s for n, s in _sites(traces.model) if s["is_observed"]}
    guide_latents = {n: s for n, s in _sites(traces.guide) if not s["is_observed"]}
    device = next((s["unscaled_log_prob"].device for _, s in _sites(traces.model)), None)
    layouts = layouts_of(*traces)
    split = partial(_local_and_global, layouts=layouts, num_data=num_data, device=device)
    log_prior, global_log_prior = split(model_latents)
    of_sites = {n: split({n: s})[0] for n, s in observed.items() if is_local(s)}
    log_likelihood = reduce(torch.add, of_sites.values()) if of_sites else split({})[0]
    log_guide, global_log_guide = split(guide_latents)
    arrays = (log_prior, log_likelihood, log_guide, global_log_prior, global_log_guide)
    num_samples = max(len(a) for a in arrays)
    expanded = [a.expand(num_samples, *a.shape[1:]) for a in arrays]
    latents = {n: layouts[n].canonical(s["value"]) for n, s in model_latents.items()}
    of_data = {n: v for n, v in of_sites.items() if is_data(observed[n])}
    of_data = {n: v.expand(num_samples, *v.shape[1:]) for n, v in of_data.items()}
    return ElboTerms(*expanded, latents, of_data)


def _sites(trace: poutine.Trace):
    return [(n, s) for n, s in trace.nodes.items() if s["type"] == "sample"]


def _local_and_global(
    sites: dict[str, dict],
    *,
    layouts: dict[str, Layout],
    num_data: int,
    device: torch.device | None,
) -> tuple[Tensor, Tensor]:
    """Sum the log-densities of sites inside the plate, (S, N), and outside, (S,)."""
    local, global_ = [], []
    for name, site in sites.items():
        log_prob = site["unscaled_log_prob"]
        if site["mask"] is not None:
            log_prob = torch.where(torch.as_tensor(site["mask"]), log_prob, 0.0)
        log_prob = layouts[name].canonical(log_prob, event_dim=0)
        if is_local(site):
            local.append(_as_rows(log_prob, name, num_data))
        else:
            global_.append(log_prob.flatten(1).sum(1) if log_prob.dim() > 1 else log_prob)
    # `sum` would add a tensor of zeros, an extra operation in each training step
    total = reduce(torch.add, local) if local else torch.zeros(1, num_data, device=device)
    return total, reduce(torch.add, global_) if global_ else torch.zeros(1, device=device)


def _as_rows(log_prob: Tensor, name: str, num_data: int) -> Tensor:
    if log_prob.shape[1] != num_data:
        raise ConfigError(
            f"the log-density of site {name!r} has {log_prob.shape[1]} rows, but it needs one "
            f"number for each of {num_data} data: the plate 'data' must be over the rows of x.\n"
            "Put the sites of a datum inside `with pyro.plate('data', len(x)):`."
        )
    return log_prob.flatten(2).sum(2) if log_prob.dim() > 2 else log_prob


def bound_on(*traces: poutine.Trace) -> str:
    """Return what the ELBO of a program bounds: "log p(x)", or that of its relaxed model.

    A density with the attribute `is_relaxed` replaces a discrete one. Its ELBO bounds the
    evidence of the continuous model, not that of the discrete one.

    Args:
        traces: traces of model and guide.

    Example:
        >>> import pyrovae as pv
        >>> from pyrovae.contract.program import trace_once
        >>> part = "RelaxedBernoulli"
        >>> vae = pv.build((2,), latent_dim=1, prior=part, guide=part, seed=0)
        >>> bound_on(*trace_once(vae, torch.ones(1, 2)))
        'log p(x) of the relaxed model'
    """
    latents = (s for trace in traces for _, s in trace.iter_stochastic_nodes())
    is_relaxed = any(getattr(s["fn"], "is_relaxed", False) for s in latents)
    return "log p(x) of the relaxed model" if is_relaxed else "log p(x)"
