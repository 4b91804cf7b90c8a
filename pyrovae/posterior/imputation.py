"""Imputation of missing values: draws of the missing cells given the observed ones.

    x_missing ~ p(x_missing | x_observed) = ∫ p(x_missing|z) p(z|x_observed) dz

z is drawn by sampling-importance-resampling (`posterior.sir`). The guide at x_observed is only
the proposal, so a poor guide shows in the effective sample size, not silently in the draws.
With global latents w, an equal share of the draws is given each w ~ q(w), the same for all data.

A completed data set is one draw of all missing cells. A statistic of each of m of them, pooled by
Rubin's rules (`diagnostics.pool`), has an error that includes what is not known of these cells.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae.checks import seed_number, whole_number
from pyrovae.checks.values import elementwise
from pyrovae.contract import validated
from pyrovae.contract.covariates import read_by_schema
from pyrovae.core.conditional import given_globals
from pyrovae.core.draws import concat, diagnosing
from pyrovae.core.joint import by_site, joint_of
from pyrovae.core.replay import Arrays, guide_at, sites_of
from pyrovae.core.replicates import replicated, value_of
from pyrovae.data import Batch
from pyrovae.data.batch import arrays_of, is_by_site
from pyrovae.data.frames import beside, with_cells
from pyrovae.errors import ConfigError
from pyrovae.handlers import evaluation
from pyrovae.posterior.record import Posterior, joined, shares_of
from pyrovae.posterior.resampling import sir
from pyrovae.runtime.ambient import exclusive
from pyrovae.runtime.random_stream import RandomStream
from pyrovae.vae import is_plain_vae


class Imputation(NamedTuple):
    """Draws of complete data, in the units of x; with a dict x, dicts by observed site.

    Attributes:
        draws: (S, N, *event); observed cells hold x itself, missing ones a draw of p(x_m|x_o).
        mean: (N, *event), E[x | x_observed] by the same draws of z, without the noise of p(x|z); in
            a categorical column of `Columns` the most frequent category of the draws.
        ess: (N,), effective sample size of the importance weights of the draws of z.
        pareto_k: (N,), the tail shape of these weights; unreliable above `pareto_k_threshold`.
        mask: of x's shape, true where x is observed; with a dict x, of all its sites.
        data: x as it was passed, whose names of rows and columns `frame` and `frames` give back.

    The draws condition on the fitted weights: they vary as p(x_m|x_o) of this model does, not as
    models that fit the data equally well do. So intervals from m data sets are somewhat narrow
    ("not fully proper" multiple imputation). The rest of the variation comes from weights with a
    posterior (`programs.BayesianVAE`), or from pooling the data sets of fits with several seeds,
    each on rows drawn with replacement.

    References:
        Multiple Imputation for Nonresponse in Surveys, Rubin, 1987.

    Example:
        >>> import pandas as pd, pyrovae as pv
        >>> x = pd.DataFrame({"a": [1.0, 0.0], "b": [None, 1.0]}, index=["r", "s"])
        >>> vae = pv.build(2, latent_dim=1, seed=0)
        >>> found = pv.impute(vae, x, mask=x.notna(), num_samples=50)
        >>> found.frame().round(1)
             a    b
        r  1.0  0.6
        s  0.0  1.0
        >>> [int(frame.isna().sum().sum()) for frame in found.frames(3)]
        [0, 0, 0]
        >>> list(found.reliability().index)
        ['r', 's']
    """

    draws: Tensor
    mean: Tensor
    ess: Tensor
    pareto_k: Tensor
    mask: Tensor
    data: Any

    def frame(self) -> Any:
        """Return the data frame that was passed, its missing cells filled with E[x_m|x_o].

        Observed cells are those of the frame, to the bit, as are index, columns and their order.

        Raises:
            ConfigError: x was not a data frame of one number per column.
        """
        return self._with_cells(self.mean)

    def frames(self, m: int) -> list[Any]:
        """Return m completed data frames, each with one draw of all missing cells.

        Raises:
            ConfigError: x was not a data frame, or m is not a whole number from 1 to S.
        """
        num_samples = len(next(iter(arrays_of(self.draws))))
        if whole_number(m, "m", 1) > num_samples:
            raise ConfigError(
                f"m = {m} data sets, but there are {num_samples} draws: some would be equal.\n"
                f"Write impute(…, num_samples={m})."
            )
        # far apart: neighbors may share global latents
        chosen = (torch.arange(m) * num_samples) // m
        if is_by_site(self.draws):
            each = ({n: draws[i] for n, draws in self.draws.items()} for i in chosen)
            return [self._with_cells(values) for values in each]
        return [self._with_cells(self.draws[i]) for i in chosen]

    def reliability(self) -> Any:
        """Return a data frame of "ess" and "pareto_k", with the rows of the one that was passed.

        Raises:
            ConfigError: x was not a data frame.
        """
        return beside(
            next(iter(arrays_of(self.data))),
            {"ess": self.ess.numpy(force=True), "pareto_k": self.pareto_k.numpy(force=True)},
        )

    def _with_cells(self, values: Any) -> Any:
        if is_by_site(self.data):
            sites = self.data.items()
            return {n: _completed(x, self.mask[n], values[n]) for n, x in sites}
        return _completed(self.data, self.mask, values)


def _completed(x: Any, mask: Tensor, values: Tensor) -> Any:
    return with_cells(x, mask.numpy(force=True), values.numpy(force=True))


@exclusive
def impute(
    program: nn.Module,
    x: Any,
    y: Any = None,
    mask: Any = None,
    *,
    num_samples: int = 100,
    num_proposals: int = 10_000,
    num_globals: int = 10,
    seed: int | None = 0,
) -> Imputation:
    """Draw x_missing from p(x_missing | x_observed), by SIR from the guide.

    Args:
        program: any program that uses the mask.
        x: (N, *event); the values of missing cells do not matter, and may be missing from a data
            frame.
        y: (N, …), covariates.
        mask: of x's shape, true where x is observed; with a dict x, a dict of masks.
        num_samples: S, draws per datum.
        num_proposals: K, draws of the guide to resample from; take K ≥ 10 S.
        num_globals: draws of global latents w ~ q(w), at most S.
        seed: random seed; None uses a fresh one.

    Returns:
        Imputation, with the effective sample size of each datum.

    Raises:
        DataError: x or mask does not fit the program.
        ConfigError: mask is None, the likelihood does not factorize or has no mean, or a setting
            is invalid.

    References:
        MIWAE, Mattei & Frellsen, 2019, https://arxiv.org/abs/1812.02633

    Example:
        >>> import pyrovae as pv
        >>> vae = pv.build((3,), latent_dim=1, seed=0)
        >>> x, mask = torch.ones(2, 3), torch.tensor([[True, True, False]] * 2)
        >>> found = impute(vae, x, mask=mask, num_samples=5)
        >>> found.draws.shape, bool((found.draws[..., :2] == 1).all())
        (torch.Size([5, 2, 3]), True)
    """
    seed = seed_number(seed)
    settings = {"num_samples": num_samples, "num_proposals": num_proposals}
    num_samples, num_proposals = (whole_number(v, k, 1) for k, v in settings.items())
    num_globals = min(num_samples, whole_number(num_globals, "num_globals", 1))
    x, y, mask = read_by_schema(program, x, y, mask)
    batch = validated(program, x, y, mask).whole()
    if batch.mask is None:
        raise ConfigError(
            "mask = None, but impute needs to know which cells of x are missing.\n"
            "Pass mask=, true where x is observed: mask=~torch.isnan(x), or mask=x.notna() of a "
            "data frame."
        )
    with diagnosing(program, seed):
        programs = given_globals(program, batch, num_globals)
    shares = (shares_of(total, len(programs)) for total in (num_samples, num_proposals))
    counts = enumerate(zip(programs, *shares, strict=True))
    parts = [_decoded(one, batch, s, k, seed ^ i) for i, (one, s, k) in counts]
    posteriors, *decoded = zip(*parts, strict=True)
    replicates, means = (concat(list(arrays), 0) for arrays in decoded)
    posterior = joined(list(posteriors))
    draws, mean, masks = {}, {}, {}
    for name, (values, _, seen) in batch.sites.items():
        masks[name] = observed = torch.ones_like(values).bool() if seen is None else seen
        draws[name] = torch.where(observed, values, replicates[name])
        mean[name] = torch.where(observed, values, _summary(means[name], replicates[name]))
    if not is_by_site(batch.x):
        draws, mean, masks = draws["x"], mean["x"], masks["x"]
    return Imputation(draws, mean, posterior.ess, posterior.pareto_k, masks, x)


def _decoded(
    program: nn.Module, batch: Batch, num_samples: int, num_proposals: int, seed: int
) -> tuple[Posterior, Arrays, Arrays]:
    """Return draws of z, and by observed site draws of x and E[x|z] at them, (S, N, *event)."""
    how = {"num_samples": num_samples, "num_proposals": num_proposals, "seed": seed}
    posterior = sir(program, *batch, **how)
    decoded = _by_decoder if is_plain_vae(program) else _by_replicates
    return posterior, *decoded(program, batch, posterior.draws[0], seed)


def _by_decoder(vae: nn.Module, batch: Batch, draws: Tensor, seed: int) -> tuple[Arrays, Arrays]:
    """Return draws of x and E[x|z], (S, N, *event), at draws of z (S, N, D)."""
    with RandomStream(seed), evaluation(vae):
        p_x = vae.decode(draws.to(batch.x), batch.y)
        return {"x": p_x.sample()}, {"x": _mean_of(p_x)}


def _mean_of(p_x: dist.Distribution) -> Tensor:
    """Return E[x|z], NaN for categories, whose codes have no mean."""
    cells = elementwise(p_x)
    if not hasattr(cells, "is_nominal"):
        return p_x.mean
    return torch.where(cells.is_nominal, torch.nan, p_x.mean)


def _summary(means: Tensor, draws: Tensor) -> Tensor:
    """Return the average of means over draws of z; where NaN, the most frequent draw of x."""
    mean = means.mean(0)
    return torch.where(mean.isnan(), draws.mode(0).values, mean) if mean.isnan().any() else mean


def _by_replicates(
    program: nn.Module, batch: Batch, draws: Tensor, seed: int
) -> tuple[Arrays, Arrays]:
    """Return the same by observed site, at draws of all local latents, concatenated."""
    with diagnosing(program, seed):
        sites = sites_of(program, batch)
        z = by_site(draws, joint_of(program, batch).draw_prior(1))

    def guide_for(part: slice) -> Any:
        return guide_at({name: value[part] for name, value in z.items()}, sites.layouts)

    def read(of: Callable[[dict], Tensor]) -> Arrays:
        with diagnosing(program, seed):  # the same draws each time
            how = {"num_samples": len(draws), "memory_budget": None, "of": of}
            return concat(list(replicated(program, batch, guide_for, **how)), 0)

    return read(value_of), read(lambda site: _mean_of(site["fn"]))
