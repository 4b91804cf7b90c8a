"""Buffers as they were: running statistics move in the forward pass, whatever comes of a step."""

from torch import nn
from torch.nn.modules.batchnorm import _NormBase


class BuffersBefore:
    """Copies of a module's buffers, to put back after a forward pass that is not to count.

    Buffers that nobody wrote to since, such as masks and constants, cost a look each. Running
    statistics are always taken to be written to: torch changes them without counting a version.

    Example:
        >>> import torch
        >>> norm = nn.BatchNorm1d(2)
        >>> before = BuffersBefore(norm)
        >>> _ = norm(torch.tensor([[0.0, 1.0], [2.0, 3.0]]))
        >>> before.put_back()
        >>> norm.running_mean, norm.num_batches_tracked
        (tensor([0., 0.]), tensor(0))
    """

    def __init__(self, module: nn.Module):
        norms = [m for m in module.modules() if isinstance(m, _NormBase)]
        self.statistics = {id(buffer) for norm in norms for buffer in norm.buffers(recurse=False)}
        self.buffers = list(module.buffers())
        self.copies = [buffer.detach().clone() for buffer in self.buffers]
        self.versions = [buffer._version for buffer in self.buffers]

    def take_again(self) -> None:
        """From here on these values are the ones before."""
        for i in self._written():
            self.copies[i].copy_(self.buffers[i].detach())
            self.versions[i] = self.buffers[i]._version

    def put_back(self) -> None:
        """Give the buffers the values of the copies."""
        for i in self._written():
            self.buffers[i].detach().copy_(self.copies[i])
            self.versions[i] = self.buffers[i]._version

    def _written(self) -> list[int]:
        found = enumerate(zip(self.buffers, self.versions, strict=True))
        return [i for i, (b, v) in found if b._version != v or id(b) in self.statistics]
