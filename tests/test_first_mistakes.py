"""Common first mistakes in parts and arguments: each is named, with a fix."""

import pickle

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import bits
from pyro.infer import JitTrace_ELBO
from torch import nn
from torch.optim.lr_scheduler import ExponentialLR
from torch.utils.data import DataLoader, TensorDataset

import pyrovae as pv
from pyrovae.cli.data import read_rows
from pyrovae.errors import ConfigError, DataError, DivergenceError
from pyrovae.networks import Given
from pyrovae.vae import fill, observed_only

X = bits(40, 6)
Y = torch.rand(40, 2, generator=torch.Generator().manual_seed(1))


def build(**settings):
    return pv.build((6,), **{"latent_dim": 2, "seed": 0} | settings)


class Part(nn.Module):
    """A function as a part with one parameter."""

    def __init__(self, function):
        super().__init__()
        self.weight, self.function = nn.Parameter(torch.zeros(2)), function

    def forward(self, *args):
        return self.function(self.weight, *args)


def vae(**parts):
    of = build()
    return pv.VAE(*(parts.get(n, getattr(of, n)) for n in ("prior", "encoder", "decoder")))


def prior_without_to_event(weight):
    return dist.Normal(weight, 1.0)


def encoder_without_to_event(weight, x):
    return dist.Normal(x[:, :2] + weight, 1.0)


def joined_by_cat(weight, z, y):
    return dist.Bernoulli(logits=torch.cat([z, y + weight, z], -1)).to_event(1)


def prior_of_y(weight, y):
    return dist.Normal(y * weight, 1.0).to_event(1)


class OfPyrosTutorial(nn.Module):
    """Model and guide of x alone."""

    def __init__(self):
        super().__init__()
        self.vae = build()

    def model(self, x):
        self.vae.model(x)

    def guide(self, x):
        self.vae.guide(x)


