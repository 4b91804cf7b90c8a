"""Likelihoods beyond the contract table: digits in float32, sizes and supports."""

import itertools
import math

import mpmath
import pytest
import torch
from contracts import LIKELIHOODS
from helpers import vae_of
from torch import nn

import pyrovae as pv
from pyrovae import densities, likelihoods
from pyrovae.checks.values import elementwise
from pyrovae.errors import ConfigError, DataError
from pyrovae.networks import Given, mlp

likelihoods_table = pytest.mark.parametrize("part", LIKELIHOODS.values(), ids=LIKELIHOODS)


# ---- log-densities in float32 against mpmath, over extreme parameters


def exact_continuous_bernoulli(x, logit):
    return logit * x - (mpmath.log(mpmath.expm1(logit) / logit) if logit else 0)


def exact_student_t(x, df, loc, scale):
    log_norm = (
        mpmath.loggamma((df + 1) / 2) - mpmath.loggamma(df / 2) - mpmath.log(mpmath.pi * df) / 2
    )
    return log_norm - mpmath.log(scale) - (df + 1) / 2 * mpmath.log1p(((x - loc) / scale) ** 2 / df)


def exact_poisson(x, rate):
    return x * mpmath.log(rate) - rate - mpmath.loggamma(x + 1)


def exact_negative_binomial(x, rate, r):
    choices = mpmath.loggamma(x + r) - mpmath.loggamma(r) - mpmath.loggamma(x + 1)
    return choices + r * mpmath.log(r / (r + rate)) + x * mpmath.log(rate / (r + rate))


def exact_zero_inflated(x, rate, r, gate_logit):
    log_count = exact_negative_binomial(x, rate, r) - mpmath.log1p(mpmath.exp(gate_logit))
    if x > 0:
        return log_count
    return mpmath.log(mpmath.exp(log_count) + 1 / (1 + mpmath.exp(-gate_logit)))


def exact_discretized_logistic(x, loc, scale):
    level = mpmath.nint(x * 255)
    upper = mpmath.inf if level == 255 else ((2 * level + 1) / 510 - loc) / scale
    lower = -mpmath.inf if level == 0 else ((2 * level - 1) / 510 - loc) / scale
    if lower + upper > 0:  # the mirror image: a difference of small numbers, not of ones
        lower, upper = -upper, -lower
    return mpmath.log(1 / (1 + mpmath.exp(-upper)) - 1 / (1 + mpmath.exp(-lower)))


LOGITS = [s * m for s in (-1, 1) for m in (0.0, 1e-6, 1e-3, 0.0999, 0.1001, 1, 15, 20, 30, 89, 1e4)]
UNIT = [0.0, 1e-6, 0.3, 0.5, 0.75, 1.0]
COUNTS = [0, 1, 7, 100, 15_000, 1_000_000]
RATES = [1e-5, 0.3, 10, 14_700, 1e6]
CONCENTRATIONS = [1e-5, 0.5, 3, 15.9, 16.1, 1000, 1e6]
EXTREME = {
    "ContinuousBernoulli": (
        densities.ContinuousBernoulli,
        exact_continuous_bernoulli,
        UNIT,
        LOGITS,
    ),
    "StudentT": (
        densities.StudentT,
        exact_student_t,
        [-1e6, 0.0, 0.3, 2.0, 1e15],
        [1.0001, 4.0, 31.9, 32.1, 1e3, 1e6],
        [0.0],
        [1e-5, 1.0, 1e6],
    ),
    "Poisson": (densities.Poisson, exact_poisson, COUNTS, RATES),
    "NegativeBinomial": (
        densities.NegativeBinomial,
        exact_negative_binomial,
        COUNTS,
        RATES,
        CONCENTRATIONS,
    ),
    "ZeroInflatedNegativeBinomial": (
        densities.ZeroInflatedNegativeBinomial,
        exact_zero_inflated,
        COUNTS,
        RATES,
        CONCENTRATIONS,
        [-100.0, 0.0, 100.0],
    ),
    "DiscretizedLogistic": (
        lambda loc, scale: densities.DiscretizedLogistic(loc, scale, 256),
        exact_discretized_logistic,
        [k / 255 for k in (0, 1, 100, 254, 255)],
        [-1e3, 0.0, 0.4, 1.0, 1e3],
        [1e-3, 0.1, 1e6],
    ),
}


