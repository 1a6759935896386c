"""The records of finished cases, in one JSON file that grows while the comparison runs."""

from __future__ import annotations

import json
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.machine import machine
from benchmarks.peers.cases import Case

Record = dict[str, Any]


class Results:
    """What is known of each case, by its name. Each change is on disk before the next case starts.

    A record has the fields of its case, `key` (what it depends on), `machine`, and either `refused` or what was
    measured.
    """

    def __init__(self, path: Path, page: Path | None = None) -> None:
        """Read what an earlier run left in `path`, and what a page of this machine holds."""
        self._path, self._lock, self.machine = path, threading.Lock(), machine(())
        kept = json.loads(page.read_text(encoding="utf-8")) if page is not None else []
        self.records: dict[str, Record] = {
            case_of(record).name: record for record in kept if record.get("machine") == self.machine
        }
        if path.is_file():
            self.records |= json.loads(path.read_text(encoding="utf-8"))

    def known(self, case: Case, key: str) -> Record | None:
        """Return the record of a case if it is finished and depends on the same."""
        record = self.records.get(case.name)
        return record if record is not None and record["key"] == key else None

    def refusal(self, case: Case, keys: dict[str, str]) -> Record | None:
        """Return the refusal of the same request with another seed or teacher, if no such request was granted.

        Args:
            case: the request.
            keys: the current keys, by name of the case; a record with another key is out of date.
        """
        with self._lock:
            found = list(self.records.items())
        alike = [
            record
            for name, record in found
            if keys.get(name) == record["key"] and case_of(record).asked == case.asked and "as" not in record
        ]
        granted = any("refused" not in record for record in alike)
        return alike[0] if alike and not granted else None

    def put(self, case: Case, key: str, **facts: Any) -> Record:
        """Write the record of a case, or add facts to it."""
        with self._lock:
            before = self.records.get(case.name, {})
            kept = before if before.get("key") == key else {}
            self.records[case.name] = record = {**kept, **asdict(case), "key": key, "machine": self.machine, **facts}
            draft = self._path.with_suffix(".draft")
            draft.write_text(json.dumps(self.records, indent=1, sort_keys=True) + "\n", encoding="utf-8")
            draft.replace(self._path)
        return record


def case_of(record: Record) -> Case:
    """Return the case of a record."""
    return Case(**{name: record[name] for name in Case.__dataclass_fields__})
