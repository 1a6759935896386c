"""Fetches teachers from the site's registry as ONNX files before KDQ makes a plan: the core knows no registry."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from kdq_core.recipe.spec import Recipe, Site
from kdq_core.recipe.teacher import MemberSpec

if TYPE_CHECKING:
    from kdq_registry.fetching import Fetched

Tell = Callable[[str, "Fetched"], None]


def resolved(
    recipe: Recipe,
    site: Site,
    tell: Tell = lambda _model, _found: None,
    known: dict[str, Fetched] | None = None,
) -> Recipe:
    """Fetch the file of every `registered` member; gives the recipe with these members as `onnx`.

    Args:
        recipe: the recipe of the user; returned unchanged if no member is registered.
        site: the site whose registry KDQ reads, and whose home gets the files.
        tell: called with each model as the recipe names it, and with the version that it means today.
        known: models that were fetched before, by the name in the recipe; KDQ adds to it.

    Raises:
        RecipeError: there is no such model, version or alias, or it is not an ONNX model.
        TransientError: the tracking server cannot be reached.
        StageError: a file is not the one that was registered.
    """
    if all(member.source != "registered" for member in recipe.teacher.members):
        return recipe
    found = {} if known is None else known
    members = tuple(_resolved(member, site, tell, found) for member in recipe.teacher.members)
    return recipe.model_copy(update={"teacher": recipe.teacher.model_copy(update={"members": members})})


def _resolved(member: MemberSpec, site: Site, tell: Tell, known: dict[str, Fetched]) -> MemberSpec:
    if member.model is None:
        return member
    from kdq_registry.fetching import fetch

    if member.model not in known:
        known[member.model] = fetch(site, member.model)
    found = known[member.model]
    tell(member.model, found)
    file = {"source": "onnx", "model": None, "file": str(found.path)}
    return MemberSpec.model_validate(member.model_dump() | file)
