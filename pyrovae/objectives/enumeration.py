"""Exact sums over discrete latents, without drawing them.

    −Σ_i ELBO_i,   ELBO_i = Σ_z q(z|x_i) [log p(x_i|z) + log p(z) − log q(z|x_i)]

Pyro's `TraceEnum_ELBO` sums over the guide's sites that are marked for enumeration; this
objective marks all sites whose density has an `enumerate_support` (that of the discrete
parts of pyrovae covers the joint values of the vector z) and raises if there are none.
Other latents, such as normal ones, are drawn as usual. The decoder is called once for all
K joint values, with z of shape (K, 1, D).
"""

from collections.abc import Callable, Iterator
from typing import Any

from pyro.infer import TraceEnum_ELBO, config_enumerate

from pyrovae.checks import whole_number
from pyrovae.core.marginal import is_enumerated
from pyrovae.errors import ConfigError


class EnumELBO(TraceEnum_ELBO):
    """Negative ELBO, −Σ_i ELBO_i, summed exactly over discrete latents; lower is better.

    It sums over the discrete latents of the guide. Those that the model marks and the guide leaves
    out are summed out by every objective.

    If all latents are discrete, value and gradient have no Monte-Carlo noise. A vector of D
    Bernoulli latents has 2^D joint values, L blocks of K categories have K^L; at most 4,096.

    Args:
        num_particles: S, draws of the other latents per datum and step; 1 if there are none.
        max_plate_nesting: the number of nested plates of the program; 1 is the plate "data".

    Raises:
        ConfigError: num_particles or max_plate_nesting is not a whole number ≥ 1; at run
            time, the guide has nothing to enumerate, or more than 4,096 joint values.

    References:
        Tensor Variable Elimination for Plated Factor Graphs, Obermeyer et al., 2019,
        https://arxiv.org/abs/1902.03210

    Example:
        >>> import pyrovae as pv, torch
        >>> vae = pv.build((2,), latent_dim=3, prior="Bernoulli", guide="Bernoulli", seed=0)
        >>> x = torch.tensor([[0.0, 1.0], [1.0, 1.0], [1.0, 1.0]])
        >>> exact = EnumELBO()
        >>> from pyrovae.handlers import own_store
        >>> with own_store():
        ...     exact.loss(vae.model, vae.guide, x) == exact.loss(vae.model, vae.guide, x)
        True
        >>> history = pv.fit(vae, x, objective=EnumELBO(), epochs=2)
    """

    def __init__(self, num_particles: int = 1, *, max_plate_nesting: int = 1):
        super().__init__(
            num_particles=whole_number(num_particles, "num_particles", 1),
            max_plate_nesting=whole_number(max_plate_nesting, "max_plate_nesting", 1),
            vectorize_particles=True,
            strict_enumeration_warning=False,  # check_enumerated makes it an error
        )

    def _get_traces(self, model: Callable, guide: Callable, args: Any, kwargs: Any) -> Iterator:
        for traces in super()._get_traces(model, config_enumerate(guide), args, kwargs):
            check_enumerated(*traces)
            yield traces


def check_enumerated(model_trace: Any, guide_trace: Any) -> None:
    """Raise ConfigError unless a latent was enumerated."""
    sites = list(guide_trace.iter_stochastic_nodes())
    if any(is_enumerated(site) for _, site in model_trace.iter_stochastic_nodes()):
        return
    if any(site["infer"].get("_enumerate_dim") is not None for _, site in sites):
        return
    kinds = ", ".join(f"{name} ~ {type(site['fn']).__name__}" for name, site in sites)
    raise ConfigError(
        f"EnumELBO sums over discrete latents, but the guide has none that can be enumerated "
        f"({kinds or 'it has no latents'}): their density needs an enumerate_support.\n"
        "Write objective=None for the usual ELBO, or use guides.Bernoulli or guides.Categorical."
    )
