"""Hints for right values in a wrong form, such as an option beside `use`: what the user most likely meant."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

from pydantic import ValidationError

from kdq_core.errors import PluginError, did_you_mean
from kdq_core.recipe.explain import FORM, dotted
from kdq_core.recipe.spec import DistillerUse, DistillSpec, QuantizeSpec, Recipe, TeacherSpec
from kdq_core.recipe.stages import StageUse
from kdq_core.recipe.strict_yaml import Loc, short
from kdq_core.recipe.study import FIELDS as STUDY
from kdq_core.recipe.teacher import MemberSpec

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

    from kdq_core.plugins.catalog import Catalog
    from kdq_core.plugins.kinds import Kind

KINDS: dict[str, Kind] = {
    "workload": "workload", "distill": "distiller", "quantize": "quantizer", "target": "target",
    "evaluate": "evaluator",
}  # fmt: skip
DEFAULTS: dict[Loc, str] = {("distill",): DistillSpec().use, ("quantize",): QuantizeSpec().use}
OF_ONE_LOSS = DistillerUse.model_fields.keys() - DistillSpec.model_fields.keys()
OF_ONE_TEACHER = MemberSpec.model_fields.keys() - TeacherSpec.model_fields.keys()
FIELDS = frozenset(field.alias or name for name, field in Recipe.model_fields.items())
"""Keys that a recipe may have; it may also have a section for each stage that it lists."""
SOURCES = get_args(MemberSpec.model_fields["source"].annotation)
FORMS = {
    "model": "NAME/VERSION or NAME@ALIAS, such as digits/3 or digits@champion",
    "factory": FORM,
}
SEVERAL = "several distillers are written as"
_PLAIN = re.compile(r"(?!(true|false|null)$)[A-Za-z][\w.*/@-]*")


@dataclass(frozen=True)
class Hints:
    """Gives hints on the mistakes in one recipe.

    Attributes:
        value: the parsed recipe.
        catalog: the installed plug-ins; `None` to give no hints on options.
    """

    value: Any
    catalog: Catalog | None

    def __call__(self, detail: ErrorDetails) -> tuple[Loc, str] | None:
        """Give the location of the mistake and the hint; `None` to keep the usual message."""
        loc, given = detail["loc"], detail["input"]
        if detail["type"] == "extra_forbidden":
            return self._key(loc[:-1], str(loc[-1]), given)
        if detail["type"] == "string_pattern_mismatch" and loc[-1] in FORMS:
            return loc, f"key {dotted(loc)!r} is {short(given)}; write {FORMS[str(loc[-1])]}"
        if loc in (("student",), *DEFAULTS) and isinstance(given, str):
            form = {"source": "checkpoint", "file": given} if loc == ("student",) else {"use": given}
            return loc, f"key {dotted(loc)!r} is {short(given)}; write {dotted(loc)}: {flow(form)}"
        if loc[:2] == ("teacher", "members") and isinstance(given, {2: str | dict, 3: str}.get(len(loc), ())):
            return _members(self._at(loc[:2]))
        return _several(loc, given)

    def _key(self, section: Loc, asked: str, given: Any) -> tuple[Loc, str] | None:
        inside = self._at(section)
        if not section:
            return self._section(asked)
        if not isinstance(inside, dict):
            return None
        loc, use = (*section, asked), inside.get("use", DEFAULTS.get(section))
        start = f"unknown key {asked!r} in {dotted(section)!r}; "
        if isinstance(use, str) and asked in self._options(section, use):
            move = "move it into its 'options'" if inside.get("options") else f"write options: {flow({asked: given})}"
            return loc, f"{start}it is an option of {use!r}: {move}"
        if section == ("distill",) and asked in OF_ONE_LOSS:
            listed = "a distiller in 'losses' has it: "
            if inside.get("losses"):
                return loc, f"{start}{listed}move it there"
            return loc, f"{start}{listed}write losses: {flow([{'use': use, asked: given}])}; several may stand there"
        if section == ("teacher",) and asked in OF_ONE_TEACHER:
            return _of_one_teacher(inside)
        return None

    def _section(self, asked: str) -> tuple[Loc, str] | None:
        """A hint for an unknown top-level key that is, or nearly is, the name of a stage with options."""
        if self.catalog is None:
            return None
        titles = [use.title for use in self._stages() if use.stage_name == asked]
        if titles:
            called = f"section {asked!r} holds the options of a stage that 'stages' calls {titles[0]!r}"
            return (asked,), f"{called}; call the section {titles[0]!r}, too"
        own = [name for name, entry in self.catalog.names("stage").items() if not entry.house]
        if asked in own:
            return (asked,), (
                f"section {asked!r} holds the options of a stage that 'stages' does not list; list {asked!r} there"
            )
        near = did_you_mean(asked, {*own, *STUDY} - {asked}) if not did_you_mean(asked, FIELDS) else ""
        return ((asked,), f"unknown key {asked!r}{near}") if near else None

    def _stages(self) -> Iterator[StageUse]:
        """The valid stages of the list."""
        listed = self.value.get("stages")
        for stage in listed if isinstance(listed, list) else ():
            with contextlib.suppress(ValidationError):
                yield StageUse.model_validate(stage)

    def _options(self, section: Loc, use: str) -> dict[str, Any]:
        kind = KINDS.get(str(section[0]))
        if self.catalog is None or kind is None:
            return {}
        try:
            found = self.catalog.options_schema(self.catalog.find(kind, use))
        except PluginError:
            return {}
        options: dict[str, Any] = found.get("properties", {})
        return options

    def _at(self, loc: Loc) -> Any:
        found = self.value
        for part in loc:
            found = found[part]
        return found


def _members(given: Any) -> tuple[Loc, str] | None:
    """A hint for teachers written as bare names, or for one outside of a list."""
    listed = given if isinstance(given, list) else [given]
    if not all(isinstance(one, dict) or (isinstance(one, str) and one in SOURCES) for one in listed):
        return None
    form = flow([one if isinstance(one, dict) else {"source": one} for one in listed])
    return ("teacher", "members"), f"key 'teacher.members' is {short(given)}; write members: {form}"


def _of_one_teacher(section: dict[str, Any]) -> tuple[Loc, str]:
    """A hint, once for all such keys, for fields of one teacher that are beside 'members'."""
    own = {key: value for key, value in section.items() if key in OF_ONE_TEACHER}
    first = next(iter(own))
    move = "move it there" if section.get("members") else f"write members: {flow([own])}"
    said = f"unknown key {first!r} in 'teacher'; a teacher in 'members' has it: {move}"
    return ("teacher", first), said


def _several(loc: Loc, given: Any) -> tuple[Loc, str] | None:
    """A hint for a list of distillers in the place of one."""
    if loc not in (("distill",), ("distill", "use")) or not isinstance(given, list):
        return None
    good = given and all(isinstance(one, str) or (isinstance(one, dict) and "use" in one) for one in given)
    form = flow([one if isinstance(one, dict) else {"use": one} for one in given]) if good else "[{use: ...}, ...]"
    form = f"losses: {form}" if len(loc) > 1 else f"distill: {{losses: {form}}}"
    return loc, f"key {dotted(loc)!r} is {short(given)}; {SEVERAL} {form}, each with a 'weight' if it needs one"


def flow(value: Any) -> str:
    """A value in one line of YAML."""
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {flow(part)}' for key, part in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(flow, value))}]"
    return value if isinstance(value, str) and _PLAIN.fullmatch(value) else json.dumps(value)
