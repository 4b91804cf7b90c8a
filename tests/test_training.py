"""`fit`: results, reports, and that everything else stays unchanged."""

import itertools
import math
import random

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import bits, digest, generators, small_vae
from pyro.infer import (
    RenyiELBO,
    ReweightedWakeSleep,
    Trace_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
    TraceTailAdaptive_ELBO,
)
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    TensorDataset,
)

import pyrovae as pv
from pyrovae.data import Batch
from pyrovae.errors import ConfigError, DivergenceError
from pyrovae.handlers import own_store
from pyrovae.networks import Given
from pyrovae.training.eager import EagerLoss, Settings
from pyrovae.training.step import TrainingStep


def trained(vae=None, x=None, **settings):
    """Return the hash of a small VAE's weights after a short `fit`."""
    vae = small_vae() if vae is None else vae
    pv.fit(vae, bits(20) if x is None else x, **{"epochs": 2, "batch_size": 8, **settings})
    return digest(vae)


def ignoring_y(part):
    """Return the part wrapped as one that takes y."""
    wrapped = nn.Module()
    wrapped.part, wrapped.forward = part, lambda x, y: part(x)
    return wrapped


class Constant(nn.Module):
    """A part that ignores its input: N(loc, 1) over the cells of loc."""

    def __init__(self, loc, learned=True):
        super().__init__()
        self.loc = nn.Parameter(loc) if learned else nn.Buffer(loc)

    def forward(self, given):
        return dist.Normal(self.loc.expand(*given.shape[:-1], -1), 1.0).to_event(1)


def constant_vae():
    """q(z|x) = p(z) = N(0, 1) and p(x|z) = N(0, I₄): log p(x|z) does not depend on the draw."""
    encoder = Constant(torch.zeros(1), learned=False)
    return pv.VAE(pv.priors.StandardNormal(1), encoder, Constant(torch.zeros(4))).double()


# What is learned and reported.


def test_fit_improves_the_elbo_of_digits():
    digits = pv.datasets.digits()
    x, test = (pv.datasets.binarize(part) for part in (digits.train, digits.test))
    vae = pv.build((8, 8), latent_dim=2, hidden=(32,), seed=0)
    before = pv.elbo_terms(vae, test).log_weights.mean()
    history = pv.fit(vae, x, epochs=4, learning_rate=5e-3)
    after = pv.elbo_terms(vae, test).log_weights
    assert history["elbo"] == sorted(history["elbo"])
    # an untrained net scores −64 log 2 = −44.4 nats; the gain must exceed 5 standard errors
    assert after.mean() - before > 5 * after.std() / math.sqrt(len(test))
    for record in history:
        assert record.elbo == pytest.approx(-record.reconstruction - record.kl)


def test_a_ragged_last_batch_counts_each_datum_once():
    """N = 10 in batches of 4, 4, 2: Σ_i log p(x_i) / N, and not the mean of batch means."""
    generator = torch.Generator().manual_seed(0)
    scale = torch.arange(1.0, 11.0)[:, None]
    x = (scale * torch.randn(10, 4, generator=generator)).double()
    log_p = dist.Normal(0.0, 1.0).log_prob(x).sum(-1)
    means = []
    for seed in range(5):  # other batches, the same sum
        settings = {"batch_size": 4, "learning_rate": 1e-12, "epochs": 1, "seed": seed}
        history = pv.fit(constant_vae(), x, validation=x, **settings)
        # the weights move by at most 3 · 1e-12, times |∂ log p| < 100
        assert history[0].elbo == pytest.approx(log_p.mean().item(), abs=1e-9)
        assert history[0].validation_elbo == pytest.approx(log_p.mean().item(), abs=1e-9)
        assert history[0].kl == pytest.approx(0.0, abs=1e-9)
        torch.manual_seed(seed)
        means.append(torch.stack([b.mean() for b in log_p[torch.randperm(10)].split(4)]).mean())
    assert min(abs(m - log_p.mean()) for m in means) > 1e-3  # the wrong average would be seen


@pytest.mark.parametrize("objective", [None, Trace_ELBO()])
def test_each_batch_steps_by_the_mean_over_its_own_size(objective):
    """The gradient does not depend on B, so 1 and 7 copies of a datum train alike.

    Adam hides a factor in the gradient but for its ε = 1e-8: a sum would differ by 1e-9 or more.
    """
    x = torch.tensor([[1.0, -2.0, 0.5, 3.0]], dtype=torch.float64)
    single, repeated = constant_vae(), constant_vae()
    settings = {"objective": objective, "epochs": 3, "batch_size": 7, "learning_rate": 0.1}
    pv.fit(single, x, **settings)
    pv.fit(repeated, x.expand(7, -1), **settings)
    assert torch.allclose(single.decoder.loc, repeated.decoder.loc, rtol=0, atol=1e-13)
    assert single.decoder.loc.abs().min() > 0.1


