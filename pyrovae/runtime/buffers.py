"""Buffers as they were: a forward pass moves running statistics, even if its step is discarded."""

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase


class BuffersBefore:
    """Copies of a module's buffers, to restore after a forward pass that must not count.

    For buffers that were not written to, such as masks and constants, only a version number is
    compared. Running statistics always count as written to: torch changes them without counting a
    version. A custom part that writes through `.data` is not noticed.

    Example:
        >>> import torch
        >>> norm = nn.BatchNorm1d(2)
        >>> before = BuffersBefore(norm)
        >>> _ = norm(torch.tensor([[0.0, 1.0], [2.0, 3.0]]))
        >>> before.restore()
        >>> norm.running_mean, norm.num_batches_tracked
        (tensor([0., 0.]), tensor(0))
    """

    def __init__(self, module: nn.Module):
        modules = list(module.modules())
        norms = [m._buffers for m in modules if isinstance(m, _NormBase)]
        self.statistics = {id(buffers) for buffers in norms}
        self.places = [
            (m._buffers, n) for m in modules for n, b in m._buffers.items() if b is not None
        ]
        self.buffers = [buffers[name] for buffers, name in self.places]
        self.copies = [buffer.detach().clone() for buffer in self.buffers]
        self.versions = [buffer._version for buffer in self.buffers]

    def update(self) -> None:
        """Update the copies to the present values."""
        for i, buffer in self._written():
            self.buffers[i], self.copies[i] = buffer, buffer.detach().clone()
            self.versions[i] = buffer._version

    def restore(self) -> None:
        """Restore the module's buffers, with the values of the copies."""
        for i, _ in self._written():
            (buffers, name), buffer = self.places[i], self.buffers[i]
            buffers[name] = buffer
            buffer.detach().copy_(self.copies[i])
            self.versions[i] = buffer._version

    def _written(self) -> list[tuple[int, Tensor]]:
        found = []
        for i, (buffers, name) in enumerate(self.places):
            buffer = buffers.get(name)
            is_same = buffer is self.buffers[i] and buffer._version == self.versions[i]
            if buffer is not None and (not is_same or id(buffers) in self.statistics):
                found.append((i, buffer))
        return found
