"""AnnData in every form gives the numbers of its dense matrix; names and covariates travel."""

from types import SimpleNamespace

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch

import pyrovae as pv
from pyrovae.errors import ConfigError, DataError

# anndata's use of options of pandas
pytestmark = pytest.mark.filterwarnings("ignore:The '.*' option is deprecated")

N, D = 30, 6


def cells(n=N, *, kind="csr", donors=("a", "b", "c")):
    """An AnnData of counts, whose genes have different rates."""
    x = np.random.default_rng(0).poisson([1, 2, 4, 8, 16, 0.5], (n, D)).astype("float32")
    x[:, 2] += 1  # no cell without counts
    matrix = x if kind == "dense" else scipy.sparse.csr_matrix(x)
    obs = pd.DataFrame({"donor": pd.Categorical(np.resize(donors, n), categories=donors)})
    obs.index = [f"cell{i}" for i in range(n)]
    var = pd.DataFrame(index=[f"gene{j}" for j in range(D)])
    adata = anndata.AnnData(matrix, obs=obs, var=var)
    adata.layers["twice"] = 2 * matrix
    return adata


def backed(tmp_path, kind):
    path = tmp_path / f"{kind}.h5ad"
    cells(kind=kind).write_h5ad(path)
    return anndata.read_h5ad(path, backed="r")


@pytest.fixture(scope="module")
def fitted():
    data = pv.data.anndata(cells(), batch="donor")
    vae = pv.build(data, latent_dim=2, hidden=(8,), seed=0)
    pv.fit(vae, data, epochs=2, seed=0)
    return vae


def covariates():
    total = cells(kind="dense").X.sum(1, keepdims=True) / 10_000
    return torch.tensor(np.hstack([total, np.eye(3)[np.arange(N) % 3]]), dtype=torch.float32)


def test_it_builds_a_decoder_of_size_and_batch_that_starts_at_the_rates():
    data = pv.data.anndata(cells(), batch="donor")
    assert repr(data) == "Annotated(30 cells × 6 genes; y: size, a, b, c)"
    vae = pv.build(data, latent_dim=2, seed=0)
    assert vae.decoder.part.num_covariates == 3
    assert type(vae.decoder.part.head).__name__ == "NegativeBinomial"
    assert vae.spec["inputs"] == "log1p"
    x, y = torch.tensor(cells(kind="dense").X), covariates()
    share = vae.decoder.part.network[-1].bias.softmax(0)
    mean = (x / y[:, :1]).mean(0)
    torch.testing.assert_close(share, mean / mean.sum())


@pytest.mark.parametrize("kind", ["csr", "dense", "backed csr", "backed dense"])
def test_every_form_gives_the_numbers_of_the_arrays(kind, fitted, tmp_path):
    name = kind.removeprefix("backed ")
    adata = backed(tmp_path, name) if "backed" in kind else cells(kind=name)
    data = pv.data.anndata(adata, batch="donor")
    x = torch.tensor(cells(kind="dense").X)
    assert torch.equal(fitted.encode(data).mean, fitted.encode(x, covariates()).mean)
    how = {"num_samples": 30, "seed": 0}
    found = pv.log_evidence(fitted, data, **how).log_px
    torch.testing.assert_close(found, pv.log_evidence(fitted, x, covariates(), **how).log_px)
    histories = [
        pv.fit(pv.build(D, likelihood=data.likelihood, num_covariates=3, seed=0), *of, **again)
        for again in [{"epochs": 2, "seed": 0, "batch_size": 7}]
        for of in ((data,), (x, covariates()))
    ]
    assert [e.elbo for e in histories[0]] == pytest.approx([e.elbo for e in histories[1]])
    if "backed" in kind:
        adata.file.close()


def test_codes_land_in_obsm(fitted):
    adata = cells()
    data = pv.data.anndata(adata, batch="donor")
    data.write_codes(fitted)
    np.testing.assert_array_equal(adata.obsm["X_pyrovae"], fitted.encode(data).mean.detach())


