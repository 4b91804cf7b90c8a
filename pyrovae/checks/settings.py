"""Checks of settings: counts, rates, seeds."""

import difflib
import math
import sys
from collections.abc import Iterable
from typing import Any

import numpy as np

from pyrovae.errors import ConfigError


def whole_number(value: Any, name: str, minimum: int) -> int:
    """`value` when it is a whole number ≥ minimum; else ConfigError.

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
    """`value` as a float when it is finite, > above and ≥ least; else ConfigError.

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
    """The name that a misspelt one may mean, in whatever case; None where none is near.

    Example:
        >>> nearest("vampprio", ["StandardNormal", "VampPrior"])
        'VampPrior'
    """
    by_lower = {known.lower(): known for known in names}
    near = difflib.get_close_matches(str(name).lower(), by_lower, n=1, cutoff=0.4)
    return by_lower[near[0]] if near else None


def seed_number(seed: int | None) -> int:
    """The seed itself, or a fresh random one for None (recorded by the caller).

    Example:
        >>> seed_number(7)
        7
    """
    if seed is None:
        return int(np.random.SeedSequence().entropy % 2**63)
    if whole_number(seed, "seed", 0) >= 2**64:
        raise ConfigError(f"seed = {seed}, but generators take a whole number below 2⁶⁴.")
    return int(seed)
