"""Contrasts of groups against known rates, and their false discoveries under the null."""

import pyro.distributions as dist
import pytest
import torch
from helpers import semi_supervised
from torch import nn

import pyrovae as pv
from pyrovae.diagnostics import contrast
from pyrovae.errors import ConfigError, DataError

LOADINGS = torch.tensor([[1.5, -1.0, 0.0, 0.3]])
BASE = torch.tensor([5.0, 2.0, 1.5, 3.0])


class Rates(nn.Module):
    """p(x|z) = Poisson(size · exp(b + W z)); y are sizes."""

    def forward(self, z, y=None):
        rate = (BASE + z @ LOADINGS).exp()
        return dist.Poisson(rate if y is None else rate * y.reshape(-1, 1)).to_event(1)


class Narrow(nn.Module):
    """q(z|x) about the maximum of the likelihood of the first count, as wide as its error."""

    def forward(self, x, y=None):
        size = 1.0 if y is None else y.reshape(-1)
        z = ((x[:, 0] + 0.5) / size).log() - BASE[0]
        return dist.Normal((z / 1.5)[:, None], 0.05).to_event(1)


def vae(sees_size=False):
    parts = [Narrow(), Rates()]
    if sees_size:
        parts = [pv.networks.Given(part) for part in parts]
    return pv.VAE(pv.priors.StandardNormal(1), *parts)


def simulated(shift, size=None, n=300, seed=0):
    torch.manual_seed(seed)
    z = 0.3 * torch.randn(2 * n, 1)
    z[:n] += shift
    rate = (BASE + z @ LOADINGS).exp()
    x = torch.poisson(rate if size is None else rate * size[:, None])
    first = torch.arange(2 * n) < n
    exact = rate[:n].mean(0).log2() - rate[n:].mean(0).log2()
    return x, first, exact


def test_known_fold_changes_are_found_and_zero_is_not():
    x, first, exact = simulated(0.8)
    found = contrast(vae(), x, group_a=first, group_b=~first, num_samples=400)
    # 1.5 · 0.07 / log 2 / √300 = 0.01 from the error of the codes; five of that
    assert torch.allclose(found.lfc.float(), exact, atol=0.05)
    assert found.found().tolist() == [True, True, False, True]
    assert found.probability[2] == 0
    assert (found.lower < found.lfc).all()
    assert (found.lfc < found.upper).all()
    assert found.expected_false(found.found()) <= 0.05
    # with a pseudocount far above all rates nothing changes
    shrunk = contrast(vae(), x, group_a=first, group_b=~first, pseudocount=1e6)
    assert (shrunk.lfc.abs() < 1e-2).all()


def test_intervals_cover_the_difference_of_populations():
    """Two samples of one population: 90 % intervals hold 0 nine times in ten."""
    num_covered = 0
    for seed in range(40):
        x, first, _ = simulated(0.0, n=60, seed=seed)
        found = contrast(vae(), x, group_a=first, group_b=~first, num_samples=100)
        num_covered += bool((found.lower[0] < 0) & (found.upper[0] > 0))
        assert not found.found()[2]
    # Binomial(40, 0.9) is in 30 … 40 with probability 0.998
    assert num_covered >= 30


def test_sizes_are_not_a_difference():
    size = torch.cat([torch.full((300,), 5.0), torch.ones(300)])
    x, first, exact = simulated(0.5, size=size)
    model = vae(sees_size=True)
    found = contrast(model, x, size, group_a=first, group_b=~first)
    assert torch.allclose(found.lfc.float(), exact, atol=0.05)
    ignored = contrast(vae(), x, group_a=first, group_b=~first)  # negative control
    assert (ignored.lfc.float() - exact).abs().max() > 1


def test_batches_are_standardized_over_both_groups():
    class OfBatch(nn.Module):
        def forward(self, z, y=None):
            rate = (BASE + z @ LOADINGS + 2 * y[:, 1:]).exp()
            return dist.Poisson(y[:, :1] * rate).to_event(1)

    model = pv.VAE(pv.priors.StandardNormal(1), vae().encoder, pv.networks.Given(OfBatch()))
    x, first, _ = simulated(0.0)
    y = torch.stack([torch.ones(600), first.float()], 1)  # each group its own batch
    found = contrast(model, x, y, group_a=first, group_b=~first)
    assert found.lfc.abs().max() < 0.3  # 2 / log 2 = 2.9 with each its own


@pytest.mark.parametrize(
    ("groups", "match"),
    [
        (([0, 1], [1, 2]), "1 rows are in both groups, such as row 1"),
        (([0], [1, 2]), "group_a names 1 rows"),
        (([0, 1], [2, 99]), "group_b names 2 rows"),
        (([True] * 3, [2, 3]), r"group_a has shape \(3,\)"),
    ],
)
def test_wrong_groups_are_refused(groups, match):
    x = torch.ones(6, 4)
    with pytest.raises(DataError, match=match):
        contrast(vae(), x, group_a=groups[0], group_b=groups[1])


def test_programs_and_means_without_a_fold_change_are_refused():
    pair = {"group_a": [0, 1], "group_b": [2, 3]}
    with pytest.raises(ConfigError, match="not positive"):
        contrast(pv.build(4, likelihood="Normal", seed=0), torch.randn(5, 4), **pair)
    with pytest.raises(ConfigError, match="of a VAE"):
        contrast(semi_supervised(), torch.ones(5, 4), **pair)
