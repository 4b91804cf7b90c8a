"""Pyro's silent failures: each test says in one line what would happen without an error.

More of the training step itself is in test_training.py.
"""

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import bits, small_vae, unchanged
from pyro import poutine
from pyro.infer import SVI, Predictive, RenyiELBO, Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from torch import nn

import pyrovae as pv
from pyrovae.errors import ConfigError, DataError, DivergenceError


def svi_of(vae, objective=None):
    optimizer = pyro.optim.Adam({"lr": 1e-2})
    return SVI(vae.model, vae.guide, optimizer, Trace_ELBO() if objective is None else objective)


def copies(vae):
    return [p.detach().clone() for p in vae.parameters()]


def moved(vae, before):
    """Return which parameters differ from `before`."""
    return [bool((p != b).any()) for p, b in zip(vae.parameters(), before, strict=True)]


def test_a_second_model_in_one_store_is_refused():
    """The second VAE would stay bit-identical through any number of SVI steps."""
    first, second = small_vae(seed=0), small_vae(seed=1)
    before = copies(second)
    svi_of(first).step(bits(6))
    with pytest.raises(ConfigError, match=r"already holds another[\s\S]*\.scope\(\)"):
        svi_of(second).step(bits(6))
    assert not any(moved(second, before))
    with pyro.get_param_store().scope():
        svi_of(second).step(bits(6))
    assert all(moved(second, before))


def test_the_line_in_the_message_works_for_two_models_in_turns():
    """Two stores, kept as two scopes; each model trains as it does alone."""
    alone = [small_vae(seed=s) for s in (0, 1)]
    for vae in alone:
        with pyro.get_param_store().scope():
            svi = svi_of(vae)
            torch.manual_seed(0)
            for _ in range(2):
                svi.step(bits(6))
    together = [small_vae(seed=s) for s in (0, 1)]
    scopes = [{}, {}]
    runs = [svi_of(vae) for vae in together]
    streams = [torch.manual_seed(0).get_state() for _ in together]
    for _ in range(2):
        for i, svi in enumerate(runs):
            with pyro.get_param_store().scope(scopes[i] or None) as scopes[i]:
                torch.set_rng_state(streams[i])
                svi.step(bits(6))
                streams[i] = torch.get_rng_state()
    for vae, other in zip(alone, together, strict=True):
        assert not any(moved(other, copies(vae)))


def test_fit_is_not_disturbed_by_what_the_store_holds():
    """`fit` would train what the store holds under the same names."""
    first, second = small_vae(seed=0), small_vae(seed=1)
    svi_of(first).step(bits(6))
    before = copies(first), copies(second)
    pv.fit(second, bits(6), epochs=1)
    assert not any(moved(first, before[0]))
    assert all(moved(second, before[1]))


def test_hand_written_svi_trains_every_parameter():
    """Without `pyro.module` in model and guide, SVI has no parameters and moves nothing."""
    vae = small_vae(likelihood="Normal")
    before = copies(vae)
    svi_of(vae).step(bits(6))
    assert all(moved(vae, before))


def test_a_program_without_pyro_module_still_trains_in_fit():
    """SVI over plain modules finds no parameter; `fit` optimizes the module's own."""

    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.decoder, self.encoder = nn.Linear(1, 4), nn.Linear(4, 1)

        def model(self, x, y=None, mask=None):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
                pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

        def guide(self, x, y=None, mask=None):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(self.encoder(x), 1.0).to_event(1))

    program = Plain()
    before = copies(program)
    pv.fit(program, bits(6), epochs=1)
    assert all(moved(program, before))


