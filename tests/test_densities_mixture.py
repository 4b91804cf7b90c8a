"""The matrix-product form of a large Gaussian mixture against the plain one."""

import pyro.distributions as dist
import pytest
import torch

from pyrovae.core.chunking import bytes_per_draw
from pyrovae.densities import mixture
from pyrovae.densities.mixture import Mixture


def large(dtype: torch.dtype, *, num_components: int = 500, latent_dim: int = 40):
    """A mixture as a VampPrior has it: tight components (σ from 0.05) about the origin."""
    generator = torch.Generator().manual_seed(0)
    loc = torch.randn(num_components, latent_dim, generator=generator).to(dtype)
    scale = 0.05 + torch.rand(num_components, latent_dim, generator=generator).to(dtype)
    return Mixture(
        dist.Categorical(logits=torch.zeros(num_components, dtype=dtype)),
        dist.Normal(loc, scale).to_event(1),
    )


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
def test_matrix_products_equal_the_subtraction(dtype, tolerance, monkeypatch):
    p = large(dtype)
    z = p.expand([64]).sample()
    fast = p.expand([64]).log_prob(z)
    monkeypatch.setattr(mixture, "SMALL", float("inf"))
    exact = large(torch.float64).log_prob(z.double())
    assert torch.allclose(fast.double(), exact, rtol=tolerance, atol=tolerance)


def test_both_forms_have_the_same_gradient(monkeypatch):
    z = large(torch.float64).sample((64,))
    gradients = []
    for small in (0, float("inf")):
        monkeypatch.setattr(mixture, "SMALL", small)
        p = large(torch.float64)
        loc = p.normal.loc.requires_grad_()
        p = Mixture(p.mixture_distribution, dist.Normal(loc, p.normal.scale).to_event(1))
        gradients.append(torch.autograd.grad(p.log_prob(z).sum(), loc)[0])
    assert torch.allclose(*gradients, atol=1e-10)
    assert gradients[0].abs().max() > 1


def test_shapes_with_sample_dimensions():
    p = large(torch.float32).expand([64])
    assert p.log_prob(p.sample((3,))).shape == (3, 64)


def test_a_draw_costs_no_array_of_all_components():
    """Chunks of draws are sized from two and three of them: these cost what many do, each."""
    p, z = large(torch.float32), torch.zeros(100, 40)
    few = bytes_per_draw(lambda n: p.log_prob(z[:n]))
    many = bytes_per_draw(lambda n: p.log_prob(z[: n * 20]))
    assert few < p.normal.loc.numel() * 4
    assert few == many / 20
