"""The door: what a program expects, and whether the data are that.

`admit` turns what users have into the tensors that a program takes, before anything
changes. It compares them with what the program says of itself:

1. the shape of one datum against the event shape of p(x|z),
2. the model's latents against the guide's, and no parameter outside the module,
3. every value against the support of p(x|z).

What the program says is learned by running it once on the first two data, in eval mode,
without gradients, with generators and parameter store put back. Only dtype and device
of the data follow the program's parameters; their values are never changed.
Data that come in batches pass a `Door`, which runs the program at the first one only.
"""

import inspect
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor, nn
from torch.distributions import Distribution

from pyrovae.checks import as_mask, as_tensor, check_finite, check_precision, check_values
from pyrovae.contract.densities import check_densities, plate_errors_explained, support_of
from pyrovae.errors import ConfigError, DataError
from pyrovae.handlers import evaluation
from pyrovae.runtime.random_stream import RandomStream


def like_parameters(value: Tensor, program: nn.Module) -> Tensor:
    """Floats in the dtype, and everything on the device, of the program's parameters.

    A program without parameters takes torch's default dtype.

    Example:
        >>> like_parameters(torch.zeros(2, dtype=torch.uint8), nn.Linear(2, 1).double()).dtype
        torch.float64
    """
    parameter = next((p for p in program.parameters() if p.is_floating_point()), None)
    if parameter is None:
        return value.to(torch.get_default_dtype())
    return value.to(parameter.device, parameter.dtype)


def trace_once(program: nn.Module, *batch: Tensor | None) -> tuple[poutine.Trace, poutine.Trace]:
    """The traces of (model, guide) on a batch, leaving no mark on the process.

    Eval mode, no gradients, a random stream and a parameter store of its own, Pyro's
    validation off (the checks here say more).
    """
    with quietly(program):
        return _trace(program.model, *batch), _trace(program.guide, *batch)


@contextmanager
def quietly(program: nn.Module) -> Iterator[None]:
    """A look that leaves no mark: own stream and store, eval mode, no gradients, no validation."""
    with RandomStream(0), evaluation(program), pyro.validation_enabled(False):
        yield


def _two_rows(values: Tensor | None) -> Tensor | None:
    # one row would let a part that mixes data up broadcast without harm
    if values is None or len(values) >= 2:
        return None if values is None else values[:2]
    return torch.cat([values, values])


def _trace(function: Any, *batch: Tensor | None) -> poutine.Trace:
    # the context form: trace(fn).get_trace() would append a table of shapes to every error
    with poutine.block(), poutine.trace() as tracer:
        function(*batch)
    return prune_subsample_sites(tracer.trace)


def check_latents(model_trace: poutine.Trace, guide_trace: poutine.Trace) -> None:
    """ConfigError unless guide and model have the same latent sites of the same shape."""
    model_sites = dict(model_trace.iter_stochastic_nodes())
    guide_sites = dict(guide_trace.iter_stochastic_nodes())
    for name in {**model_sites, **guide_sites}:
        if name not in model_sites or name not in guide_sites:
            where = "model" if name in model_sites else "guide"
            raise ConfigError(f"the latent {name!r} is in the {where} only; SVI needs it in both.")
        p, q = model_sites[name]["fn"].event_shape, guide_sites[name]["fn"].event_shape
        if p != q:
            advice = "Give prior and encoder the same latent_dim."
            if len(p) != len(q):
                advice = f"End the one with .to_event({max(len(p), len(q))}), as the other does."
            raise ConfigError(
                f"p({name}) is over shape {tuple(p)}, but q({name}|x) is over {tuple(q)}; the KL "
                f"between them does not exist.\n{advice}"
            )


