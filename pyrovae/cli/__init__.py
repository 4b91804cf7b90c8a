"""The `pyrovae` command: train a VAE, inspect it, and check its numbers.

    fit        train, score on held-out data, write model, card and plots to a run folder
    evaluate   ELBO, evidence log p(x), active units and k̂ of a run
    verify     recompute the numbers on a run's card with other draws
    sample, encode, impute    use the model
    compare    rank runs by their evidence on the same held-out data
    report     one HTML page that says whether to trust it

One file per command. Commands parse options and print; what they show is computed by the
library. Importing this imports neither torch nor Pyro.
"""

from pyrovae.cli import compare, evaluate, fit, report, use, verify
from pyrovae.cli.base import app

__all__ = ["app", "compare", "evaluate", "fit", "report", "use", "verify"]