PYROS = {
    "Trace_ELBO": Trace_ELBO(),
    "Trace_ELBO, particles": Trace_ELBO(num_particles=3, vectorize_particles=True),
    "TraceMeanField_ELBO": TraceMeanField_ELBO(),
    "TraceGraph_ELBO": TraceGraph_ELBO(),
    "RenyiELBO": RenyiELBO(alpha=0.5, num_particles=2),
    "RenyiELBO, IWAE": RenyiELBO(alpha=0, num_particles=3, vectorize_particles=True),
    "ReweightedWakeSleep": ReweightedWakeSleep(num_particles=2, vectorize_particles=True),
    "TraceTailAdaptive_ELBO": TraceTailAdaptive_ELBO(num_particles=2, vectorize_particles=True),
    "BetaELBO": pv.objectives.BetaELBO(4.0),
    "BetaELBO(0)": pv.objectives.BetaELBO(0.0),
    "TraceELBO, particles": pv.objectives.TraceELBO(num_particles=3),
}


@pytest.mark.parametrize("name", PYROS)
def test_any_elbo_trains_every_parameter_and_the_report_is_the_elbo(name):
    vae = small_vae().double()  # float32 would round a step of 1e-9 away
    before = [p.clone() for p in vae.parameters()]
    settings = {"objective": PYROS[name], "batch_size": 500, "learning_rate": 1e-9, "epochs": 1}
    history = pv.fit(vae, bits(2000), **settings)
    assert all((p != b).any() for p, b in zip(vae.parameters(), before, strict=True))
    terms = pv.elbo_terms(vae, bits(2000), num_samples=20)
    # one draw a datum (or a mean of more): k = 5 standard errors of a mean over 2000 data
    error = 5 * terms.log_weights[0].std().item() / math.sqrt(2000)
    assert history[0].elbo == pytest.approx(terms.log_weights.mean().item(), abs=error)
    kl_error = 5 * terms.kl[0].std().item() / math.sqrt(2000)
    assert history[0].kl == pytest.approx(terms.kl.mean().item(), abs=kl_error)


def test_the_default_objective_is_the_negative_elbo():
    assert trained() == trained(objective=pv.objectives.TraceELBO())
    assert trained() != trained(objective=pv.objectives.BetaELBO(4.0))


def test_one_objective_serves_two_models():
    """Pyro's objectives remember the plate nesting of the first model that they see."""
    objective, fresh = (Trace_ELBO(num_particles=2, vectorize_particles=True) for _ in range(2))
    pv.fit(constant_vae(), torch.zeros(3, 4), objective=objective, epochs=1)
    assert objective.max_plate_nesting == math.inf
    assert trained(objective=objective) == trained(objective=fresh)


def test_beta_zero_lets_the_kl_grow():
    x = bits(200)
    histories = [
        pv.fit(small_vae(), x, objective=objective, epochs=20, learning_rate=0.02)
        for objective in (pv.objectives.BetaELBO(0.0), pv.objectives.BetaELBO(1.0))
    ]
    assert histories[0][-1].kl > 2 * histories[1][-1].kl
    for record in histories[0]:
        assert record.elbo == pytest.approx(-record.reconstruction - record.kl)


def test_epochs_zero_changes_nothing():
    vae = small_vae()
    before = digest(vae)
    history = pv.fit(vae, bits(20), validation=bits(20), epochs=0)
    assert (len(history), history.num_data, history.best_epoch) == (0, 20, 0)
    assert digest(vae) == before


def test_a_frozen_part_stays_and_raises_no_warning():
    vae = small_vae()
    vae.encoder.requires_grad_(False)
    before = digest(vae.encoder), digest(vae.decoder)
    pv.fit(vae, bits(20), epochs=1)
    assert digest(vae.encoder) == before[0]
    assert digest(vae.decoder) != before[1]
    assert not any(p.requires_grad for p in vae.encoder.parameters())


def test_a_parameter_that_is_not_contiguous_is_trained():
    vae = small_vae()
    vae.encoder[0][0][0].weight = nn.Parameter(torch.randn(4, 8).T)
    before = vae.encoder[0][0][0].weight.clone()
    pv.fit(vae, bits(20), epochs=1)
    assert (vae.encoder[0][0][0].weight != before).any()


