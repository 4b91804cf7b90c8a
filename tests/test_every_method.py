"""Every public method on every kind of program: it runs, or names the property that it needs.

The properties are those in the docstring of `pyrovae.programs`. Whether the numbers are right is
tested in test_any_program.py, test_shelf.py and test_supports.py.
"""

import re
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import pyro.distributions as dist
import pytest
import torch
from helpers import semi_supervised, with_global_latents
from programs import PROGRAMS, Affine, Switching, data, numbers
from test_supports import circular
from torch import nn

import pyrovae as pv
from pyrovae.errors import ConfigError

N = 6


class Case(NamedTuple):
    """A program, its data, and the properties that it has.

    has_globals: latents outside the plate "data"; uses_mask: its model does; is_vae: a `VAE`;
    is_continuous: so are its local latents; is_pathwise: its guide can be refined;
    is_trainable: it has parameters to train; is_elementwise: its likelihood factorizes over the
    numbers of a datum.
    """

    make: Callable[[], nn.Module]
    x: Any
    y: torch.Tensor | None = None
    has_globals: bool = False
    uses_mask: bool = True
    is_vae: bool = False
    is_continuous: bool = True
    is_pathwise: bool = True
    is_trainable: bool = True
    is_elementwise: bool = True


def topics():
    q = pv.guides.Dirichlet(3)
    prior = pv.priors.Fixed(dist.Dirichlet, concentration=torch.full((3,), 0.7))
    encoder = nn.Sequential(nn.Linear(5, q.num_features), q)
    return pv.programs.TopicVAE(prior, encoder, pv.programs.Topics(3, 5))


def sequences():
    encoder, decoder = Affine(0.6 * torch.eye(1)), Affine(torch.eye(1))
    return pv.programs.SequenceVAE(pv.programs.GaussianProcess(1), encoder, decoder)


def spike_and_slab():
    def density(w, s):
        mixture = dist.MixtureSameFamily(dist.Categorical(w), dist.Normal(torch.zeros_like(s), s))
        return mixture.to_event(1)

    vae = pv.build(4, latent_dim=1, seed=0)
    prior = pv.priors.Fixed(density, w=torch.ones(1, 2), s=torch.tensor([[0.05, 1.5]]))
    return pv.VAE(prior, vae.encoder, vae.decoder)


def decoder_as_a_prior():
    vae = pv.build((4,), latent_dim=2, seed=0)
    measurement = pv.programs.Measurement(vae.decoder, lambda x: x[..., :2], 0.3)
    return pv.VAE(vae.prior, pv.programs.PriorGuide(vae.prior), measurement)


BITS = (torch.arange(4 * N).reshape(N, 4) % 3 == 0).float()
OF_THE_SHELF = ("LadderVAE", "MixtureVAE", "MultimodalVAE", "DeepMarkovModel")
ONE_DRAW_AT_A_TIME = (
    "counts dimensions from the left",
    "a guide that counts from the left",
    "nested plate",
    "data in a nested plate",
)
CASES = {
    name: Case(
        row.make,
        data(name, N),
        has_globals=row.covariance is None,
        uses_mask=name in OF_THE_SHELF,
        is_pathwise=name not in ONE_DRAW_AT_A_TIME,
    )
    for name, row in PROGRAMS.items()
} | {
    "a Markov chain of classes": Case(
        Switching,
        {f"x_{t}": numbers(N)[:, t] for t in range(3)},
        uses_mask=False,
        is_elementwise=False,
    ),
    "TopicVAE": Case(
        topics, 1 + torch.arange(5.0 * N).reshape(N, 5) % 4, uses_mask=False, is_elementwise=False
    ),
    "SequenceVAE": Case(sequences, numbers(N)[..., None], torch.arange(3.0).expand(N, 3)),
    "SemiSupervisedVAE": Case(
        semi_supervised,
        BITS,
        torch.tensor([0, -1, 1, -1, 2, 0]),
        is_continuous=False,
        is_pathwise=False,
    ),
    "a Bayesian layer": Case(with_global_latents, BITS, has_globals=True),
    "VAE": Case(lambda: pv.build((4,), latent_dim=2, seed=0), BITS, is_vae=True),
    "VAE on the circle": Case(
        circular, numbers(N)[:, :2], is_vae=True, is_trainable=False, is_pathwise=False
    ),
    "VAE of spike and slab": Case(spike_and_slab, BITS, is_vae=True),
    "a decoder as a prior": Case(decoder_as_a_prior, BITS[:, :2], is_vae=True, is_trainable=False),
}


def first(x):
    return next(iter(x.values())) if isinstance(x, dict) else x


def mean_of_first(x):
    return first(x).double().mean()


def mask_of(x):
    masks = {name: torch.arange(v.numel()).reshape(v.shape) % 4 > 0 for name, v in by_site(x)}
    return masks if isinstance(x, dict) else masks["x"]


def by_site(x):
    return x.items() if isinstance(x, dict) else [("x", x)]


