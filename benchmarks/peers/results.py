"""The records of finished cases, in one JSON file that grows while the comparison runs."""

from __future__ import annotations

import json
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.peers.cases import Case

Record = dict[str, Any]


class Results:
    """What is known of each case, by its name. Each change is on disk before the next case starts.

    A record has the fields of its case, `key` (what it depends on), and either `refused` or what was measured.
    """

    def __init__(self, path: Path) -> None:
        """Read what an earlier run left."""
        self._path, self._lock = path, threading.Lock()
        self.records: dict[str, Record] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

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
            self.records[case.name] = record = {**kept, **asdict(case), "key": key, **facts}
            draft = self._path.with_suffix(".draft")
            draft.write_text(json.dumps(self.records, indent=1, sort_keys=True) + "\n", encoding="utf-8")
            draft.replace(self._path)
        return record


def case_of(record: Record) -> Case:
    """Return the case of a record."""
    return Case(**{name: record[name] for name in Case.__dataclass_fields__})
