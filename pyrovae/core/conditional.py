"""A program given its global latents: p(x_i, z_i | w) at draws w ~ q(w).

Data share w, so log p(x) is not a sum over data. Given w it is, so that every method per datum
applies to the program conditioned on one draw of w after another, in which w is hidden.
"""

from typing import Any

from pyro import poutine
from torch import Tensor, nn

from pyrovae.contract.sites import is_local
from pyrovae.core.replay import Arrays
from pyrovae.core.terms import draw_traces
from pyrovae.data import Batch, Source
from pyrovae.runtime.random_stream import RandomStream
from pyrovae.vae import is_plain_vae


class Conditional(nn.Module):
    """A program given values of its global latents, which leaves its local sites only.

    Args:
        program: a program with latents outside the plate "data".
        values: site → its value in a trace of one draw.
        hidden: all sites outside the plate, including auxiliary ones of the guide.
    """

    def __init__(self, program: nn.Module, values: Arrays, hidden: list[str]):
        super().__init__()
        self.program, self.values, self.hidden = program, values, hidden

    def model(self, *batch: Tensor | None) -> Any:
        """Run the model given w."""
        with poutine.block(hide=self.hidden), poutine.condition(data=self.values):
            return self.program.model(*batch)

    def guide(self, *batch: Tensor | None) -> Any:
        """Run the guide given w."""
        with poutine.block(hide=self.hidden), poutine.condition(data=self.values):
            return self.program.guide(*batch)


def given_globals(program: nn.Module, data: Source | Batch, num_globals: int) -> list[nn.Module]:
    """Return the program at draws w ~ q(w), or the program itself if it has no global latents.

    Args:
        program: a program in eval mode, inside its own parameter store.
        data: validated.
        num_globals: number of draws of w.

    Example:
        >>> import pyrovae as pv, torch
        >>> vae = pv.build((2,), latent_dim=1)
        >>> given_globals(vae, Batch(torch.ones(1, 2)), 10) == [vae]
        True
    """
    if is_plain_vae(program):
        return [program]
    head = data.head()
    with RandomStream(0):  # so that these traces do not change the draws of other programs
        traces = draw_traces(program.model, program.guide, *head)
    sites = [site for trace in traces for _, site in trace.iter_stochastic_nodes()]
    hidden = list({site["name"]: None for site in sites if not is_local(site)})
    if not hidden:
        return [program]
    found = []
    for _ in range(num_globals):
        model = draw_traces(program.model, program.guide, *head).model
        sites = dict(model.iter_stochastic_nodes())
        values = {name: sites[name]["value"] for name in hidden if name in sites}
        found.append(Conditional(program, values, hidden).eval())
    return found
