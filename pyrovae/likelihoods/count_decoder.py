"""A decoder of counts with the size of each datum, and others, as covariates."""

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae.checks import whole_number
from pyrovae.errors import DataError
from pyrovae.likelihoods.multinomial import Multinomial
from pyrovae.networks import concat


class CountDecoder(nn.Module):
    """Decoder of counts of known size, p(x|z, y) = head(network([z, y_1 …]), size y_0).

    For `Poisson`, `NegativeBinomial` and `ZeroInflatedNegativeBinomial` the size multiplies
    the mean: an exposure, such as a cell's total count relative to the average; without y it
    is 1. For `Multinomial` it is the total count itself. Wrapped in `networks.Given` it is a
    decoder, and the sizes are passed as y to `fit`, `loss`, `sample` and so on. Other covariates,
    such as the batch of a cell as zeros and a one, follow the size as columns of y and join z.

    Args:
        network: (*S, B, D + E) → (*S, B, F).
        head: a count likelihood, (features, size) → p(x|z, size).
        num_covariates: E, the number of columns of y after the size.

    Raises:
        DataError: a size is not positive, or y does not have 1 + E columns.

    Example:
        >>> import pyrovae as pv
        >>> x = torch.poisson(torch.full((7, 20), 3.0))
        >>> size = x.sum(1) / x.sum(1).mean()
        >>> q, p = pv.guides.DiagonalNormal(2), pv.likelihoods.NegativeBinomial(20)
        >>> vae = pv.VAE(
        ...     pv.priors.StandardNormal(2),
        ...     nn.Sequential(pv.networks.mlp(20, q.num_features), q),
        ...     pv.networks.Given(CountDecoder(pv.networks.mlp(2, p.num_features), p)),
        ... )
        >>> vae.loss(x, size).shape, vae.sample(7, size).shape
        (torch.Size([7]), torch.Size([7, 20]))
    """

    def __init__(self, network: nn.Module, head: nn.Module, num_covariates: int = 0):
        super().__init__()
        self.network, self.head = network, head
        self.num_covariates = whole_number(num_covariates, "num_covariates", 0)

    def forward(self, z: Tensor, y: Tensor | None = None) -> dist.Distribution:
        if not self.num_covariates:
            return self.head(self.network(z), y)
        if y is None or y.shape[1:] != (1 + self.num_covariates,):
            raise DataError(
                f"y has shape {None if y is None else tuple(y.shape)}, but this decoder takes the "
                f"size of each datum and {self.num_covariates} covariates.\n"
                f"Pass y of shape (N, {1 + self.num_covariates}), sizes first."
            )
        return self.head(self.network(concat(z, y[:, 1:])), y[:, 0])

    def check_data(self, x: Tensor, y: Tensor | None) -> None:
        """Raise DataError unless sizes are positive and, for `Multinomial`, the sums of the rows.

        Args:
            x: (B, *event).
            y: sizes (B,) or (B, 1), or (B, 1 + E); or None.

        Example:
            >>> decoder = CountDecoder(nn.Identity(), Multinomial(2))
            >>> decoder.check_data(torch.tensor([[1.0, 2.0]]), torch.tensor([3]))
        """
        if y is None:
            return
        size = y.reshape(len(x), -1)[:, 0]
        is_bad = ~((size > 0) & torch.isfinite(size))
        if is_bad.any():
            row = int(is_bad.byte().argmax())
            raise DataError(
                f"y[{row}] = {size[row].item():g}, but the size of a datum must be positive and "
                f"finite ({int(is_bad.sum()):,} of {len(size):,} are not), because the mean is "
                "proportional to it.\n"
                "Drop the rows without counts, or pass the exposure of each."
            )
        sums = x.flatten(1).sum(1)
        if isinstance(self.head, Multinomial) and (is_bad := sums != size).any():
            row = int(is_bad.byte().argmax())
            raise DataError(
                f"y[{row}] = {size[row].item():g}, but row {row} of x sums to "
                f"{sums[row].item():g} ({int(is_bad.sum()):,} of {len(size):,} rows differ): a "
                "multinomial distributes its total exactly.\nWrite y=x.sum(1)."
            )
