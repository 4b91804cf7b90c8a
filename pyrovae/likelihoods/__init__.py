"""Likelihoods p(x|z): heads that turn a decoder's features into a density over x.

    features (*S, B, F) → p(x|z) with batch_shape (*S, B), event_shape x.shape[1:]

`nn.Sequential(network, Bernoulli((28, 28)))` is a complete decoder. Each head declares
its input width as `num_features` and fixes the event shape, into which it reshapes the
network's flat output. Log-densities are in nats, summed over the event.

    x                              likelihood
    {0, 1}                         Bernoulli
    [0, 1]                         ContinuousBernoulli
    {0, 1/(K − 1), …, 1}           DiscretizedLogistic, DiscretizedLogisticMixture (colors)
    {0, …, K − 1}                  Categorical
    real                           Normal, HeteroscedasticNormal, StudentT
    counts 0, 1, 2, …              Poisson, NegativeBinomial, ZeroInflatedNegativeBinomial
    counts with a given total      Multinomial
    columns of different kinds     Columns

All but the multinomial factorize over the elements of x, so they take a `mask`. Count
likelihoods also take the size of each datum: `pyrovae.likelihoods.count_decoder`.

A density of reals declares as `learns_scale_per_cell` whether each element of x has its own
learned scale: `fit` then warns about constant columns. Custom heads may declare it too.
"""

from pyrovae.likelihoods.bernoulli import Bernoulli
from pyrovae.likelihoods.categorical import Categorical
from pyrovae.likelihoods.columns import Columns
from pyrovae.likelihoods.continuous_bernoulli import ContinuousBernoulli
from pyrovae.likelihoods.count_decoder import CountDecoder as CountDecoder  # not a head
from pyrovae.likelihoods.discretized_logistic import DiscretizedLogistic
from pyrovae.likelihoods.discretized_logistic_mixture import DiscretizedLogisticMixture
from pyrovae.likelihoods.heteroscedastic_normal import HeteroscedasticNormal
from pyrovae.likelihoods.multinomial import Multinomial
from pyrovae.likelihoods.negative_binomial import NegativeBinomial
from pyrovae.likelihoods.normal import Normal
from pyrovae.likelihoods.poisson import Poisson
from pyrovae.likelihoods.student_t import StudentT
from pyrovae.likelihoods.zero_inflated_negative_binomial import ZeroInflatedNegativeBinomial

__all__ = [
    "Bernoulli",
    "Categorical",
    "Columns",
    "ContinuousBernoulli",
    "DiscretizedLogistic",
    "DiscretizedLogisticMixture",
    "HeteroscedasticNormal",
    "Multinomial",
    "NegativeBinomial",
    "Normal",
    "Poisson",
    "StudentT",
    "ZeroInflatedNegativeBinomial",
]
