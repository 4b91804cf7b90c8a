"""Supports that differ between columns: checks, masks and gradients cell by cell."""

import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.distributions import constraints

import pyrovae as pv
from pyrovae.checks import check_precision, check_values
from pyrovae.checks.supports import cells_with_edges, inside, whole_cells
from pyrovae.contract.validator import is_discrete
from pyrovae.errors import DataError

SUPPORT = constraints.cat(
    [constraints.real, constraints.positive, constraints.boolean], -1, [2, 1, 1]
)


class Mixed(dist.Normal):
    """A density of each cell whose support differs between columns."""

    @property
    def support(self):
        return SUPPORT


class Head(nn.Module):
    def __init__(self, make=lambda f: Mixed(f, 1.0)):
        super().__init__()
        self.make = make

    def forward(self, features):
        return self.make(features).to_event(1)


def mixed_vae(head=None, width=4):
    encoder = pv.build(width, latent_dim=1, seed=0).encoder
    return pv.VAE(
        pv.priors.StandardNormal(1), encoder, nn.Sequential(nn.Linear(1, width), head or Head())
    )


def test_facts_of_each_column():
    assert inside(SUPPORT, torch.float64).tolist() == [0, 0, 0.5, 0]
    assert cells_with_edges(SUPPORT).tolist() == [False, False, True, False]
    assert whole_cells(SUPPORT).tolist() == [False, False, False, True]
    stack = constraints.stack([constraints.positive, constraints.real], -2)
    assert inside(stack, torch.float32).tolist() == [[0.5], [0]]


def test_a_mask_leaves_out_cells_of_every_support():
    x = torch.tensor([[0.3, -2.0, 1.5, 1.0], [0.1, 0.2, 0.3, 0.0]])
    mask = torch.tensor([[True, False, False, False], [True, True, True, True]])
    vae = mixed_vae()
    hidden = torch.where(mask, x, torch.nan)
    torch.manual_seed(1)
    whole = vae.loss(torch.where(mask, x, 1.0))[1]
    torch.manual_seed(1)
    assert vae.loss(hidden, mask=mask)[1].item() == pytest.approx(whole.item())
    vae.loss(hidden, mask=mask).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in vae.parameters())


def test_a_hidden_cell_of_a_half_line_has_a_clean_gradient():
    """At the edge 0 the gradient of log x in the shape parameter is infinite."""
    head = Head(lambda f: dist.Gamma(f.exp(), 1.0))
    vae = mixed_vae(head, 2)
    mask = torch.tensor([[True, False]])
    vae.loss(torch.tensor([[0.7, torch.nan]]), mask=mask).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in vae.parameters())


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ((1, 2), -1.0, r"x\[1, 2\] = -1, but a Mixed likelihood needs values > 0"),
        ((0, 3), 0.5, r"x\[0, 3\] = 0.5, but a Mixed likelihood needs values in \{0, 1\}"),
        ((1, 0), torch.nan, r"x\[1, 0\] = nan"),
    ],
)
def test_the_first_bad_cell_is_named_with_what_its_column_needs(place, value, message):
    x = torch.ones(2, 4)
    x[place] = value
    with pytest.raises(DataError, match=message):
        mixed_vae().loss(x)
    mask = torch.ones(2, 4, dtype=torch.bool)
    mask[place] = False
    assert mixed_vae().loss(x, mask=mask).isfinite().all()


def test_a_named_column_is_named():
    p_x = Mixed(torch.zeros(4), 1.0).to_event(1)
    with pytest.raises(DataError, match=r"column 'smokes': x\[0, 3\] = 2"):
        check_values(torch.full((1, 4), 2.0), p_x, names=("a", "b", "c", "smokes"))


def test_whole_columns_only_must_be_exact():
    p_x = Mixed(torch.zeros(4), 1.0).to_event(1)
    big = 2.0**25
    check_precision(torch.tensor([[big, 0, 1, 0]]), torch.float32, p_x=p_x)
    with pytest.raises(DataError, match=r"x\[0, 3\] = 33554432, but whole numbers above"):
        check_precision(torch.tensor([[0, 0, 1, big]]), torch.float32, p_x=p_x)


def test_a_mixture_of_discrete_and_real_columns_is_neither():
    assert is_discrete(mixed_vae(), torch.ones(2, 4)) is None