def largest_error(density, exact, *axes, dtype=torch.float32):
    """|error| / max(1, |exact|) of log p over all combinations, and where it is largest."""
    return largest_error_at(
        density, exact, torch.tensor(list(itertools.product(*axes)), dtype=dtype)
    )


def largest_error_at(density, exact, cases):
    """The same at rows of x and parameters."""
    x, *parameters = cases.unbind(-1)
    log_p = density(*parameters).log_prob(x).tolist()
    with mpmath.workdps(60):
        truth = [float(exact(*map(mpmath.mpf, row))) for row in cases.tolist()]
    errors = [abs(a - b) / max(1, abs(b)) for a, b in zip(log_p, truth, strict=True)]
    worst = max(range(len(errors)), key=lambda i: math.inf if math.isnan(errors[i]) else errors[i])
    return errors[worst], (cases[worst].tolist(), log_p[worst], truth[worst])


@pytest.mark.parametrize("case", EXTREME.values(), ids=EXTREME)
def test_float32_log_density_over_extreme_parameters(case):
    worst, where = largest_error(*case)
    assert worst < 1e-4, where


@pytest.mark.parametrize("case", EXTREME.values(), ids=EXTREME)
def test_float64_log_density_over_extreme_parameters(case):
    worst, where = largest_error(*case, dtype=torch.float64)
    # 1e6 counts of relative rounding 1e-16, and the truncated series' 2e-14
    assert worst < 1e-10, where


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-4), (torch.float64, 1e-10)])
def test_derivatives_of_the_negative_binomial_are_those_of_mpmath(dtype, bound):
    rows = list(itertools.product(COUNTS, RATES, CONCENTRATIONS))
    x, mu, r = torch.tensor(rows, dtype=dtype).unbind(-1)
    mu, r = mu.clone().requires_grad_(), r.clone().requires_grad_()
    found = torch.autograd.grad(densities.NegativeBinomial(mu, r).log_prob(x).sum(), (mu, r))
    for at, (by_mu, by_r) in enumerate(zip(*found, strict=True)):
        with mpmath.workdps(60):
            x_, mu_, r_ = (mpmath.mpf(v[at].item()) for v in (x, mu, r))
            exact_mu = x_ / mu_ - (x_ + r_) / (r_ + mu_)
            log_ratio = mpmath.log(r_ / (r_ + mu_)) + (mu_ - x_) / (r_ + mu_)
            exact_r = mpmath.digamma(x_ + r_) - mpmath.digamma(r_) + log_ratio
            # an update moves log μ and log r
            for value, exact, unit in ((by_mu, exact_mu, mu_), (by_r, exact_r, r_)):
                error = abs(mpmath.mpf(value.item()) - exact) * unit
                assert error < bound * max(1, abs(exact) * unit), rows[at]


NUM_RANDOM = 3000


def magnitudes(low, high):
    """10^u with u uniform."""
    return 10 ** (low + (high - low) * torch.rand(NUM_RANDOM))


def signed(values):
    return values * (2 * torch.randint(2, values.shape) - 1)


def levels(most):
    return torch.randint(most + 1, (NUM_RANDOM,))


