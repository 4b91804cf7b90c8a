"""Rubin's rules: one estimate and its error from m completed data sets.

    q̄ = Σ q_i / m         W = Σ u_i / m        B = Σ (q_i − q̄)² / (m − 1)
    T = W + (1 + 1/m) B    λ = (1 + 1/m) B / T

q_i is the estimate from data set i and u_i its variance, as if the data set had been observed.
W is the variance within data sets, B between them, λ the share of the variance that is due to
missing cells. (q̄ − q) / √T follows Student's t with ν degrees of freedom,

    ν = 1 / (1/ν_m + 1/ν_obs),    ν_m = (m − 1) / λ²,
    ν_obs = (1 − λ) ν_c (ν_c + 1) / (ν_c + 3)

where ν_c are the degrees of freedom of the complete data; ν = ν_m if these are infinite.
"""

from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from pyrovae.checks import real_number
from pyrovae.errors import ConfigError, DataError


class Pooled(NamedTuple):
    """A pooled estimate; numbers, or arrays of the shape of one estimate.

    Attributes:
        estimate: q̄.
        within: W, the mean variance within data sets.
        between: B, the variance between data sets.
        total: T, the variance of q̄.
        df: ν, degrees of freedom; infinite if all q_i are equal and ν_c is infinite.
        missing_share: λ, the share of T that is due to missing cells, in [0, 1].
        lower, upper: the interval q̄ ± t_ν √T.
    """

    estimate: np.ndarray
    within: np.ndarray
    between: np.ndarray
    total: np.ndarray
    df: np.ndarray
    missing_share: np.ndarray
    lower: np.ndarray
    upper: np.ndarray


def pool(
    estimates: Any, variances: Any, *, complete_df: float = float("inf"), level: float = 0.95
) -> Pooled:
    """Pool the estimates from m completed data sets by Rubin's rules.

    Args:
        estimates: (m, *K), q_i: a statistic of each data set, or several.
        variances: (m, *K), u_i: its squared standard error.
        complete_df: ν_c > 0, the degrees of freedom of the statistic without missing cells, such
            as N − 1 for a mean and N − p for p regression coefficients.
        level: of the interval, in (0, 1).

    Returns:
        Pooled, float64.

    Raises:
        DataError: there are fewer than two data sets, the shapes differ, a number is not finite, or
            a variance is negative.
        ConfigError: complete_df or level is out of range.

    References:
        Multiple Imputation for Nonresponse in Surveys, Rubin, 1987.
        Small-sample degrees of freedom with multiple imputation, Barnard & Rubin, 1999,
        https://doi.org/10.1093/biomet/86.4.948

    Example:
        The mean of column "b" from five completed frames of `impute`:

        >>> import pandas as pd, pyrovae as pv
        >>> x = pd.DataFrame({"a": [1.0, 0.0, 1.0, 0.0], "b": [None, 1.0, 1.0, 0.0]})
        >>> found = pv.impute(pv.build(2, latent_dim=1, seed=0), x, mask=x.notna())
        >>> frames = found.frames(5)
        >>> means = [frame["b"].mean() for frame in frames]
        >>> pooled = pool(means, [frame["b"].var() / len(x) for frame in frames], complete_df=3)
        >>> bool(pooled.lower < pooled.estimate < pooled.upper)
        True
    """
    if not 0 < real_number(level, "level") < 1:
        raise ConfigError(f"level = {level}, but an interval has a probability in (0, 1).")
    if not complete_df > 0:
        raise ConfigError(f"complete_df = {complete_df}, but degrees of freedom are positive.")
    q, u = _checked(estimates, variances)
    m = len(q)
    estimate, within, between = q.mean(0), u.mean(0), q.var(0, ddof=1)
    extra = (1 + 1 / m) * between
    total = within + extra
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(total > 0, extra / total, 0.0)
        df_imputed = (m - 1) / share**2
        df_observed = np.inf
        if np.isfinite(complete_df):
            df_observed = (1 - share) * complete_df * (complete_df + 1) / (complete_df + 3)
        df = 1 / (1 / df_imputed + 1 / df_observed)
    reach = stats.t.ppf((1 + level) / 2, df) * np.sqrt(total)
    arrays = estimate, within, between, total, df, share, estimate - reach, estimate + reach
    return Pooled(*map(np.asarray, arrays))


def _checked(estimates: Any, variances: Any) -> tuple[np.ndarray, np.ndarray]:
    q, u = (np.asarray(values, dtype="float64") for values in (estimates, variances))
    if q.shape != u.shape or q.ndim == 0 or len(q) < 2:
        raise DataError(
            f"estimates have shape {q.shape} and variances {u.shape}, but both hold one row for "
            "each of m ≥ 2 data sets: between fewer there is no variance.\n"
            "Pass pool([q(frame) for frame in frames], [u(frame) for frame in frames])."
        )
    if not (np.isfinite(q).all() and np.isfinite(u).all() and (u >= 0).all()):
        raise DataError(
            "an estimate is not finite, or a variance is negative or not finite: the pooled error "
            "would be undefined.\nvariances are squared standard errors."
        )
    return q, u
