"""Surgery, active units and collapse against quadrature and the linear-Gaussian optimum."""

import math
import warnings

import pyro.distributions as dist
import pytest
import torch
from helpers import unchanged
from oracles import AffineEncoder, ExactEncoder, LinearGaussian, grid
from torch import nn

import pyrovae as pv
from pyrovae import diagnostics, guides, likelihoods, priors
from pyrovae.data import Batch
from pyrovae.diagnostics import Estimate
from pyrovae.diagnostics.by_dimension import split_kl
from pyrovae.errors import ConfigError, DataError
from pyrovae.networks import Given, mlp

pytestmark = pytest.mark.usefixtures("float64")


class Wave(nn.Module):
    """q(z|x) = N(1.2 x, (0.3 + 0.2 x²)²): posteriors of different widths that overlap."""

    def forward(self, x):
        return dist.Normal(1.2 * x, 0.3 + 0.2 * x**2).to_event(1)


class Constant(nn.Module):
    """q(z|x) = N(loc, scale²) for every x."""

    def __init__(self, loc, scale):
        super().__init__()
        self.loc, self.scale = torch.as_tensor(loc), torch.as_tensor(scale)

    def forward(self, x):
        return dist.Normal(self.loc, self.scale).expand([len(x), len(self.loc)]).to_event(1)


def wave():
    truth = LinearGaussian(1, 1)
    x = torch.tensor([-1.5, -0.7, -0.1, 0.2, 0.9, 1.4])[:, None]
    return truth.vae(Wave()), x


def exact_surgery(x):
    """I_q, the version without a datum's own term, KL(q(z)‖p), mean KL: by quadrature, nats."""
    z, log_dv = grid(9.0, 4001, 1)
    log_q = Wave()(x).log_prob(z[:, None])  # (G, N)
    log_p = dist.Normal(0.0, 1.0).log_prob(z[:, 0])[:, None]
    n = len(x)
    log_mean = log_q.logsumexp(1, keepdim=True) - math.log(n)
    others = torch.stack(
        [log_q[:, [j for j in range(n) if j != i]].logsumexp(1) for i in range(n)], 1
    ) - math.log(n - 1)
    weight = (log_q + log_dv).exp() / n
    return [(weight * (log_q - ref)).sum().item() for ref in (log_mean, others)] + [
        (weight * (log_mean - log_p)).sum().item(),
        (weight * (log_q - log_p)).sum().item(),
    ]


