"""Checks of settings: counts, rates, seeds."""

import difflib
import math
import sys
from collections.abc import Iterable
from typing import Any

import numpy as np

from pyrovae.errors import ConfigError


def whole_number(value: Any, name: str, minimum: int) -> int:
    """Return `value` if it is a whole number ≥ minimum, else raise ConfigError.

    Example:
        >>> whole_number(128, "batch_size", 1)
        128
    """
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer):
        raise ConfigError(f"{name} = {value!r}, but it must be a whole number ≥ {minimum}.")
    if value < minimum:
        raise ConfigError(f"{name} = {value}, but it must be at least {minimum}.")
    return int(value)


def real_number(value: Any, name: str, *, above: float = -math.inf, least: float = -math.inf):
    """Return `value` as a float if it is finite, > above and ≥ least, else raise ConfigError.

    Example:
        >>> real_number(1e-3, "learning_rate", above=0.0)
        0.001
    """
    is_number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    is_finite = is_number and abs(value) <= sys.float_info.max
    if not is_finite or value <= above or value < least:
        bound = f" > {above:g}" if above > -math.inf else f" ≥ {least:g}"
        raise ConfigError(f"{name} = {value!r}, but it must be a finite number{bound}.")
    return float(value)


def nearest(name: Any, names: Iterable[str]) -> str | None:
    """Return the name closest to a misspelled one, ignoring case; None if none is close.

    Example:
        >>> nearest("vampprio", ["StandardNormal", "VampPrior"])
        'VampPrior'
    """
    by_lower = {known.lower(): known for known in names}
    near = difflib.get_close_matches(str(name).lower(), by_lower, n=1, cutoff=0.4)
    return by_lower[near[0]] if near else None


def seed_number(seed: int | None) -> int:
    """Return the seed, or a new random one for None (recorded by the caller).

    Example:
        >>> seed_number(7)
        7
    """
    if seed is None:
        return int(np.random.SeedSequence().entropy % 2**63)
    if whole_number(seed, "seed", 0) >= 2**64:
        raise ConfigError(f"seed = {seed}, but generators take a whole number below 2⁶⁴.")
    return int(seed)
