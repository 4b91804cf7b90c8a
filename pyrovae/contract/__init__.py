"""Validation of programs, parts and data, before anything changes."""

from pyrovae.contract.validator import Validator, validated

__all__ = ["Validator", "validated"]