class TestSurgery:
    def test_equals_quadrature(self):
        vae, x = wave()
        found = diagnostics.decompose_elbo(vae, x, num_samples=2000, num_aggregate=30_000)
        information, upper, marginal, kl = exact_surgery(x)
        assert information + marginal == pytest.approx(kl, abs=1e-8)  # the identity itself
        pairs = {
            "mutual_information": information,
            "mutual_information_upper": upper,
            "marginal_kl": marginal,
        }
        for name, exact in pairs.items():
            estimate = getattr(found, name)
            assert abs(estimate.value - exact) < 5 * estimate.std_error, name
            # a dropped log N, 1.8 nats, or a swapped term must be visible
            assert 8 * estimate.std_error < abs(information - marginal), name
        # 12 000 draws; sd of log q − log p is below 2 nats here
        assert found.mean_kl.value == pytest.approx(kl, abs=5 * 2 / math.sqrt(12_000))

    def test_negative_control_the_parts_are_not_interchangeable(self):
        information, upper, marginal, _ = exact_surgery(wave()[1])
        assert min(abs(information - marginal), upper - information) > 0.1

    @pytest.mark.parametrize(("num_samples", "num_aggregate"), [(1, 2000), (50, 60), (2, 7)])
    def test_parts_add_up_to_the_rate(self, num_samples, num_aggregate):
        vae, x = wave()
        found = diagnostics.decompose_elbo(
            vae, x, num_samples=num_samples, num_aggregate=num_aggregate
        )
        total = found.mutual_information.value + found.marginal_kl.value
        assert total == pytest.approx(found.mean_kl.value, abs=1e-6)

    def test_errors_of_the_parts_cover_as_stated(self):
        vae, x = wave()
        names = ("mutual_information", "mutual_information_upper", "marginal_kl")
        exact = dict(zip(names, exact_surgery(x)[:3], strict=True))
        num_within = dict.fromkeys(names, 0)
        for seed in range(100):
            found = diagnostics.decompose_elbo(
                vae, x, num_samples=100, num_aggregate=300, seed=seed
            )
            for name in num_within:
                estimate = getattr(found, name)
                num_within[name] += abs(estimate.value - exact[name]) < 2 * estimate.std_error
        # nominal 95 of 100; Binomial(100, 0.954) is above 88 with probability 0.999
        assert min(num_within.values()) > 88, num_within

    def test_does_not_depend_on_the_pieces(self):
        vae, x = wave()
        whole, pieces = (
            diagnostics.surgery._log_sum_of_others(
                vae, Batch(x), torch.tensor([0, 5, 2]), {"z": torch.ones(3, 1)}, budget
            )
            for budget in (None, 1)
        )
        torch.testing.assert_close(whole, pieces, rtol=1e-12, atol=0)

    def test_information_of_a_sample_brackets_that_of_the_population(self):
        truth = LinearGaussian(3, 1, sigma=0.5)
        vae, post = truth.vae(ExactEncoder(truth)), truth.posterior(torch.zeros(1, 3))
        exact = -0.5 * post.covariance_matrix.log().item()  # z ~ N(0, 1), z|x ~ N(m, s²)
        found = [
            diagnostics.decompose_elbo(vae, truth.sample(60, seed), num_samples=2, seed=seed)
            for seed in range(12)
        ]
        lower, upper = (
            torch.tensor([getattr(f, name).value for f in found])
            for name in ("mutual_information", "mutual_information_upper")
        )
        # means over 12 samples; ± 3 standard errors of each mean
        assert lower.mean() - 3 * lower.std() / 12**0.5 < exact
        assert exact < upper.mean() + 3 * upper.std() / 12**0.5
        assert (lower <= math.log(60)).all()
        assert (upper > lower).all()

    def test_equal_data_hold_no_information_and_the_record_says_so(self):
        vae, _ = wave()
        found = diagnostics.decompose_elbo(vae, torch.ones(5, 1))
        assert found.mutual_information.is_below_noise
        assert "below the noise" in str(found.mutual_information)
        assert not found.marginal_kl.is_below_noise  # q(z) is far from the prior: negative control

    def test_a_guide_that_is_the_prior_has_no_marginal_kl(self):
        truth = LinearGaussian(3, 2)
        vae = truth.vae(Constant([0.0, 0.0], [1.0, 1.0]))
        found = diagnostics.decompose_elbo(vae, truth.sample(20))
        assert found.marginal_kl.is_below_noise
        assert found.mean_kl.is_below_noise

    def test_one_datum_and_conditional_priors(self):
        vae, x = wave()
        one = diagnostics.decompose_elbo(vae, x[:1])
        assert one.mutual_information.is_below_noise
        assert math.isnan(one.mutual_information_upper.value)

        class PriorOfY(nn.Module):
            def forward(self, y):
                return dist.Normal(y[:, None], 1.0).to_event(1)

        conditional = pv.VAE(Given(PriorOfY()), vae.encoder, vae.decoder)
        found = diagnostics.decompose_elbo(conditional, x, torch.zeros(6))
        assert math.isnan(found.marginal_kl.value)
        assert found.kl_per_dimension.shape == (6, 1)


