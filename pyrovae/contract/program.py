"""Checks of a program, by running it once on the first two rows.

1. Model and guide take (x, y, mask), and the parts satisfy their contract (`parts`).
2. Model and guide have the same latents, of the same shapes, in the same plates.
3. All parameters belong to the module.
4. A mask is used where one is given.

The program runs in eval mode and without gradients; generators and the parameter store are
restored. `densities` checks the distributions, and `validator` the values of the data.
"""

import inspect
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor, nn

from pyrovae.contract.densities import plate_errors_explained
from pyrovae.contract.layout import layout_of, nesting_of
from pyrovae.contract.sites import (
    auxiliary_sites,
    is_data,
    is_local,
    is_marked,
    missing_site_explained,
    observed_site,
)
from pyrovae.data import Batch
from pyrovae.data.batch import is_by_site
from pyrovae.errors import ConfigError
from pyrovae.handlers import evaluation
from pyrovae.runtime.random_stream import RandomStream


def trace_once(program: nn.Module, *batch: Tensor | None) -> tuple[poutine.Trace, poutine.Trace]:
    """Return the traces of (model, guide) on a batch, without side effects (`quietly`)."""
    with quietly(program):
        return _trace(program.model, *batch), _trace(program.guide, *batch)


@contextmanager
def quietly(program: nn.Module) -> Iterator[None]:
    """Run in eval mode, without gradients, with a separate random stream and parameter store.

    Pyro's validation is off: the checks here give clearer errors.
    """
    with RandomStream(0), evaluation(program), pyro.validation_enabled(False):
        yield


def _trace(function: Any, *batch: Tensor | None) -> poutine.Trace:
    # the context form: trace(fn).get_trace() would append a table of shapes to every error
    with poutine.block(), poutine.trace() as tracer:
        function(*batch)
    return prune_subsample_sites(tracer.trace)


def trace_first_rows(program: nn.Module, rows: Batch) -> tuple[poutine.Trace, poutine.Trace]:
    """Return the traces of (model, guide) on the first rows, after the checks of the program.

    Args:
        program: a module with `.model` and `.guide`.
        rows: the first two data, x in the dtype of the parameters. With one row a part that
            mixes up data would broadcast unnoticed.

    Raises:
        ConfigError: the program violates its contract.
        DataError: x is a dict without a site that the program looks up.
    """
    if hasattr(program, "check_parts"):
        with quietly(program):
            program.check_parts(*rows)
    with plate_errors_explained(), missing_site_explained(rows):
        traces = trace_once(program, *rows)
    check_latents(*traces)
    check_plates(*traces)
    check_parameters(program, *traces)
    return traces


def check_mask_is_seen(
    program: nn.Module, rows: Batch, name: str, model_trace: poutine.Trace
) -> None:
    """Raise ConfigError if log p(x|z) of a custom program is the same without the mask.

    Args:
        program: one without `check_parts`, which would give a clearer error.
        rows: two copies of a datum with a hidden cell, x in the dtype of the parameters.
        name: the observed site with that cell.
        model_trace: of the model on two data.
    """
    nesting = nesting_of(model_trace)
    layouts = {n: layout_of(model_trace.nodes[n], nesting) for n in rows.sites}
    with quietly(program):  # hidden cells may be NaN: draws are in the support
        draws = {n: model_trace.nodes[n]["fn"].sample() for n in rows.sites}
    draws = {n: layouts[n].canonical(draw)[0] for n, draw in draws.items()}
    filled = {
        n: site.x if site.mask is None else torch.where(site.mask, site.x, draws[n])
        for n, site in rows.sites.items()
    }
    log_prob = []
    for mask in (rows.mask, Batch(rows.mask).map(torch.ones_like).x):
        batch = replace(rows, x=filled if is_by_site(rows.x) else filled["x"], mask=mask)
        site = observed_site(trace_once(program, *batch)[0], name)
        counted = torch.as_tensor(True if site["mask"] is None else site["mask"])
        found = site["fn"].log_prob(site["value"])
        log_prob.append(torch.where(counted.to(found.device), found, 0.0))
    if torch.equal(*log_prob):
        raise ConfigError(
            f"mask was given, but the model of this {type(program).__name__} does not use it: log "
            f"p({name}|z) is the same without it, and hidden cells would count as data.\n"
            f"From pyrovae.vae, write pyro.sample({name!r}, observed_only(p_x, mask), obs=fill(x, "
            "mask, p_x.support)), and give the encoder fill(x, mask)."
        )


