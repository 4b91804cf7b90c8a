"""Every public function takes every container, with the same result as for the dense tensor.

The tables cross: a container is a line in `CONTAINERS` (tests/contracts.py), a function one in
`FUNCTIONS` here. Results are equal to the bit, because all containers are read in the same chunks.
By default every function gets a container of each way of reading, and every container goes to a
function of each way of asking; `pytest -m slow` runs the other pairs.
"""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from contracts import CONTAINERS

import pyrovae as pv
from pyrovae.contract import validated
from pyrovae.errors import ConfigError, DataError

N, D = 12, 4
FAST = {"num_samples": 20, "memory_budget": 2**14}


def counts():
    """Return (N, D) counts in float32, with distinct rows."""
    generator = torch.Generator().manual_seed(0)
    return torch.poisson(3 * torch.rand(N, D, generator=generator), generator=generator)


def model(latent_dim=2):
    return pv.build((D,), latent_dim=latent_dim, hidden=(5,), likelihood="Poisson", seed=0)


def trained(vae, x):
    pv.fit(vae, x, epochs=1, batch_size=5, seed=1)
    return list(vae.parameters())


def line():
    """Return a model with one latent dimension, whose grid has few points."""
    return model(latent_dim=1)


def with_global_draws(function):
    def seeded(vae, x):
        torch.manual_seed(3)
        return function(vae, x)

    return seeded


FUNCTIONS = {
    "loss": with_global_draws(lambda vae, x: vae.loss(x)),
    "loss_terms": with_global_draws(lambda vae, x: vae.loss_terms(x)[:2]),
    "encode": lambda vae, x: vae.encode(x).mean,
    "reconstruct": lambda vae, x: vae.reconstruct(x, seed=1),
    "elbo_terms": lambda vae, x: pv.elbo_terms(vae, x, num_samples=3),
    "log_evidence, importance": lambda vae, x: pv.log_evidence(vae, x, num_samples=20),
    "log_evidence, subset": lambda vae, x: pv.log_evidence(vae, x, num_samples=20, num_data=5),
    "log_evidence, refined": lambda vae, x: pv.log_evidence(
        vae, x, method="refined", num_samples=20, num_steps=2
    ),
    "log_evidence, auto": lambda vae, x: pv.log_evidence(line(), x, method="auto")[:-1],
    "log_evidence, ais": lambda vae, x: pv.log_evidence(
        vae, x, method="ais", num_samples=2, num_temperatures=3, memory_budget=2**16
    ),
    "log_evidence, grid": lambda vae, x: pv.log_evidence(line(), x, method="grid"),
    "posterior.grid": lambda vae, x: pv.posterior.grid(line(), x, num_samples=3),
    "posterior.sir": lambda vae, x: pv.posterior.sir(vae, x, num_samples=3, num_proposals=30),
    "posterior.hmc": lambda vae, x: pv.posterior.hmc(vae, x, num_samples=2, num_warmup=1),
    "posterior.refine": lambda vae, x: pv.posterior.refine(vae, x, num_steps=2)[1:],
    "decompose_elbo": lambda vae, x: pv.diagnostics.decompose_elbo(vae, x, num_aggregate=9),
    "active_units": lambda vae, x: pv.diagnostics.active_units(vae, x),
    "collapsed_dimensions": lambda vae, x: pv.diagnostics.collapsed_dimensions(vae, x),
    "effective_latents": lambda vae, x: pv.diagnostics.effective_latents(vae, x)[:6],
    "prune": lambda vae, x: list(pv.prune(vae, x, dimensions=[1]).vae.state_dict().values()),
    "pareto_k": lambda vae, x: pv.diagnostics.pareto_k(vae, x, num_samples=30),
    "escalate": lambda vae, x: pv.diagnostics.escalate(
        vae, x, rows=torch.tensor([7, 2]), method="sir", num_samples=3, num_proposals=20
    ),
    "inference_gaps": lambda vae, x: pv.diagnostics.inference_gaps(
        vae, x, num_samples=30, num_steps=2
    )[:8],
    "local_coverage": lambda vae, x: pv.diagnostics.local_coverage(vae, x, n=3, num_draws=5),
    "posterior_calibration": lambda vae, x: pv.diagnostics.posterior_calibration(
        vae, x, n=3, num_draws=5
    )[:6],
    "feature_check": lambda vae, x: pv.diagnostics.feature_check(vae, x, num_samples=30),
    "typicality": lambda vae, x: pv.diagnostics.typicality(vae, x, num_replicates=20),
    "prior_check": lambda vae, x: pv.diagnostics.prior_check(vae, x, statistic=torch.mean),
    "posterior_check": lambda vae, x: pv.diagnostics.posterior_check(vae, x, statistic=torch.mean),
    "aggregate_test": lambda vae, x: pv.diagnostics.aggregate_test(vae, x, num_permutations=5),
    "prior_sensitivity": lambda vae, x: pv.diagnostics.prior_sensitivity(vae, x, num_samples=30),
    "compare_priors": lambda vae, x: pv.diagnostics.compare_priors(
        {"one": vae, "other": vae}, x, num_samples=20
    ).log_px["other"],
    "build": lambda vae, x: list(
        pv.build((D,), likelihood="Poisson", prior="VampPrior", data=x, seed=0).parameters()
    ),
    "to_arviz": lambda vae, x: pv.to_arviz(vae, x, num_samples=3)["posterior"]["z"].values,
    "refit_prior": lambda vae, x: pv.refit_prior(vae, x, pv.priors.LearnedNormal(2), epochs=1).gain,
}


