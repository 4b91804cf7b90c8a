"""Public functions inside the caller's contexts: the same bits as outside, or one clear error."""

import contextlib
import io
import sys
import warnings

import pytest
import torch
from helpers import bits, small_vae

import pyrovae as pv
from pyrovae import diagnostics, posterior
from pyrovae.checks import warn_caller
from pyrovae.errors import ConfigError

X = bits(12)
MASK = bits(12, seed=1).bool()
ROWS = torch.arange(2)
FEW = {"num_samples": 4, "num_warmup": 4}


def trained(vae, x, folder):
    history = pv.fit(vae, x, epochs=2, batch_size=5, validation=x, progress=None)
    return [history[-1].elbo, history[-1].validation_elbo, *vae.state_dict().values()]


def saved(vae, x, folder):
    again = pv.load(pv.save(vae, folder / "vae.safetensors"))
    return [*again.state_dict().values(), again.encode(x).mean]


def container(vae, x, folder):
    found = pv.to_arviz(vae, x, num_samples=5)
    return [found.posterior["z"].values, found.log_likelihood["x"].values]


def mean(x):
    return x.mean(0)


def by_name(record, *names):
    return [getattr(record, name) for name in names]


AIS = {"num_samples": 2, "num_temperatures": 5}
REFINED = {"num_samples": 20, "num_steps": 5}

# name → (vae, x, folder) → numbers, a few milliseconds each
CALLS = {
    "fit": trained,
    "loss": lambda vae, x, _: seeded(lambda: vae.loss(x)),
    "encode": lambda vae, x, _: vae.encode(x).mean,
    "encode a list": lambda vae, x, _: vae.encode(x.tolist()).mean,
    "decode": lambda vae, x, _: vae.decode([[0.5, 1.0]]).mean,
    "sample": lambda vae, x, _: vae.sample(3, seed=0),
    "reconstruct": lambda vae, x, _: vae.reconstruct(x, seed=0),
    "elbo_terms": lambda vae, x, _: pv.elbo_terms(vae, x, num_samples=3).log_weights,
    "iwae": lambda vae, x, _: pv.log_evidence(vae, x, method="iwae", num_samples=9)[:4],
    "importance": lambda vae, x, _: pv.log_evidence(vae, x, num_samples=20)[:4],
    "refined": lambda vae, x, _: pv.log_evidence(vae, x, method="refined", **REFINED)[:4],
    "ais": lambda vae, x, _: pv.log_evidence(vae, x, method="ais", **AIS)[:2],
    "grid": lambda vae, x, _: pv.log_evidence(vae, x[:2], method="grid").log_px,
    "bdmc": lambda vae, x, _: by_name(pv.evidence.bdmc(vae, 3, **AIS), "lower", "upper"),
    "posterior.grid": lambda vae, x, _: posterior.grid(vae, x[:2], num_samples=5).draws,
    "sir": lambda vae, x, _: posterior.sir(vae, x, num_samples=5, num_proposals=50).draws,
    "hmc": lambda vae, x, _: posterior.hmc(vae, x[:2], num_chains=4, **FEW).draws,
    "refine": lambda vae, x, _: posterior.refine(vae, x, num_steps=3)[1],
    "impute": lambda vae, x, _: pv.impute(vae, x, mask=MASK, num_samples=3, num_proposals=30)[:2],
    "to_arviz": container,
    "save and load": saved,
    "decompose_elbo": lambda vae, x, _: diagnostics.decompose_elbo(vae, x, num_samples=3).mean_elbo,
    "active_units": lambda vae, x, _: diagnostics.active_units(vae, x).variance,
    "collapsed_dimensions": lambda vae, x, _: diagnostics.collapsed_dimensions(vae, x).share,
    "pareto_k": lambda vae, x, _: diagnostics.pareto_k(vae, x, num_samples=50)[:2],
    "inference_gaps": lambda vae, x, _: diagnostics.inference_gaps(vae, x, num_steps=9)[0],
    "calibration": lambda vae, x, _: list(diagnostics.calibration(vae, 20, num_draws=19)[:1]),
    "aggregate_test": lambda vae, x, _: diagnostics.aggregate_test(vae, x, num_draws=9)[:2],
    "prior_check": lambda vae, x, _: diagnostics.prior_check(vae, x, statistic=mean)[:2],
    "posterior_check": lambda vae, x, _: diagnostics.posterior_check(vae, x, statistic=mean)[:2],
    "prior_sensitivity": lambda vae, x, _: diagnostics.prior_sensitivity(vae, x)[:2],
    "feature_check": lambda vae, x, _: diagnostics.feature_check(vae, x, num_samples=30)[:2],
    "coverage": lambda vae, x, _: diagnostics.coverage(vae, 20, num_draws=9)[:2],
    "local_coverage": lambda vae, x, _: diagnostics.local_coverage(vae, x[:2], n=9)[:2],
    "posterior_calibration": lambda vae, x, _: diagnostics.posterior_calibration(vae, x[:2], n=9)[
        :4
    ],
    "typicality": lambda vae, x, _: list(diagnostics.typicality(vae, x, num_replicates=20)),
    "effective_latents": lambda vae, x, _: by_name(
        diagnostics.effective_latents(vae, x), "variance", "probability"
    ),
    "prune": lambda vae, x, _: list(pv.prune(vae, x, dimensions=[0]).vae.parameters()),
    "compare_priors": lambda vae, x, _: compared(vae, x),
    "escalate": lambda vae, x, _: escalated(vae, x),
}


def compared(vae, x):
    found = diagnostics.compare_priors({"a": vae, "b": vae}, x, method="iwae", num_samples=9)
    return list(found.log_px.values())


