"""SIGTERM and Ctrl-C: the first one lets a run keep its state and leave, a second one ends the process at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

LEAVE_SECONDS = 5.0
"""From the first signal to the end of the process. The next run closes what is still open in Prefect and MLflow."""
EXIT_CODE = 130
SIGNALS = (signal.SIGTERM, signal.SIGINT)

Say = Callable[[], None]


def interrupted_in(stages: Sequence[str]) -> str:
    """What an interrupted run says; `stages` are those that it interrupted."""
    where = f" in {' and '.join(stages)}" if stages else ""
    return f"interrupted{where}; run the same command to resume"


class _Leaving:
    """Ends this process in time after a signal.

    Attributes:
        told: whether the first signal has come.
        words: called before the process ends.
    """

    def __init__(self) -> None:
        self.told = False
        self.words: list[Say] = []
        self._asked, self._over = threading.Event(), threading.Event()
        threading.Thread(target=self._watch, name="kdq-leaving", daemon=True).start()

    def handle(self, _number: int, _frame: FrameType | None) -> None:
        """Raise `KeyboardInterrupt` for the first signal, and end the process at the second."""
        if self.told:
            self.end()
        self.told = True
        self._asked.set()  # starting a thread here could wait for a lock that the interrupted code holds
        raise KeyboardInterrupt

    def close(self) -> None:
        """End nothing any more."""
        self._over.set()
        self._asked.set()

    def _watch(self) -> None:
        self._asked.wait()
        if not self._over.wait(LEAVE_SECONDS):
            self.end()

    def end(self) -> None:
        """End the process without waiting for anything; its workers end with it."""
        if sys.stderr.isatty():
            sys.stderr.write("\x1b[?25h")  # show the cursor, which bars of progress hide
        for say in self.words:
            say()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(EXIT_CODE)


_current: list[_Leaving] = []
"""The one of this process, because signals are the process's."""


@contextmanager
def leaving(last_words: Say | None = None, *, exits: bool = False) -> Iterator[None]:
    """Let SIGTERM and Ctrl-C interrupt the body; does nothing outside the main thread.

    Prefect puts its own handler of SIGTERM around a flow, so the flow enters this again; a second signal counts as such
    wherever the first one was.

    Args:
        last_words: called before the process ends at a second signal, or `LEAVE_SECONDS` after the first.
        exits: after a signal, end the process with the body; what libraries do at exit may take minutes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    outermost = not _current
    if outermost:
        _current.append(_Leaving())
    (mine,) = _current
    if last_words is not None:
        mine.words.append(last_words)
    before = {number: signal.signal(number, mine.handle) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)
        if last_words is not None:
            mine.words.remove(last_words)
        if outermost:
            _current.clear()
            mine.close()
            if exits and mine.told:
                mine.end()
