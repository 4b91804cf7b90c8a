"""Imputation of data frames: frames come back, with their names and their observed cells."""

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch

import pyrovae as pv
from pyrovae.data.frames import with_cells
from pyrovae.errors import ConfigError, DataError

NAN = float("nan")
CELLS = {"a": [1.1, None, 0.3], "b": [0.7, 2.1, None], "c": [3, 4, 5]}
MASK = torch.tensor([[1, 1, 1], [0, 1, 1], [1, 0, 1]]).bool()


def pandas():
    return pd.DataFrame(CELLS, index=["u", "v", "w"])


def nullable():
    frame = pd.DataFrame(CELLS, index=pd.MultiIndex.from_tuples([(0, "u"), (0, "v"), (1, "w")]))
    return frame.convert_dtypes()


KINDS = {
    "pandas": pandas,
    "pandas, nullable": nullable,
    "pandas, float32": lambda: pandas().astype("float32"),
    "pandas, names twice": lambda: pandas().set_axis(["a", "a", 0], axis=1),
    "polars": lambda: pl.DataFrame(CELLS),
    "pyarrow": lambda: pa.table(CELLS),
}
kinds = pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)


@pytest.fixture(scope="module")
def vae():
    return pv.build(3, latent_dim=1, likelihood="Normal", seed=0)


def as_pandas(frame):
    return frame if isinstance(frame, pd.DataFrame) else frame.to_pandas()


@kinds
def test_frames_have_the_names_and_the_observed_cells(vae, make):
    x = make()
    found = pv.impute(vae, x, mask=MASK, num_samples=8, num_proposals=50)
    for values, frame in [
        (found.mean, found.frame()),
        *zip(found.draws[[0, 2, 5]], found.frames(3), strict=True),
    ]:
        assert type(frame) is type(x)
        before, after = as_pandas(x), as_pandas(frame)
        assert after.columns.equals(before.columns)
        assert after.index.equals(before.index)
        assert list(after.dtypes) == list(before.dtypes)
        for column in range(3):
            cells, old = after.iloc[:, column], before.iloc[:, column]
            seen = MASK[:, column].numpy()
            assert cells[seen].equals(old[seen])  # to the bit: x itself was cast to float32
            new = cells[~seen].to_numpy(dtype="float32")
            np.testing.assert_array_equal(new, values[~MASK[:, column], column].numpy())


@kinds
def test_reliability_has_the_rows(vae, make):
    x = make()
    found = pv.impute(vae, x, mask=MASK, num_samples=8, num_proposals=50)
    table = found.reliability()
    assert type(table) is type(x)
    assert as_pandas(table).index.equals(as_pandas(x).index)
    np.testing.assert_array_equal(as_pandas(table)["pareto_k"], found.pareto_k.numpy())
    np.testing.assert_array_equal(as_pandas(table)["ess"], found.ess.numpy())


def test_the_passed_frame_is_not_changed(vae):
    x, before = pandas(), pandas()
    pv.impute(vae, x, mask=x.notna(), num_samples=3, num_proposals=20).frames(2)
    pd.testing.assert_frame_equal(x, before)


def test_the_values_of_missing_cells_do_not_matter(vae):
    x = pandas()
    how = {"num_samples": 5, "num_proposals": 20}
    first = pv.impute(vae, x, mask=x.notna(), **how)
    second = pv.impute(vae, x.fillna(7.0), mask=x.notna(), **how)
    assert torch.equal(first.draws, second.draws)
    pd.testing.assert_frame_equal(first.frame(), second.frame())


def test_whole_numbers_stay_whole_if_they_can():
    frame = pd.DataFrame({"n": [1, 2], "is": [True, False]}, index=["r", "s"])
    mask = np.array([[True, True], [False, False]])
    drawn = with_cells(frame, mask, np.array([[0, 0], [4.0, 1.0]]))
    assert drawn.dtypes.tolist() == frame.dtypes.tolist()
    assert drawn.loc["s"].tolist() == [4, True]
    means = with_cells(frame, mask, np.array([[0, 0], [4.5, 0.3]]))
    assert means.dtypes.tolist() == ["float64", "float64"]
    assert means.to_numpy().tolist() == [[1.0, 1.0], [4.5, 0.3]]


def test_a_dict_of_frames_gives_dicts():
    from programs import PROGRAMS

    x = {"a": pd.DataFrame({"p": [1.0, 2.0], "q": [0.5, 1.5]}), "b": pd.DataFrame({"r": [1.0, 2]})}
    mask = {"b": torch.tensor([True, False])}
    program = PROGRAMS["MultimodalVAE"].make()
    found = pv.impute(program, x, mask=mask, num_samples=4, num_proposals=20)
    frame = found.frame()
    pd.testing.assert_frame_equal(frame["a"], x["a"])
    assert frame["b"]["r"].tolist() == [1.0, found.mean["b"][1, 0].item()]
    assert [f["b"]["r"][1] for f in found.frames(2)] == found.draws["b"][[0, 2], 1, 0].tolist()


def test_missing_values_without_a_mask_name_the_fix(vae):
    for call in (vae.loss, lambda x: pv.impute(vae, x), lambda x: pv.fit(vae, x, epochs=1)):
        with pytest.raises(DataError, match=r"column 'a'.*row 1.*\n.*mask=x\.notna\(\)"):
            call(pandas())
    with pytest.raises(DataError, match=r"mask=x\.select\(polars\.all\(\)\.is_not_null\(\)\)"):
        vae.loss(pl.DataFrame(CELLS))
    with pytest.raises(DataError, match=r"x\[1, 0\] = nan.*\n.*mask=~torch\.isnan\(x\)"):
        vae.loss(torch.tensor([[0.0, 0.0, 0.0], [NAN, 0.0, 0.0]]))


def test_a_missing_value_that_the_mask_calls_observed_is_refused(vae):
    with pytest.raises(DataError, match=r"x\[1, 0\] = nan"):
        pv.impute(vae, pandas(), mask=torch.ones(3, 3))


def test_polars_takes_the_mask_of_its_own_error(vae):
    x = pl.DataFrame(CELLS)
    found = pv.impute(vae, x, mask=x.select(pl.all().is_not_null()), num_samples=2)
    assert torch.equal(found.mask, MASK)


def test_tensors_have_no_frames(vae):
    found = pv.impute(vae, torch.zeros(2, 3), mask=MASK[:2], num_samples=3, num_proposals=20)
    for call in (found.frame, found.reliability, lambda: found.frames(2)):
        with pytest.raises(ConfigError, match=r"Tensor.*\n.*data frame"):
            call()
    with pytest.raises(ConfigError, match="num_samples=4"):
        found.frames(4)


@pytest.mark.parametrize("make", [pandas, lambda: pl.DataFrame(CELLS)], ids=["pandas", "polars"])
def test_every_function_takes_a_frame_with_missing_values_and_a_mask(make):
    """Bit for bit what it does with other numbers in the missing cells."""
    x, found = make(), []
    for data in (x, torch.tensor(as_pandas(x).fillna(9.0).to_numpy())):
        one = pv.build(3, latent_dim=1, likelihood="Normal", sees_mask=True, seed=0)
        history = pv.fit(one, data, mask=MASK, validation=(data, None, MASK), epochs=2)
        evidence = pv.log_evidence(one, data, mask=MASK, num_samples=20).log_px
        found.append((history["validation_elbo"], one.encode(data, mask=MASK).mean, evidence))
    assert found[0][0] == found[1][0]
    assert torch.equal(found[0][1], found[1][1])
    assert torch.equal(found[0][2], found[1][2])