def escalated(vae, x):
    return diagnostics.escalate(vae, x, rows=ROWS, method="sir", num_samples=5).draws


def seeded(call):
    torch.manual_seed(0)
    return call()


def numbers(found):
    """Flatten results to one list of float64 tensors on the CPU."""
    if isinstance(found, list | tuple):
        return [t for part in found for t in numbers(part)]
    return [] if found is None else [torch.as_tensor(found).detach().double().clone()]


def is_equal(a, b):
    pairs = zip(numbers(a), numbers(b), strict=True)
    return all(torch.equal(s.nan_to_num(7.0), t.nan_to_num(7.0)) for s, t in pairs)


@contextlib.contextmanager
def default(setting, reset, value, before):
    setting(value)
    try:
        yield
    finally:
        reset(before)


def dtype(value):
    return default(torch.set_default_dtype, torch.set_default_dtype, value, torch.float32)


@contextlib.contextmanager
def stderr(stream):
    before, sys.stderr = sys.stderr, stream
    try:
        yield
    finally:
        sys.stderr = before


def closed():
    stream = io.StringIO()
    stream.close()
    return stream


CONTEXTS = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "device": lambda: torch.device("meta"),
    "default device": lambda: default(
        torch.set_default_device, torch.set_default_device, "meta", None
    ),
    "float64": lambda: dtype(torch.float64),
    "float16": lambda: dtype(torch.float16),
    "no stderr": lambda: stderr(None),
    "closed stderr": lambda: stderr(closed()),
}


@pytest.fixture(scope="module")
def alone():
    """The numbers of each call outside of all contexts, computed once."""
    return {}


PAIRS = [(call, context) for call in CALLS for context in CONTEXTS]
PAIRS.remove(("loss", "autocast"))  # for a custom training loop in mixed precision


@pytest.mark.parametrize(("call", "context"), PAIRS)
def test_numbers_do_not_depend_on_the_context(call, context, alone, tmp_path):
    if call not in alone:
        alone[call] = numbers(CALLS[call](small_vae(), X, tmp_path))
    vae = small_vae()
    with CONTEXTS[context]():
        found = CALLS[call](vae, X, tmp_path)
    assert is_equal(found, alone[call])


def test_the_loss_follows_autocast_in_float32():
    """Networks compute in 16 bits, as a custom training loop asks for; densities do not."""
    vae = small_vae()
    expected = seeded(lambda: vae.loss(X))
    with torch.autocast("cpu", torch.bfloat16):
        found = seeded(lambda: vae.loss(X))
    assert found.dtype == torch.float32
    assert not torch.equal(found, expected)
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)  # 8 bits: 0.4 % each


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_loss_and_encode_have_no_gradient_where_the_caller_wants_none(context):
    vae = small_vae()
    with context():
        assert not vae.loss(X).requires_grad
        assert not vae.encode(X).mean.requires_grad
    assert vae.loss(X).requires_grad


def test_data_made_in_inference_mode_can_be_trained_on():
    with torch.inference_mode():
        x = X.clone()
    vae = small_vae()
    vae.loss(x).sum().backward()
    assert trained(vae, x, None)[0] == trained(small_vae(), X, None)[0]
    assert is_equal(CALLS["hmc"](vae, x, None), CALLS["hmc"](vae, X, None))


def on_meta():
    with torch.device("meta"):
        return small_vae()


def in_inference_mode():
    with torch.inference_mode():
        return small_vae()


UNUSABLE = {
    "float16": (lambda: small_vae().half(), "float16(.|\n)*vae.float()"),
    "bfloat16": (lambda: small_vae().bfloat16(), "bfloat16(.|\n)*precision='bf16'"),
    "meta": (on_meta, "no values(.|\n)*outside of torch.device"),
    "inference mode": (in_inference_mode, "inference mode(.|\n)*Build it outside"),
}


@pytest.mark.parametrize("call", [call for call in CALLS if call != "save and load"])
@pytest.mark.parametrize("kind", UNUSABLE)
def test_a_program_that_cannot_be_computed_is_refused(call, kind, tmp_path):
    make, words = UNUSABLE[kind]
    vae = make()
    generator = torch.get_rng_state()
    with pytest.raises(ConfigError, match=words) as caught:
        CALLS[call](vae, X, tmp_path)
    assert str(caught.value).count("\n") < 6
    if call != "loss":  # seeded here
        assert torch.equal(torch.get_rng_state(), generator)
    assert vae.training
    assert not list(tmp_path.iterdir())


def test_a_model_of_16_bits_is_saved_and_loaded(tmp_path):
    vae = small_vae().half()
    again = pv.load(pv.save(vae, tmp_path / "half.safetensors"))
    assert is_equal(list(again.state_dict().values()), list(vae.state_dict().values()))


def test_a_model_without_values_is_neither_saved_nor_filled(tmp_path):
    with pytest.raises(ConfigError, match="no values to save or to fill"):
        pv.save(on_meta(), tmp_path / "meta.safetensors")
    path = pv.save(small_vae(), tmp_path / "vae.safetensors")
    with pytest.raises(ConfigError, match="no values to save or to fill"):
        pv.load(path, into=on_meta())


def test_progress_does_not_need_a_stderr():
    for stream in (None, closed()):
        with stderr(stream):
            pv.fit(small_vae(), X, epochs=1, progress=True)


def test_a_warning_on_a_closed_stderr_does_not_end_the_call(monkeypatch):
    # as Python does outside of pytest, which records warnings
    monkeypatch.setattr(warnings, "showwarning", lambda *_: sys.stderr.write("warning"))
    with warnings.catch_warnings(), stderr(closed()):
        warnings.simplefilter("always")
        warn_caller("nobody reads this")
