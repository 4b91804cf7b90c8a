"""The plots of a report, each with a caption and an alternative text."""

import io
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from pyrovae import plots
from pyrovae.diagnostics import Reliability
from pyrovae.errors import ConfigError, DataError
from pyrovae.handlers import evaluation
from pyrovae.report.findings import Findings
from pyrovae.report.graph import model_graph
from pyrovae.runtime.random_stream import RandomStream

NUM_WORST = 20
NUM_CODES = 1000
DPI = 130


class Picture(NamedTuple):
    """One picture of the page.

    Attributes:
        png: the bytes of the PNG.
        alt: what it shows, in words.
        caption: how to read it; plain text.
        is_wide: whether a narrow screen scrolls it rather than shrinks it.
    """

    png: bytes
    alt: str
    caption: str
    is_wide: bool = False


def as_png(figure: Any) -> bytes:
    """Return a figure, or the figure of Axes, as a PNG.

    Example:
        >>> as_png(Figure().subplots())[:4]
        b'\\x89PNG'
    """
    figure = figure if isinstance(figure, Figure) else figure.figure
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()


def pictures(
    vae: Any, found: Findings, *, history: dict[str, list], labels: Any = None, seed: int = 0
) -> dict[str, list[Picture]]:
    """Draw the pictures of each section: "model", "training", "data", "belief", "failures".

    Args:
        vae: a `VAE` without covariates.
        found: its measurements.
        history: columns by name, as in `pyrovae.History`.
        labels: (n,), labels of `found.x`, or None.
        seed: random seed.

    Example:
        >>> import torch, pyrovae as pv
        >>> from pyrovae.report.findings import examine
        >>> vae, x = pv.build((2,), latent_dim=1, seed=0), torch.eye(2).repeat(30, 1)
        >>> found = examine(vae, x, test=x, num_samples=50, num_steps=5, thorough=False)
        >>> columns = {"epoch": [1], "elbo": [-2.0], "reconstruction": [1.5], "kl": [0.5]}
        >>> sorted(pictures(vae, found, history=columns))
        ['belief', 'data', 'failures', 'model', 'training']
    """
    png, drawer = model_graph(vae, found.x)
    what = "a latent z and an observed x for each datum, inside the plate data; z points to x"
    curve = plots.training_curve(history)
    with RandomStream(seed), evaluation(vae):
        return {
            "model": [Picture(png, f"Graph of the model: {what}.", f"Drawn by {drawer}.")],
            "training": [
                Picture(
                    as_png(curve),
                    "Training curves: ELBO, reconstruction and KL by epoch.",
                    "Nats per datum, by epoch; each panel has its own scale.",
                    is_wide=True,
                )
            ],
            "data": _of_data(vae, found, labels),
            "belief": _of_belief(found),
            "failures": _of_failures(vae, found),
        }


def _of_data(vae: Any, found: Findings, labels: Any) -> list[Picture]:
    chosen = []
    codes = found.x[:NUM_CODES]
    q = vae.encode(codes)
    try:
        mean, scales = q.mean, q.variance.sqrt()
    except NotImplementedError:  # a flow
        mean, scales = q.sample((100,)).mean(0), None
    chosen += _made(
        plots.latent_scatter,
        (mean, None if labels is None else labels[:NUM_CODES]),
        {"scales": scales},
        "Codes of held-out data in the latent plane.",
        "Means of q(z|x) for held-out data; ellipses show q(z|x) for some of them.",
    )
    if found.x.dim() == 3:
        samples = vae.decode(vae.prior().expand([64]).sample()).mean
        chosen += _made(
            plots.images,
            (samples,),
            {},
            "A grid of 64 samples from the model.",
            "Samples: E[x|z] at draws z ~ p(z).",
        )
    return chosen


def _of_belief(found: Findings) -> list[Picture]:
    chosen = _made(
        plots.kl_by_dimension,
        (found.held_out.kl_per_dimension,),
        {},
        "Bars: the KL of each latent dimension.",
        "KL(q(z|x) ‖ p(z)) per latent dimension, mean over held-out data: its information on x.",
    )
    k, threshold = found.evidence.pareto_k, found.pareto_threshold
    reliability = Reliability(k, found.evidence.ess, threshold, k <= threshold)
    chosen += _made(
        plots.pareto_k,
        (reliability,),
        {},
        "The Pareto shape of each datum's importance weights.",
        "k̂ per datum: above the line, q(z|x) misses the posterior of that datum.",
    )
    if found.gaps is not None:
        chosen += _made(
            plots.gaps,
            (found.gaps,),
            {},
            "The gap between log p(x) and the ELBO, in two parts.",
            "The part of log p(x) that the ELBO misses, by guide family and by encoder network.",
        )
    if found.calibration is not None:
        chosen += _made(
            plots.coverage,
            (found.calibration,),
            {},
            "Coverage of posterior regions against their nominal probability.",
            "How often regions of q(z|x) contain the truth on simulated data; on the diagonal, as "
            "often as they should.",
        )
    return chosen


def _of_failures(vae: Any, found: Findings) -> list[Picture]:
    if found.x.dim() != 3:
        return []
    worst = found.evidence.log_px.argsort()[:NUM_WORST]
    x = found.x[worst]
    return _made(
        plots.reconstructions,
        (x, vae.decode(vae.encode(x).sample()).mean),
        {},
        f"The {len(x)} held-out images with the lowest log p(x), and their reconstructions.",
        "The held-out data with the lowest log p(x), worst first, each above E[x|z] at a draw "
        "z ~ q(z|x).",
        is_wide=True,
    )


def _made(
    draw: Any, arguments: tuple, options: dict, alt: str, caption: str, *, is_wide: bool = False
) -> list[Picture]:
    """Draw one picture, or none if these numbers have none (a KL that does not split, say)."""
    try:
        return [Picture(as_png(draw(*arguments, **options)), alt, caption, is_wide)]
    except (ConfigError, DataError):
        return []


def worst_data(found: Findings, *, num: int = 10) -> list[dict[str, float]]:
    """Return the held-out data with the lowest log p(x), worst first.

    Args:
        found: the measurements.
        num: the number of rows.

    Returns:
        One dict per row: "row" in the held-out data, "log_px", "std_error", "elbo", "pareto_k".
    """
    order = found.evidence.log_px.argsort()[:num].tolist()
    return [
        {
            "row": int(found.rows[i]),
            "log_px": found.evidence.log_px[i].item(),
            "std_error": found.evidence.std_error[i].item(),
            "elbo": found.held_out.elbo[i].item(),
            "pareto_k": found.evidence.pareto_k[i].item(),
        }
        for i in order
    ]
