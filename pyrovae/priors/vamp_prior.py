"""The variational mixture of posteriors."""

from collections.abc import Callable
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae.checks import as_tensor, check_finite
from pyrovae.densities.mixture import Mixture
from pyrovae.errors import ConfigError
from pyrovae.networks import Given, given

NUM_PSEUDO_INPUTS = 500  # Tomczak & Welling 2018


def _some_rows(data: Tensor) -> Tensor:
    """Return at most 500 rows of (N, *event) data, chosen at random."""
    chosen = torch.randperm(len(data))[:NUM_PSEUDO_INPUTS]
    rows = data[chosen].to(torch.get_default_dtype())
    if not rows.isnan().any():
        return rows
    # the median is a value of its column, such as a category that exists
    middle = data.to(rows.dtype).nanmedian(0).values.nan_to_num(0.0)
    return torch.where(rows.isnan(), middle, rows)


class VampPrior(nn.Module):
    """Mixture of the encoder's posteriors at pseudo-inputs u_k, p(z) = Σ_k π_k q(z|u_k).

    The u_k are learned, starting from data. The encoder is the VAE's own module, not a
    copy: VAE(VampPrior(encoder, x[:500]), encoder, decoder) has its parameters once.

    Each u_k stays within [low, high], as the data do: values outside are clipped, as by the
    hardtanh of the paper, but a gradient that leads back inside is kept, so a pixel at the
    edge can leave it again.

    Args:
        encoder: module, `encoder(x)` → q(z|x); the same object that the VAE receives.
        pseudo_inputs: (K, *event), the initial u: distinct rows of the training data, in
            random order if the data are sorted.
        bounds: (low, high), the range of the data, shared by all entries; by default the
            smallest and largest entry of `pseudo_inputs`.
        learn_weights: whether to learn π = softmax(logits), initially uniform; else π_k = 1 / K.
        pseudo_covariates: (K, …), the covariates y_k of an encoder that is `Given` them, of the
            same rows as the pseudo-inputs; they stay as they are, and p(z) = Σ_k π_k q(z|u_k, y_k).

    Raises:
        ConfigError: pseudo_inputs is empty, constant or outside the bounds, the encoder does not
            return one density per pseudo-input, or covariates are missing, or given without need.
        DataError: the pseudo-inputs are not finite real numbers.

    References:
        VAE with a VampPrior, Tomczak & Welling, 2018, https://arxiv.org/abs/1705.07120

    Example:
        >>> from pyrovae import guides, networks
        >>> q = guides.DiagonalNormal(2)
        >>> encoder = nn.Sequential(networks.mlp(3, q.num_features), q)
        >>> prior = VampPrior(encoder, torch.eye(3))
        >>> prior().batch_shape, prior().event_shape
        (torch.Size([]), torch.Size([2]))
        >>> prior.encoder is encoder
        True
    """

    from_data: ClassVar[dict[str, Callable[[Tensor], Tensor]]] = {"pseudo_inputs": _some_rows}

    def __init__(
        self,
        encoder: nn.Module,
        pseudo_inputs: Any,
        *,
        bounds: tuple[float, float] | None = None,
        learn_weights: bool = False,
        pseudo_covariates: Any = None,
    ):
        super().__init__()
        if isinstance(encoder, Given) is (pseudo_covariates is None):
            needs = "is" if isinstance(encoder, Given) else "is not"
            raise ConfigError(
                f"VampPrior: the encoder {needs} Given covariates y, but pseudo_covariates are "
                f"{'missing' if pseudo_covariates is None else 'there'}.\n"
                "Pass those of the same rows: VampPrior(encoder, x[:500], pseudo_covariates="
                "y[:500]), or none, and give y to the decoder only."
            )
        self.encoder = encoder
        start = as_tensor(pseudo_inputs, "pseudo_inputs")
        check_finite(start, name="pseudo_inputs")
        start = start.to(next(encoder.parameters(), torch.empty(0)))
        low, high = _range(start, bounds)
        self.raw_inputs = nn.Parameter(start.clone())
        self.register_buffer("low", start.new_tensor(low))
        self.register_buffer("high", start.new_tensor(high))
        y = pseudo_covariates
        y = None if y is None else _covariates(as_tensor(y, "pseudo_covariates"), start)
        self.register_buffer("pseudo_covariates", y)
        logits = start.new_zeros(len(start))
        if learn_weights:
            self.logits = nn.Parameter(logits)
        else:
            self.register_buffer("logits", logits)

    @property
    def pseudo_inputs(self) -> Tensor:
        """(K, *event), the u_k, in the units of x."""
        return _Clip.apply(self.raw_inputs, self.low, self.high)

    def forward(self) -> dist.Distribution:
        q_z = self.encoder(self.pseudo_inputs, *given(self.pseudo_covariates, self.encoder))
        if q_z.batch_shape != self.logits.shape:
            raise ConfigError(
                f"VampPrior: the encoder returned batch_shape {tuple(q_z.batch_shape)} for "
                f"{len(self.logits)} pseudo-inputs, but must return one density for each.\n"
                "Pass pseudo_inputs of shape (K, *event), where event is the shape of one datum."
            )
        return Mixture(dist.Categorical(logits=self.logits), q_z)

    def extra_repr(self) -> str:
        shape = tuple(self.raw_inputs.shape)
        return f"pseudo_inputs={shape}, bounds=({self.low:g}, {self.high:g})"


def _covariates(y: Tensor, like: Tensor) -> Tensor:
    """Return one row of covariates per pseudo-input, floats in its dtype."""
    if not y.dim() or len(y) != len(like):
        raise ConfigError(
            f"VampPrior: pseudo_covariates has shape {tuple(y.shape)}, but there are {len(like)} "
            "pseudo-inputs.\nPass the covariates of the same rows."
        )
    return y.to(like) if y.is_floating_point() else y.to(like.device)


class _Clip(torch.autograd.Function):
    """clamp(u, low, high) that keeps the gradient where a descent step leads back inside."""

    generate_vmap_rule = True

    @staticmethod
    def forward(u: Tensor, low: Tensor, high: Tensor) -> Tensor:
        return torch.minimum(torch.maximum(u, low), high)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        u, low, high = ctx.saved_tensors
        leads_out = ((u >= high) & (gradient < 0)) | ((u <= low) & (gradient > 0))
        return gradient.masked_fill(leads_out, 0.0), None, None


def _range(start: Tensor, bounds: tuple[float, float] | None) -> tuple[float, float]:
    if start.dim() < 2 or not len(start):
        raise ConfigError(
            f"VampPrior: pseudo_inputs has shape {tuple(start.shape)}, but it must be (K, *event) "
            "with K ≥ 1.\nStart from K rows of the data: pseudo_inputs=x[:500]."
        )
    least, largest = start.min().item(), start.max().item()
    low, high = (least, largest) if bounds is None else bounds
    if not low < high or least < low or largest > high:
        raise ConfigError(
            f"VampPrior: pseudo_inputs lie in [{least:g}, {largest:g}], but the bounds are "
            f"({low:g}, {high:g}), which must contain them and have low < high.\n"
            "Pass the range of the data, for example bounds=(0.0, 1.0) for pixels."
        )
    return low, high
