"""What an encoder sees of x: transformed and standardized numbers, one-hot categories.

    u = (t(x) − center) / spread,    t the identity, log or log1p, for each element of x

`Inputs` is that map, and `Transformed(inputs, part)` an encoder behind it. A missing element is 0
afterwards, the value at the center: `Inputs.neutral` is the x that programs fill in for it.
"""

from collections.abc import Callable, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pyrovae.checks import nearest, whole_number
from pyrovae.errors import ConfigError
from pyrovae.heads import MIN_SPREAD, EventShape, as_event_shape, as_index

NO_CATEGORY = -1.0  # a code whose one-hot features are all 0


class Input(NamedTuple):
    """An elementwise map t and its inverse.

    Attributes:
        forward: x → t(x), for all real x, because pseudo-inputs may leave the support.
        inverse: t → x.
    """

    forward: Callable[[Tensor], Tensor]
    inverse: Callable[[Tensor], Tensor]


def _log(x: Tensor) -> Tensor:
    return x.clamp(min=torch.finfo(x.dtype).tiny).log()


def _log1p(x: Tensor) -> Tensor:
    return x.clamp(min=0.0).log1p()


INPUTS = MappingProxyType(
    {
        "standardized": Input(lambda x: x, lambda t: t),
        "log": Input(_log, torch.exp),
        "log1p": Input(_log1p, torch.expm1),
    }
)
ONE_HOT = "one_hot"


class Inputs(nn.Module):
    """Features of x for an encoder, u = (t(x) − center)/spread, and one-hot categories.

    Center and spread are 0 and 1 until `start_at` takes them from data.

    Args:
        event_shape: the shape of one datum.
        kinds: a name in `INPUTS`: "standardized", "log" or "log1p" (for counts); or for a row of
            C columns a list of C names, or of {"name": "one_hot", "num_categories": K}.

    Attributes:
        out_shape: the shape of the features of a datum: event_shape, or one dimension if there
            are categories, which come last.
        neutral: the values of x whose features are 0, of event_shape.

    Raises:
        ConfigError: a name is unknown, or the list does not fit event_shape.

    Example:
        >>> inputs = Inputs(2, ["standardized", {"name": "one_hot", "num_categories": 3}])
        >>> inputs(torch.tensor([[0.5, 2.0]])), inputs(inputs.neutral)
        (tensor([[0.5000, 0.0000, 0.0000, 1.0000]]), tensor([0., 0., 0., 0.]))
    """

    def __init__(self, event_shape: EventShape, kinds: str | Sequence[Any]):
        super().__init__()
        self.event_shape = as_event_shape(event_shape)
        names = [kinds] if isinstance(kinds, str) else list(kinds)
        self.is_by_column = not isinstance(kinds, str)
        if self.is_by_column and self.event_shape != (len(names),):
            raise ConfigError(
                f"inputs holds {len(names)} names, but a datum has shape {tuple(self.event_shape)}."
                '\nPass one for each column, or one name for all: inputs="standardized".'
            )
        choices = [_checked(choice) for choice in names]
        self.widths = [width for _, width in choices if width]
        self.places: dict[str, list[int]] = {}
        for column, (name, _) in enumerate(choices):
            self.places.setdefault(name, []).append(column)
        for name in INPUTS:
            if name in self.places:
                at = as_index(self.places[name])
                self.register_buffer(f"columns_{name}", at, persistent=False)
        self._hold_categories()
        self.register_buffer("center", torch.zeros(self.event_shape))
        self.register_buffer("spread", torch.ones(self.event_shape))

    def _hold_categories(self) -> None:
        code = torch.arange(sum(self.widths))
        widths = as_index(self.widths)
        column = as_index(self.places.get(ONE_HOT, []))
        column = column.repeat_interleave(widths)
        code = code - (widths.cumsum(0) - widths).repeat_interleave(widths)
        code = code.to(torch.get_default_dtype())
        is_code = torch.zeros(self.event_shape, dtype=torch.bool)
        is_code.view(-1)[column] = True
        self.register_buffer("column_of_category", column, persistent=False)
        self.register_buffer("code_of_category", code, persistent=False)
        self.register_buffer("is_code", is_code, persistent=False)
        kept = (~is_code.view(-1)).nonzero()[:, 0]
        self.register_buffer("numbers", kept, persistent=False)

    @property
    def out_shape(self) -> torch.Size:
        if not self.widths:
            return self.event_shape
        return torch.Size([len(self.numbers) + sum(self.widths)])

    @property
    def neutral(self) -> Tensor:
        value = self._each(self.center, inverse=True)
        return torch.where(self.is_code, NO_CATEGORY, value)

    def _each(self, x: Tensor, *, inverse: bool = False) -> Tensor:
        """Return t(x), or its inverse; codes unchanged."""
        for name in self.places:
            if name in (ONE_HOT, "standardized"):
                continue
            t = INPUTS[name].inverse if inverse else INPUTS[name].forward
            if not self.is_by_column:
                return t(x)
            at = getattr(self, f"columns_{name}")
            x = x.index_copy(-1, at, t(x.index_select(-1, at)))
        return x

    def forward(self, x: Tensor) -> Tensor:
        u = (self._each(x) - self.center) / self.spread
        if not self.widths:
            return u
        # a hat of width 1 around the code: one-hot, and with a gradient for pseudo-inputs
        distance = (x.index_select(-1, self.column_of_category) - self.code_of_category).abs()
        one_hot = (1 - distance).clamp(min=0.0)
        return torch.cat([u.index_select(-1, self.numbers), one_hot], -1)

    def mask_of(self, mask: Tensor) -> Tensor:
        """Return for each feature whether its element of x is observed.

        Args:
            mask: of x's shape.
        """
        if not self.widths:
            return mask
        columns = torch.cat([self.numbers, self.column_of_category])
        return mask.index_select(-1, columns)

    def start_at(self, x: Tensor) -> "Inputs":
        """Set center and spread of t(x) to those of data, (N, *event), NaN where hidden.

        The elements of an image share one spread: a pixel that rarely varies would be amplified.
        """
        t = self._each(x.double())
        center = t.nanmean(0).nan_to_num(0.0)
        square = (t - center).square().nanmean(0).nan_to_num(0.0)
        square = square.mean().expand(square.shape) if square.dim() > 1 else square
        spread = square.sqrt()
        is_constant = spread <= (1e-6 * center.abs()).clamp(min=MIN_SPREAD)
        self.center.copy_(torch.where(self.is_code, 0.0, center))
        self.spread.copy_(torch.where(is_constant | self.is_code, 1.0, spread))
        return self

    def extra_repr(self) -> str:
        names = ", ".join(f"{len(at)} {name}" for name, at in self.places.items())
        return f"event_shape={tuple(self.event_shape)}, {names if self.is_by_column else names[2:]}"


