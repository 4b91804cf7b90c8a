"""Base class of scalar densities."""

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor


class Elementwise(TorchDistribution):
    """Scalar density whose parameters are the names in `arg_constraints`."""

    def __init__(self, *, validate_args: bool | None = None, **parameters: Tensor):
        # not broadcast together: terms of a per-feature parameter alone stay small
        for name, value in parameters.items():
            setattr(self, name, value)
        shape = torch.broadcast_shapes(*(p.shape for p in parameters.values()))
        super().__init__(shape, validate_args=validate_args)

    def expand(self, batch_shape, _instance=None):
        new = self._get_checked_instance(type(self), _instance)
        new.__dict__.update(self.__dict__)
        for name in self.arg_constraints:
            setattr(new, name, getattr(self, name).expand(batch_shape))
        new._batch_shape = torch.Size(batch_shape)
        return new

    def _checked(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return value.to(getattr(self, next(iter(self.arg_constraints))).dtype)
