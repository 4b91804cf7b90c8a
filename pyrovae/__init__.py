"""Variational autoencoders as probabilistic programs, on Pyro and PyTorch.

    VAE(prior, encoder, decoder)

combines p(z), q(z|x) and p(x|z) into a Pyro model and guide, and a network with a loss. Names are
imported on first use, so `import pyrovae` does not import torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

from pyrovae._version import __version__ as __version__

if TYPE_CHECKING:
    from pyrovae import (
        data,
        datasets,
        diagnostics,
        errors,
        evidence,
        guides,
        handlers,
        likelihoods,
        loggers,
        networks,
        objectives,
        plots,
        posterior,
        priors,
        programs,
        sklearn,
    )
    from pyrovae.arviz_io import (
        comparison_to_arviz,
        history_to_arviz,
        predictive_to_arviz,
        to_arviz,
    )
    from pyrovae.builder import build
    from pyrovae.core.draws import elbo_terms
    from pyrovae.diagnostics.pruning import prune
    from pyrovae.evidence import log_evidence
    from pyrovae.history import History
    from pyrovae.model_file import load, save
    from pyrovae.part_file import export
    from pyrovae.posterior.imputation import impute
    from pyrovae.report.writing import write_report
    from pyrovae.training import fit
    from pyrovae.training.refit import refit_prior
    from pyrovae.training.seeds import seed_spread
    from pyrovae.vae import VAE


__all__ = [
    "VAE",
    "History",
    "build",
    "comparison_to_arviz",
    "data",
    "datasets",
    "diagnostics",
    "elbo_terms",
    "errors",
    "evidence",
    "export",
    "fit",
    "guides",
    "handlers",
    "history_to_arviz",
    "impute",
    "likelihoods",
    "load",
    "log_evidence",
    "loggers",
    "networks",
    "objectives",
    "plots",
    "posterior",
    "predictive_to_arviz",
    "priors",
    "programs",
    "prune",
    "refit_prior",
    "save",
    "seed_spread",
    "sklearn",
    "to_arviz",
    "write_report",
]

_HOME = {
    "VAE": "vae",
    "History": "history",
    "build": "builder",
    "elbo_terms": "core.draws",
    "export": "part_file",
    "fit": "training",
    "impute": "posterior.imputation",
    "write_report": "report.writing",
    "comparison_to_arviz": "arviz_io",
    "history_to_arviz": "arviz_io",
    "load": "model_file",
    "log_evidence": "evidence",
    "predictive_to_arviz": "arviz_io",
    "prune": "diagnostics.pruning",
    "refit_prior": "training.refit",
    "save": "model_file",
    "seed_spread": "training.seeds",
    "to_arviz": "arviz_io",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'pyrovae' has no attribute {name!r}")
    module = importlib.import_module(f"pyrovae.{_HOME.get(name, name)}")
    globals()[name] = getattr(module, name) if name in _HOME else module
    return globals()[name]


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
