"""The export to ArviZ: groups, numbers, and the calls that users make on them.

`arviz` < 1 (Python 3.11) makes an InferenceData; the tests of that interface are skipped under
1.x. The DataTree of arviz ≥ 1 is made here under either, and its statistics are tested with
`arviz_stats` where that is installed (the `test` extra). Untested here: `arviz_plots` with
matplotlib ≥ 3.11, which its version 0.8.0 cannot be imported with (skipped, with the reason;
those tests pass with matplotlib 3.10), and `import arviz` ≥ 1 itself on Python 3.11.
"""

import warnings
from importlib.metadata import version

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from helpers import unchanged
from oracles import AffineEncoder, ExactEncoder, LinearGaussian
from pyro import poutine
from pyro.infer import Predictive
from torch import nn

import pyrovae as pv
from pyrovae import arviz_io, priors
from pyrovae.arviz_io import history_to_arviz, predictive_to_arviz, to_arviz
from pyrovae.errors import ConfigError, DataError
from pyrovae.networks import Concat, Given, OneHot, mlp
from pyrovae.programs import CategoricalHead

# arviz 0.23 with matplotlib 3.11 and pandas 3
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

NUM_DATA, NUM_SAMPLES = 12, 60


@pytest.fixture
def az():
    if int(version("arviz").partition(".")[0]) >= 1:
        pytest.skip("the interface of arviz < 1; this one has the other, tested below")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import arviz
    return arviz


@pytest.fixture
def tree(monkeypatch):
    """What `to_arviz` gives under arviz ≥ 1."""
    monkeypatch.setattr(arviz_io.container, "has_datatree", lambda: True)
    return exported()


@pytest.fixture
def azp():
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import arviz_plots
    except ImportError:
        pytest.skip("arviz-plots is not installed")
    except AttributeError as error:
        pytest.skip(f"arviz-plots cannot be imported with this matplotlib: {error}")
    return arviz_plots


def model(**settings):
    return pv.build((4,), latent_dim=2, likelihood="Normal", seed=0, **settings)


def exported(**settings):
    x = torch.randn(NUM_DATA, 4, generator=torch.Generator().manual_seed(0))
    labels = [f"row {i}" for i in range(NUM_DATA)]
    return to_arviz(model(), x, labels=labels, num_samples=NUM_SAMPLES, **settings)


def groups_of(data):
    return set(data.groups()) if callable(data.groups) else {g.strip("/") for g in data.children}


