"""The number of active latents with its interval, and the VAE without collapsed ones."""

import warnings

import pyro.distributions as dist
import pytest
import torch
from helpers import conditional, digest, state_of
from oracles import LinearGaussian, Rewritten
from test_diagnostics_elbo import optimum
from test_supports import circular
from torch import nn

import pyrovae as pv
from pyrovae import guides, networks
from pyrovae.diagnostics import effective_latents, prune
from pyrovae.errors import ConfigError
from pyrovae.heads import inverse_positive


class Means(nn.Module):
    """q(z|x) = N(x, 1)."""

    def forward(self, x):
        return dist.Normal(x, 1.0).to_event(1)


def exact_guide(truth):
    """The exact posterior of probabilistic PCA with orthogonal loadings, as network and head."""
    q = guides.DiagonalNormal(truth.weight.shape[1])
    affine = networks.mlp(len(truth.mean), q.num_features, hidden=())
    v, scale = torch.linalg.solve(truth.m, truth.weight.T), truth.sigma / truth.m.diagonal().sqrt()
    affine[0].weight.data = torch.cat([v, torch.zeros_like(v)])
    affine[0].bias.data = torch.cat([-v @ truth.mean, inverse_positive(scale)])
    return nn.Sequential(affine, q)


@pytest.mark.usefixtures("float64")
class TestEffectiveLatents:
    DEVIATIONS = torch.tensor([1.0, 0.0121, 0.0104, 0.0081, 0.0]).sqrt()  # of E[z_d|x]

    @property
    def vae(self):
        return LinearGaussian(5, 5).vae(Means())

    def test_the_interval_covers_the_true_number(self):
        """Variances around the threshold 0.01; 3 of 5 are above. 100 samples of 200 data."""
        generator = torch.Generator().manual_seed(0)
        covered, widths = 0, []
        for _ in range(100):
            x = torch.randn(200, 5, generator=generator) * self.DEVIATIONS
            found = effective_latents(self.vae, x, num_resamples=300)
            covered += found.lower <= 3 <= found.upper
            widths.append(found.upper - found.lower)
        assert covered >= 89  # at least 95 % − 3 √(0.95·0.05/100)
        assert sum(widths) / 100 < 3

    def test_is_certain_away_from_the_threshold(self):
        x = torch.randn(500, 5, generator=torch.Generator().manual_seed(0)) * self.DEVIATIONS
        found = effective_latents(self.vae, x)
        active = pv.diagnostics.active_units(self.vae, x)
        torch.testing.assert_close(found.variance, active.variance)
        assert found.num_active == active.num_active
        assert found.probability[0] == 1
        assert found.probability[4] == 0
        assert ((found.probability[1:4] > 0) & (found.probability[1:4] < 1)).any()
        assert "undecided: z[" in found.message
        few = effective_latents(self.vae, x * torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0]))
        assert (few.lower, few.num_active, few.upper) == (1, 1, 1)
        assert few.message == "1 of 5 latent dimensions are active (95 % interval 1 to 1)."

    def test_angles_and_settings(self):
        found = effective_latents(circular(), torch.randn(20, 2))
        assert found.probability.shape == (1,)
        with pytest.raises(ConfigError, match="below 1"):
            effective_latents(self.vae, torch.ones(3, 5), level=1.0)


