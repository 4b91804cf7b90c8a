"""Tables of mixed columns: each kind against scipy and torch, and the product of all."""

import math

import pytest
import scipy.stats
import torch
from torch import nn

import pyrovae as pv
from pyrovae import densities
from pyrovae.errors import ConfigError, CorruptCheckpointError, DataError
from pyrovae.likelihoods import Columns
from pyrovae.likelihoods.column_kinds import KINDS
from pyrovae.model_file import _Budget

CODES = ("Categorical", "Ordinal")


def column(kind, k=3):
    return {"kind": kind, "num_categories": k} if kind in CODES else kind


ALL = [column(kind) for kind in KINDS]
NAMES = list(KINDS)
SHARED = (-1.0, 0.0, 1.5)


def table(n=60, seed=0):
    """Rows of all kinds that depend on one number, in units far from standardized."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(n, generator=generator)
    noise = torch.randn(n, generator=generator)
    made = {
        "Normal": 2000 + 30 * z + 5 * noise,
        "StudentT": 1e-3 * (z + noise),
        "LogNormal": torch.exp(9 + z),
        "Gamma": torch.exp(noise) * 100,
        "Beta": torch.sigmoid(z + noise),
        "Bernoulli": (z > 0).float(),
        "Categorical": (z > 0).float() + (noise > 0).float(),
        "Ordinal": (z > -1).float() + (z > 1).float(),
        "Poisson": (5 * z.exp()).round(),
        "NegativeBinomial": (50 * (z + noise).exp()).round(),
    }
    return torch.stack([made[name] for name in NAMES], 1)


def built(x=None, **settings):
    settings = {"latent_dim": 1, "hidden": (8,), "seed": 0} | settings
    return pv.build(len(ALL), likelihood={"name": "Columns", "kinds": ALL}, data=x, **settings)


class DictDataset(torch.utils.data.Dataset):
    def __init__(self, x, mask):
        self.x, self.mask = x, mask

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return {"x": self.x[i], "mask": self.mask[i]}


# ---- densities against others

X = torch.tensor([0.01, 0.3, 0.9999, 1.0, 17.0, 4e3], dtype=torch.float64)


@pytest.mark.parametrize("scale", [0.01, 1.0, 3.0])
def test_log_normal(scale, float64):
    p = densities.LogNormal(torch.tensor(2.0), torch.tensor(scale))
    exact = scipy.stats.lognorm(scale, scale=math.exp(2.0))
    assert torch.allclose(p.log_prob(X), torch.tensor(exact.logpdf(X)), rtol=1e-12)
    assert p.mean.item() == pytest.approx(exact.mean())
    around = p.mode * torch.tensor([0.99, 1.0, 1.01])
    assert p.log_prob(around).argmax() == 1


@pytest.mark.parametrize("a", [0.3, 1.0, 40.0, 1e5])
def test_gamma(a, float64):
    p = densities.Gamma(torch.tensor(3.0), torch.tensor(a))
    exact = scipy.stats.gamma(a, scale=3.0 / a)
    x = 3.0 * torch.tensor([0.2, 0.49, 0.51, 0.999, 1.0, 1.2, 1.51, 8.0])
    assert torch.allclose(p.log_prob(x), torch.tensor(exact.logpdf(x)), rtol=1e-9, atol=1e-9)
    if a > 1:
        assert p.log_prob(p.mode * torch.tensor([0.99, 1.0, 1.01])).argmax() == 1


@pytest.mark.parametrize("n", [0.5, 2.0, 100.0, 1e5])
@pytest.mark.parametrize("logit", [-3.0, 0.0, 2.0])
def test_beta(n, logit, float64):
    p = densities.Beta(torch.tensor(logit), torch.tensor(n))
    m = p.mean.item()
    exact = scipy.stats.beta(n * m, n * (1 - m))
    x = torch.tensor([1e-6, 0.01, 0.3, m, 0.7, 0.99])
    assert torch.allclose(p.log_prob(x), torch.tensor(exact.logpdf(x)), rtol=1e-8, atol=1e-8)
    if n * min(m, 1 - m) > 1:
        assert p.log_prob(p.mode + torch.tensor([-1e-3, 0.0, 1e-3])).argmax() == 1


def test_densities_of_fractions_and_positive_numbers_are_stable_in_float32():
    """At n = 10⁸ the textbook form of Beta loses all digits of log p, which is about 9."""
    n = torch.tensor(1e8)
    p = densities.Beta(torch.tensor(0.0), n)
    exact = scipy.stats.beta(5e7, 5e7).logpdf(0.5)
    assert p.log_prob(torch.tensor(0.5)).item() == pytest.approx(exact, abs=1e-3)
    exact = scipy.stats.gamma(1e8, scale=3e-8).logpdf(3.0)
    assert densities.Gamma(torch.tensor(3.0), n).log_prob(torch.tensor(3.0)).item() == (
        pytest.approx(exact, abs=1e-3)
    )


def test_categories_of_unequal_widths_are_those_of_torch(float64):
    torch.manual_seed(0)
    logits = torch.randn(5, 3, 4)
    p = densities.Categories(logits, [4, 2, 3])
    for j, k in enumerate(p.num_categories):
        exact = torch.distributions.Categorical(logits=logits[:, j, :k])
        assert torch.allclose(p.probs[:, j, :k], exact.probs)
        assert (p.probs[:, j, k:] == 0).all()
        for code in range(k):
            value = torch.full((5, 3), float(min(code, 1)))
            value[:, j] = code
            assert torch.allclose(p.log_prob(value)[:, j], exact.log_prob(torch.tensor(code)))
    draws = p.sample((4000,))
    assert draws.amax((0, 1)).tolist() == [3, 1, 2]
    share = (draws == 1).double().mean(0)
    assert ((share - p.probs[..., 1]).abs() < 5 * 0.5 / math.sqrt(4000)).all()  # 5 se of a share


def test_levels_are_differences_of_the_cumulative_logistic(float64):
    thresholds = torch.tensor([[-1.0, 0.5, 2.0], [0.3, 9.0, 9.0]])
    loc = torch.tensor([[0.2, -0.4], [30.0, -30.0]])
    p = densities.Levels(loc, thresholds, [4, 2])
    upper = torch.cat([thresholds[0], torch.tensor([torch.inf])])
    lower = torch.cat([torch.tensor([-torch.inf]), thresholds[0]])
    exact = (upper - 0.2).sigmoid() - (lower - 0.2).sigmoid()
    assert torch.allclose(p.probs[0, 0], exact)
    assert torch.allclose(p.probs.sum(-1), torch.ones(2, 2))
    values = torch.tensor([[3.0, 1.0], [0.0, 0.0]])
    found = p.log_prob(values)
    assert found[0, 0].exp().item() == pytest.approx(exact[3].item())
    assert found[1].tolist() == pytest.approx([-31.0, -math.log1p(math.exp(-30.3))])


@pytest.mark.parametrize("kind", NAMES)
def test_a_kind_has_the_density_of_the_head_of_its_name(kind, float64):
    """Where there is one: at center 0 (or 1) and spread 1, which is how both start."""
    others = {
        "Normal": pv.likelihoods.Normal(2),
        "StudentT": pv.likelihoods.StudentT(2),
        "Bernoulli": pv.likelihoods.Bernoulli(2),
        "Poisson": pv.likelihoods.Poisson(2),
        "NegativeBinomial": pv.likelihoods.NegativeBinomial(2),
    }
    if kind not in others:
        pytest.skip("no other head")
    features, x = torch.tensor([[0.3, -1.2]]), torch.tensor([[1.0, 0.0]])
    found = Columns([kind, kind])(features).log_prob(x)
    assert torch.allclose(found, others[kind](features).log_prob(x), rtol=1e-5)


# ---- the product


def test_log_density_is_the_sum_over_columns_in_any_order(float64):
    torch.manual_seed(0)
    x = table().double()
    order = torch.randperm(len(ALL))
    one = built(x).double()
    head = one.decoder[-1]
    shuffled = Columns([ALL[j] for j in order])
    shuffled.start_at(x[:, order])
    features = torch.randn(len(x), head.num_features)
    cells = head(features).base_dist.log_prob(x)
    found = shuffled(features).base_dist.log_prob(x[:, order])
    assert torch.allclose(found, cells[:, order])
    assert torch.allclose(head(features).log_prob(x), cells.sum(-1))


def test_units_are_those_of_the_data(float64):
    """log p of x·1000 is that of x, less log 1000 for each continuous column."""
    x = table().double()
    for kind in ("Normal", "StudentT", "LogNormal", "Gamma"):
        j = NAMES.index(kind)
        found = []
        for factor in (1.0, 1000.0):
            head = Columns([kind])
            data = factor * x[:, j : j + 1]
            features = head.start_at(data)
            found.append(head(features).log_prob(data))
        assert torch.allclose(found[0] - math.log(1000), found[1]), kind


@pytest.mark.parametrize("kind", NAMES)
def test_it_starts_at_the_mean_of_the_data(kind):
    x = table(400)[:, [NAMES.index(kind)]]
    hidden = x.clone()
    hidden[::7] = torch.nan
    head = Columns([column(kind)])
    p_x = head(head.start_at(hidden.double()).float())
    seen = hidden[~hidden.isnan()]
    if kind == "Categorical":
        shares = torch.bincount(seen.long(), minlength=3) / len(seen)
        assert torch.allclose(p_x.base_dist.probs_of(0), shares, atol=0.01)
    elif kind == "LogNormal":
        assert p_x.base_dist.groups["LogNormal"].loc.item() == pytest.approx(
            seen.log().mean().item(), rel=1e-4
        )
    else:
        assert p_x.mean.item() == pytest.approx(seen.mean().item(), rel=0.01, abs=0.01)


def test_a_constant_or_unobserved_column_has_a_finite_density():
    x = torch.full((9, 10), torch.nan)
    x[:, : len(ALL)] = torch.where(torch.arange(9)[:, None] < 5, 1.0, torch.nan)
    x[:, NAMES.index("Beta")] = 0.5
    x[:, 0] = torch.nan
    vae = built()
    with torch.no_grad():
        vae.decoder[-1].start_at(x.double())
    mask = ~x.isnan()
    assert vae.loss(x, mask=mask).isfinite().all()
    with torch.no_grad():
        for group in vae.decoder[-1].groups.values():
            if hasattr(group, "raw_spread"):
                group.raw_spread.fill_(-1e6)  # as training on a constant would
    assert vae.loss(x, mask=mask).isfinite().all()


def test_a_mask_is_the_marginal_and_hidden_cells_have_no_gradient():
    x = table()
    vae = built(x)
    mask = torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) > 0.4
    z = torch.zeros(len(x), 1)
    cells = vae.decode(z).base_dist.log_prob(x)
    hidden = torch.where(mask, x, torch.nan)
    found = pv.vae.log_likelihood(vae.decode(z), hidden, mask)
    assert torch.allclose(found, (cells * mask).sum(-1), rtol=1e-5)
    vae.loss(hidden, mask=mask).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in vae.parameters() if p.grad is not None)


def test_modes_and_probabilities():
    x = table()
    vae = built(x)
    p_x = vae.decode(torch.zeros(2, 1)).base_dist
    for kind in (*CODES, "Bernoulli"):
        j = NAMES.index(kind)
        probs = p_x.probs_of(j)
        assert torch.allclose(probs.sum(-1), torch.ones(2))
        assert (probs.argmax(-1) == p_x.mode[:, j]).all()
    assert p_x.is_nominal.tolist() == [kind == "Categorical" for kind in NAMES]
    assert (p_x.mean == p_x.mode)[:, NAMES.index("Categorical")].all()
    with pytest.raises(AttributeError):
        p_x.probs_of(NAMES.index("Normal"))


@pytest.mark.parametrize("engine", ["eager", "graph"])
def test_training_with_missing_cells_improves_every_kind(engine):
    x = table(100)
    vae = built(x)
    mask = torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) > 0.2
    history = pv.fit(
        vae,
        torch.where(mask, x, torch.nan),
        mask=mask,
        epochs=12,
        learning_rate=3e-2,
        compile=engine,
    )
    assert history[-1].elbo > history[0].elbo + 1
    assert history.engine == engine


def test_engines_take_the_same_steps():
    x = table(40)
    found = []
    for engine in ("eager", "graph"):
        vae = built(x)
        pv.fit(vae, x, epochs=2, compile=engine, seed=0)
        found.append(vae.loss_terms(x[:1]).kl.item())
    assert found[0] == found[1]


def test_every_function_takes_a_model_of_columns(tmp_path):
    x = table(30)
    vae = built(x)
    mask = torch.ones_like(x, dtype=torch.bool)
    mask[3, NAMES.index("Categorical")] = mask[4, NAMES.index("LogNormal")] = False
    hidden = torch.where(mask, x, torch.nan)
    found = pv.impute(vae, hidden, mask=mask, num_samples=50, num_proposals=500)
    assert found.mean[3, NAMES.index("Categorical")].item() in (0, 1, 2)
    assert (found.draws[:, 4, NAMES.index("LogNormal")] > 0).all()
    assert torch.equal(found.mean[mask], x[mask])
    assert pv.log_evidence(vae, hidden, mask=mask, num_samples=50).log_px.isfinite().all()
    assert pv.to_arviz(vae, hidden, mask=mask, num_samples=5).observed_data["x"].shape == x.shape
    again = pv.load(pv.save(vae, tmp_path / "m"))
    assert again.spec == vae.spec
    assert torch.equal(again.encode(x).mean, vae.encode(x).mean)
    assert vae.double().loss(x).dtype == torch.float64


def test_a_wide_table_is_saved_and_loaded(tmp_path):
    """`load` limits what a file may ask for; the widths of columns are no shape."""
    kinds = [column("Normal"), *(column(kind, 5) for kind in CODES), "Poisson"] * 60
    vae = pv.build(240, likelihood={"name": "Columns", "kinds": kinds}, hidden=(4,), seed=0)
    again = pv.load(pv.save(vae, tmp_path / "m"))
    x = vae.sample(3, seed=0)
    assert torch.equal(again.encode(x).mean, vae.encode(x).mean)


@pytest.mark.parametrize("kind", CODES)
def test_a_file_cannot_ask_for_a_huge_number_of_categories(kind):
    kinds = [{"kind": kind, "num_categories": 10**11}]
    with pytest.raises(CorruptCheckpointError, match="far larger model"), _Budget(2**20, 10_000):
        pv.build(1, likelihood={"name": "Columns", "kinds": kinds})


def test_a_vamp_prior_has_pseudo_inputs_of_every_kind():
    x = table(40)
    mask = torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) > 0.2
    data = DictDataset(torch.where(mask, x, torch.nan), mask)
    vae = built(data, prior="VampPrior")
    assert torch.isfinite(vae.prior.pseudo_inputs).all()
    before = vae.prior.pseudo_inputs.clone()
    pv.fit(vae, data, epochs=2)
    assert (vae.prior.pseudo_inputs != before).any()
    assert torch.isfinite(vae.loss(x)).all()


# ---- errors and warnings


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        ("Normal", r"kinds = 'Normal', but it holds a kind for each column"),
        ([], r"holds a kind for each column"),
        (["Normal", "Gama"], r"(?s)column 1 has the kind 'Gama'.*Did you mean 'Gamma'"),
        (["Categorical"], r"column 0 is Categorical, which takes num_categories, but got none"),
        ([{"kind": "Normal", "df": 3}], r"column 0 is Normal, which takes no options, but got df"),
        ([{"kind": "Ordinal", "num_categories": 1}], r"num_categories = 1"),
    ],
)
def test_wrong_kinds_are_refused(kinds, message):
    with pytest.raises(ConfigError, match=message):
        Columns(kinds)


def test_the_number_of_columns_must_be_that_of_the_data():
    with pytest.raises(ConfigError, match=r"event_shape is \(3,\), but this Columns .* \(2,\)"):
        pv.build(3, likelihood={"name": "Columns", "kinds": ["Normal", "Normal"]})


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        ("Categorical", 3.0, "a Categorical likelihood needs whole numbers from 0 to 2"),
        ("Ordinal", 0.5, "an Ordinal likelihood needs whole numbers from 0 to 2"),
        ("Poisson", -1.0, "a Poisson likelihood needs whole numbers ≥ 0"),
        ("LogNormal", 0.0, "a LogNormal likelihood needs values > 0"),
        ("Gamma", -2.0, "a Gamma likelihood needs values > 0"),
        ("Beta", 1.0, r"a Beta likelihood needs values in \[0, 1\], or \(0, 1\)"),
        ("Bernoulli", 2.0, r"a Bernoulli likelihood needs values in \{0, 1\}"),
    ],
)
def test_a_value_outside_the_support_of_its_column_is_named(kind, value, message):
    pd = pytest.importorskip("pandas")
    x = table(6)
    vae = built(x)
    j = NAMES.index(kind)
    x[4, j] = value
    with pytest.raises(DataError, match=rf"x\[4, {j}\] = {value:g}, but {message}"):
        vae.loss(x)
    with pytest.raises(DataError, match=rf"column '{kind}': x\[4, {j}\]"):
        vae.loss(pd.DataFrame(x.numpy(), columns=NAMES))


def test_constant_columns_are_reported_by_kind():
    x = table(20)
    x[:, NAMES.index("Bernoulli")] = 1.0
    pv.fit(built(x), x, epochs=1)  # a constant probability is harmless
    x[:, 0] = 3.0
    mask = torch.ones_like(x, dtype=torch.bool)
    mask[0, 0] = False
    with pytest.warns(UserWarning, match=r"x\[:, 0\] is constant"):
        pv.fit(built(x), torch.where(mask, x, torch.nan), mask=mask, epochs=1)


# ---- inputs


def test_inputs_are_standardized_and_missing_ones_are_zero():
    x = table(100)
    vae = built(x)
    inputs = vae.encoder.inputs
    u = inputs(x)
    numbers = u[:, : len(inputs.numbers)]
    assert torch.allclose(numbers.mean(0), torch.zeros(numbers.shape[1]), atol=1e-3)
    assert torch.allclose(numbers.std(0, correction=0), torch.ones(numbers.shape[1]), atol=1e-3)
    assert torch.equal(u[:, len(inputs.numbers) :].sum(-1), torch.ones(100))
    assert inputs(inputs.neutral).abs().max() < 1e-3
    mask = torch.zeros_like(x, dtype=torch.bool)
    mask[:, 1] = True
    seen = pv.vae.visible(torch.where(mask, x, torch.nan), mask, vae.encoder)[0]
    assert inputs(seen)[:, inputs.mask_of(mask)[0] == 0].abs().max() < 1e-3


def test_an_encoder_that_sees_the_mask_sees_that_of_the_features():
    x = table(10)
    vae = built(x, sees_mask=True)
    mask = torch.ones_like(x, dtype=torch.bool)
    full = vae.encode(x, mask=mask).mean
    assert torch.equal(full, vae.encode(x).mean)
    mask[:, NAMES.index("Categorical")] = False
    assert not torch.equal(full, vae.encode(x, mask=mask).mean)


@pytest.mark.parametrize("name", ["standardized", "log1p"])
def test_inputs_of_images(name):
    x = torch.poisson(torch.full((20, 8, 8), 30.0))
    vae = pv.build((8, 8), likelihood="Poisson", network="conv", hidden=(4,), inputs=name, data=x)
    u = vae.encoder.inputs(x)
    assert u.shape == x.shape
    assert u.mean().abs() < 1e-3
    assert pv.fit(vae, x, epochs=1)[0].elbo < 0


def test_inputs_may_be_raw():
    x = table(10)
    assert not hasattr(built(x, inputs="raw").encoder, "inputs")
    assert isinstance(pv.build(2).encoder, nn.Sequential)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ("log1", r"(?s)'log1' is not one of standardized, log, log1p.*Did you mean 'log1p'"),
        (["log"], r"inputs holds 1 names, but a datum has shape \(2,\)"),
        (["log", {"name": "one_hot"}], r"is not one of"),
    ],
)
def test_wrong_inputs_are_refused(inputs, message):
    with pytest.raises(ConfigError, match=message):
        pv.build(2, inputs=inputs)


def test_imputed_categories_are_the_most_frequent_draws_in_any_program():
    x = table(30)
    vae = built(x)

    class Custom(pv.VAE):  # not a plain VAE, so it is imputed by its Pyro program
        def model(self, x, y=None, mask=None):
            super().model(x, y, mask)

    mask = torch.ones_like(x, dtype=torch.bool)
    mask[:, NAMES.index("Categorical")] = False
    for program in (vae, Custom(vae.prior, vae.encoder, vae.decoder)):
        found = pv.impute(program, x, mask=mask, num_samples=30, num_proposals=100)
        codes = found.draws[..., NAMES.index("Categorical")]
        assert torch.equal(found.mean[:, NAMES.index("Categorical")], codes.mode(0).values)
