"""The transformer in scikit-learn's own checks, pipelines and searches."""

import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.datasets import load_iris
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

import pyrovae as pv
from pyrovae.errors import ConfigError
from pyrovae.sklearn import VAETransformer

X = StandardScaler().fit_transform(load_iris().data)
DRAWS = "score_samples estimates log p(x) by draws, which differ with the other rows"


def quick(**settings):
    return VAETransformer(**{"epochs": 3, "num_samples": 50, "random_state": 0} | settings)


def test_it_is_an_estimator_of_scikit_learn():
    failures = {
        "check_methods_sample_order_invariance": DRAWS,
        "check_methods_subset_invariance": DRAWS,
    }
    found = check_estimator(quick(), expected_failed_checks=failures, on_fail="raise", on_skip=None)
    status = [check["status"] for check in found]
    assert status.count("passed") > 40
    assert status.count("xfail") == 2


def test_its_numbers_are_those_of_the_vae():
    model = quick(likelihood="HeteroscedasticNormal").fit(X)
    vae, x = model.vae_, torch.from_numpy(X)
    np.testing.assert_array_equal(model.transform(X), vae.encode(x).mean.detach().numpy())
    log_px = pv.log_evidence(vae, x, num_samples=50, seed=0).log_px
    np.testing.assert_array_equal(model.score_samples(X), log_px)
    z = model.transform(X[:4])
    mean = vae.decode(torch.from_numpy(z)).mean.detach().numpy()
    np.testing.assert_array_equal(model.inverse_transform(z), mean)
    assert model.sample(5, random_state=1).shape == (5, 4)
    assert list(model.get_feature_names_out()) == ["vaetransformer0", "vaetransformer1"]


def test_it_learns_more_than_the_columns_alone():
    model = VAETransformer(1, epochs=300, random_state=0).fit(X)
    independent = -0.5 * (X**2 + np.log(2 * np.pi)).sum(1).mean()
    assert model.score(X) > independent + 1


def test_missing_cells_are_imputed_and_others_are_left():
    hidden = np.random.default_rng(0).random(X.shape) < 0.2
    model = VAETransformer(1, epochs=300, num_samples=100, random_state=0)
    holes = np.where(hidden, np.nan, X)
    filled = model.fit(holes).impute(holes)
    np.testing.assert_array_equal(filled[~hidden], X[~hidden])
    error, of_mean = np.mean((filled - X)[hidden] ** 2), np.mean(X[hidden] ** 2)
    assert error < 0.6 * of_mean
    assert np.isfinite(model.transform(holes)).all()
    np.testing.assert_array_equal(model.impute(X), X)
    only_holes = np.column_stack([X, np.full(len(X), np.nan)])
    assert np.isfinite(quick().fit(only_holes).impute(only_holes)).all()


def test_in_a_pipeline_a_search_and_a_file():
    pipe = make_pipeline(StandardScaler(), quick())
    search = GridSearchCV(pipe, {"vaetransformer__latent_dim": [1, 2]}, cv=2)
    frame = pd.DataFrame(X, columns=list("abcd"))
    search.fit(frame)
    assert search.best_estimator_.transform(frame[:3]).shape[0] == 3
    model = quick().fit(X)
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.transform(X), model.transform(X))


def test_a_flow_guide_has_codes_from_draws():
    model = quick(guide="FlowGuide").fit(X)
    np.testing.assert_array_equal(model.transform(X), model.transform(X))


def test_errors_are_those_of_the_package():
    with pytest.raises(ConfigError, match="Did you mean 'VampPrior'"):
        quick(prior="VampPriors").fit(X)
