"""Programs beyond the VAE, with several latents or several observed sites.

    SemiSupervisedVAE   y ~ p(y),  z ~ p(z),  x ~ p(x|z, y);              some y are known
    BayesianVAE         w ~ p(w) for all data;  z ~ p(z|w),  x ~ p(x|z, w)
    LadderVAE           z_{L−1} ~ p(z_{L−1}),  z_l ~ p(z_l|z_{l+1}),  x ~ p(x|z_0)
    MixtureVAE          c ~ p(c),  z ~ p(z|c),  x ~ p(x|z);               c is summed out
    MultimodalVAE       z ~ p(z),  x_m ~ p(x_m|z) for each modality;      any x_m may be missing
    DeepMarkovModel     z_t ~ p(z_t|z_{t−1}),  x_t ~ p(x_t|z_t)
    SequenceVAE         z ~ Gaussian process over the times,  x_t ~ p(x_t|z_t)
    TopicVAE            θ ~ p(θ) on the simplex,  x ~ Multinomial(n, π(θ))
    NotMissingAtRandomVAE   z ~ p(z),  x ~ p(x|z),  s ~ p(s|x);           s: the mask of x

`Measurement` and `PriorGuide` make a trained decoder the prior of an inverse problem.

Each is a module with `.model` and `.guide` over the plate "data", made of the same parts as a
`VAE`, and works with `fit`, `elbo_terms` and the other methods. Symbols as in `pyrovae.vae`; K is
the number of classes.

Each has a file of its own, short enough to serve as a template for custom programs.

Methods take any program, these and custom ones, unless they need a property, which their error
names:

    local latents that map from the real line,  log_evidence by "ais", bdmc, posterior.hmc
    and discrete ones with few values
    a pathwise guide that declares parameters   posterior.refine, inference_gaps
    a guide without auxiliary sites             calibration, and annealing from the guide
    a model that uses the mask                  impute, and mask= of every method
    a `VAE`                                     log_evidence by "grid" and "enumerate",
                                                posterior.grid, refit_prior

With global latents, methods per datum condition on draws of them, `num_globals` many.

Each method on each of these programs: ✓ where it runs, else the property that the program lacks.

.. include:: methods.md
"""

from pyrovae.programs.bayesian import BayesianVAE, GivenGlobal
from pyrovae.programs.experts import MixtureOfExperts, ProductOfExperts
from pyrovae.programs.ladder import LadderVAE
from pyrovae.programs.markov import DeepMarkovModel
from pyrovae.programs.measurement import Measurement, PriorGuide
from pyrovae.programs.missing_not_at_random import NotMissingAtRandomVAE, SelfMasking
from pyrovae.programs.mixture import MixtureVAE, NormalOfClass, Occupancy
from pyrovae.programs.multimodal import MultimodalVAE
from pyrovae.programs.semi_supervised import CategoricalHead, SemiSupervisedVAE, partly_known
from pyrovae.programs.sequence import GaussianProcess, SequenceVAE, ornstein_uhlenbeck, rbf
from pyrovae.programs.topic import Topics, TopicVAE

__all__ = [
    "BayesianVAE",
    "CategoricalHead",
    "DeepMarkovModel",
    "GaussianProcess",
    "GivenGlobal",
    "LadderVAE",
    "Measurement",
    "MixtureOfExperts",
    "MixtureVAE",
    "MultimodalVAE",
    "NormalOfClass",
    "NotMissingAtRandomVAE",
    "Occupancy",
    "PriorGuide",
    "ProductOfExperts",
    "SelfMasking",
    "SemiSupervisedVAE",
    "SequenceVAE",
    "TopicVAE",
    "Topics",
    "ornstein_uhlenbeck",
    "partly_known",
    "rbf",
]
