"""Guide families q(z|x): heads that turn an encoder's features into a density over z.

    features (B, F) → q(z|x) with batch_shape (B,), event_shape (D,)

`nn.Sequential(network, DiagonalNormal(D))` is a complete encoder. Each head tells
the width that it needs as `num_features`. All scales are `heads.positive` of a
feature: softplus + 1e-5, so that features of ±1e6 stay finite.
"""

from pyrovae.guides.diagonal_normal import DiagonalNormal

__all__ = ["DiagonalNormal"]
