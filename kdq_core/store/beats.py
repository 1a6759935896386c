"""Claims that hold among machines: an object that its holder rewrites every few seconds.

Clocks of machines differ, so nobody compares them. Whoever waits looks at the object, and takes it over when it has not
changed for `PATIENCE` seconds by the waiter's own clock. A holder that only slept finds that the claim is another's.
Two machines may compute the same key in that case; one of them puts the entry.
"""

from __future__ import annotations

import contextlib
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable, Iterator

from pydantic import ValidationError

from kdq_core.errors import KdqError
from kdq_core.frozen import Frozen
from kdq_core.store.objects import Objects

BEAT = 10.0
"""Seconds between two beats of a holder."""
PATIENCE = 60.0
"""Seconds without a beat after which a waiter takes a claim over."""
POLL = 1.0
"""Seconds between two looks of a waiter."""
LEAVE = 3.0
"""Seconds that the end of a claim waits for the store."""


class Token(Frozen):
    """Who holds a claim. Only `place` and `owner` decide; `host` and `process` are for people.

    Attributes:
        owner: a new name for each claim.
        place: name of the read cache, whose lock file the holder also holds.
        host: name of the machine.
        process: number of the process.
        beat: how often the holder has rewritten it.
    """

    owner: str
    place: str
    host: str
    process: int
    beat: int = 0

    @property
    def text(self) -> bytes:
        """The token as it is written."""
        return self.model_dump_json().encode()


@contextlib.contextmanager
def beating(
    objects: Objects, key: str, place: str, *, on_wait: Callable[[], None], check: Callable[[], None]
) -> Iterator[None]:
    """Hold the claim of `key` among all machines that use the store.

    Args:
        objects: the store.
        key: what is claimed.
        place: name of this machine's read cache. The caller holds that cache's lock for `key`, so the holder of a claim
            with this name is dead.
        on_wait: called once if another holds the claim.
        check: called while this process waits; what it raises ends the waiting.

    Raises:
        KdqError: the store cannot be reached or written.
    """
    token = Token(owner=uuid.uuid4().hex, place=place, host=platform.node(), process=os.getpid())
    name = f"claims/{key}.json"
    heart = Heart(objects, name, token, _taken(objects, name, token, on_wait, check))
    heart.start()
    try:
        yield
    finally:
        heart.end()


def _taken(objects: Objects, name: str, token: Token, on_wait: Callable[[], None], check: Callable[[], None]) -> str:
    """Wait for the claim and take it; gives the tag of its object."""
    seen, since, waits = "", 0.0, False
    while True:
        found = objects.read(name)
        if found is None:
            tag = objects.create(name, token.text)
        elif (theirs := _token(found[0])) is not None and theirs.owner == token.owner:
            return found[1]  # the answer to an earlier request of ours was lost
        else:
            if found[1] != seen:
                seen, since = found[1], time.monotonic()
            dead = theirs is not None and theirs.place == token.place
            tag = objects.swap(name, token.text, seen) if dead or time.monotonic() - since >= PATIENCE else None
            if tag is None and not waits:
                on_wait()
                waits = True
        if tag is not None:
            return tag
        check()
        time.sleep(POLL if found is not None else min(POLL, 0.05))


def _token(text: bytes) -> Token | None:
    with contextlib.suppress(ValidationError):
        return Token.model_validate_json(text)
    return None


class Heart(threading.Thread):
    """Rewrites a claim until its end.

    Attributes:
        lost: whether another machine has taken the claim over.
    """

    def __init__(self, objects: Objects, name: str, token: Token, tag: str) -> None:
        super().__init__(name=f"kdq-claim-{name}", daemon=True)
        self._objects, self._name, self._token, self._tag = objects, name, token, tag
        self._ended, self.lost = threading.Event(), False

    def run(self) -> None:
        """Beat until the end, then give the claim back. While the store is away, try again at each beat."""
        while not self.lost and not self._ended.wait(BEAT):
            with contextlib.suppress(KdqError):
                self._beat()
        until = time.monotonic() + PATIENCE
        while not self.lost and time.monotonic() < until:
            try:
                self._objects.swap(self._name, None, self._tag)
            except KdqError:
                time.sleep(POLL)
            else:
                return

    def end(self) -> None:
        """End the claim. While the store is away, a thread tries on until others would have lost their patience."""
        self._ended.set()
        self.join(LEAVE)

    def _beat(self) -> None:
        token = self._token.model_copy(update={"beat": self._token.beat + 1})
        tag = self._objects.swap(self._name, token.text, self._tag)
        if tag is None:
            found = self._objects.read(self._name)
            theirs = None if found is None else _token(found[0])
            if found is None or theirs is None or theirs.owner != token.owner:
                self.lost = True
                return
            token, tag = theirs, found[1]  # the answer to an earlier beat was lost
        self._token, self._tag = token, tag