@pytest.mark.usefixtures("float64")
class TestPCA:
    @pytest.mark.parametrize(("sigma", "kept"), [(1.0, [0, 1]), (0.6**0.5, [0, 1, 2])])
    def test_log_px_stays_to_the_last_digit(self, sigma, kept):
        """Dimension j has collapsed iff λ_j ≤ σ²; without it log p(x) is the same number."""
        truth, x = optimum(sigma)
        vae = truth.vae(exact_guide(truth))
        before = digest(state_of(vae))
        found = prune(vae, x[:50])
        assert found.kept.tolist() == kept
        assert digest(state_of(vae)) == before
        exact = truth.log_evidence(x[:50])
        # the guide is exact: log w = log p(x) at every draw
        terms = pv.elbo_terms(found.vae, x[:50])
        torch.testing.assert_close(terms.log_weights[0], exact, rtol=1e-7, atol=1e-7)
        torch.testing.assert_close(found.vae.encode(x).mean, vae.encode(x).mean[:, found.kept])
        assert abs(found.change.value) < 1e-8
        assert f"{4 - len(kept)} of 4 latent dimensions removed" in found.message

    def test_an_active_dimension_changes_log_px(self):
        """Negative control."""
        truth, x = optimum(1.0)
        found = prune(truth.vae(exact_guide(truth)), x[:200], dimensions=[0])
        assert found.change.value < -5 * found.change.std_error

    def test_a_prior_that_is_not_centered(self):
        """The constant is E[z_C]; with another one p(x) would move."""
        truth, x = optimum(1.0)
        vae = truth.vae(exact_guide(truth))
        vae.prior = pv.priors.LearnedNormal(4).double()
        vae.prior.loc.data[:] = torch.tensor([0.5, 0.0, 0.0, 3.0])
        vae.decoder[0][0].weight.data[:, 3] = 1.0  # depends on z_3, whatever the guide says
        smaller = prune(vae, x[:5], dimensions=[3]).vae
        z = torch.randn(5, 4)
        z[:, 3] = 3.0
        torch.testing.assert_close(smaller.decode(z[:, :3]).mean, vae.decode(z).mean)
        assert smaller.prior().event_shape == (3,)
        assert [n for n, p in smaller.named_parameters() if p.requires_grad] == [
            n for n, p in vae.named_parameters() if p.requires_grad
        ]

    def test_refuses_by_naming_the_property(self):
        truth, x = optimum(1.0)
        vae = truth.vae(exact_guide(truth))
        with pytest.raises(ConfigError, match="all 4 latent dimensions are to be removed"):
            prune(vae, x[:5], dimensions=range(4))
        with pytest.raises(ConfigError, match="numbered 0 … 3"):
            prune(vae, x[:5], dimensions=[4])
        with pytest.raises(ConfigError, match="model or guide of its own"):
            prune(Rewritten(vae), x[:5])
        for name, part in {
            "prior": {"prior": "GaussianMixture"},
            "encoder": {"guide": "FullNormal"},
            "decoder": {"network": {"name": "residual_mlp", "norm": nn.LayerNorm}},
        }.items():
            other = pv.build((5,), latent_dim=3, likelihood="Normal", seed=0, **part).double()
            with pytest.raises(ConfigError, match=f"prune cannot cut the {name}"):
                prune(other, x[:5], dimensions=[1])


class TestNetworks:
    @pytest.mark.parametrize("network", ["mlp", "gated_mlp", "residual_mlp", "conv"])
    def test_of_build_are_cut_saved_and_trained_on(self, network, tmp_path):
        vae = pv.build((8, 8), latent_dim=4, network=network, hidden=(8, 6), seed=0)
        x = torch.rand(20, 8, 8).round()
        found = prune(vae, x, dimensions=[0, 2])
        z = torch.zeros(3, 4)
        z[:, [1, 3]] = torch.randn(3, 2)
        smaller = found.vae
        torch.testing.assert_close(smaller.decode(z[:, [1, 3]]).mean, vae.decode(z).mean)
        torch.testing.assert_close(smaller.encode(x).stddev, vae.encode(x).stddev[:, [1, 3]])
        again = pv.load(pv.save(smaller, tmp_path / "smaller"))
        assert torch.equal(again.encode(x).mean, smaller.encode(x).mean)
        assert len(pv.fit(smaller, x, epochs=1, progress=False)["elbo"]) == 1
        assert vae.spec["latent_dim"] == 4

    def test_other_guides_and_covariates(self):
        vae = pv.build((4,), latent_dim=3, guide="StudentT", seed=0)
        x = torch.rand(10, 4).round()
        assert prune(vae, x, dimensions=[1]).vae.encode(x).event_shape == (2,)
        with pytest.raises(ConfigError, match="prune cannot cut the decoder"):
            prune(conditional(), x, torch.arange(10) % 3, dimensions=[0])  # z and y together

    def test_digits(self):
        """Ten dimensions, coarse noise: collapsed ones go, and log p(x) stays within its error."""
        data = pv.datasets.digits()
        noise = {"name": "Normal", "scale": 0.5}
        vae = pv.build((8, 8), latent_dim=10, likelihood=noise, data=data.train, seed=0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the collapse that is wanted here
            pv.fit(vae, data.train, epochs=60, seed=0, progress=False)
        found = prune(vae, data.test)
        assert 1 <= len(found.removed) <= 9
        assert abs(found.change.value) < max(0.02, 3 * found.change.std_error)
        best = pv.diagnostics.active_units(vae, data.test).variance.argmax().item()
        one = prune(vae, data.test, dimensions=[best])
        assert one.change.value < -0.05
