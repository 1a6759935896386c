"""Teachers from the site's registry become ONNX files before a plan is made: the core knows no registry."""

from __future__ import annotations

from collections.abc import Callable

from kdq_core.recipe.spec import Recipe, Site
from kdq_core.recipe.teacher import MemberSpec


def resolved(recipe: Recipe, site: Site, tell: Callable[[str, str], None] = lambda _model, _found: None) -> Recipe:
    """The recipe with every `registered` member as `onnx`, its file fetched to this site.

    Args:
        recipe: as it is asked for; given back as it is where no member is registered.
        site: whose registry is read, and whose home takes the files.
        tell: called with each model as it is asked for, and with the version and the digest it means today.

    Raises:
        RecipeError: there is no such model, version or alias, or it is no ONNX model.
        TransientError: the tracking server cannot be reached.
        StageError: a file is not the one that was registered.
    """
    if all(member.source != "registered" for member in recipe.teacher.members):
        return recipe
    members = tuple(_resolved(member, site, tell) for member in recipe.teacher.members)
    return recipe.model_copy(update={"teacher": recipe.teacher.model_copy(update={"members": members})})


def _resolved(member: MemberSpec, site: Site, tell: Callable[[str, str], None]) -> MemberSpec:
    if member.model is None:
        return member
    from kdq_registry.fetching import fetch

    found = fetch(site, member.model)
    tell(member.model, f"version {found.version} of {found.name!r}, sha256 {found.sha256[:12]}")
    file = {"source": "onnx", "model": None, "file": str(found.path)}
    return MemberSpec.model_validate(member.model_dump() | file)
