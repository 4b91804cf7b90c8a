"""Programs of the shelf against closed forms that the table of all programs does not cover."""

import itertools
import math

import pyro.distributions as dist
import pytest
import torch
from programs import FLOW, NOISE, PROGRAMS, Affine, markov, multimodal, numbers
from torch import nn

import pyrovae as pv
from pyrovae import guides, priors, programs
from pyrovae.errors import ConfigError, DataError


def normal_evidence(x, covariance):
    return dist.MultivariateNormal(torch.zeros(len(covariance)), covariance).log_prob(x)


class Narrow(programs.ProductOfExperts):
    """A guide of four fifths the width of the product."""

    def forward(self, *args):
        q = super().forward(*args).base_dist
        return dist.Normal(q.loc, 0.8 * q.scale).to_event(1)


class TestMultimodal:
    def exact(self, experts=None):
        """Two views of z, x_m = z + noise, whose encoders are the likelihoods: q = p(z|x)."""
        parts = {name: Affine(torch.eye(2)) for name in ("a", "b")}
        return programs.MultimodalVAE(priors.StandardNormal(2), parts, parts, experts)

    def test_the_product_of_experts_is_the_posterior_for_every_subset(self, float64):
        """All weights are p(x_observed) then, without noise."""
        x = {"a": numbers(4)[:, :2], "b": numbers(4)[:, 1:]}
        seen = torch.tensor([[True, True], [True, False], [False, True], [False, False]])
        mask = {"a": seen[:, 0] | ~seen[:, 1], "b": seen[:, 1]}
        mask["a"][3] = False
        log_weights = pv.elbo_terms(self.exact(), x, mask=mask, num_samples=5).log_weights
        for row, (has_a, has_b) in enumerate(seen.tolist()):
            parts = [x[n][row] for n, has in (("a", has_a), ("b", has_b)) if has]
            size = len(parts)
            covariance = torch.ones(size, size) + NOISE**2 * torch.eye(size)
            exact = sum(
                normal_evidence(torch.stack([part[d] for part in parts]), covariance)
                for d in range(2)
                if parts
            )
            assert torch.allclose(log_weights[:, row], torch.ones(5) * exact, atol=1e-10)

    def test_the_mixture_of_experts_estimates_the_same_evidence(self, float64):
        program = multimodal(programs.MixtureOfExperts())
        x = PROGRAMS["MultimodalVAE"].as_data(numbers(5))
        found = pv.log_evidence(program, x, num_samples=4000)
        exact = PROGRAMS["MultimodalVAE"].log_density(numbers(5))
        assert ((found.log_px - exact).abs() < 5 * found.std_error + 1e-3).all()
        assert found.std_error.max() < 0.2

    def test_calibration_tells_the_posterior_from_a_guide_of_four_fifths_its_width(self):
        x = {"a": torch.zeros(1, 2), "b": torch.zeros(1, 2)}
        right = pv.diagnostics.calibration(self.exact(), 2000, like=x)
        assert right.ranks.shape == (2000, 2)
        assert right.is_calibrated.all()
        assert right.p_value.min() > 1e-3
        narrow = pv.diagnostics.calibration(self.exact(Narrow()), 2000, like=x)
        assert not narrow.is_calibrated.any()
        assert (narrow.expected_coverage < narrow.coverage_levels).all()

    def test_simulated_data_bound_the_evidence_from_both_sides(self, float64):
        """The bounds enclose the closed form of log p of the simulated data."""
        like = PROGRAMS["MultimodalVAE"].as_data(numbers(2))
        found = pv.evidence.bdmc(multimodal(), 30, like=like, num_temperatures=60)
        x = torch.cat([found.x["a"], found.x["b"]], -1)
        exact = PROGRAMS["MultimodalVAE"].log_density(x)
        for side in (exact - found.lower, found.upper - exact):
            assert side.mean() > -3 * side.std() / math.sqrt(30)
        assert -3 * found.gap_std_error < found.gap < 0.5

    def test_simulation_needs_the_shape_of_the_data(self):
        with pytest.raises(ConfigError, match="like=x"):
            pv.diagnostics.calibration(self.exact(), 10)

    def test_encoders_and_decoders_must_have_the_same_names(self):
        part = Affine(torch.eye(2))
        with pytest.raises(ConfigError, match="encoders are of a, but the decoders of b"):
            programs.MultimodalVAE(priors.StandardNormal(2), {"a": part}, {"b": part})

    def test_an_expert_must_be_normal(self):
        q = guides.StudentT(2)
        encoder = nn.Sequential(nn.Linear(2, q.num_features), q)
        program = programs.MultimodalVAE(
            priors.StandardNormal(2), {"a": encoder}, {"a": Affine(torch.eye(2))}
        )
        with pytest.raises(ConfigError, match="an expert is a StudentT"):
            pv.elbo_terms(program, {"a": torch.zeros(3, 2)})