# Programs that cannot be fitted.


def test_a_stray_pyro_param_is_refused():
    class Stray(nn.Module):
        def __init__(self):
            super().__init__()
            self.loc = nn.Parameter(torch.zeros(()))

        def model(self, x, y=None, mask=None):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                logits = (z + self.loc)[:, None].expand(-1, 4)
                pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

        def guide(self, x, y=None, mask=None):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(pyro.param("stray", torch.zeros(())), 1.0))

    with pytest.raises(ConfigError, match=r"pyro\.param\('stray'\)[\s\S]*nn\.Parameter"):
        pv.fit(Stray(), bits(20))
    assert "stray" not in pyro.get_param_store()


def test_nothing_to_train_is_refused():
    with pytest.raises(ConfigError, match="no trainable parameter"):
        pv.fit(small_vae().requires_grad_(False), bits(20))


# Seeds, and what belongs to the caller.


def test_the_seed_decides_the_weights_bitwise():
    first = trained(seed=3)
    torch.rand(7), np.random.rand(7), random.random()  # noqa: NPY002
    assert trained(seed=3) == first
    assert trained(seed=4) != first


def test_seed_none_is_recorded_and_can_be_repeated():
    vae, again = small_vae(), small_vae()
    history = pv.fit(vae, bits(20), epochs=1, seed=None)
    assert pv.fit(again, bits(20), epochs=1, seed=history.seed)["elbo"] == history["elbo"]
    assert digest(again) == digest(vae)
    assert pv.fit(small_vae(), bits(20), epochs=1, seed=None).seed != history.seed


@pytest.mark.parametrize("objective", [None, Trace_ELBO()])
def test_the_callers_generators_and_store_are_as_they_were(objective):
    pyro.param("theirs", torch.ones(2))
    torch.rand(3), np.random.rand(3), random.random()  # noqa: NPY002
    before = generators()
    trained(objective=objective, validation=bits(5), callbacks=[lambda vae, record: None])
    assert generators() == before
    assert list(pyro.get_param_store().keys()) == ["theirs"]
    assert torch.equal(pyro.param("theirs"), torch.ones(2))


def loader_of(generator, x):
    return DataLoader(TensorDataset(x), batch_size=8, shuffle=True, generator=generator)


def sampler_loader_of(generator, x):
    sampler = BatchSampler(RandomSampler(x, generator=generator), 8, drop_last=False)
    return DataLoader(TensorDataset(x), batch_sampler=sampler)


@pytest.mark.parametrize("make", [loader_of, sampler_loader_of])
def test_the_generator_of_a_loader_is_seeded_and_restored(make):
    generator = torch.Generator().manual_seed(5)
    before = generator.get_state()
    loader = make(generator, bits(20))
    first = trained(x=loader)
    assert torch.equal(generator.get_state(), before)
    torch.rand(2, generator=generator)
    assert trained(x=loader) == first


def test_two_models_train_bitwise_as_if_alone():
    alone = [trained(small_vae(seed=s), seed=s) for s in (0, 1)]
    assert [trained(small_vae(seed=s), seed=s) for s in (1, 0)][::-1] == alone
    inner = []

    def train_another(vae, record):
        if record.epoch == 1:
            inner.append(trained(small_vae(seed=1), seed=1))

    assert trained(small_vae(seed=0), seed=0, callbacks=[train_another]) == alone[0]
    assert inner == [alone[1]]


def clear_store(vae, record):
    pyro.clear_param_store()


def validation_off(vae, record):
    pyro.enable_validation(False)


def reseed(vae, record):
    pyro.set_rng_seed(9)
    torch.rand(5)


def fill_store(vae, record):
    pyro.param("junk", torch.zeros(3))
    pyro.module("vae", small_vae())


def look(vae, record):
    vae.loss(bits(20)), vae.sample(2), pv.elbo_terms(vae, bits(20))


def leave_gradients(vae, record):
    vae.loss(bits(20)).sum().backward()


def leave_eval_mode(vae, record):
    vae.eval()


@pytest.mark.parametrize(
    "meddle",
    [
        clear_store,
        validation_off,
        reseed,
        fill_store,
        look,
        leave_gradients,
        leave_eval_mode,
    ],
)
def test_nothing_that_a_callback_does_changes_the_run(meddle):

    def with_dropout():
        vae = small_vae()
        vae.encoder[0].insert(2, nn.Dropout(0.5))
        return vae

    undisturbed = trained(with_dropout(), epochs=3)
    assert trained(with_dropout(), epochs=3, callbacks=[meddle]) == undisturbed


