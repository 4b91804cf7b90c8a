"""A program is inspected once per kind of data, and again when a part is swapped or edited."""

import gc
import weakref

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyrovae as pv
from pyrovae.contract import validator
from pyrovae.errors import ConfigError, DataError

X = torch.tensor([[0.0, 1.0, 1.0]]).repeat(5, 1)


def model(**options):
    return pv.build(3, latent_dim=2, hidden=(4,), seed=0, **options)


@pytest.fixture
def looks(monkeypatch):
    """The programs that were inspected, one entry per inspection."""
    found, true_trace = [], validator.trace_first_rows
    monkeypatch.setattr(
        validator,
        "trace_first_rows",
        lambda program, rows: found.append(program) or true_trace(program, rows),
    )
    return found


def test_one_inspection_serves_every_function_and_call(looks):
    vae = model()
    for _ in range(3):
        vae.loss(X), vae.encode(X), vae.reconstruct(X)
        pv.elbo_terms(vae, X), pv.log_evidence(vae, X, num_samples=20)
    assert looks == [vae, vae]  # in train mode, and in eval mode, which reconstruct decodes in


def test_another_kind_of_data_needs_another_inspection(looks):
    vae = model()
    mask = torch.ones(5, 3, dtype=torch.bool)
    mask[0, 0] = False
    kinds = [(X,), (X.double(),), (X.bool(),), (X, None, mask), (X[:2],), (X.numpy(),)]
    for kind in kinds:
        vae.loss(*kind)
    assert len(looks) == 4  # fewer rows, or another container, are the same kind
    vae.double().loss(X)
    assert len(looks) == 5


def test_training_steps_need_no_other_inspection(looks):
    vae = model()
    optimizer = torch.optim.Adam(vae.parameters())
    for _ in range(4):
        optimizer.zero_grad()
        vae.loss(X).mean().backward()
        optimizer.step()
    assert len(looks) == 1


def test_moving_statistics_need_no_other_inspection(looks):
    vae = model()
    vae.encoder = nn.Sequential(vae.encoder[0], nn.BatchNorm1d(4), vae.encoder[1])
    for _ in range(4):
        vae.loss(X)
    assert len(looks) == 1


class Scaled(nn.Module):
    """A prior with a plain attribute and a buffer."""

    def __init__(self):
        super().__init__()
        self.scale = 1.0
        self.register_buffer("loc", torch.zeros(2))

    def forward(self):
        return dist.Normal(self.loc, self.scale, validate_args=False).to_event(1)


EDITS = {
    "a part is swapped": lambda vae: setattr(vae, "prior", pv.priors.StandardNormal(3)),
    "a layer is swapped": lambda vae: vae.encoder.__setitem__(1, pv.guides.DiagonalNormal(3)),
    "an attribute is edited": lambda vae: setattr(vae.prior, "scale", "wide"),
    "a buffer is edited in place": lambda vae: vae.prior.loc.fill_(torch.nan),
    "a buffer is swapped": lambda vae: setattr(vae.prior, "loc", torch.zeros(3)),
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_an_edited_program_is_inspected_again(edit):
    vae = model()
    vae.prior = Scaled()
    vae.loss(X)
    edit(vae)
    with pytest.raises(ConfigError):
        vae.loss(X)


def test_weights_that_are_edited_in_eval_mode_are_inspected_again():
    vae = model().eval()
    vae.encode(X)
    with torch.no_grad():
        vae.encoder[0][-1].bias.fill_(torch.nan)
    with pytest.raises(ConfigError, match="nan"):
        vae.encode(X)


@pytest.mark.parametrize(
    ("x", "reason"),
    [
        (torch.full((2, 3), 0.5), r"x\[0, 0\] = 0.5, but a Bernoulli likelihood needs"),
        (torch.tensor([[0.0, 1.0, torch.nan]]), r"x\[0, 2\] = nan, but every number must be fin"),
        (np.array([[0, 1, 2]]), r"x\[0, 2\] = 2, but a Bernoulli likelihood needs"),
        (torch.zeros(2, 4), r"shape \(4,\), but p\(x\|z\) is over shape \(3,\)"),
    ],
)
def test_values_are_checked_every_time(x, reason):
    vae = model()
    vae.loss(X)
    for _ in range(2):
        with pytest.raises(DataError, match=reason):
            vae.loss(x)


SUPPORTS = {
    "Poisson": [[2.5], [-1.0], [torch.inf], [3e7]],
    "Normal": [[torch.nan], [1e30]],
    "ContinuousBernoulli": [[1.5], [-0.1]],
    "DiscretizedLogistic": [[0.1234]],
    "NegativeBinomial": [[0.5], [-2.0]],
}


@pytest.mark.parametrize("likelihood", SUPPORTS)
def test_the_quick_check_refuses_what_the_full_one_does(likelihood, monkeypatch):
    vae = model(likelihood=likelihood)
    good = torch.zeros(2, 3)
    vae.loss(good)
    for values in SUPPORTS[likelihood]:
        bad = good.clone()
        bad[1, 2] = values[0]
        messages = []
        for quick in (validator.is_clearly_fine, lambda *_: False):
            with monkeypatch.context() as patch:
                patch.setattr(validator, "is_clearly_fine", quick)
                with pytest.raises(DataError) as caught:
                    vae.loss(bad)
            messages.append(str(caught.value))
        assert messages[0] == messages[1]


def test_a_program_that_was_inspected_can_be_freed():
    vae = model()
    vae.loss(X)
    pv.fit(vae, X, epochs=1)
    reference = weakref.ref(vae)
    del vae
    gc.collect()
    assert reference() is None