class TestGroups:
    def test_names_dimensions_and_coordinates(self):
        data = exported()
        assert groups_of(data) == {
            *("posterior", "posterior_predictive", "prior", "prior_predictive"),
            *("observed_data", "constant_data", "log_likelihood", "log_prior", "sample_stats"),
        }
        draws = ("chain", "draw", "datum")
        dims = {
            ("posterior", "z"): (*draws, "latent"),
            ("prior", "z"): (*draws, "latent"),
            ("posterior_predictive", "x"): (*draws, "x_dim_0"),
            ("prior_predictive", "x"): (*draws, "x_dim_0"),
            ("observed_data", "x"): ("datum", "x_dim_0"),
            ("constant_data", "label"): ("datum",),
            ("log_likelihood", "x"): draws,
            ("log_prior", "z"): draws,
            ("sample_stats", "log_guide"): draws,
            ("sample_stats", "log_weight"): draws,
            ("sample_stats", "pareto_k"): ("datum",),
            ("sample_stats", "elbo"): ("datum",),
        }
        for (group, name), expected in dims.items():
            assert data[group][name].dims == expected, (group, name)
        sizes = dict(data["posterior"].sizes)
        assert sizes == {"chain": 1, "draw": NUM_SAMPLES, "datum": NUM_DATA, "latent": 2}
        assert data["constant_data"]["label"].values[3] == "row 3"
        assert data["posterior"]["datum"].values.tolist() == list(range(NUM_DATA))

    def test_attributes_say_what_made_it(self):
        attributes = exported()["posterior"].attrs
        assert attributes["inference_library"] == "pyrovae"
        assert attributes["inference_library_version"] == pv.__version__
        assert attributes["torch_version"] == torch.__version__
        assert attributes["pyro_version"] == pyro.__version__
        assert (attributes["posterior"], attributes["seed"]) == ("guide", "0")
        assert "latent_dim" in attributes["spec"]

    def test_inference_data_and_tree_hold_the_same(self, az, monkeypatch):
        data = exported()
        assert isinstance(data, az.InferenceData)
        monkeypatch.setattr(arviz_io.container, "has_datatree", lambda: True)
        tree = exported()
        assert isinstance(tree, xr.DataTree)
        for group in groups_of(data):
            xr.testing.assert_identical(tree[group].to_dataset(), data[group])

    @pytest.mark.parametrize(
        ("posterior", "chains", "options"),
        [("sir", 1, {"num_proposals": 500}), ("hmc", 4, {"num_warmup": 6})],
    )
    def test_other_posteriors(self, posterior, chains, options):
        data = exported(posterior=posterior, predictive=False, **options)
        assert data["posterior"].sizes["chain"] == chains
        assert "prior" not in groups_of(data)
        guide = exported(predictive=False)  # k̂ and ELBO are the guide's in any case
        for name in ("pareto_k", "elbo"):
            xr.testing.assert_identical(data["sample_stats"][name], guide["sample_stats"][name])

    def test_statistics_of_hmc_are_those_of_its_draws(self, az):
        data = exported(posterior="hmc", num_warmup=30, predictive=False)
        stats = data["sample_stats"]
        for name in ("acceptance_rate", "diverging", "step_size", "energy", "n_steps"):
            assert stats[name].dims == ("chain", "draw", "datum")
            assert stats[name].shape == (4, NUM_SAMPLES, NUM_DATA)
        assert stats["diverging"].dtype == bool
        # H exceeds −log p(x, z), here without a change of coordinates, by |r|²/2 of two momenta
        kinetic = stats["energy"] + data["log_likelihood"]["x"] + data["log_prior"]["z"]
        assert (kinetic >= -1e-3).all()
        assert float(kinetic.mean()) == pytest.approx(1.0, abs=0.1)
        ours = pv.posterior.e_bfmi(torch.tensor(stats["energy"].values))
        np.testing.assert_allclose(az.bfmi(data.sel(datum=5)), ours[:, 5], rtol=0.02)
        assert "energy" not in exported(predictive=False)["sample_stats"]

    def test_mask_covariates_and_images(self):
        vae = pv.build((3, 3), latent_dim=2, seed=0)
        x, mask = torch.rand(5, 3, 3).round(), torch.rand(5, 3, 3) > 0.3
        data = to_arviz(vae, x, mask=mask, num_samples=4)
        assert data["posterior_predictive"]["x"].dims[-2:] == ("x_dim_0", "x_dim_1")
        np.testing.assert_array_equal(np.isnan(data["observed_data"]["x"]), ~mask)
        np.testing.assert_array_equal(data["constant_data"]["mask"], mask)
        assert not np.isnan(data["posterior_predictive"]["x"]).any()  # missing cells are filled in

    def test_one_draw_of_one_datum(self):
        data = to_arviz(model(), torch.zeros(1, 4), num_samples=1)
        assert data["posterior"]["z"].shape == (1, 1, 1, 2)
        assert data["prior_predictive"]["x"].shape == (1, 1, 1, 4)

    def test_shared_latents_have_no_dimension_of_data(self):
        vae = pv.build(6, latent_dim=2, seed=0)
        program = pv.programs.BayesianVAE(
            vae.prior, vae.encoder, vae.decoder, priors.StandardNormal(3), priors.LearnedNormal(3)
        )
        data = to_arviz(program, torch.ones(5, 6), num_samples=7)
        assert data["posterior"]["w"].dims == ("chain", "draw", "w_dim_0")
        assert data["prior"]["w"].shape == (1, 7, 3)
        assert data["posterior"]["z"].shape == (1, 7, 5, 2)
        # log p(w) − log q(w) belongs to no datum, so that there are no weights of one
        assert not {"log_weight", "pareto_k"} & set(data["sample_stats"])
        assert list(data["log_prior"]) == ["z"]
        with pytest.raises(ConfigError, match="outside the plate"):
            to_arviz(program, torch.ones(5, 6), posterior="sir")

    @pytest.mark.parametrize("posterior", ["guide", "sir"])
    def test_a_program_of_two_sites(self, posterior):
        q, p, c = pv.guides.DiagonalNormal(2), pv.likelihoods.Bernoulli(6), CategoricalHead(3)
        program = pv.programs.SemiSupervisedVAE(
            priors.StandardNormal(2),
            Given(Concat(nn.Sequential(mlp(9, q.num_features), q), of_y=OneHot(3))),
            Given(Concat(nn.Sequential(mlp(5, p.num_features), p), of_y=OneHot(3))),
            nn.Sequential(mlp(6, 3), c),
            priors.Fixed(dist.Categorical, probs=torch.full((3,), 1 / 3)),
            alpha=1.0,
        )
        x, y = torch.rand(5, 6).round(), torch.tensor([0, -1, 2, -1, 1])
        data = to_arviz(program, x, y, num_samples=8, posterior=posterior)
        assert data["posterior"]["y"].dims == ("chain", "draw", "datum")
        assert (data["posterior"]["y"].values[:, :, 0] == 0).all()  # a known label stays
        assert data["posterior"]["z"].shape == (1, 8, 5, 2)
        assert data["log_prior"]["latents"].shape == (1, 8, 5)
        assert data["posterior_predictive"]["x"].shape == (1, 8, 5, 6)

    def test_refuses(self):
        with pytest.raises(ConfigError, match="posterior = 'nuts'"):
            exported(posterior="nuts")
        with pytest.raises(ConfigError, match="num_warmup: posterior='guide' has no"):
            exported(num_warmup=3)
        with pytest.raises(DataError, match=r"labels has shape \(2,\)"):
            to_arviz(model(), torch.zeros(3, 4), labels=[0, 1])

    def test_leaves_the_process_as_it_was_and_repeats(self):
        with unchanged():
            first, second = exported(), exported()
        for group in groups_of(first):
            assert first[group].identical(second[group]), group


