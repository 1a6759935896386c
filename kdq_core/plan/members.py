"""Teachers as keys and records hold them: files and factories by content, not by path."""

from __future__ import annotations

from typing import Any

from kdq_core.errors import RecipeError
from kdq_core.plan.factory import factory_code
from kdq_core.reading.given import given_file
from kdq_core.recipe.spec import TeacherSpec
from kdq_core.recipe.teacher import MemberSpec
from kdq_core.store.hashing import sha256_file


def described(member: MemberSpec) -> dict[str, Any]:
    """Describe a teacher with the hashes of its file and its factory in place of their paths.

    Raises:
        RecipeError: the file does not exist, is of another kind, or is still in a registry.
    """
    if member.source == "registered":
        raise RecipeError(
            f"the teacher {member.model!r} is in a registry, which a plan does not read; `kdq plan` and `kdq run` "
            "fetch its file first (kdq_flows.run.teachers.resolved), or give that file as source: onnx"
        )
    asked = _without_file(member)
    if member.file is None:
        return asked
    return asked | {"sha256": sha256_file(given_file(member.file, "teacher", onnx=member.source == "onnx"))}


def _without_file(member: MemberSpec) -> dict[str, Any]:
    """A teacher without its file, and with its factory's code."""
    asked = member.model_dump(mode="json", exclude={"file", "model"})
    if member.factory is not None:
        asked["factory_code"] = factory_code(member.factory, "teacher")
    return asked


def answering(spec: TeacherSpec) -> dict[str, Any]:
    """The settings beside the weights that decide the teachers' answers; the record passes them to later stages."""
    named = ("weight", "normalize", "tasks", "inputs", "factory", "factory_code")
    members = [{name: part[name] for name in named if part.get(name)} for part in map(_without_file, spec.members)]
    if len(members) == 1:
        del members[0]["weight"]
    return {"members": members, "inputs": list(spec.inputs), "combine": spec.combine if len(members) > 1 else None}