MISTAKES = {
    "prior without to_event": (
        lambda: vae(prior=Part(prior_without_to_event)).loss(X),
        r"the prior returned batch_shape \(2,\)[\s\S]*\.to_event\(1\)",
    ),
    "encoder without to_event": (
        lambda: vae(encoder=Part(encoder_without_to_event)).loss(X),
        r"the encoder returned batch_shape \(2, 2\)[\s\S]*\.to_event\(1\)",
    ),
    "z and y joined by torch.cat": (
        lambda: vae(decoder=Given(Part(joined_by_cat))).loss(X, Y),
        r"the decoder failed on an input of shape \(3, 2, 2\)[\s\S]*concat",
    ),
    "y left out": (
        lambda: vae(decoder=Given(Part(joined_by_cat))).loss(X),
        r"Given covariates, but y is None",
    ),
    "y left out of sample": (
        lambda: vae(prior=Given(Part(prior_of_y))).sample(3),
        r"Given covariates, but y is None",
    ),
    "y that no part sees": (lambda: build().loss(X, Y), "no part of this VAE sees covariates"),
    "a mask in the place of y": (
        lambda: pv.fit(build(), X, validation=(X, X > 0)),
        r"^in validation: y was given[\s\S]*\(x, None, mask\)",
    ),
    "a data set for validation": (
        lambda: pv.fit(build(), X, validation=pv.datasets.digits()),
        r"validation is a Data of \d[\s\S]*data\.test",
    ),
    "an iterator for validation": (
        lambda: pv.fit(build(), X, validation=iter([X])),
        "^in validation: x is a list_iterator",
    ),
    "validation without y": (
        lambda: pv.fit(vae(prior=Given(Part(prior_of_y))), X, Y, validation=X),
        r"covariates y, but validation has none[\s\S]*\(x_test, y_test\)",
    ),
    "data in words": (lambda: build(data=["one", "two"]), "x has dtype <U3"),
    "one width": (lambda: build(hidden=100), r"Write hidden=\(100,\)"),
    "a class for a prior": (
        lambda: vae(prior=pv.priors.StandardNormal),
        r"prior is the class StandardNormal[\s\S]*StandardNormal\(",
    ),
    "no encoder": (
        lambda: pv.VAE(build().prior, None, build().decoder),
        "Join a network and a head",
    ),
    "a class to fit": (lambda: pv.fit(pv.VAE, X), "program is the class VAE"),
    "one callback": (lambda: pv.fit(build(), X, callbacks=print), r"callbacks=\["),
    "z of another width": (
        lambda: build().decode(torch.zeros(3, 5)),
        r"z has shape \(3, 5\), but p\(z\) is over vectors of 2",
    ),
    "an unknown flow": (
        lambda: build(prior={"name": "FlowPrior", "flow": "couplin"}),
        "autoregressive, coupling, spline",
    ),
    "options without a name": (lambda: build(prior={"num_components": 20}), "but not its name"),
    "a model of x alone": (
        lambda: pv.fit(OfPyrosTutorial(), X),
        r"the model of a OfPyrosTutorial cannot be called[\s\S]*y=None, mask=None",
    ),
    "a prior of bits": (
        lambda: build(prior="Bernoulli").loss(X),
        r"lives on \{0, 1\}, but[\s\S]*the real numbers[\s\S]*guides\.Bernoulli",
    ),
    "too many bits to sum out": (
        lambda: pv.fit(
            build(prior="Bernoulli", guide="Bernoulli", latent_dim=13),
            X,
            objective=pv.objectives.EnumELBO(),
        ),
        r"2\^13 = 8192 joint values",
    ),
    "an objective of torch.jit": (
        lambda: pv.fit(build(), X, objective=JitTrace_ELBO()),
        r"JitTrace_ELBO, which torch\.jit traces for one batch size",
    ),
    "a label that is NaN": (
        lambda: vae(decoder=Given(Part(joined_by_cat))).loss(X, Y * torch.nan),
        r"^y\[0, 0\] = nan[\s\S]*Drop these rows",
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_named_in_six_lines(case):
    make, match = MISTAKES[case]
    with pytest.raises((ConfigError, DataError), match=match) as caught:
        make()
    assert len(str(caught.value).splitlines()) <= 6


class OfOnesOwn(pv.VAE):
    """A model that uses y without a part wrapped in `Given`."""

    def model(self, x, y=None, mask=None):
        self.seen = None if y is None else tuple(y.shape)
        super().model(x, y, mask)


def test_a_vae_with_a_custom_model_may_see_covariates():
    of = build()
    own = OfOnesOwn(of.prior, of.encoder, of.decoder)
    for x, y in ((X, Y), (TensorDataset(X, Y), None)):
        pv.fit(own, x, y, epochs=1, batch_size=40)
        assert own.seen == (40, 2)


def test_a_part_with_optional_covariates_diverges_like_others():
    """Not an error of y: the step is named, and the parameters are those before."""
    calls = []

    def fails(weight, z, y=None):
        calls.append(torch.is_grad_enabled())
        loc = z[..., :1] * weight[0] if sum(calls) < 3 else z[..., :1] * torch.nan
        return dist.Normal(loc.expand(*z.shape[:-1], 6), 1.0).to_event(1)

    with pytest.raises(DivergenceError, match="at step 3"):
        pv.fit(vae(decoder=Given(Part(fails))), X, epochs=9, batch_size=40, compile="eager")


@pytest.mark.parametrize("kind", [ConfigError, DataError])
def test_errors_take_the_arguments_of_value_errors(kind):
    assert kind().args == ()
    assert kind("a", 2).args == ("a", 2)
    assert isinstance(kind(KeyError("a")).args[0], KeyError)
    assert pickle.loads(pickle.dumps(kind("a"))).args == ("a",)


def test_models_with_and_without_covariates_are_compared_on_the_same_data():
    by_hand = Given(Part(lambda weight, z, y: joined_by_cat(weight, z, y.expand(*z.shape[:-1], 2))))
    models = {"with": vae(decoder=by_hand), "without": vae()}
    found = pv.diagnostics.compare_priors(models, X, Y)
    expected = pv.log_evidence(models["without"], X, method="auto").log_px
    assert torch.equal(found.log_px["without"], expected)
    with pytest.raises(DataError, match="no part of this VAE sees covariates"):
        pv.diagnostics.compare_priors({"without": vae()}, X, Y, num_samples=50)


def test_the_same_done_right():
    by_hand = Given(Part(lambda weight, z, y: joined_by_cat(weight, z, y.expand(*z.shape[:-1], 2))))
    history = pv.fit(vae(decoder=by_hand, prior=Given(Part(prior_of_y))), X, Y, epochs=1)
    assert history[-1].elbo < 0
    labels = TensorDataset(X, torch.zeros(40))  # which no part sees, and a Dataset gives anyway
    assert pv.fit(build(), labels, validation=labels, epochs=1, callbacks=[print])


@pytest.mark.parametrize("family", ["prior", "guide"])
@pytest.mark.parametrize("flow", ["coupling", "autoregressive", "spline"])
def test_flows_by_name_are_saved_with_the_model(family, flow, tmp_path):
    name = {"prior": "FlowPrior", "guide": "FlowGuide"}[family]
    made = build(**{family: {"name": name, "flow": flow}})
    pv.save(made, tmp_path / "model.safetensors")
    loaded = pv.load(tmp_path / "model.safetensors")
    torch.manual_seed(0)
    before = made.loss(X)
    torch.manual_seed(0)
    assert torch.equal(loaded.loss(X), before)


# Custom programs.


class Own(nn.Module):
    """A model and a guide with the mistake named by `wrong`."""

    def __init__(self, wrong=""):
        super().__init__()
        of = build()
        self.encoder, self.decoder, self.wrong = of.encoder, of.decoder, wrong

    def model(self, x, y=None, mask=None):
        name = "batch" if self.wrong == "name" else "data"
        sizes = {"size": 400, "subsample": x} if self.wrong == "scale" else {"size": len(x)}
        with pyro.plate(name, **sizes):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            if "masks" in self.wrong:
                p_x = self.decoder(z)
                pyro.sample("x", observed_only(p_x, mask), obs=fill(x, mask, p_x.support))
            else:
                pyro.sample("x", self.decoder(z), obs=x)

    def guide(self, x, y=None, mask=None):
        q = self.encoder(fill(x, mask))
        if self.wrong == "event":
            q = q.base_dist
        if self.wrong == "no plate":
            return pyro.sample("z", q)
        with pyro.plate("batch" if self.wrong == "name" else "data", len(x)):
            return pyro.sample("z", q)


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ("name", r"site 'x' is not inside a plate 'data'.*\n.*pyro.plate\('data', len\(x\)\)"),
        ("no plate", r"'z' is inside the plate 'data' in the model, but not in the guide"),
        ("scale", r"log p\(z\) in the model and log q\(z\|x\) in the guide are scaled by"),
        ("event", r"is over shape \(2,\), but q\(z\|x\) is over \(\).*\n.*\.to_event\(1\)"),
    ],
)
@pytest.mark.parametrize("use", [pv.fit, pv.elbo_terms, pv.log_evidence])
def test_plates_and_events_of_a_custom_program(wrong, match, use):
    use(Own(), X, **{"epochs": 1} if use is pv.fit else {})
    with pytest.raises(ConfigError, match=match):
        use(Own(wrong), X)