@pytest.mark.usefixtures("float64")
class TestNumbers:
    """The linear-Gaussian model: every group against its closed form."""

    def exported(self, encoder=None, **settings):
        truth = LinearGaussian()
        x = truth.sample(20)
        return truth, x, to_arviz(truth.vae(encoder or ExactEncoder(truth)), x, **settings)

    def test_log_weight_is_log_p_x_at_the_exact_guide(self):
        truth, x, data = self.exported(num_samples=30, predictive=False)
        weights = torch.from_numpy(data["sample_stats"]["log_weight"].values)
        torch.testing.assert_close(weights[0, 3], truth.log_evidence(x), rtol=1e-10, atol=0)
        sides = data["log_likelihood"]["x"] + data["log_prior"]["z"]
        np.testing.assert_allclose(sides - data["sample_stats"]["log_guide"], weights)
        assert np.isneginf(data["sample_stats"]["pareto_k"]).all()

    @pytest.mark.parametrize("posterior", ["guide", "sir", "hmc"])
    def test_densities_belong_to_the_draws(self, posterior):
        options = {"num_warmup": 6} if posterior == "hmc" else {}
        truth, x, data = self.exported(
            posterior=posterior, num_samples=20, predictive=False, **options
        )
        z = torch.from_numpy(data["posterior"]["z"].values)  # (C, S, N, D)
        log_prior = -0.5 * (z**2).sum(-1) - np.log(2 * np.pi)
        np.testing.assert_allclose(data["log_prior"]["z"], log_prior, rtol=1e-10)
        log_likelihood = truth.vae(ExactEncoder(truth)).decode(z).log_prob(x)
        np.testing.assert_allclose(data["log_likelihood"]["x"], log_likelihood.detach(), rtol=1e-10)
        log_guide = truth.posterior(x).log_prob(z)
        np.testing.assert_allclose(data["sample_stats"]["log_guide"], log_guide, rtol=1e-9)

    @pytest.mark.parametrize("posterior", ["sir", "hmc"])
    def test_chains_are_those_of_the_posterior_package(self, posterior):
        options = {"num_samples": 20} | ({"num_warmup": 6} if posterior == "hmc" else {})
        truth, x, data = self.exported(posterior=posterior, predictive=False, **options)
        exact = getattr(pv.posterior, posterior)(truth.vae(ExactEncoder(truth)), x, **options).draws
        np.testing.assert_array_equal(data["posterior"]["z"], exact)

    def test_sir_and_hmc_draw_the_posterior_where_the_guide_does_not(self):
        truth = LinearGaussian()
        v = torch.linalg.solve(truth.m, truth.weight.T)
        wide = AffineEncoder(v, truth.mean, torch.tensor([0.5, 0.5]))
        exact = truth.posterior(truth.sample(1)).variance[0]
        chains = {"num_samples": 75, "num_chains": 16, "num_warmup": 60}
        for posterior, options in (("sir", {"num_samples": 300}), ("hmc", chains)):
            _, _, data = self.exported(wide, posterior=posterior, predictive=False, **options)
            found = torch.from_numpy(data["posterior"]["z"].values).flatten(0, 1).var(0).mean(0)
            # 20 data × 300 draws of ESS > 1/3: relative error of a variance √(2/2000) = 3 %
            torch.testing.assert_close(found, exact, rtol=0.16, atol=0)
        guide = torch.tensor([0.5, 0.5])
        assert ((guide / exact - 1).abs() > 0.3).any()  # negative control

    def test_predictives_have_the_moments_of_the_model(self):
        truth, x, data = self.exported(num_samples=500)
        prior = torch.from_numpy(data["prior_predictive"]["x"].values).flatten(0, 2)  # (10 000, 5)
        sd = truth.covariance.diagonal().sqrt()
        assert ((prior.mean(0) - truth.mean).abs() < 5 * sd / 100).all()
        assert ((prior.std(0) / sd - 1).abs() < 5 / np.sqrt(20_000)).all()
        post = truth.posterior(x)
        mean = post.mean @ truth.weight.T + truth.mean
        within = truth.weight @ post.covariance_matrix[0] @ truth.weight.T
        sd = (within.diagonal() + truth.sigma**2).sqrt()
        found = torch.from_numpy(data["posterior_predictive"]["x"].values)[0]
        assert ((found.mean(0) - mean).abs() < 5 * sd / np.sqrt(500)).all()

    def test_posterior_predictive_belongs_to_the_draws_beside_it(self):
        truth, _, data = self.exported(num_samples=500)
        z = torch.from_numpy(data["posterior"]["z"].values)[0]
        x = torch.from_numpy(data["posterior_predictive"]["x"].values)[0]
        residual = x - (z @ truth.weight.T + truth.mean)
        # 50 000 numbers; with draws of another order z would add its own spread
        assert residual.std().item() == pytest.approx(truth.sigma, rel=5 / np.sqrt(100_000))


