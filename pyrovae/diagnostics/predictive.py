"""Prior and posterior predictive checks with a custom statistic.

    T(x) against T(x^rep),   x^rep ~ p(x|z) with z ~ p(z)      (prior check, Box 1980)
                             x^rep ~ p(x|z) with z ~ q(z|x)    (posterior check, Gelman et al. 1996)

x^rep is a replicate of the whole data set, so T may be any statistic of one: a mean per pixel, a
share of zeros, a maximum. The p-value is the probability that a replicate reaches T(x). Before
training, a prior p-value near 0 or 1 means that the prior generates different data; a posterior
p-value near 0 or 1 means that the fitted model does not reproduce the data. A posterior p-value
near ½ is weak evidence: x is used twice, so under the model it is not uniform but concentrates
around ½ (Meng 1994).

References:
    Sampling and Bayes' Inference in Scientific Modelling and Robustness, Box, 1980,
    https://doi.org/10.2307/2982063
    Posterior Predictive Assessment of Model Fitness via Realized Discrepancies, Gelman, Meng &
    Stern, 1996, https://www3.stat.sinica.edu.tw/statistica/j6n4/j6n41/j6n41.htm
    Posterior predictive p-values, Meng, 1994, https://doi.org/10.1214/aos/1176325622
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pyrovae.checks import whole_number
from pyrovae.contract import validated
from pyrovae.core.draws import Arrays, diagnosing
from pyrovae.core.replicates import replicated
from pyrovae.data import Batch
from pyrovae.data.batch import is_by_site
from pyrovae.errors import ConfigError
from pyrovae.runtime.ambient import exclusive

Statistic = Callable[[Tensor], Any]


class PredictiveCheck(NamedTuple):
    """A statistic of the data, and of replicated data.

    Attributes:
        observed: (K,) float64, T(x), in the units of the statistic.
        replicated: (S, K) float64, T of each replicate.
        p_value: (K,), P(T(x^rep) ≥ T(x)), ties counted half; near 0 or 1 indicates misfit.
    """

    observed: Tensor
    replicated: Tensor
    p_value: Tensor

    @property
    def z_score(self) -> Tensor:
        """(K,), (T(x) − mean) / standard deviation of the replicates; 0 if they agree."""
        off = self.observed - self.replicated.mean(0)
        return torch.where(off == 0, 0.0, off / self.replicated.std(0))


@exclusive
def prior_check(
    program: nn.Module,
    x: Any,
    y: Any = None,
    mask: Any = None,
    *,
    statistic: Statistic,
    num_samples: int = 200,
    seed: int | None = 0,
    memory_budget: int | None = None,
) -> PredictiveCheck:
    """Compare T(x) with T of data sets from the prior predictive, z ~ p(z), x^rep ~ p(x|z).

    Args:
        program: any program.
        x: (N, *event).
        y: (N, …), covariates, also used for the replicates.
        mask: of x's shape, true where x is observed; the statistic sees the other cells of x and
            of all replicates as NaN.
        statistic: T, a function from a tensor (N, *event) to a number or (K,).
        num_samples: S, replicated data sets.
        seed: random seed; None uses a fresh one.
        memory_budget: bytes per chunk, as in `log_evidence`; at least one replicate is
            drawn at a time.

    Returns:
        PredictiveCheck.

    Raises:
        DataError: x does not fit the program.
        ConfigError: the statistic is not finite, or its length varies.

    References:
        Box, 1980, https://doi.org/10.2307/2982063

    Example:
        >>> import pyrovae as pv
        >>> vae = pv.build((2,), latent_dim=1, seed=0)
        >>> found = prior_check(vae, torch.ones(30, 2), statistic=torch.mean)
        >>> bool(found.p_value < 0.05)  # the untrained model does not generate only ones
        True
    """
    return _check(program, (x, y, mask), statistic, True, num_samples, seed, memory_budget)


@exclusive
def posterior_check(
    program: nn.Module,
    x: Any,
    y: Any = None,
    mask: Any = None,
    *,
    statistic: Statistic,
    num_samples: int = 200,
    seed: int | None = 0,
    memory_budget: int | None = None,
) -> PredictiveCheck:
    """Compare T(x) with T of data sets replicated from the codes, z ~ q(z|x), x^rep ~ p(x|z).

    Args and errors as in `prior_check`; q replaces the posterior, so check `pareto_k` first.

    Returns:
        PredictiveCheck.

    References:
        Gelman, Meng & Stern, 1996, https://www3.stat.sinica.edu.tw/statistica/j6n4/j6n41/j6n41.htm

    Example:
        >>> import pyrovae as pv
        >>> vae = pv.build((2,), latent_dim=1, seed=0)
        >>> found = posterior_check(vae, torch.ones(30, 2), statistic=lambda x: x.mean(0))
        >>> found.replicated.shape, found.p_value.shape
        (torch.Size([200, 2]), torch.Size([2]))
    """
    return _check(program, (x, y, mask), statistic, False, num_samples, seed, memory_budget)


def _check(program, data, statistic, from_prior, num_samples, seed, memory_budget):
    num_samples = whole_number(num_samples, "num_samples", 2)
    batch = validated(program, *data).whole()
    observed = _value(statistic, _seen(batch))
    options = {"num_samples": num_samples, "memory_budget": memory_budget}
    guide_for = None if from_prior else lambda _: program.guide
    with diagnosing(program, seed):
        values = [
            _value(statistic, _seen(replicate), observed.shape)
            for chunk in replicated(program, batch, guide_for, **options)
            for replicate in _replicates(chunk, batch)
        ]
    found = torch.stack(values)
    above, ties = (found > observed).sum(0), (found == observed).sum(0)
    p_value = (above + 0.5 * ties + 0.5) / (num_samples + 1)
    return PredictiveCheck(observed, found, p_value.double())


def _replicates(chunk: Arrays, batch: Batch) -> Iterator[Batch]:
    """Yield the batch with the x of each replicate."""
    for draw in range(len(chunk[next(iter(batch.sites))])):
        x = {name: chunk[name][draw] for name in batch.sites}
        yield replace(batch, x=x if is_by_site(batch.x) else x["x"])


def _seen(batch: Batch) -> Any:
    """Return x, or the dict of its sites, with NaN where masked."""
    found = {
        name: x if mask is None else torch.where(mask, x, torch.nan)
        for name, (x, _, mask) in batch.sites.items()
    }
    return found if is_by_site(batch.x) else found["x"]


def _value(statistic: Statistic, x: Tensor, shape: torch.Size | None = None) -> Tensor:
    """Return T(x) as (K,) float64, checked."""
    value = torch.as_tensor(statistic(x))
    value = value.detach().cpu().double().reshape(-1) if value.dim() <= 1 else value
    if value.dim() > 1 or not torch.isfinite(value).all() or value.shape != (shape or value.shape):
        raise ConfigError(
            f"the statistic returned shape {tuple(value.shape)} with "
            f"{int((~torch.isfinite(value)).sum())} numbers that are not finite, but it must map a "
            "data set (N, *event) to a finite number or to (K,), with the same K each time.\n"
            "With mask=, unobserved cells are NaN: use torch.nanmean, for example."
        )
    return value
