"""Likelihoods p(x|z): heads that turn a decoder's features into a density over x.

    features (*S, B, F) → p(x|z) with batch_shape (*S, B), event_shape x.shape[1:]

`nn.Sequential(network, Bernoulli((28, 28)))` is a complete decoder. Each head tells
the width that it needs as `num_features`, and fixes the event shape: the network's
flat output is folded back into it. Log-densities are in nats, summed over the event.
"""

from pyrovae.likelihoods.bernoulli import Bernoulli
from pyrovae.likelihoods.normal import Normal

__all__ = ["Bernoulli", "Normal"]
