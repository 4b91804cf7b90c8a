"""Checks of settings, containers, masks, shapes and support, each as a function on its own.

What every public entry point does with the same inputs is in test_contract.py.
"""

import numpy as np
import pandas as pd
import pyro.distributions as dist
import pytest
import scipy.sparse
import torch

from pyrovae import checks
from pyrovae.checks import places
from pyrovae.errors import ConfigError, DataError


def refused(error, call, match):
    """Run `call`; its error has this type and text, at most six lines, and no tensor dump."""
    with pytest.raises(error, match=match) as caught:
        call()
    message = str(caught.value)
    assert len(message.splitlines()) <= 6
    assert len(message) < 600
    assert "tensor(" not in message
    return message


@pytest.mark.parametrize("value", [0, -1, 2.0, "2", True, None, np.float64(2), np.int64(0)])
def test_whole_number_names_the_setting_and_its_bound(value):
    refused(
        ConfigError,
        lambda: checks.whole_number(value, "batch_size", 1),
        r"^batch_size = .*(whole number ≥ 1|at least 1)",
    )


@pytest.mark.parametrize("value", [3, np.int32(3), np.uint8(3)])
def test_whole_number_takes_numpy_integers(value):
    number = checks.whole_number(value, "K", 1)
    assert (number, type(number)) == (3, int)


@pytest.mark.parametrize("value", [0.0, -1e-3, float("nan"), float("inf"), "1", None, True])
def test_real_number_must_be_above_its_bound(value):
    call = lambda: checks.real_number(value, "learning_rate", above=0.0)  # noqa: E731
    refused(ConfigError, call, r"^learning_rate = .*finite number > 0")


@pytest.mark.parametrize("value", [-1e-9, float("nan"), float("inf"), [1.0]])
def test_real_number_must_reach_its_least_value(value):
    refused(ConfigError, lambda: checks.real_number(value, "beta", least=0.0), r"^beta = .*≥ 0")
    assert checks.real_number(0, "beta", least=0.0) == 0.0


@pytest.mark.parametrize("seed", [-1, 2**64, 1.0, "1", True])
def test_seed_is_a_whole_number_below_two_to_the_64(seed):
    refused(ConfigError, lambda: checks.seed_number(seed), r"^seed = .*(whole number|at least 0)")


def test_seed_none_is_fresh_and_the_largest_seed_is_taken():
    assert checks.seed_number(2**64 - 1) == 2**64 - 1
    # two draws out of 2⁶³ agree once in 10¹⁹ runs
    assert checks.seed_number(None) != checks.seed_number(None)


FRAME = pd.DataFrame({"dose": [0.0, 1.0], "name": ["u", "v"]})
MISSING = pd.DataFrame({"dose": [0.0, 1.0], "age": pd.array([3, None], dtype="Int64")})

