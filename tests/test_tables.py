"""Data frames of mixed columns: `data.table`, the schema of a model, names of classes."""

import json
import math
import warnings

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch
from helpers import bits, conditional, small_vae
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pyrovae as pv
from pyrovae.data import Schema, Table, table
from pyrovae.errors import ConfigError, CorruptCheckpointError, DataError

N = 60


def mixed(n=N, seed=0, *, missing=0.1):
    """Return a pandas data frame of all the dtypes that people have, with missing cells."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=n)
    grade = np.where(z > 1, "high", np.where(z > -1, "mid", "low"))
    frame = pd.DataFrame(
        {
            "income": np.exp(10 + z),
            "temp": 37 + 0.3 * z,
            "sex": rng.choice(["f", "m"], n),
            "smokes": z > 0,
            "grade": pd.Categorical(grade, categories=["low", "mid", "high"], ordered=True),
            "city": pd.Categorical(rng.choice(["oslo", "rome"], n), categories=["rome", "oslo"]),
            "visits": rng.poisson(np.exp(3 + 0.8 * z)),
            "rating": rng.integers(1, 6, n),
        },
        index=[f"p{i}" for i in range(n)],
    )
    return frame.mask(rng.random(frame.shape) < missing) if missing else frame


def as_kind(frame, kind):
    if kind == "pandas":
        return frame
    if kind == "nullable":
        return frame.convert_dtypes()
    arrow = pa.Table.from_pandas(frame, preserve_index=False)
    return arrow if kind == "pyarrow" else pl.from_arrow(arrow)


CONTAINERS = ("pandas", "nullable", "polars", "pyarrow")
containers = pytest.mark.parametrize("container", CONTAINERS)
MIXED = {
    "income": "LogNormal",
    "temp": "Normal",
    "sex": "Categorical",
    "smokes": "Bernoulli",
    "grade": "Ordinal",
    "city": "Categorical",
    "visits": "NegativeBinomial",
    "rating": "Ordinal",
}


@pytest.fixture(scope="module")
def vae():
    made = pv.build(table(mixed()), latent_dim=2, hidden=(8,), seed=0)
    pv.fit(made, mixed(), epochs=1)
    return made


# ---- proposals


def kinds_of(read):
    return {column.name: column.kind["kind"] for column in read.schema.columns}


@containers
def test_kinds_are_proposed_from_dtypes_and_values(container):
    found = kinds_of(table(as_kind(mixed(), container)))
    if container in ("polars", "pyarrow"):  # which do not say that a category is ordered
        assert found.pop("grade") == "Categorical"
        assert found == {k: v for k, v in MIXED.items() if k != "grade"}
    else:
        assert found == MIXED


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([True, False, None], "Bernoulli"),
        ([0, 1, 1, 0], "Bernoulli"),
        ([0.0, 1.0, math.nan], "Bernoulli"),
        (["a", "b", None, "a"], "Categorical"),
        ([1, 2, 3, 3, -5], "Ordinal"),
        (list(range(90, 111)), "Normal"),  # variance below half the mean
        ([0, 3, 1, 4, 2, 9, 7, 5, 6, 8, 10, 12, 5, 5, 6, 4], "NegativeBinomial"),
        ([4, 3, 5, 7, 2, 6, 8, 4, 5, 6, 1, 9, 10, 5, 5, 6, 4, 0, 11], "Poisson"),
        ([float(i) for i in (1, 10, 100, 1e3, 1e4, 1e5, 1e6, 2e6, 7, 3, 4)], "LogNormal"),
        ([0.5, 0.25, 0.75], "Normal"),
        ([-1.5, 2.0, 1e9], "Normal"),
        ([2.0, 2.0, 2.0], "Normal"),
    ],
)
def test_each_rule(values, kind):
    assert kinds_of(table(pd.DataFrame({"a": values}))) == {"a": kind}


def test_the_repr_shows_kind_reason_and_missing_share():
    text = repr(table(pd.DataFrame({"age": [31.5, None, 47.0, 40.0], "sex": list("fmff")})))
    assert text.splitlines() == [
        "Table of 4 rows × 2 columns",
        "column  kind             seen                     missing",
        "age     Normal           numbers from 31.5 to 47  25 %",
        "sex     Categorical (2)  'f', 'm'                 0 %",
    ]


def test_kinds_override_proposals():
    kinds = {
        "visits": "Poisson",
        "temp": {"kind": "StudentT", "df": 5.0},
        "sex": {"kind": "Categorical", "categories": ["m", "f", "x"]},
        "rating": "Categorical",
    }
    read = table(mixed(missing=0), kinds=kinds)
    columns = {column.name: column for column in read.schema.columns}
    assert columns["visits"].kind == {"kind": "Poisson"}
    assert columns["temp"].kind == {"kind": "StudentT", "df": 5.0}
    assert columns["sex"].kind == {"kind": "Categorical", "num_categories": 3}
    assert columns["rating"].categories == (1, 2, 3, 4, 5)
    sex = read.x[:, read.schema.names.index("sex")]
    assert sex.tolist() == [{"m": 0, "f": 1}[value] for value in mixed(missing=0)["sex"]]
    pv.build(read, latent_dim=1, hidden=(4,))


@pytest.mark.parametrize(
    ("frame", "kinds", "error", "message"),
    [
        ([[1.0]], None, ConfigError, "table takes a data frame, but got a list"),
        ({"age": [1.0]}, {"ages": "Normal"}, ConfigError, r"(?s)'ages', which is not .*'age'"),
        ({"a": [None, None]}, None, DataError, "'a' has no values"),
        ({"a": ["u", "u"]}, None, DataError, "'a' has one category, 'u'"),
        ({"a": [f"n{i}" for i in range(50)]}, None, DataError, "'a' holds 50 different strings"),
        ({"a": pd.date_range("2020", periods=3)}, None, DataError, "'a' holds Datetime"),
        (
            {"a": ["u", 1, "v"]},
            None,
            DataError,
            "'a' holds both text and numbers, such as 'u' and 1",
        ),
        ({"a": ["u", "v"]}, {"a": "Normal"}, DataError, "'a' holds 'u' in row 0, of type"),
        (
            {"a": ["u", "v"]},
            {"a": {"kind": "Ordinal", "categories": ["u"]}},
            DataError,
            "'a' has one category",
        ),
        (
            {"a": ["u", "v", "w"]},
            {"a": {"kind": "Ordinal", "categories": ["u", "v"]}},
            DataError,
            "'a' has the category 'w' in row 2",
        ),
    ],
)
def test_what_is_not_a_table_is_refused(frame, kinds, error, message):
    frame = pd.DataFrame(frame) if isinstance(frame, dict) else frame
    with pytest.raises(error, match=message):
        table(frame, kinds)


def test_names_must_differ_and_kinds_exist():
    with pytest.raises(DataError, match="has two columns 'a'"):
        table(pd.DataFrame([[1, 2]], columns=["a", "a"]))
    with pytest.raises(ConfigError, match="has the kind 'Gauss'"):
        pv.build(table(pd.DataFrame({"a": [0.5, 1.5]}), {"a": "Gauss"}), latent_dim=1)
    nested = pl.DataFrame({"a": [[1, 2], [3]]})
    with pytest.raises(DataError, match=r"'a' holds List.*one number or category"):
        table(nested)


def test_a_value_outside_of_a_given_kind_names_the_column():
    read = table(pd.DataFrame({"a": [0.5, -1.0], "b": [1.5, 2.5]}), {"a": "Gamma"})
    with pytest.raises(DataError, match=r"column 'a': x\[1, 0\] = -1, but a Gamma"):
        pv.fit(pv.build(2, likelihood=read.likelihood), read, epochs=1)


# ---- models of tables


@containers
def test_every_container_is_read_the_same(vae, container):
    frame = as_kind(mixed(), container)
    expected = vae.encode(mixed()).mean
    assert torch.equal(vae.encode(frame).mean, expected)
    assert torch.equal(vae.encode(table(frame)).mean, expected)


def test_the_schema_is_saved_with_the_model(vae, tmp_path):
    again = pv.load(pv.save(vae, tmp_path / "m"))
    assert again.schema == vae.schema
    assert torch.equal(again.encode(mixed()).mean, vae.encode(mixed()).mean)
    assert json.loads(json.dumps(vae.schema.to_json())) == vae.schema.to_json()
    into = pv.build(8, likelihood=table(mixed()).likelihood, hidden=(8,), sees_mask=True)
    assert into.schema is None
    pv.load(tmp_path / "m", into=into)
    assert into.schema == vae.schema


def test_a_run_folder_holds_the_schema(tmp_path):
    vae = pv.build(table(mixed()), latent_dim=1, hidden=(4,), seed=0)
    pv.fit(vae, mixed(), epochs=2, run_dir=tmp_path / "run")
    again = pv.load(tmp_path / "run" / "model.safetensors")
    assert again.schema == vae.schema
    other = pv.build(table(mixed()), latent_dim=1, hidden=(4,), seed=0)
    pv.fit(other, mixed(), epochs=2, run_dir=tmp_path / "run", resume=True)


@pytest.mark.parametrize(
    "stored",
    [[], {"columns": 3}, {"columns": [{"name": 1, "kind": None, "categories": None}]}, {}],
)
def test_a_damaged_schema_is_refused(stored):
    with pytest.raises(ValueError, match="not a schema"):
        Schema.from_json(stored)


def test_a_file_with_a_damaged_schema_is_refused(vae, tmp_path, monkeypatch):
    path = pv.save(vae, tmp_path / "m")

    def damaged(stored):
        raise ValueError("not a schema: 'columns'")

    monkeypatch.setattr(Schema, "from_json", damaged)
    with pytest.raises(CorruptCheckpointError, match="its names of columns are not readable"):
        pv.load(path)


def test_columns_in_another_order_are_put_in_order_with_a_warning(vae):
    frame = mixed()
    with pytest.warns(UserWarning, match="columns of x are those of the model in another") as said:
        found = vae.encode(frame[frame.columns[::-1]]).mean
    assert len(said) == 1
    assert torch.equal(found, vae.encode(frame).mean)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.drop(columns=["sex", "temp"]), "it lacks 'temp', 'sex'"),
        (lambda f: f.assign(age=1), "it has 'age', which the model has not"),
        (lambda f: f.rename(columns={"sex": "Sex"}), "it lacks 'sex' and has 'Sex'"),
        (
            lambda f: f.assign(city="paris"),
            "column 'city' has the category 'paris' in row 0 .* the model knows 'rome', 'oslo'",
        ),
        (lambda f: f.assign(temp="warm"), "column 'temp' holds 'warm' in row 0"),
        (lambda f: f.assign(rating=6), "column 'rating' has the category 6"),
        (lambda f: f.assign(income=0.0), r"column 'income': x\[0, 0\] = 0, but a LogNormal"),
        (lambda f: pd.concat([f, f["sex"]], axis=1), "it has a name twice"),
    ],
)
def test_another_table_is_refused_by_name(vae, change, message):
    for read in (vae.encode, lambda x: pv.log_evidence(vae, x), lambda x: pv.impute(vae, x)):
        with pytest.raises(DataError, match=message):
            read(change(mixed()))


def test_a_mask_leaves_out_more_cells(vae):
    frame = mixed()
    mask = pd.DataFrame(True, index=frame.index, columns=frame.columns)
    assert torch.equal(vae.encode(frame, mask=mask).mean, vae.encode(frame).mean)
    mask["sex"] = False
    expected = vae.encode(frame.assign(sex=None)).mean
    assert torch.equal(vae.encode(frame, mask=mask).mean, expected)
    assert torch.equal(vae.encode(frame, mask=mask.to_numpy()).mean, expected)
    with pytest.warns(UserWarning, match="columns of mask are those of x in another order"):
        found = vae.encode(frame, mask=mask[mask.columns[::-1]]).mean
    assert torch.equal(found, expected)
    with pytest.raises(DataError, match=r"mask has shape \(60, 2\)"):
        vae.encode(frame, mask=np.ones((N, 2)))


@containers
def test_imputed_frames_hold_categories(vae, container):
    frame = as_kind(mixed(20), container)
    found = pv.impute(vae, frame, num_samples=4, num_proposals=50)
    before = frame if container in ("pandas", "nullable") else frame.to_pandas()
    for filled in (found.frame(), *found.frames(2)):
        after = filled if container in ("pandas", "nullable") else filled.to_pandas()
        assert list(after.columns) == list(before.columns)
        assert after.index.equals(before.index)
        assert not after.isna().any().any()
        assert set(after["sex"]) <= {"f", "m"}
        assert set(after["city"].astype(str)) <= {"rome", "oslo"}
        assert after["grade"].dtype == before["grade"].dtype
        for name in before:
            seen = before[name].notna()
            assert list(after[name][seen]) == list(before[name][seen]), name
    reliability = found.reliability()
    assert len(reliability) == 20


def test_index_and_columns_travel_to_arviz(vae):
    found = pv.to_arviz(vae, mixed(20), num_samples=3)
    coords = found.observed_data.coords
    assert coords["datum"].values[:2].tolist() == ["p0", "p1"]
    assert coords["x_dim_0"].values.tolist() == list(MIXED)


def test_validation_data_are_read_by_the_schema():
    frame = mixed()
    vae = pv.build(table(frame), latent_dim=1, hidden=(4,), seed=0)
    pv.fit(vae, frame, epochs=1, validation=frame[:20])
    with pytest.raises(DataError, match=r"in validation: the columns of x are not .* lacks 'sex'"):
        pv.fit(vae, frame, epochs=1, validation=frame.drop(columns="sex"))


# ---- any frame, any dtype, any missing cells


def _cells(strategy):
    return st.lists(st.one_of(st.none(), strategy), min_size=12, max_size=12).filter(
        lambda cells: len({c for c in cells if c is not None}) > 1
    )


def _floats(low, high):
    return st.floats(low, high, width=32, allow_subnormal=False)


COLUMN = st.one_of(
    st.tuples(st.just("float64"), _cells(_floats(-1e4, 1e4))),
    st.tuples(st.just("Float32"), _cells(_floats(0.125, 1e4))),
    st.tuples(st.just("Int64"), _cells(st.integers(-5, 1000))),
    st.tuples(st.just("boolean"), _cells(st.booleans())),
    st.tuples(st.just("object"), _cells(st.booleans())),
    st.tuples(st.just("string"), _cells(st.sampled_from(["", "a", "ü", "b c"]))),
    st.tuples(st.just("category"), _cells(st.sampled_from(["x", "y", "z"]))),
    st.tuples(st.just("category"), _cells(st.integers(0, 3))),
)


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(COLUMN, min_size=1, max_size=4), st.sampled_from(CONTAINERS), st.randoms())
def test_nothing_is_lost_or_reordered(tmp_path_factory, columns, container, random):
    series = {f"c{j}": pd.Series(cells, dtype=dtype) for j, (dtype, cells) in enumerate(columns)}
    source = pd.DataFrame(series)
    frame = as_kind(source, container)
    read = table(frame)
    assert torch.equal(read.mask, torch.tensor(source.notna().to_numpy()))
    vae = pv.build(read, latent_dim=1, hidden=(4,), seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # constant columns, say
        pv.fit(vae, frame, epochs=1)
    again = pv.load(pv.save(vae, tmp_path_factory.mktemp("table") / "m"))
    names = list(series)
    random.shuffle(names)
    shuffled = frame.select(names) if container in ("polars", "pyarrow") else frame[names]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert torch.equal(again.encode(shuffled).mean, vae.encode(read).mean)
        if source.isna().any().any():
            found = pv.impute(again, shuffled, num_samples=2, num_proposals=20)
            filled = found.frames(1)[0]
            after = filled if container in ("pandas", "nullable") else filled.to_pandas()
            assert list(after.columns) == names
            assert not after.isna().any().any()
            for name in names:
                seen = source[name].notna().to_numpy()
                assert list(after[name].to_numpy()[seen]) == list(source[name].to_numpy()[seen])


# ---- names of columns in any model


def named(n=N):
    return pd.DataFrame(bits(n).numpy(), columns=list("abcd"))


def test_a_model_remembers_the_columns_that_it_was_fitted_on(tmp_path):
    vae = small_vae()
    pv.fit(vae, named(), epochs=1)
    expected = vae.encode(bits(N)).mean
    again = pv.load(pv.save(vae, tmp_path / "m"))
    for model in (vae, again):
        assert torch.equal(model.encode(named()).mean, expected)
        with pytest.warns(UserWarning, match="put in order by name"):
            assert torch.equal(model.encode(named()[list("dcba")]).mean, expected)
        mask = np.arange(4 * N).reshape(N, 4) % 3 > 0
        with pytest.warns(UserWarning, match="put in order by name"):
            found = model.encode(named()[list("dcba")], mask=mask[:, ::-1]).mean
        assert torch.equal(found, model.encode(named(), mask=mask).mean)
        with pytest.raises(DataError, match="it lacks 'a' and has 'e'"):
            model.encode(named().rename(columns={"a": "e"}))
        assert torch.equal(model.encode(pd.DataFrame(bits(N).numpy())).mean, expected)
    with pytest.raises(DataError, match="it lacks 'a' and has 'e'"):
        pv.fit(vae, named().rename(columns={"a": "e"}), epochs=1)


def test_refused_data_leave_no_names():
    vae = small_vae()
    with pytest.raises(DataError):
        pv.fit(vae, named() + 5, epochs=1)
    assert vae.schema is None


def test_masks_are_matched_by_column_and_row():
    vae = small_vae()
    x = named().set_axis([f"r{i}" for i in range(N)])
    mask = pd.DataFrame(True, index=x.index, columns=x.columns)
    mask.iloc[0, 0] = False
    expected = pv.elbo_terms(vae, x, mask=mask).log_weights
    with pytest.warns(UserWarning, match="columns of mask are those of x in another order"):
        found = pv.elbo_terms(vae, x, mask=mask[list("badc")]).log_weights
    assert torch.equal(found, expected)
    with pytest.warns(UserWarning, match="rows of mask are those of x in another order"):
        found = pv.elbo_terms(vae, x, mask=mask[::-1]).log_weights
    assert torch.equal(found, expected)
    with pytest.raises(DataError, match="columns of mask are not those of x: it lacks 'a'"):
        pv.elbo_terms(vae, x, mask=mask.rename(columns={"a": "e"}))
    with pytest.raises(DataError, match=r"mask has another index than x \(row 0 is 's0'"):
        pv.elbo_terms(vae, x, mask=mask.set_axis([f"s{i}" for i in range(N)]))


def test_rows_of_y_are_matched_by_index():
    vae = conditional()
    x = named().set_axis([f"r{i}" for i in range(N)])
    y = pd.Series(np.arange(N) % 3, index=x.index)
    expected = vae.encode(x, y).mean
    with pytest.warns(UserWarning, match="rows of y are those of x in another order"):
        found = vae.encode(x, y.sample(frac=1, random_state=0)).mean
    assert torch.equal(found, expected)
    assert torch.equal(vae.encode(x, y.reset_index(drop=True)).mean, expected)
    with pytest.raises(DataError, match="y has another index than x"):
        vae.encode(x, y.set_axis([f"s{i}" for i in range(N)]))


def test_columns_of_y_are_matched_by_name():
    q, p = pv.guides.DiagonalNormal(1), pv.likelihoods.Bernoulli(4)
    encoder = torch.nn.Sequential(pv.networks.mlp(4 + 2, q.num_features, hidden=(4,)), q)
    vae = pv.VAE(
        pv.priors.StandardNormal(1),
        pv.networks.Given(pv.networks.Concat(encoder)),
        torch.nn.Sequential(pv.networks.mlp(1, 4, hidden=(4,)), p),
    )
    y = pd.DataFrame({"u": np.arange(N) / N, "v": np.ones(N)})
    pv.fit(vae, named(), y, epochs=1)
    with pytest.warns(UserWarning, match="columns of y are those of the model in another order"):
        found = vae.encode(named(), y[["v", "u"]]).mean
    assert torch.equal(found, vae.encode(named(), y).mean)
    with pytest.raises(DataError, match="columns of y are not those of the model: it lacks 'v'"):
        vae.encode(named(), y[["u"]])
    with pytest.raises(DataError, match="column 'w' of y holds strings, among 3 columns"):
        pv.fit(conditional(), named(), y.assign(w="a"), epochs=1)


# ---- names of classes

NAMES = ["stim", "ctrl", "none"] * (N // 3)
CODES = torch.tensor([2, 0, 1] * (N // 3))
CLASSES = {
    "list": lambda: NAMES,
    "array": lambda: np.array(NAMES),
    "Series": lambda: pd.Series(NAMES),
    "string Series": lambda: pd.Series(NAMES, dtype="string"),
    "category": lambda: pd.Series(NAMES).astype("category"),
    "frame": lambda: pd.DataFrame({"group": NAMES}),
    "polars": lambda: pl.Series(NAMES),
    "polars category": lambda: pl.Series(NAMES, dtype=pl.Categorical),
    "polars frame": lambda: pl.DataFrame({"group": NAMES}),
    "pyarrow": lambda: pa.chunked_array([NAMES]),
}


@pytest.mark.parametrize("make", CLASSES.values(), ids=CLASSES)
def test_classes_are_known_by_name(make, tmp_path):
    vae, other = conditional(), conditional()
    pv.fit(vae, bits(N), make(), epochs=1, seed=0)
    pv.fit(other, bits(N), CODES, epochs=1, seed=0)
    assert vae.schema.classes == ("ctrl", "none", "stim")
    expected = other.encode(bits(N), CODES).mean
    assert torch.equal(vae.encode(bits(N), make()).mean, expected)
    again = pv.load(pv.save(vae, tmp_path / "m"), into=conditional())
    drawn = again.sample(3, ["ctrl", "none", "stim"], seed=0)
    assert torch.equal(drawn, other.sample(3, torch.arange(3), seed=0))
    assert torch.equal(vae.sample(2, y=["ctrl"] * 2, seed=0), other.sample(2, [0, 0], seed=0))


def test_the_order_of_a_category_dtype_is_that_of_the_codes():
    y = pd.Series(NAMES).astype(pd.CategoricalDtype(["none", "stim", "ctrl"]))
    vae = conditional()
    pv.fit(vae, bits(N), y, epochs=1)
    assert vae.schema.classes == ("none", "stim", "ctrl")


def test_unknown_classes_are_refused():
    vae = conditional()
    with pytest.raises(DataError, match="y holds names of classes, but this model was fitted with"):
        vae.encode(bits(N), NAMES)
    pv.fit(vae, bits(N), NAMES, epochs=1)
    match = "(?s)y has the category 'ctlr' in row 0 .*knows 'ctrl', 'none', 'stim'.*mean 'ctrl'"
    with pytest.raises(DataError, match=match):
        vae.sample(1, y=["ctlr"])
    assert isinstance(vae.encode(bits(N), CODES).mean, torch.Tensor)


def test_a_missing_name_is_an_unknown_label():
    schema = Schema().learned_from(None, ["a", None, "b"])
    assert schema.read_y(["b", None, "a"]).tolist() == [1, -1, 0]
    assert schema.read_y(pd.Series(["b", pd.NA, "a"], dtype="string")).tolist() == [1, -1, 0]


def test_tables_have_a_length_and_a_likelihood():
    read = table(named())
    assert isinstance(read, Table)
    assert len(read) == N
    assert read.likelihood == {"name": "Columns", "kinds": [{"kind": "Bernoulli"}] * 4}


def test_the_encoder_of_a_table_with_missing_cells_sees_the_mask():
    holes, whole = mixed(), mixed().dropna()
    assert pv.build(table(holes), hidden=(4,)).spec["sees_mask"]
    assert not pv.build(table(whole), hidden=(4,)).spec["sees_mask"]
    assert not pv.build(table(holes), hidden=(4,), sees_mask=False).spec["sees_mask"]