def test_gradients_left_by_the_caller_do_not_enter_the_first_step():
    vae = small_vae()
    vae.loss(bits(20)).sum().backward()
    assert trained(vae) == trained()


@pytest.mark.parametrize("ema_decay", [None, 0.9])
def test_steps_run_in_train_mode_and_all_else_in_eval_mode(ema_decay):
    vae = small_vae()
    seen, between = [], []
    vae.encoder[0][0].register_forward_hook(lambda m, *_: seen.append(m.training))
    settings = {"epochs": 2, "ema_decay": ema_decay, "validation": bits(20)}
    pv.fit(vae, bits(20), callbacks=[lambda v, _: between.append(v.training)], **settings)
    assert set(seen) == {True, False}  # trained in train mode, evaluated in eval mode
    assert between == [False, False]
    assert not any(m.training for m in vae.modules())


def test_an_interrupted_run_leaves_eval_mode_and_a_refused_one_no_trace():
    vae = small_vae()
    with pytest.raises(pv.errors.DataError):
        pv.fit(vae, 0.5 * bits(20), epochs=1)
    assert vae.training
    with pytest.raises(RuntimeError):
        pv.fit(vae, bits(20), epochs=1, callbacks=[stop])
    assert not vae.training


def stop(vae, record):
    raise RuntimeError("stop")


def test_an_error_in_a_callback_leaves_the_process_as_it_was():
    before = generators()
    with pytest.raises(RuntimeError, match="stop"):
        trained(callbacks=[stop])
    assert generators() == before
    assert not list(pyro.get_param_store().keys())


# Validation and callbacks.


def test_patience_keeps_the_weights_of_the_best_epoch():
    vae = pv.build((4,), latent_dim=2, hidden=(64,), seed=0)
    x, held_out = bits(12), bits(40, seed=1)
    seen = {}
    history = pv.fit(
        vae,
        x,
        validation=held_out,
        epochs=300,
        patience=4,
        learning_rate=0.03,
        seed=2,
        callbacks=[lambda program, record: seen.update({record.epoch: digest(program)})],
    )
    scores = history["validation_elbo"]
    best = int(np.argmax(scores)) + 1
    assert history.stopped_early
    assert history.best_epoch == best == len(history) - 4
    assert digest(vae) == seen[best] != seen[len(history)]
    # scored by a run that takes no step: the draws of `evaluate` are fixed by the seed
    again = pv.fit(vae, x, validation=held_out, epochs=1, learning_rate=1e-30, seed=2)
    assert again[0].validation_elbo == pytest.approx(max(scores), rel=1e-6)
    assert again[0].validation_elbo - scores[-1] > 1e-4


def test_patience_none_runs_to_the_end_and_still_keeps_the_best():
    vae = pv.build((4,), latent_dim=2, hidden=(64,), seed=0)
    seen = {}
    history = pv.fit(
        vae,
        bits(12),
        validation=bits(40, seed=1),
        epochs=60,
        patience=None,
        learning_rate=0.03,
        callbacks=[lambda program, record: seen.update({record.epoch: digest(program)})],
    )
    assert len(history) == 60
    assert not history.stopped_early
    assert history.best_epoch == int(np.argmax(history["validation_elbo"])) + 1 < 60
    assert digest(vae) == seen[history.best_epoch]


def test_without_validation_the_last_epoch_is_kept():
    history = pv.fit(small_vae(), bits(20), epochs=3)
    assert (history.best_epoch, history.stopped_early) == (3, False)
    assert history["validation_elbo"] == [None] * 3


@pytest.mark.parametrize(
    "held_out",
    [
        bits(7),
        (bits(7), torch.arange(7)),
        (bits(7), None, torch.ones(7, 4)),
        TensorDataset(bits(7)),
        DataLoader(TensorDataset(bits(7)), batch_size=3),
    ],
)
def test_validation_takes_what_training_takes(held_out):
    vae = constant_vae()
    vae.encoder = Given(ignoring_y(vae.encoder))
    log_p = dist.Normal(0.0, 1.0).log_prob(bits(7)).sum(-1).mean()
    history = pv.fit(vae, bits(20), validation=held_out, epochs=1, learning_rate=1e-12)
    assert history[0].validation_elbo == pytest.approx(log_p.item(), abs=1e-6)


def test_validation_does_not_change_the_training():
    assert trained(patience=None, epochs=1) == trained(validation=bits(5), epochs=1)


