"""Is this x like what the model makes? A p-value per datum, against data simulated from the model.

    x_1^rep … x_m^rep ~ p(x),    t one of three statistics, estimated alike for x and x^rep:

    log_px        log (1/S) Σ_s p(x, z_s)/q(z_s|x)           how probable is x
    distortion    −(1/S) Σ_s log p(x|z_s)                    how badly do its codes explain x
    rate          (1/S) Σ_s log q(z_s|x) − log p(z_s)        how far are its codes from the prior

with z_s ~ q(z|x). Under the model x and the x^rep are exchangeable, so that the rank of t(x) is
uniform whatever t is, a poor estimate included. Both tails count: a datum may also be too probable
(an empty image), as data of high density need not be typical. Half of the replicates give the
median and the 5 % and 95 % quantiles of each statistic; the p-value is the rank of the largest of
the three distances from the median, each in units of the quantile on its side, among the others.

The p-value is against the model, not against other data: if it is small for most data, then the
model is wrong; if for a few, then these data are unusual. Under a mask, a replicate has the mask
(and y) of a random datum. A posterior-predictive p-value would use x twice and not be uniform.

Symbols: N data, m replicates, S draws each. With global latents w, replicates are made at draws
w ~ q(w) and p(x) is the mean of p(x|w) over such draws.

References:
    Detecting Out-of-Distribution Inputs to Deep Generative Models Using Typicality, Nalisnick et
    al., 2019, https://arxiv.org/abs/1906.02994 (both tails)
    Testing for Outliers with Conformal p-Values, Bates et al., 2023,
    https://arxiv.org/abs/2104.08279 (false discovery rate)
    Algorithmic Learning in a Random World, Vovk, Gammerman & Shafer, 2005,
    https://doi.org/10.1007/b106715 (ranks of exchangeable data)
"""

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pyrovae.checks import whole_number
from pyrovae.contract import validated
from pyrovae.core.conditional import given_globals
from pyrovae.core.draws import Arrays, concat, diagnosing, log_mean_exp, over_draws, read_terms
from pyrovae.core.replicates import ROWS, replicated
from pyrovae.data import Batch
from pyrovae.data.batch import concat as joined
from pyrovae.data.batch import is_by_site
from pyrovae.runtime.ambient import exclusive

STATISTICS = ("log_px", "distortion", "rate")


class Typicality(NamedTuple):
    """How each datum compares with m data simulated from the model; (N, …) float64.

    Attributes:
        p_value: (N,), small if x is unlike the model's data; uniform for data of the model. Among N
            data, 0.05 N are below 0.05 by chance: see `outliers`.
        log_px, distortion, rate: (N,), the three statistics, nats.
        log_px_pit, distortion_pit, rate_pit: (N,), the share of replicates below, in (0, 1),
            uniform for data of the model: near 0 or 1 shows in what x is unusual.
    """

    p_value: Tensor
    log_px: Tensor
    distortion: Tensor
    rate: Tensor
    log_px_pit: Tensor
    distortion_pit: Tensor
    rate_pit: Tensor

    @property
    def share_atypical(self) -> float:
        """The share of data with p-value ≤ 0.05; 0.05 is expected of data of the model."""
        return (self.p_value <= 0.05).double().mean().item()

    def outliers(self, rate: float = 0.05) -> Tensor:
        """Return the rows unlike data of the model, a share `rate` of them by chance at most.

        By Benjamini and Hochberg's procedure: the rows with the k smallest p-values, for the
        largest k with p_(k) ≤ rate · k / N.
        """
        ordered, rows = self.p_value.sort()
        limits = rate * torch.arange(1, len(ordered) + 1) / len(ordered)
        passed = (ordered <= limits).nonzero()[:, 0]
        return rows[: passed[-1] + 1].sort().values if len(passed) else rows[:0]

    @property
    def message(self) -> str:
        """One sentence for the user."""
        num, share, rows = len(self.p_value), self.share_atypical, self.outliers().tolist()
        if share > max(0.5, 1 / num):
            return (
                f"{100 * share:.0f} % of {num} data are unlike data of the model at the 5 % level: "
                "the model does not generate data like these."
            )
        if not rows:
            part = f"{100 * share:.0f} % have a p-value below 0.05, where 5 % are expected"
            return f"None of {num} data is unlike data of the model; {part}."
        shown = ", ".join(map(str, rows[:10])) + (" …" if len(rows) > 10 else "")
        return f"{len(rows)} of {num} data are unlike data of the model: rows {shown}."


