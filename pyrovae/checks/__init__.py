"""Checks of values: settings, paths, containers, dtypes, and shape and support of the data.

Each check either returns a caller's value in one form or raises an error with the place
(row, column), what was expected there, and what to write instead. All of the data are
checked, in chunks, whether a tensor or the `Rows` of a file or a sparse matrix. Checks are
plain `if`s, so `python -O` keeps them. They never scale, clip or binarize anything.

`pyrovae.contract` finds out what a program requires of its data.
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
