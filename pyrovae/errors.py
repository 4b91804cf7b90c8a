"""The errors that pyrovae raises on purpose.

Each one subclasses the builtin that a caller would expect, so `except ValueError`
keeps working. A message has four parts: what was given, where it is, what is
required, and what to write instead. It is at most six lines long and never holds
a whole tensor.
"""


class DataError(ValueError):
    """The data cannot be what the model describes (shape, dtype, support, NaN)."""


class ConfigError(ValueError):
    """An argument, or a combination of parts, cannot work whatever the data."""


class DivergenceError(FloatingPointError):
    """A loss or a gradient is not finite; the update that it belongs to was not made."""


class CheckpointError(RuntimeError):
    """A saved model or run cannot be used."""