class TestCallsBeforeOne:
    """arviz < 1: one test for each call that a user would make."""

    def test_summary(self, az):
        table = az.summary(exported(), kind="stats")
        assert len(table) == NUM_DATA * 2
        assert "z[3, 1]" in table.index

    def test_summary_of_chains_has_r_hat(self, az):
        data = exported(posterior="hmc", num_warmup=40, predictive=False)
        assert (az.summary(data)["r_hat"] < 1.2).all()

    def test_plot_ppc(self, az):
        assert az.plot_ppc(exported(), num_pp_samples=5) is not None
        assert az.plot_ppc(exported(), group="prior", num_pp_samples=5) is not None

    def test_plot_pair(self, az):
        assert az.plot_pair(exported(), coords={"datum": [0]}) is not None

    def test_plot_forest(self, az):
        assert len(az.plot_forest(exported(), combined=True)) == 1

    def test_plot_posterior_and_prior(self, az):
        az.plot_posterior(exported(), coords={"datum": [0]})
        az.plot_dist_comparison(exported(), coords={"datum": [0]})

    @pytest.mark.parametrize("component", ["prior", "likelihood"])
    def test_psens_of_a_datum(self, az, component):
        found = az.psens(exported().sel(datum=[4]), component=component)
        assert found["z"].shape == (1, 2)
        assert (found["z"] > 0).all()

    def test_to_netcdf_and_back(self, az, tmp_path):
        data = exported()
        data.to_netcdf(str(tmp_path / "run.nc"))
        back = az.from_netcdf(str(tmp_path / "run.nc"))
        for group in groups_of(data):
            xr.testing.assert_equal(back[group], data[group])
        assert back.posterior.attrs == data.posterior.attrs

    def test_history_to_netcdf_and_back(self, az, tmp_path):
        data = history_to_arviz(trained())
        data.to_netcdf(str(tmp_path / "run.nc"))
        back = az.from_netcdf(str(tmp_path / "run.nc"))
        xr.testing.assert_equal(back["training"], data["training"])