RANDOM = {
    "ContinuousBernoulli": lambda: (torch.rand(NUM_RANDOM), signed(magnitudes(-6, 4))),
    "StudentT": lambda: (
        signed(magnitudes(-3, 15)),
        1 + magnitudes(-4, 6),
        signed(magnitudes(-3, 6)),
        magnitudes(-5, 6),
    ),
    "Poisson": lambda: (magnitudes(0, 6).floor() - 1, magnitudes(-5, 6)),
    "NegativeBinomial": lambda: (
        magnitudes(0, 6).floor() - 1,
        magnitudes(-5, 6),
        magnitudes(-5, 6),
    ),
    "ZeroInflatedNegativeBinomial": lambda: (
        magnitudes(0, 6).floor() * levels(1),
        magnitudes(-5, 6),
        magnitudes(-5, 6),
        signed(magnitudes(-3, 2)),
    ),
    "DiscretizedLogistic": lambda: (
        levels(255).double() / 255,
        signed(magnitudes(-3, 3)),
        magnitudes(-3, 6),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", EXTREME)
def test_random_parameters_of_every_magnitude(name, dtype):
    """The counts are printed by `pytest -s`."""
    density, exact, *_ = EXTREME[name]
    torch.manual_seed(0)
    cases = torch.stack([column.to(dtype) for column in RANDOM[name]()], -1)
    worst, where = largest_error_at(density, exact, cases)
    print(f"\n{name}, {dtype}: {len(cases):,} log-densities, largest relative error {worst:.1e}")
    assert worst < {torch.float32: 1e-4, torch.float64: 1e-10}[dtype], where


@pytest.mark.parametrize(
    ("case", "torchs_own"),
    [
        ("ContinuousBernoulli", lambda t: torch.distributions.ContinuousBernoulli(logits=t)),
        ("Poisson", torch.distributions.Poisson),
        ("StudentT", torch.distributions.StudentT),
        (
            "NegativeBinomial",
            lambda mu, r: torch.distributions.NegativeBinomial(r, logits=(mu / r).log()),
        ),
    ],
)
def test_torchs_own_log_density_fails_the_same_check(case, torchs_own):
    """Negative control, and the reason why these densities exist."""
    worst, _ = largest_error(torchs_own, *EXTREME[case][1:])
    assert math.isnan(worst) or worst > 1e-2


def test_continuous_bernoulli_mean_in_float32():
    logits = torch.tensor([t for t in LOGITS if t])
    with mpmath.workdps(60):
        exact = [
            float(1 / -mpmath.expm1(-mpmath.mpf(t)) - 1 / mpmath.mpf(t)) for t in logits.tolist()
        ]
    mean = densities.ContinuousBernoulli(logits).mean
    assert mean.tolist() == pytest.approx(exact, rel=1e-4)
    assert densities.ContinuousBernoulli(torch.zeros(1)).mean.item() == 0.5


@pytest.mark.parametrize(
    "logits", [[0.0] * 4, [80.0, 0.0, -3.0, 2.0], [1e6, -1e6, 0.0, 0.0], [0.0, -1e4, 1.0, 2.0]]
)
@pytest.mark.parametrize("x", [[0, 0, 0, 0], [1, 0, 0, 0], [1e6, 0, 3, 2e6], [5, 1, 0, 30]])
def test_multinomial_log_density_in_float32(logits, x):
    with mpmath.workdps(60):
        log_sum = mpmath.log(sum(mpmath.exp(t) for t in logits))
        terms = (c * (t - log_sum) - mpmath.loggamma(c + 1) for c, t in zip(x, logits, strict=True))
        exact = float(mpmath.loggamma(sum(x) + 1) + sum(terms))
    log_p = densities.Multinomial(torch.tensor(logits)).log_prob(torch.tensor(x)).item()
    # the probabilities themselves carry half a unit in the last place: 3e6 counts times 6e-8
    assert log_p == pytest.approx(exact, rel=1e-4, abs=1e-4)


@likelihoods_table
def test_gradient_of_the_log_density_is_the_slope_of_itself(part, float64):
    head = part.make()
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(5, head.num_features, generator=generator).requires_grad_()
    x = head(features).sample()
    assert torch.autograd.gradcheck(lambda f: head(f).log_prob(x), features)


@pytest.mark.parametrize(
    ("density", "x"),
    [
        (densities.ContinuousBernoulli, [0.0, 0.3, 1.0]),
        (lambda t: densities.Poisson(t.exp()), [0.0, 1.0, 9e4]),
        (lambda t: densities.NegativeBinomial(t.exp(), t.exp()), [0.0, 1.0, 9e4]),
        (lambda t: densities.StudentT(t.exp(), t, t.exp()), [0.0, 1.0, 9e4]),
    ],
    ids=["ContinuousBernoulli", "Poisson", "NegativeBinomial", "StudentT"],
)
def test_gradient_holds_on_both_sides_of_every_switch(density, x, float64):
    """At 0, at the joins of Taylor series and asymptotes, and far out."""
    at = torch.tensor([0.0, 0.0999, 0.1001, -0.0999, 2.77, 2.775, 3.46, 9.0, 11.8, -11.0, 30.0])
    at = at.repeat(len(x), 1).requires_grad_()
    values = torch.tensor(x)[:, None]
    assert torch.autograd.gradcheck(lambda t: density(t).log_prob(values), at)


@likelihoods_table
@pytest.mark.parametrize("size", [-1e6, 1e6])
def test_gradients_of_extreme_features_stay_finite_in_float32(part, size):
    head = part.make()
    features = torch.full((2, head.num_features), size, requires_grad=True)
    inside = part.make()(torch.zeros(2, head.num_features)).sample()
    for x in (head(features).sample(), inside):
        head(features).log_prob(x).sum().backward()
    assert all(t.grad.isfinite().all() for t in (features, *head.parameters()))


# ---- moments and draws


@likelihoods_table
def test_mean_is_the_mean_of_draws(part, float64):
    head = part.make()
    generator = torch.Generator().manual_seed(3)
    p_x = head(torch.randn(head.num_features, generator=generator))
    draws = p_x.sample((20_000,)).double()
    assert p_x.mean.shape == head.event_shape
    # 5 standard errors of a mean; the StudentT here has df ≥ 6, so a variance
    standard_error = draws.std(0) / math.sqrt(len(draws))
    # codes of categories without order have no mean
    has_mean = ~torch.as_tensor(getattr(elementwise(p_x), "is_nominal", False))
    assert (((draws.mean(0) - p_x.mean).abs() < 5 * standard_error) | ~has_mean).all()
    assert (8 * standard_error < 0.5 * draws.std(0)).all()


@pytest.mark.parametrize("name", ["NegativeBinomial", "ZeroInflatedNegativeBinomial"])
def test_variance_of_counts_is_that_of_their_probabilities(name, float64):
    p = getattr(densities, name)(
        *torch.tensor([[3.0], [0.7], [0.4]])[: 2 + name.startswith("Zero")]
    )
    x = torch.arange(2000.0)
    weight = p.log_prob(x).exp()
    mean = (weight * x).sum()
    assert mean.item() == pytest.approx(p.mean.item(), rel=1e-10)
    assert (weight * (x - mean) ** 2).sum().item() == pytest.approx(p.variance.item(), rel=1e-10)


def test_expanded_densities_score_and_draw_alike(float64):
    for name, part in LIKELIHOODS.items():
        head = part.make()
        p_x = head(torch.zeros(head.num_features))
        wide = p_x.expand([3, 7])
        x = wide.sample()
        assert x.shape == (3, 7, *head.event_shape), name
        assert torch.equal(wide.log_prob(x), p_x.log_prob(x)), name


# ---- sizes


COUNT_HEADS = ["Poisson", "NegativeBinomial", "ZeroInflatedNegativeBinomial"]


def count_vae(head: nn.Module, num_columns: int = 4) -> pv.VAE:
    q = pv.guides.DiagonalNormal(2)
    decoder = likelihoods.CountDecoder(mlp(2, head.num_features, hidden=(5,)), head)
    encoder = nn.Sequential(mlp(num_columns, q.num_features, hidden=(5,)), q)
    return pv.VAE(pv.priors.StandardNormal(2), encoder, Given(decoder))


@pytest.mark.parametrize("name", COUNT_HEADS)
def test_size_multiplies_the_mean(name, float64):
    vae = count_vae(getattr(likelihoods, name)(4))
    z, size = torch.randn(3, 5, 2), torch.tensor([1, 2, 3, 4, 50])
    plain, sized = vae.decoder(z, None).mean, vae.decoder(z, size).mean
    torch.testing.assert_close(sized, plain * size[:, None], rtol=1e-12, atol=0)
    torch.testing.assert_close(vae.decoder(z, size[:, None]).mean, sized, rtol=0, atol=0)


@pytest.mark.parametrize("event_shape", [(4,), (2, 2)])
def test_size_reaches_every_call_of_a_vae(event_shape):
    head = likelihoods.NegativeBinomial(event_shape)
    q = pv.guides.DiagonalNormal(1)
    vae = pv.VAE(
        pv.priors.StandardNormal(1),
        nn.Sequential(mlp(event_shape, q.num_features, hidden=(5,)), q),
        Given(likelihoods.CountDecoder(mlp(1, head.num_features, hidden=(5,)), head)),
    )
    size = torch.tensor([1.0, 5.0, 2.0, 9.0, 1.0, 3.0])
    x = vae.sample(6, size, seed=0)
    pv.fit(vae, x, size, epochs=1, batch_size=4)
    assert vae.reconstruct(x, size).shape == x.shape
    exact = pv.log_evidence(vae, x, size, method="grid")
    estimate = pv.log_evidence(vae, x, size, num_samples=1000)
    assert ((estimate.log_px - exact.log_px).abs() < 5 * estimate.std_error + 1e-3).all()
    assert (
        exact.log_px - pv.log_evidence(vae, x, size.flip(0), method="grid").log_px
    ).abs().max() > 0.01


def test_size_of_another_shape_is_refused():
    head = likelihoods.Poisson(3)
    with pytest.raises(DataError, match=r"y has shape \(7, 3\).*one size per datum"):
        head(torch.zeros(7, 3), torch.ones(7, 3))


@pytest.mark.parametrize(
    ("head", "size", "message"),
    [
        (likelihoods.Poisson(2), [1.0, 0.0], r"y\[1\] = 0, but the size .* positive.*\n.*exposure"),
        (likelihoods.Poisson(2), [1.0, math.nan], r"y\[1\] = nan.*positive and finite"),
        (
            likelihoods.Multinomial(2),
            [3, 4],
            r"y\[1\] = 4, but row 1 of x sums to 3.*\n.*x.sum\(1\)",
        ),
    ],
)
def test_bad_sizes_are_found_before_training(head, size, message):
    decoder = likelihoods.CountDecoder(nn.Identity(), head)
    with pytest.raises(DataError, match=message):
        decoder.check_data(torch.tensor([[1.0, 2.0], [0.0, 3.0]]), torch.tensor(size))
    decoder.check_data(torch.tensor([[1.0, 2.0], [0.0, 3.0]]), torch.tensor([3, 3]))


# ---- the multinomial's total


def test_totals_come_as_covariates():
    vae = count_vae(likelihoods.Multinomial(4))
    totals = torch.tensor([1, 300, 7])
    x = vae.sample(3, totals, seed=0)
    assert torch.equal(x.sum(1), totals.float())
    torch.testing.assert_close(vae.reconstruct(x, totals).sum(1), totals.float())
    assert torch.equal(
        vae.decode(torch.zeros(3, 2), totals).log_prob(x + 1), torch.full((3,), -math.inf)
    )


def test_without_a_total_it_scores_but_does_not_draw():
    vae = count_vae(likelihoods.Multinomial(4))
    x = torch.tensor([[1.0, 2.0, 0.0, 4.0], [0.0, 9.0, 1.0, 0.0]])
    torch.manual_seed(0)
    with_totals = vae.loss(x, x.sum(1))
    torch.manual_seed(0)
    assert torch.equal(vae.loss(x), with_totals)
    for call in (lambda: vae.sample(2), lambda: vae.reconstruct(x)):
        with pytest.raises(ConfigError, match=r"no total count.*\n.*totals as y.*CountDecoder"):
            call()


def test_draws_beyond_one_chunk_keep_their_total(monkeypatch):
    monkeypatch.setattr("pyrovae.densities.multinomial.DRAWS_AT_A_TIME", 7)
    total = torch.tensor([1.0, 10.0, 101.0])
    x = densities.Multinomial(torch.zeros(3, 2), total).sample()
    assert torch.equal(x.sum(-1), total)


def test_multinomial_refuses_a_mask():
    vae = count_vae(likelihoods.Multinomial(4))
    mask = torch.tensor([[True, False, True, True]])
    with pytest.raises(ConfigError, match=r"factorizes.*Multinomial.*\n.*elementwise"):
        vae.loss(torch.ones(1, 4), mask=mask)


# ---- data outside a support: what the error says


@pytest.mark.parametrize(
    ("head", "value", "message"),
    [
        (
            likelihoods.ContinuousBernoulli(2),
            -0.5,
            r"x\[4, 1\] = -0.5.*ContinuousBernoulli.*\[0, 1\]",
        ),
        (likelihoods.Poisson(2), -1.0, r"x\[4, 1\] = -1.*Poisson.*whole numbers ≥ 0"),
        (likelihoods.NegativeBinomial(2), 2.5, r"x\[4, 1\] = 2.5.*NegativeBinomial.*whole numbers"),
        (likelihoods.ZeroInflatedNegativeBinomial(2), -1.0, "ZeroInflatedNegativeBinomial.*whole"),
        (likelihoods.Multinomial(2), 0.5, r"x\[4, 1\] = 0.5.*Multinomial.*whole numbers ≥ 0"),
        (likelihoods.Categorical(2, 3), 3.0, r"x\[4, 1\] = 3.*Categorical"),
        (likelihoods.Categorical(2, 3), -1.0, r"x\[4, 1\] = -1.*Categorical"),
        (likelihoods.Categorical(2, 3), 0.5, r"x\[4, 1\] = 0.5.*Categorical"),
        (likelihoods.DiscretizedLogistic(2), 0.5, r"x\[4, 1\] = 0.5.*\{0, 1/255, …, 1\}"),
        (likelihoods.DiscretizedLogistic(2), 2.0, r"x\[4, 1\] = 2.*\{0, 1/255, …, 1\}"),
        (likelihoods.StudentT(2), math.inf, r"x\[4, 1\] = inf"),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, nn.Module) else str(v)[:12],
)
def test_values_outside_the_support_are_found(head, value, message):
    x = torch.zeros(5, 2)
    x[4, 1] = value
    with pytest.raises(DataError, match=message):
        vae_of(likelihood=head).loss(x)


def test_eight_bit_values_are_not_accepted_as_gray_levels():
    """2 · 255 wraps around to 254 in uint8."""
    vae = vae_of(likelihood=likelihoods.DiscretizedLogistic(2))
    with pytest.raises(DataError, match="x ranges from 0 to 2"):
        vae.loss(torch.tensor([[0, 2]], dtype=torch.uint8))
    x = (torch.arange(256, dtype=torch.float64) / 255).reshape(-1, 2)
    assert vae.loss(x).isfinite().all()


# ---- settings, and what only training shows


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: likelihoods.StudentT(2, df=1.0), r"df holds 1, .*above 1.*\n.*df=4"),
        (lambda: likelihoods.StudentT(2, df=math.nan), "df holds nan"),
        (lambda: likelihoods.StudentT(2, scale=0.0), r"StudentT: scale holds 0.*\n.*scale=1"),
        (lambda: likelihoods.Normal(2, torch.ones(3)), r"scale has shape \(3,\).*\(2,\)"),
        (lambda: likelihoods.NegativeBinomial(2, -1.0), "NegativeBinomial: concentration holds -1"),
        (lambda: likelihoods.NegativeBinomial(2, torch.ones(3)), r"has shape \(3,\).*\(2,\)"),
        (lambda: likelihoods.Categorical(2, 1), "num_categories = 1"),
        (lambda: likelihoods.DiscretizedLogistic(2, 256.0), r"num_levels = 256\.0"),
        (lambda: likelihoods.Multinomial((2, 3)), r"Multinomial.*vector.*\n.*event_shape=6"),
        (lambda: likelihoods.Multinomial(3, total=0), "total = 0"),
    ],
)
def test_settings_that_cannot_work_are_refused(call, message):
    with pytest.raises(ConfigError, match=message):
        call()


