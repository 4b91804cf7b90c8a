"""The plots of a report, each with a caption and an alternative text."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from torch import Tensor, nn

from pyrovae import plots
from pyrovae.core.draws import over_draws, read_latents
from pyrovae.data import Batch
from pyrovae.errors import ConfigError, DataError
from pyrovae.handlers import evaluation
from pyrovae.images import can_be_drawn
from pyrovae.networks import given
from pyrovae.report.findings import Findings
from pyrovae.report.graph import as_png, model_graph
from pyrovae.runtime.random_stream import RandomStream
from pyrovae.vae import is_plain_vae

NUM_WORST = 20
NUM_CODES = 1000


class Picture(NamedTuple):
    """One picture of the page."""

    png: bytes
    alt: str  # what it shows, in words
    caption: str  # how to read it; plain text
    is_wide: bool = False  # whether a narrow screen scrolls it rather than shrinks it


def pictures(
    program: nn.Module,
    found: Findings,
    *,
    history: Any,
    labels: Any = None,
    seed: int = 0,
) -> dict[str, list[Picture]]:
    """Draw the pictures of each section: "model", "training", "data", "belief", "failures".

    `history` is a `pyrovae.History`, a dict of its columns, or None; `labels` (n,) are those of
    `found.data`.
    """
    with RandomStream(seed), evaluation(program):
        return {
            "model": _of_model(program, found),
            "training": [] if history is None else [_of_training(history)],
            "data": _of_data(program, found, labels),
            "belief": _of_belief(found),
            "failures": _of_failures(program, found),
        }


def _of_model(program: nn.Module, found: Findings) -> list[Picture]:
    png, drawer = model_graph(program, found.data)
    what = "its latents and observed sites, inside their plates"
    if is_plain_vae(program):
        what = "a latent z and an observed x for each datum, inside the plate data; z points to x"
    return [Picture(png, f"Graph of the model: {what}.", f"Drawn by {drawer}.")] if png else []


def _of_training(history: Any) -> Picture:
    return Picture(
        as_png(plots.training_curve(history)),
        "Training curves: ELBO, reconstruction and KL by epoch.",
        "Nats per datum, by epoch; each panel has its own scale.",
        is_wide=True,
    )


def _of_data(program: nn.Module, found: Findings, labels: Any) -> list[Picture]:
    some = found.data.head(NUM_CODES)
    mean, scales = _codes(program, some)
    labels = None if labels is None else labels[:NUM_CODES]
    chosen = _made(
        partial(plots.latent_scatter, mean, labels, scales=scales),
        "Codes of held-out data in the latent plane.",
        "Means of q(z|x) for held-out data; ellipses show q(z|x) for some of them.",
    )
    if _are_images(program, found):
        y = None if found.data.y is None else found.data.y[:64]
        p_z = program.prior(*given(y, program.prior))
        samples = program.decode(p_z.expand([64 if y is None else len(y)]).sample(), y).mean
        chosen += _made(
            partial(plots.images, samples),
            "A grid of 64 samples from the model.",
            "Samples: E[x|z] at draws z ~ p(z).",
        )
    return chosen


def _codes(program: nn.Module, data: Batch) -> tuple[Tensor, Tensor | None]:
    """Return mean and standard deviation of the local latents under the guide, (n, D)."""
    if is_plain_vae(program):
        q = program.encode(*data)
        try:
            return q.mean, q.variance.sqrt()
        except NotImplementedError:  # a flow
            return q.sample((100,)).mean(0), None
    how = {"num_samples": 100, "memory_budget": None}
    z = over_draws(program, data, read_latents, **how)["z"]  # (S, n, D)
    return z.mean(0), z.std(0)


def _are_images(program: nn.Module, found: Findings) -> bool:
    return is_plain_vae(program) and can_be_drawn(found.data.x.shape[1:])


def _of_belief(found: Findings) -> list[Picture]:
    chosen = _made(
        partial(plots.kl_by_dimension, found.held_out.kl_per_dimension, active=_active(found)),
        "Bars: the KL of each latent dimension.",
        "KL(q(z|x) ‖ p(z)) per latent dimension, mean over held-out data: its information on x.",
    )
    chosen += _made(
        partial(plots.pareto_k, found.reliability),
        "The Pareto shape of each datum's importance weights.",
        "k̂ per datum: above the line, q(z|x) misses the posterior of that datum.",
    )
    if found.gaps is not None:
        chosen += _made(
            partial(plots.gaps, found.gaps),
            "The gap between log p(x) and the ELBO, in two parts.",
            "The part of log p(x) that the ELBO misses, by guide family and by encoder network.",
        )
    if found.calibration is not None:
        chosen += _made(
            partial(plots.coverage, found.calibration),
            "Coverage of posterior regions against their nominal probability.",
            "How often regions of q(z|x) contain the truth on simulated data; on the diagonal, as "
            "often as they should.",
        )
    return chosen


def _active(found: Findings) -> Any:
    """Return the flags of the verdict on collapse; None for angles, which have two means each."""
    collapse, num = found.collapse, found.held_out.kl_per_dimension.shape[-1]
    return None if collapse is None or len(collapse.names) != num else ~collapse.is_collapsed


def _of_failures(program: nn.Module, found: Findings) -> list[Picture]:
    if not _are_images(program, found):
        return []
    x, y, mask = found.data.rows(found.evidence.log_px.argsort()[:NUM_WORST].to(found.data.device))
    again = program.decode(program.encode(x, y, mask).sample(), y).mean
    return _made(
        partial(plots.reconstructions, x, again),
        f"The {len(x)} held-out images with the lowest log p(x), and their reconstructions.",
        "The held-out data with the lowest log p(x), worst first, each above E[x|z] at a draw "
        "z ~ q(z|x).",
        is_wide=True,
    )


def _made(
    draw: Callable[[], Axes], alt: str, caption: str, *, is_wide: bool = False
) -> list[Picture]:
    """Draw one picture, or none if these numbers have none (a KL that does not split, say)."""
    try:
        return [Picture(as_png(draw().figure), alt, caption, is_wide)]
    except (ConfigError, DataError):
        return []


def worst_data(found: Findings, *, num: int = 10) -> list[dict[str, float]]:
    """Return numbers of the held-out data with the lowest log p(x), worst first, by name."""
    evidence = found.evidence
    columns = {
        "row": found.rows,
        "log_px": evidence.log_px,
        "std_error": evidence.std_error,
        "elbo": found.held_out.elbo,
        "is_bound": evidence.upper.isinf(),
        "pareto_k": found.reliability.pareto_k,
    }
    worst = evidence.log_px.argsort()[:num].tolist()
    return [{name: column[i].item() for name, column in columns.items()} for i in worst]