def test_a_callback_ends_the_run():
    def at_2(program, record):
        return record.epoch == 2

    history = pv.fit(small_vae(), bits(20), epochs=9, callbacks=[at_2, lambda *_: None])
    assert len(history) == 2
    assert history.stopped_early
    others = [lambda *_: "yes", lambda *_: 1, lambda *_: torch.tensor(True)]  # not True itself
    history = pv.fit(small_vae(), bits(20), epochs=3, callbacks=others)
    assert len(history) == 3
    assert not history.stopped_early


def test_callbacks_get_the_program_and_its_records_in_order():
    vae, calls = small_vae(), []
    callbacks = [lambda *args: calls.append(("a", *args)), lambda *args: calls.append(("b", *args))]
    history = pv.fit(vae, bits(20), epochs=2, callbacks=callbacks)
    assert [(name, record) for name, _, record in calls] == [
        (name, record) for record in history for name in "ab"
    ]
    assert all(program is vae for _, program, _ in calls)
    assert [record.epoch for record in history] == [1, 2]


# Sources of data.


@pytest.mark.parametrize(
    ("make", "num_data"),
    [
        (lambda x: TensorDataset(x), 20),
        (lambda x: TensorDataset(x, torch.arange(20)), 20),
        (lambda x: TensorDataset(x, torch.zeros(20), torch.ones(20, 4)), 20),
        (lambda x: DataLoader(x, batch_size=6), 20),
        (lambda x: DataLoader(TensorDataset(x), batch_size=6, shuffle=True), 20),
        (lambda x: DataLoader(TensorDataset(x, x[:, 0].long()), batch_size=6), 20),
        (lambda x: DataLoader(TensorDataset(x), batch_size=6, drop_last=True), 18),
    ],
)
def test_datasets_and_loaders_are_counted_by_what_they_yield(make, num_data):
    vae = constant_vae()
    before = digest(vae)
    history = pv.fit(vae, make(bits(20)), epochs=2, batch_size=6, learning_rate=1e-12)
    assert history.num_data == num_data
    assert digest(vae) != before


def test_drop_last_averages_over_the_data_that_were_seen():
    x = bits(20).double() * torch.arange(1.0, 21.0)[:, None]
    log_p = dist.Normal(0.0, 1.0).log_prob(x).sum(-1)
    loader = DataLoader(TensorDataset(x), batch_size=6, drop_last=True)
    history = pv.fit(constant_vae(), loader, epochs=1, learning_rate=1e-12)
    assert history[0].elbo == pytest.approx(log_p[:18].mean().item(), abs=1e-8)


@pytest.mark.parametrize(
    "make",
    [
        lambda: (row for row in bits(20)),
        lambda: iter([bits(20)]),
        lambda: map(torch.clone, bits(20)),
    ],
)
def test_an_iterator_is_refused(make):
    vae = small_vae()
    before = digest(vae)
    with pytest.raises(ConfigError, match="not re-iterable"):
        pv.fit(vae, make(), epochs=2)
    assert digest(vae) == before


@pytest.mark.parametrize("extra", [{"y": torch.zeros(20)}, {"mask": torch.ones(20, 4)}])
def test_y_and_mask_come_with_each_datum_of_a_loader(extra):
    with pytest.raises(ConfigError, match="must come with each datum"):
        pv.fit(small_vae(), TensorDataset(bits(20)), **extra)


# The guard.


class NaNBackward(torch.autograd.Function):
    """The identity, whose gradient is NaN."""

    @staticmethod
    def forward(ctx, value):
        return value.clone()

    @staticmethod
    def backward(ctx, gradient):
        return torch.full_like(gradient, torch.nan)


class Faulty(nn.Module):
    """Applies `fault` to a decoder's features at the n-th call in train mode."""

    def __init__(self, fault, at):
        super().__init__()
        self.fault, self.at, self.calls = fault, at, 0

    def forward(self, features):
        self.calls += self.training
        return self.fault(features) if self.training and self.calls == self.at else features


def faulty_vae(fault, at):
    vae = small_vae()
    network, head = vae.decoder
    vae.decoder = nn.Sequential(network, Faulty(fault, at), head)
    return vae


def nan_in_row_two(features):
    factor = torch.ones(len(features), 1)
    factor[2] = 1e38
    return features + 1e38 * factor * factor