class TestDeepMarkovModel:
    """Against the Kalman filter: in the joint Gaussian of all observed times."""

    def covariance(self, times):
        """Cov(x_t, x_u) of the chain z_t = FLOW z_{t−1} + N(0, 1)."""
        variance = [sum(FLOW ** (2 * k) for k in range(t + 1)) for t in range(times)]
        rows = [
            [FLOW ** abs(t - u) * variance[min(t, u)] for u in range(times)] for t in range(times)
        ]
        return torch.tensor(rows) + NOISE**2 * torch.eye(times)

    def test_sequences_of_unequal_length_and_with_gaps(self, float64):
        """log p of the observed times only; hidden ones add no variance."""
        x = torch.randn(4, 5, 1)
        seen = torch.ones(4, 5, dtype=torch.bool)
        seen[0, 2:], seen[1, 4:], seen[2, 1] = False, False, False
        found = pv.log_evidence(
            markov(), x.where(seen[..., None], torch.nan), mask=seen[..., None], num_samples=4000
        )
        covariance = self.covariance(5)
        for row, there in enumerate(seen):
            exact = normal_evidence(x[row, there, 0], covariance[there][:, there])
            error = float(found.std_error[row])
            assert float(found.log_px[row]) == pytest.approx(float(exact), abs=5 * error + 1e-3)
            assert error < 0.1

    def test_states_are_smoothed(self, float64):
        """E[z_t|x_0 … x_{T−1}] from the whole sequence, within six standard errors."""
        x = torch.randn(3, 4, 1)
        draws = pv.posterior.sir(markov(), x, num_samples=400, num_proposals=40_000).draws[0]
        covariance = self.covariance(4)
        signal = covariance - NOISE**2 * torch.eye(4)
        mean = x[..., 0] @ torch.linalg.solve(covariance, signal)
        assert ((draws.mean(0) - mean).abs() < 6 * draws.std(0) / math.sqrt(400)).all()

    def test_a_forecast_adds_the_noise_of_each_step(self, float64):
        """Var(x_{T+h}) = FLOW² Var(x_{T+h−1} − noise) + 1 + σ², over the draws."""
        program, x = markov(), torch.zeros(1, 3, 1)
        drawn = program.forecast(x, steps=3, num_samples=20_000)
        assert drawn.shape == (20_000, 1, 3, 1)
        variance = drawn[:, 0, :, 0].var(0) - NOISE**2
        for before, after in itertools.pairwise(variance):
            # 5 standard errors of two variances, √(2/S) of each
            expected = FLOW**2 * before + 1
            assert float(after) == pytest.approx(float(expected), rel=5 * 2 * math.sqrt(2 / 20_000))

    def test_a_missing_time_needs_normal_states(self):
        program, x = markov(), PROGRAMS["DeepMarkovModel"].as_data(numbers(4))
        program.prior = priors.GaussianMixture(1, num_components=2)
        assert pv.elbo_terms(program, x).log_weights.isfinite().all()
        with pytest.raises(ConfigError, match=r"p\(z_t\|z_\{t−1\}\) is a Mixture"):
            pv.elbo_terms(
                program, x, mask=torch.tensor([True, False, True])[:, None].expand(4, 3, 1)
            )


