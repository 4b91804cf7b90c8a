"""log p(x) of discrete latents, exactly: the sum over every value of z.

    log p(x) = log Σ_z p(z) p(x|z)

The values are those that the prior's `enumerate_support` lists; the decoder runs once for
each, in chunks of a byte budget.
"""

import torch
from torch import Tensor, nn

from pyrovae.core.chunking import bytes_per_draw, chunk_of, first_row, row_batches
from pyrovae.core.joint import VAEJoint, is_plain_vae
from pyrovae.data import Batch
from pyrovae.errors import ConfigError
from pyrovae.evidence.record import Evidence, exact


def enumerated_evidence(vae: nn.Module, batch: Batch, *, memory_budget: int) -> Evidence:
    """log p(x) = log Σ_z p(z) p(x|z), (N,), without Monte-Carlo error.

    Args:
        vae: a `VAE` whose prior has an `enumerate_support`, in eval mode.
        batch: checked data.
        memory_budget: bytes for one chunk.

    Raises:
        ConfigError: another program, or a prior whose values cannot be listed.
        MemoryError: one value of one datum does not fit the budget.
    """
    if not is_plain_vae(vae):
        raise ConfigError(
            f"method='enumerate' sums over the values of the one latent of a VAE, but this is a "
            f"{type(vae).__name__}.\nWrite method='iwae', which takes any program."
        )
    one = VAEJoint(vae, first_row(batch))
    num_values = len(_values(one))
    cost = bytes_per_draw(lambda n: one.terms({"z": _values(one)[[0] * n]}))
    chunk = chunk_of(num_values, len(batch.x), cost, memory_budget, what="values of z")
    parts = [_log_sum(VAEJoint(vae, b), chunk.draws) for b in row_batches(batch, chunk.rows)]
    return exact(torch.cat(parts))


def _values(joint: VAEJoint) -> Tensor:
    """(K, 1 or N, D), every value of z."""
    p_z = joint.prior
    try:
        values = p_z.enumerate_support(expand=False)
    except NotImplementedError:
        raise ConfigError(
            f"method='enumerate' sums over every value of z, but p(z) is a {type(p_z).__name__} "
            f"over {p_z.support}, whose values have no list.\n"
            "Use priors.Bernoulli or priors.Categorical, or method='iwae'."
        ) from None
    return values.reshape(len(values), 1, *p_z.event_shape)


def _log_sum(joint: VAEJoint, chunk: int) -> Tensor:
    total = None
    for z in _values(joint).split(chunk):
        log_prior, log_likelihood = joint.terms({"z": z})
        part = (log_prior + log_likelihood).double().logsumexp(0)
        total = part if total is None else torch.logaddexp(total, part)
    return total
