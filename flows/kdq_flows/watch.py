"""Measure a registered version again when torch, the runtime or the CPU has changed, and say what became worse."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import math
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field, ValidationError

from kdq_core.errors import StageError
from kdq_core.frozen import Frozen
from kdq_core.plan.cpu import cpu_name, instruction_sets
from kdq_core.recipe.spec import Site
from kdq_core.store.family import Measured
from kdq_core.store.records import Metric
from kdq_core.store.store import explained
from kdq_flows.measuring import measure
from kdq_flows.observer import Observer, Silent
from kdq_flows.report.kept import write

if TYPE_CHECKING:
    from kdq_registry.watch import Champion


class Tolerances(Frozen):
    """By how much a figure may become worse."""

    quality: float = Field(default=0.005, ge=0, description="of a share such as top-1, absolute")
    latency: float = Field(default=1.25, ge=1, description="factor of times and other figures")


class Row(Frozen):
    """One figure then and now.

    Attributes:
        what: name of the metric, or of an output of the golden batch.
        then: value of the last good look, or of the sealed report.
        now: value of this look.
        bound: what is still allowed.
        verdict: `ok`; `worse` beyond tolerance; `accepted`, if the user took that; `told`, if no side is better.
    """

    what: str
    then: Measured | None
    now: Measured | None
    bound: Measured | None
    verdict: str


class Look(Frozen):
    """One look at a version.

    Attributes:
        version: its number.
        sha256: of its file.
        facts: what a result depends on beside the file: versions, CPU, threads.
        when: UTC.
        metrics: the figures of the int8 file.
        rows: the comparison.
        how: what was measured.
    """

    version: int
    sha256: str
    facts: dict[str, str]
    when: str
    metrics: tuple[Metric, ...]
    rows: tuple[Row, ...]
    how: str

    @property
    def worse(self) -> tuple[Row, ...]:
        """The rows that are worse beyond tolerance."""
        return tuple(row for row in self.rows if row.verdict == "worse")


class Kept(Frozen):
    """The record of a model under KDQ_HOME: the last look, and the last one that was good."""

    last: Look
    good: Look | None = None


class Watched(Frozen):
    """How `kdq watch` ended."""

    model: str
    name: str
    measured: bool
    changed: dict[str, tuple[str | None, str]]
    look: Look
    notes: tuple[str, ...] = ()


def watch(
    site: Site,
    model: str,
    tolerances: Tolerances = Tolerances(),  # noqa: B008 - frozen
    *,
    again: bool = False,
    accept: bool = False,
    observer: Observer | None = None,
) -> Watched:
    """Look at a version; measure it if anything changed that its figures depend on.

    Args:
        site: has the registry, the store and the record of earlier looks.
        model: `NAME@ALIAS` or `NAME/VERSION`.
        tolerances: by how much a figure may become worse.
        again: measure even if nothing changed.
        accept: the figures of this look are good from now on.
        observer: hears of stages.

    Raises:
        RecipeError: there is no such model, version or alias.
        StageError: a file is not as sealed, or the version cannot be measured.
    """
    from kdq_registry.watch import champion

    path = site.home / "watch" / f"{model.replace('/', ' version ')}.json"
    with explained(path, "write the record of the watch"):
        path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, ignore_cleanup_errors=True) as folder:
        version, notes = champion(site, model, Path(folder) / "version")
        kept, facts = _read(path), facts_of(site, version.runtime)
        before = kept.last.facts if kept else {}
        changed = {name: (before.get(name), value) for name, value in facts.items() if before.get(name) != value}
        same = kept is not None and not changed and kept.last.sha256 == version.sha256
        if kept is not None and same and not again:
            look = kept.last
        else:
            look = _looked(site, version, kept, facts, tolerances, Path(folder), observer or Silent())
    if accept:
        rows = [row.model_copy(update={"verdict": "accepted"}) if row in look.worse else row for row in look.rows]
        look = look.model_copy(update={"rows": tuple(rows)})
    good: Look | None = look
    if look.worse:
        good = kept.good if kept else None
    _write(path, Kept(last=look, good=good))
    measured = not same or again
    return Watched(model=model, name=version.name, measured=measured, changed=changed, look=look, notes=notes)


def facts_of(site: Site, runtime: str) -> dict[str, str]:
    """What the figures of a file depend on beside the file itself."""
    names = dict.fromkeys(("torch", runtime, "numpy"))
    return {
        **{name: importlib.metadata.version(name) for name in names},
        "cpu": cpu_name(),
        "instructions": " ".join(sorted(instruction_sets())),
        "threads": str(site.threads),
    }


def compared(then: Sequence[Metric], now: Sequence[Metric], tolerances: Tolerances) -> Iterator[Row]:
    """Compare figures by name; a figure that is missing now is worse."""
    found = {metric.name: metric for metric in now}
    for old in then:
        new = found.get(old.name)
        if old.direction == "neither":
            yield Row(what=old.name, then=old.value, now=new and new.value, bound=None, verdict="told")
            continue
        bound = _bound(old, tolerances)
        verdict = "worse" if new is None or _worse(old, new, bound) else "ok"
        yield Row(what=old.name, then=old.value, now=new and new.value, bound=bound, verdict=verdict)


def _bound(old: Metric, tolerances: Tolerances) -> float:
    sign = 1 if old.direction == "lower" else -1
    if old.unit == "fraction":
        return old.value + sign * tolerances.quality
    if old.unit in ("count", "bytes"):
        return old.value
    return old.value * tolerances.latency if sign == 1 else old.value / tolerances.latency


def _worse(old: Metric, new: Metric, bound: float) -> bool:
    """Whether a figure is beyond its bound; times also need intervals that do not meet."""
    if not math.isfinite(new.value):
        return math.isfinite(old.value)
    if old.direction == "higher":
        return new.value < bound
    apart = old.unit != "ms" or new.low is None or old.high is None or new.low > old.high
    return new.value > bound and apart


def _looked(site: Site, version: Champion, kept: Kept | None, facts: dict[str, str], tolerances: Tolerances,
            folder: Path, observer: Observer) -> Look:  # fmt: skip
    from kdq_registry.watch import golden_differences

    good = kept.good if kept is not None and kept.good and kept.good.sha256 == version.sha256 else None
    then = good.metrics if good else version.report.models.get("int8", ())
    rows = [
        Row(
            what=f"golden batch, {output}", then=0.0, now=most, bound=version.tolerances.get(output, 0.0),
            verdict="ok" if most <= version.tolerances.get(output, 0.0) else "worse",
        )
        for output, most in golden_differences(version).items()
    ]  # fmt: skip
    metrics, how, given = measure(site, version, folder, observer)
    rows += compared([one for one in then if given is None or one.name in given], metrics, tolerances)
    return Look(
        version=version.version, sha256=version.sha256, facts=facts, metrics=metrics, rows=tuple(rows), how=how,
        when=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )  # fmt: skip


def _read(path: Path) -> Kept | None:
    if not path.is_file():
        return None
    try:
        return Kept.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise StageError(
            f"the record of the watch {str(path)!r} cannot be read ({error.errors()[0]['msg']}); remove it to begin "
            "anew"
        ) from None


def _write(path: Path, kept: Kept) -> None:
    with explained(path, "write the record of the watch"):
        write(path, json.dumps(kept.model_dump(mode="json"), indent=1))
