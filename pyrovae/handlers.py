"""Contexts around a program: what a run borrows from the process, it gives back.

Three things in a torch + Pyro process are global: the generators, Pyro's parameter
store, and (per module) the train/eval mode. Each public entry point of pyrovae wraps
itself in the contexts of this file, so that nothing outside can tell that it ran.
"""

import math
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pyro
import torch
from pyro.poutine.messenger import Messenger
from torch import nn

from pyrovae.errors import ConfigError

SMALL_STEP = 2**25  # multiplications, some milliseconds of one core with their gradients


class RandomStream:
    """A generator state of its own for torch, NumPy and `random`.

    While the `with` block runs, the global generators continue this stream; after it,
    they are the caller's again, and the stream remembers where it stopped. Entering
    it many times therefore gives the same draws as entering it once.

    Args:
        seed: a whole number in [0, 2⁶⁴).

    Example:
        >>> stream = RandomStream(0)
        >>> with stream:
        ...     a = torch.rand(2)
        >>> with stream:
        ...     b = torch.rand(2)
        >>> with RandomStream(0):
        ...     both = torch.rand(4)
        >>> bool((torch.cat([a, b]) == both).all())
        True
    """

    def __init__(self, seed: int):
        self.seed, caller = seed, _global_state()
        try:
            _seed_torch(seed)
            np.random.seed(seed % 2**32)  # noqa: NPY002  (users' transforms draw from it)
            random.seed(seed)
            self._state = _global_state()
        finally:
            _set_global_state(caller)
        self.is_running = False

    @property
    def state(self) -> tuple:
        """Where the stream stands, inside its `with` block too; setting it makes it jump there."""
        return _global_state() if self.is_running else self._state

    @state.setter
    def state(self, state: tuple) -> None:
        self._state = state
        if self.is_running:
            _set_global_state(state)

    def __enter__(self) -> "RandomStream":
        self.caller = _global_state()
        _set_global_state(self._state)
        if torch.cuda.is_initialized() and not self._state[3]:
            torch.cuda.manual_seed_all(self.seed)  # GPUs came into use after the stream was made
        self.is_running = True
        return self

    def __exit__(self, *exception: object) -> None:
        self._state = _global_state()
        self.is_running = False
        _set_global_state(self.caller)


def _seed_torch(seed: int) -> None:
    if torch.cuda.is_available() and not torch.cuda.is_initialized():
        # torch.manual_seed would leave a seed behind for the GPUs, whenever the caller first
        # uses them
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)


def _global_state() -> tuple:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return torch.get_rng_state(), np.random.get_state(), random.getstate(), cuda  # noqa: NPY002


def _set_global_state(state: tuple) -> None:
    torch_state, numpy_state, python_state, cuda = state
    torch.set_rng_state(torch_state)
    np.random.set_state(numpy_state)  # noqa: NPY002
    random.setstate(python_state)
    if cuda:
        torch.cuda.set_rng_state_all(cuda)


@contextmanager
def threads_for(num_multiplications: int) -> Iterator[None]:
    """One torch thread for the block where a step's matrix products are too small to share.

    On two cores, a second thread that waits for the first made steps of small networks up to
    ten times slower; the choice depends on the work only, never on a stopwatch.

    Args:
        num_multiplications: of one step: about batch size times parameters.

    Example:
        >>> with threads_for(64 * 20_000):
        ...     torch.get_num_threads()
        1
    """
    before = torch.get_num_threads()
    if num_multiplications < SMALL_STEP:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def module_mode(module: nn.Module, *, training: bool) -> Iterator[None]:
    """Train or eval mode inside the block, each submodule's own mode back after it.

    Example:
        >>> dropout = nn.Dropout()
        >>> with module_mode(dropout, training=False):
        ...     print(dropout.training)
        False
        >>> dropout.training
        True
    """
    modes = [(m, m.training) for m in module.modules()]
    module.train(training)
    try:
        yield
    finally:
        for m, was_training in modes:
            m.training = was_training


@contextmanager
def own_store() -> Iterator[None]:
    """An empty parameter store of Pyro for the block, the caller's back after it.

    Example:
        >>> with own_store():
        ...     _ = pyro.param("inside", torch.zeros(1))
        >>> "inside" in pyro.get_param_store()
        False
    """
    with pyro.get_param_store().scope():
        yield


@contextmanager
def evaluation(program: nn.Module) -> Iterator[None]:
    """Eval mode, no gradients, and a parameter store of its own for the block.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> with evaluation(layer):
        ...     print(layer(torch.zeros(1, 2)).requires_grad, layer.training)
        False False
    """
    with module_mode(program, training=False), torch.no_grad(), own_store():
        yield


class DataScale(Messenger):
    """Multiplies the scale of every site under the plate "data"; made by `data_scale`."""

    def __init__(self, factor: float):
        super().__init__()
        if not (isinstance(factor, int | float) and 0 < factor < math.inf):
            raise ConfigError(
                f"data_scale: factor = {factor!r}, but it counts how often each datum stands for "
                "itself: a finite number > 0.\nWrite data_scale(num_data / batch_size)."
            )
        self.factor = factor

    def _pyro_sample(self, msg: dict) -> None:
        if any(frame.name == "data" for frame in msg["cond_indep_stack"]):
            msg["scale"] = self.factor * msg["scale"]


def data_scale(factor: float) -> DataScale:
    """Count each datum `factor` times: the minibatch scale N / B for global latents.

    For B of N data, drawn at random, and global latents w outside the plate "data",

        (N / B) Σ_{i in batch} ELBO_i(w) + log p(w) − log q(w)

    has the expectation Σ_{i ≤ N} ELBO_i(w) + log p(w) − log q(w). Global sites keep their scale,
    so do unscaled log-densities (`terms_of`). Handlers nest: factors multiply.

    Args:
        factor: N / B, a number > 0, without unit.

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
