"""The table of files: names, hashes, sizes, addresses and licences. `files.toml` holds it."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Entry:
    """One file of the table.

    Attributes:
        name: folder and file, such as `fashion-mnist/train-images-idx3-ubyte.gz`.
        sha256: hash of the inflated content of a .gz file, else of the file.
        size: number of bytes of what `sha256` is the hash of.
        inflated: number of bytes of all members of an archive together; 0 for other files.
        licence: licence of the data.
        source: page of its publisher.
        address: where the file can be fetched; empty if no published address has these bytes.
    """

    name: str
    sha256: str
    size: int
    inflated: int
    licence: str
    source: str
    address: str

    @property
    def expected(self) -> str:
        """Size and hash in words."""
        of = "inflated bytes" if self.name.endswith(".gz") else "bytes"
        return f"{self.size:,} {of} with sha256 {self.sha256}"


def read_table(path: Path) -> dict[str, Entry]:
    """Read the table from its file."""
    table = {}
    for folder, data in tomllib.loads(path.read_text(encoding="utf-8")).items():
        for file, row in data["files"].items():
            base = data.get("address", "") if row.get("published", True) else ""
            table[f"{folder}/{file}"] = Entry(
                name=f"{folder}/{file}",
                sha256=row["sha256"],
                size=row["bytes"],
                inflated=row.get("inflated", 0),
                licence=data["licence"],
                source=data["source"],
                address=base and base + file,
            )
    return table


TABLE = read_table(Path(__file__).with_name("files.toml"))
