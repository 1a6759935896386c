"""One thread that uploads the events of this process's runs to MLflow, so that MLflow delays no stage and stops none.

While MLflow cannot be reached, the events wait on disk, and the thread tries again after longer waits. What it could
not upload when the process ends, the next command uploads (`kdq_registry.uploading.upload_left`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from kdq_core.errors import KdqError, StageError, TransientError
from kdq_core.recipe.spec import Site

if TYPE_CHECKING:
    from kdq_registry.uploading import Upload

FIRST_WAIT, LONGEST_WAIT = 1.0, 30.0
GATHERING, SHARE = 2.0, 0.01
"""Seconds between two uploads, and the share of its time that the thread works: short epochs share a call, and
the training beside it needs the CPU."""
LONGEST_GATHERING = 10.0
CLOSING_SECONDS = 5.0
"""How long a run that ends tries to reach an MLflow that does not answer."""
_POLL = 0.2


class Uploader:
    """Uploads in the order of the events of each run.

    Attributes:
        site: where MLflow is.
    """

    def __init__(self, site: Site, say: Callable[[str], None]) -> None:
        """Upload to the site's MLflow, from the first event on; `say` hears of an outage, and of its end."""
        self.site, self._say = site, say
        self._news = threading.Condition()
        self._waiting: dict[Upload, None] = {}
        self._told, self._sent, self._tries = 0, 0, 0
        self._away_since: float | None = None
        self._error: KdqError | None = None
        self._hurry = self._closed = False
        self._thread: threading.Thread | None = None
        self._refused = set[str]()

    def tell(self, upload: Upload) -> None:
        """Say that the spool of an upload has a new event."""
        with self._news:
            self._waiting[upload] = None
            self._told += 1
            if self._thread is None:
                # A daemon, so that a call that MLflow does not answer keeps no process; a call may end at any point.
                self._thread = threading.Thread(target=self._work, name="kdq-tracking", daemon=True)
                self._thread.start()
            self._news.notify_all()

    @property
    def refusal(self) -> KdqError | None:
        """The error of the last try, if waiting does not help against it."""
        error = self._error
        return None if isinstance(error, TransientError) else error

    def settle(self, seconds: float, cancelled: threading.Event | None = None) -> KdqError | None:
        """Wait until MLflow has all events so far, but no longer than `seconds` while it cannot be reached.

        Returns:
            The error of the last try if events still wait, else `None`.
        """
        with self._news:
            until, began, tries = self._told, time.monotonic(), self._tries
            self._hurry = True
            self._news.notify_all()
            while self._sent < until and not (cancelled is not None and cancelled.is_set()):
                away = self._away_since
                refused = self.refusal is not None and self._tries > tries
                if away is not None and (refused or time.monotonic() - max(away, began) >= seconds):
                    return self._error
                self._news.wait(_POLL)
        return None

    def close(self) -> None:
        """Upload what waits, and end the thread; say what is left."""
        error = self.settle(CLOSING_SECONDS)
        with self._news:
            self._closed = True
            self._news.notify_all()
        if error is not None:
            self._say(f"{left(self.site)}: {error}")

    def _work(self) -> None:
        wait = FIRST_WAIT
        while True:
            with self._news:
                self._news.wait_for(lambda: self._closed or self._told > self._sent)
                if self._closed:
                    return
                until = self._told
            began = time.monotonic()
            error, late = self._pass(), self._late
            self._note(error, until)
            if error is None:
                wait = FIRST_WAIT
                if late is not None:
                    self._say(f"MLflow answers again; its events are uploaded, {late:.0f} s late")
                took = time.monotonic() - began
                self._pause(min(max(GATHERING, took / SHARE), LONGEST_GATHERING))
                continue
            if late is None:
                self._say(
                    f"the run continues; its events for MLflow wait in {str(self.site.home / 'tracking')!r}: {error}"
                )
            self._pause(wait)
            wait = min(wait * 2, LONGEST_WAIT)

    @property
    def _late(self) -> float | None:
        """How long MLflow has been away, in seconds; `None` if it answered the last time."""
        return None if self._away_since is None else time.monotonic() - self._away_since

    def _pass(self) -> KdqError | None:
        """Try to send everything; gives the error that stopped it."""
        while self._waiting:
            with self._news:
                upload, _ = self._waiting.popitem()
            error = self._tried(upload)
            if error is not None:
                with self._news:
                    self._waiting[upload] = None
                return error
        return None

    def _tried(self, upload: Upload) -> KdqError | None:
        try:
            upload.send(self._hear)
            if upload.spool.ended:
                upload.spool.remove()
        except KdqError as error:
            return error
        except Exception as error:  # the thread must live: others wait for it
            return StageError(f"the events for MLflow could not be read: {type(error).__name__}: {error}")
        return None

    def _note(self, error: KdqError | None, until: int) -> None:
        """Let others know how a try ended."""
        with self._news:
            self._error, self._hurry = error, False
            self._tries += 1
            if error is None:
                self._sent, self._away_since = until, None
            elif self._away_since is None:
                self._away_since = time.monotonic()
            self._news.notify_all()

    def _pause(self, seconds: float) -> None:
        """Wait for the next try; less if somebody waits for it."""
        until = time.monotonic() + seconds
        with self._news:
            while not self._closed and not self._hurry and time.monotonic() < until:
                self._news.wait(_POLL)

    def _hear(self, refusal: str) -> None:
        if refusal not in self._refused:
            self._refused.add(refusal)
            self._say(f"MLflow did not take an event of the run, which goes on without it: {refusal}")


def left(site: Site) -> str:
    """Say how many events the home has for the next command."""
    from kdq_registry.spool import shelf, spools

    number = sum(spool.waiting() for spool in spools(site))
    return (
        f"{number} events for MLflow wait in {str(shelf(site))!r}; the next `kdq run` of this home uploads them, "
        "or `kdq reconcile`"
    )