# a container of each way of reading: converted at once, mapped, sparse, a table, by index, by batch
READ = {
    *("list", "npy, memory-mapped", "csr matrix", "pandas"),
    *("Dataset", "DataLoader, shuffled", "stream", "iterable of batches"),
}
# a function of each way of asking: all rows, chunks, chosen rows, names, batches of an epoch
ASK = {"loss", "log_evidence, importance", "log_evidence, subset", "to_arviz", "refit_prior"}


def pairs():
    for function, container in itertools.product(FUNCTIONS, CONTAINERS):
        is_quick = container in READ or function in ASK
        marks = () if is_quick else pytest.mark.slow
        yield pytest.param(function, container, marks=marks, id=f"{function}-{container}")


def arrays_of(found):
    """Return all arrays and numbers of a result, in order."""
    if isinstance(found, torch.Tensor):
        return [found.detach().numpy()]
    if isinstance(found, np.ndarray | float | int | str | type(None)):
        return [np.asarray(found)]
    if dataclasses.is_dataclass(found) or isinstance(found, dict):
        found = vars(found) if not isinstance(found, dict) else found
        return [array for value in found.values() for array in arrays_of(value)]
    return [array for value in found for array in arrays_of(value)]


@pytest.fixture(scope="module")
def dense():
    """Results of each function for the dense tensor, computed on first use."""
    found = {}

    def of(name):
        if name not in found:
            found[name] = arrays_of(FUNCTIONS[name](model(), counts()))
        return found[name]

    return of


@pytest.mark.parametrize(("function", "container"), list(pairs()))
def test_a_result_equals_that_of_the_dense_tensor(function, container, dense, tmp_path):
    found = arrays_of(FUNCTIONS[function](model(), CONTAINERS[container](tmp_path, counts())))
    for ours, expected in zip(found, dense(function), strict=True):
        np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize("container", CONTAINERS)
def test_rows_come_in_order_regardless_of_the_chunks(container, tmp_path):
    source = validated(model(), CONTAINERS[container](tmp_path, counts()))
    for size in (1, 5, N, 100):
        chunks = [batch.x for batch in source.read(size)]
        assert [len(chunk) for chunk in chunks[:-1]] == [size] * (len(chunks) - 1)
        assert torch.equal(torch.cat(chunks), counts())
    index = torch.tensor([7, 2, 2, 11])
    assert torch.equal(source.take(index).x, counts()[index])
    assert torch.equal(source.whole().x, counts())
    assert (source.count(), source.head(2).num_data) == (N, 2)


@pytest.mark.parametrize("container", CONTAINERS)
def test_a_bad_value_in_the_last_row_is_refused(container, tmp_path):
    bad = counts()
    bad[-1, 2] = -1
    with pytest.raises(DataError, match=r"= -1, but a Poisson likelihood needs whole numbers"):
        pv.elbo_terms(model(), CONTAINERS[container](tmp_path, bad))


def test_names_of_rows_and_columns_travel_with_the_data():
    import pandas as pd

    names = [f"cell{i}" for i in range(N)]
    frame = pd.DataFrame(counts().numpy(), index=names, columns=list("abcd"))
    source = validated(model(), frame)
    assert source.labels.columns == ("a", "b", "c", "d")
    parts = [batch.labels.rows.tolist() for batch in source.read(5)]
    assert parts == [names[:5], names[5:10], names[10:]]
    assert source.take(torch.tensor([3, 1])).labels.rows.tolist() == ["cell3", "cell1"]
    assert validated(model(), counts()).labels.rows is None


def test_a_sampler_without_a_known_order_is_refused_where_rows_matter():
    class Odd(torch.utils.data.Sampler):
        def __iter__(self):
            return iter(range(1, N, 2))

        def __len__(self):
            return N // 2

    loader = torch.utils.data.DataLoader(counts(), batch_size=3, sampler=Odd())
    with pytest.raises(ConfigError, match=r"with a Odd.*unknown.*\n?.*Pass the Dataset itself"):
        pv.log_evidence(model(), loader, num_samples=20)
    pv.fit(model(), loader, epochs=1)


def test_the_draws_of_the_export_are_those_of_elbo_terms():
    terms = pv.elbo_terms(model(), counts(), num_samples=5, seed=3)
    exported = pv.to_arviz(model(), counts(), num_samples=5, seed=3)
    np.testing.assert_array_equal(exported["posterior"]["z"].values[0], terms.latents["z"])


def test_names_are_coordinates_of_the_export():
    import pandas as pd

    index = pd.MultiIndex.from_product([["a", "b"], range(N // 2)])
    frame = pd.DataFrame(counts().numpy(), index=index, columns=list("wxyz"))
    exported = pv.to_arviz(model(), frame, labels=index, num_samples=2)
    assert exported["posterior"].coords["datum"].values[:2].tolist() == ["a, 0", "a, 1"]
    assert exported["observed_data"].coords["x_dim_0"].values.tolist() == list("wxyz")
    assert exported["constant_data"]["label"].values[-1] == "b, 5"
