"""The events of a run for MLflow, on disk: no outage of the server loses one, and none stops a training.

`KDQ_HOME/tracking/<run>/events.jsonl` has a JSON line for each event, in order. KDQ forces each line to the disk. The
file `sent` says how many bytes of it MLflow has; KDQ replaces it whole. The folder goes when MLflow has everything.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdq_core.store.drafts import fsync
from kdq_core.store.store import explained

if TYPE_CHECKING:
    from kdq_core.recipe.spec import Site

Event = dict[str, Any]
OWNER_TAG = "kdq.owner"
"""Tag of an open run: the process that it belongs to."""
SITES_OWN = "the site's own"


def shelf(site: Site) -> Path:
    """The folder of all spools of a home."""
    return site.home / "tracking"


def place_of(site: Site) -> str:
    """Where events of this site go; without a password, and the same for a home that was moved."""
    from kdq_registry.environment import redacted

    return redacted(site.tracking_uri) if site.tracking_uri else SITES_OWN


class Spool:
    """The events of one run. Only its own process appends, from any thread."""

    def __init__(self, folder: Path) -> None:
        """Name a spool; `append` makes its folder."""
        self.folder, self.file, self.lock = folder, folder / "events.jsonl", folder / "lock"
        self._mark = folder / "sent"
        self._appending = threading.Lock()

    def append(self, event: Event, at: float | None = None) -> None:
        """Add an event, with its time in milliseconds since 1970; by default now.

        Raises:
            StoreError: the home cannot be written.
        """
        line = json.dumps({"at": int((at or time.time()) * 1000), **event}).encode() + b"\n"
        with self._appending, explained(self.file, "write the events for MLflow to"):
            new = not self.file.exists()
            self.folder.mkdir(parents=True, exist_ok=True)
            with self.file.open("ab") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
            if new:
                fsync(self.folder)

    @property
    def sent(self) -> int:
        """Bytes of the file that MLflow has; 0 where that is not known, because any event may be sent again."""
        try:
            return int(self._mark.read_bytes())
        except (OSError, ValueError):
            return 0

    def mark(self, sent: int) -> None:
        """Keep how many bytes MLflow has."""
        with explained(self._mark, "write"):
            draft = self._mark.with_suffix(".new")
            draft.write_text(str(sent), encoding="ascii")
            draft.replace(self._mark)

    def events(self, start: int = 0) -> Iterator[tuple[Event, int]]:
        """The lines behind the byte `start`, each with the number of bytes up to its end, up to one that is not whole.

        A killed process left such a line, or another thread is writing it.
        """
        with contextlib.suppress(FileNotFoundError, ValueError), self.file.open("rb") as file:
            file.seek(start)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                event = json.loads(line)
                start += len(line)
                yield event, start

    def waiting(self) -> int:
        """How many events MLflow does not have yet."""
        return sum(1 for _ in self.events(self.sent))

    @property
    def first(self) -> Event:
        """The event that opened the run; empty if there is none."""
        return next((event for event, _ in self.events()), {})

    @property
    def ended(self) -> bool:
        """Whether the run has ended, so that nobody appends any more; also if another command has removed the spool."""
        if not self.file.exists():
            return True
        last = self.file.read_bytes().rpartition(b"\n")[0].rpartition(b"\n")[2]
        with contextlib.suppress(ValueError):
            event = json.loads(last)
            return bool(event["do"] == "end" and event["run"] == self.first["run"])
        return False

    def close(self) -> None:
        """End what a dead process left open, with the time of its last event; a line that it left half-written goes."""
        whole, last, left = 0, time.time() * 1000, dict[str, None]()
        for event, end in self.events():
            whole, last = end, event["at"]
            if event["do"] == "open":
                left[event["run"]] = None
            elif event["do"] == "end":
                left.pop(event["run"], None)
        os.truncate(self.file, whole)
        for run in reversed(left):
            self.append({"do": "end", "run": run, "status": "KILLED"}, last / 1000)

    def remove(self) -> None:
        """Remove the folder; MLflow has everything."""
        shutil.rmtree(self.folder, ignore_errors=True)


def spools(site: Site) -> list[Spool]:
    """The spools of a home, by name."""
    return [Spool(path.parent) for path in sorted(shelf(site).glob("*/events.jsonl"))]


def left(site: Site, alive: Callable[[str], bool]) -> Iterator[Spool]:
    """The spools of runs that have ended or whose process is dead, for whatever MLflow (`first["place"]`).

    Args:
        site: the home.
        alive: says whether the process of a `kdq.owner` tag lives.
    """
    for spool in spools(site):
        first = spool.first
        if first and (spool.ended or not alive(first["tags"][OWNER_TAG])):
            yield spool
