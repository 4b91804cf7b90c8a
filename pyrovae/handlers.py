"""Context managers that leave the process as they found it.

A torch + Pyro process has three kinds of global state: random generators, Pyro's parameter
store, and the train/eval mode of each module. Every public entry point of pyrovae runs
inside the contexts of this file, so it has no side effects on them. While one thread is inside
such a context, others wait before they enter one (`runtime.turns`).
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import pyro
import torch
from pyro.poutine.messenger import Messenger
from torch import nn

from pyrovae.errors import ConfigError
from pyrovae.runtime.ambient import in_full_precision
from pyrovae.runtime.modes import module_mode
from pyrovae.runtime.random_stream import RandomStream
from pyrovae.runtime.threads import threads_for
from pyrovae.runtime.turns import TURN

__all__ = [
    "RandomStream",
    "data_scale",
    "evaluation",
    "module_mode",
    "own_store",
    "threads_for",
]


@contextmanager
def own_store() -> Iterator[None]:
    """Use an empty Pyro parameter store inside the block and restore the caller's after it.

    Example:
        >>> with own_store():
        ...     _ = pyro.param("inside", torch.zeros(1))
        >>> "inside" in pyro.get_param_store()
        False
    """
    with TURN, pyro.get_param_store().scope():
        yield


@contextmanager
def evaluation(program: nn.Module) -> Iterator[None]:
    """Use eval mode, full precision, no gradients and a separate store inside the block.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> with evaluation(layer):
        ...     print(layer(torch.zeros(1, 2)).requires_grad, layer.training)
        False False
    """
    is_reading = module_mode(program, training=False)
    with is_reading, torch.no_grad(), in_full_precision(), own_store():
        yield


class DataScale(Messenger):
    """Handler that scales every site under the plate "data"; constructed by `data_scale`."""

    def __init__(self, factor: float):
        super().__init__()
        if not (isinstance(factor, int | float) and 0 < factor < math.inf):
            raise ConfigError(
                f"data_scale: factor = {factor!r}, but it is the weight of each datum: a finite "
                "number > 0.\nWrite data_scale(num_data / batch_size)."
            )
        self.factor = factor

    def _pyro_sample(self, msg: dict) -> None:
        if any(frame.name == "data" for frame in msg["cond_indep_stack"]):
            msg["scale"] = self.factor * msg["scale"]


def data_scale(factor: float) -> DataScale:
    """Count each datum `factor` times: the minibatch scale N / B for global latents.

    For a random minibatch of B of N data and global latents w outside the plate "data",

        (N / B) Σ_{i in batch} ELBO_i(w) + log p(w) − log q(w)

    has expectation Σ_{i ≤ N} ELBO_i(w) + log p(w) − log q(w). Global sites keep their scale,
    and unscaled log-densities (`terms_of`) are unchanged. Nested factors multiply.

    Args:
        factor: N / B > 0, dimensionless.

    Returns:
        A handler: use it in a `with` block around an SVI step, or call it on a program.

    Raises:
        ConfigError: factor is not a finite number > 0.

    References:
        Stochastic Variational Inference, Hoffman et al., 2013, https://arxiv.org/abs/1206.7055

    Example:
        >>> import pyrovae as pv
        >>> vae = pv.build((2,), latent_dim=1, seed=0)
        >>> with data_scale(10.0), pyro.poutine.trace() as tracer:
        ...     vae.model(torch.ones(5, 2))
        >>> tracer.trace.nodes["x"]["scale"]
        10.0
    """
    return DataScale(factor)
