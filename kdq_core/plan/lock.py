"""A lock: all that decides the results of a plan, and the bytes that came of it. It is what `kdq replay` replays.

Importable without torch.
"""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, JsonValue, ValidationError

from kdq_core.errors import RecipeError
from kdq_core.frozen import Frozen
from kdq_core.plan.cpu import cpu_name
from kdq_core.plan.plan import Plan
from kdq_core.plan.precision import precision_of
from kdq_core.recipe.spec import Recipe
from kdq_core.store.records import ChosenForm, Digest, EvaluationReport
from kdq_core.store.store import Entry

SUFFIX = ".lock.json"
KINDS = {
    "code": "code", "libraries": "package", "recipe": "recipe", "options": "recipe", "seed": "recipe",
    "data": "data", "files": "file", "device": "machine", "environment": "variable", "others": "site",
}  # fmt: skip
"""What kind of difference a part of a key is."""


class LockedStage(Frozen):
    """One stage: the parts of its key without its parents, and the files that it gave."""

    name: str
    use: str
    heavy: bool = Field(description="whether it computes; only such stages are replayed")
    parents: dict[str, str] = Field(description="names of the stages that it reads, by port")
    parts: dict[str, JsonValue]
    key: str = Field(default="", description="key of its entry; empty before it ran")
    files: dict[str, Digest] = Field(default={}, description="sha256 of its files by name; empty before it ran")
    chosen: ChosenForm | None = Field(
        default=None, description="what the stage chose by measuring; a replay takes it, since times never repeat"
    )


class Lock(Frozen):
    """All that decides the results of a plan."""

    format: Literal[1] = 1
    recipe: Recipe
    teachers: dict[str, str] = Field(default={}, description="`NAME/VERSION` of each teacher's file from a registry")
    device: str
    precision: Literal["fp32", "bf16"]
    threads: int
    python: str
    platform: str
    cpu: str
    packages: dict[str, str] = Field(description="version of every installed distribution")
    stages: tuple[LockedStage, ...]

    @property
    def ran(self) -> bool:
        """Whether it holds results."""
        return any(stage.files for stage in self.stages)


class Difference(Frozen):
    """Something that decides results, and is another now."""

    kind: str = Field(description="code, package, recipe, data, file, machine, variable, site, stage or bytes")
    what: str
    locked: str
    now: str
    stages: tuple[str, ...]


def locked(plan: Plan, entries: Mapping[str, Entry], teachers: Mapping[str, str] = {}) -> Lock:
    """Make the lock of a plan.

    Args:
        plan: its keys hold the present state of code, packages, data and machine.
        entries: the entries of finished stages, by name.
        teachers: `NAME/VERSION` of each teacher's file that was fetched from a registry.
    """
    site = plan.site
    return Lock(
        recipe=plan.recipe,
        teachers=dict(teachers),
        device=site.device,
        precision=precision_of(site),
        threads=site.threads,
        python=platform.python_version(),
        platform=platform.platform(),
        cpu=cpu_name(),
        packages={one.name: one.version for one in sorted(importlib.metadata.distributions(), key=lambda d: d.name)},
        stages=tuple(
            LockedStage(
                name=node.name,
                use=node.use,
                heavy=node.heavy,
                parents=node.parents,
                parts=node.parts,
                key=entries[node.name].manifest.key if node.heavy and node.name in entries else "",
                files=files_of(entries[node.name]) if node.heavy and node.name in entries else {},
                chosen=chosen_of(entries.get(node.name)),
            )
            for node in plan.nodes
        ),
    )


def chosen_of(entry: Entry | None) -> ChosenForm | None:
    """What the stage of an entry chose by measuring."""
    record = None if entry is None else entry.record
    return record if isinstance(record, ChosenForm) else None


def files_of(entry: Entry) -> dict[str, str]:
    """The sha256 of the files of an entry; of a report only the predictions, because its times never repeat."""
    record = entry.record
    kept = {one.path for one in record.predictions} if isinstance(record, EvaluationReport) else None
    return {one.path: one.sha256 for one in entry.manifest.files if kept is None or one.path in kept}


def read_lock(path: Path) -> Lock:
    """Read a lock file.

    Raises:
        RecipeError: it cannot be read, or is no lock of this version of KDQ.
    """
    try:
        return lock_of(path.read_bytes(), repr(str(path)))
    except OSError as error:
        raise RecipeError(f"the lock {str(path)!r} cannot be read ({error.strerror}); check its path") from None


def lock_of(text: bytes, said: str) -> Lock:
    """Read the text of a lock.

    Raises:
        RecipeError: it is no lock of this version of KDQ.
    """
    try:
        return Lock.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "its text"
        raise RecipeError(
            f"{said} is no lock that this version of KDQ reads ({where}: {first['msg']}); `kdq lock FILE` writes one"
        ) from None


def differences(lock: Lock, plan: Plan) -> tuple[Difference, ...]:
    """What decides the results of the plan, and differs from the lock; the stages that compute only."""
    found: dict[tuple[str, str, str, str], list[str]] = {}
    now = {node.name: node for node in plan.nodes if node.heavy}
    then = {stage.name: stage for stage in lock.stages if stage.heavy}
    for name in [*then, *(name for name in now if name not in then)]:
        if name not in then or name not in now:
            one = ("stage", name, "there" if name in then else "missing", "there" if name in now else "missing")
            found.setdefault(one, []).append(name)
            continue
        for part in sorted(then[name].parts.keys() | now[name].parts.keys()):
            for path, old, new in _different(then[name].parts.get(part), now[name].parts.get(part)):
                found.setdefault((KINDS.get(part, part), path or part, old, new), []).append(name)
    return tuple(
        Difference(kind=kind, what=what, locked=old, now=new, stages=tuple(stages))
        for (kind, what, old, new), stages in found.items()
    )


def unlike(lock: Lock, entries: Mapping[str, Entry]) -> tuple[Difference, ...]:
    """The files of the lock that the entries have with other bytes, or lack, in the order of the plan."""
    return tuple(
        Difference(kind="bytes", what=path, locked=sha256[:12], now=now.get(path, "missing")[:12], stages=(stage.name,))
        for stage in lock.stages
        if stage.heavy
        for now in [files_of(entries[stage.name]) if stage.name in entries else {}]
        for path, sha256 in stage.files.items()
        if now.get(path) != sha256
    )


def _different(then: Any, now: Any, path: str = "") -> Iterator[tuple[str, str, str]]:
    """Path, old and new value of each leaf that differs."""
    if isinstance(then, dict) and isinstance(now, dict):
        for name in sorted(then.keys() | now.keys()):
            yield from _different(then.get(name), now.get(name), f"{path}.{name}" if path else str(name))
    elif then != now:
        yield path, _said(then), _said(now)


def _said(value: Any) -> str:
    return "none" if value is None else str(value)
