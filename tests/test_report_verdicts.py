"""The verdicts of a report name broken models, and its page does not contradict itself."""

import math

import pyro.distributions as dist
import pytest
import torch
from programs import PROGRAMS
from report_model import bumps, change, small_findings
from torch import nn

import pyrovae as pv
from pyrovae.data import Batch
from pyrovae.diagnostics import Estimate
from pyrovae.report.findings import examine
from pyrovae.report.levels import level
from pyrovae.report.likelihood import rank_distance
from pyrovae.report.trials import Continued, Training, without_latent
from pyrovae.report.trust import USES, trust
from pyrovae.report.verdicts import problems, verdicts
from tests.benchmarks.report_verdicts import (
    CONDITIONS,
    GOOD,
    NEEDS_FILES,
    SETTINGS,
    examined,
    load,
    named,
)

# condition → β and epochs that cause it
SMALL = {GOOD: (1, 18), "over-regularized": (2, 18), "posterior collapse": (20, 15)}
UNDER = {"undertrained": (1, 2)}


def judged(data, beta, epochs, *, seed, num_steps, **options):
    x, x_test = data
    training = Training(beta, **options)
    vae = pv.build(x.shape[1:], latent_dim=2, hidden=(100,), data=x, seed=seed)
    objective = None if beta == 1 else pv.objectives.BetaELBO(beta)
    pv.fit(vae, x, objective=objective, epochs=epochs, seed=seed, compile="graph", **options)
    sizes = {"num_samples": 100, "num_steps": num_steps, "thorough": False}
    return named(examine(vae, x, test=x_test, training=training, **sizes))  # without β


class TestRecognizes:
    """Each broken model by its name and no other, and no false alarm on the good one."""

    @pytest.mark.parametrize("condition", [*SMALL, *UNDER])
    def test_one_seed(self, condition):
        beta, epochs = (SMALL | UNDER)[condition]
        is_real = condition in (GOOD, "undertrained")
        data = load("digits") if is_real else (bumps(1500, 1), bumps(400, 2))
        options = {"batch_size": 100, "learning_rate": 5e-3 if epochs > 2 else 1e-3}
        assert judged(data, beta, epochs, seed=0, num_steps=150, **options) == (condition,)

    @pytest.mark.slow
    @pytest.mark.filterwarnings("ignore:Posterior collapse")  # `fit` says it too
    @pytest.mark.parametrize("seed", range(5))
    @pytest.mark.parametrize("condition", CONDITIONS)
    @pytest.mark.parametrize("name", SETTINGS)
    def test_five_seeds(self, name, condition, seed, request):
        if name in NEEDS_FILES:
            request.getfixturevalue("data_folder")
        assert named(examined(name, condition, seed)) == (condition,)


@pytest.fixture(scope="module")
def found():
    """Findings on a model whose training is over."""
    found = small_findings()
    return found._replace(continued=Continued(Estimate(0, 0.01), 4.0, 500, learned=20.0))


def by_name(found, **options):
    return {verdict.name: verdict for verdict in verdicts(found, **options)}


class TestLevel:
    @pytest.mark.parametrize("truth", [0.0, 1.0])
    def test_error_rate(self, truth):
        """At each threshold a claim is wrong with probability 0.00135."""
        draws = truth + 0.1 * torch.randn(100_000, generator=torch.Generator().manual_seed(0))
        found = [level(Estimate(v, 0.1), look=0.0, problem=1.0) for v in draws.tolist()]
        wrong = (
            sum(s != "fine" for s in found) if truth == 0 else sum(s == "problem" for s in found)
        )
        # 5 standard errors of a count of mean 135
        assert abs(wrong - 135) < 5 * 135**0.5

    def test_large_errors_are_never_fine(self):
        assert level(Estimate(0.0, math.inf), look=0.0, problem=1.0) == "look"
        assert level(Estimate(0.0, math.nan), look=0.0, problem=1.0) == "look"


