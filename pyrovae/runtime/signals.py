"""Ctrl-C and SIGTERM at the boundary of a step, never within one.

The first signal is remembered and raised where the loop asks for it (`Interrupts.check`). Weights,
optimizer and generators then belong to the same step, so a checkpoint can be written. A second
signal does not wait. The handlers of the process are restored when the block ends.
"""

import signal
import threading
from types import FrameType
from typing import Any


class Interrupts:
    """Delay SIGINT and SIGTERM until `check` is called, while the `with` block runs.

    Outside the main thread, where Python allows no signal handlers, it does nothing.

    Example:
        >>> with Interrupts() as interrupts:
        ...     interrupts.check()
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.received: int | None = None
        self.is_at_boundary = False  # whether what is raised came from `check`
        self.before: dict[int, Any] = {}

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread():
            self.before = {s: signal.signal(s, self._remember) for s in self.SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise _as_exception(number)
        self.received = number

    def check(self) -> None:
        """Raise KeyboardInterrupt or SystemExit(143) if a signal has arrived."""
        if self.received is not None:
            self.is_at_boundary = True
            raise _as_exception(self.received)


def _as_exception(number: int) -> BaseException:
    return KeyboardInterrupt() if number == signal.SIGINT else SystemExit(128 + number)