class TestMixture:
    def test_responsibilities_and_an_empty_class(self, float64):
        """Classes far apart hold the data next to them, and one that is nowhere holds none."""
        components = programs.NormalOfClass(3, 1)
        components.loc.data = torch.tensor([[-5.0], [5.0], [40.0]])
        classes = priors.Fixed(dist.Categorical, probs=torch.tensor([0.3, 0.6, 0.1]))
        encoder = Affine(torch.eye(1), scale=0.5)
        program = programs.MixtureVAE(classes, components, encoder, Affine(torch.eye(1)))
        x = torch.tensor([[-5.0], [-4.0], [5.0]])
        found = program.occupancy(x)
        assert torch.allclose(found.counts, torch.tensor([2.0, 1.0, 0.0]), atol=1e-6)
        assert found.is_empty.tolist() == [False, False, True]
        assert torch.allclose(found.responsibilities.sum(1), torch.ones(3))

    def test_responsibilities_are_bayes_rule(self, float64):
        """p(c|z) ∝ p(c) N(z; μ_c, σ_c²) at a guide that is almost a point."""
        components = programs.NormalOfClass(2, 1)
        components.loc.data = torch.tensor([[-1.0], [1.0]])
        classes = priors.Fixed(dist.Categorical, probs=torch.tensor([0.2, 0.8]))
        encoder = Affine(torch.eye(1), scale=1e-4)
        program = programs.MixtureVAE(classes, components, encoder, Affine(torch.eye(1)))
        x = torch.tensor([[0.3], [-1.2]])
        p_z = dist.Normal(components.loc.detach().T, 1.0).log_prob(x)
        exact = (torch.tensor([0.2, 0.8]).log() + p_z).softmax(-1)
        assert torch.allclose(program.occupancy(x).responsibilities, exact, atol=1e-3)


