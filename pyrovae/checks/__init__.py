"""Checks of values: settings, paths, containers and dtypes, shape and support of the data.

Each check takes what a caller passed and either returns it in one form or raises,
with the place (row, column), what was expected there, and what to write instead.
They look at all of the data, in chunks, whether it is a tensor or `Rows` of a file or of a
sparse matrix; they are plain `if`s, so `python -O` keeps
them. Nothing is ever repaired: no scaling, clipping or binarizing happens here.

What a program expects of its data is found out in `pyrovae.contract`.
"""

from pyrovae.checks.paths import as_path, shortened
from pyrovae.checks.settings import nearest, real_number, seed_number, whole_number
from pyrovae.checks.tensors import as_labels, as_mask, as_tensor, check_mask
from pyrovae.checks.values import (
    check_event_shape,
    check_finite,
    check_precision,
    check_values,
    elementwise,
    is_clearly_fine,
)
from pyrovae.checks.warning import warn_caller

__all__ = [
    "as_labels",
    "as_mask",
    "as_path",
    "as_tensor",
    "check_event_shape",
    "check_finite",
    "check_mask",
    "check_precision",
    "check_values",
    "elementwise",
    "is_clearly_fine",
    "nearest",
    "real_number",
    "seed_number",
    "shortened",
    "warn_caller",
    "whole_number",
]