@exclusive
def typicality(
    program: nn.Module,
    x: Any,
    y: Any = None,
    mask: Any = None,
    *,
    num_replicates: int = 2000,
    num_samples: int = 20,
    num_globals: int = 10,
    seed: int | None = 0,
    memory_budget: int | None = None,
) -> Typicality:
    """Return a p-value per datum of being a draw of the model's own distribution.

    Args:
        program: any program.
        x: (N, *event).
        y: (N, …), covariates; replicates have the y of a random row.
        mask: of x's shape, true where x is observed; likewise.
        num_replicates: m ≥ 20 simulated data; no p-value is far below 2 / m.
        num_samples: S, draws of q(z|x) for the statistics of each datum.
        num_globals: draws of the global latents, if there are any.
        seed: random seed; None uses a fresh one.
        memory_budget: bytes per chunk, as in `log_evidence`.

    Returns:
        Typicality, arrays (N,).

    Raises:
        DataError: x does not fit the program.
        ConfigError: a setting is out of range.

    References:
        Nalisnick et al., 2019, https://arxiv.org/abs/1906.02994

    Example:
        >>> import pyrovae as pv
        >>> vae = pv.build((2,), latent_dim=1, likelihood="Normal", seed=0)
        >>> found = typicality(vae, torch.tensor([[0.0, 1.0], [50.0, 0.0]]), num_replicates=200)
        >>> found.p_value.shape, bool(found.p_value[1] < 0.02)
        (torch.Size([2]), True)
    """
    num = whole_number(num_replicates, "num_replicates", 20)
    num_samples = whole_number(num_samples, "num_samples", 1)
    num_globals = whole_number(num_globals, "num_globals", 1)
    data = validated(program, x, y, mask).whole()
    how = {"num_samples": num_samples, "memory_budget": memory_budget}
    with diagnosing(program, seed):
        rows = data.rows(torch.randint(data.num_data, (num,)))
        replicates = _replicates(given_globals(program, data, num_globals), rows)
        programs = given_globals(program, data, num_globals)  # other draws: x does not know these
        seen, null = (_statistics(programs, batch, **how) for batch in (data, replicates))
        pit = {name: _pit(seen[name], null[name]) for name in STATISTICS}
        p_value = _combined(seen, null)
    values = [seen[name] for name in STATISTICS] + [pit[name] for name in STATISTICS]
    return Typicality(p_value, *values)


def _replicates(programs: list[nn.Module], rows: Batch) -> Batch:
    """Return a datum from the prior for each row, with its y and mask."""
    found = []
    for program, index in zip(
        programs, torch.arange(rows.num_data).chunk(len(programs)), strict=False
    ):
        for piece in rows.rows(index).read(ROWS):
            made = next(replicated(program, piece, num_samples=1, memory_budget=None))
            x = {name: made[name][0] for name in piece.sites}
            found.append(replace(piece, x=x if is_by_site(piece.x) else x["x"]))
    return joined(found)


def _statistics(programs: list[nn.Module], data: Batch, **how: Any) -> Arrays:
    """Return the three statistics, (N,) float64."""
    terms = [over_draws(program, data, read_terms, **how) for program in programs]
    each = concat(terms, 0)  # draws of z at all w
    kl = each["log_guide"] - each["log_prior"]
    log_px = log_mean_exp(each["log_likelihood"] - kl)
    found = {"log_px": log_px, "distortion": -each["log_likelihood"].mean(0), "rate": kl.mean(0)}
    return {name: value.cpu() for name, value in found.items()}


def _pit(values: Tensor, null: Tensor) -> Tensor:
    """Return (number below + U (ties + 1)) / (m + 1), uniform if values and null are alike."""
    null = null.sort().values
    below = torch.searchsorted(null, values)
    ties = torch.searchsorted(null, values, right=True) - below
    share = torch.rand(values.shape, dtype=torch.float64)
    return (below + share * (ties + 1)) / (len(null) + 1)


def _combined(seen: Arrays, null: Arrays) -> Tensor:
    """Return the p-value of the largest distance; the halves of the replicates are independent."""
    half = len(null["rate"]) // 2
    low, middle, high = (
        torch.stack([null[name][:half].quantile(level) for name in STATISTICS])
        for level in (0.05, 0.5, 0.95)
    )

    def distance(arrays: Arrays, part: slice) -> Tensor:
        gap = torch.stack([arrays[name][part] for name in STATISTICS], 1) - middle
        unit = torch.where(gap > 0, high - middle, middle - low)
        return torch.where(gap == 0, 0.0, gap.abs() / unit).amax(1)

    return 1 - _pit(distance(seen, slice(None)), distance(null, slice(half, None)))
