"""Options of `fit`: optimizers, schedules, clipping, accumulated batches, averaged weights."""

import copy
import csv
import functools
import math

import pyro.distributions as dist
import pytest
import torch
from helpers import bits, is_same, small_vae, state_of
from torch import nn
from torch.optim import lr_scheduler

import pyrovae as pv
from pyrovae.errors import ConfigError
from pyrovae.training.optimizers import optimizer_of, scheduler_of
from pyrovae.training.step import TrainingStep

SETTINGS = {"epochs": 3, "batch_size": 10, "seed": 1, "compile": "eager"}


def trained(**settings):
    """Return (weights by name, history) of a small VAE."""
    vae = small_vae()
    history = pv.fit(vae, bits(), **SETTINGS | settings)
    return state_of(vae), history


class Replayed(nn.Module):
    """q(z|x) = N(m + W x, 1) whose draws are m + W x + ε(x): the noise belongs to the datum."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 2)

    def forward(self, x):
        return ReplayedNormal(self.linear(x), torch.sin(3.0 * x[:, :2] + x[:, 2:]))


class ReplayedNormal(dist.Independent):
    """N(loc, 1) over the last dimension, which always draws loc + noise."""

    def __init__(self, loc, noise):
        super().__init__(dist.Normal(loc, 1.0), 1)
        self.noise = noise

    def rsample(self, sample_shape=()):
        return (self.base_dist.loc + self.noise).expand(self._extended_shape(sample_shape))

    def expand(self, batch_shape, _instance=None):
        shape = (*batch_shape, *self.event_shape)
        return ReplayedNormal(self.base_dist.loc.expand(shape), self.noise.expand(shape))


def replayed_vae():
    """Return a VAE whose noise is fixed per datum: its gradient does not depend on the batch."""
    torch.manual_seed(0)
    p = pv.likelihoods.Normal(4)
    decoder = nn.Sequential(nn.Linear(2, p.num_features), p)
    return pv.VAE(pv.priors.StandardNormal(2), Replayed(), decoder).double()


def fixed_order(x, size):
    """Batches of consecutive rows, epoch after epoch."""
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x), batch_size=size)


# Optimizers.


def sgd_by_hand(parameters, lr):
    return torch.optim.SGD(parameters, lr, momentum=0.5)


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("Adam", torch.optim.Adam),
        ("AdamW", torch.optim.AdamW),
        ("RMSprop", torch.optim.RMSprop),
        (torch.optim.SGD, torch.optim.SGD),
        (functools.partial(torch.optim.AdamW, weight_decay=0.5), torch.optim.AdamW),
        (sgd_by_hand, torch.optim.SGD),
        (lambda parameters, lr: torch.optim.Adagrad(parameters, lr=lr), torch.optim.Adagrad),
    ],
)
def test_an_optimizer_by_name_class_partial_or_function(choice, expected):
    vae = small_vae()
    optimizer = optimizer_of(choice, vae.parameters(), 0.125)
    assert type(optimizer) is expected
    (group,) = optimizer.param_groups
    assert group["lr"] == 0.125
    assert list(map(id, group["params"])) == list(map(id, vae.parameters()))
    if isinstance(choice, functools.partial):
        assert group["weight_decay"] == 0.5
    weights, _ = trained(optimizer=choice, learning_rate=0.125)
    assert not is_same(weights, dict(small_vae().state_dict()))


def test_a_name_is_the_class_of_that_name():
    by_name, by_class = (trained(optimizer=o)[0] for o in ("NAdam", torch.optim.NAdam))
    assert is_same(by_name, by_class)
    assert not is_same(by_name, trained()[0])


def test_the_optimizer_agrees_with_a_loop_by_hand():
    """SGD with momentum over the full-batch mean loss, written out."""
    vae, by_hand, x = replayed_vae(), replayed_vae(), bits().double()
    optimizer = functools.partial(torch.optim.SGD, momentum=0.9)
    pv.fit(vae, x, optimizer=optimizer, learning_rate=0.05, epochs=4, batch_size=37)
    made = torch.optim.SGD(by_hand.parameters(), 0.05, momentum=0.9)
    for _ in range(4):
        made.zero_grad()
        by_hand.loss(x, analytic_kl=False).mean().backward()
        made.step()
    assert is_same(vae.state_dict(), by_hand.state_dict(), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("setting", "value", "match"),
    [
        ("optimizer", "adam", r"optimizer = 'adam'.*torch\.optim\. Did you mean 'Adam'\?"),
        ("optimizer", "AdmaW", r"Did you mean 'AdamW'\?"),
        ("optimizer", "Optimizer", r"must be a class or a function, or a name in torch\.optim"),
        ("optimizer", "os.system", r"must be a class or a function, or a name in torch\.optim"),
        ("optimizer", None, r"optimizer = None, but it must be a class or a function"),
        ("optimizer", 3, r"optimizer = 3, but it must be a class or a function"),
        ("optimizer", dict, r"optimizer returned a dict|dict: "),
        ("optimizer", lambda parameters, lr: "no", r"optimizer returned a str, but must return"),
        (
            "optimizer",
            functools.partial(torch.optim.AdamW, weigth_decay=1),
            r"^AdamW: .*weigth_decay[\s\S]*functools\.partial\(AdamW, …\)",
        ),
        ("optimizer", "LBFGS", r"LBFGS.*closure[\s\S]*optimizer='Adam'"),
        ("optimizer", functools.partial(torch.optim.LBFGS, max_iter=4), r"LBFGS.*closure"),
        ("optimizer", "SparseAdam", r"SparseAdam.*sparse gradients[\s\S]*optimizer='Adam'"),
        (
            "scheduler",
            "Cosin",
            r"Did you mean 'CosineAnnealingLR'\?[\s\S]*functools\.partial\(CosineAnnealingLR, …\)",
        ),
        ("scheduler", "plateau", r"Did you mean 'ReduceLROnPlateau'\?"),
        ("scheduler", "Counter", r"scheduler = 'Counter', but it must be a class or a function"),
        ("scheduler", "partial", r"scheduler = 'partial', but it must be a class or a function"),
        ("scheduler", functools.partial(lr_scheduler.StepLR), r"^StepLR: .*step_size"),
        ("scheduler", "CosineAnealingLR", r"Did you mean 'CosineAnnealingLR'\?"),
        ("scheduler", "StepLR", r"StepLR: .*step_size[\s\S]*functools\.partial\(StepLR"),
        ("scheduler", 0.5, r"scheduler = 0\.5, but it must be a class or a function"),
        ("scheduler", lambda optimizer: "no", r"scheduler returned a str"),
        ("max_grad_norm", 0.0, r"max_grad_norm"),
        ("max_grad_norm", -1.0, r"max_grad_norm"),
        ("max_grad_norm", math.nan, r"max_grad_norm"),
        ("max_grad_norm", "1", r"max_grad_norm"),
        ("accumulate_batches", 0, r"accumulate_batches"),
        ("accumulate_batches", 1.5, r"accumulate_batches"),
        ("ema_decay", 0.0, r"ema_decay = 0\.0, but the decay of a moving average"),
        ("ema_decay", 1.0, r"ema_decay = 1\.0, but the decay of a moving average"),
        ("ema_decay", math.nan, r"ema_decay"),
        ("ema_decay", "0.9", r"ema_decay"),
        ("learning_rate", lambda progress: -1.0, r"learning_rate"),
        ("learning_rate", lambda progress: math.nan, r"learning_rate"),
        ("learning_rate", lambda progress: "fast", r"learning_rate"),
        ("learning_rate", 0.0, r"learning_rate"),
        ("save_every", 0, r"save_every"),
        ("save_every", 2.5, r"save_every"),
        ("device", "gpu", r"device = 'gpu' cannot be used"),
        ("device", "cuda:99", r"device = 'cuda:99' cannot be used[\s\S]*device='cpu'"),
        ("device", 3.5, r"device = 3\.5"),
    ],
)
def test_bad_values_are_refused_before_anything_changes(setting, value, match):
    vae = small_vae()
    before = copy.deepcopy(vae.state_dict())
    with pytest.raises(ConfigError, match=match) as caught:
        pv.fit(vae, bits(), **{setting: value})
    assert len(str(caught.value).splitlines()) <= 6
    assert is_same(before, vae.state_dict())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_named():
    with pytest.raises(ConfigError, match="device = 'cuda' cannot be used") as caught:
        pv.fit(small_vae(), bits(), device="cuda")
    assert len(str(caught.value).splitlines()) <= 3


@pytest.mark.parametrize("device", [None, "cpu", torch.device("cpu")])
def test_the_cpu_is_a_device(device):
    assert is_same(trained(device=device)[0], trained()[0])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("compile", ["eager", "graph", "inductor"])
def test_a_gpu_trains_and_the_program_stays_there(compile):
    vae = small_vae()
    history = pv.fit(
        vae, bits(), device="cuda", validation=bits(9), **SETTINGS | {"compile": compile}
    )
    assert all(p.is_cuda for p in vae.parameters())
    assert history.engine == compile
    assert history[-1].elbo > history[0].elbo - 0.5


# Learning rates.


def seen_rates(**settings):
    """Return the learning rate of every step, and the history."""
    rates, take = [], TrainingStep.take

    def watched(self, batch, where):
        rates.append(self.optimizer.param_groups[0]["lr"])
        return take(self, batch, where)

    TrainingStep.take = watched
    try:
        _, history = trained(**settings)
    finally:
        TrainingStep.take = take
    return rates, history


def test_a_constant_rate_is_recorded():
    rates, history = seen_rates(learning_rate=0.003)
    assert rates == [0.003] * 12
    assert history["learning_rate"] == [0.003] * 3


def test_a_rate_of_progress_is_applied_at_each_step():
    """3 epochs of 4 steps: at progress 0, 1/12, … 11/12."""
    rates, history = seen_rates(learning_rate=lambda progress: 0.1 * (1 - progress))
    assert rates == pytest.approx([0.1 * (1 - k / 12) for k in range(12)], rel=1e-12)
    assert history["learning_rate"] == pytest.approx([0.1 * (1 - k / 12) for k in (3, 7, 11)])


def test_a_rate_of_zero_changes_no_weight():
    weights, _ = trained(learning_rate=lambda progress: 0.0)
    assert is_same(weights, dict(small_vae().state_dict()))


def test_a_rate_that_fails_late_is_refused_before_training():
    """It is evaluated at five points before anything changes."""
    vae = small_vae()
    before = copy.deepcopy(vae.state_dict())
    with pytest.raises(ConfigError, match="learning_rate"):
        pv.fit(vae, bits(), learning_rate=lambda progress: 0.6 - progress, epochs=2)
    assert is_same(before, vae.state_dict())


SCHEDULERS = {
    "CosineAnnealingLR": (
        "CosineAnnealingLR",
        [1.0, 0.5 * (1 + math.cos(math.pi / 3)), 0.5 * (1 + math.cos(2 * math.pi / 3))],
    ),
    "LinearLR": (functools.partial(lr_scheduler.LinearLR, start_factor=0.25), [0.25, 0.5, 0.75]),
    "PolynomialLR": ("PolynomialLR", [1.0, 2 / 3, 1 / 3]),
    "StepLR": (functools.partial(lr_scheduler.StepLR, step_size=2), [1.0, 1.0, 0.1]),
    "a function": (lambda o: lr_scheduler.ExponentialLR(o, 0.5), [1.0, 0.5, 0.25]),
    "length given": (functools.partial(lr_scheduler.CosineAnnealingLR, T_max=1), [1.0, 0.0, 1.0]),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_scheduler_is_stepped_after_each_epoch(name):
    choice, factors = SCHEDULERS[name]
    rates, history = seen_rates(scheduler=choice, learning_rate=0.01)
    expected = [0.01 * f for f in factors]
    assert rates == pytest.approx([r for r in expected for _ in range(4)], abs=1e-12)
    assert history["learning_rate"] == pytest.approx(expected, abs=1e-12)


def test_one_cycle_takes_its_length_from_the_epochs():
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], 0.1)
    cycle = functools.partial(lr_scheduler.OneCycleLR, max_lr=0.1)
    assert scheduler_of(cycle, optimizer, 50).total_steps == 50


@pytest.mark.parametrize("validation", [None, bits(9, seed=1)])
def test_a_plateau_scheduler_follows_the_elbo(validation):
    """A threshold of 10⁹ nats is never met, so each epoch after the first halves the rate."""
    plateau = functools.partial(
        lr_scheduler.ReduceLROnPlateau,
        factor=0.5,
        patience=0,
        threshold=1e9,
        threshold_mode="abs",
    )
    settings = {"scheduler": plateau, "learning_rate": 0.01, "validation": validation}
    _, history = trained(epochs=4, **settings)
    assert history["learning_rate"] == pytest.approx([0.01, 0.01, 0.005, 0.0025])
    better = functools.partial(lr_scheduler.ReduceLROnPlateau, factor=0.5, patience=2)
    _, history = trained(epochs=4, **settings | {"scheduler": better})
    assert history["learning_rate"] == pytest.approx([0.01] * 4)


def test_a_rate_of_progress_and_a_scheduler_exclude_each_other():
    """Both would set the rate; the function would silently win."""
    with pytest.raises(ConfigError, match="scheduler"):
        trained(learning_rate=lambda progress: 0.01, scheduler="CosineAnnealingLR")


# Clipping.


def clipped_by_hand(x, size, max_grad_norm):
    """Return weights after an epoch of SGD on mean losses of consecutive batches, clipped."""
    vae = replayed_vae()
    optimizer, norms = torch.optim.SGD(vae.parameters(), 0.1), []
    for batch in x.split(size):
        optimizer.zero_grad()
        vae.loss(batch, analytic_kl=False).mean().backward()
        norms.append(float(nn.utils.clip_grad_norm_(vae.parameters(), max_grad_norm)))
        optimizer.step()
    return vae.state_dict(), norms


@pytest.mark.parametrize("compile", ["eager", "graph"])
def test_clip_norm_is_torchs_on_the_mean_gradient(compile):
    x = 3 * bits().double()
    _, norms = clipped_by_hand(x, 10, math.inf)
    limit = sorted(norms)[1] * 1.01  # some are clipped, some are not
    expected, norms = clipped_by_hand(x, 10, limit)
    assert min(norms) < limit < max(norms)
    vae = replayed_vae()
    settings = {"optimizer": "SGD", "learning_rate": 0.1, "epochs": 1, "compile": compile}
    pv.fit(vae, fixed_order(x, 10), max_grad_norm=limit, **settings)
    assert is_same(vae.state_dict(), expected, rtol=0, atol=1e-12)
    unclipped = replayed_vae()
    pv.fit(unclipped, fixed_order(x, 10), **settings)
    assert not is_same(unclipped.state_dict(), expected, rtol=0, atol=1e-6)


# Several batches to an update.


@pytest.mark.parametrize(
    ("size", "accumulate", "whole", "compile"),
    [
        (5, 2, 10, "eager"),
        (10, 2, 20, "eager"),
        (7, 3, 21, "eager"),
        (10, 100, 37, "eager"),
        (37, 3, 37, "eager"),
        (10, 2, 20, "graph"),
        pytest.param(7, 3, 21, "graph", marks=pytest.mark.slow),
    ],
)
def test_accumulated_batches_are_one_batch(size, accumulate, whole, compile):
    """Latents substituted, float64: the mean over all data, ragged groups and batches too."""
    x = bits().double()
    settings = {"optimizer": "SGD", "learning_rate": 0.1, "epochs": 3, "max_grad_norm": 0.5}
    shared, single = replayed_vae(), replayed_vae()
    together = pv.fit(
        shared, fixed_order(x, size), accumulate_batches=accumulate, compile=compile, **settings
    )
    alone = pv.fit(single, fixed_order(x, whole), compile=compile, **settings)
    assert is_same(shared.state_dict(), single.state_dict(), rtol=0, atol=1e-12)
    assert together["elbo"] == pytest.approx(alone["elbo"], rel=1e-12)


def test_that_comparison_can_fail():
    """Negative control: the mean of batch means weighs the data of a ragged batch more."""
    x = bits().double()
    wrong, right = replayed_vae(), replayed_vae()
    losses = [wrong.loss(b, analytic_kl=False).mean() for b in x.split(10)]
    torch.stack(losses).mean().backward()
    right.loss(x, analytic_kl=False).mean().backward()
    pairs = zip(wrong.parameters(), right.parameters(), strict=True)
    assert max((w.grad - r.grad).abs().max() for w, r in pairs) > 1e-4


def test_the_last_group_of_an_epoch_is_not_carried_into_the_next():
    """4 batches, 3 to an update: updates after the batches 3, 4, 7, 8, 11 and 12."""
    updates, step = [], torch.optim.SGD.step

    class Counted(torch.optim.SGD):
        def step(self, closure=None):
            updates.append(steps[0])
            return step(self, closure)

    steps, take = [0], TrainingStep.take

    def watched(self, batch, where):
        steps[0] += 1
        return take(self, batch, where)

    TrainingStep.take = watched
    try:
        trained(accumulate_batches=3, optimizer=Counted)
    finally:
        TrainingStep.take = take
    assert updates == [3, 4, 7, 8, 11, 12]


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("compile", ["eager", "graph"])
def test_a_parameter_without_gradient_does_not_decay(accumulate, compile):
    """For an optimizer with weight decay, a gradient of 0 differs from no gradient."""
    vae = small_vae()
    vae.decoder.spare = nn.Parameter(torch.ones(2))
    before = copy.deepcopy(dict(vae.named_parameters()))
    optimizer = functools.partial(torch.optim.AdamW, weight_decay=1.0)
    settings = {"learning_rate": 0.01, "accumulate_batches": accumulate, "compile": compile}
    pv.fit(vae, bits(), optimizer=optimizer, epochs=2, batch_size=10, **settings)
    still = [n for n, p in vae.named_parameters() if torch.equal(p, before[n])]
    assert still == ["decoder.spare"]


# The moving average.


def averages_by_hand(x, decay):
    """w̄ ← d w̄ + (1 − d) w with d = min(decay, (1 + n) / (10 + n)) after each update; both."""
    vae = replayed_vae()
    optimizer = torch.optim.SGD(vae.parameters(), 0.1)
    mean, n = state_of(vae), 0
    for _ in range(3):
        for batch in x.split(10):
            optimizer.zero_grad()
            vae.loss(batch, analytic_kl=False).mean().backward()
            optimizer.step()
            # the first update replaces the random start
            d = min(decay, (1 + n) / (10 + n)) if n else 0.0
            mean = {k: d * mean[k] + (1 - d) * t for k, t in vae.state_dict().items()}
            n += 1
    return mean, vae.state_dict()


@pytest.mark.parametrize("decay", [0.05, 0.3, 0.999])
def test_an_average_is_kept_and_evaluated(decay):
    x = bits().double()
    settings = {"optimizer": "SGD", "learning_rate": 0.1, "epochs": 3}
    expected, last = averages_by_hand(x, decay)
    vae, scored = replayed_vae(), []

    def look(program, record):
        scored.append(state_of(program))

    pv.fit(vae, fixed_order(x, 10), ema_decay=decay, callbacks=[look], **settings)
    assert is_same(vae.state_dict(), expected, rtol=0, atol=1e-12)
    assert is_same(scored[-1], expected, rtol=0, atol=1e-12)
    assert not is_same(vae.state_dict(), last, rtol=0, atol=1e-6)
    plain = replayed_vae()
    pv.fit(plain, fixed_order(x, 10), **settings)
    assert is_same(plain.state_dict(), last, rtol=0, atol=1e-12)


def test_the_validation_elbo_is_that_of_the_average_of_the_best_epoch():
    vae, seen = small_vae(), {}

    def look(program, record):
        seen[record.epoch] = state_of(program)

    settings = {"ema_decay": 0.9, "validation": bits(9, seed=1), "learning_rate": 0.3}
    settings |= {"callbacks": [look], "patience": None, "epochs": 6}
    history = pv.fit(vae, bits(), **SETTINGS | settings)
    assert is_same(vae.state_dict(), seen[history.best_epoch])
    again = pv.fit(vae, bits(), validation=bits(9, seed=1), learning_rate=1e-30, epochs=1, seed=1)
    best = max(history["validation_elbo"])
    assert again[0].validation_elbo == pytest.approx(best, rel=1e-6)


def test_an_average_does_not_change_the_training():
    plain, averaged = (trained(ema_decay=a)[1] for a in (None, 0.9))
    assert plain["elbo"] == averaged["elbo"]


def test_a_shared_encoder_is_averaged_once():
    vae = small_vae()
    vae = pv.VAE(pv.priors.VampPrior(vae.encoder, bits(5, seed=1)), vae.encoder, vae.decoder)
    pv.fit(vae, bits(), ema_decay=0.9, **SETTINGS)
    assert vae.prior.encoder is vae.encoder
    assert vae.prior.encoder[0][0][0].weight is vae.encoder[0][0][0].weight


# The files of a run.


@pytest.mark.parametrize("validation", [None, bits(9, seed=1)])
def test_history_csv_holds_the_records(validation, tmp_path):
    _, history = trained(run_dir=tmp_path, validation=validation, scheduler="CosineAnnealingLR")
    with open(tmp_path / "history.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == list(history[0]._fields)
    for row, record in zip(rows, history, strict=True):
        for name, value in record._asdict().items():
            assert (float(row[name]) == value) if row[name] else (value is None)
    assert (rows[0]["validation_elbo"] == "") == (validation is None)


def test_without_a_folder_no_file_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trained(validation=bits(9))
    assert not list(tmp_path.iterdir())