def check_signatures(program: nn.Module) -> None:
    """Raise ConfigError unless model and guide accept (x, y, mask)."""
    for name in ("model", "guide"):
        if not callable(getattr(program, name, None)):
            raise ConfigError(
                f"a {type(program).__name__} has no {name}, so it is not a program.\nPass a VAE or "
                "a module with a Pyro model(x, y=None, mask=None) and a guide of these arguments."
            )
        try:
            inspect.signature(getattr(program, name)).bind(None, None, None)
        except TypeError as error:
            raise ConfigError(
                f"the {name} of a {type(program).__name__} cannot be called as {name}(x, y, mask): "
                f"{error}.\nWrite def {name}(self, x, y=None, mask=None), with the plate 'data' "
                "over the rows of x and the data as site 'x'."
            ) from None


def check_latents(model_trace: poutine.Trace, guide_trace: poutine.Trace) -> None:
    """Raise ConfigError unless guide and model have the same latents with the same shapes."""
    model_sites = dict(model_trace.iter_stochastic_nodes())
    guide_sites = dict(guide_trace.iter_stochastic_nodes())
    auxiliary = auxiliary_sites(guide_trace)
    for name in {**model_sites, **guide_sites}:
        if name in auxiliary:
            continue
        if name in model_sites and name not in guide_sites and is_marked(model_sites[name]):
            check_sum(name, model_sites[name])
            continue
        if name not in model_sites or name not in guide_sites:
            where = "model" if name in model_sites else "guide"
            raise ConfigError(
                f"the latent {name!r} is in the {where} only; SVI needs it in both.\n"
                "A discrete latent is summed out, and needs no guide, if it is marked: "
                f"pyro.sample({name!r}, …, infer={{'enumerate': 'parallel'}})."
            )
        p, q = model_sites[name]["fn"].event_shape, guide_sites[name]["fn"].event_shape
        if p != q:
            advice = "Give prior and encoder the same latent_dim."
            if len(p) != len(q):
                advice = f"End both with .to_event({max(len(p), len(q))})."
            raise ConfigError(
                f"p({name}) is over shape {tuple(p)}, but q({name}|x) is over {tuple(q)}; the KL "
                f"between them does not exist.\n{advice}"
            )


def check_sum(name: str, site: dict) -> None:
    """Raise ConfigError if the sum over a discrete latent is not one per datum."""
    if not is_local(site):
        raise ConfigError(
            f"the latent {name!r} is marked for enumeration outside the plate 'data': all data "
            "share it, so the sum over its values has one term for all data together.\n"
            "Put it inside `with pyro.plate('data', len(x)):`, or draw it in the guide."
        )


def check_plates(model_trace: poutine.Trace, guide_trace: poutine.Trace) -> None:
    """Raise ConfigError unless x is in the plate "data" and p and q use the same plates."""
    for name in model_trace.observation_nodes:
        site = model_trace.nodes[name]
        if is_data(site) and not is_local(site):
            raise ConfigError(
                f"the site {name!r} is not inside a plate 'data', so its rows are not independent "
                f"data: log p({name}|z) per datum is undefined.\n"
                "Put the sites of a datum inside `with pyro.plate('data', len(x)):`, in the guide "
                "too."
            )
    for name, p in model_trace.iter_stochastic_nodes():
        q = guide_trace.nodes.get(name)
        if q is None:  # summed out
            continue
        if is_local(p) != is_local(q):
            inside, outside = ("model", "guide") if is_local(p) else ("guide", "model")
            raise ConfigError(
                f"the latent {name!r} is inside the plate 'data' in the {inside}, but not in the "
                f"{outside}: one draws per datum, the other once for all data.\n"
                f"Put it inside `with pyro.plate('data', len(x)):` in the {outside} as well."
            )
        scales = float(torch.as_tensor(p["scale"]).max()), float(torch.as_tensor(q["scale"]).max())
        if not math.isclose(*scales, rel_tol=1e-6):
            raise ConfigError(
                f"log p({name}) in the model and log q({name}|x) in the guide are scaled by "
                "different factors, so the objective would not be a bound.\n"
                "Give both the same plate, pyro.plate('data', len(x)): fit scales batches itself."
            )


def check_parameters(program: nn.Module, *traces: poutine.Trace) -> None:
    """Raise ConfigError if a `pyro.param` of the program is not a parameter of the module."""
    own = {id(p) for p in program.parameters()}
    for trace in traces:
        for name, site in trace.nodes.items():
            # a PyroParam is the image of an nn.Parameter
            if site["type"] == "param" and not own & {id(site["value"]), id(_leaf(site["value"]))}:
                raise ConfigError(
                    f"the program holds pyro.param({name!r}), which lives in Pyro's global store: "
                    "it would neither be saved nor moved with the module.\n"
                    "Make it an nn.Parameter of the module."
                )


def _leaf(value: Tensor) -> Tensor:
    """Return the unconstrained tensor behind the value of a `pyro.param`."""
    return value.unconstrained() if hasattr(value, "unconstrained") else value
