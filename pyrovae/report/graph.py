"""The graph of a model, drawn by Pyro if graphviz's `dot` is installed, else by matplotlib.

z ~ p(z)  →  x ~ p(x|z)     plate "data", one pair per datum; the guide q(z|x) dashed
"""

import io
import shutil
from contextlib import suppress
from typing import Any

import pyro
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch
from torch import nn

from pyrovae.data import Batch
from pyrovae.handlers import evaluation
from pyrovae.plots.style import own_axes
from pyrovae.vae import is_plain_vae

LINE = {"color": "black", "linewidth": 1.4}


def model_graph(program: nn.Module, data: Batch) -> tuple[bytes, str]:
    """Draw the graph as a PNG; return it and the library used: "graphviz" or "matplotlib".

    Without graphviz, other programs than a `VAE` have no picture, and the PNG is empty.
    """
    if shutil.which("dot"):
        # the Python package graphviz is optional, and a `dot` without plugins fails
        with suppress(ImportError, OSError, RuntimeError), evaluation(program):
            batch = tuple(data.head(2))
            graph = pyro.render_model(program.model, batch, render_distributions=True)
            graph.graph_attr["dpi"] = "144"
            return graph.pipe(format="png"), "graphviz"
    if not is_plain_vae(program):
        return b"", "matplotlib"
    return as_png(draw_graph(program).figure, dpi=144), "matplotlib"


def as_png(figure: Figure, *, dpi: int = 130) -> bytes:
    """Return a figure as a PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def draw_graph(vae: Any) -> Axes:
    """Draw the graph of a VAE: z, x (gray: observed), the plate, the arrows of model and guide."""
    ax = own_axes(None, 4.4, 3.4)
    ax.set_xlim(-2.2, 2.9)
    ax.set_ylim(-1.0, 3.4)
    ax.set_aspect("equal")
    ax.set_axis_off()
    plate = FancyBboxPatch((-1.3, -0.8), 2.6, 4.0, boxstyle="round,pad=0.05", fill=False, **LINE)
    ax.add_patch(plate)
    for center, name, face in ((2.4, "z", "white"), (0.4, "x", "#d0d0d0")):
        ax.add_patch(Circle((0, center), 0.45, facecolor=face, edgecolor="black", linewidth=1.4))
        ax.text(0, center, name, ha="center", va="center", fontsize=14, fontstyle="italic")
    ax.text(1.2, -0.65, "data", ha="right", va="bottom", fontsize=9)
    arrow = {"arrowstyle": "-|>", "mutation_scale": 16, **LINE}
    ax.add_patch(FancyArrowPatch((0, 1.93), (0, 0.87), **arrow))
    bent = {"connectionstyle": "arc3,rad=-0.5", "linestyle": "--"}
    ax.add_patch(FancyArrowPatch((-0.36, 0.68), (-0.36, 2.12), **arrow, **bent))
    likelihood, guide = (type(_last(part)).__name__ for part in (vae.decoder, vae.encoder))
    box = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
    style = {"va": "center", "fontsize": 9, "bbox": box}
    ax.text(0.6, 2.4, f"p(z)\n{type(vae.prior).__name__}", ha="left", **style)
    ax.text(0.6, 0.4, f"p(x|z)\n{likelihood}", ha="left", **style)
    ax.text(-0.8, 1.4, f"q(z|x)\n{guide}", ha="right", **style)
    return ax


def _last(part: Any) -> Any:
    return list(part.children())[-1] if list(part.children()) else part