UNREADABLE = {
    "complex tensor": (lambda: torch.ones(2, dtype=torch.complex64), "complex64"),
    "complex array": (lambda: np.ones(2, complex), "complex128"),
    "sparse tensor": (lambda: torch.eye(2).to_sparse(), r"sparse_coo[\s\S]*to_dense"),
    "sparse matrix": (lambda: scipy.sparse.csr_matrix(np.eye(2)), r"sparse[\s\S]*toarray"),
    "object array": (lambda: np.ones(2, object), r"object[\s\S]*astype"),
    "strings": (lambda: np.array(["a", "b"]), "<U1"),
    "bytes": (lambda: np.array([b"a"]), "S1"),
    "dates": (lambda: np.zeros(2, "datetime64[D]"), r"datetime64"),
    "None": (lambda: None, "object"),
    "a dict": (lambda: {"x": 1}, "object"),
    "ragged list": (lambda: [[1, 2], [3]], "x is not a numeric array"),
    "string column": (lambda: FRAME, r"column 'name'[\s\S]*drop"),
    "missing value in a column": (lambda: MISSING, r"column 'age'.*row 1[\s\S]*notna"),
    "NaN in a column": (lambda: pd.DataFrame({"a": [1.0, np.nan]}), r"column 'a'.*row 1"),
    "two columns of one name": (lambda: pd.DataFrame([[1, "u"]], columns=["a", "a"]), "'a'"),
    "masked array": (lambda: np.ma.array([1.0, 2.0], mask=[0, 1]), "mask="),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_an_array_that_is_not_numeric_is_refused_with_its_dtype(case):
    make, match = UNREADABLE[case]
    refused(DataError, lambda: checks.as_tensor(make()), match)


GRID = np.arange(12.0).reshape(3, 4)


def read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


LAYOUTS = {
    "read-only": read_only(GRID),
    "negative strides": GRID[::-1, ::-1].copy()[::-1, ::-1],
    "Fortran": np.asfortranarray(GRID),
    "big-endian": GRID.astype(">f8"),
    "every second column": np.repeat(GRID, 2, axis=1)[:, ::2],
    "transposed": GRID.T.copy().T,
    "long double": GRID.astype(np.longdouble),
    "data frame": pd.DataFrame(GRID),
    "nested lists": GRID.tolist(),
}


@pytest.mark.parametrize("case", LAYOUTS)
def test_every_layout_gives_the_same_numbers_and_stays_unchanged(case):
    value = LAYOUTS[case]
    tensor = checks.as_tensor(value)
    assert torch.equal(tensor, torch.tensor(GRID))
    tensor.zero_()
    assert (np.asarray(value, dtype="f8") == GRID).all()


@pytest.mark.parametrize("dtype", ["u1", "<i2", ">i4", "i8", "<u2", ">u4", "u8", "f2", ">f4", "?"])
def test_numpy_dtypes_keep_their_numbers(dtype):
    array = np.array([[0, 1], [1, 0]], dtype)
    assert torch.equal(checks.as_tensor(array).double(), torch.tensor([[0.0, 1], [1, 0]]).double())


def test_a_tensor_is_detached():
    assert not checks.as_tensor(torch.ones(2, requires_grad=True)).requires_grad


BAD_MASKS = {
    "another shape": (torch.ones(3, 1), r"mask has shape \(3, 1\), but x has \(3, 4\)"),
    "one row": (torch.ones(1, 4), r"\(1, 4\)"),
    "a half": (torch.full((3, 4), 0.5), r"mask\[0, 0\] = 0.5"),
    "two in the last cell": (
        torch.cat([torch.ones(11), torch.tensor([2.0])]).reshape(3, 4),
        r"mask\[2, 3\] = 2",
    ),
    "NaN": (torch.full((3, 4), torch.nan), r"mask\[0, 0\] = nan"),
    "strings": (np.full((3, 4), "yes"), r"mask has dtype <U3"),
    "nothing observed": (torch.zeros(3, 4), r"no observed entries[\s\S]*~mask"),
}


@pytest.mark.parametrize("case", BAD_MASKS)
def test_a_mask_of_another_kind_is_refused(case):
    mask, match = BAD_MASKS[case]
    refused(DataError, lambda: checks.as_mask(mask, torch.zeros(3, 4)), match)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float32])
def test_a_mask_of_zeros_and_ones_is_read_regardless_of_its_dtype(dtype):
    mask = torch.tensor([[1, 0], [0, 1]]).to(dtype)
    assert checks.as_mask(mask, torch.zeros(2, 2)).tolist() == [[True, False], [False, True]]


@pytest.mark.parametrize(
    ("shape", "match"),
    [
        ((), r"batch dim: x\[None\]"),
        ((4,), r"batch dim: x\[None\]"),
        ((5, 3), r"shape \(3,\).*over shape \(4,\)[\s\S]*event_shape=\(3,\)"),
        ((5, 1, 2, 2), r"x\.reshape\(-1, 4\)"),
        ((5, 1, 2, 3), r"shape \(1, 2, 3\)"),
    ],
)
def test_a_datum_of_another_shape_shows_both_shapes(shape, match):
    call = lambda: checks.check_event_shape(torch.zeros(shape), torch.Size([4]))  # noqa: E731
    refused(DataError, call, match)


def of(base, *parameters):
    """The distribution over four cells with these parameters in each."""
    return base(*(torch.full((4,), p) for p in parameters)).to_event(1)


