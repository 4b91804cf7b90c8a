"""Whether x varies about its code as p(x|z) says, by ranks among replicates.

    z_s ~ q(z|x),  x_s ~ p(x|z_s):      rank of each cell of x among x_1 … x_S, ties at random
    F(k) = share of ranks ≤ k,          D = max_k |F(k) − F*(k)|

F* is the same of data x* ~ p(x|z), z ~ q(z|x), one for each x. Under the right model and q, x* is
distributed as x, so F = F* up to noise: x and its replicates differ only by what q has learned of
x, in both alike. A density of the wrong shape or width (a Poisson for overdispersed counts, a
normal for bits) shifts the ranks of x, not those of x*. Cells count equally; those whose
replicates all equal x carry little.

References:
    Realized discrepancies: Gelman, Meng & Stern, 1996; ranks with random ties for counts:
    Predictive Model Assessment for Count Data, Czado, Gneiting & Held, 2009,
    https://doi.org/10.1111/j.1541-0420.2009.01191.x
"""

import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from pyrovae.core.draws import Arrays, diagnosing
from pyrovae.core.replay import sites_of
from pyrovae.core.replicates import observed_data, replicated
from pyrovae.data import Batch
from pyrovae.data.batch import is_by_site
from pyrovae.diagnostics import Estimate

NUM_REPLICATES = 19  # 20 ranks


def rank_distance(program: nn.Module, data: Batch, *, seed: int) -> Estimate:
    """Estimate D, the difference of two probabilities, with its error over data."""
    with diagnosing(program, seed):
        again = next(_replicates(program, data, 1))
        x = {name: again[name][0] for name in data.sites}
        made = replace(data, x=x if is_by_site(data.x) else x["x"])
        off = _shares(program, data) - _shares(program, made)
    mean = off.mean(0)
    k = mean.abs().argmax()
    error = off[:, k].std().item() / math.sqrt(len(off))
    return Estimate(mean[k].abs().item(), error, is_non_negative=True)


def _replicates(program: nn.Module, data: Batch, num_samples: int) -> Iterator[Arrays]:
    options = {"num_samples": num_samples, "memory_budget": None}
    return replicated(program, data, lambda _: program.guide, **options)


def _shares(program: nn.Module, data: Batch) -> Tensor:
    """Return the share of the cells of each datum with a rank ≤ k, (N, S) for k < S, float64."""
    x = observed_data(program, data, sites_of(program, data))
    below = {name: torch.zeros_like(cells) for name, cells in x.items()}
    ties = {name: torch.zeros_like(cells) for name, cells in x.items()}
    for chunk in _replicates(program, data, NUM_REPLICATES):
        for name, cells in x.items():
            below[name] += (chunk[name] < cells).sum(0)
            ties[name] += (chunk[name] == cells).sum(0)
    counts, total = 0.0, 0.0
    for name, cells in x.items():
        rank = below[name] + (torch.rand_like(cells) * (ties[name] + 1)).floor()
        seen = ~cells.isnan().flatten(1)
        is_low = rank.flatten(1)[..., None] <= torch.arange(NUM_REPLICATES).to(rank)
        counts = counts + (is_low & seen[..., None]).sum(1).double()
        total = total + seen.sum(1).double()
    return (counts / total.clamp(min=1)[:, None]).cpu()
