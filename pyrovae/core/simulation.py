"""Data simulated from a program, with the latents that made them: z* ~ p(z), x ~ p(x|z*).

z* is then an exact draw of p(z|x), against which guides and annealing are checked.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from pyrovae.contract import validated
from pyrovae.contract.covariates import as_covariates
from pyrovae.core.conditional import given_globals
from pyrovae.core.replay import Arrays, sites_of
from pyrovae.core.replicates import replicated
from pyrovae.data import Batch, open_source
from pyrovae.data.batch import is_by_site
from pyrovae.errors import ConfigError
from pyrovae.networks import given
from pyrovae.vae import is_plain_vae


def simulated(
    program: nn.Module, n: int, y: Any, like: Any, *, num_globals: int
) -> Iterator[tuple[nn.Module, Batch, Arrays]]:
    """Yield a program, data simulated from it and their local latents, n data in all.

    With global latents w there is a part for each draw w ~ q(w), and the program is given that w.

    Args:
        program: any program, inside `diagnosing`.
        n: number of data.
        y: (n, …), covariates.
        like: data of the program, whose rows give the shape of the simulated ones; a `VAE` needs
            none.
        num_globals: number of draws of w.

    Raises:
        ConfigError: like is missing.
    """
    if is_plain_vae(program):
        y = as_covariates(y, n, program)
        z = program.prior(*given(y, program.prior)).expand((n,)).sample()
        yield program, Batch(program.decoder(z, *given(y, program.decoder)).sample(), y), {"z": z}
        return
    if like is None:
        raise ConfigError(
            f"data cannot be simulated from a {type(program).__name__} alone, because its model "
            "takes their shape from x.\nPass like=x, data of that shape."
        )
    rows = open_source(like)
    template = rows.take(torch.arange(n) % rows.count())
    batch = validated(program, template.x, y).whole()
    programs = given_globals(program, batch, min(num_globals, n))
    for part, index in zip(programs, torch.arange(n).chunk(len(programs)), strict=False):
        chunk = batch.rows(index)
        found = next(replicated(part, chunk, num_samples=1, memory_budget=None))
        x = {name: found[name][0] for name in chunk.sites}
        sites = sites_of(part, chunk)
        latents = {name: found[name][0] for name in sites.latents}
        yield part, Batch(x if is_by_site(chunk.x) else x["x"], chunk.y), latents