class TestTopics:
    @pytest.mark.parametrize("kind", ["Dirichlet", "LogisticNormal"])
    @pytest.mark.parametrize("method", ["iwae", "ais"])
    def test_evidence_is_the_integral_over_two_topics(self, kind, method, float64):
        """log ∫ p(x|θ, 1 − θ) p(θ) dθ by quadrature, even in the logit of θ."""
        prior = {
            "Dirichlet": priors.Fixed(dist.Dirichlet, concentration=torch.tensor([0.7, 1.5])),
            "LogisticNormal": priors.Fixed(
                dist.LogisticNormal, loc=torch.tensor([0.4]), scale=torch.tensor([1.2])
            ),
        }[kind]
        q = getattr(guides, kind)(2)
        encoder = nn.Sequential(nn.Linear(4, q.num_features), q)
        nn.init.normal_(encoder[0].weight, std=0.02)
        program = programs.TopicVAE(prior, encoder, programs.Topics(2, 4))
        x = torch.tensor([[3.0, 0.0, 1.0, 2.0], [0.0, 5.0, 0.0, 0.0]])
        logit = torch.linspace(-40, 40, 20_001)
        theta = torch.stack([logit.sigmoid(), (-logit).sigmoid()], -1)
        with torch.no_grad():
            log_pi = program.topics(theta)
            p_x = torch.stack(
                [
                    dist.Multinomial(logits=log_pi, total_count=int(row.sum())).log_prob(row)
                    for row in x
                ]
            )
            log_step = math.log(80 / 20_000) + theta.log().sum(-1)
            exact = (p_x + prior().log_prob(theta) + log_step).logsumexp(-1)
        options = {"num_samples": 4000} if method == "iwae" else {"num_temperatures": 60}
        found = pv.log_evidence(program, x, method=method, **options)
        assert ((found.log_px - exact).abs() < 5 * found.std_error + 2e-3).all()
        assert found.std_error.max() < 0.2

    def test_a_document_without_words_is_refused(self):
        q = guides.Dirichlet(2)
        encoder = nn.Sequential(nn.Linear(4, q.num_features), q)
        prior = priors.Fixed(dist.Dirichlet, concentration=torch.ones(2))
        program = programs.TopicVAE(prior, encoder, programs.Topics(2, 4))
        with pytest.raises(DataError, match=r"x\[1\] has no words"):
            pv.fit(program, torch.tensor([[1.0, 0, 0, 0], [0, 0, 0, 0]]), epochs=1)

    def test_sixteen_bits_leave_the_counts_exact(self):
        q = guides.Dirichlet(3)
        program = programs.TopicVAE(
            priors.Fixed(dist.Dirichlet, concentration=torch.ones(3)),
            nn.Sequential(pv.networks.mlp(10, q.num_features), q),
            programs.Topics(3, 10),
        )
        x = torch.poisson(torch.ones(8, 10)) + 1
        assert len(pv.fit(program, x, epochs=1, precision="bf16", progress=False)) == 1

    def test_topics_are_found(self):
        """Documents of two topics with words of their own: each topic keeps to one half."""
        torch.manual_seed(0)
        words = torch.zeros(2, 8)
        words[0, :4], words[1, 4:] = 0.25, 0.25
        theta = dist.Dirichlet(torch.full((2,), 0.3)).sample((300,))
        x = torch.distributions.Multinomial(50, theta @ words).sample()
        q = guides.LogisticNormal(2)
        program = programs.TopicVAE(
            priors.Fixed(dist.LogisticNormal, loc=torch.zeros(1), scale=torch.full((1,), 2.0)),
            nn.Sequential(pv.networks.mlp(8, q.num_features, hidden=(16,)), q),
            programs.Topics(2, 8),
        )
        pv.fit(program, x, epochs=40, batch_size=30, learning_rate=0.03, progress=False)
        halves = program.topics.words.detach().reshape(2, 2, 4).sum(-1)
        assert halves.max(-1).values.min() > 0.95
        assert halves.argmax(-1).unique().numel() == 2


class TestSequence:
    @pytest.mark.parametrize("kernel", [programs.rbf, programs.ornstein_uhlenbeck])
    def test_evidence_is_that_of_the_gaussian_process(self, kernel, float64):
        """x_t = z_t + noise at irregular times of each datum: x ~ N(0, K + σ² I)."""
        times = torch.rand(4, 5).sort(1).values * 3
        x = torch.randn(4, 5, 1)
        prior = programs.GaussianProcess(1, kernel, length_scale=0.8)
        program = programs.SequenceVAE(prior, Affine(0.6 * torch.eye(1)), Affine(torch.eye(1)))
        covariance = prior(times).base_dist.covariance_matrix[:, 0] + NOISE**2 * torch.eye(5)
        distance = (times[:, :, None] - times[:, None]).abs() / 0.8
        plain = torch.exp(-(distance**2) / 2) if kernel is programs.rbf else torch.exp(-distance)
        assert torch.allclose(covariance, plain + (NOISE**2 + 1e-4) * torch.eye(5), atol=1e-4)
        exact = dist.MultivariateNormal(torch.zeros(4, 5), covariance).log_prob(x[..., 0])
        found = pv.log_evidence(program, x, times, num_samples=8000)
        assert ((found.log_px - exact).abs() < 5 * found.std_error + 1e-3).all()
        assert found.std_error.max() < 0.3

    def test_times_must_be_given(self):
        vae = pv.build((2,), latent_dim=1, likelihood="Normal")
        program = programs.SequenceVAE(programs.GaussianProcess(1), vae.encoder, vae.decoder)
        for times in (None, torch.zeros(3, 4)):
            with pytest.raises(DataError, match="y must hold the times of x, 5 for each datum"):
                pv.fit(program, torch.zeros(3, 5, 2), times, epochs=1)

    def test_the_encoder_must_be_diagonal(self):
        vae = pv.build((2,), latent_dim=1, likelihood="Normal", guide="FullNormal")
        program = programs.SequenceVAE(programs.GaussianProcess(1), vae.encoder, vae.decoder)
        with pytest.raises(ConfigError, match=r"q\(z_t\|x_t\) is a FullNormal"):
            pv.elbo_terms(program, torch.zeros(3, 5, 2), torch.zeros(3, 5))

    def test_data_at_different_times_do_not_share_a_prior(self):
        vae = pv.build((2,), latent_dim=1, likelihood="Normal", seed=0)
        program = programs.SequenceVAE(programs.GaussianProcess(1), vae.encoder, vae.decoder)
        x, times = torch.zeros(4, 5, 2), torch.rand(4, 5).sort(1).values
        found = pv.diagnostics.decompose_elbo(program, x, times)
        assert math.isnan(found.marginal_kl.value)
        found = pv.diagnostics.decompose_elbo(program, x, times[:1].expand(4, 5))
        assert math.isfinite(found.marginal_kl.value)


