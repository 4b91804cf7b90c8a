"""How much every headline number moves when a model is fitted again with another seed.

    number_r = number of the program fitted with seed s + r,   r = 0 … R − 1
    s²_seed = Var_r(number_r),   error of one fit = √(s²_seed + s²_data)

A mean over data has an error s_data over data, which says nothing about training: initial weights,
the order of batches and draws of z lead to another local optimum. Two models differ only if their
numbers differ by more than both errors. With R = 5 refits, s_seed itself is known to about a third.

References:
    Accounting for Variance in Machine Learning Benchmarks, Bouthillier et al., 2021,
    https://arxiv.org/abs/2103.03098
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pyrovae.checks import seed_number, whole_number
from pyrovae.diagnostics import Estimate, active_units, decompose_elbo
from pyrovae.diagnostics.estimate import mean_of
from pyrovae.errors import ConfigError
from pyrovae.evidence import log_evidence
from pyrovae.training import fit


class Headline(NamedTuple):
    """One number of R fits.

    Attributes:
        values: (R,) float64, in the order of the seeds.
        data_error: root mean square of its standard errors over data; 0 if it has none.
    """

    values: Tensor
    data_error: float

    @property
    def mean(self) -> float:
        """The mean over fits."""
        return self.values.mean().item()

    @property
    def seed_error(self) -> float:
        """s_seed, the standard deviation over fits; NaN for one fit."""
        return self.values.std().item() if len(self.values) > 1 else math.nan

    @property
    def of_one_fit(self) -> Estimate:
        """The mean with the error of a single fit, √(s²_seed + s²_data)."""
        return Estimate(self.mean, math.hypot(self.seed_error, self.data_error))


class SeedSpread(NamedTuple):
    """Headline numbers over fits with other seeds.

    Attributes:
        numbers: name → Headline: by default log_px, elbo, reconstruction and kl, nats per held-out
            datum, and num_active, a count.
        programs: the R fitted programs.
    """

    numbers: dict[str, Headline]
    programs: tuple[nn.Module, ...]

    def __str__(self) -> str:
        lines = [f"{'':16} {'mean':>10} {'over seeds':>11} {'over data':>10}"]
        for name, number in self.numbers.items():
            errors = f"{number.seed_error:11.3f} {number.data_error:10.3f}"
            lines.append(f"{name:16} {number.mean:10.3f} {errors}")
        return "\n".join(lines)


def seed_spread(
    make: Callable[[int], nn.Module],
    x: Any,
    y: Any = None,
    mask: Any = None,
    *,
    held_out: Any = None,
    numbers: Callable[..., Mapping[str, Estimate | float]] | None = None,
    refits: int = 5,
    seed: int = 0,
    **options: Any,
) -> SeedSpread:
    """Fit a model several times, with other seeds, and return the spread of its numbers.

    Args:
        make: seed → a new program, such as `lambda seed: pv.build((8, 8), seed=seed)`.
        x: (N, *event), the training data, in any container that can be read again.
        y: (N, …), covariates.
        mask: of x's shape, true where x is observed.
        held_out: data for the numbers, x, (x, y) or (x, y, mask); the training data if None.
        numbers: (program, x, y, mask of the held-out data) → name → number; a number without an
            error over data may be a float. The headline numbers if None.
        refits: R ≥ 1, fits.
        seed: of the first fit; the others have the next ones.
        **options: further arguments of `fit`: epochs, learning_rate, batch_size, …

    Returns:
        SeedSpread.

    Raises:
        DataError: x does not fit the program.
        ConfigError: a setting is invalid, or make returns the same program twice.

    References:
        Bouthillier et al., 2021, https://arxiv.org/abs/2103.03098

    Example:
        >>> import pyrovae as pv
        >>> x = torch.rand(50, 2).round()
        >>> make = lambda seed: pv.build((2,), latent_dim=1, seed=seed)
        >>> found = seed_spread(make, x, refits=2, epochs=1, progress=False)
        >>> list(found.numbers), found.numbers["elbo"].values.shape
        (['log_px', 'elbo', 'reconstruction', 'kl', 'num_active'], torch.Size([2]))
    """
    refits, seed = whole_number(refits, "refits", 1), seed_number(seed)
    if held_out is None:
        held_out = (x, y, mask)
    held_out = held_out if isinstance(held_out, tuple) else (held_out,)
    x_out, y_out, mask_out = (*held_out, None, None)[:3]
    read, programs, found = numbers or _headlines, [], []
    for each in range(seed, seed + refits):
        program = make(each)
        if any(program is other for other in programs):
            raise ConfigError(
                "make returned the same program twice, but each fit starts from a new one.\n"
                "Write make=lambda seed: pv.build(…, seed=seed)."
            )
        fit(program, x, y, mask, seed=each, **options)
        programs.append(program)
        found.append(read(program, x_out, y_out, mask_out))
    return SeedSpread(
        {name: _joined([f[name] for f in found]) for name in found[0]}, tuple(programs)
    )


def _headlines(program: nn.Module, x: Any, y: Any, mask: Any) -> dict[str, Estimate | float]:
    parts = decompose_elbo(program, x, y, mask)
    return {
        "log_px": mean_of(log_evidence(program, x, y, mask).log_px),
        "elbo": parts.mean_elbo,
        "reconstruction": parts.mean_reconstruction,
        "kl": parts.mean_kl,
        "num_active": float(active_units(program, x, y, mask).num_active),
    }


def _joined(values: list[Estimate | float]) -> Headline:
    pairs = [(v.value, v.std_error) if isinstance(v, Estimate) else (v, 0.0) for v in values]
    value, error = torch.tensor(pairs, dtype=torch.float64).T
    return Headline(value, (error**2).mean().sqrt().item())