@pytest.mark.parametrize(
    "head",
    [
        likelihoods.Normal(2, learn_scale=True),
        likelihoods.Normal(2, torch.ones(2), learn_scale=True),
        likelihoods.HeteroscedasticNormal(2),
        likelihoods.StudentT(2, learn_df=True),
        likelihoods.DiscretizedLogistic(2),
    ],
    ids=lambda head: type(head).__name__,
)
@pytest.mark.filterwarnings("ignore:x.* is constant")  # said by fit where the scale is learned
@pytest.mark.filterwarnings("ignore:the loss jumped")  # at the floor, on some processors
def test_a_constant_column_stays_finite(head):
    """The maximum of the likelihood is at scale 0, the floor is above it: σ rounds to 0 without."""
    x = torch.cat([torch.ones(64, 1), torch.arange(64.0)[:, None] % 2], dim=1)
    vae = vae_of(likelihood=head)
    history = pv.fit(vae, x, epochs=45, batch_size=16, learning_rate=1.0)
    assert all(math.isfinite(e) for e in history["elbo"])
    assert all(p.isfinite().all() for p in vae.parameters())


def test_learned_concentration_finds_the_overdispersion():
    """Counts with variance μ + μ²/r: the likelihood's maximum is within 20 % of the true r."""
    torch.manual_seed(0)
    x = densities.NegativeBinomial(torch.tensor([20.0]), torch.tensor([2.0])).sample((4000,))
    head = likelihoods.NegativeBinomial(1)
    features = torch.tensor([[20.0]])
    optimizer = torch.optim.Adam(head.parameters(), 0.05)
    for _ in range(300):
        optimizer.zero_grad()
        (-head(features).log_prob(x).mean()).backward()
        optimizer.step()
    # the standard error of r̂ is about r √(2/N) · √(1 + …) < 0.1
    assert head.concentration.item() == pytest.approx(2.0, abs=0.4)


