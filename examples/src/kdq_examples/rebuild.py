"""Files that the examples make from another file of the table, bit for bit; their publisher has only that one."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable


def intents(published: bytes) -> bytes:
    """Write the splits of CLINC150 as rows `split,text,label`; out-of-scope sentences have the label `oos`."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["split", "text", "label"])
    for split, sentences in json.loads(published).items():
        writer.writerows((split.removeprefix("oos_"), text, label) for text, label in sentences)
    return out.getvalue().encode()


REBUILT: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "clinc150/clinc150.csv.gz": ("clinc150/data_full.json", intents)
}
"""The file that each is made from, and how."""
