"""Discrete latents that the guide leaves out, summed out of the model exactly.

    log p(x, z) = log Σ_c p(x, z, c)

A site marked with infer={"enumerate": "parallel"}, Pyro's mark, takes all of its values at once,
along a dimension left of all plates. `sum_out` then gives each remaining site its density given
the earlier sites, with c summed out, so that the trace is one of the marginal program:

    log p(s_k | s_1 … s_{k−1}) = log Σ_c Π_{j ≤ k} p(s_j | …, c) − log Σ_c Π_{j < k} p(s_j | …, c)

The sums are Pyro's tensor variable elimination (Obermeyer et al., 2019, arXiv:1902.03210), which
uses the plates and `pyro.markov`. c itself is drawn from p(c|x, z) (`pyro.infer.infer_discrete`).
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
from pyro import poutine
from pyro.infer import infer_discrete
from pyro.ops import packed
from pyro.ops.contract import contract_to_tensor
from pyro.ops.rings import LogRing
from pyro.poutine.enum_messenger import EnumMessenger
from torch import Tensor

MAX_NESTING = 8  # largest number of nested plates of a program, "particles" included


class Enumerated(EnumMessenger):
    """Handler of both, in which marked sites of the model that the guide lacks take all values."""

    def __init__(self):
        super().__init__(-1 - MAX_NESTING)
        self.is_active = False

    def of_model(self, model: Callable) -> Callable:
        """Return the model, to which alone the handler applies."""

        def active(*args: Any, **kwargs: Any) -> Any:
            self.is_active = True
            try:
                return model(*args, **kwargs)
            finally:
                self.is_active = False

        return active

    def _pyro_sample(self, msg: Any) -> None:
        if not self.is_active:
            return
        if scope := msg["infer"].get("_markov_scope"):  # without values of the guide
            known = {name: depth for name, depth in scope.items() if name in self._markov_depths}
            msg["infer"]["_markov_scope"] = known
        if not msg["done"]:
            super()._pyro_sample(msg)
            return
        # a value of the guide: not enumerated, but its density may depend on sites that are
        msg["infer"] = {**msg["infer"], "enumerate": None}
        msg["done"] = False
        super()._pyro_sample(msg)
        msg["done"] = True

    def _pyro_post_sample(self, msg: Any) -> None:
        if self.is_active:
            super()._pyro_post_sample(msg)


class Marginal(dist.TorchDistribution):
    """Density of a site given earlier sites, with discrete latents summed out, at one value.

    Args:
        of: the density of the site given the discrete latents.
        value: of the site.
        log_prob: the log-density at `value`, of its batch shape.
    """

    arg_constraints = {}  # noqa: RUF012 (torch reads a dict)

    def __init__(self, of: dist.TorchDistribution, value: Tensor, log_prob: Tensor):
        super().__init__(log_prob.shape, of.event_shape, validate_args=False)
        self.of, self.value, self.found = of, value, log_prob

    @property
    def support(self) -> Any:
        """The support of the site."""
        return self.of.support

    def log_prob(self, value: Tensor) -> Tensor:
        if value is not self.value:
            raise NotImplementedError("the density is known at one value only")
        return self.found


def sum_out(trace: poutine.Trace) -> None:
    """Turn a trace in which discrete sites take all of their values into that of the marginal.

    Args:
        trace: with log-probabilities, from `poutine.EnumMessenger`; changed in place.
    """
    sites = [site for site in trace.nodes.values() if site["type"] == "sample"]
    summed = [site for site in sites if is_enumerated(site)]
    if not summed:
        return
    trace.pack_tensors()
    frames = {frame for site in sites for frame in site["cond_indep_stack"] if frame.vectorized}
    sizes = {trace.plate_to_symbol[frame.name]: frame.size for frame in frames}
    dims = {dim for site in summed for dim in _masked(site)._pyro_dims} - set(sizes)
    within = frozenset.intersection(*(_ordinal(trace, site) for site in summed))
    factors: OrderedDict[frozenset, list[Tensor]] = OrderedDict()
    before: Any = 0.0
    for site in sites:
        factor = _masked(site)
        if is_enumerated(site):
            trace.remove_node(site["name"])
        if dims.isdisjoint(factor._pyro_dims):
            if not is_enumerated(site) and site["unscaled_log_prob"].dim() > MAX_NESTING:
                # it depends on a latent with a single value, whose dimension packing drops
                _replace_density(site, packed.unpack(factor, trace.symbol_to_dim))
            continue
        factors.setdefault(_ordinal(trace, site), []).append(factor)
        if is_enumerated(site):
            continue
        ring = LogRing(dim_to_size=sizes)
        total = contract_to_tensor(factors, dims, target_ordinal=within, ring=ring)
        joint = packed.unpack(total, trace.symbol_to_dim)
        _replace_density(site, joint - before)
        before = joint


def is_enumerated(site: dict) -> bool:
    """Return whether a traced site takes all of its values at once."""
    return site["infer"].get("_enumerate_dim") is not None


def _ordinal(trace: poutine.Trace, site: dict) -> frozenset:
    """Return the plates of a site; packed tensors drop those of size 1."""
    frames = (f for f in site["cond_indep_stack"] if f.vectorized and f.size > 1)
    return frozenset(trace.plate_to_symbol[frame.name] for frame in frames)


def _masked(site: dict) -> Tensor:
    found = site["packed"]
    return packed.scale_and_mask(found["unscaled_log_prob"], mask=found["mask"])


def _replace_density(site: dict, log_prob: Tensor) -> None:
    # packing drops plates of size 1, which Pyro's objectives need
    dims = max((-f.dim for f in site["cond_indep_stack"] if f.vectorized), default=0)
    log_prob = log_prob.reshape(*[1] * (dims - log_prob.dim()), *log_prob.shape)
    site["fn"] = Marginal(site["fn"], site["value"], log_prob)
    site["mask"], site["unscaled_log_prob"] = None, log_prob
    site["log_prob"] = log_prob * site["scale"]
    site["log_prob_sum"] = site["log_prob"].sum()


def drawn(model: Callable) -> Callable:
    """Return the model with every discrete site drawn, none summed out."""
    return poutine.infer_config(model, lambda site: {"enumerate": None})


def discrete_draws(model: Callable, guide_trace: poutine.Trace, batch: Any) -> poutine.Trace:
    """Return a trace of the model with c ~ p(c|x, z) for the latents that are summed out.

    Args:
        model: a model that observes x.
        guide_trace: a trace with the values of z.
        batch: the arguments of the model.
    """
    values = {name: site["value"] for name, site in guide_trace.iter_stochastic_nodes()}
    given = poutine.condition(model, data=values)
    infer = infer_discrete(given, -1 - MAX_NESTING, strict_enumeration_warning=False)
    return poutine.trace(infer).get_trace(*batch)
