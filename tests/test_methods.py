"""Methods under contract: every name in a table of methods, and every kind of source.

A method of evidence or of the posterior joins its table in the package and a line in
`tests/contracts.py`: what it costs little to run it with, and the kind of latent that it takes.
"""

import dataclasses

import pytest
import torch
from contracts import CONTAINERS, EVIDENCE_METHODS, POSTERIOR_METHODS

import pyrovae as pv
from pyrovae import data, evidence, posterior
from pyrovae.errors import ConfigError

X = torch.tensor([[1.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 0.0]])


def model(latent):
    options = {"prior": "Bernoulli", "guide": "Bernoulli"} if latent == "discrete" else {}
    return pv.build((4,), latent_dim=2, hidden=(5,), seed=0, **options)


def test_every_method_and_source_is_under_contract(tmp_path):
    assert EVIDENCE_METHODS.keys() == evidence.METHODS.keys()
    assert POSTERIOR_METHODS.keys() == posterior.METHODS.keys()
    made = (make(tmp_path, X) for make in CONTAINERS.values())
    assert {type(data.open_source(x)) for x in made} == set(data.SOURCES.values())


@pytest.mark.parametrize("name", EVIDENCE_METHODS)
class TestEvidence:
    def test_is_within_its_error_of_the_exact_number(self, name):
        latent, options = EVIDENCE_METHODS[name]
        vae = model(latent)
        exact = {"continuous": "grid", "discrete": "enumerate"}[latent]
        expected = pv.log_evidence(vae, X, method=exact).log_px
        found = pv.log_evidence(vae, X, method=name, **options)
        # 5 standard errors; 1e-3 for the lower bounds' bias, which falls as the variance
        assert ((found.log_px - expected).abs() < 5 * found.std_error + 1e-3).all()
        assert ((found.lower <= found.log_px) & (found.log_px <= found.upper)).all()
        assert found.rows.tolist() == [0, 1]
        assert all(array.shape == (2,) for array in found[:-1])

    def test_the_name_is_the_object(self, name):
        latent, options = EVIDENCE_METHODS[name]
        method = evidence.METHODS[name](**options)
        by_name = pv.log_evidence(model(latent), X, method=name, **options)
        by_object = pv.log_evidence(model(latent), X, method=method)
        assert torch.equal(by_name.log_px, by_object.log_px)
        assert dataclasses.asdict(method) | options == dataclasses.asdict(method)

    def test_an_option_that_it_does_not_have_is_refused(self, name):
        latent, _ = EVIDENCE_METHODS[name]
        with pytest.raises(ConfigError, match=rf"particles is not an option of method='{name}'"):
            pv.log_evidence(model(latent), X, method=name, particles=3)

    def test_a_seed_makes_it_repeatable_and_the_callers_generator_stays(self, name):
        latent, options = EVIDENCE_METHODS[name]
        state = torch.get_rng_state()
        first, second = (
            pv.log_evidence(model(latent), X, method=name, seed=3, **options) for _ in range(2)
        )
        assert torch.equal(first.log_px, second.log_px)
        assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", POSTERIOR_METHODS)
def test_draws_have_the_posteriors_moments(name):
    """Against quadrature: 5 standard errors of a mean of ess draws."""
    vae, options = model("continuous"), POSTERIOR_METHODS[name]
    exact = pv.posterior.grid(vae, X, num_samples=20_000, seed=1)
    found = posterior.METHODS[name](vae, X, **options)
    assert found.draws.dim() == 4
    assert found.draws.shape[2:] == (2, 2)
    spread = exact.covariance.diagonal(dim1=1, dim2=2).sqrt()
    error = spread * (1 / found.ess[:, None] + 1 / 20_000).sqrt()
    assert ((found.mean - exact.mean).abs() < 5 * error).all()
