"""Validation: what each public function does with bad data and bad settings.

After every error nothing has changed: parameters, gradients, generators, Pyro's
store and validation, and the train/eval modes are as before the call (`fingerprint`).
"""

import functools
import hashlib
import pickle
import random
import subprocess
import sys

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import bits, small_vae
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import pyrovae as pv
from pyrovae.errors import ConfigError, DataError


def fingerprint(program):
    """Return a hash of everything that a refused call must leave unchanged."""
    store = pyro.get_param_store()
    state = (
        [(n, p.detach().numpy().tobytes(), id(p)) for n, p in program.named_parameters()],
        [(n, b.numpy().tobytes()) for n, b in program.named_buffers()],
        [None if p.grad is None else p.grad.numpy().tobytes() for p in program.parameters()],
        [m.training for m in program.modules()],
        [(n, p.detach().numpy().tobytes(), id(store._params[n])) for n, p in store.items()],
        torch.get_rng_state().numpy().tobytes(),
        np.random.get_state()[1].tobytes(),  # noqa: NPY002
        random.getstate(),
        [part.util.is_validation_enabled() for part in (dist, pyro.infer, pyro.poutine)],
        torch.distributions.Distribution._validate_args,
        torch.is_grad_enabled(),
    )
    return hashlib.sha256(pickle.dumps(state)).hexdigest()


@pytest.fixture(autouse=True)
def _a_process_in_use():
    """Generators in mid-stream, and a parameter of the caller in Pyro's store."""
    pyro.param("theirs", torch.ones(2))
    torch.rand(3), np.random.rand(3), random.random()  # noqa: NPY002


class ContinuousBernoulli(nn.Module):
    def forward(self, features):
        return dist.ContinuousBernoulli(logits=features).to_event(1)


class Poisson(nn.Module):
    def forward(self, features):
        return dist.Poisson(features.exp()).to_event(1)


def vae_in_use(likelihood="Bernoulli"):
    """A VAE of (4,) in train mode, its encoder's hidden layer frozen in eval mode."""
    heads = {"ContinuousBernoulli": ContinuousBernoulli(), "Poisson": Poisson()}
    built = "Normal" if likelihood == "Normal" else "Bernoulli"
    vae = pv.build((4,), latent_dim=2, hidden=(8,), likelihood=built, seed=0)
    if likelihood in heads:
        vae.decoder[1] = heads[likelihood]
    vae.encoder[0][0].eval()
    return vae


def one_bad(value, dtype=torch.float32):
    """Return binary data that are valid except for one value in the last row."""
    x = bits(6).to(dtype)
    x[5, 3] = value
    return x


ENTRIES = {
    "fit": lambda vae, *data: pv.fit(vae, *data, epochs=1),
    "loss": lambda vae, *data: vae.loss(*data),
    "loss_terms": lambda vae, *data: vae.loss_terms(*data),
    "encode": lambda vae, *data: vae.encode(*data),
    "reconstruct": lambda vae, *data: vae.reconstruct(*data),
    "elbo_terms": lambda vae, *data: pv.elbo_terms(vae, *data),
}

HALF = torch.full((6, 4), 0.5)
FRAME = pd.DataFrame({"a": [0], "b": [1], "c": [1], "d": ["u"]})
NULLABLE = FRAME.assign(d=pd.array([None], dtype="Int64"))

