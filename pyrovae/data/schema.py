"""`Schema`: what a model knows of the columns of its data, and `Table`, data read by one.

A schema holds the names of columns, for a table also their kinds and the names of categories, and
the names of classes of y. It is JSON, so that it is saved with the model; afterwards every function
reads a raw data frame as the training data were read: columns by name, categories by their codes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from pyrovae.checks.tensors import as_frame, as_tensor, is_frame, names_of
from pyrovae.data.alignment import column_names, in_columns
from pyrovae.data.cells import Value, as_codes, as_numbers, values_of
from pyrovae.data.labels import are_names, as_class_codes, classes_of
from pyrovae.errors import DataError


@dataclass(frozen=True)
class Column:
    """A column: its name, and in a table its kind and the names of categories.

    Attributes:
        name: of the column.
        kind: an element of `kinds` of `likelihoods.Columns`; None if only the name is known.
        categories: values in the order of their codes; None for numbers.
        seen: what the kind was chosen from, in words.
    """

    name: str
    kind: dict[str, Any] | None = None
    categories: tuple[Value, ...] | None = None
    seen: str = field(default="", compare=False)

    def read(self, cells: Any) -> np.ndarray:
        """Return a narwhals Series as numbers, NaN where missing."""
        if self.categories is None:
            return as_numbers(cells, self.name)
        what = f"column {self.name!r}"
        return np.array(as_codes(values_of(cells), self.categories, what), dtype="float64")


@dataclass(frozen=True)
class Schema:
    """Names, kinds and categories of the columns of x, and the classes of y.

    Attributes:
        columns: of x, in the model's order; empty if they have no names.
        y_names: of the columns of y, if it was a data frame.
        classes: names of the classes of y, in the order of their codes.

    Example:
        >>> schema = Schema((Column("sex", {"kind": "Bernoulli"}, ("f", "m")),), None, None)
        >>> Schema.from_json(schema.to_json()) == schema
        True
    """

    columns: tuple[Column, ...] = ()
    y_names: tuple[str, ...] | None = None
    classes: tuple[Value, ...] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns)

    @property
    def has_kinds(self) -> bool:
        """Whether data frames are read as tables."""
        return any(column.kind for column in self.columns)

    def to_json(self) -> dict[str, Any]:
        """Return the schema as a JSON object."""
        columns = [
            {"name": c.name, "kind": c.kind, "categories": c.categories and list(c.categories)}
            for c in self.columns
        ]
        y_names, classes = self.y_names and list(self.y_names), self.classes and list(self.classes)
        return {"columns": columns, "y_names": y_names, "classes": classes}

    @classmethod
    def from_json(cls, stored: Any) -> "Schema":
        """Return the schema of a JSON object; raise ValueError if it is not one."""
        try:
            columns = tuple(
                Column(_text(c["name"]), _kind(c["kind"]), _values(c["categories"]))
                for c in stored["columns"]
            )
            names = stored["y_names"]
            y_names = None if names is None else tuple(map(_text, names))
            return cls(columns, y_names, _values(stored["classes"]))
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a schema: {error}") from None

    def read(self, x: Any, y: Any, mask: Any) -> tuple[Any, Any, Any]:
        """Return x, y and mask with columns in the model's order and names as codes.

        Arrays are unchanged.

        Raises:
            DataError: columns or categories are not those of the model; the message names them.
        """
        x, mask = self._read_x(x, mask)
        if y is None and self.y_names is not None and hasattr(x, "y_names"):
            return x, x.y(self.y_names), mask
        return x, self.read_y(y), mask

    def _read_x(self, x: Any, mask: Any) -> tuple[Any, Any]:
        frame = x.frame if isinstance(x, Table) else x
        if not self.columns:
            return x, mask
        if hasattr(x, "in_columns"):  # an `Annotated`, whose genes have names
            return x.in_columns(self.names), mask
        if not is_frame(frame):
            if column_names(mask) is not None:
                mask = in_columns(mask, self.names, "mask", "the model")
            return x, mask
        if column_names(frame) is None and not self.has_kinds:
            return frame, mask
        ordered = in_columns(frame, self.names, "x", "the model")
        if ordered is not frame and mask is not None and column_names(mask) is None:
            mask = self._in_order(mask, frame)  # by position, as the columns of the frame were
        return (Table(self, frame) if self.has_kinds else ordered), mask

    def _in_order(self, mask: Any, frame: Any) -> Any:
        """Return a mask without names, in the order of a frame, in the model's order."""
        names = list(map(str, names_of(frame)))
        mask = as_tensor(mask, "mask")
        if mask.dim() != 2 or mask.shape[1] != len(names):
            return mask
        return mask[:, [names.index(name) for name in self.names]]

    def read_y(self, y: Any) -> Any:
        """Return y with columns in the model's order, and class names as codes (N,).

        Raises:
            DataError: a class is unknown.
        """
        if column_names(y) is not None and self.y_names is not None:
            y = in_columns(y, self.y_names, "y", "the model")
        if not are_names(y):
            return y
        if self.classes is None:
            raise DataError(
                "y holds names of classes, but this model was fitted without names, and knows only "
                "numbers.\nPass the codes, or fit it with names: fit(vae, x, y)."
            )
        return as_class_codes(y, self.classes)

    def learned_from(self, x: Any, y: Any) -> "Schema":
        """Return the schema with what the names in training data add to it."""
        schema = self
        if not schema.columns:
            schema = replace(schema, columns=_columns_of(x))
        if y is None and schema.y_names is None:
            schema = replace(schema, y_names=getattr(x, "y_names", None) or None)
        if schema.y_names is None and schema.classes is None:
            schema = replace(schema, y_names=column_names(y), classes=classes_of(y))
        return schema