class TestDecomposition:
    def test_elbo_equals_the_oracle_and_is_the_sum_of_its_terms(self):
        truth = LinearGaussian()
        x = truth.sample(40)
        v = torch.linalg.solve(truth.m, truth.weight.T)
        d = torch.tensor([0.1, 0.3])
        found = diagnostics.decompose_elbo(
            truth.vae(AffineEncoder(v, truth.mean, d)), x, num_samples=2000
        )
        z = (found.elbo - truth.elbo(x, v, d)) / found.elbo_std_error
        assert z.abs().max() < 5
        assert 0.5 < z.std() < 1.5  # 40 standard scores: sd of their spread 0.11
        torch.testing.assert_close(
            found.elbo, -(found.reconstruction + found.kl), rtol=1e-12, atol=0
        )
        q = AffineEncoder(v, truth.mean, d)(x).base_dist
        kl = 0.5 * (q.scale**2 + q.loc**2 - 1) - q.scale.log()
        torch.testing.assert_close(found.kl_per_dimension, kl, rtol=1e-12, atol=1e-12)
        assert found.mean_elbo.value == pytest.approx(found.elbo.mean().item())
        assert found.mean_elbo.std_error == pytest.approx(found.elbo.std().item() / math.sqrt(40))

    def test_at_the_exact_guide_the_elbo_is_log_p_x_without_error(self):
        truth = LinearGaussian()
        x = truth.sample(7)
        found = diagnostics.decompose_elbo(truth.vae(ExactEncoder(truth)), x, num_samples=3)
        torch.testing.assert_close(found.elbo, truth.log_evidence(x), rtol=1e-10, atol=1e-10)
        assert found.elbo_std_error.max() < 1e-10
        # correlated guide: the marginals' KL, which is not what a diagonal one would pay
        post = truth.posterior(x)
        kl = 0.5 * (post.variance + post.mean**2 - 1 - post.variance.log())
        torch.testing.assert_close(found.kl_per_dimension, kl)

    def test_mixture_prior_has_no_kl_per_dimension(self):
        vae = pv.build((3,), latent_dim=2, prior="GaussianMixture", seed=0).double()
        found = diagnostics.decompose_elbo(vae, torch.ones(4, 3))
        assert found.kl_per_dimension.isnan().all()
        assert not found.kl.isnan().any()

    def test_chunks_do_not_change_shapes_and_agree(self):
        truth = LinearGaussian()
        x, vae = truth.sample(9), truth.vae(ExactEncoder(truth))
        small = diagnostics.decompose_elbo(vae, x, num_samples=5, memory_budget=4000)
        whole = diagnostics.decompose_elbo(vae, x, num_samples=5)
        torch.testing.assert_close(small.elbo, whole.elbo, rtol=1e-10, atol=0)  # no noise here
        assert small.kl_per_dimension.shape == (9, 2)

    def test_leaves_the_process_unchanged_and_repeats(self):
        vae, x = wave()
        vae.train()
        with unchanged(vae):
            first, second = (diagnostics.decompose_elbo(vae, x, seed=3) for _ in range(2))
        assert torch.equal(first.elbo, second.elbo)
        assert vae.training
        other = diagnostics.decompose_elbo(vae, x, seed=4)
        assert not torch.equal(first.elbo, other.elbo)

    def test_other_programs_have_names_for_all_latents(self):
        q, p, c = guides.DiagonalNormal(2), likelihoods.Bernoulli(6), pv.programs.CategoricalHead(3)
        from pyrovae.networks import Concat, OneHot

        program = pv.programs.SemiSupervisedVAE(
            priors.StandardNormal(2),
            Given(Concat(nn.Sequential(mlp(9, q.num_features), q), of_y=OneHot(3))),
            Given(Concat(nn.Sequential(mlp(5, p.num_features), p), of_y=OneHot(3))),
            nn.Sequential(mlp(6, c.num_features), c),
            priors.Fixed(dist.Categorical, probs=torch.full((3,), 1 / 3)),
            alpha=1.0,
        )
        x, y = torch.rand(5, 6).round(), torch.tensor([0, -1, 2, -1, -1])
        found = diagnostics.decompose_elbo(program, x, y, num_aggregate=50)
        assert found.names == ("y", "z[0]", "z[1]")
        assert found.kl_per_dimension.shape == (5, 3)
        assert found.mutual_information.value <= math.log(5)
        assert diagnostics.active_units(program, x, y).variance.shape == (3,)
        assert diagnostics.pareto_k(program, x, y, num_samples=100).pareto_k.shape == (5,)


@pytest.mark.parametrize("bad", [{"num_samples": 0}, {"num_aggregate": 1}, {"seed": -1}])
def test_invalid_numbers_are_refused(bad):
    vae, x = wave()
    with pytest.raises(ConfigError, match=next(iter(bad))):
        diagnostics.decompose_elbo(vae, x, **bad)


