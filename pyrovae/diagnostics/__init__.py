"""Can I trust this posterior, and did the prior matter? One function per question.

    decompose_elbo        distortion, rate, and the KL split into information and prior misfit
    active_units          which latent dimensions vary with x
    effective_latents     how many do, with an interval
    collapsed_dimensions  which have collapsed to the prior
    prune                 the VAE without these
    pareto_k, escalate    which data the guide fails on, and their posterior by other methods
    inference_gaps        how much of log p(x) the guide's family and the encoder each lose
    calibration           whether q(z|x) is the posterior on simulated data
    coverage, local_coverage        the same for all latents together; near observed data
    posterior_calibration whether q(z|x) is the posterior of these data
    typicality            whether each x is like the data that the model generates
    prior_check, posterior_check    a custom statistic on replicated data
    aggregate_test        whether the aggregate posterior is the prior
    compare_priors        which model has the best paired held-out evidence, and why
    prior_sensitivity     how much prior and likelihood each shape a posterior
    binary_calibration    whether predictive probabilities of binary features are frequencies
    feature_check         which features of x are not explained by the others
    contrast              which features differ between two groups, with false discoveries
    pool                  one estimate and its error from several completed data sets

All are pure functions of a program and data, in eval mode, with their own seed; they return
records of named arrays, in nats per datum unless a name says otherwise. `refit_prior`, which
trains, is in `pyrovae.training.refit`.
"""

from pyrovae.core.draws import elbo_terms
from pyrovae.core.terms import ElboTerms
from pyrovae.diagnostics.aggregate import AggregateTest, aggregate_test
from pyrovae.diagnostics.binary import BinaryCalibration, binary_calibration
from pyrovae.diagnostics.collapse import ActiveUnits, Collapse, active_units, collapsed_dimensions
from pyrovae.diagnostics.comparison import ComparedModel, Comparison, compare_priors
from pyrovae.diagnostics.contrast import Contrast, contrast
from pyrovae.diagnostics.coverage import Coverage, coverage, local_coverage
from pyrovae.diagnostics.effective import EffectiveLatents, effective_latents
from pyrovae.diagnostics.estimate import Estimate
from pyrovae.diagnostics.features import FeatureCheck, feature_check
from pyrovae.diagnostics.gaps import InferenceGaps, inference_gaps
from pyrovae.diagnostics.pooling import Pooled, pool
from pyrovae.diagnostics.posterior_calibration import (
    PosteriorCalibration,
    posterior_calibration,
)
from pyrovae.diagnostics.predictive import PredictiveCheck, posterior_check, prior_check
from pyrovae.diagnostics.pruning import Pruned, prune
from pyrovae.diagnostics.reliability import Reliability, escalate, pareto_k
from pyrovae.diagnostics.sensitivity import PriorSensitivity, power_sensitivity, prior_sensitivity
from pyrovae.diagnostics.simulation import Calibration, calibration
from pyrovae.diagnostics.surgery import Decomposition, decompose_elbo
from pyrovae.diagnostics.typicality import Typicality, typicality

__all__ = [
    "ActiveUnits",
    "AggregateTest",
    "BinaryCalibration",
    "Calibration",
    "Collapse",
    "ComparedModel",
    "Comparison",
    "Contrast",
    "Coverage",
    "Decomposition",
    "EffectiveLatents",
    "ElboTerms",
    "Estimate",
    "FeatureCheck",
    "InferenceGaps",
    "Pooled",
    "PosteriorCalibration",
    "PredictiveCheck",
    "PriorSensitivity",
    "Pruned",
    "Reliability",
    "Typicality",
    "active_units",
    "aggregate_test",
    "binary_calibration",
    "calibration",
    "collapsed_dimensions",
    "compare_priors",
    "contrast",
    "coverage",
    "decompose_elbo",
    "effective_latents",
    "elbo_terms",
    "escalate",
    "feature_check",
    "inference_gaps",
    "local_coverage",
    "pareto_k",
    "pool",
    "posterior_calibration",
    "posterior_check",
    "power_sensitivity",
    "prior_check",
    "prior_sensitivity",
    "prune",
    "typicality",
]