class TestFaults:
    @pytest.mark.parametrize(
        ("gain", "learned", "status"),
        [
            ((2.0, 0.1), 20.0, "problem"),
            ((0.8, 0.1), 20.0, "look"),
            ((4.8, 0.4), 80.0, "look"),  # 12 standard errors: 19 nats more were to come
            ((0.2, 0.1), 20.0, "fine"),
            ((2.0, 1.0), 20.0, "look"),
            ((2.0, 0.1), -1.0, "problem"),
            ((0.3, 0.02), -1.0, "problem"),
            ((0.07, 0.02), -1.0, "look"),
            ((0.8, 0.1), math.nan, "problem"),
            ((0.3, 0.05), math.nan, "look"),
        ],
    )
    def test_a_gain_is_judged_by_its_error_and_by_what_was_learned(
        self, found, gain, learned, status
    ):
        more = found._replace(
            continued=Continued(Estimate(*gain), 4.0, 500, learned), kl_weight=Estimate(1.0, 0.01)
        )
        first, *rest = verdicts(more)
        assert (first.name, first.status) == ("undertrained", status)
        assert [v.status == "unknown" for v in rest[:4]] == [status == "problem"] * 4
        assert ("not gain" in first.meaning) == (status == "fine")

    @pytest.mark.parametrize(
        ("weight", "over", "narrow"),
        [
            ((2.0, 0.1), "problem", "fine"),
            ((1.6, 0.1), "look", "fine"),
            ((1.0, 0.1), "fine", "fine"),
            ((0.6, 0.1), "fine", "look"),
            ((0.3, 0.1), "fine", "problem"),
            ((math.nan, math.nan), "unknown", "unknown"),
        ],
    )
    def test_by_the_weight_of_the_kl_alone(self, found, weight, over, narrow):
        judged = by_name(found._replace(kl_weight=Estimate(*weight)), beta=4)
        assert judged["over-regularized"].status == over
        assert judged["guide too narrow"].status == narrow
        assert "The card says that β was 4." in judged["over-regularized"].meaning

    @pytest.mark.parametrize(("rate", "status"), [(0.05, "problem"), (0.2, "fine")])
    def test_collapse_by_the_rate_alone(self, found, rate, status):
        judged = by_name(change(found, held_out={"mean_kl": Estimate(rate, 0.01, True)}))
        assert judged["posterior collapse"].status == status

    @pytest.mark.parametrize(("off", "status"), [(0.2, "problem"), (0.07, "look"), (0.0, "fine")])
    def test_likelihood_by_ranks(self, found, off, status):
        judged = by_name(found._replace(rank_distance=Estimate(off, 0.002, True)))
        assert judged["wrong likelihood"].status == status

    def test_overfitting_against_the_spread_of_the_data(self, found):
        ours = Estimate(found.held_out.mean_elbo.value + 50, 0.1)
        assert "overfitting" in problems(verdicts(change(found, training={"mean_elbo": ours})))

    def test_stopping_earlier_is_advised_only_where_it_helped(self, found):
        ours = Estimate(found.held_out.mean_elbo.value + 50, 0.1)
        found = change(found, training={"mean_elbo": ours})
        for gain, advice in [
            (-0.3, "stop earlier"),
            (0.3, "would not help"),
            (0.0, "nothing shows"),
        ]:
            more = Continued(Estimate(gain, 0.05), 4.0, 500, 20.0)
            assert advice in by_name(found._replace(continued=more))["overfitting"].advice

    @pytest.mark.parametrize(("gain", "advice"), [(3.0, "Train with β = 1"), (0.0, "not tried")])
    def test_beta_is_advised_where_a_copy_gained_by_it(self, found, gain, advice):
        more = Continued(Estimate(gain, 0.1), 4.0, 500, 20.0)
        found = found._replace(kl_weight=Estimate(4.0, 0.1), unweighted=more)
        assert advice in by_name(found)["over-regularized"].advice