BERNOULLI = of(dist.Bernoulli, 0.5)
SUPPORTS = {
    "gray, Bernoulli": (BERNOULLI, 0.47, r"= 0.47.*Bernoulli.*\{0, 1\}[\s\S]*binarize"),
    "gray suggests the other": (BERNOULLI, 0.47, "ContinuousBernoulli"),
    "bytes, Bernoulli": (BERNOULLI, 255, r"binarize\(x / 255\)"),
    "signed, Bernoulli": (BERNOULLI, -0.9, r"from -0.9 to 1[\s\S]*Shift and scale"),
    "signed, continuous": (of(dist.ContinuousBernoulli, 0.5), -0.9, r"\[0, 1\].*from -0.9 to"),
    "negative count": (of(dist.Poisson, 2.0), -1, r"= -1.*Poisson.*whole numbers ≥ 0"),
    "fractional count": (of(dist.NegativeBinomial, 3.0, 0.5), 2.5, r"= 2.5.*whole numbers"),
    "zero, Gamma": (of(dist.Gamma, 2.0, 1.0), 0.0, r"= 0.*Gamma.*[>≥] 0"),
    "zero, Beta": (of(dist.Beta, 2.0, 2.0), 0.0, r"= 0.*Beta.*\(0, 1\)"),
    "zero, LogNormal": (of(dist.LogNormal, 0.0, 1.0), 0.0, r"= 0.*LogNormal.*> 0"),
    "NaN": (of(dist.Normal, 0.0, 1.0), float("nan"), r"= nan[\s\S]*mask=~torch\.isnan"),
    "infinity": (of(dist.Normal, 0.0, 1.0), float("inf"), r"= inf.*finite[\s\S]*[Rr]escale"),
    "minus infinity": (of(dist.Normal, 0.0, 1.0), float("-inf"), r"= -inf.*finite"),
}


@pytest.mark.parametrize("case", SUPPORTS)
def test_a_value_outside_the_support_is_named_with_its_place(case):
    p_x, value, match = SUPPORTS[case]
    x = torch.full((30, 4), 0.5 if case == "zero, Beta" else 1.0)
    x[21, 2] = value
    message = refused(DataError, lambda: checks.check_values(x, p_x), match)
    assert message.startswith("x[21, 2] = ")
    assert "(1 of 120 entries" in message


@pytest.mark.parametrize("index", [3, -1, 0.5])
def test_a_category_outside_its_range_is_refused(index):
    p_x = dist.Categorical(torch.ones(4, 3)).to_event(1)
    x = torch.zeros(5, 4)
    x[4, 1] = index
    refused(DataError, lambda: checks.check_values(x, p_x), r"^x\[4, 1\] = .*Categorical")


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int16, torch.float16])
def test_the_position_is_named_regardless_of_the_dtype(dtype):
    x = torch.ones(3, 4).to(dtype)
    x[2, 1] = 7
    refused(DataError, lambda: checks.check_values(x, BERNOULLI), r"^x\[2, 1\] = 7")


def test_a_fraction_in_the_last_of_a_million_rows_is_found():
    """17 · 10⁶ numbers are more than one chunk, so nothing is subsampled or dropped at its end."""
    x = torch.ones(10**6, 17)
    assert x.numel() > places.NUMBERS_AT_A_TIME
    x[-1, -1] = 2.5
    p_x = dist.Poisson(torch.ones(17)).to_event(1)
    refused(DataError, lambda: checks.check_values(x, p_x), r"^x\[999999, 16\] = 2.5.*\(1 of 17,0")


def test_the_message_does_not_depend_on_the_chunks(monkeypatch):
    x = torch.ones(30, 4)
    x[[13, 29], 3] = 0.5
    whole = refused(DataError, lambda: checks.check_values(x, BERNOULLI), r"^x\[13, 3\].*\(2 of")
    for numbers in (1, 7, 8, 50):
        monkeypatch.setattr(places, "NUMBERS_AT_A_TIME", numbers)
        assert refused(DataError, lambda: checks.check_values(x, BERNOULLI), "0.5") == whole


def test_unobserved_cells_are_not_checked():
    x, mask = torch.ones(3, 4), torch.ones(3, 4, dtype=torch.bool)
    x[0], mask[0] = torch.tensor([torch.nan, torch.inf, -1.0, 0.5]), False
    checks.check_values(x, BERNOULLI, mask)
    x[2, 2] = 0.5
    refused(DataError, lambda: checks.check_values(x, BERNOULLI, mask), r"^x\[2, 2\].*\(1 of")
