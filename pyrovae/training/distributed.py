"""Several processes that train one program: `torch.distributed`, launched by `torchrun`.

Each process takes every W-th row of each batch, and one all-reduce a step adds up the
gradients as sums over data, the number of data and the loss: a batch of 7 on two processes
counts each of the 7 once. A hook on gradients would not fire in a recorded step, so the
sum is explicit. Rank 0 alone writes.
"""

import torch
import torch.distributed as dist
from torch import Tensor

from pyrovae.errors import ConfigError


class Group:
    """The processes of a run.

    Attributes:
        rank: of this process, from 0.
        size: W, how many there are.
    """

    def __init__(self) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()

    def summed(self, gradients: list[Tensor], count: int) -> int:
        """Add up gradients (in place) and the number of data over all processes."""
        flat = torch.cat([g.reshape(-1) for g in gradients] + [gradients[0].new_tensor([count])])
        self._reduced(flat)
        parts = flat[:-1].split([g.numel() for g in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))
        return int(flat[-1].round())

    def total(self, values: Tensor) -> Tensor:
        """The sum of a small tensor over all processes."""
        values = values.clone()
        self._reduced(values)
        return values

    def gathered(self, values: Tensor) -> list[Tensor]:
        """A tensor of each process, by rank."""
        parts = [torch.empty_like(values) for _ in range(self.size)]
        dist.all_gather(parts, values)
        return parts

    def _reduced(self, values: Tensor) -> None:
        try:
            dist.all_reduce(values)
        except RuntimeError as error:
            raise ConfigError(
                f"another process of the run is gone: {str(error).partition(chr(10))[0]}"
            ) from error