# name → likelihood, (x, y, mask), text of the error
BAD_DATA = {
    "gray": ("Bernoulli", (one_bad(0.47),), r"^x\[5, 3\] = 0.47.*\{0, 1\}[\s\S]*binarize"),
    "gray, remedy": (
        "Bernoulli",
        (one_bad(0.47),),
        r"datasets\.binarize.*ContinuousBernoulli",
    ),
    "bytes": ("Bernoulli", (one_bad(255, torch.uint8),), r"= 255[\s\S]*binarize\(x / 255\)"),
    "signed values": ("Bernoulli", (one_bad(-0.9),), r"ranges from -0.9 to 1"),
    "signed values, continuous": ("ContinuousBernoulli", (one_bad(-0.9),), r"\[0, 1\].*from -0.9"),
    "negative count": ("Poisson", (one_bad(-1),), r"^x\[5, 3\] = -1.*whole numbers ≥ 0"),
    "fractional count": ("Poisson", (one_bad(2.5),), r"^x\[5, 3\] = 2.5"),
    "large integers": ("Poisson", (one_bad(2**24 + 1, torch.int64),), r"= 16777217,.*not exact"),
    "in float64": (
        "Poisson",
        (one_bad(2**24 + 1, torch.float64),),
        r"= 16777217,.*not exact",
    ),
    "in float32": (
        "Poisson",
        (one_bad(2**25),),
        r"= 33554432,.*not exact[\s\S]*vae\.double",
    ),
    "NaN": ("Normal", (one_bad(np.nan),), r"^x\[5, 3\] = nan.*\(1 of 24[\s\S]*mask="),
    "NaN, Bernoulli": ("Bernoulli", (one_bad(np.nan),), r"^x\[5, 3\] = nan"),
    "inf": ("Normal", (one_bad(np.inf),), r"^x\[5, 3\] = inf.*finite"),
    "-inf": ("Normal", (one_bad(-np.inf),), r"^x\[5, 3\] = -inf.*finite"),
    "inf in float32": (
        "Normal",
        (one_bad(1e300, torch.float64),),
        r"overflows torch.float32[\s\S]*Standardize x",
    ),
    "NaN outside the mask": (
        "Normal",
        (one_bad(np.nan), None, torch.eye(6, 4) == 0),
        r"^x\[5, 3\] = nan",
    ),
    "flat mask": (
        "Bernoulli",
        (bits(6), None, torch.ones(6)),
        r"mask has shape \(6,\)",
    ),
    "mask that would broadcast": (
        "Bernoulli",
        (bits(6), None, torch.ones(6, 1)),
        r"\(6, 1\), but x has \(6, 4",
    ),
    "mask of halves": ("Bernoulli", (bits(6), None, HALF), r"^mask\[0, 0\] = 0.5"),
    "inverted mask": ("Bernoulli", (bits(6), None, torch.zeros(6, 4)), r"no observed entries"),
    "no rows": ("Bernoulli", (torch.zeros(0, 4),), r"N = 0"),
    "one datum": ("Bernoulli", (bits(6)[0],), r"batch dim: x\[None\]"),
    "a number": ("Bernoulli", (torch.tensor(1.0),), r"x\[None\]|\(N, 4\)"),
    "three wide": ("Bernoulli", (torch.ones(6, 3),), r"\(3,\)[\s\S]*\(4,\)"),
    "five wide": ("Bernoulli", (torch.ones(6, 5),), r"\(5,\)[\s\S]*\(4,\)"),
    "images": ("Bernoulli", (torch.ones(6, 1, 2, 2),), r"x\.reshape\(-1, 4\)"),
    "complex": ("Bernoulli", (bits(6).to(torch.complex64),), r"complex64"),
    "sparse": ("Bernoulli", (bits(6).to_sparse(),), r"sparse_coo"),
    "objects": ("Bernoulli", (bits(6).numpy().astype(object),), r"dtype object"),
    "strings": ("Bernoulli", (bits(6).numpy().astype(str),), r"dtype <U"),
    "text column": ("Bernoulli", (FRAME,), r"column 'd'"),
    "nullable column": ("Bernoulli", (NULLABLE,), r"column 'd'.*missing"),
    "y of other length": ("Bernoulli", (bits(6), torch.ones(5)), r"y has shape \(5,\).*6 rows"),
    "y NaN": ("Bernoulli", (bits(6), torch.full((6,), torch.nan)), r"^y\[0\] = nan"),
    "y strings": ("Bernoulli", (bits(6), ["u"] * 6), r"names of classes|no part of this VAE sees"),
}


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_data_are_refused_before_anything_changes(case, entry):
    likelihood, data, match = BAD_DATA[case]
    vae = vae_in_use(likelihood)
    before = fingerprint(vae)
    with pytest.raises(DataError, match=match) as caught:
        ENTRIES[entry](vae, *data)
    assert len(str(caught.value).splitlines()) <= 6
    assert "tensor(" not in str(caught.value)
    assert fingerprint(vae) == before


BAD_X = {case: row for case, row in BAD_DATA.items() if isinstance(row[1][0], torch.Tensor)}
BAD_X = {case: row for case, row in BAD_X.items() if len(row[1]) == 1 and row[1][0].dim() > 1}
BAD_X.pop("sparse")  # a TensorDataset does not take a sparse tensor


@pytest.mark.parametrize("case", BAD_X)
def test_bad_data_are_refused_in_a_loader_and_as_validation_too(case):
    likelihood, (x,), _ = BAD_X[case]
    vae = vae_in_use(likelihood)
    before = fingerprint(vae)
    loader = DataLoader(TensorDataset(x), batch_size=4)
    for data, held_out in (
        (TensorDataset(x), None),
        (loader, None),
        (bits(6), x),
        (bits(6), loader),
    ):
        with pytest.raises(DataError):
            pv.fit(vae, data, validation=held_out, epochs=1)
        assert fingerprint(vae) == before


