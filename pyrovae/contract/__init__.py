"""What a program and its parts must be, found out before anything changes."""

from pyrovae.contract.validator import Validator, validated

__all__ = ["Validator", "validated"]