class TestCallsFromOneOn:
    """arviz ≥ 1, by its packages arviz-stats and arviz-plots."""

    def test_to_netcdf_and_back(self, tree, tmp_path):
        tree.to_netcdf(tmp_path / "run.nc")
        with xr.open_datatree(tmp_path / "run.nc") as back:
            for group in groups_of(tree):
                xr.testing.assert_equal(back[group].to_dataset(), tree[group].to_dataset())

    def test_summary(self, tree):
        azs = pytest.importorskip("arviz_stats")
        table = azs.summary(tree, kind="stats")
        assert len(table) == NUM_DATA * 2

    def test_psense_of_a_datum(self, tree):
        azs = pytest.importorskip("arviz_stats")
        for group in ("prior", "likelihood"):
            found = azs.psense(tree.sel(datum=[4]), group=group)
            assert (found["z"] > 0).all()
            assert found["z"].shape == (1, 2)

    def test_psense_equals_our_own(self, tree):
        azs = pytest.importorskip("arviz_stats")
        from pyrovae.diagnostics import power_sensitivity

        z = torch.from_numpy(tree["posterior"]["z"].values)[0].double()
        log_prior = torch.from_numpy(tree["log_prior"]["z"].values)[0].double()
        ours = power_sensitivity(z, torch.zeros_like(log_prior), log_prior, delta=0.01)[4]
        theirs = azs.psense(tree.sel(datum=[4]), alphas=(1 / 1.01, 1.01), group="prior")
        # theirs has Pareto-smoothed the weights, within 3 % of 1, on 60 draws
        np.testing.assert_allclose(ours, theirs["z"].values[0], rtol=0.1)

    def test_plot_ppc_dist(self, tree, azp):
        azp.plot_ppc_dist(tree, num_samples=5, backend="matplotlib")
        azp.plot_ppc_dist(tree, group="prior_predictive", num_samples=5, backend="matplotlib")

    def test_plot_pair(self, tree, azp):
        # coords={"datum": [0]} fails in arviz-plots 0.8.0 for any data: a list of one
        azp.plot_pair(tree, coords={"datum": 0}, backend="matplotlib")

    def test_plot_forest(self, tree, azp):
        azp.plot_forest(tree, backend="matplotlib")

    def test_plot_prior_posterior(self, tree, azp):
        azp.plot_prior_posterior(tree, coords={"datum": [0]}, backend="matplotlib")


def trained(**settings):
    x = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    return pv.fit(model(), x, validation=x[:5], epochs=3, progress=False, **settings)


@pytest.fixture(params=["InferenceData", "DataTree"])
def container(request, monkeypatch):
    """The export's container, of arviz < 1 and of arviz ≥ 1, made in turn."""
    if request.param == "InferenceData":
        request.getfixturevalue("az")
    else:
        monkeypatch.setattr(arviz_io.container, "has_datatree", lambda: True)
    return request.param


def arrays(data, group):
    """The dataset of a group, from either container."""
    return data[group].to_dataset() if isinstance(data, xr.DataTree) else data[group]


class TestHistory:
    def test_the_flight_record_is_a_group_by_step(self, container):
        history = trained(batch_size=10, diagnostics_every=2)
        data = history_to_arviz(history)
        assert type(data).__name__ == container
        assert groups_of(data) == {"training", "monitor"}
        monitor = arrays(data, "monitor")
        assert monitor["step"].values.tolist() == [2, 4, 6]
        assert monitor["kl_per_dimension"].dims == ("step", "latent")
        for name in ("rate", "distortion", "active_units", "kl_per_dimension"):
            expected = [record[name] for record in history.monitor]
            np.testing.assert_array_equal(monitor[name], expected)
        assert groups_of(history_to_arviz(trained())) == {"training"}

    def test_what_a_flight_recorder_could_not_measure_is_nan(self):
        history = trained(diagnostics_every=1)
        history.monitor[1] |= {"rate": None}
        monitor = history_to_arviz(history)["monitor"]
        assert np.isnan(monitor["rate"]).values.tolist() == [False, True, False]

    def test_columns_by_epoch(self):
        history = trained()
        data = history_to_arviz(history)["training"]
        assert data["epoch"].values.tolist() == [1, 2, 3]
        for name in ("elbo", "reconstruction", "kl", "validation_elbo", "seconds"):
            np.testing.assert_array_equal(data[name], history[name])
        assert data.attrs["best_epoch"] == history.best_epoch

    def test_without_validation_there_is_nan(self):
        history = pv.fit(model(), torch.zeros(20, 4), epochs=1, progress=False)
        assert np.isnan(history_to_arviz(history)["training"]["validation_elbo"]).all()

    def test_an_empty_history(self):
        with pytest.raises(DataError, match="no epoch"):
            history_to_arviz(pv.History())