def check_plates(model_trace: poutine.Trace, guide_trace: poutine.Trace) -> None:
    """ConfigError unless x is in the plate "data", and p and q of each latent count alike."""
    if not is_local(observed_site(model_trace)):
        raise ConfigError(
            "the site 'x' is not inside a plate 'data', so its rows are not told from each other: "
            "there is no log p(x|z) of a datum.\n"
            "Write with pyro.plate('data', len(x)): around the sites of a datum, in the guide too."
        )
    for name, p in model_trace.iter_stochastic_nodes():
        q = guide_trace.nodes[name]
        if is_local(p) != is_local(q):
            inside, outside = ("model", "guide") if is_local(p) else ("guide", "model")
            raise ConfigError(
                f"the latent {name!r} is inside the plate 'data' in the {inside}, but not in the "
                f"{outside}: one has a draw for each datum, the other one for all.\n"
                f"Write with pyro.plate('data', len(x)): around it in the {outside} as well."
            )
        scales = float(torch.as_tensor(p["scale"]).max()), float(torch.as_tensor(q["scale"]).max())
        if not math.isclose(*scales, rel_tol=1e-6):
            raise ConfigError(
                f"log p({name}) is scaled by another factor in the model than log q({name}|x) in "
                "the guide, so what is trained would be no bound.\n"
                "Give both the same plate, pyro.plate('data', len(x)): fit scales batches itself."
            )


def is_local(site: dict) -> bool:
    """Whether a traced site stands inside the plate "data"."""
    return any(frame.name == "data" for frame in site["cond_indep_stack"])


def observed_site(model_trace: poutine.Trace) -> dict:
    """The model's observed site "x"; ConfigError where there is none."""
    site = model_trace.nodes.get("x")
    if site is None or not site["is_observed"]:
        raise ConfigError(
            "the model has no observed site 'x', so its data cannot be checked or scored.\n"
            "Name the data's site 'x': pyro.sample('x', p_x, obs=x)."
        )
    return site


def is_discrete(program: nn.Module, x: Any, y: Any = None, mask: Any = None) -> bool | None:
    """Whether p(x|z) is a probability rather than a density; None where its support is not told.

    Example:
        >>> import pyrovae as pv
        >>> is_discrete(pv.build((2,), latent_dim=1), torch.ones(3, 2))
        True
    """
    batch = admit(program, x, y, mask)
    model_trace, _ = trace_once(program, *map(_two_rows, batch))
    support = support_of(observed_site(model_trace)["fn"])
    return None if support is None else bool(support.is_discrete)


def check_parameters(program: nn.Module, *traces: poutine.Trace) -> None:
    """ConfigError when the program has a `pyro.param` that is no parameter of the module."""
    own = {id(p) for p in program.parameters()}
    for trace in traces:
        for name, site in trace.nodes.items():
            if site["type"] == "param" and id(site["value"]) not in own:
                raise ConfigError(
                    f"the program holds pyro.param({name!r}), which lives in Pyro's global store: "
                    "it would neither be saved nor moved with the module.\n"
                    "Make it an nn.Parameter of the module."
                )