@pytest.mark.parametrize("use", [pv.fit, pv.elbo_terms, pv.log_evidence])
@pytest.mark.parametrize("hidden", [torch.nan, 0.0])
@pytest.mark.parametrize("is_mapped", [False, True], ids=["in memory", "memory-mapped"])
def test_a_custom_program_that_does_not_use_the_mask(use, hidden, is_mapped, tmp_path):
    mask = torch.arange(240).reshape(40, 6) % 7 > 0
    x = X.masked_fill(~mask, hidden)
    if is_mapped:
        np.save(tmp_path / "x.npy", x.numpy())
        np.save(tmp_path / "mask.npy", mask.numpy())
        x, mask = (np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in ("x", "mask"))
    with pytest.raises(ConfigError, match=r"model of this Own does not use it.*\n.*observed_only"):
        use(Own(), x, mask=mask)
    use(Own("nothing: it masks"), x, mask=mask)
    use(Own(), X, mask=np.ones_like(mask))  # all observed


# A mask where labels stand.


def test_a_data_set_of_masks_in_the_place_of_labels():
    mask = X > 0
    with pytest.raises(DataError, match=r"looks like a mask.*\n.*\{'x': x, 'mask': mask\}"):
        pv.fit(build(), TensorDataset(X, mask))
    rows = [{"x": x, "mask": m} for x, m in zip(X, mask, strict=True)]
    pv.fit(build(), DataLoader(rows, 10), epochs=1)
    pv.fit(build(), TensorDataset(X, X[:, 0] > 0), epochs=1)  # labels


# Settings.


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: pv.objectives.linear_warmup(10), "fraction = 10, .* fraction of the training"),
        (lambda: pv.objectives.cosine_warmup(10), "fraction = 10, .* fraction of the training"),
        (lambda: pv.objectives.cyclical(4, rise=2), "rise = 2, .* fraction of a cycle"),
    ],
)
def test_a_warm_up_in_epochs(make, match):
    with pytest.raises(ConfigError, match=match):
        make()


def weights():
    return [nn.Parameter(torch.zeros(2))]


@pytest.mark.parametrize(
    ("setting", "name"),
    [
        ({"optimizer": pyro.optim.ClippedAdam({"lr": 1e-3})}, "ClippedAdam"),
        ({"optimizer": torch.optim.SGD(weights(), 0.1)}, "SGD"),
        ({"scheduler": ExponentialLR(torch.optim.SGD(weights()), 0.9)}, "ExponentialLR"),
    ],
)
def test_an_optimizer_that_is_already_constructed(setting, name):
    with pytest.raises(ConfigError, match=rf"builds its own.*\n.*partial\({name}, …\)"):
        pv.fit(build(), X, **setting)


# Priors and comparisons.