BAD_SETTINGS = {
    "latent_dim 0": (lambda vae: pv.build((4,), latent_dim=0), "latent_dim = 0"),
    "latent_dim -1": (lambda vae: pv.build((4,), latent_dim=-1), "latent_dim = -1"),
    "latent_dim 2.0": (lambda vae: pv.build((4,), latent_dim=2.0), r"latent_dim = 2\.0"),
    "latent_dim '2'": (lambda vae: pv.build((4,), latent_dim="2"), "latent_dim = '2'"),
    "latent_dim None": (lambda vae: pv.build((4,), latent_dim=None), "latent_dim = None"),
    "latent_dim a list": (lambda vae: pv.build((4,), latent_dim=[2, 2]), "latent_dim"),
    "guide": (lambda vae: pv.guides.DiagonalNormal(0), "latent_dim = 0"),
    "prior": (lambda vae: pv.priors.StandardNormal(2.5), r"latent_dim = 2\.5"),
    "hidden": (lambda vae: pv.build((4,), hidden=(0,)), "= 0"),
    "beta": (lambda vae: pv.objectives.BetaELBO(-0.1), "beta = -0.1"),
    "beta NaN": (lambda vae: pv.objectives.BetaELBO(float("nan")), "beta = nan"),
    "particles": (lambda vae: pv.objectives.TraceELBO(0), "num_particles = 0"),
    "num_samples": (lambda vae: pv.elbo_terms(vae, bits(6), num_samples=0), "num_samples = 0"),
    "terms seed": (lambda vae: pv.elbo_terms(vae, bits(6), seed=-1), "seed = -1"),
    "sample n": (lambda vae: vae.sample(0), "n = 0"),
    "sample seed": (lambda vae: vae.sample(2, seed=2**64), "seed = "),
    "build seed": (lambda vae: pv.build((4,), seed=1.5), r"seed = 1\.5"),
    "reconstruct seed": (lambda vae: vae.reconstruct(bits(6), seed=-1), "seed = -1"),
}
BAD_FIT = {
    "learning_rate": [0.0, -1e-3, float("nan"), float("inf"), "1e-3", None],
    "epochs": [-1, 1.0, "3", None],
    "batch_size": [0, -4, 2.5, None],
    "patience": [0, 1.5],
    "seed": [-1, 2**64, 0.0, "0"],
    "objective": [pv.objectives.TraceELBO, "elbo", lambda vae: 0.0],
}
for name, values in BAD_FIT.items():
    for value in values:
        BAD_SETTINGS[f"fit {name} {value!r:.24}"] = (
            lambda vae, name=name, value=value: pv.fit(vae, bits(6), **{name: value}),
            f"^{name} (= |is (a|the class) )",
        )


@pytest.mark.parametrize("case", BAD_SETTINGS)
def test_bad_settings_are_refused_before_anything_changes(case):
    call, match = BAD_SETTINGS[case]
    vae = small_vae()
    before = fingerprint(vae)
    with pytest.raises(ConfigError, match=match) as caught:
        call(vae)
    assert len(str(caught.value).splitlines()) <= 6
    assert fingerprint(vae) == before


def test_real_numbers_are_rounded_and_a_float64_model_takes_large_counts():
    large = one_bad(2**24 + 1, torch.float64)
    assert vae_in_use("Normal").encode(large).mean.isfinite().all()
    assert vae_in_use("Poisson").double().encode(large.long()).mean.isfinite().all()


def test_a_numpy_integer_is_a_whole_number_for_parts_too():
    assert pv.build((4,), latent_dim=np.int64(2)).prior.loc.shape == (2,)