@pytest.mark.parametrize("objective", [None, Trace_ELBO(), pv.objectives.BetaELBO(0.5)])
@pytest.mark.parametrize("at", [1, 5, 6])
def test_a_finite_loss_with_a_nan_gradient_makes_no_update(objective, at):
    """Adam would write NaN into every weight and all later losses."""
    passes = 1 if not isinstance(objective, Trace_ELBO) else 2  # a second one for the report
    at_call = passes * (at - 1) + 1
    reference = faulty_vae(torch.clone, at_call)
    snapshots = steps_of(reference, objective)
    vae = faulty_vae(NaNBackward.apply, at_call)
    epoch, batch = divmod(at - 1, 3)
    where = rf"non-finite gradient at step {at} \(epoch {epoch + 1}, batch {batch + 1}\)"
    with pytest.raises(DivergenceError, match=where + r": gradient of \w+[\s\S]*after step") as e:
        pv.fit(vae, bits(20), objective=objective, batch_size=8, epochs=2)
    assert digest(vae) == snapshots[at - 1]
    assert all(p.grad is None or not p.grad.any() for p in vae.parameters())
    assert len(str(e.value).splitlines()) <= 6


def steps_of(vae, objective):
    """Return the digests of the weights before each step of a run, for the runs that stop early."""
    seen = []

    def note(module, inputs):
        if module.training and torch.is_grad_enabled():
            seen.append(digest(vae))

    vae.encoder.register_forward_pre_hook(note)
    pv.fit(vae, bits(20), objective=objective, batch_size=8, epochs=2)
    return seen


@pytest.mark.filterwarnings("ignore:Encountered NaN")  # Pyro's own, in the first batch
@pytest.mark.parametrize("at", [1, 4])
def test_a_non_finite_loss_makes_no_update_and_names_term_and_row(at):
    """Pyro only warns, steps anyway, and every weight is NaN."""
    snapshots = steps_of(faulty_vae(torch.clone, at), None)
    vae = faulty_vae(nan_in_row_two, at)
    epoch, batch = divmod(at - 1, 3)
    where = rf"loss at step {at} \(epoch {epoch + 1}, batch {batch + 1}\)"
    with pytest.raises(DivergenceError) as caught:
        pv.fit(vae, bits(20), batch_size=8, epochs=2)
    assert caught.match(where + r": log_likelihood, first bad row of the batch \d")
    assert caught.match(f"Parameters are as after step {at - 1}")
    assert digest(vae) == snapshots[at - 1]
    assert torch.isfinite(vae.loss(bits(20))).all()


def normalized(vae):
    """A VAE with running statistics in the encoder, which move in the forward pass."""
    network, head = vae.encoder
    vae.encoder = nn.Sequential(network, nn.BatchNorm1d(head.num_features), head)
    return vae


@pytest.mark.filterwarnings("ignore:Encountered NaN")  # Pyro's own, in the first batch
@pytest.mark.parametrize("fault", [NaNBackward.apply, nan_in_row_two])
@pytest.mark.parametrize("at", [1, 4])
def test_running_statistics_are_those_before_the_step_that_failed(fault, at):
    snapshots = steps_of(normalized(faulty_vae(torch.clone, at)), None)
    vae = normalized(faulty_vae(fault, at))
    with pytest.raises(DivergenceError, match=f"at step {at}"):
        pv.fit(vae, bits(20), batch_size=8, epochs=2)
    assert digest(vae) == snapshots[at - 1]
    assert vae.encoder[1].num_batches_tracked == at - 1


class OneOfTwo:
    """A process of a group whose other process has no data."""

    rank, size, diverged = 0, 2, ()

    def all_reduce_gradients(self, sums, count, is_diverged=False):
        self.diverged = (0,) if is_diverged else ()
        return count


def test_a_batch_that_fails_before_its_update_leaves_no_running_statistics():
    """In a group the error waits for the update, and more batches come before it."""
    vae = normalized(small_vae())
    loss = EagerLoss(vae, pv.objectives.TraceELBO(), lambda batch: Settings(20))
    adam = torch.optim.Adam(vae.parameters())
    steps = TrainingStep(vae, loss, adam, accumulate_batches=2, group=OneOfTwo())
    good, bad = Batch(bits(20), None, None), Batch(bits(20) * torch.nan, None, None)
    with own_store(), pyro.validation_enabled(False):
        for batch in (good, good, bad):
            steps.take(batch, "here")
        with pytest.raises(DivergenceError):
            steps.take(good, "here")
    assert torch.isfinite(vae.encoder[1].running_mean).all()


class Tracked(nn.Module):
    """Keeps a moving mean of its input in a buffer, updated in place or replaced."""

    def __init__(self, is_new):
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))
        self.is_new = is_new

    def forward(self, features):
        if self.training:
            mean = 0.9 * self.mean + 0.1 * features.detach().mean(0)
            if self.is_new:
                self.mean = mean
            else:
                self.mean.copy_(mean)
        return features


