"""Parts that also see covariates: p(x|z, y), q(z|x, y), p(z|y).

`Given(part)` declares that a part takes y; `Concat` is the common way to use it and
concatenates the features of both inputs:

    forward(x, y) = part([of_x(x), of_y(y)])

`OneHot` turns class labels into features. Leading dimensions broadcast: z (*S, B, D) with
y (B, …), and the enumerated labels (K, 1) of a semi-supervised program with x (B, *event).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from pyrovae.checks import whole_number
from pyrovae.errors import ConfigError, DataError


class Given(nn.Module):
    """Part that also sees the covariates y: p(x|z, y), q(z|x, y) or p(z|y).

    `VAE` calls a wrapped part with y as its last argument, `encoder(x, y)`,
    `decoder(z, y)`, `prior(y)`; a part that is not wrapped never sees y.

    Args:
        part: a module whose forward takes y last and returns a Distribution.

    Example:
        >>> from torch.nn import Sequential
        >>> from pyrovae import guides, networks
        >>> q = guides.DiagonalNormal(2)
        >>> prior = Given(Sequential(OneHot(10), networks.mlp(10, q.num_features), q))
        >>> prior(torch.tensor([3, 7])).batch_shape
        torch.Size([2])

        In a decoder, z has sample dimensions before the batch, (*S, B, D), but y has none:

        >>> from pyrovae import likelihoods
        >>> p = likelihoods.Bernoulli(5)
        >>> class Decoder(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.network = Sequential(networks.mlp(2 + 3, p.num_features), p)
        ...
        ...     def forward(self, z, y):
        ...         return self.network(networks.concat(z, y))
        >>> Given(Decoder())(torch.zeros(4, 7, 2), torch.ones(7, 3)).batch_shape
        torch.Size([4, 7])
    """

    def __init__(self, part: nn.Module):
        super().__init__()
        self.part = part
        self.sees_mask = getattr(part, "sees_mask", False)

    @property
    def neutral(self) -> Tensor | None:
        """That of the part, if it has one (`protocols.FillsMissing`)."""
        return getattr(self.part, "neutral", None)

    def forward(self, *args: Tensor | None):
        try:
            return self.part(*args)
        except (TypeError, AttributeError) as error:  # raised because y is None
            if not args or args[-1] is not None:
                raise
            reason = str(error).strip().partition("\n")[0][:200]
            raise ConfigError(
                f"a part is Given covariates, but y is None, and it failed without y: {reason}\n"
                "Pass y=, one row per datum."
            ) from error


def given(y: Tensor | None, part: nn.Module) -> tuple[Tensor, ...]:
    """Return the covariates as extra arguments for `part`: (y,) if it is `Given`, else ().

    Example:
        >>> given(torch.ones(3), nn.Identity())
        ()
    """
    return (y,) if isinstance(part, Given) else ()


class OneHot(nn.Module):
    """One-hot features of class labels, e_y: (*S, B) → (*S, B, K).

    Args:
        num_classes: K; labels are the whole numbers 0 … K − 1.

    Raises:
        ConfigError: num_classes is not a whole number ≥ 1.
        DataError: a label is not a whole number in 0 … K − 1.

    Example:
        >>> OneHot(3)(torch.tensor([2, 0]))
        tensor([[0., 0., 1.],
                [1., 0., 0.]])
    """

    def __init__(self, num_classes: int):
        super().__init__()
        eye = torch.eye(whole_number(num_classes, "num_classes", 1))
        self.register_buffer("eye", eye, persistent=False)

    def forward(self, y: Tensor) -> Tensor:
        if y.is_floating_point():
            raise DataError(
                f"y has dtype {y.dtype}, but class labels are the whole numbers 0 … "
                f"{len(self.eye) - 1}.\nWrite y.long() for labels, y['label'] for a column of a "
                "frame; real covariates need no OneHot."
            )
        try:
            return functional.embedding(y.long(), self.eye)
        except IndexError:
            is_bad = ((y < 0) | (y >= len(self.eye))).flatten()
            at = int(is_bad.byte().argmax())
            raise DataError(
                f"label {int(y.flatten()[at])} (position {at} of this batch), but there are "
                f"{len(self.eye)} classes, numbered 0 … {len(self.eye) - 1}: nothing was learned "
                "from this batch.\nNumber classes from 0, or increase num_classes."
            ) from None

    def extra_repr(self) -> str:
        return f"num_classes={len(self.eye)}"


class Concat(nn.Module):
    """Part of two concatenated inputs, (x, y) ↦ part([of_x(x), of_y(y)]).

    Args:
        part: a module of the joined features (*S, B, F + E), such as Sequential(network, head).
        of_x: the first input (x in an encoder, z in a decoder) → features (*S, B, F). For images,
            nn.Flatten(-2), or a network, which then runs once per x even where y is enumerated.
            By default x itself, one vector per datum.
        of_y: covariates → features (*S, B, E): `OneHot(K)` or an nn.Embedding for labels; by
            default y itself, (B, E) floats.

    Raises:
        ConfigError: the features cannot be concatenated; the message shows their shapes.

    References:
        Learning Structured Output Representation using Deep Conditional Generative Models,
        Sohn, Lee & Yan, 2015,
        https://papers.nips.cc/paper/2015/hash/8d55a249e6baa5c06772297520da2051-Abstract.html

    Example:
        >>> from pyrovae import guides, networks
        >>> q = guides.DiagonalNormal(2)
        >>> encoder = Given(
        ...     Concat(
        ...         nn.Sequential(networks.mlp(8 * 8 + 10, q.num_features), q),
        ...         of_x=nn.Flatten(-2),
        ...         of_y=OneHot(10),
        ...     )
        ... )
        >>> encoder(torch.zeros(7, 8, 8), torch.zeros(7, dtype=torch.long)).batch_shape
        torch.Size([7])
    """

    def __init__(
        self, part: nn.Module, *, of_x: nn.Module | None = None, of_y: nn.Module | None = None
    ):
        super().__init__()
        self.of_x = nn.Identity() if of_x is None else of_x
        self.of_y = nn.Identity() if of_y is None else of_y
        self.part = part

    def forward(self, x: Tensor, y: Tensor):
        if y is None:
            raise DataError(
                "this part sees covariates, but y was not given.\nPass y with x, one row per datum."
            )
        return self.part(concat(self.of_x(x), self.of_y(y)))


def concat(left: Tensor, right: Tensor) -> Tensor:
    """Concatenate along the last dimension and broadcast the others.

    Args:
        left: (*S, B, F).
        right: (*T, B, E).

    Returns:
        (*broadcast(S, T), B, F + E).

    Raises:
        ConfigError: the leading dimensions do not broadcast, or a batch dimension is missing.

    Example:
        >>> concat(torch.zeros(5, 1, 3), torch.zeros(7, 2)).shape
        torch.Size([5, 7, 5])
    """
    try:
        if min(left.dim(), right.dim()) < 2:
            raise RuntimeError
        batch = torch.broadcast_shapes(left.shape[:-1], right.shape[:-1])
    except RuntimeError:
        raise ConfigError(
            f"features of shapes {tuple(left.shape)} and {tuple(right.shape)} cannot be "
            "concatenated: both need a batch and a feature dimension.\nFlatten images with "
            "of_x=nn.Flatten(-2); for labels (N,) use of_y=OneHot(K), for real ones y[:, None]."
        ) from None
    dtype = left.dtype  # numeric covariates may be whole numbers
    return torch.cat([left.expand(*batch, -1), right.to(dtype).expand(*batch, -1)], -1)
