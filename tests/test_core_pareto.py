"""k̂ of importance weights: against ArviZ, exact Pareto draws, and the normal-normal case."""

import math
import warnings

import pytest
import torch

from pyrovae.core.pareto import pareto_k, pareto_k_threshold, tail_size
from pyrovae.errors import ConfigError


def normal_log_weights(s: float, big_s: float, num_samples: int, num_data: int) -> torch.Tensor:
    """log w of p = N(0, S²) at draws of q = N(0, s²): k = 1 − s²/S²."""
    generator = torch.Generator().manual_seed(0)
    z = s * torch.randn(num_samples, num_data, generator=generator, dtype=torch.float64)
    return 0.5 * z**2 * (1 / s**2 - 1 / big_s**2)


@pytest.mark.parametrize("num_samples", [21, 25, 100, 1003, 10_000])
@pytest.mark.parametrize("spread", [0.01, 1.0, 4.0, 40.0])
def test_equals_arviz(num_samples, spread):
    """`psislw` takes log-weights in ArviZ 0.23, their negatives in 1.x."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import arviz
    if int(arviz.__version__.split(".")[0]) >= 1:
        pytest.skip("ArviZ 1.x keeps psislw elsewhere, with another sign")
    generator = torch.Generator().manual_seed(1)
    log_w = spread * torch.randn(num_samples, 6, generator=generator, dtype=torch.float64)
    _, reference = arviz.psislw(log_w.T.numpy().copy())
    # arithmetic in another order; at spread 40 the tail covers 60 orders of magnitude
    torch.testing.assert_close(pareto_k(log_w), torch.from_numpy(reference), rtol=1e-8, atol=1e-8)
    _, flipped = arviz.psislw(-log_w.T.numpy())  # negative control: the other sign
    assert (pareto_k(log_w) - torch.from_numpy(flipped)).abs().max() > 1e-3


@pytest.mark.parametrize("k", [-0.3, 0.2, 0.5, 0.9])
def test_exact_pareto_draws_give_their_shape(k):
    """The tail of a generalized Pareto density is one, of the same k."""
    num_samples, num_data = 10_000, 400
    u = torch.rand(
        num_samples, num_data, generator=torch.Generator().manual_seed(2), dtype=torch.float64
    )
    w = 1 + (u**-k - 1) / k
    found = pareto_k(w.log())
    m = tail_size(num_samples)
    expected = (m * k + 5) / (m + 10)  # the prior's pull
    error = found.std() / math.sqrt(num_data)
    # 5 standard errors, and 0.01 for the bias O(1/M) of the fit, M = 300
    tolerance = 5 * error + 0.01
    assert abs(found.mean() - expected) < tolerance
    assert abs(found.mean() - (expected + 0.1)) > tolerance  # negative control


@pytest.mark.parametrize(("s", "big_s"), [(0.9, 1.0), (0.7, 1.0), (0.5, 1.0)])
def test_normal_weights(s, big_s):
    """k = 1 − s²/S². The tail is Pareto up to 1/√log w, which lowers k̂ by 1/(2 log w) of itself.

    Above the cutoff log w = k u²/2s² with u = 2.6 s for the largest 0.95 %, so 15 % below k is
    the most; the prior adds at most 0.5 · 10/949 = 0.005, five standard errors 0.02.
    """
    k = 1 - (s / big_s) ** 2
    found = pareto_k(normal_log_weights(s, big_s, 100_000, 100)).mean().item()
    assert 0.85 * k - 0.025 < found < k + 0.025
    wrong = 1 - s / big_s  # negative control: standard deviations for variances
    assert not 0.85 * wrong - 0.025 < found < wrong + 0.025


def test_a_constant_factor_does_not_matter():
    log_w = normal_log_weights(0.8, 1.0, 2000, 3)
    torch.testing.assert_close(pareto_k(log_w + 1234.5), pareto_k(log_w), rtol=1e-9, atol=0)


def test_equal_weights_have_no_tail():
    rounding = 1e-14 * torch.randn(1000, 2, dtype=torch.float64)
    assert (pareto_k(torch.zeros(1000, 2)) == -math.inf).all()
    assert (pareto_k(-7.0 + rounding) == -math.inf).all()
    ties = torch.zeros(1000, 1)
    ties[:900] = -3.0  # the largest 100 are equal: an atom, as discrete latents have
    assert (pareto_k(ties) == -math.inf).all()


def test_one_weight_that_outshines_all_is_infinitely_heavy():
    log_w = torch.zeros(1000, 1)
    log_w[3] = 1000.0
    assert (pareto_k(log_w) == math.inf).all()
    assert (pareto_k(torch.full((1000, 1), -math.inf)) == math.inf).all()


def test_few_weights_say_nothing():
    assert pareto_k(torch.randn(20, 2)).isnan().all()
    assert not pareto_k(torch.randn(21, 2)).isnan().any()


def test_columns_do_not_mix():
    log_w = normal_log_weights(0.7, 1.0, 1000, 4)
    log_w[:500, 1] = 0.0  # ties in one column only
    log_w[:, 2] = 0.0
    together = pareto_k(log_w)
    alone = torch.cat([pareto_k(column[:, None]) for column in log_w.T])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=0)


def test_threshold():
    """min(1 − 1/log₁₀ S, 0.7): 0.7 from S = 10^(10/3) = 2154 on."""
    assert pareto_k_threshold(100) == pytest.approx(0.5)
    assert pareto_k_threshold(2000) < 0.7
    assert pareto_k_threshold(2200) == 0.7
    with pytest.raises(ConfigError, match="at least 2"):
        pareto_k_threshold(1)


def test_another_shape_is_refused():
    with pytest.raises(ConfigError, match=r"\(10,\).*\n.*\[:, None\]"):
        pareto_k(torch.zeros(10))
