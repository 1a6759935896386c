"""Refuses requests that the recipe's teachers cannot fulfil, from the recipe alone. Importable without torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pydantic import ValidationError

from kdq_core.errors import RecipeError
from kdq_core.plugins.kinds import Distiller
from kdq_core.reading.given import where

if TYPE_CHECKING:
    from kdq_core.recipe.spec import DistillerUse, Recipe, TeacherSpec
    from kdq_core.recipe.strict_yaml import Document, Loc

NO_LAYERS = (
    "'distill.transfer' starts the student from the teacher's layers, but an ONNX model has none that could be read; "
    "leave it out, or use a teacher from a checkpoint"
)


def check_teachers(recipe: Recipe, distillers: Mapping[Loc, Distiller], lines: Document | None = None) -> None:
    """Refuse distillers and teachers that do not fit together.

    Args:
        recipe: a valid `Recipe`.
        distillers: its distillers by location.
        lines: the document of the recipe, for file and line in messages.

    Raises:
        RecipeError: a distiller ignores its taps, reads logits that KDQ does not keep, or needs the modules of an ONNX
            model.
    """
    for loc, distiller in distillers.items():
        use = recipe.distill.distillers[int(loc[2]) if len(loc) > 1 else 0]
        _check_taps(use, distiller, where(lines, (*loc, "taps")))
        _check_modules(recipe, use, distiller, where(lines, (*loc, "use")))
        _check_top_k(recipe, use, distiller, where(lines, ("teacher", "cache", "top_k")))
    if recipe.distill.transfer is not None and all_onnx(recipe.teacher):
        raise RecipeError(where(lines, ("distill", "transfer")) + NO_LAYERS)
    features = any(distiller.features == "pairs" for distiller in distillers.values())
    check_fused(recipe, features=features, place=where(lines, ("distill", "fuse_views")))


def _check_taps(use: DistillerUse, distiller: Distiller, place: str) -> None:
    """Refuse taps for a distiller that compares no features, because the user expects an effect."""
    if "taps" in use.model_fields_set and distiller.features == "none":
        raise RecipeError(
            f"{place}distiller {use.use!r} compares no features, so 'taps' mean nothing to it; leave them out, or use "
            "a distiller of features, such as 'fitnet'"
        )


def _check_modules(recipe: Recipe, use: DistillerUse, distiller: Distiller, place: str) -> None:
    """Refuse a distiller of features if no teacher has modules."""
    if distiller.features == "pairs" and all_onnx(recipe.teacher):
        raise RecipeError(
            f"{place}distiller {use.use!r} compares features of modules, but an ONNX model has no modules to compare "
            "with; use a distiller of outputs, such as 'logit-kd', or a teacher from a checkpoint"
        )


def all_onnx(spec: TeacherSpec) -> bool:
    """Whether no teacher is a PyTorch module."""
    return all(member.source in ("onnx", "registered") for member in spec.members)


def _check_top_k(recipe: Recipe, use: DistillerUse, distiller: Distiller, place: str) -> None:
    """Refuse `top_k` if the loss reads all logits, because the student would learn from a different teacher."""
    cache = recipe.teacher.cache
    if not cache.enabled or cache.top_k is None:
        return
    kept = f"{place}'teacher.cache.top_k' keeps the {cache.top_k} largest probabilities and the sum of the others, but "
    if not distiller.takes_top_k():
        why, remedy = "", "use a distiller of softmax distributions, such as 'logit-kd'"
        because = " and ".join(map(repr, _options_that_read_all(use, distiller)))
        if because:
            why, remedy = f" with {because} as set here", f"leave {because} out: with its default options it does not"
        raise RecipeError(f"{kept}distiller {use.use!r} reads all logits{why}; leave top_k out, or {remedy}")
    if any(schedule.schedule == "gap" for schedule in (use.weight, *use.schedules.values())):
        raise RecipeError(
            f"{kept}a schedule of distiller {use.use!r} follows the gap between student and teacher, which is measured "
            "on all logits; leave top_k out, or use another schedule"
        )


def _options_that_read_all(use: DistillerUse, distiller: Distiller) -> tuple[str, ...]:
    """The options that keep the distiller from taking `top_k`; empty if it never takes it."""
    given = use.options_at(-1)
    for dropped in (*((name,) for name in given), tuple(given)):
        try:
            other = type(distiller).model_validate({k: v for k, v in given.items() if k not in dropped})
        except ValidationError:
            continue
        if other.takes_top_k():
            return dropped
    return ()


def check_fused(recipe: Recipe, *, features: bool, place: str = "") -> None:
    """Refuse a mean over kept views if KDQ keeps none; `features`: whether a distiller compares features.

    Raises:
        RecipeError: KDQ keeps no outputs, or no features for a distiller that compares them.
    """
    cache = recipe.teacher.cache
    if recipe.distill.fuse_views and not (cache.features if features else cache.enabled):
        raise RecipeError(
            f"{place}'distill.fuse_views' takes the mean over what is kept of the teacher, but nothing is kept; write "
            f"teacher: {{cache: {{{'features' if cache.enabled else 'enabled'}: true}}}}, or leave it out"
        )
