"""Parts of the facts of a run: how a stage ended, what the teacher gained, the file, the version."""

from __future__ import annotations

from typing import Literal

from kdq_core.frozen import Frozen


class StageFacts(Frozen):
    """How one stage ended.

    `shared`: another process computed it while this run waited. `interrupted`: the next run resumes it.
    """

    name: str
    key: str
    state: Literal["ran", "cached", "shared", "failed", "interrupted"]
    seconds: float


class GainFacts(Frozen):
    """How much better the student of one stage is than its control; see `kdq_core.store.records.Gain`."""

    stage: str
    metric: str
    taught: float
    control: float
    difference: float
    low: float
    high: float
    samples: int
    verdict: Literal["better", "worse", "undecided"]


class ArtifactFacts(Frozen):
    """The int8 file; `inputs` words what it takes, as in `tokens int64 [batch, any]`."""

    path: str
    sha256: str
    bytes: int
    inputs: tuple[str, ...] = ()


class VersionFacts(Frozen):
    """The registered version."""

    name: str
    version: int