def test_split_kl_falls_back_to_draws_where_there_is_no_closed_form():
    q = dist.Normal(torch.zeros(4, 2), 0.5).to_event(1)
    p = dist.StudentT(4.0, torch.zeros(2), torch.ones(2)).to_event(1)
    z = q.sample((20_000,))
    found = split_kl(q, p, z)
    grid_, log_dv = grid(9.0, 2001, 1)
    base = dist.Normal(0.0, 0.5).log_prob(grid_)
    exact = ((base + log_dv).exp() * (base - dist.StudentT(4.0).log_prob(grid_))).sum()
    mean = found.mean((0, 1))
    assert ((mean - exact).abs() < 5 * found.std((0, 1)) / math.sqrt(80_000)).all()


def test_binary_latents_split_too():
    vae = pv.build((4,), latent_dim=3, prior="Bernoulli", guide="Bernoulli", seed=0).double()
    x = torch.rand(6, 4).round()
    found = diagnostics.decompose_elbo(vae, x).kl_per_dimension
    q, p = vae.encode(x).logits.sigmoid(), vae.prior().logits.sigmoid()
    exact = q * (q / p).log() + (1 - q) * ((1 - q) / (1 - p)).log()
    torch.testing.assert_close(found, exact.detach(), rtol=1e-8, atol=1e-10)


# Active units and collapse, against the closed form of probabilistic PCA.

EIGENVALUES = (4.0, 1.5, 0.9, 0.5, 0.3)


def optimum(sigma: float, latent_dim: int = 4) -> tuple[LinearGaussian, torch.Tensor]:
    """The maximum-likelihood PPCA at fixed σ for data with these eigenvalues, and such data."""
    basis = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(3)))[0]
    truth = LinearGaussian(5, latent_dim, sigma)
    strength = (torch.tensor(EIGENVALUES[:latent_dim]) - sigma**2).clamp(min=0.0).sqrt()
    truth.weight = basis[:, :latent_dim] * strength
    truth.mean = torch.zeros(5)
    truth.m = truth.weight.T @ truth.weight + sigma**2 * torch.eye(latent_dim)
    noise = torch.randn(2000, 5, generator=torch.Generator().manual_seed(4))
    return truth, noise * torch.tensor(EIGENVALUES).sqrt() @ basis.T


@pytest.mark.parametrize(
    ("sigma", "collapsed"),
    [(1.0, ("z[2]", "z[3]")), (0.6**0.5, ("z[3]",)), (0.5, ())],
)
def test_a_dimension_collapses_iff_its_eigenvalue_is_at_most_the_noise_variance(sigma, collapsed):
    truth, x = optimum(sigma)
    vae = truth.vae(ExactEncoder(truth))
    found = diagnostics.collapsed_dimensions(vae, x)
    assert found.collapsed == collapsed
    assert all(name in found.message for name in collapsed)
    assert ("No collapse" in found.message) == (not collapsed)
    active = diagnostics.active_units(vae, x)
    # E[z_d|x] has variance 1 − σ²/λ_d there, and 0 where collapsed
    exact = (1 - sigma**2 / torch.tensor(EIGENVALUES[:4])).clamp(min=0.0)
    assert ((active.variance - exact).abs() <= 5 * active.std_error + 1e-12).all()
    assert active.num_active == 4 - len(collapsed)


def test_training_collapses_the_dimensions_below_the_noise_and_no_other():
    """The encoder and decoder find it themselves: probabilistic PCA after `fit`."""
    for sigma, expected in ((1.1, 2), (0.4, 0)):
        torch.manual_seed(0)
        _, x = optimum(sigma)
        q, p = guides.DiagonalNormal(4), likelihoods.Normal(5, scale=sigma)
        encoder = nn.Sequential(mlp(5, q.num_features, hidden=()), q)
        decoder = nn.Sequential(mlp(4, 5, hidden=()), p)
        vae = pv.VAE(priors.StandardNormal(4), encoder, decoder).double()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            history = pv.fit(vae, x[:1000], epochs=60, batch_size=100, learning_rate=0.01)
        found = diagnostics.collapsed_dimensions(vae, x)
        assert len(found.collapsed) == expected, (sigma, found)
        # the alarm at the end of fit names the same dimensions, and is silent without any
        assert history.collapse.collapsed == found.collapsed
        messages = [str(w.message) for w in caught if "collapse" in str(w.message)]
        assert messages == ([history.collapse.message] if expected else [])