def test_a_layer_and_a_column_of_sizes():
    adata = cells()
    adata.obs["depth"] = np.linspace(1, 2, N)
    data = pv.data.anndata(adata, layer="twice", size="depth")
    batch = pv.data.open_source(data).whole()
    np.testing.assert_array_equal(batch.x, 2 * cells(kind="dense").X)
    np.testing.assert_allclose(batch.y[:, 0], np.linspace(1, 2, N), rtol=1e-6)
    assert pv.data.open_source(pv.data.anndata(adata, size=None)).whole().y is None


def test_names_travel_and_genes_are_matched_by_name(fitted, tmp_path):
    adata = cells()
    again = pv.load(pv.save(fitted, tmp_path / "m"))
    expected = fitted.encode(pv.data.anndata(adata, batch="donor")).mean
    reversed_ = pv.data.anndata(adata[:, ::-1], batch="donor")
    assert torch.equal(again.encode(reversed_).mean, expected)
    exported = pv.to_arviz(again, reversed_, num_samples=3)
    assert list(exported.observed_data.coords["datum"].values[:2]) == ["cell0", "cell1"]
    one_donor = adata[adata.obs["donor"] == "b"].copy()
    one_donor.obs["donor"] = one_donor.obs["donor"].cat.remove_unused_categories()
    rows = expected[1::3]
    assert torch.allclose(again.encode(pv.data.anndata(one_donor, batch="donor")).mean, rows)


def test_what_does_not_fit_is_refused_by_name(fitted):
    fewer, other = cells()[:, :4], cells(donors=("a", "z"))
    with pytest.raises(DataError, match=r"lacks 2 of the model's 6 genes, such as 'gene4'"):
        fitted.encode(pv.data.anndata(fewer, batch="donor"))
    with pytest.raises(DataError, match=r"cell 1 is of batch 'z', but the model knows a, b, c"):
        fitted.encode(pv.data.anndata(other, batch="donor"))
    with pytest.raises(DataError, match=r"needs the batch of each cell"):
        fitted.encode(pv.data.anndata(cells()))
    with pytest.raises(ConfigError, match=r"layer = 'raw', but the layers are \['twice'\]"):
        pv.data.anndata(cells(), layer="raw")
    with pytest.raises(ConfigError, match="no column 'plate'"):
        pv.data.anndata(cells(), batch="plate")
    with pytest.raises(ConfigError, match="not an AnnData"):
        pv.data.anndata(np.zeros((3, 2)))
    empty = cells()
    empty.X = scipy.sparse.csr_matrix(np.zeros((N, D), "float32"))
    with pytest.raises(DataError, match="size of a datum must be positive"):
        fitted.loss(pv.data.anndata(empty, batch="donor"))
    with pytest.raises(DataError, match=r"sizes first"):
        fitted.decode(torch.zeros(2, 2), torch.ones(2, 1))


def test_modalities_become_sites():
    rna, protein = cells(), cells(kind="dense")
    mdata = SimpleNamespace(mod={"rna": rna, "protein": protein}, obs_names=rna.obs_names)
    x = pv.data.anndata(mdata)
    assert list(x) == ["rna", "protein"]
    assert pv.data.open_source(x).whole().x["rna"].shape == (N, D)
    mdata.mod["protein"] = protein[:5]
    with pytest.raises(DataError, match="'protein' has other cells"):
        pv.data.anndata(mdata)


def test_rates_by_softmax_sum_to_the_total():
    torch.manual_seed(0)
    size = torch.tensor([1.0, 2.0])
    for name in ("Poisson", "NegativeBinomial", "ZeroInflatedNegativeBinomial"):
        head = getattr(pv.likelihoods, name)(D, total=100.0)
        features = torch.randn(2, head.num_features)
        features[:, D:] = -40.0  # no further zeros
        mean = head(features, size).mean
        torch.testing.assert_close(mean.sum(1), 100 * size)
        share = features[:, :D].softmax(1)
        torch.testing.assert_close(mean, 100 * size[:, None] * share)
    with pytest.raises(ConfigError, match="total = 0"):
        pv.likelihoods.Poisson(D, total=0)
