"""Pictures of arrays and of diagnostic records: matplotlib axes in and out.

    training_curve, training_monitor    what training recorded, by epoch or by step
    images, reconstructions          inputs, samples and reconstructions, on one gray scale
    latent_manifold, traversals      what moving z does to x
    latent_scatter                   codes in the plane, with the ellipses of q(z|x)
    grid_posterior                   the exact p(z|x) of one datum, and q(z|x) over it
    kl_by_dimension                  nats by latent dimension, the inactive ones marked
    pareto_k, gaps                   where the guide fails, and what of log p(x) it loses
    calibration, coverage            ranks and regions on simulated data
    rate_distortion, comparison      several models

A function that draws one panel takes `ax=` and returns the Axes; `training_curve` and
`training_monitor` draw several and take `fig=` (a Figure or a SubFigure), which they return.
Without one, each makes a `matplotlib.figure.Figure` of a fitting size: pyplot, its backends and
its current figure are never touched, so `images(x).figure.savefig("x.png")` is all that a script
needs. In a notebook, end a cell with `images(x).figure`.

Everything here takes arrays (tensors, NumPy, nested lists), or records that hold them under the
names of `pyrovae.diagnostics`, and returns matplotlib objects. Which model they came from is not
known here.
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
