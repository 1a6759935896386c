"""SIGTERM asks a fit to stop after its step, so that it can keep its state first."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class AskedToStopError(Exception):
    """Raised where a fit may stop at once, because nothing there changes its state."""


class Stop:
    """Whether somebody asked the fit to stop."""

    def __init__(self) -> None:
        self.asked = False

    def check(self) -> None:
        """Raise `AskedToStopError` if somebody did."""
        if self.asked:
            raise AskedToStopError


@contextmanager
def stopping_on_sigterm() -> Iterator[Stop]:
    """Let SIGTERM ask the fit in the body to stop; outside of the main thread, SIGTERM does what it did before."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def ask(*_: object) -> None:
        stop.asked = True

    before = signal.signal(signal.SIGTERM, ask)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
