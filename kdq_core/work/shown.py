"""The part of a run that a stage may see: what its `reads()` and `inputs()` name. Importable without torch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from kdq_core.errors import PluginError
from kdq_core.frozen import Frozen
from kdq_core.plan.keys import site_of
from kdq_core.plugins.asked import Asked
from kdq_core.plugins.contract import Port, Reads
from kdq_core.plugins.forms import PlacingTarget
from kdq_core.plugins.kinds import Distiller, Evaluator, Kind, Quantizer, Target, Workload
from kdq_core.plugins.wiring import Wired
from kdq_core.recipe.spec import Site
from kdq_core.store.family import Record
from kdq_core.store.records import Checkpoint, ChosenForm
from kdq_core.store.store import Entry
from kdq_core.work.guarded import guarded, reads_data, shown_of, without_data

if TYPE_CHECKING:
    from kdq_core.recipe.spec import DistillerUse

R = TypeVar("R", bound=Record)
Emit = Callable[[dict[str, Any]], None]
ATTRIBUTES = {"register": "register_as"}
"""Sections whose attribute in `Recipe` has another name."""
OPTIONS_IN = {
    "workload": "workload",
    "distiller": "distill",
    "quantizer": "quantize",
    "target": "target",
    "evaluator": "evaluate",
}
"""The section that holds the options of each kind of plug-in."""
PLAIN = {"kdq", "name", "seed", "stages", "retry", "budget"}
"""Fields of a recipe that are not sections."""


@dataclass(frozen=True)
class Shown:
    """What a stage may read, and where it writes.

    Attributes:
        wired: the stage, and the titles of the stages that it reads from.
        parents: verified store entries by port.
        draft: folder for the files of the entry.
        scratch: folder that the next try finds again after a killed one.
        emit: sends an event to the process of the run.
        lineage: digests of the entries of all earlier stages, by title.
        tracking_run: MLflow's id of the run, for a stage that computes nothing.
        lock: the lock of the run so far as JSON, for a stage that computes nothing.
        number: number of the fit, from 0, in a stage that has several.
        way: the quantizer to work with, of those that a run chooses among.
    """

    wired: Wired
    _asked: Asked
    parents: Mapping[str, Entry]
    draft: Path
    scratch: Path
    emit: Emit
    lineage: Mapping[str, str] = field(default_factory=dict)
    tracking_run: str | None = None
    lock: str | None = None
    number: int = 0
    fits: list[int] = field(default_factory=list)
    way: str | None = None

    @property
    def title(self) -> str:
        """The stage's name in the plan."""
        return self.wired.title

    @property
    def site(self) -> Site:
        """Device and threads."""
        if not self.reads.device:
            raise PluginError(
                f"stage {self.title!r} reads the site, but its reads() says device=False; drop that, so that the "
                "stage's key holds device and threads"
            )
        return site_of(self.wired.stage.needs, self._asked.site)

    @cached_property
    def reads(self) -> Reads:
        """The stage's own declaration of what it reads."""
        return self.wired.stage.reads(self._asked, self.wired.ports)

    @cached_property
    def ports(self) -> Mapping[str, Port]:
        """The stage's inputs."""
        return self.wired.stage.inputs(self._asked)

    def section(self, name: str) -> Any:
        """A section of the recipe, with the fields that the stage's `reads()` names."""
        sections = [section for section in self.reads.sections if section.name == name]
        whole = section_of(self._asked, name)
        if not sections:
            raise PluginError(
                f"stage {self.title!r} reads the section {name!r}, which its reads() does not name; name it there, so "
                "that the stage's key holds it"
            )
        return guarded(whole, sections, self.title) if isinstance(whole, Frozen) else whole

    def may_read(self, name: str, field: str) -> bool:
        """Whether `reads()` names a field of a section; `field` is dotted, such as `cache.seed` of `teacher`."""
        return shown_of(field, [section for section in self.reads.sections if section.name == name]) == "whole"

    @property
    def workload(self) -> Workload:
        """The recipe's workload."""
        self._check_plugin("workload")
        return self._asked.workload if self.reads.data else without_data(self._asked.workload, self.title)

    @property
    def quantizer(self) -> Quantizer:
        """The recipe's quantizer, or the one that the run chose for the quantized student at an input."""
        self._check_plugin("quantizer")
        way = self.chosen
        return self._asked.quantizer if way is None else self._asked.way(way)

    @property
    def chosen(self) -> str | None:
        """Name of the quantizer that the run chose among several, or works with now; `None` if the recipe names one."""
        records = (entry.record for entry in self.parents.values())
        return self.way or next((r.choice.use for r in records if isinstance(r, Checkpoint) and r.choice), None)

    @property
    def target(self) -> Target:
        """The recipe's target, in the form that the stage `place` chose, if this stage reads its record."""
        self._check_plugin("target")
        return formed(self._asked.target, self.placement)

    @property
    def placement(self) -> ChosenForm | None:
        """The form that the stage `place` chose; `None` if this stage does not read it, or none was chosen."""
        found = self.parents.get("placement")
        record = None if found is None else found.record
        return record if isinstance(record, ChosenForm) else None

    @property
    def evaluators(self) -> tuple[Evaluator, ...]:
        """The recipe's evaluators, in order."""
        self._check_plugin("evaluator")
        return self._asked.evaluators

    @property
    def distillers(self) -> tuple[tuple[DistillerUse, Distiller], ...]:
        """The recipe's distillers, each with its options at the start of a fit."""
        self._check_plugin("distiller")
        return self._asked.distillers

    def _check_plugin(self, kind: Kind) -> None:
        if kind not in self.reads.plugins:
            raise PluginError(
                f"stage {self.title!r} uses the recipe's {kind}, which its reads() does not name in 'plugins'; name it "
                "there, so that the stage's key holds its code"
            )
        section = OPTIONS_IN[kind]
        if all(one.name != section for one in self.reads.sections):
            raise PluginError(
                f"stage {self.title!r} uses the recipe's {kind}, whose options are in the section {section!r}, which "
                "its reads() does not name; name it there, so that the stage's key holds them"
            )

    def _check_data(self) -> None:
        if not self.reads.data:
            raise reads_data(self.title)

    def has(self, port: str) -> bool:
        """Whether an optional input is there."""
        return port in self.parents

    def input(self, port: str) -> Entry:
        """The verified entry at an input."""
        if port not in self.ports:
            raise PluginError(
                f"stage {self.title!r} reads the input {port!r}, which its inputs() does not name; it names: "
                f"{', '.join(self.ports) or 'none'}"
            )
        if port not in self.parents:
            raise PluginError(
                f"stage {self.title!r} reads its optional input {port!r}, which no stage of this recipe gives; ask "
                f"work.has({port!r}) first"
            )
        return self.parents[port]

    def record(self, port: str, of: type[R]) -> R:
        """The record at an input."""
        found = self.input(port).record
        if not isinstance(found, of):
            raise PluginError(
                f"stage {self.title!r} takes the record at its input {port!r} for a {of.__name__!r}, and it is a "
                f"{type(found).__name__!r}; name the class in inputs()"
            )
        return found

    def seed_of(self, purpose: str) -> int:
        """A seed for `purpose`, independent of the seeds for other purposes."""
        if not self.reads.seeded:
            raise PluginError(
                f"stage {self.title!r} draws random numbers, but its reads() says seeded=False; drop that, so that the "
                "stage's key holds the seed"
            )
        return int.from_bytes(hashlib.sha256(f"{self._asked.recipe.seed}/{purpose}".encode()).digest()[:4], "big") >> 1

    def progress(self, done: int, total: int, note: str = "") -> None:
        """Show how far the stage is."""
        self.emit({"event": "progress", "stage": self.title, "done": done, "total": total, "note": note})


def formed(target: Target, chosen: ChosenForm | None) -> Target:
    """The target in a chosen form."""
    return target.formed(chosen.options) if chosen is not None and isinstance(target, PlacingTarget) else target


def request_of(work: Shown) -> Asked:
    """Give KDQ's own code the whole request, past the guards; what it reads there must be in the stage's key."""
    return work._asked


def section_of(asked: Asked, name: str) -> Any:
    """Give the whole section of that name.

    Raises:
        PluginError: a recipe has no such section.
    """
    names = {field.alias or key for key, field in type(asked.recipe).model_fields.items()} - PLAIN
    if name not in names:
        raise PluginError(f"a recipe has no section {name!r}; it has: {', '.join(sorted(names))}")
    return getattr(asked.recipe, ATTRIBUTES.get(name, name))
