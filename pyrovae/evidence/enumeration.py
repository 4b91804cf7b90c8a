"""Exact log p(x) for discrete latents: the sum over all values of z.

    log p(x) = log Σ_z p(z) p(x|z)

The prior's `enumerate_support` lists the values; the decoder runs once for each, in chunks
within a memory budget.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pyrovae.core.chunking import chunked
from pyrovae.core.joint import VAEJoint
from pyrovae.data import Batch, Source
from pyrovae.errors import ConfigError
from pyrovae.evidence.record import Evidence, exact
from pyrovae.vae import is_plain_vae


@dataclass(frozen=True)
class Enumerate:
    """Sum over all values of a discrete latent of a `VAE`, without Monte-Carlo error.

    Example:
        >>> import pyrovae as pv
        >>> part = "Bernoulli"
        >>> vae = pv.build((2,), latent_dim=3, prior=part, guide=part, seed=0)
        >>> pv.log_evidence(vae, torch.ones(1, 2), method=Enumerate()).std_error
        tensor([0.], dtype=torch.float64)
    """

    def __call__(
        self, program: nn.Module, data: Source | Batch, *, memory_budget: int | None = None
    ) -> Evidence:
        """Return log p(x) for each datum; errors as in `log_evidence`."""
        if not is_plain_vae(program):
            raise ConfigError(
                f"method='enumerate' sums over the values of the one latent of a VAE, but this is "
                f"a {type(program).__name__}.\nWrite method='importance', which takes any program."
            )

        def draw(rows: Batch):
            joint = VAEJoint(program, rows)
            return lambda n: joint.terms({"z": _values(joint)[[0] * n]})

        num_values = len(_values(VAEJoint(program, data.head())))
        options = {"memory_budget": memory_budget, "what": "values of z"}
        chunks = chunked(data, num_values, draw, **options)
        parts = [_log_sum(VAEJoint(program, rows), sizes[0]) for rows, sizes in chunks]
        return exact(torch.cat(parts))


def _values(joint: VAEJoint) -> Tensor:
    """Return all values of z, (K, 1 or N, D)."""
    p_z = joint.prior
    try:
        values = p_z.enumerate_support(expand=False)
    except NotImplementedError:
        raise ConfigError(
            f"method='enumerate' sums over every value of z, but p(z) is a {type(p_z).__name__} "
            f"over {p_z.support}, whose values cannot be listed.\n"
            "Use priors.Bernoulli or priors.Categorical, or method='importance'."
        ) from None
    return values.reshape(len(values), 1, *p_z.event_shape)


def _log_sum(joint: VAEJoint, chunk: int) -> Tensor:
    total = None
    for z in _values(joint).split(chunk):
        log_prior, log_likelihood = joint.terms({"z": z})
        part = (log_prior + log_likelihood).double().logsumexp(0)
        total = part if total is None else torch.logaddexp(total, part)
    return total
