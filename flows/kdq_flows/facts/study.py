"""The facts of a study: its branches, and which of them was selected."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, JsonValue

from kdq_core.frozen import Frozen
from kdq_core.plan.gates import GateVerdict
from kdq_core.store.family import Measured
from kdq_flows.facts.parts import ArtifactFacts, GainFacts, VersionFacts


class BranchFacts(Frozen):
    """One branch of a study.

    Attributes:
        branch: its name.
        axes: its values by dotted name of the recipe's field.
        models: metrics by model and by name.
        gains: what the teacher brought.
        gates: the verdicts on the recipe's gates.
        artifact: its file.
        version: the registered version, if it was registered.
        status: `skipped` if a limit ended the run before it began.
        error: why it failed.
        run: the name under which `kdq report` and MLflow know it.
    """

    branch: str
    axes: dict[str, JsonValue]
    models: dict[str, dict[str, Measured]] = Field(default={})
    gains: tuple[GainFacts, ...] = ()
    gates: tuple[GateVerdict, ...] = ()
    artifact: ArtifactFacts | None = None
    version: VersionFacts | None = None
    status: Literal["completed", "no-news", "failed", "interrupted", "skipped"]
    error: str | None = None
    run: str = ""


class SelectedFacts(Frozen):
    """Which branch to ship.

    Attributes:
        branch: its name; `None` if no branch meets the goals.
        pareto: names of the branches that meet the goals, and that no other one beats in all that counts.
        verdict: why, in one line.
    """

    branch: str | None
    pareto: tuple[str, ...]
    verdict: str

    def mark(self, branch: str) -> str:
        """`selected`, `front`, or nothing."""
        return "selected" if branch == self.branch else "front" if branch in self.pareto else ""
