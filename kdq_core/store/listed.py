"""One line of a listing of a store."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kdq_core.store.records import Manifest


@dataclass(frozen=True)
class Listed:
    """An entry of the store.

    Attributes:
        key: its key.
        folder: where it lies, or where its copy would lie in the read cache.
        bytes: of all its files.
        made: when it was written, in seconds since 1970.
        used: when a stage or a command looked it up last.
        manifest: its table of contents; `None` if that is damaged.
    """

    key: str
    folder: Path
    bytes: int
    made: float
    used: float
    manifest: Manifest | None

    @property
    def stage(self) -> str:
        """The kind of stage that gave it; `?` if its manifest is damaged."""
        return "?" if self.manifest is None else self.manifest.stage
