"""The mean-field Student-t guide."""

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae.checks import real_number
from pyrovae.heads import as_latent_shape, inverse_positive, positive, split_features


class StudentT(nn.Module):
    """Student-t guide, q(z|x) = Π_i t_ν(z_i; μ_i(x), σ_i(x)), with heavier tails than the normal.

    They make importance weights safer. The features are (μ, s), and σ = softplus(s) + 1e-5;
    the standard deviation is σ √(ν / (ν − 2)). The degrees of freedom ν are shared by all x,
    fixed or learned as ν = 2 + softplus(r) + 1e-5.

    Args:
        latent_dim: D.
        df: ν, or its initial value; > 2, so that the variance is finite.
        learn_df: whether to learn ν.

    Attributes:
        num_features: 2 D.

    Raises:
        ConfigError: latent_dim is not a whole number ≥ 1, df ≤ 2, or the features have the
            wrong width.

    References:
        Student-t Variational Autoencoder for Robust Density Estimation, Takahashi et al.,
        2018, https://www.ijcai.org/proceedings/2018/374 (there for p(x|z))

    Example:
        >>> head = StudentT(2, df=4)
        >>> head
        StudentT(latent_dim=2, df=4)
        >>> head(torch.zeros(7, head.num_features)).batch_shape
        torch.Size([7])
    """

    def __init__(self, latent_dim: int, *, df: float = 5.0, learn_df: bool = False):
        super().__init__()
        self.event_shape = as_latent_shape(latent_dim)
        self.num_features = 2 * latent_dim
        # float64 first: close to 2 the inverse of softplus is very negative
        raw = inverse_positive(torch.tensor(real_number(df, "df", above=2.00001), dtype=float) - 2)
        raw = raw.to(torch.get_default_dtype())
        if learn_df:
            self.raw_df = nn.Parameter(raw)
        else:
            self.register_buffer("raw_df", raw)

    @property
    def df(self) -> Tensor:
        """(), ν."""
        return 2 + positive(self.raw_df)

    def forward(self, features: Tensor) -> dist.Distribution:
        loc, raw_scale = split_features(features, self.event_shape, 2)
        return dist.StudentT(self.df, loc, positive(raw_scale)).to_event(1)

    def extra_repr(self) -> str:
        return f"latent_dim={self.event_shape[0]}, df={self.df.item():.3g}"