def test_a_small_scale_is_not_a_collapse():
    """A_d < 0.01 in its own units, but every code differs: only both signs together count."""
    truth = LinearGaussian(3, 1)
    scaled = pv.VAE(
        priors.Fixed(
            lambda loc, scale: dist.Normal(loc, scale).to_event(1),
            loc=torch.zeros(1),
            scale=torch.tensor([0.01]),
        ),
        nn.Sequential(mlp(3, 1, hidden=()), _Head(0.001)),
        truth.decoder(),
    )
    found = diagnostics.collapsed_dimensions(scaled, truth.sample(50))
    assert not diagnostics.active_units(scaled, truth.sample(50)).is_active.any()
    assert (found.collapsed, found.num_active) == ((), 1)
    assert found.share > 0.9


class _Head(nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.scale = scale

    def forward(self, features):
        return dist.Normal(0.05 * features.tanh(), self.scale).to_event(1)


class NoMean(nn.Module):
    """A guide that hides its mean, as a flow does."""

    def __init__(self, part):
        super().__init__()
        self.part = part

    def forward(self, x):
        normal = self.part(x)
        transform = dist.transforms.AffineTransform(0.0, 1.0)
        return dist.TransformedDistribution(normal.base_dist, [transform]).to_event(1)


def test_without_a_mean_the_noise_of_few_draws_is_taken_off():
    truth = LinearGaussian(3, 2)
    x = truth.sample(400)
    collapsed = NoMean(Constant([0.0, 0.0], [1.0, 1.0]))
    found = diagnostics.active_units(truth.vae(collapsed), x, num_samples=20)
    # uncorrected it would be 1/20; the correction leaves noise of sd √2/(20 √400) ≈ 0.004
    assert found.variance.max() < 0.02
    v = torch.linalg.solve(truth.m, truth.weight.T)
    affine = AffineEncoder(v, truth.mean, torch.tensor([0.1, 0.1]))
    hidden, open_ = (
        diagnostics.active_units(truth.vae(e), x, num_samples=50) for e in (NoMean(affine), affine)
    )
    # draws of variance 0.1/50 around each mean: error of the variance below 0.03
    torch.testing.assert_close(hidden.variance, open_.variance, atol=0.03, rtol=0.05)


def test_a_mixture_prior_falls_back_to_the_share_of_variance():
    torch.manual_seed(0)
    vae = pv.build((3,), latent_dim=2, prior="GaussianMixture", seed=0).double()
    alive = pv.VAE(vae.prior, nn.Sequential(mlp(3, 2, hidden=()), _Head(0.001)), vae.decoder)
    dead = pv.VAE(vae.prior, Constant([0.0, 0.0], [1.0, 1.0]), vae.decoder)
    x = torch.rand(100, 3).round()
    assert diagnostics.collapsed_dimensions(alive, x).collapsed == ()
    assert diagnostics.collapsed_dimensions(dead, x).collapsed == ("z[0]", "z[1]")
    assert diagnostics.collapsed_dimensions(dead, x).mean_kl.isnan().all()


def test_one_datum_cannot_show_what_moves_with_x():
    vae, x = wave()
    with pytest.raises(DataError, match="at least two"):
        diagnostics.active_units(vae, x[:1])


def test_below_noise_is_within_two_standard_errors():
    for value, is_noise in ((-1.0, True), (0.19, True), (0.21, False), (math.nan, True)):
        assert Estimate(value, 0.1, is_non_negative=True).is_below_noise == is_noise
    assert not Estimate(-1.0, 0.1).is_below_noise  # an ELBO may be negative
    assert Estimate(-0.19, 0.1).is_below_noise
    assert str(Estimate(-2.0, 0.1)) == "-2.000 ± 0.100"
    assert str(Estimate(math.nan, math.nan)) == "not defined"
    assert str(Estimate(-2.0, 0.1, True)) == "below the noise (< 0.200)"