def _columns_of(x: Any) -> tuple[Column, ...]:
    if isinstance(x, Table):
        return x.schema.columns
    names = column_names(x) or ()
    return tuple(map(Column, names)) if len(set(names)) == len(names) else ()


class Table:
    """A data frame read by a schema: numbers and codes, and which cells are observed.

    Any function takes it as x. `pv.data.table` makes one.

    Args:
        schema: of its columns.
        frame: a data frame with these columns, in any order.

    Attributes:
        x: (N, C), float64; categories as codes, NaN where missing.
        mask: (N, C), true where observed.
        frame: the data frame itself.

    Raises:
        DataError: a cell does not fit its column, or the frame has no rows.
    """

    def __init__(self, schema: Schema, frame: Any):
        self.schema, self.frame = schema, frame
        names = map(str, names_of(frame))
        cells = dict(zip(names, as_frame(frame).iter_columns(), strict=True))
        columns = [column.read(cells[column.name]) for column in schema.columns]
        self.x = torch.from_numpy(np.stack(columns, 1))
        self.mask = ~self.x.isnan()

    inputs = None  # those that the likelihood asks for

    @property
    def event_shape(self) -> tuple[int, ...]:
        """The shape of a row, (C,)."""
        return tuple(self.x.shape[1:])

    @property
    def likelihood(self) -> dict[str, Any]:
        """The likelihood of these columns, for `build`."""
        return {"name": "Columns", "kinds": [column.kind for column in self.schema.columns]}

    def __len__(self) -> int:
        return len(self.x)

    def __repr__(self) -> str:
        rows = [("column", "kind", "seen", "missing")]
        for column, observed in zip(self.schema.columns, self.mask.T, strict=True):
            share = f"{100 * (1 - observed.double().mean().item()):.3g} %"
            rows.append((column.name, _in_words(column.kind), column.seen, share))
        widths = [max(map(len, texts)) for texts in zip(*rows, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        return "\n".join([f"Table of {len(self):,} rows × {len(rows) - 1} columns", *lines])

    def positions(self) -> list[int]:
        """Return for each column of the frame its number in x."""
        return [self.schema.names.index(str(name)) for name in names_of(self.frame)]


def _in_words(kind: dict[str, Any] | None) -> str:
    kind = dict(kind or {})
    name = kind.pop("kind", "")
    return f"{name} ({', '.join(map(str, kind.values()))})" if kind else name


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("a name is not text")
    return value


def _kind(value: Any) -> dict[str, Any] | None:
    if value is not None and not isinstance(value, dict):
        raise TypeError("a kind is not an object")
    return value


def _values(values: Any) -> tuple[Value, ...] | None:
    if values is None:
        return None
    if not isinstance(values, Sequence) or not all(isinstance(v, Value) for v in values):
        raise TypeError("categories are not text or numbers")
    return tuple(values)
