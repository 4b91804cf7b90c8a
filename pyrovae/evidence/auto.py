"""Estimate log p(x) by the cheapest method that answers each datum within its stated error.

    grid → importance → refined → ais

A method answers a datum if it gives an interval for log p(x), and a standard error within the
target if one is set. Data that it does not answer go to the next method that the program supports;
data that none answers keep the largest of their lower bounds. Cost per datum is counted in
evaluations of log p(x, z), of which a gradient takes two more:

    importance K,    refined 3 · 4 · steps + K,    ais 3 · (S + 8) · T · L

T, the temperatures of ais, is what the budget leaves.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pyrovae.checks import whole_number
from pyrovae.data import Batch, Source
from pyrovae.errors import ConfigError
from pyrovae.evidence.annealing import AIS, BACKWARD_COST, PILOT_CHAINS
from pyrovae.evidence.importance import Draws, Importance
from pyrovae.evidence.quadrature import Grid
from pyrovae.evidence.record import Evidence, concat
from pyrovae.evidence.refined import DRAWS_PER_STEP, Refined

DATA_AT_A_TIME = 1024  # so that a container larger than memory is read once, block by block
GRID_CELLS = 100_000


@dataclass(frozen=True)
class Auto(Draws):
    """The cheapest of grid, importance, refined and ais that answers each datum.

    `Evidence.methods` names, for each datum, the method that gave its number.

    Args:
        num_samples, std_error, ess, max_samples: draws per datum, as for `Draws`.
        max_evaluations: evaluations of log p(x, z) per datum, apart from those of the grid, which
            are at most 100,000 a level. Methods that would exceed it are left out.

    Example:
        >>> import pyrovae as pv
        >>> vae = pv.build((2,), latent_dim=3, seed=0)
        >>> found = pv.log_evidence(vae, torch.ones(2, 2), method="auto", std_error=0.05)
        >>> found.methods, bool((found.std_error < 0.05).all())
        (('importance', 'importance'), True)
    """

    max_evaluations: int = 30_000

    def __post_init__(self) -> None:
        super().__post_init__()
        whole_number(self.max_evaluations, "max_evaluations", 1)

    def __call__(
        self, program: nn.Module, data: Source | Batch, *, memory_budget: int | None = None
    ) -> Evidence:
        """Return the estimate of log p(x) for each datum; errors as in `log_evidence`."""
        blocks = data.read(DATA_AT_A_TIME)
        return concat([self._answered(program, rows, memory_budget) for rows in blocks])

    def _answered(self, program: nn.Module, data: Batch, memory_budget: int | None) -> Evidence:
        best, refusal = None, None
        is_open = torch.ones(data.num_data, dtype=torch.bool, device=data.device)
        for name, method in self._methods():
            rows = is_open.nonzero()[:, 0]
            try:
                found = method(program, data.rows(rows), memory_budget=memory_budget)
            except ConfigError as error:  # the program lacks what this method needs
                refusal = error
                continue
            found = found._replace(methods=(name,) * len(rows))
            best = found if best is None else _improved(best, found, rows)
            is_open[rows] = ~self._is_answered(found)
            if not is_open.any():
                break
        if best is None:
            raise refusal
        return best

    def _methods(self) -> Iterator[tuple[str, Any]]:
        yield "grid", Grid(GRID_CELLS)
        yield "importance", Importance(self.num_samples)
        cost = BACKWARD_COST * DRAWS_PER_STEP * Refined.num_steps + self.num_samples
        left = self.max_evaluations - self.num_samples - cost
        if left < 0:
            return
        more = left // 2 if self.has_target else 0  # further draws towards the target
        most = min(self.max_samples, self.num_samples + more)
        target = {"std_error": self.std_error, "ess": self.ess, "max_samples": most}
        yield "refined", Refined(self.num_samples, **target)
        step = BACKWARD_COST * (AIS.num_samples + PILOT_CHAINS) * AIS.num_leapfrog
        if left - more >= step:
            yield "ais", AIS(num_temperatures=(left - more) // step)

    def _is_answered(self, found: Evidence) -> Tensor:
        return found.upper.isfinite() & self.reached(found)


def _improved(best: Evidence, found: Evidence, rows: Tensor) -> Evidence:
    """Return the record with `found` for those of its rows that it answers or bounds better."""
    before = best.log_px[rows], best.std_error[rows], best.upper[rows].isfinite()
    is_better = (found.std_error < before[1]) | ~before[2]
    is_higher = (found.log_px > before[0]) & ~before[2]
    taken = torch.where(found.upper.isfinite(), is_better, is_higher)
    arrays = []
    for old, new in zip(best[:-1], found[:-1], strict=True):
        merged = old.clone()
        merged[rows[taken]] = new[taken]
        arrays.append(merged)
    methods = list(best.methods)
    for row in rows[taken].tolist():
        methods[row] = found.methods[0]
    return Evidence(*arrays, tuple(methods))._replace(rows=best.rows)
