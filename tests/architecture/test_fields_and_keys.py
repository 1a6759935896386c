"""Each field of each section of a recipe changes the key of a stage that reads it, or is listed as without effect."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from pydantic import BaseModel

from kdq_core.plan.plan import Plan, asked_of, make_plan
from kdq_core.plugins.catalog import Catalog
from kdq_core.plugins.wiring import wire
from kdq_core.recipe.schedule import Schedule
from kdq_core.recipe.spec import DistillerUse, Gate, Recipe, Rule, Site, TransferSpec
from kdq_core.recipe.stages import StageUse
from kdq_core.recipe.student import StudentSpec
from kdq_core.recipe.teacher import MemberSpec, NormalizeSpec
from kdq_core.work.guarded import shown_of

WITHOUT_EFFECT = {
    "kdq": "version of the format; there is one",
    "name": "names runs and, through register, the model",
    "register.branches": "which branches of a study register; each version is as it would be alone",
    "retry": "how often a stage is tried again changes no result",
    "stages.name": "a title; the stage and its inputs decide",
    "stages.retry": "as 'retry'",
    "teacher.cache.limit_gb": "refuses a cache that is too large, and changes no row of another",
    "teacher.members.file": "where a file lies; the key holds what is in it",
    "teacher.members.model": "fetched to a file before a plan is made",
    "student.file": "as of members",
    "distill.losses.name": "a title of curves; of a distiller of features it is in the key, as its record has it",
    "quantize.fit.devices": "QAT runs on one device",
    "distill.losses.weight.end": "read where the schedule is not constant",
}
"""Fields, dotted, that are in no key, each with the reason."""

BASE: dict[str, Any] = {
    "name": "digits",
    "workload": {"use": "digits"},
    "teacher": {
        "members": [
            {"source": "pipeline", "normalize": {"mean": [0.5], "std": [0.5]}, "inputs": ["sound"]},
            {"source": "pipeline"},
        ],
        "inputs": ["sound"],
        "cache": {"features": True, "top_k": 3},
    },
    "distill": {
        "losses": [
            {"use": "logit-kd", "weight": {"schedule": "linear", "start": 1.0, "end": 0.5}},
            {"use": "fitnet", "taps": [["stem", "stem"]]},
        ],
        "transfer": {},
        "fit": {"clip_norm": 1.0},
    },
    "quantize": {"use": "minmax-qat", "rules": [{"match": "conv", "weights": 4, "activations": 4}]},
    "gates": [{"metric": "top1", "at_least": 0.5, "relative_to": "student"}, {"metric": "bytes", "at_most": 9}],
}
"""A recipe in which every section stands."""

OTHERS: dict[str, Any] = {
    "workload": {"use": "digits", "options": {"teacher_width": 24}},
    "workload.use": None,
    "workload.options": {"teacher_width": 24},
    "target": "openvino",
    "evaluate": ["size"],
    "stages": ["train_teacher", "distill", "quantize", "export"],
    "distill.use": None,
    "distill.options": None,
    "distill.losses.use": "dkd",
    "distill.losses.options": {"temperature": 2.0},
    "distill.losses.task": "first",
    "quantize.use": "lsq",
    "quantize.options": {"averaging": 0.5},
    "teacher.members.source": "student",
    "teacher.members.factory": None,
    "teacher.members.tasks": None,
    "teacher.cache.enabled": None,
    "distill.losses.weight.schedule": "cosine",
    "distill.losses.taps": [["stem", "stem"]],
    "distill.transfer.layers": [["head", "head"]],
    "teacher.inputs": ["sight"],
    "teacher.members.inputs": ["sight"],
    "gates.metric": "f1",
    "gates.of": "teacher",
    "gates.relative_to": "teacher",
    "register.name": "other",
    "quantize.rules.match": "linear",
    "quantize.rules.skip": True,
    "student.source": None,
    "student.factory": None,
}
"""Other values of fields that have no natural one; `None` marks those with a test of their own below."""


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models inside of an annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from models_in(part)


def fields_of(model: type[BaseModel], path: str = "") -> Iterator[tuple[str, Any]]:
    """Each field of a section and of all inside it, dotted, with its annotation."""
    for name, field in model.model_fields.items():
        dotted = f"{path}{field.alias or name}"
        yield dotted, field
        for inner in models_in(field.annotation):
            yield from fields_of(inner, f"{dotted}.")


FIELDS = dict(fields_of(Recipe))


def other(dotted: str, now: Any, field: Any) -> Any:
    """Another value that the field allows."""
    if dotted in OTHERS:
        return OTHERS[dotted]
    choices = [one for part in (field.annotation, *get_args(field.annotation)) for one in _choices(part)]
    if choices:
        return next(one for one in choices if one != now)
    if isinstance(now, bool) or field.annotation is bool:
        return not now
    kinds = [part for part in (field.annotation, *get_args(field.annotation)) if part in (int, float, str)]
    if isinstance(now, int):
        return now + 1 if now < 8 else now - 1
    if isinstance(now, float):
        return now / 2 if now else 0.5
    if isinstance(now, list) and now and isinstance(now[0], float):
        return [0.25]
    if now is None and kinds:
        return {int: 4, float: 0.5, str: "other"}[kinds[0]]
    raise AssertionError(f"no other value of {dotted!r} is known; name one in OTHERS")


def _choices(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) is Literal else ()


def put(recipe: Any, path: list[str], dotted: str, field: Any, whole: Any) -> Any:
    """The raw recipe with another value at a path; of a list the first item."""
    if isinstance(recipe, list):
        return [put(recipe[0], path, dotted, field, whole[0]), *recipe[1:]]
    head, *rest = path
    inside = whole.get(head, field.default) if isinstance(whole, dict) else None
    if rest:
        return {**recipe, head: put(recipe.get(head, {}) or {}, rest, dotted, field, inside)}
    return {**recipe, head: other(dotted, inside, field)}


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return Catalog.load()


def keys(recipe: dict[str, Any], catalog: Catalog, home: Path) -> dict[str, str]:
    made: Plan = make_plan(Recipe.model_validate(recipe), Site(home=home, cpu_slots=2), catalog)
    digests = {node.name: "0" * 64 for node in made.nodes}
    return {node.name: node.key(digests) for node in made.nodes}


def parts(recipe: dict[str, Any], catalog: Catalog, home: Path) -> dict[str, Any]:
    made = make_plan(Recipe.model_validate(recipe), Site(home=home, cpu_slots=2), catalog)
    return {node.name: node.parts for node in made.nodes}


def readers_of(path: str, catalog: Catalog, home: Path) -> set[str]:
    """The stages of the base recipe whose `reads()` names the field, and does not hold something else in its place."""
    head, _, rest = path.partition(".")
    asked = asked_of(Recipe.model_validate(BASE), Site(home=home, cpu_slots=2), catalog)
    found = set()
    for one in wire(asked, catalog):
        sections = [
            section for section in one.stage.reads(asked, one.ports).sections
            if section.name == head and section.held is None
        ]  # fmt: skip
        if sections and (not rest or shown_of(rest, sections) == "whole"):
            found.add(one.title)
    return found


SECTIONS_ALONE = {
    path for path, field in FIELDS.items()
    if any(models_in(field.annotation)) and path not in {"workload", "target", "evaluate", "stages"}
}  # fmt: skip
TESTED = [
    path for path in FIELDS
    if path not in WITHOUT_EFFECT and path not in SECTIONS_ALONE and OTHERS.get(path, 0) is not None
    and not any(path.startswith(f"{one}.") for one in ("retry", "stages", "evaluate", "target"))
    and path not in ("gates.at_most",)
]  # fmt: skip


@pytest.mark.parametrize("path", TESTED)
def test_another_value_of_a_field_changes_the_key_of_each_stage_that_reads_it(
    path: str, catalog: Catalog, tmp_path: Path
) -> None:
    whole = Recipe.model_validate(BASE).model_dump(mode="json", by_alias=True)
    changed = put(BASE, path.split("."), path, FIELDS[path], whole)
    if path.startswith("distill.transfer") or path.startswith("teacher.members.normalize"):
        assert changed != BASE
    assert keys(changed, catalog, tmp_path) != keys(BASE, catalog, tmp_path), path
    readers = readers_of(path, catalog, tmp_path)
    before, after = (parts(one, catalog, tmp_path) for one in (BASE, changed))
    assert [title for title in sorted(readers & after.keys()) if before[title] == after[title]] == [], path


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {"distill": {"use": "dkd"}}),
        ({}, {"teacher": {"cache": {"enabled": False}}}),
        ({}, {"distill": {"options": {"temperature": 2.0}}}),
        ({"gates": [{"metric": "bytes", "at_most": 9}]}, {"gates": [{"metric": "bytes", "at_most": 8}]}),
        ({"evaluate": ["size"]}, {"evaluate": [{"use": "latency", "options": {"batch_size": 2}}]}),
        ({"evaluate": ["latency"]}, {"evaluate": [{"use": "latency", "options": {"batch_size": 2}}]}),
        ({}, {"target": {"use": "onnxruntime-cpu", "options": {"quantize_outputs": False}}}),
        ({}, {"student": {"factory": "kdq_workloads.digits_models:small"}}),
    ],
)
def test_fields_in_other_forms_change_a_key_too(
    before: dict[str, Any], after: dict[str, Any], catalog: Catalog, tmp_path: Path
) -> None:
    usual = {"name": "digits", "workload": "digits"}
    assert keys({**usual, **before}, catalog, tmp_path) != keys({**usual, **before, **after}, catalog, tmp_path)


def test_fields_of_files_change_a_key_by_what_the_file_holds(catalog: Catalog, tmp_path: Path) -> None:
    file = tmp_path / "net.safetensors"

    def both() -> list[dict[str, str]]:
        student = {"student": {"source": "checkpoint", "file": str(file)}}
        member = {"teacher": {"members": [{"source": "checkpoint", "file": str(file)}]}}
        return [keys({"name": "digits", "workload": "digits", **one}, catalog, tmp_path) for one in (student, member)]

    file.write_bytes(b"one")
    first = both()
    file.write_bytes(b"two")
    assert all(now != then for now, then in zip(both(), first, strict=True))


def test_every_field_of_every_section_is_found() -> None:
    models = (
        Recipe,
        StageUse,
        StudentSpec,
        MemberSpec,
        NormalizeSpec,
        DistillerUse,
        Schedule,
        TransferSpec,
        Rule,
        Gate,
    )
    for model in models:
        for name, field in model.model_fields.items():
            assert any(path.split(".")[-1] == (field.alias or name) for path in FIELDS), (model, name)
    assert len(FIELDS) > 90


def test_what_is_listed_as_without_effect_is_a_field_and_changes_no_key(catalog: Catalog, tmp_path: Path) -> None:
    assert WITHOUT_EFFECT.keys() <= FIELDS.keys()
    usual = {"name": "digits", "workload": "digits", "register": {"name": "fixed"}}
    first = keys(usual, catalog, tmp_path)
    for change in ({"name": "other"}, {"retry": {"attempts": 1}}, {"teacher": {"cache": {"limit_gb": 5.0}}}):
        assert keys({**usual, **change}, catalog, tmp_path) == first, change
