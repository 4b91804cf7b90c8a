"""Every public method on every kind of program: it runs, or names the property that it needs.

The properties are those in the docstring of `pyrovae.programs`, which includes the table of all
cells; after a change here, write it again: `PYTHONPATH=. python tests/test_every_method.py`.
Whether the numbers are right is tested in test_any_program.py, test_shelf.py and test_supports.py.
"""

import itertools
import re
import warnings
from collections.abc import Callable
from pathlib import Path
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
TABLE = Path(pv.__file__).parent / "programs" / "methods.md"
# property of a program → what a method that needs it says, in the table of the reference
PROPERTIES = {
    "trainable": "parameters to train",
    "continuous": "a continuous local latent, and discrete ones with few values",
    "line": "latents without angles",
    "pathwise": "a guide that declares its parameters and has pathwise gradients",
    "scored": "a guide without auxiliary sites, which has a density at given latents",
    "mask": "a model that uses the mask",
    "elementwise": "a likelihood that factorizes over the numbers of a datum",
    "binary": "a likelihood of zeros and ones",
    "VAE": "a `VAE`",
    "prunable": "a `VAE` of several latents: prior and guide factorize, linear layers at z",
    "discrete VAE": "a `VAE` with a discrete prior",
}


class Case(NamedTuple):
    """A program, its data, and the properties of `PROPERTIES` that it lacks."""

    make: Callable[[], nn.Module]
    x: Any
    y: torch.Tensor | None = None
    lacks: frozenset[str] = frozenset()


def case(make, x, y=None, *, lacks=(), is_vae=False):
    lacks = {*lacks, *([] if x is BITS else ["binary"])}
    is_discrete_vae = is_vae and "continuous" in lacks
    lacks = {
        *lacks,
        *(() if is_vae else ["VAE", "prunable"]),
        *(() if is_discrete_vae else ["discrete VAE"]),
    }
    assert lacks <= PROPERTIES.keys()
    return Case(make, x, y, frozenset(lacks))


def topics():
    q = pv.guides.Dirichlet(3)
    prior = pv.priors.Fixed(dist.Dirichlet, concentration=torch.full((3,), 0.7))
    encoder = nn.Sequential(nn.Linear(5, q.num_features), q)
    return pv.programs.TopicVAE(prior, encoder, pv.programs.Topics(3, 5))


def sequences():
    encoder, decoder = Affine(0.6 * torch.eye(1)), Affine(torch.eye(1))
    return pv.programs.SequenceVAE(pv.programs.GaussianProcess(1), encoder, decoder)


def not_at_random():
    vae = pv.build(3, latent_dim=1, likelihood="Normal", seed=0)
    missing = pv.programs.SelfMasking(3, sign=-1)
    return pv.programs.NotMissingAtRandomVAE(vae.prior, vae.encoder, vae.decoder, missing)


def spike_and_slab():
    def density(w, s):
        mixture = dist.MixtureSameFamily(dist.Categorical(w), dist.Normal(torch.zeros_like(s), s))
        return mixture.to_event(1)

    vae = pv.build(4, latent_dim=1, seed=0)
    prior = pv.priors.Fixed(density, w=torch.ones(1, 2), s=torch.tensor([[0.05, 1.5]]))
    return pv.VAE(prior, vae.encoder, vae.decoder)


def bits():
    return pv.build((4,), latent_dim=2, prior="Bernoulli", guide="Bernoulli", seed=0)


def decoder_as_a_prior():
    vae = pv.build((4,), latent_dim=2, seed=0)
    measurement = pv.programs.Measurement(vae.decoder, lambda x: x[..., :2], 0.3)
    return pv.VAE(vae.prior, pv.programs.PriorGuide(vae.prior), measurement)