@pytest.mark.parametrize(
    ("prior", "match"),
    [
        ("GaussianMixture", r"prior is a str.*\n.*priors\.GaussianMixture"),
        (
            pv.priors.GaussianMixture(3),
            r"over shape \(3,\), but the latents .* \(2,\).*\n.*latent_dim",
        ),
    ],
)
def test_a_prior_that_cannot_be_refitted(prior, match):
    with pytest.raises(ConfigError, match=match):
        pv.refit_prior(build(), X, prior)


def test_a_probability_against_a_density():
    models = {"bits": build(), "reals": build(likelihood="Normal")}
    match = "'bits' gives x a probability, 'reals' a density"
    with pytest.raises(ConfigError, match=match):
        pv.diagnostics.compare_priors(models, X, num_samples=30)
    with pytest.raises(ConfigError, match="models is a VAE, but must map at least one name"):
        pv.diagnostics.compare_priors(build(), X)


@pytest.mark.parametrize("likelihood", ["NegativeBinomial", "Poisson"])
def test_bdmc_of_a_model_with_covariates(likelihood):
    vae = build(likelihood=likelihood)
    sandwich = pv.evidence.bdmc(vae, 3, torch.ones(3), num_temperatures=20)
    assert sandwich.lower.shape == (3,)
    assert abs(sandwich.gap) < 0.5
    with pytest.raises(DataError, match="y has shape"):
        pv.evidence.bdmc(vae, 3, torch.ones(2))


def test_the_largest_seed_and_an_empty_file(tmp_path):
    found = pv.refit_prior(build(), X, pv.priors.LearnedNormal(2), seed=2**64 - 1, epochs=1)
    assert found.gain.std_error > 0
    np.save(tmp_path / "x.npy", np.zeros((0, 8, 8), np.uint8))
    x, is_bytes = read_rows(str(tmp_path / "x.npy"), "Bernoulli")
    assert (tuple(x.shape), is_bytes) == ((0, 8, 8), False)


def prior_of(make):
    return pv.priors.Fixed(make, loc=torch.zeros(2))


def fit_with(**settings):
    return pv.fit(build(), X, epochs=1, progress=False, **settings)


class Together(nn.Module):
    """A program with one row for all data."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def model(self, x, y=None, mask=None):
        pyro.module("together", self)
        with pyro.plate("data", 1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z + self.weight, 1.0).expand([1]), obs=x[:1])

    def guide(self, x, y=None, mask=None):
        with pyro.plate("data", 1):
            pyro.sample("z", dist.Normal(self.weight, 1.0))


class NoGuideForB(Together):
    def model(self, x, y=None, mask=None):
        pyro.module("together", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("b", dist.Normal(0.0, 1.0)) + pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(self, x, y=None, mask=None):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.weight, 1.0))


WRONG_ARGUMENTS = {
    "a vae called": (lambda: build()(X), "vae.loss"),
    "one latent vector": (lambda: build().decode(torch.zeros(2)), r"z\[None\]"),
    "a prior that is a tensor": (lambda: prior_of(lambda loc: loc), "returned a Tensor"),
    "a prior of two numbers": (lambda: prior_of(lambda loc: dist.Normal(loc, 1.0)), "to_event"),
    "a share to hold out": (lambda: fit_with(validation=0.1), "held-out data, not a fraction"),
    "a site that x lacks": (
        lambda: pv.diagnostics.feature_check(build(), X, site="text"),
        "the sites of x are 'x'",
    ),
    "an option that a part lacks": (
        lambda: build(prior={"name": "GaussianMixture", "num_parts": 3}),
        "Its signature is GaussianMixture",
    ),
    "a choice without its name": (lambda: build(prior={"num_components": 3}), "not its name"),
    "a mask by site": (lambda: build().loss(X, mask={"x": X > 0}), "mask is a dict"),
    "a decoder that returns a tensor": (
        lambda: pv.VAE(build().prior, build().encoder, Part(lambda w, z: z)).loss(X),
        "must return a pyro.distributions.Distribution",
    ),
    "one row for all data": (lambda: pv.elbo_terms(Together(), X[:, 0]), "1 rows"),
    "a latent without a guide": (
        lambda: pv.elbo_terms(NoGuideForB(), X[:, 0]),
        "in the model only",
    ),
    "an unknown engine": (lambda: fit_with(compile="jax"), "jax"),
    "a level of 2": (
        lambda: pv.diagnostics.binary_calibration(build(), X, level=2.0),
        "level",
    ),
}


@pytest.mark.parametrize("name", WRONG_ARGUMENTS)
def test_a_wrong_argument_is_named(name):
    make, match = WRONG_ARGUMENTS[name]
    with pytest.raises((ConfigError, DataError), match=match) as caught:
        make()
    assert len(str(caught.value).splitlines()) <= 6
