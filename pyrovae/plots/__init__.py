"""Plots of arrays and of diagnostic records: matplotlib axes in and out.

    training_curve, training_monitor what training recorded, by epoch or by step
    images, reconstructions          inputs, samples and reconstructions, on one gray scale
    latent_manifold, traversals      how x changes with z
    latent_scatter                   codes in the plane, with the ellipses of q(z|x)
    grid_posterior                   the exact p(z|x) of one datum, and q(z|x) over it
    kl_by_dimension                  nats by latent dimension, the inactive ones marked
    pareto_k, gaps                   where the guide fails, and how much of log p(x) it loses
    calibration, coverage            ranks and regions on simulated data
    rate_distortion, comparison      several models

Functions that draw one panel take `ax=` and return the Axes; `training_curve` and
`training_monitor` draw several and take `fig=` (a Figure or a SubFigure), which they return. By
default each creates a `matplotlib.figure.Figure` of a suitable size. pyplot, its backends and its
current figure are never touched, so a script only needs `images(x).figure.savefig("x.png")`. In a
notebook, end a cell with `images(x).figure`.

Inputs are arrays (tensors, NumPy, nested lists), or records that hold them under the names of
`pyrovae.diagnostics`. Nothing here knows the model that they came from.
"""

from pyrovae.plots.codes import latent_scatter
from pyrovae.plots.comparisons import comparison, rate_distortion
from pyrovae.plots.curves import training_curve, training_monitor
from pyrovae.plots.mosaics import images, latent_manifold, reconstructions, traversals
from pyrovae.plots.ranks import calibration, coverage
from pyrovae.plots.readings import gaps, kl_by_dimension, pareto_k
from pyrovae.plots.surfaces import grid_posterior

__all__ = [
    "calibration",
    "comparison",
    "coverage",
    "gaps",
    "grid_posterior",
    "images",
    "kl_by_dimension",
    "latent_manifold",
    "latent_scatter",
    "pareto_k",
    "rate_distortion",
    "reconstructions",
    "training_curve",
    "training_monitor",
    "traversals",
]
