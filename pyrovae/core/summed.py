"""A program without the discrete latents of its guide, for methods that move along gradients.

    log p(x, z) = log Σ_c p(x, z, c),    z continuous, c discrete

If the guide draws c as well as z, c is hidden in the guide and summed out of the model, as if the
guide had left it out (`marginal`). Draws of z are completed by c ~ p(c|x, z). Since
q(z|x) = Σ_c q(c|x) q(z|x, c) is not computed, the guide has no density at given latents.
"""

from typing import Any

from pyro import poutine
from torch import Tensor, nn

from pyrovae.contract.sites import is_local
from pyrovae.core.draws import concat
from pyrovae.core.joint import by_site, flat, joint_of
from pyrovae.core.replay import guide_at, sites_of
from pyrovae.core.replicates import replicated
from pyrovae.core.terms import draw_traces
from pyrovae.data import Batch, Source
from pyrovae.runtime.random_stream import RandomStream
from pyrovae.vae import is_plain_vae


class Summed(nn.Module):
    """A program whose discrete latents are summed out.

    Args:
        program: the program.
        hidden: its discrete sites, which model and guide draw.
    """

    def __init__(self, program: nn.Module, hidden: list[str]):
        super().__init__()
        self.program, self.hidden_in_guide = program, hidden

    def model(self, *batch: Any) -> Any:
        """Run the model, in which the sites are marked for enumeration."""
        marked = poutine.infer_config(
            self.program.model,
            lambda site: {"enumerate": "parallel"} if site["name"] in self.hidden_in_guide else {},
        )
        return marked(*batch)

    def guide(self, *batch: Any) -> Any:
        """Run the guide, in which the sites are hidden."""
        with poutine.block(hide=self.hidden_in_guide):
            return self.program.guide(*batch)


def without_discrete(program: nn.Module, data: Source | Batch) -> nn.Module:
    """Return the program with its finite discrete latents summed out, or itself if it has none.

    A program that has no other latents stays as it is.

    Args:
        program: a program without global latents, inside `diagnosing`.
        data: validated.

    Example:
        >>> import pyrovae as pv, torch
        >>> vae = pv.build((2,), latent_dim=1)
        >>> without_discrete(vae, Batch(torch.ones(1, 2))) is vae
        True
    """
    if is_plain_vae(program):
        return program
    with RandomStream(0):  # so that this trace does not change the draws
        traces = draw_traces(program.model, program.guide, *data.head())
    latents = {n: s for n, s in traces.model.iter_stochastic_nodes() if is_local(s)}
    hidden = [name for name, site in latents.items() if _is_finite(site["fn"])]
    return Summed(program, hidden).eval() if 0 < len(hidden) < len(latents) else program


def _is_finite(density: Any) -> bool:
    try:
        density.enumerate_support(expand=False)
    except NotImplementedError:
        return False
    return True


def completed(program: nn.Module, batch: Batch, draws: Tensor) -> Tensor:
    """Return draws of all latents of a datum, with c ~ p(c|x, z), (C, S, N, D + …).

    Args:
        program: as returned by `without_discrete`.
        batch: validated data.
        draws: (C, S, N, D), of its latents, concatenated.
    """
    if not isinstance(program, Summed):
        return draws
    shape = draws.shape[:2]
    z = by_site(draws.flatten(0, 1), joint_of(program, batch).draw_prior(1))
    sites = sites_of(program, batch)

    def guide_for(part: slice) -> Any:
        return guide_at({name: value[part] for name, value in z.items()}, sites.layouts)

    how = {"num_samples": shape.numel(), "memory_budget": None}
    found = concat(list(replicated(program, batch, guide_for, **how)), 0)
    latents = sites_of(program.program, batch).latents
    return flat({name: found[name].to(draws) for name in latents}).unflatten(0, shape)
