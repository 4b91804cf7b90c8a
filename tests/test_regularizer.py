"""The purpose of the regularizer: β = 0 against β = 1 on real digits with a 2-D latent space.

Without the KL the encoder cheats: every datum gets its own far-away region. 100 digits
are few enough that it can do so thoroughly within seconds.
"""

import math

import pytest
import torch

import pyrovae as pv


@pytest.fixture(scope="module")
def digits() -> pv.datasets.Data:
    data = pv.datasets.digits()
    binary = {name: pv.datasets.binarize(getattr(data, name)) for name in ("train", "test")}
    return data._replace(train=binary["train"][:100], test=binary["test"])


@pytest.fixture(scope="module")
def trained(digits) -> dict[int, pv.VAE]:
    vaes = {}
    for beta in (0, 1):
        vaes[beta] = pv.build((8, 8), latent_dim=2, hidden=(100, 100), seed=0)
        objective = pv.objectives.BetaELBO(float(beta))
        settings = {"epochs": 300, "batch_size": 100, "learning_rate": 1e-2}
        pv.fit(vaes[beta], digits.train, objective=objective, **settings)
    return vaes


def marginal_kl(vae: pv.VAE, x: torch.Tensor) -> float:
    """KL(q(z) ‖ p(z)) in nats, q(z) the mixture of all q(z|x_n), by one draw of each."""
    with torch.no_grad():
        q = vae.encode(x)
        z = q.sample()
        log_q = q.log_prob(z[:, None]).logsumexp(1) - math.log(len(x))
        return (log_q - vae.prior().log_prob(z)).mean().item()


def widths_apart(vae: pv.VAE, x: torch.Tensor, labels: torch.Tensor) -> float:
    """Median distance of two codes of the same digit, in posterior standard deviations."""
    with torch.no_grad():
        q = vae.encode(x)
    apart = []
    for label in labels.unique():
        mean, scale = q.mean[labels == label], q.stddev[labels == label]
        pairs = torch.triu_indices(len(mean), len(mean), 1)
        distance = (mean[pairs[0]] - mean[pairs[1]]).norm(dim=-1)
        apart.append(distance / scale[pairs[0]].mean(-1))
    return torch.cat(apart).median().item()


def test_without_it_the_marginal_kl_explodes(trained, digits):
    exploded, kept = (marginal_kl(trained[beta], digits.train) for beta in (0, 1))
    assert exploded > 50
    assert kept < 2


def test_without_it_codes_of_one_digit_lie_many_widths_apart(trained, digits):
    labels = digits.train_labels[:100]
    apart, near = (widths_apart(trained[beta], digits.train, labels) for beta in (0, 1))
    assert apart > 100
    assert near < 30


def test_without_it_the_exact_evidence_falls_by_more_than_10_nats(trained, digits):
    """Mean log p(x) of 60 random test digits on the grid: prior draws land between the codes.

    Four seeds of weights and training gave 21, 28, 30 and 35 nats, each ± 3 over digits.
    """
    log_px = {
        beta: pv.log_evidence(vae, digits.test, num_data=60, method="grid").log_px.mean().item()
        for beta, vae in trained.items()
    }
    assert log_px[1] - log_px[0] > 10
    assert log_px[1] > -40