OBJECTIVES = [Trace_ELBO(), TraceMeanField_ELBO(), TraceGraph_ELBO(), RenyiELBO(num_particles=2)]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: type(o).__name__)
def test_fit_trains_all_parameters_with_pyros_objectives(objective):
    """An optimizer over `Trace_ELBO()(vae.model, vae.guide).parameters()` would be empty."""
    vae = small_vae()
    assert not list(Trace_ELBO()(vae.model, vae.guide).parameters())
    before = copies(vae)
    pv.fit(vae, bits(6), objective=objective, epochs=1)
    assert all(moved(vae, before))


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0, 4.0])
def test_beta_weighs_the_kl_and_nothing_else(float64, beta):
    """`poutine.scale` gives another objective under each of Pyro's ELBOs."""
    vae, x = small_vae(), bits(6).double()

    def by_hand():
        q_z, p_z = vae.encoder(x), vae.prior()
        z = q_z.rsample()
        kl = (q_z.log_prob(z) - p_z.log_prob(z)).sum()
        return -vae.decoder(z).log_prob(x).sum() + beta * kl

    def by_objective():
        return pv.objectives.BetaELBO(beta).differentiable_loss(vae.model, vae.guide, x)

    results = []
    for loss_of in (by_hand, by_objective):
        torch.manual_seed(3)
        loss = loss_of()
        gradients = torch.autograd.grad(loss, list(vae.encoder.parameters()))
        results.append([loss, *gradients])
    # sums of 48 terms of size 1 in float64: 1e-10 is 10⁴ roundings
    for expected, value in zip(*results, strict=True):
        assert torch.allclose(value, expected, rtol=0, atol=1e-10)


def test_a_scaled_plate_scales_both_terms(float64):
    """A scale read from one side only would change β."""
    vae, x = small_vae(), bits(6).double()
    losses = []
    for factor in (1.0, 7.0):
        programs = (poutine.scale(program, factor) for program in (vae.model, vae.guide))
        torch.manual_seed(3)
        losses.append(pv.objectives.BetaELBO(0.3).loss(*programs, x))
    assert losses[1].item() == pytest.approx(7.0 * losses[0].item(), abs=1e-10)


def test_bytes_are_refused_and_poison_nothing():
    """Pyro's own example scores 0..255 under a Bernoulli; the loss is finite and meaningless."""
    vae = small_vae()
    before = copies(vae)
    for x in ((255 * torch.rand(6, 4)).byte(), 255 * bits(6)):
        with pytest.raises(DataError, match=r"\{0, 1\}[\s\S]*binarize\(x / 255\)"):
            pv.fit(vae, x)
    assert not any(moved(vae, before))


BAD_SHAPES = {
    "one datum": bits(4)[:, 0],
    "columns": bits(6, 1),
    "a number": torch.tensor(1.0),
    "too wide": bits(6, 5),
    "image": bits(6, 1, 2, 2),
    "extra dimension": bits(6, 1, 4),
    "batch of batches": bits(2, 3, 4),
}


@pytest.mark.parametrize("case", BAD_SHAPES)
@pytest.mark.parametrize("validation", [True, False])
def test_an_observation_of_another_shape_never_broadcasts(case, validation):
    """[D] would be scored against each of D plate elements, [B, 1, D] against all of B."""
    vae = small_vae()
    before = copies(vae)
    with pyro.validation_enabled(validation):
        with pytest.raises((ValueError, RuntimeError, TypeError)):
            svi_of(vae).step(BAD_SHAPES[case])
        with pytest.raises((DataError, TypeError)):
            vae.model(BAD_SHAPES[case])
    assert not any(moved(vae, before))


def test_one_row_is_one_datum():
    """[1, D] would be counted once for each element of a larger plate."""
    vae = small_vae()
    trace = poutine.trace(vae.model).get_trace(bits(1, 4))
    assert trace.nodes["data"]["value"].shape == (1,)
    trace.compute_log_prob()
    assert trace.nodes["x"]["log_prob"].shape == (1,)


def test_gradients_from_before_do_not_enter_the_next_step():
    """Gradients left by an interrupted backward would be added to the next step's."""
    plain, stale = small_vae(), small_vae()
    for parameter in stale.parameters():
        parameter.grad = torch.full_like(parameter, 1e3)
    pv.fit(plain, bits(6), epochs=1)
    pv.fit(stale, bits(6), epochs=1)
    assert not any(moved(stale, copies(plain)))


def test_fit_restores_the_generators():
    """Everything that `fit` runs or traces would shift the later draws of the caller."""
    with unchanged():
        pv.fit(small_vae(), bits(6), epochs=2, validation=bits(6))


