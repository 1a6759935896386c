"""The recipe's sections as keys hold them: with all options of plug-ins, and files and factories by content."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from kdq_core.errors import PluginError, did_you_mean, listing
from kdq_core.frozen import Frozen
from kdq_core.plan.factory import factory_code
from kdq_core.plan.members import described
from kdq_core.plugins.asked import Asked
from kdq_core.plugins.contract import Section
from kdq_core.plugins.kinds import Distiller
from kdq_core.reading.given import given_file
from kdq_core.recipe.spec import DistillerUse
from kdq_core.store.hashing import sha256_file


def shown(asked: Asked, sections: Iterable[Section], known: dict[str, Any]) -> dict[str, Any]:
    """The values of the recipe that the key of a stage holds if it reads `sections`, by name of the section.

    Args:
        asked: the recipe with its plug-ins.
        sections: what the stage reads.
        known: whole sections of this recipe as keys hold them; those of further ones join.
    """
    found: dict[str, Any] = {}
    for section in sections:
        held = section.held if section.held is not None else projected(_resolved(asked, section, known), section)
        if isinstance(held, dict):
            if held:
                found[section.name] = _merged(found.get(section.name, {}), held)
        else:
            found[section.name] = held
    return found


def _resolved(asked: Asked, section: Section, known: dict[str, Any]) -> Any:
    """The section as keys hold it; of a field that it resolves to others under another name, the value as written.

    Raises:
        PluginError: a recipe has no such section, or the section no such field.
    """
    if section.name not in SECTIONS:
        raise PluginError(
            f"a stage's reads() names the section {section.name!r}{did_you_mean(section.name, SECTIONS) or ','} but a "
            f"recipe has: {listing(SECTIONS)}"
        )
    if section.name not in known:
        known[section.name] = SECTIONS[section.name](asked)
    whole, spec = known[section.name], getattr(asked.recipe, section.name, None)
    if not isinstance(spec, Frozen):
        if section.name in LISTS and (section.only is not None or section.without):
            raise PluginError(
                f"a stage's reads() names fields of the section {section.name!r}, which is a list; name the whole "
                f"section: Section(name={section.name!r})"
            )
        return whole
    heads = {path.partition(".")[0] for path in (*(section.only or ()), *section.without)}
    if not heads:
        return whole
    written = spec.model_dump(mode="json")
    strange = sorted(heads - written.keys() - {"options"})
    if strange:
        near = did_you_mean(strange[0], written) or ","
        raise PluginError(
            f"a stage's reads() names the field {strange[0]!r} of the section {section.name!r}{near} but it has: "
            f"{listing(written)}"
        )
    other = heads - whole.keys() if section.name != "student" else set()
    return whole | {name: written[name] for name in other if name in written}


def projected(value: Any, section: Section) -> Any:
    """Keep the fields of a resolved section that a stage reads; ignore names that the resolved section lacks."""
    if section.only is not None:
        value = _kept(value, section.only)
    for path in section.without:
        value = _dropped(value, path)
    return value


def taps_of(uses: Sequence[DistillerUse]) -> list[str]:
    """The taps on the teacher's side: patterns of module paths, or `auto`."""
    patterns = {theirs for use in uses if use.taps != "auto" for _, theirs in use.taps}
    return sorted(patterns | {"auto" for use in uses if use.taps == "auto"})


def _workload(asked: Asked) -> dict[str, Any]:
    return {"use": asked.recipe.workload.use, "options": asked.workload.model_dump(mode="json")}


def _teacher(asked: Asked) -> dict[str, Any]:
    spec = asked.recipe.teacher
    return spec.model_dump(mode="json") | {"members": [described(member) for member in spec.members]}


def _student(asked: Asked) -> dict[str, Any]:
    """Empty for the workload's student, so that the section's defaults leave the keys as they are without it."""
    spec = asked.recipe.student
    found: dict[str, Any] = {} if spec.source == "workload" else {"source": spec.source}
    if spec.file is not None:
        found["file"] = {"sha256": sha256_file(given_file(spec.file, "student"))}
    if spec.factory is not None:
        found["factory"] = {"name": spec.factory, "code": factory_code(spec.factory, "student")}
    return found


def _distill(asked: Asked) -> dict[str, Any]:
    spec = asked.recipe.distill
    losses = {use.title: _loss(use, distiller) for use, distiller in asked.distillers}
    soft = {"losses": losses, "order": list(losses)} if len(losses) > 1 else next(iter(losses.values()))
    return spec.model_dump(mode="json", exclude={"use", "options", "losses"}) | soft


def _loss(use: DistillerUse, built: Distiller) -> dict[str, Any]:
    """A distiller with all its options; schedules stay as written. The name counts if the record holds it."""
    changing = {name: schedule.model_dump(mode="json") for name, schedule in use.schedules.items()}
    named = {"name": use.title} if built.features != "none" else {}
    asked = use.model_dump(mode="json", exclude={"name"}) | named
    return {**asked, "options": built.model_dump(mode="json") | changing}


def _quantize(asked: Asked) -> dict[str, Any]:
    return asked.recipe.quantize.model_dump(mode="json") | {"options": asked.quantizer.model_dump(mode="json")}


def _target(asked: Asked) -> dict[str, Any]:
    target = asked.target
    resolved = dict(target.resolved())
    return {"use": asked.recipe.target.use, "options": target.model_dump(mode="json"), "resolved": resolved}


def _evaluate(asked: Asked) -> dict[str, Any]:
    uses = zip(asked.recipe.evaluate, asked.evaluators, strict=True)
    return {use.use: evaluator.model_dump(mode="json") for use, evaluator in uses}


def _register(asked: Asked) -> dict[str, Any]:
    spec = asked.recipe.register_as.model_dump(mode="json", exclude_none=True, exclude={"branches"})
    return spec | {"name": asked.recipe.model_name}


SECTIONS: dict[str, Callable[[Asked], Any]] = {
    "workload": _workload,
    "teacher": _teacher,
    "student": _student,
    "distill": _distill,
    "quantize": _quantize,
    "target": _target,
    "evaluate": _evaluate,
    "gates": lambda asked: [gate.model_dump(mode="json") for gate in asked.recipe.gates],
    "register": _register,
}
"""Resolves each section. A stage's own options are not here, because they are always a part of its key."""


LISTS = frozenset({"evaluate", "gates"})
"""Sections that are lists; a stage reads all of one, or nothing."""


def _merged(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    both = {name: _merged(one[name], other[name]) for name in one.keys() & other.keys() if isinstance(one[name], dict)}
    return one | other | both


def _kept(value: dict[str, Any], paths: Iterable[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for path in paths:
        head, _, rest = path.partition(".")
        if head in value:
            found = _merged(found, {head: _kept(value[head], [rest]) if rest else value[head]})
    return found


def _dropped(value: dict[str, Any], path: str) -> dict[str, Any]:
    head, _, rest = path.partition(".")
    if head not in value:
        return value
    if rest:
        return value | {head: _dropped(value[head], rest)}
    return {name: part for name, part in value.items() if name != head}