SCRIPT = """
import sys, types, torch, pyrovae as pv
# optimizers import it only to be skipped by torch.compile; -O compiles it anew for 8 seconds
torch._dynamo = sys.modules["torch._dynamo"] = types.SimpleNamespace(disable=lambda f, *_, **__: f)
from pyrovae.errors import ConfigError, DataError
vae = pv.build((4,), latent_dim=2, hidden=(8,), seed=0)
for x in (torch.ones(4), torch.ones(6, 1, 4), torch.ones(6, 5)):  # Pyro's checks are off
    try:
        vae.model(x)
    except DataError:
        print("refused")
before = [p.detach().clone() for p in vae.parameters()], torch.get_rng_state()
nan, bad_mask = torch.full((3, 4), torch.nan), torch.full((3, 4), 0.5)
for data in (
    (torch.full((3, 4), 0.5),), (torch.full((3, 4), 255),), (nan,), (torch.ones(4),),
    (torch.ones(3, 5),), (torch.ones(0, 4),), (torch.ones(3, 4), None, bad_mask),
):
    for call in (lambda *d: pv.fit(vae, *d), vae.loss, lambda *d: pv.elbo_terms(vae, *d)):
        try:
            call(*data)
        except DataError:
            print("refused")
for setting in ({"learning_rate": -1.0}, {"epochs": -1}, {"seed": -1}, {"batch_size": 0}):
    try:
        pv.fit(vae, torch.ones(3, 4), **setting)
    except ConfigError:
        print("refused")
same = all(torch.equal(p, b) for p, b in zip(vae.parameters(), before[0]))
print(__debug__, same and torch.equal(torch.get_rng_state(), before[1]))
"""


def test_checks_survive_python_minus_O():
    run = subprocess.run(
        [sys.executable, "-O", "-c", SCRIPT], capture_output=True, text=True, check=False
    )
    assert run.stdout.split() == ["refused"] * (7 * 3 + 3 + 4) + ["False", "True"], run.stderr


def test_two_sites_of_one_name_are_refused():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.loc = nn.Parameter(torch.zeros(()))

        def model(self, x, y=None, mask=None):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(self.loc, 1.0))
                pyro.sample("z", dist.Normal(self.loc, 1.0))

        guide = model

    program = Twice()
    before = fingerprint(program)
    for call in (pv.fit, pv.elbo_terms):
        with pytest.raises((RuntimeError, ConfigError), match="sites named 'z'"):
            call(program, bits(6))
        assert fingerprint(program) == before


def test_a_program_without_a_site_x_is_refused():
    class NoX(nn.Module):
        def __init__(self):
            super().__init__()
            self.loc = nn.Parameter(torch.zeros(()))

        def model(self, x, y=None, mask=None):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(self.loc, 1.0))
                pyro.sample("pixels", dist.Bernoulli(logits=torch.zeros(4)).to_event(1), obs=x)

        def guide(self, x, y=None, mask=None):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(self.loc, 1.0))

    with pytest.raises(ConfigError, match="x"):
        pv.fit(NoX(), bits(6))


@pytest.mark.parametrize("entry", ["fit", "loss", "elbo_terms"])
@pytest.mark.parametrize("width", [1, 3])
def test_a_prior_of_another_width_is_named(width, entry):
    """With width 3, the decoder fails first, on draws from the prior, but is not the cause."""
    vae = small_vae()
    vae.prior = pv.priors.StandardNormal(width)
    if width == 1:
        vae.decoder[0][0] = nn.Linear(1, 8)
    before = fingerprint(vae)
    with pytest.raises(ConfigError, match=rf"p\(z\) is over shape \({width},\), but q.*\(2,\)"):
        ENTRIES[entry](vae, bits(6))
    assert fingerprint(vae) == before


def outcomes(vae, x, mask=None):
    """Loss, q(z|x), gradients, elbo_terms and trained weights, all from the same seed."""
    torch.manual_seed(1)
    loss = vae.loss(x, mask=mask)
    gradients = torch.autograd.grad(loss.sum(), list(vae.parameters()))
    q_z = vae.encode(x, mask=mask)
    terms = pv.elbo_terms(vae, x, mask=mask, num_samples=2)
    history = pv.fit(vae, x, mask=mask, epochs=2, batch_size=4, learning_rate=0.1)
    arrays = [loss, q_z.mean, q_z.stddev, *gradients, *terms[:3], *vae.parameters()]
    return [a.detach() for a in arrays] + [torch.tensor(history["elbo"])]


def assert_bitwise_equal(a, b):
    assert all(torch.equal(u, v) for u, v in zip(a, b, strict=True))
    assert all(torch.isfinite(u).all() for u in a)


def some_mask():
    return torch.rand(6, 4, generator=torch.Generator().manual_seed(2)) > 0.4


@functools.cache
def outcomes_of_ones(likelihood):
    """Outcomes where the unobserved cells hold 1, with the mask and without it."""
    x = bits(6).where(some_mask(), 1.0)
    masks = some_mask(), torch.ones(6, 4, dtype=torch.bool)
    return [outcomes(vae_in_use(likelihood), x, mask) for mask in masks]


