"""Rubin's rules against worked numbers, and against the sampling distribution of a pooled mean."""

import math

import numpy as np
import pytest
from scipy import stats

import pyrovae as pv
from pyrovae.errors import ConfigError, DataError


def test_a_worked_example():
    """q = 1, 2, 3, 4, 5 with u = 1/2 each: every quantity as a fraction."""
    found = pv.diagnostics.pool([1, 2, 3, 4, 5], [0.5] * 5, complete_df=20)
    total = 0.5 + 6 / 5 * 2.5
    share = 3 / 3.5
    df_imputed, df_observed = 4 / share**2, (1 - share) * 20 * 21 / 23
    df = df_imputed * df_observed / (df_imputed + df_observed)
    numbers = found.estimate, found.within, found.between, found.total, found.missing_share
    assert numbers == pytest.approx((3, 0.5, 2.5, total, share), rel=1e-14)
    assert found.df == pytest.approx(df, rel=1e-14)
    reach = stats.t.ppf(0.975, df) * math.sqrt(total)
    assert (found.lower, found.upper) == pytest.approx((3 - reach, 3 + reach), rel=1e-14)


def test_rubins_degrees_of_freedom_for_large_data():
    found = pv.diagnostics.pool([1, 2, 3, 4, 5], [0.5] * 5)
    ratio = 6 / 5 * 2.5 / 0.5  # of the added variance to W
    assert found.df == pytest.approx(4 * (1 + 1 / ratio) ** 2, rel=1e-14)


def test_without_missing_cells_it_is_the_ordinary_interval():
    found = pv.diagnostics.pool([2.0, 2.0], [0.25, 0.25], complete_df=9, level=0.9)
    assert (found.missing_share, found.total) == (0, 0.25)
    assert found.df == pytest.approx(9 * 10 / 12)  # Barnard & Rubin: 9 only as N grows
    large = pv.diagnostics.pool([2.0, 2.0], [0.25, 0.25])
    assert large.upper == pytest.approx(2 + 0.5 * stats.norm.ppf(0.975))
    assert pv.diagnostics.pool([2.0, 2.0], [0.0, 0.0]).upper == 2


def test_several_estimates_at_once():
    q, u = np.arange(6.0).reshape(3, 2) ** 2, np.ones((3, 2))
    both = pv.diagnostics.pool(q, u, complete_df=5)
    for column in range(2):
        one = pv.diagnostics.pool(q[:, column], u[:, column], complete_df=5)
        assert [float(a[column]) for a in both] == pytest.approx([float(a) for a in one])


def test_intervals_of_a_mean_cover_it():
    """Normal data, 40 % missing, proper imputations in closed form: 95 % within 5 errors."""
    rng, covered, runs, n, m = np.random.default_rng(0), 0, 2000, 20, 5
    for _ in range(runs):
        seen = rng.normal(size=12)
        variance = seen.var(ddof=1) * 11 / rng.chisquare(11, m)
        mean = rng.normal(seen.mean(), np.sqrt(variance / 12))
        hidden = rng.normal(mean[:, None], np.sqrt(variance)[:, None], (m, n - 12))
        whole = np.concatenate([np.broadcast_to(seen, (m, 12)), hidden], 1)
        found = pv.diagnostics.pool(whole.mean(1), whole.var(1, ddof=1) / n, complete_df=n - 1)
        covered += found.lower < 0 < found.upper
    error = math.sqrt(0.95 * 0.05 / runs)
    assert abs(covered / runs - 0.95) < 5 * error
    # powered: intervals from W alone would cover about 10 % less
    assert 5 * error < 0.05


@pytest.mark.parametrize(
    ("estimates", "variances", "options", "error", "message"),
    [
        ([1.0], [1.0], {}, DataError, "m ≥ 2 data sets"),
        ([1.0, 2.0], [1.0], {}, DataError, r"shape \(2,\) and variances \(1,\)"),
        ([1.0, math.nan], [1.0, 1.0], {}, DataError, "not finite"),
        ([1.0, 2.0], [1.0, -1.0], {}, DataError, "squared standard errors"),
        ([1.0, 2.0], [1.0, 1.0], {"level": 95}, ConfigError, "probability"),
        ([1.0, 2.0], [1.0, 1.0], {"complete_df": 0}, ConfigError, "positive"),
    ],
)
def test_it_says_what_it_needs(estimates, variances, options, error, message):
    with pytest.raises(error, match=message):
        pv.diagnostics.pool(estimates, variances, **options)