@pytest.mark.parametrize("is_new", [False, True])
def test_a_custom_buffer_is_that_before_the_step_that_failed(is_new):
    def tracked(fault):
        vae = faulty_vae(fault, 4)
        vae.encoder = nn.Sequential(vae.encoder[0], Tracked(is_new), vae.encoder[1])
        return vae

    snapshots = steps_of(tracked(torch.clone), None)
    vae = tracked(NaNBackward.apply)
    with pytest.raises(DivergenceError, match="at step 4"):
        pv.fit(vae, bits(20), batch_size=8, epochs=2)
    assert digest(vae) == snapshots[3]


def test_an_objective_of_pyros_moves_running_statistics_once_a_step():
    """The traces drawn for the report are a second pass over the batch."""
    vae = normalized(small_vae())
    pv.fit(vae, bits(20), objective=Trace_ELBO(), batch_size=8, epochs=2)
    assert vae.encoder[1].num_batches_tracked == 6


def test_the_root_of_zero_has_no_gradient_and_makes_no_update():
    vae = faulty_vae(lambda features: features + (0 * features).sqrt(), 2)
    with pytest.raises(DivergenceError, match="gradient at step 2"):
        pv.fit(vae, bits(20), batch_size=8)
    assert torch.isfinite(vae.loss(bits(20))).all()


@pytest.mark.parametrize("at", [1, 2])
def test_an_encoder_that_returns_nan_is_refused_without_a_tensor_dump(at):
    vae = small_vae()
    network, head = vae.encoder
    vae.encoder = nn.Sequential(network, Faulty(lambda features: features * torch.nan, at), head)
    before = steps_of(small_vae(), None)[at - 1]
    with pytest.raises((DivergenceError, ConfigError)) as caught:
        pv.fit(vae, bits(20), batch_size=8)
    assert len(str(caught.value).splitlines()) <= 6
    assert digest(vae) == before


def test_an_absurd_learning_rate_stops_with_finite_weights():
    vae = pv.build((4,), latent_dim=2, hidden=(8,), likelihood="Normal", seed=0)
    with pytest.raises(DivergenceError, match=r"learning_rate=1e\+30"):
        pv.fit(vae, bits(20), epochs=20, learning_rate=1e30)
    assert all(torch.isfinite(p).all() for p in vae.parameters())


def test_an_interrupt_in_backward_leaves_no_gradient_for_the_next_run():
    """The next step would add the stale gradient to its own."""

    def interrupt(gradient):
        raise KeyboardInterrupt

    vae = small_vae()
    before = digest(vae)
    first = next(iter(vae.encoder.parameters()))  # the last to get its gradient
    hook = first.register_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        pv.fit(vae, bits(20), epochs=1)
    hook.remove()
    assert digest(vae) == before
    assert all(p.grad is None or not p.grad.any() for p in vae.parameters())
    assert trained(vae) == trained()


def test_pyros_validation_is_on_for_the_first_batch_only():
    flags = []
    vae = small_vae()

    def note(module, inputs):
        if module.training and torch.is_grad_enabled():
            parts = (dist, pyro.infer, pyro.poutine)
            flags.append({part.util.is_validation_enabled() for part in parts})

    vae.encoder.register_forward_pre_hook(note)
    for mine in (True, False):
        flags.clear()
        with pyro.validation_enabled(mine):
            pv.fit(vae, bits(20), epochs=2, batch_size=8)
            assert pyro.infer.util.is_validation_enabled() is mine
        assert flags == [{True}] + [{False}] * 5


# The progress bar.