class Transformed(nn.Sequential):
    """Part of x that sees `Inputs` of it, part(u(x)), and the mask of the features if it sees one.

    Args:
        inputs: x → features.
        parts: modules applied in turn to the features, such as a network and a head; or one that
            also takes the mask, `SeesMask`.

    Attributes:
        neutral: the x that programs fill in for missing elements.
        sees_mask: as of the first part.

    Example:
        >>> inputs = Inputs(2, "log1p")
        >>> Transformed(inputs, nn.Identity())(torch.tensor([[0.0, 1.7183]]))
        tensor([[0.0000, 1.0000]])
    """

    def __init__(self, inputs: Inputs, *parts: nn.Module):
        super().__init__(inputs, *parts)
        self.sees_mask = getattr(parts[0], "sees_mask", False)

    @property
    def inputs(self) -> Inputs:
        return self[0]

    @property
    def neutral(self) -> Tensor:
        return self.inputs.neutral

    def forward(self, x: Tensor, *others: Any):
        inputs, first, *rest = self
        if self.sees_mask and others:
            others = (inputs.mask_of(others[0]), *others[1:])
        features = first(inputs(x), *others)
        for part in rest:
            features = part(features)
        return features


def _checked(choice: Any) -> tuple[str, int]:
    """Return a name, and the number of categories or 0."""
    options = {"name": choice} if isinstance(choice, str) else dict(choice)
    name = options.pop("name", None)
    if name == ONE_HOT and set(options) == {"num_categories"}:
        return name, whole_number(options["num_categories"], "num_categories", 2)
    if name in INPUTS and not options:
        return name, 0
    near = nearest(name, [*INPUTS, ONE_HOT])
    hint = f" Did you mean {near!r}?" if near else ""
    raise ConfigError(
        f"inputs: {choice!r} is not one of {', '.join(INPUTS)}, or {{'name': 'one_hot', "
        f"'num_categories': K}} for a column of categories.{hint}"
    )