def admit(
    program: nn.Module, x: Any, y: Any = None, mask: Any = None, *, is_whole: bool = True
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """x, y and mask as tensors that the program can take, after every check of this file.

    Args:
        program: an `nn.Module` with `.model` and `.guide`.
        x: (N, *event).
        y: covariates, (N, ...); whole numbers keep their dtype.
        mask: of x's shape, true where observed.
        is_whole: whether x is all of the data rather than a batch of it.

    Returns:
        (x, y, mask), x in the dtype and on the device of the program's parameters.

    Raises:
        DataError: the data do not fit the program; says where, and what to write.
        ConfigError: the program's own parts do not fit each other.

    Example:
        >>> import pyrovae as pv
        >>> vae = pv.build((2,), latent_dim=1)
        >>> admit(vae, [[0, 1], [1, 1]])[0]
        tensor([[0., 1.],
                [1., 1.]])
    """
    x, y, mask = as_batch(program, x, y, mask, is_whole=is_whole)
    traces = first_look(program, x, y, mask, is_whole=is_whole)
    p_x = observed_site(traces[0])["fn"]
    check_values(x, p_x, mask)
    batch = cast_batch(program, x, y, mask, p_x)
    if is_whole:  # after the values, or NaN in x would be blamed on the encoder
        check_densities(*traces)
    return batch


class Door:
    """Lets the batches of one source in: `admit` for the first, the values alone of the others.

    A program is traced once, on the first batch; that takes milliseconds, a look at the values
    a fraction of one. Parts that mix data up are found at the first batch too.

    Args:
        program: as for `admit`.

    Raises:
        DataError, ConfigError: from the call, as `admit` does; also where y or mask comes with
            some batches only, or with another shape.

    Example:
        >>> import pyrovae as pv
        >>> door = Door(pv.build((2,), latent_dim=1))
        >>> [len(door([[0, 1]] * n)[0]) for n in (3, 1)]
        [3, 1]
        >>> door([[0, 2]])
        Traceback (most recent call last):
            ...
        pyrovae.errors.DataError: x[0, 1] = 2, but a Bernoulli likelihood needs values in ...
    """

    def __init__(self, program: nn.Module):
        self.program = program
        self.density: Distribution | None = None
        self.shapes: tuple = ()

    def __call__(
        self, x: Any, y: Any = None, mask: Any = None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        if not sees_covariates(self.program):
            check_is_no_mask(y, x)
            y = None  # labels that a Dataset gives with each image
        x, y, mask = as_batch(self.program, x, y, mask, is_whole=False)
        shapes = (None if y is None else tuple(y.shape[1:]), mask is not None)
        traces = None
        if self.density is None:
            traces = first_look(self.program, x, y, mask, is_whole=True)
            self.density, self.shapes = observed_site(traces[0])["fn"], shapes
        check_values(x, self.density, mask)
        if shapes != self.shapes:
            raise DataError(
                f"the batch comes with y of shape {_shape(shapes[0])} a datum and "
                f"{'a' if mask is not None else 'no'} mask, but the first one had y "
                f"{_shape(self.shapes[0])} and {'a' if self.shapes[1] else 'no'} mask: the program "
                "would see another kind of data.\nGive every datum the same."
            )
        batch = cast_batch(self.program, x, y, mask, self.density)
        if traces is not None:
            check_densities(*traces)
        return batch


def _shape(shape: tuple | None) -> str:
    return "none" if shape is None else str(shape)


def as_batch(
    program: nn.Module, x: Any, y: Any, mask: Any, *, is_whole: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """x, y and mask as tensors with as many rows, x in the caller's dtype; values unseen."""
    x = as_tensor(x, "x")
    check_num_rows(x)
    mask = as_mask(mask, x, is_whole=is_whole)
    return x, as_covariates(y, len(x), program), mask


def check_num_rows(x: Any) -> None:
    """DataError unless x has rows, and at least one of them."""
    if not x.dim() or not len(x):
        raise DataError(
            f"x has shape {tuple(x.shape)}, so it has no rows (N = 0): there is nothing to learn "
            "from or to score.\nGive x one datum a row: (N, …). Add a batch dim to a single one."
        )


def first_look(
    program: nn.Module, x: Tensor, y: Tensor | None, mask: Tensor | None, *, is_whole: bool
) -> tuple[poutine.Trace, poutine.Trace]:
    """The traces of (model, guide) on the first two rows, after the checks of the program itself.

    Args:
        program, x, y, mask: as `admit` returns them, x of any dtype.
        is_whole: whether to look for parts that mix data up as well.
    """
    check_signatures(program)
    rows = _two_rows(x)
    first = like_parameters(rows, program), _two_rows(y), _two_rows(mask)
    if is_whole and hasattr(program, "check_parts"):
        with quietly(program):
            program.check_parts(*first)
    with plate_errors_explained():
        traces = trace_once(program, *first)
    check_latents(*traces)
    check_plates(*traces)
    check_parameters(program, *traces)
    if is_whole and isinstance(mask, Tensor) and not hasattr(program, "check_parts"):
        check_mask_is_seen(program, x, y, mask, traces[0])
    return traces


def check_mask_is_seen(
    program: nn.Module, x: Tensor, y: Tensor | None, mask: Tensor, model_trace: poutine.Trace
) -> None:
    """ConfigError where log p(x|z) of a program of one's own is the same without the mask."""
    row = (~mask.flatten(1).all(1)).nonzero()[:1, 0].repeat(2)
    if not len(row):
        return
    seen = mask[row]
    x = like_parameters(x[row], program)
    with quietly(program):  # hidden cells may be NaN: a draw is in the support
        x = torch.where(seen.to(x.device), x, model_trace.nodes["x"]["fn"].sample())
    log_prob = []
    for each in (seen, torch.ones_like(seen)):
        site = observed_site(trace_once(program, x, None if y is None else y[row], each)[0])
        counted = torch.as_tensor(True if site["mask"] is None else site["mask"], device=x.device)
        log_prob.append(torch.where(counted, site["fn"].log_prob(site["value"]), 0.0))
    if torch.equal(*log_prob):
        raise ConfigError(
            f"mask was given, but the model of this {type(program).__name__} does not use it: log "
            "p(x|z) is the same without it, and hidden cells would count as data.\n"
            "From pyrovae.vae, write pyro.sample('x', observed_only(p_x, mask), obs=fill(x, mask, "
            "p_x.support)), and give the encoder fill(x, mask)."
        )


def check_signatures(program: nn.Module) -> None:
    """ConfigError unless model and guide can be called with x, y and mask."""
    for name in ("model", "guide"):
        try:
            inspect.signature(getattr(program, name)).bind(None, None, None)
        except TypeError as error:
            raise ConfigError(
                f"the {name} of a {type(program).__name__} cannot be called as {name}(x, y, mask): "
                f"{error}.\nWrite def {name}(self, x, y=None, mask=None), with the plate 'data' "
                "over the rows of x and the data as site 'x'."
            ) from None


def cast_batch(
    program: nn.Module, x: Tensor, y: Tensor | None, mask: Tensor | None, p_x: Distribution
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The batch as the program takes it; DataError where its dtype or a part of it cannot."""
    cast = like_parameters(x, program)
    check_precision(x, cast.dtype, mask, p_x=p_x)
    if y is not None:
        for module in knowing_parts(program):
            module.check_data(x, y)
    return cast, y, None if mask is None else mask.to(cast.device)


def knowing_parts(program: nn.Module) -> list[nn.Module]:
    """The parts that know more of their covariates, and say so by a method `check_data`."""
    return [module for module in program.modules() if hasattr(module, "check_data")]


def check_num_covariates(y: Any, num_data: int) -> None:
    """DataError unless y has num_data rows."""
    if not y.dim() or len(y) != num_data:
        raise DataError(
            f"y has shape {tuple(y.shape)}, but there are {num_data:,} rows of data, and each "
            "needs its own covariates.\nPass y with as many rows."
        )


def sees_covariates(program: nn.Module) -> bool:
    """Whether y means anything to the program: to a `VAE`, where a part is `Given`."""
    return getattr(program, "sees_covariates", True)


def check_is_seen(program: nn.Module) -> None:
    """DataError unless the program sees the covariates that were given."""
    if not sees_covariates(program):
        raise DataError(
            "y was given, but no part of this VAE sees covariates: they would change nothing.\n"
            "Wrap the part that is to see them, networks.Given(part). For a mask write mask=…, and "
            "(x, None, mask) in validation."
        )


def check_is_no_mask(y: Any, x: Any) -> None:
    """DataError for a mask in the place of covariates that would be left out."""
    if getattr(y, "dtype", None) in (torch.bool, bool) and y.shape == getattr(x, "shape", None):
        raise DataError(
            "each datum comes as (x, y) with a y that looks like a mask: bool, and of x's shape. "
            "No part of this VAE sees covariates, so it would be left out.\n"
            "Give a datum as {'x': x, 'mask': mask}."
        )


def as_covariates(y: Any, num_data: int, program: nn.Module) -> Tensor | None:
    """y as a tensor of num_data rows; floats in the parameters' dtype, integers unchanged."""
    if y is None:
        return None
    y = as_tensor(y, "y")
    check_num_covariates(y, num_data)
    check_finite(y, name="y")
    check_is_seen(program)
    if not y.is_floating_point():
        return y.to(like_parameters(torch.empty(0), program).device)
    return like_parameters(y, program)
