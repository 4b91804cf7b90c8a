"""Expected coverage by distances: exact, narrow, wide, shifted guides, and the prior as one."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import with_global_latents
from oracles import ExactEncoder, LinearGaussian, Rewritten
from programs import PROGRAMS, data
from test_supports import circular
from torch import nn

import pyrovae as pv
from pyrovae.core.simulation import weighted_pit
from pyrovae.diagnostics import coverage, local_coverage
from pyrovae.diagnostics.coverage import References
from pyrovae.errors import ConfigError

pytestmark = pytest.mark.usefixtures("float64")
TRUTH = LinearGaussian()


class Shifted(ExactEncoder):
    """The exact posterior, its mean shifted by 0.5 standard deviations in each latent."""

    def forward(self, x):
        q = super().forward(x)
        loc = q.loc + 0.5 * q.variance.sqrt()
        return dist.MultivariateNormal(loc, scale_tril=q.scale_tril)


class Prior(nn.Module):
    """q(z|x) = p(z)."""

    def forward(self, x):
        return dist.Normal(x.new_zeros(len(x), 2), 1.0).to_event(1)


class Jump(nn.Module):
    """x = z + 4 c + N(0, 1), with an exact guide over z: a mixture of the posteriors given c."""

    def __init__(self):
        super().__init__()
        self.zero = nn.Parameter(torch.zeros(()))

    def model(self, x, y=None, mask=None):
        pyro.module("program", self)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(self.zero, 1.0))
            coin = dist.Bernoulli(x.new_tensor(0.5))
            c = pyro.sample("c", coin, infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal((z + 4 * c)[..., None], 1.0).to_event(1), obs=x)

    def guide(self, x, y=None, mask=None):
        pyro.module("program", self)
        gap = x - torch.tensor([0.0, 4.0])  # (B, 2)
        weights = dist.Categorical(logits=-(gap**2) / 4)
        given_c = dist.Normal(gap / 2 + self.zero, 0.5**0.5)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.MixtureSameFamily(weights, given_c))


EXACT = TRUTH.vae(ExactEncoder(TRUTH))
WRONG = {
    "too narrow": TRUTH.vae(ExactEncoder(TRUTH, 0.8)),
    "too wide": TRUTH.vae(ExactEncoder(TRUTH, 1.25)),
    "shifted": TRUTH.vae(Shifted(TRUTH)),
    "the prior": TRUTH.vae(Prior()),
}


class TestWeightedRanks:
    @pytest.mark.parametrize("num_draws", [1, 5, 50])
    def test_are_uniform_for_any_number_of_draws(self, num_draws):
        """Truth from N(1, 0.5²), draws from N(0, 1); 20 000 ranks, χ² of 20 bins."""
        torch.manual_seed(0)
        g, f = dist.Normal(1.0, 0.5), dist.Normal(0.0, 1.0)
        z = torch.cat([g.sample((1, 20_000)), f.sample((num_draws, 20_000))])
        right = weighted_pit(z, g.log_prob(z) - f.log_prob(z))
        assert self.p_value(right) > 1e-3
        assert self.p_value(weighted_pit(z, torch.zeros_like(z))) < 1e-10  # unweighted

    def test_ties_are_broken_at_random(self):
        torch.manual_seed(0)
        z = torch.randint(2, (4, 20_000))
        assert self.p_value(weighted_pit(z, torch.zeros(4, 20_000))) > 1e-3

    @staticmethod
    def p_value(pit):
        counts = torch.histc(pit, 20, 0, 1)
        expected = len(pit) / 20
        statistic = ((counts - expected) ** 2 / expected).sum()
        return torch.special.gammaincc(torch.tensor(9.5), statistic / 2)


class TestCoverage:
    def test_the_exact_guide_passes_at_the_stated_rate(self):
        found = [coverage(EXACT, 200, num_draws=10, seed=seed).p_value for seed in range(200)]
        rate = (torch.stack(found) < 0.05).double().mean()
        assert abs(rate - 0.05) < 3.5 * (0.05 * 0.95 / 200) ** 0.5  # 0.054
        assert "No sign" in coverage(EXACT).message

    @pytest.mark.parametrize("name", WRONG)
    def test_a_wrong_guide_fails(self, name):
        found = coverage(WRONG[name])
        assert found.p_value < 1e-5  # 1000 simulations: 2e-8, 2e-11, 3e-8 and 1e-228 measured
        assert "is not the posterior" in found.message

    def test_the_side_of_the_coverage(self):
        narrow, wide = (coverage(WRONG[n]) for n in ("too narrow", "too wide"))
        off = (narrow.expected_coverage - narrow.levels) / narrow.std_error
        assert off.min() < -5
        assert ((wide.expected_coverage - wide.levels) / wide.std_error).max() > 5

    def test_reference_points_that_ignore_x_let_the_prior_pass(self, monkeypatch):
        """Negative control: these references, as first published, have no power against it."""

        def any_of_them(self, batch):
            return self.latents[torch.randint(len(self.latents), (batch.num_data,))]

        monkeypatch.setattr(References, "nearest", any_of_them)
        assert coverage(WRONG["the prior"]).p_value > 1e-3
        assert coverage(WRONG["too wide"]).p_value < 1e-3

    def test_every_program_and_an_angle(self):
        one = coverage(Rewritten(EXACT), 300, like=TRUTH.sample(5))
        assert one.p_value > 1e-3
        bad = coverage(Rewritten(WRONG["too narrow"]), 1000, like=TRUTH.sample(5))
        assert bad.p_value < 1e-4
        assert coverage(circular(), 50).pit.shape == (50,)

    def test_a_guide_without_a_density(self):
        program, x = PROGRAMS["EasyGuide"].make(), data("EasyGuide", 4)
        assert coverage(program, 20, like=x).pit.shape == (20,)
        with pytest.raises(ConfigError, match="its density at given latents is unknown"):
            local_coverage(program, x, n=5)

    def test_pieces_give_the_same_test(self):
        found = coverage(EXACT, 50, memory_budget=1)
        assert found.pit.shape == (50,)
        assert found.p_value > 1e-3


class TestLocalCoverage:
    X = TRUTH.sample(10, seed=3)

    def test_the_exact_guide_passes_at_the_stated_rate(self):
        x = TRUTH.sample(200, seed=1)
        found = local_coverage(EXACT, x, n=100, num_draws=10)
        rate = (found.p_value < 0.05).double().mean()
        assert abs(rate - 0.05) < 3.5 * (0.05 * 0.95 / 200) ** 0.5  # 0.054
        # data share no simulation: all ranks together are uniform as well
        assert pv.diagnostics.features.uniform_p_value(found.pit.flatten()) > 1e-3

    @pytest.mark.parametrize("name", WRONG)
    def test_a_wrong_guide_fails(self, name):
        found = local_coverage(WRONG[name], self.X, n=4000)
        # power per datum at p < 0.05 about 0.9; the tenth root of a Bonferroni test of all
        assert found.p_value.median() < 0.01
        assert found.p_value.min() < 1e-4
        assert found.message.startswith("Near")

    def test_only_where_the_guide_is_wrong(self):
        """A guide that is too narrow in half of the space of x."""

        class Half(ExactEncoder):
            def forward(self, x):
                q = super().forward(x)
                factor = torch.where(q.loc[:, :1] > 0, 0.5, 1.0)[..., None]
                return dist.MultivariateNormal(q.loc, scale_tril=q.scale_tril * factor)

        x = TRUTH.mean + torch.tensor([[3.0, 0.0], [-3.0, 0.0]]) @ TRUTH.weight.T
        found = local_coverage(TRUTH.vae(Half(TRUTH)), x, n=2000)
        assert found.p_value[0] < 1e-4
        assert found.p_value[1] > 1e-3

    def test_masked_cells(self):
        vae = pv.build((4,), latent_dim=2, likelihood="Normal", seed=0).double()
        x = torch.randn(2, 4)
        x[0, 1] = torch.nan
        assert local_coverage(vae, x, mask=~x.isnan(), n=20).pit.isfinite().all()

    def test_discrete_latents_that_are_summed_out_belong_to_the_simulated_datum(self):
        """z ~ N(0, 1), c ~ Bernoulli(½), x ~ N(z + 4c, 1): the exact guide passes near any x.

        Classes drawn from p(c|x_obs, z) instead of p(c|z) would have the class of x_obs.
        """
        found = local_coverage(Jump(), torch.tensor([[-1.0], [2.0], [5.0]]), n=2000)
        assert found.p_value.min() > 1e-3

    def test_global_latents(self):
        x = torch.eye(4)[:2]
        found = local_coverage(with_global_latents(), x, n=20, num_globals=2)
        assert found.pit.shape == (2, 20)
