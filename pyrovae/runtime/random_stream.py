"""A separate random stream for torch, NumPy and `random`, with a state that can be saved."""

import random

import numpy as np
import torch

from pyrovae.runtime.turns import TURN


class RandomStream:
    """A separate generator state for torch, NumPy and `random`.

    While the `with` block runs, the global generators continue this stream; after it,
    they are the caller's again, and the stream remembers where it stopped. Entering
    it many times, also within another, gives the same draws as entering it once. Other threads
    wait for the end of the block before they enter one.

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
        self.seed = seed
        with TURN:
            caller = _global_state()
            try:
                _seed_torch(seed)
                np.random.seed(seed % 2**32)  # noqa: NPY002  (users' transforms draw from it)
                random.seed(seed)
                self._state = _global_state()
            finally:
                _set_global_state(caller)
        self.depth = 0  # of `with` blocks that are running

    @property
    def state(self) -> tuple:
        """The current state, also inside the `with` block; setting it makes the stream jump."""
        return _global_state() if self.depth else self._state

    @state.setter
    def state(self, state: tuple) -> None:
        self._state = state
        if self.depth:
            _set_global_state(state)

    def __enter__(self) -> "RandomStream":
        TURN.__enter__()
        try:
            if not self.depth:
                self._begin()
        except BaseException:  # of a state that is not one, or Ctrl-C
            TURN.__exit__()
            raise
        self.depth += 1
        return self

    def _begin(self) -> None:
        self.caller = _global_state()
        _set_global_state(self._state)
        if torch.cuda.is_initialized() and not self._state[3]:
            torch.cuda.manual_seed_all(self.seed)  # GPUs came into use since it was made

    def __exit__(self, *exception: object) -> None:
        self.depth -= 1
        try:
            if not self.depth:
                self._state = _global_state()
                _set_global_state(self.caller)
        finally:
            TURN.__exit__()


def _seed_torch(seed: int) -> None:
    other = torch.accelerator.is_available() and not torch.cuda.is_available()
    if torch.cuda.is_initialized() or other:
        torch.manual_seed(seed)
    else:
        # torch.manual_seed would leave a seed behind for the GPUs, which the caller may use later,
        # together with the whole stack as text, which takes milliseconds
        torch.default_generator.manual_seed(seed)


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
