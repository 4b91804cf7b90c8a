"""One thread at a time changes the state of the process.

Pyro's handlers, parameter store and validation flags, the default generators and the mode of a
shared module belong to the process. Two threads that change and restore them in turn would
leave them changed: the second one restores what the first one had set. So every context manager of
pyrovae that changes such state holds `TURN` until it has restored it, and a call that needs this
state to stay as it is holds it throughout (`ambient.exclusive`).

A thread that holds it may take it again, also in a signal handler or a callback. A long run gives
its turn away between two steps if another thread waits, and has none while its callbacks run. A
forked process starts with a free turn. What cannot work is a Dataset that waits, inside a step, for
another thread that calls pyrovae; and generators that a thread seeds or draws from outside of
`RandomStream` are shared as ever.
"""

import os
import threading

from pyro.poutine import runtime


class Turn:
    """Re-entrant lock of which a long run can see that another thread waits for it.

    The first thread that waits holds the queue until its turn comes; the others wait for the queue.

    Example:
        >>> turn = Turn()
        >>> with turn, turn:
        ...     turn.is_awaited
        False
    """

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """Forget all threads that hold it or wait for it."""
        self.lock, self.queue = threading.RLock(), threading.RLock()
        self.owner, self.depth = 0, 0

    def __enter__(self) -> None:
        if not self.lock.acquire(blocking=False):
            with self.queue:
                self.lock.acquire()
        self.owner, self.depth = threading.get_ident(), self.depth + 1

    def __exit__(self, *exception: object) -> None:
        if not self.depth:  # taken before the process was forked
            return
        self.depth -= 1
        if not self.depth:
            self.owner = 0
        self.lock.release()

    @property
    def is_awaited(self) -> bool:
        """Whether another thread waits for its turn."""
        if self.queue.acquire(blocking=False):
            self.queue.release()
            return False
        return True

    def give(self) -> None:
        """Wait until the thread that waits has taken its turn, unless this one still holds it."""
        if self.owner != threading.get_ident():
            with self.queue:
                pass


TURN = Turn()


def _after_fork() -> None:
    """Free the turn; drop the handlers of a thread that does not exist in this process."""
    if TURN.owner not in (0, threading.get_ident()):
        runtime._PYRO_STACK.clear()
    TURN.renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