BITS = (torch.arange(4 * N).reshape(N, 4) % 3 == 0).float()
OF_THE_SHELF = ("LadderVAE", "MixtureVAE", "MultimodalVAE", "DeepMarkovModel")
CASES = {
    name: case(
        row.make,
        data(name, N),
        lacks=[
            *([] if name in OF_THE_SHELF else ["mask"]),
            *(["scored"] if name == "EasyGuide" else []),
            *(["pathwise"] if name == "a class of the guide" else []),
        ],
    )
    for name, row in PROGRAMS.items()
} | {
    "a Markov chain of classes": case(
        Switching,
        {f"x_{t}": numbers(N)[:, t] for t in range(3)},
        lacks=["mask", "elementwise"],
    ),
    "TopicVAE": case(
        topics, 1 + torch.arange(5.0 * N).reshape(N, 5) % 4, lacks=["mask", "elementwise"]
    ),
    "SequenceVAE": case(sequences, numbers(N)[..., None], torch.arange(3.0).expand(N, 3)),
    "SemiSupervisedVAE": case(
        semi_supervised,
        BITS,
        torch.tensor([0, -1, 1, -1, 2, 0]),
        lacks=["pathwise"],
    ),
    "a Bayesian layer": case(with_global_latents, BITS),
    "NotMissingAtRandomVAE": case(not_at_random, numbers(N)),
    "VAE": case(lambda: pv.build((4,), latent_dim=2, seed=0), BITS, is_vae=True),
    "VAE on the circle": case(
        circular,
        numbers(N)[:, :2],
        lacks=["trainable", "pathwise", "line", "prunable"],
        is_vae=True,
    ),
    "VAE of bits": case(bits, BITS, lacks=["continuous", "pathwise", "prunable"], is_vae=True),
    "VAE of spike and slab": case(spike_and_slab, BITS, lacks=["prunable"], is_vae=True),
    "a decoder as a prior": case(
        decoder_as_a_prior, BITS[:, :2], lacks=["trainable", "prunable"], is_vae=True
    ),
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


REFUSED = "refine (optimizes|rebuilds)"
FEW = {"num_samples": 2}
SIMULATED = {"num_globals": 2}
# method → a call with (program, x, y), the properties it needs, and what it says without them
METHODS = {
    "fit": (
        lambda p, x, y: pv.fit(p, x, y, epochs=1, progress=False),
        ["trainable"],
        "no trainable parameters|does not require grad",
    ),
    "elbo_terms": (lambda p, x, y: pv.elbo_terms(p, x, y), [], ""),
    "log_evidence, importance": (
        lambda p, x, y: pv.log_evidence(p, x, y, num_samples=25, num_globals=2),
        [],
        "",
    ),
    "log_evidence, iwae": (
        lambda p, x, y: pv.log_evidence(p, x, y, method="iwae", num_samples=25, num_globals=2),
        [],
        "",
    ),
    "log_evidence, refined": (
        lambda p, x, y: pv.log_evidence(
            p, x, y, method="refined", num_samples=25, num_steps=2, num_globals=2
        ),
        ["continuous", "line"],
        "is discrete|is an angle",
    ),
    "log_evidence, auto": (
        lambda p, x, y: pv.log_evidence(
            p, x, y, method="auto", num_samples=25, num_globals=2, max_evaluations=2000
        ),
        [],
        "",
    ),
    "log_evidence, ais": (
        lambda p, x, y: pv.log_evidence(
            p, x, y, method="ais", **FEW, num_temperatures=2, num_globals=2
        ),
        ["continuous"],
        "is discrete",
    ),
    "log_evidence, grid": (
        lambda p, x, y: pv.log_evidence(p, x, y, method="grid", num_globals=2),
        ["VAE", "continuous"],
        "of a VAE|is discrete",
    ),
    "log_evidence, enumerate": (
        lambda p, x, y: pv.log_evidence(p, x, y, method="enumerate", num_globals=2),
        ["discrete VAE"],
        "sums over",
    ),
    "bdmc": (
        lambda p, x, y: pv.evidence.bdmc(
            p, 2, y if y is None else y[:2], like=x, **FEW, num_temperatures=2, **SIMULATED
        ),
        ["continuous"],
        "is discrete",
    ),
    "posterior.sir": (
        lambda p, x, y: pv.posterior.sir(p, x, y, **FEW, num_proposals=25, num_globals=2),
        [],
        "",
    ),
    "posterior.hmc": (
        lambda p, x, y: pv.posterior.hmc(p, x, y, **FEW, num_warmup=2, num_chains=2, num_globals=2),
        ["continuous"],
        "is discrete",
    ),
    "posterior.grid": (
        lambda p, x, y: pv.posterior.grid(p, x, y, **FEW),
        ["VAE", "continuous"],
        "of a VAE|is discrete",
    ),
    "posterior.refine": (
        lambda p, x, y: pv.posterior.refine(p, x, y, num_steps=2),
        ["pathwise"],
        REFUSED,
    ),
    "pareto_k": (lambda p, x, y: pv.diagnostics.pareto_k(p, x, y, num_samples=25), [], ""),
    "decompose_elbo": (lambda p, x, y: pv.diagnostics.decompose_elbo(p, x, y, **FEW), [], ""),
    "active_units": (lambda p, x, y: pv.diagnostics.active_units(p, x, y), [], ""),
    "collapsed_dimensions": (
        lambda p, x, y: pv.diagnostics.collapsed_dimensions(p, x, y),
        [],
        "",
    ),
    "effective_latents": (
        lambda p, x, y: pv.diagnostics.effective_latents(p, x, y, num_resamples=9),
        [],
        "",
    ),
    "prune": (
        lambda p, x, y: pv.prune(p, x, y, dimensions=[0], num_samples=25),
        ["prunable"],
        "prune cut|prune cannot cut|are to be removed",
    ),
    "inference_gaps": (
        lambda p, x, y: pv.diagnostics.inference_gaps(
            p, x, y, num_samples=25, num_steps=2, num_globals=2
        ),
        ["pathwise"],
        REFUSED,
    ),
    "calibration": (
        lambda p, x, y: pv.diagnostics.calibration(
            p, N, y, like=x, num_draws=3, num_bins=2, **SIMULATED
        ),
        ["scored"],
        "its density at given latents is unknown",
    ),
    "coverage": (
        lambda p, x, y: pv.diagnostics.coverage(p, N, y, like=x, num_draws=3, **SIMULATED),
        [],
        "",
    ),
    "local_coverage": (
        lambda p, x, y: pv.diagnostics.local_coverage(p, x, y, n=4, num_draws=3, **SIMULATED),
        ["scored"],
        "its density at given latents is unknown",
    ),
    "posterior_calibration": (
        lambda p, x, y: pv.diagnostics.posterior_calibration(
            p, x, y, n=4, num_draws=3, **SIMULATED
        ),
        ["scored"],
        "its density at given latents is unknown",
    ),
    "prior_check": (
        lambda p, x, y: pv.diagnostics.prior_check(p, x, y, statistic=mean_of_first, **FEW),
        [],
        "",
    ),
    "posterior_check": (
        lambda p, x, y: pv.diagnostics.posterior_check(p, x, y, statistic=mean_of_first, **FEW),
        [],
        "",
    ),
    "aggregate_test": (
        lambda p, x, y: pv.diagnostics.aggregate_test(
            p, x, y, num_draws=9, num_permutations=19, num_globals=2
        ),
        [],
        "",
    ),
    "prior_sensitivity": (
        lambda p, x, y: pv.diagnostics.prior_sensitivity(p, x, y, num_samples=25, num_globals=2),
        [],
        "",
    ),
    "feature_check": (
        lambda p, x, y: pv.diagnostics.feature_check(p, x, y, num_samples=25, num_globals=2),
        ["elementwise"],
        "factorizes over",
    ),
    "typicality": (
        lambda p, x, y: pv.diagnostics.typicality(p, x, y, num_replicates=20, **FEW, num_globals=2),
        [],
        "",
    ),
    "binary_calibration": (
        lambda p, x, y: pv.diagnostics.binary_calibration(
            p, x, y, num_samples=25, num_globals=2, num_resamples=20
        ),
        ["binary", "elementwise"],
        "zeros and ones|factorizes over",
    ),
    "compare_priors": (
        lambda p, x, y: pv.diagnostics.compare_priors(
            {"it": p}, x, y, num_samples=25, num_globals=2
        ),
        [],
        "",
    ),
    "impute": (
        lambda p, x, y: pv.impute(p, x, y, mask_of(x), **FEW, num_proposals=25),
        ["mask"],
        "does not use it",
    ),
    "to_arviz": (lambda p, x, y: pv.to_arviz(p, x, y, **FEW), [], ""),
}


# the table of the reference has a part for each
GROUPS = {
    "Training, comparison and export": (
        "fit",
        "elbo_terms",
        "compare_priors",
        "impute",
        "to_arviz",
    ),
    "Evidence": (
        "log_evidence, importance",
        "log_evidence, iwae",
        "log_evidence, refined",
        "log_evidence, ais",
        "log_evidence, auto",
        "log_evidence, grid",
        "log_evidence, enumerate",
        "bdmc",
        "pareto_k",
    ),
    "Posterior": (
        "posterior.sir",
        "posterior.hmc",
        "posterior.grid",
        "posterior.refine",
        "inference_gaps",
    ),
    "Diagnostics": (
        "decompose_elbo",
        "active_units",
        "collapsed_dimensions",
        "effective_latents",
        "prune",
        "aggregate_test",
        "prior_sensitivity",
    ),
    "Checks of the guide": (
        "calibration",
        "coverage",
        "local_coverage",
        "posterior_calibration",
    ),
    "Checks of the model": (
        "prior_check",
        "posterior_check",
        "feature_check",
        "binary_calibration",
        "typicality",
    ),
}


def missing(case, method):
    """Return the property that the program lacks for the method, or None."""
    return next((name for name in METHODS[method][1] if name in case.lacks), None)


# the default run tries a program for each property; all of them are slow tests
BY_DEFAULT = ("AutoNormal", "MixtureVAE", "MultimodalVAE", "SemiSupervisedVAE", "VAE on the circle")


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in BY_DEFAULT else [pytest.mark.slow]) for name in CASES],
)
def test_every_method_runs_or_says_what_it_needs(name):
    """No cell is skipped: a method without its property raises a ConfigError that names it."""
    case, wrong = CASES[name], {}
    for method, (call, _, message) in METHODS.items():
        lacking = missing(case, method)
        torch.manual_seed(0)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # so few draws are a reason to warn
                call(case.make(), case.x, case.y)
        except (ConfigError, RuntimeError) as error:
            if lacking is None or not re.search(message, str(error)):
                wrong[method] = error
        else:
            if lacking is not None:
                wrong[method] = f"ran, without {lacking}"
    assert not wrong


def table():
    """Return all cells in Markdown, a table for each group of methods."""
    lines = [f"- *{name}*: {meaning}" for name, meaning in PROPERTIES.items()]
    for group, methods in GROUPS.items():
        heads = ["program", *(f"`{method}`" for method in methods)]
        lines += ["", f"**{group}**", "", row_of(heads), row_of(["---"] * len(heads))]
        for name, of in CASES.items():
            lines.append(row_of([name, *(missing(of, method) or "✓" for method in methods)]))
    return "\n".join([*lines, ""])


def row_of(cells):
    return f"| {' | '.join(cells)} |"


def test_the_table_of_the_reference_is_this_one():
    """After a change of the table: `PYTHONPATH=. python tests/test_every_method.py`."""
    assert sorted(itertools.chain(*GROUPS.values())) == sorted(METHODS)
    assert TABLE.read_text(encoding="utf-8") == table()


if __name__ == "__main__":
    TABLE.write_text(table(), encoding="utf-8")
