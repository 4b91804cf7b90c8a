"""Three levels from a number and its error.

With thresholds a ≤ b, and v ± s the number and its standard error,

    problem   v − 3 s > b                    it exceeds b
    look      v − 3 s > a  or  v + 3 s > b   it exceeds a, or may exceed b
    fine      otherwise                      nothing is shown, and b is excluded

Each statement is a one-sided test at three standard errors: for numbers that are normal, as means
over many data are, it is wrong for one model in 740. So a page of eleven verdicts names a problem
that is not there, or calls one fine that is, with probability 1.5 % at most.
"""

import math
from typing import NamedTuple

from pyrovae.diagnostics import Estimate

NUM_ERRORS = 3.0


class Verdict(NamedTuple):
    """One condition and whether a model has it."""

    name: str
    status: str  # "fine", "look", "problem" or "unknown"
    number: str  # the one that decides, with error and unit
    meaning: str
    advice: str = ""  # what to do


def level(number: Estimate, *, look: float, problem: float = math.inf) -> str:
    """Return "fine", "look" or "problem".

    Example:
        >>> [level(Estimate(value, 0.1), look=0.0, problem=2.0) for value in (0.2, 1.0, 3.0)]
        ['fine', 'look', 'problem']
        >>> level(Estimate(0.2, 1.0), look=0.0, problem=2.0)
        'look'
    """
    if exceeds(number, problem):
        return "problem"
    is_open = not number.value + NUM_ERRORS * number.std_error <= problem
    return "look" if is_open or exceeds(number, look) else "fine"


def exceeds(number: Estimate, threshold: float) -> bool:
    """Return whether a number is above a threshold by more than three standard errors."""
    return number.value - NUM_ERRORS * number.std_error > threshold


def is_below(number: Estimate, threshold: float) -> bool:
    """Return whether a number is below a threshold by more than three standard errors."""
    return number.value + NUM_ERRORS * number.std_error < threshold


def with_error(number: Estimate) -> str:
    """Format value ± error to two digits, or an upper bound below the noise.

    Example:
        >>> with_error(Estimate(1.234, 0.1)), with_error(Estimate(0.01, 0.1, True))
        ('1.23 ± 0.10', '< 0.2')
    """
    if math.isnan(number.value):
        return "not defined"
    if number.is_non_negative and number.is_below_noise:
        return f"< {2 * number.std_error:.2g}"
    return f"{number.value:.2f} ± {number.std_error:.2f}"