class TestLimits:
    def test_failing_weights_and_a_gap_are_no_faults(self, found):
        large = Estimate(3.0, 0.1, True)
        found = change(found, reliability={"is_reliable": torch.zeros(60).bool()})
        found = change(found, gaps={"mean_amortization": large})
        judged = by_name(found._replace(prior_gain=large))
        assert judged["encoder misses posteriors"].status == "problem"
        assert judged["inference gap"].status == judged["prior misfit"].status == "look"
        assert not problems(tuple(judged.values()))

    def test_bounds_are_counted(self, found):
        upper = found.evidence.upper.clone()
        upper[:7] = math.inf
        verdict = by_name(change(found, evidence={"upper": upper}))["log p(x)"]
        assert (verdict.status, "≥" in verdict.number) == ("look", True)
        assert "7 of 60" in verdict.meaning

    def test_misfit_is_unknown_where_the_data_are_too_few(self, found):
        sides = {"mutual_information": Estimate(4.0, 0.1), "marginal_kl": Estimate(9.0, 0.1)}
        judged = by_name(change(found._replace(prior_gain=None), held_out=sides))
        assert judged["prior misfit"].status == "unknown"  # log 60 = 4.1

    def test_every_number_has_an_error_or_a_count(self, found):
        for verdict in verdicts(found):
            assert verdict.status == "unknown" or "±" in verdict.number or "<" in verdict.number

    def test_unmeasured_is_unknown(self, found):
        bare = found._replace(gaps=None, calibration=None, continued=None)
        unknown = {v.name for v in verdicts(bare) if v.status == "unknown"}
        assert unknown >= {"undertrained", "inference gap", "calibration"}


class TestTrust:
    def test_every_use_depends_on_conditions_that_are_judged(self, found):
        names = {verdict.name for verdict in verdicts(found)}
        assert {name for needed in USES.values() for name in needed} == names

    def test_the_worst_verdict_decides(self, found):
        found = found._replace(kl_weight=Estimate(4.0, 0.1))
        answers = {one.use: one for one in trust(verdicts(found))}
        assert answers["samples"].answer == answers["q(z|x) as a posterior"].answer == "no"
        assert [v.name for v in answers["samples"].reasons] == ["over-regularized"]
        assert answers["log p(x)"].answer == "yes"


class Linear(nn.Module):
    """N(u wᵀ, scale² I) of its input u."""

    def __init__(self, weight, scale):
        super().__init__()
        self.weight, self.scale = weight, scale

    def forward(self, u):
        return dist.Normal(u @ self.weight, self.scale).to_event(1)


class TestRankDistance:
    """x_j ~ N(z, s²), 8 cells, with the exact posterior, against data of that and other shapes."""

    def distance(self, noise, s=0.5):
        x = torch.randn(1000, 1) + noise
        variance = 1 / (1 + 8 / s**2)
        encoder = Linear(torch.full((8, 1), variance / s**2), variance**0.5)
        vae = pv.VAE(pv.priors.StandardNormal(1), encoder, Linear(torch.ones(1, 8), s))
        return rank_distance(vae, Batch(x), seed=0)

    def test_is_noise_under_the_right_model(self):
        found = self.distance(0.5 * torch.randn(1000, 8))
        # the largest of 19 dependent differences: 5 errors
        assert found.value < 5 * found.std_error < 0.07

    def test_sees_another_width_and_another_shape(self):
        for noise in (torch.randn(1000, 8), 0.5 * torch.randn(1000, 8).sign()):
            found = self.distance(noise)
            assert found.value - 3 * found.std_error > 0.07


class TestBaseline:
    def test_is_the_best_density_without_a_latent(self):
        x = (torch.rand(400, 6) < torch.linspace(0.1, 0.9, 6)).float()
        vae = pv.build((6,), latent_dim=2, seed=0)
        found = without_latent(vae, Batch(x), Batch(x), 0)
        best = torch.distributions.Bernoulli(x.mean(0)).log_prob(x).sum(-1)
        assert 0 <= best.mean() - found.mean() < 0.02

    def test_is_unknown_for_other_programs_and_masks(self):
        x = torch.ones(5, 6)
        masked = Batch(x, None, x.bool())
        vae = pv.build((6,), latent_dim=2, seed=0)
        assert without_latent(vae, masked, masked, 0).isnan().all()
        program = PROGRAMS["MixtureVAE"].make()
        assert without_latent(program, Batch(x), Batch(x), 0).isnan().all()