def test_heteroscedastic_scale_differs_between_data():
    p_x = likelihoods.HeteroscedasticNormal(1)(torch.tensor([[0.0, -3.0], [0.0, 3.0]]))
    # log(1 + exp(∓3)) + 1e-5
    assert p_x.base_dist.scale[:, 0].tolist() == pytest.approx([0.048597, 3.048597], rel=1e-4)


# Mixtures of discretized logistics.


def colored(channel_dim=-3, num_levels=17):
    """Two images of 2×3 pixels with strong coupling, 4 components."""
    torch.manual_seed(0)
    shape = (2, 2, 3, 3, 4)
    return densities.logistic_mixture.ColoredLogistics(
        torch.randn(2, 2, 3, 4),
        torch.rand(shape),
        0.05 + 0.1 * torch.rand(shape),
        torch.randn(shape).tanh(),
        num_levels=num_levels,
        channel_dim=channel_dim,
    )


def test_color_is_the_product_of_conditional_channels(float64):
    p = colored()
    x = p.sample()
    found = torch.zeros(2)
    for at in itertools.product(range(2), range(2), range(3)):
        red, green, blue = (x[at[0], c, at[1], at[2]] for c in range(3))
        k01, k02, k12 = p.coupling[at]
        terms = []
        for m in range(4):
            loc = p.loc[at][:, m].clone()
            loc[1] += k01[m] * (red - 0.5)
            loc[2] += k02[m] * (red - 0.5) + k12[m] * (green - 0.5)
            one = densities.DiscretizedLogistic(loc, p.scale[at][:, m], 17)
            log_p = one.log_prob(torch.stack([red, green, blue])).sum()
            terms.append(p.logits[at].log_softmax(-1)[m] + log_p)
        found[at[0]] += torch.stack(terms).logsumexp(0)
    torch.testing.assert_close(p.log_prob(x), found)