REFUSED = "refine (optimizes|computes|rebuilds)|outside the plate 'data'"
FEW = {"num_samples": 2}
SIMULATED = {"num_globals": 2}
# method → a call with (program, x, y), the property it needs, and what it says without it
METHODS = {
    "fit": (
        lambda p, x, y: pv.fit(p, x, y, epochs=1, progress=False),
        "is_trainable",
        "no trainable parameters|does not require grad",
    ),
    "elbo_terms": (lambda p, x, y: pv.elbo_terms(p, x, y), None, ""),
    "log_evidence, iwae": (
        lambda p, x, y: pv.log_evidence(p, x, y, num_samples=25, num_globals=2),
        None,
        "",
    ),
    "log_evidence, ais": (
        lambda p, x, y: pv.log_evidence(
            p, x, y, method="ais", **FEW, num_temperatures=2, num_globals=2
        ),
        "is_continuous",
        "is discrete",
    ),
    "log_evidence, grid": (
        lambda p, x, y: pv.log_evidence(p, x, y, method="grid", num_globals=2),
        "is_vae",
        "of a VAE",
    ),
    "log_evidence, enumerate": (
        lambda p, x, y: pv.log_evidence(p, x, y, method="enumerate", num_globals=2),
        "is_discrete_vae",
        "sums over",
    ),
    "bdmc": (
        lambda p, x, y: pv.evidence.bdmc(
            p, 2, y if y is None else y[:2], like=x, **FEW, num_temperatures=2, **SIMULATED
        ),
        "is_continuous",
        "is discrete",
    ),
    "posterior.sir": (
        lambda p, x, y: pv.posterior.sir(p, x, y, **FEW, num_proposals=25, num_globals=2),
        None,
        "",
    ),
    "posterior.hmc": (
        lambda p, x, y: pv.posterior.hmc(p, x, y, **FEW, num_warmup=2, num_chains=2, num_globals=2),
        "is_continuous",
        "is discrete",
    ),
    "posterior.grid": (lambda p, x, y: pv.posterior.grid(p, x, y, **FEW), "is_vae", "of a VAE"),
    "posterior.refine": (
        lambda p, x, y: pv.posterior.refine(p, x, y, num_steps=2),
        "is_refinable",
        REFUSED,
    ),
    "pareto_k": (lambda p, x, y: pv.diagnostics.pareto_k(p, x, y, num_samples=25), None, ""),
    "decompose_elbo": (lambda p, x, y: pv.diagnostics.decompose_elbo(p, x, y, **FEW), None, ""),
    "active_units": (lambda p, x, y: pv.diagnostics.active_units(p, x, y), None, ""),
    "collapsed_dimensions": (
        lambda p, x, y: pv.diagnostics.collapsed_dimensions(p, x, y),
        None,
        "",
    ),
    "inference_gaps": (
        lambda p, x, y: pv.diagnostics.inference_gaps(p, x, y, num_samples=25, num_steps=2),
        "is_refinable",
        REFUSED,
    ),
    "calibration": (
        lambda p, x, y: pv.diagnostics.calibration(
            p, N, y, like=x, num_draws=3, num_bins=2, **SIMULATED
        ),
        None,
        "",
    ),
    "prior_check": (
        lambda p, x, y: pv.diagnostics.prior_check(p, x, y, statistic=mean_of_first, **FEW),
        None,
        "",
    ),
    "posterior_check": (
        lambda p, x, y: pv.diagnostics.posterior_check(p, x, y, statistic=mean_of_first, **FEW),
        None,
        "",
    ),
    "aggregate_test": (
        lambda p, x, y: pv.diagnostics.aggregate_test(p, x, y, num_draws=9, num_permutations=19),
        "is_local",
        "outside the plate 'data'",
    ),
    "prior_sensitivity": (
        lambda p, x, y: pv.diagnostics.prior_sensitivity(p, x, y, num_samples=25),
        "is_local",
        "outside the plate 'data'",
    ),
    "feature_check": (
        lambda p, x, y: pv.diagnostics.feature_check(p, x, y, num_samples=25),
        "is_factorized",
        "factorizes over|all data share",
    ),
    "compare_priors": (
        lambda p, x, y: pv.diagnostics.compare_priors(
            {"it": p}, x, y, num_samples=25, num_globals=2
        ),
        None,
        "",
    ),
    "impute": (
        lambda p, x, y: pv.impute(p, x, y, mask_of(x), **FEW, num_proposals=25),
        "is_imputable",
        "does not use it|all data share",
    ),
    "to_arviz": (lambda p, x, y: pv.to_arviz(p, x, y, **FEW), None, ""),
}


def has(case, needed):
    derived = {
        None: True,
        "is_discrete_vae": False,  # `enumerate` has tests of its own
        "is_local": not case.has_globals,
        "is_refinable": case.is_pathwise and not case.has_globals,
        "is_imputable": case.uses_mask and not case.has_globals,
        "is_factorized": case.is_elementwise and not case.has_globals,
    }
    return derived[needed] if needed in derived else getattr(case, needed)


# the default run tries a program for each property; all of them are slow tests
BY_DEFAULT = ("AutoNormal", "MixtureVAE", "MultimodalVAE", "SemiSupervisedVAE", "VAE on the circle")


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in BY_DEFAULT else [pytest.mark.slow]) for name in CASES],
)
def test_every_method_runs_or_says_what_it_needs(name):
    """No cell is skipped: a method without its property raises a ConfigError that names it."""
    case, wrong = CASES[name], {}
    for method, (call, needed, message) in METHODS.items():
        torch.manual_seed(0)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # so few draws are a reason to warn
                call(case.make(), case.x, case.y)
        except (ConfigError, RuntimeError) as error:
            if has(case, needed) or not re.search(message, str(error)):
                wrong[method] = error
        else:
            if not has(case, needed):
                wrong[method] = f"ran, without {needed}"
    assert not wrong