class Named(nn.Module):
    """A decoder whose log-density of cell (i, j) differs from all others."""

    def forward(self, z):
        loc = 10.0 * torch.arange(z.shape[-2])[:, None] + torch.arange(4.0)
        return dist.Normal(loc + 0.0 * z.sum(-1, keepdim=True), 1.0).to_event(1)


@pytest.mark.parametrize("num_data", [4, 6])
def test_a_mask_leaves_out_its_own_cells_when_b_equals_d(float64, num_data):
    """`poutine.mask` around the site would broadcast (B, D) over the batch to (B, B)."""
    vae = small_vae()
    vae = pv.VAE(vae.prior, vae.encoder, Named())
    x = torch.randn(num_data, 4, generator=torch.Generator().manual_seed(0))
    mask = torch.rand(num_data, 4, generator=torch.Generator().manual_seed(1)) > 0.5
    loc = 10.0 * torch.arange(num_data)[:, None] + torch.arange(4.0)
    by_hand = (dist.Normal(loc, 1.0).log_prob(x) * mask).sum(-1)
    assert torch.allclose(-vae.loss_terms(x, mask=mask).reconstruction, by_hand, atol=1e-10)
    assert torch.allclose(pv.elbo_terms(vae, x, mask=mask).log_likelihood[0], by_hand, atol=1e-10)
    trace = poutine.trace(vae.model).get_trace(x, mask=mask)
    trace.compute_log_prob()
    assert torch.allclose(trace.nodes["x"]["log_prob"], by_hand, atol=1e-10)
    transposed = (dist.Normal(loc, 1.0).log_prob(x) * mask.flip(0)).sum(-1)
    assert not torch.allclose(by_hand, transposed, atol=1.0)


def test_a_likelihood_over_whole_rows_refuses_a_mask():
    """Leaving a cell out of a joint density is not its marginal."""

    class Joint(nn.Module):
        def forward(self, z):
            loc = 0.0 * z.sum(-1, keepdim=True) + torch.zeros(4)
            return dist.MultivariateNormal(loc, torch.eye(4))

    vae = small_vae()
    vae = pv.VAE(vae.prior, vae.encoder, Joint())
    assert vae.loss(bits(6)).shape == (6,)
    with pytest.raises(ConfigError, match="factorizes over the cells"):
        vae.loss(bits(6), mask=torch.eye(6, 4))


def test_predictive_then_svi_of_another_model_raises():
    """`Predictive(a)` leaves a's parameters behind, and SVI(b) would train nothing."""
    first, second = small_vae(seed=0), small_vae(seed=1)
    Predictive(first.model, guide=first.guide, num_samples=2)(bits(6))
    with pytest.raises(ConfigError, match=r"already holds[\s\S]*scope\(\)"):
        svi_of(second).step(bits(6))
    with pytest.raises(ConfigError, match="already holds"):
        Predictive(second.model, guide=second.guide, num_samples=2)(bits(6))


def test_every_entry_point_leaves_the_store_empty():
    """A store that a look at one model filled would block, or misdirect, the next one."""
    vae = small_vae()
    vae.loss(bits(6)), vae.encode(bits(6)), vae.sample(2), vae.reconstruct(bits(6))
    pv.elbo_terms(vae, bits(6)), pv.fit(vae, bits(6), epochs=1)
    assert not list(pyro.get_param_store().keys())


def test_a_finite_loss_can_have_a_nan_gradient():
    """√0 scores well and has an infinite slope: Adam would write NaN into the weights."""

    class Root(nn.Module):
        def forward(self, features):
            return dist.Bernoulli(logits=features + (0 * features).sqrt()).to_event(1)

    vae = small_vae()
    vae.decoder[1] = Root()
    before = copies(vae)
    assert torch.isfinite(vae.loss(bits(6))).all()
    with pytest.raises(DivergenceError, match=r"non-finite gradient at step 1 .*gradient of"):
        pv.fit(vae, bits(6))
    assert not any(moved(vae, before))