@pytest.mark.parametrize("likelihood", ["Bernoulli", "Normal", "ContinuousBernoulli", "Poisson"])
@pytest.mark.parametrize("filler", [np.nan, np.inf, -np.inf, -1.0, 0.25, 3e38])
def test_the_value_of_an_unobserved_cell_has_no_effect(likelihood, filler):
    mask = some_mask()
    filled = outcomes(vae_in_use(likelihood), bits(6).where(mask, filler), mask)
    ones, other = outcomes_of_ones(likelihood)
    assert_bitwise_equal(ones, filled)
    assert not torch.equal(ones[0], other[0])  # the mask itself does matter


def test_a_fully_masked_row_has_log_likelihood_zero():
    mask = torch.ones(6, 4, dtype=torch.bool)
    mask[2] = False
    terms = small_vae().loss_terms(bits(6), mask=mask)
    assert terms.reconstruction[2] == 0
    assert (terms.reconstruction[[0, 1, 3, 4, 5]] > 0).all()
    assert pv.elbo_terms(small_vae(), bits(6), mask=mask).log_likelihood[0, 2] == 0
    assert len(pv.fit(small_vae(), bits(6), mask=mask, epochs=1)) == 1


def test_a_fully_masked_row_can_be_a_whole_batch():
    mask = torch.ones(6, 4)
    mask[2] = 0
    data = TensorDataset(bits(6), torch.zeros(6), mask)
    assert pv.fit(small_vae(), data, epochs=1, batch_size=1).num_data == 6


@pytest.mark.parametrize(("n", "batch_size"), [(1, 1), (1, 128), (5, 2), (6, 1000)])
def test_any_number_of_data_and_batch_size_work(n, batch_size):
    history = pv.fit(small_vae(), bits(n), epochs=2, batch_size=batch_size)
    assert history.num_data == n
    assert np.isfinite(history["elbo"]).all()


def test_one_row_is_one_datum():
    x = bits(1)
    assert small_vae().loss(x).shape == (1,)
    assert pv.elbo_terms(small_vae(), x, num_samples=3).log_weights.shape == (3, 1)


ACCEPTED = {
    "float64": lambda x: x.double(),
    "float16": lambda x: x.half(),
    "bfloat16": lambda x: x.bfloat16(),
    "bool": lambda x: x.bool(),
    "int64": lambda x: x.long(),
    "big-endian": lambda x: x.numpy().astype(">f4"),
    "Fortran": lambda x: np.asfortranarray(x.numpy()),
    "negative strides": lambda x: x.numpy()[::-1, ::-1].copy()[::-1, ::-1],
    "data frame": lambda x: pd.DataFrame(x.numpy()),
    "requires_grad": lambda x: x.clone().requires_grad_(),
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_another_container_of_the_same_numbers_is_bitwise_the_same(case):
    x = ACCEPTED[case](bits(6))
    assert_bitwise_equal(outcomes(small_vae(), x), outcomes(small_vae(), bits(6)))
    assert getattr(x, "grad", None) is None


def test_a_read_only_array_is_accepted_and_never_written():
    x = bits(6).numpy().copy()
    x.flags.writeable = False
    before = x.tobytes()
    assert_bitwise_equal(outcomes(small_vae(), x), outcomes(small_vae(), bits(6)))
    assert x.tobytes() == before


def test_float64_data_change_the_loss_by_no_more_than_float32_rounding():
    """Inputs are rounded to 6e-8 relative; 1e-4 leaves a factor of 1000 for the network."""
    x = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    losses = []
    for dtype in (torch.float32, torch.float64):
        vae = vae_in_use("Normal").to(dtype)
        terms = vae.loss_terms(x)
        assert terms.kl.dtype == dtype
        losses.append(vae.decode(torch.zeros(6, 2)).log_prob(x.to(dtype)).double())
    assert torch.allclose(*losses, rtol=1e-4)


def test_a_support_with_tensor_bounds_is_checked_by_its_widest():
    """A likelihood such as BetaBinomial has the bounds of the two rows of the first look."""

    class Dots(torch.nn.Module):
        def forward(self, features):
            shape = features.exp() + 0.1
            return dist.BetaBinomial(shape, shape, total_count=16).to_event(1)

    built = pv.build((3,), latent_dim=1, seed=0)
    decoder = torch.nn.Sequential(torch.nn.Linear(1, 3), Dots())
    vae = pv.VAE(built.prior, built.encoder, decoder)
    x = torch.tensor([[0.0, 3.0, 16.0]]).repeat(5, 1)
    assert vae.loss(x).shape == (5,)
    with pytest.raises(DataError, match=r"x\[4, 2\] = 17"):
        vae.loss(torch.cat([x[:4], x[:1] + torch.tensor([0.0, 0.0, 1.0])]))