def test_progress_shows_the_elbo_and_its_terms_on_stderr(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    history = pv.fit(small_vae(), bits(20), validation=bits(5), epochs=2, progress=True)
    shown = capsys.readouterr()
    last = history[-1]
    assert shown.out == ""
    text = " ".join(shown.err.split())
    assert f"ELBO {last.elbo:.2f} = -({last.reconstruction:.2f} + KL {last.kl:.2f})" in text
    assert f"held out {last.validation_elbo:.2f} nats/datum" in text
    assert "2/2" in text


def test_progress_fits_eighty_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    history = pv.fit(small_vae(), bits(20), validation=bits(5), epochs=2, progress=True)
    text = capsys.readouterr().err
    for number in (history[-1].elbo, history[-1].kl, history[-1].validation_elbo):
        assert f"{number:.2f}" in text
    assert "2/2" in text
    assert "nats/datum" in text


@pytest.mark.parametrize("progress", [False, None])
def test_no_progress_bar_if_stderr_is_not_a_terminal(capsys, progress):
    pv.fit(small_vae(), bits(20), epochs=1, progress=progress)
    assert capsys.readouterr() == ("", "")


def test_progress_changes_nothing(capsys):
    assert trained(progress=True) == trained(progress=False)


def test_history_is_indexed_by_epoch_and_by_column():
    history = pv.fit(small_vae(), bits(20), epochs=3)
    assert history["elbo"] == [record.elbo for record in history]
    assert all(a < b for a, b in itertools.pairwise(history["seconds"]))
    assert history[-1] is history.epochs[2]


def test_a_decoder_without_trainable_parameters_raises_a_warning():
    vae = small_vae()
    vae.decoder.requires_grad_(False)
    before = digest(vae.decoder)
    with pytest.warns(UserWarning, match="decoder has no trainable parameter"):
        pv.fit(vae, bits(20), epochs=1)
    assert digest(vae.decoder) == before


def test_a_model_that_shares_an_encoder_trains_exactly():
    first = small_vae()
    second = pv.VAE(first.prior, first.encoder, small_vae(seed=1).decoder)
    pv.fit(first, bits(20), epochs=1)
    encoder = digest(first.encoder)
    other = digest(first.decoder)
    pv.fit(second, bits(20), epochs=1)
    assert digest(first.encoder) != encoder
    assert digest(first.decoder) == other


def test_the_progress_bar_of_a_resumed_run_counts_all_its_epochs(tmp_path, capsys):
    for epochs, progress in [(2, False), (5, True)]:
        settings = {"run_dir": tmp_path, "resume": True, "progress": progress}
        pv.fit(small_vae(), bits(20), epochs=epochs, **settings)
    assert " 5/5 " in f" {capsys.readouterr().err} "


def test_a_constant_column_with_a_learned_scale_stays_finite_and_raises_a_warning():
    likelihood = {"name": "Normal", "scale": torch.ones(4), "learn_scale": True}
    vae = pv.build((4,), latent_dim=2, hidden=(8,), likelihood=likelihood, seed=0)
    x = torch.randn(50, 4)
    x[:, 2] = 3.0
    with pytest.warns(UserWarning, match=r"x\[:, 2\] is constant") as said:
        history = pv.fit(vae, x, epochs=30, learning_rate=1e-2)
    assert said[0].filename == __file__
    assert all(math.isfinite(v) for v in history["elbo"])


EACH = torch.ones(4)
SCALES_THAT_FALL = {
    "Normal, each": lambda: pv.likelihoods.Normal(4, EACH, learn_scale=True),
    "Normal of one number": lambda: pv.likelihoods.Normal(1, learn_scale=True),
    "StudentT, each": lambda: pv.likelihoods.StudentT(4, scale=EACH),
    "HeteroscedasticNormal": lambda: pv.likelihoods.HeteroscedasticNormal(4),
}
SCALES_THAT_STAY = {
    "Normal, one for all": lambda: pv.likelihoods.Normal(4, learn_scale=True),
    "Normal, fixed": lambda: pv.likelihoods.Normal(4, EACH),
    "Normal, frozen": lambda: pv.likelihoods.Normal(4, EACH, learn_scale=True).requires_grad_(
        False
    ),
    "StudentT, one for all": lambda: pv.likelihoods.StudentT(4),
    "Poisson": lambda: pv.likelihoods.Poisson(4),
}


def fit_to_a_constant_column(head):
    size = head.event_shape.numel()
    vae = pv.build((size,), latent_dim=2, hidden=(8,), seed=0)
    network = pv.networks.mlp(2, head.num_features, hidden=(8,))
    vae = pv.VAE(vae.prior, vae.encoder, nn.Sequential(network, head))
    x = torch.poisson(torch.full((50, size), 3.0), generator=torch.Generator().manual_seed(0))
    x[:, size // 2] = 3.0
    pv.fit(vae, x, epochs=1)


@pytest.mark.parametrize("name", SCALES_THAT_FALL)
def test_a_scale_per_cell_falls_where_x_is_constant(name):
    head = SCALES_THAT_FALL[name]()
    assert head.learns_scale_per_cell
    with pytest.warns(UserWarning, match=r"x\[:, \d\] is constant \(1 in all\)"):
        fit_to_a_constant_column(head)


@pytest.mark.parametrize("name", SCALES_THAT_STAY)
def test_a_shared_or_fixed_scale_does_not_fall(name):
    """Warnings are errors here."""
    head = SCALES_THAT_STAY[name]()
    assert not getattr(head, "learns_scale_per_cell", False)
    fit_to_a_constant_column(head)