class TestPredictive:
    def samples(self, vae, x, **options):
        with pyro.get_param_store().scope():
            return Predictive(poutine.uncondition(vae.model), num_samples=9, **options)(x)

    def test_posterior_and_prior_draws_of_pyro(self):
        vae, x = model(), torch.zeros(5, 4)
        data = predictive_to_arviz(self.samples(vae, x, guide=vae.guide), x, labels=range(5))
        assert data["posterior"]["z"].shape == (1, 9, 5, 2)
        assert data["posterior_predictive"]["x"].dims == ("chain", "draw", "datum", "x_dim_0")
        assert data["constant_data"]["label"].values.tolist() == list(range(5))
        prior = predictive_to_arviz(self.samples(vae, x), group="prior")
        assert groups_of(prior) == {"prior", "prior_predictive"}

    def test_either_container_holds_the_same(self, container, tmp_path):
        """The call of Pyro's manual, its export, and the export read from a file."""
        vae, x = model(), torch.zeros(5, 4)
        samples = self.samples(vae, x, guide=vae.guide)
        data = pv.predictive_to_arviz(samples, x)
        assert type(data).__name__ == container
        assert groups_of(data) == {"posterior", "posterior_predictive", "observed_data"}
        z = arrays(data, "posterior")["z"]
        assert z.dims == ("chain", "draw", "datum", "latent")
        np.testing.assert_array_equal(z[0], samples["z"].detach())
        replicates = arrays(data, "posterior_predictive")["x"]
        np.testing.assert_array_equal(replicates[0], samples["x"].detach())
        data.to_netcdf(str(tmp_path / "draws.nc"))
        with xr.open_dataset(tmp_path / "draws.nc", group="posterior") as back:
            xr.testing.assert_equal(back["z"], z)

    def test_data_that_the_model_is_conditioned_on_are_no_replicates(self, container):
        vae, x = model(), torch.randn(5, 4)
        for num_samples, given in ((9, None), (9, x), (1, x)):
            with pyro.get_param_store().scope():
                samples = Predictive(vae.model, guide=vae.guide, num_samples=num_samples)(x)
            with pytest.warns(UserWarning, match="same data set in every draw.*\\n.*uncondition"):
                data = predictive_to_arviz(samples, given)
            assert "posterior_predictive" not in groups_of(data)
            assert arrays(data, "posterior")["z"].shape == (1, num_samples, 5, 2)

    def test_values_are_those_of_predictive(self):
        vae, x = model(), torch.zeros(5, 4)
        samples = self.samples(vae, x, guide=vae.guide, parallel=True)
        data = predictive_to_arviz(samples, x)
        np.testing.assert_array_equal(data["posterior"]["z"][0], samples["z"].detach())

    def test_refuses(self):
        with pytest.raises(ConfigError, match="group = 'predictions'"):
            predictive_to_arviz({"z": torch.zeros(2, 3)}, group="predictions")
        with pytest.raises(ConfigError, match="0 sites"):
            predictive_to_arviz({})
        with pytest.raises(DataError, match="different numbers of draws"):
            predictive_to_arviz({"z": torch.zeros(2, 3), "x": torch.zeros(4, 3)})


def test_a_comparison_is_what_arviz_compares():
    """The same order, differences and stacking weights as our own."""
    az = pytest.importorskip("arviz_stats" if arviz_io.has_datatree() else "arviz")
    generator = torch.Generator().manual_seed(0)
    log_px = {name: torch.randn(200, generator=generator).double() - 1 for name in ("a", "b", "c")}
    log_px["a"][:50] += 3
    found = pv.diagnostics.comparison.Comparison((), log_px)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table = az.compare(pv.comparison_to_arviz(found), method="stacking")
    elpd = table["elpd" if "elpd" in table else "elpd_loo"]
    assert list(table.index) == sorted(log_px, key=lambda name: -float(log_px[name].sum()))
    for name, values in log_px.items():
        assert elpd[name] == pytest.approx(float(values.sum()), rel=0.1)  # since 1.3 two digits
        assert table["weight"][name] == pytest.approx(found.stacking_weights()[name], abs=0.02)
