"""Any distribution as a prior without learned parameters."""

from collections.abc import Callable

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae.errors import ConfigError


class Fixed(nn.Module):
    """Any distribution as a prior without learned parameters: p(z) = constructor(**tensors).

    A bare Distribution neither moves with `.to()` nor saves; here its tensors are
    buffers, and each call builds the distribution from them.

    Args:
        constructor: a function of the named tensors that returns a
            `pyro.distributions.Distribution` with batch_shape () and event_shape (D,).
        **tensors: its arguments; numbers become float tensors.

    Raises:
        ConfigError: the constructor does not return a Distribution, or returns one with
            a nonempty batch_shape (`.to_event(1)` is missing).

    Example:
        >>> prior = Fixed(
        ...     lambda df, loc, scale: dist.StudentT(df, loc, scale).to_event(1),
        ...     df=4.0, loc=torch.zeros(16), scale=torch.ones(16),
        ... )
        >>> prior
        Fixed(StudentT, event_shape=(16,))
        >>> laplace = Fixed(lambda b: dist.Laplace(torch.zeros_like(b), b).to_event(1),
        ...                 b=torch.ones(2))
        >>> laplace().log_prob(torch.zeros(2))
        tensor(-1.3863)
    """

    def __init__(self, constructor: Callable[..., dist.Distribution], **tensors: Tensor | float):
        super().__init__()
        self.constructor = constructor
        self.names = tuple(tensors)
        for name, value in tensors.items():
            is_number = isinstance(value, int | float)
            self.register_buffer(name, torch.as_tensor(float(value) if is_number else value))
        self._check(self())

    def forward(self) -> dist.Distribution:
        return self.constructor(**{name: getattr(self, name) for name in self.names})

    def extra_repr(self) -> str:
        p_z = self()
        while hasattr(p_z, "base_dist"):
            p_z = p_z.base_dist
        return f"{type(p_z).__name__}, event_shape={tuple(self().event_shape)}"

    @staticmethod
    def _check(p_z: dist.Distribution) -> None:
        if not isinstance(p_z, torch.distributions.Distribution):
            raise ConfigError(
                f"Fixed: the constructor returned a {type(p_z).__name__}, but a prior is a "
                "density.\nReturn a pyro.distributions.Distribution."
            )
        if p_z.batch_shape:
            raise ConfigError(
                f"Fixed: the constructor returned batch_shape {tuple(p_z.batch_shape)} and "
                f"event_shape {tuple(p_z.event_shape)}, but p(z) is one density over the whole "
                "vector z: batch_shape ().\nOtherwise each latent would count as a datum. "
                f"End the constructor with .to_event({len(p_z.batch_shape)})."
            )