def test_colors_last_are_colors_first_transposed(float64):
    first, last = colored(-3), colored(-1)
    x = first.sample((5,))
    assert x.shape == (5, 2, 3, 2, 3)
    torch.testing.assert_close(last.log_prob(x.movedim(-3, -1)), first.log_prob(x))
    torch.testing.assert_close(last.mean, first.mean.movedim(-3, -1))


def test_color_samples_have_the_mean_and_the_coupling_of_the_density(float64):
    p = colored()
    x = p.sample((20_000,))
    error = x.std(0) / 20_000**0.5
    # half a level, 1/32 of the scale, and 5 standard errors
    assert ((x.mean(0) - p.mean).abs() < 0.5 / 16 + 0.15 / 32 + 5 * error).all()
    # by chance of the order: the same numbers without their coupling
    shuffled = torch.stack([x[torch.randperm(20_000), :, c] for c in range(3)], 2)
    gain = p.log_prob(x).mean() - p.log_prob(shuffled).mean()
    assert gain > 1


@pytest.mark.parametrize(
    ("network", "shape"),
    [("conv", (3, 8, 8)), ("conv", (8, 8, 3)), ("conv", (1, 8, 8)), ("mlp", (8, 8, 3)), ("mlp", 6)],
)
def test_a_vae_with_a_mixture_of_logistics_learns_images(network, shape):
    torch.manual_seed(0)
    event = torch.zeros(shape).shape
    x = 0.2 * torch.rand(40, *event) + 0.8 * torch.rand(40, *[1] * len(event))
    x = (255 * x).round() / 255
    likelihood = {"name": "DiscretizedLogisticMixture", "num_components": 3}
    vae = pv.build(event, network=network, hidden=(8, 8), likelihood=likelihood, seed=0)
    history = pv.fit(vae, x, epochs=30, batch_size=20, learning_rate=3e-3, seed=0)
    assert history[-1].elbo > history[0].elbo + 0.05 * x[0].numel()  # nats
    assert vae.sample(3, seed=0).shape == (3, *event)
    assert vae.reconstruct(x).shape == x.shape


def test_cells_of_a_color_image_cannot_be_masked_but_gray_ones_can():
    mask = torch.rand(4, 3, 2, 2) > 0.5
    x = torch.zeros(4, 3, 2, 2)
    color = vae_of(likelihood=likelihoods.DiscretizedLogisticMixture((3, 2, 2)))
    with pytest.raises(ConfigError, match="factorizes over the cells"):
        color.loss(x, mask=mask)
    gray = vae_of(likelihood=likelihoods.DiscretizedLogisticMixture((2, 2)))
    assert gray.loss(x[:, 0], mask=mask[:, 0]).isfinite().all()
