"""Networks: the deterministic part of an encoder or a decoder, and covariates.

A network maps an event to a feature vector, (*S, B, *event) → (*S, B, F). It knows
nothing about densities: `nn.Sequential(network, head)` is the part. Any torch module
with that signature works; these are the common ones:

    mlp, gated_mlp, residual_mlp    (in_features, out_features, *, hidden, …), both directions
    conv_encoder, conv_decoder      the same signature, images in and images out

`NETWORKS` names the pairs for autoencoders. `Given`, `Concat` and `OneHot` handle covariates,
`SeesMask` and `JoinMask` missing data, `Inputs` and `Transformed` the units of an encoder's input,
`FlattenBatch` leading sample dimensions; `start_at_mean` initializes a decoder.
"""

from collections.abc import Callable
from types import MappingProxyType
from typing import NamedTuple

from torch import nn

from pyrovae.networks.conv import Bias, conv_decoder, conv_encoder
from pyrovae.networks.covariates import Concat, Given, OneHot, concat, given
from pyrovae.networks.dense import Dense, GatedDense, Residual, gated_mlp, mlp, residual_mlp, stack
from pyrovae.networks.flatten_batch import FlattenBatch
from pyrovae.networks.inputs import INPUTS, Inputs, Transformed
from pyrovae.networks.missing import JoinMask, SeesMask, joined_shape
from pyrovae.networks.start import features_of, start_at_mean

__all__ = [
    "INPUTS",
    "NETWORKS",
    "Bias",
    "Concat",
    "Dense",
    "FlattenBatch",
    "GatedDense",
    "Given",
    "Inputs",
    "JoinMask",
    "Network",
    "OneHot",
    "Residual",
    "SeesMask",
    "Transformed",
    "concat",
    "conv_decoder",
    "conv_encoder",
    "features_of",
    "gated_mlp",
    "given",
    "joined_shape",
    "mlp",
    "residual_mlp",
    "stack",
    "start_at_mean",
]


class Network(NamedTuple):
    """Constructors of the two networks of an autoencoder.

    Attributes:
        encoder: called as encoder(event_shape, q.num_features, hidden=…).
        decoder: called as decoder(latent_dim, features_of(p), hidden=…), with reversed widths.
        hidden: the encoder's hidden widths by default.

    Example:
        >>> NETWORKS["conv"].encoder is conv_encoder
        True
    """

    encoder: Callable[..., nn.Module]
    decoder: Callable[..., nn.Module]
    hidden: tuple[int, ...] = (200,)


NETWORKS = MappingProxyType(
    {
        "mlp": Network(mlp, mlp),
        "gated_mlp": Network(gated_mlp, gated_mlp),
        "residual_mlp": Network(residual_mlp, residual_mlp),
        "conv": Network(conv_encoder, conv_decoder, hidden=(32, 64, 64)),
    }
)
