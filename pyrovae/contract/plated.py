"""Density of an observed site inside plates other than "data", with the plates as event dimensions.

A site in a plate of T times, left of "data", has batch shape (T, B), while its data are (B, T).
"""

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Distribution

from pyrovae.checks.values import elementwise
from pyrovae.contract.layout import Layout, layout_of


def density_of_data(site: dict, nesting: int) -> Distribution:
    """Return p(x|z) of an observed site, over the shape of a datum.

    Args:
        site: a traced site.
        nesting: number of dimensions of all plates of the program.
    """
    layout, density = layout_of(site, nesting), site["fn"]
    if not layout.plates:
        return density
    numbers = elementwise(density)
    num_event = len(density.event_shape) - len(numbers.event_shape)
    return PlatedDensity(numbers, layout._replace(event_dim=num_event)).to_event(
        len(layout.plates) + num_event
    )


class PlatedDensity(dist.TorchDistribution):
    """Density of each number of a site, with batch shape (B, *plates, *event).

    Args:
        of: the same density, with batch shape (*plates and data, *event).
        layout: of the site, with the event dimensions among the batch shape of the density.
    """

    arg_constraints = {}  # noqa: RUF012 (torch reads a dict)

    def __init__(self, of: Distribution, layout: Layout):
        self.of, self.layout = of, layout
        shape = layout.canonical(torch.zeros(of.batch_shape)).shape[1:]
        super().__init__(shape, of.event_shape, validate_args=False)

    @property
    def support(self) -> Any:
        """The support of a number."""
        return self.of.support

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-density of values (…, B or 1, *plates, *event)."""
        value = value.expand(*value.shape[: value.dim() - len(self.batch_shape)], *self.batch_shape)
        flat = value.reshape(-1, *self.batch_shape)
        found = [self.of.log_prob(self.layout.traced(one[None])) for one in flat]
        return torch.cat([self.layout.canonical(one) for one in found]).reshape(value.shape)