def test_the_layers_of_a_ladder_must_fit():
    part = Affine(torch.eye(2))
    with pytest.raises(ConfigError, match="2 networks and 1 heads with 1 layers"):
        programs.LadderVAE(priors.StandardNormal(2), [part], [part, part], [part], part)


class TestMeasurement:
    def test_the_posterior_of_a_linear_decoder(self, float64):
        """m = A W z + noise: z|m is the Gaussian of Bayesian linear regression."""
        weight = torch.tensor([[1.0, 0.5], [0.0, 1.0], [-1.0, 2.0], [0.3, 0.3]])
        problem = pv.VAE(
            priors.StandardNormal(2),
            programs.PriorGuide(priors.StandardNormal(2)),
            programs.Measurement(Affine(weight), lambda x: x[..., :3], scale=0.4),
        )
        measured = torch.randn(3, 3)
        found = pv.posterior.hmc(problem, measured, num_samples=300, num_warmup=100).draws
        precision = torch.eye(2) + weight[:3].T @ weight[:3] / 0.4**2
        mean = measured @ weight[:3] @ torch.linalg.inv(precision) / 0.4**2
        draws = found.flatten(0, 1)
        assert ((draws.mean(0) - mean).abs() < 6 * draws.std(0) / math.sqrt(200)).all()
        covariance = torch.linalg.inv(precision)
        for row in range(3):
            assert torch.allclose(
                torch.cov(draws[:, row].T), covariance, atol=0.25 * covariance.max()
            )

    def test_the_hidden_half_of_a_digit(self):
        """The lower half given the upper one, in squared error: nearer than the mean digit."""
        digits = pv.datasets.digits()
        vae = pv.build((8, 8), latent_dim=5, seed=0)
        pv.fit(vae, pv.datasets.binarize(digits.train), epochs=30, seed=0, progress=False)
        problem = pv.VAE(
            vae.prior,
            programs.PriorGuide(vae.prior),
            programs.Measurement(vae.decoder, lambda x: x[..., :4, :], scale=0.3),
        )
        x = pv.datasets.binarize(digits.test)[:100]
        draws = pv.posterior.hmc(problem, x[:, :4], num_samples=20, num_warmup=30).draws
        completed = vae.decode(draws.flatten(0, 1)).mean.mean(0)
        mean_digit = pv.datasets.binarize(digits.train).mean(0)
        hidden = [(guess - x)[:, 4:].square().mean((1, 2)) for guess in (mean_digit, completed)]
        gain = hidden[0] - hidden[1]
        assert gain.mean() > 3 * gain.std() / math.sqrt(100)
