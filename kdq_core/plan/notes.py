"""Notes of a plan: which settings of the recipe have no effect, and which would be faster here."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from kdq_core.plugins.asked import Asked
from kdq_core.plugins.budget import shared_schedule
from kdq_core.plugins.wiring import Wired, measured_of
from kdq_core.reading.teachers import all_onnx
from kdq_core.recipe.spec import DistillSpec, FitSpec, QatFitSpec, Recipe, Site, TeacherSpec, TransferSpec
from kdq_core.recipe.teacher import CacheSpec, MemberSpec

SECTIONS = {name: name for name in ("teacher", "student", "distill", "quantize", "target", "evaluate")} | {
    "register_as": "register"
}
"""The sections that stages read: each field of `Recipe` with its name in a file."""


def without_effect(asked: Asked, wired: Sequence[Wired]) -> Iterator[str]:
    """Report settings without effect, and why. Defaults are not reported: a deployed recipe spells out every field.

    Args:
        asked: the recipe that KDQ runs.
        wired: its stages.
    """
    recipe = asked.recipe
    read = {section.name for one in wired for section in one.stage.reads(asked, one.ports).sections}
    for field, name in SECTIONS.items():
        default = type(recipe).model_fields[field].default
        if name not in read and getattr(recipe, field) != default:
            yield f"{name!r} does nothing, since no stage of the recipe reads it"
    if recipe.gates and not measured_of(wired, asked):
        yield "'gates' do nothing, since no stage of the recipe measures a model; 'evaluate' would"
    if "teacher" in read:
        yield from _of_cache(recipe.teacher.cache, [use.title for use in asked.tapping], kept=_kept(recipe))
        yield from _of_teacher(recipe)
    if "distill" in read:
        yield from _of_distill(recipe)
    if "quantize" in read:
        yield from _of_schedule(asked)


NOT_LISTED = "the recipe does not list the stage 'cache_teacher'"


def _kept(recipe: Recipe) -> bool:
    """Whether the recipe lists the stage that keeps the teacher's outputs."""
    return any(use.stage_name == "cache_teacher" for use in recipe.stages)


def _of_schedule(asked: Asked) -> Iterator[str]:
    """Report settings that a schedule, which `distill` and `quantize` share, leaves without effect."""
    recipe, schedule = asked.recipe, shared_schedule(asked)
    if schedule is None:
        if recipe.budget:
            yield "'budget' does nothing, since no stage quantizes the student of one 'distill' as that gave it"
        return
    if recipe.budget and recipe.distill.fit.epochs != FitSpec().epochs:
        yield "'distill.fit.epochs' does nothing, since 'budget' has the epochs"
    if not schedule.tail:
        return
    fit, usual = recipe.quantize.fit, QatFitSpec()
    other = [f"'{name}'" for name in QatFitSpec.model_fields if getattr(fit, name) != getattr(usual, name)]
    if other := [name for name in other if name != "'epochs'"]:
        does = "does" if len(other) == 1 else "do"
        yield (
            f"{', '.join(other)} of 'quantize.fit' {does} nothing, since a quantizer trains in the last epochs "
            "of 'distill.fit'"
        )
    if schedule.tail < fit.epochs:
        yield f"'quantize.fit.epochs' is {schedule.tail}, not {fit.epochs}, since one epoch at least is in float"
    if schedule.stops:
        yield (
            f"the float student stops after {schedule.kept} of {schedule.epochs} epochs, and its quantizer trains the "
            "others"
        )


def _of_distill(recipe: Recipe) -> Iterator[str]:
    yield from _of_transfer(recipe.distill)
    if recipe.distill.fuse_views and not _kept(recipe):
        yield f"'distill.fuse_views' does nothing, since {NOT_LISTED}"
    elif recipe.distill.fuse_views and recipe.teacher.cache.views == 1:
        yield (
            "'distill.fuse_views' does nothing, since one view of each sample is kept; more come by teacher: {cache: "
            f"{{views: {CacheSpec().views}}}}}"
        )


def _of_cache(cache: CacheSpec, tapping: Sequence[str], *, kept: bool) -> Iterator[str]:
    said = ("form", "top_k", "limit_gb", "views")
    asked = [name for name in said if getattr(cache, name) != getattr(CacheSpec(), name)]
    if not kept:
        if asked or cache.features:
            yield f"'teacher.cache' does nothing, since {NOT_LISTED}"
        return
    listed = ", ".join(map(repr, asked if not cache.enabled else tapping))
    if cache.features and not tapping:
        yield "'teacher.cache.features' keeps nothing, since no distiller compares features"
    elif not cache.enabled and asked:
        does = "does" if len(asked) == 1 else "do"
        yield f"the teacher's outputs are not kept, so {listed} of 'teacher.cache' {does} nothing"
    elif cache.enabled and tapping and not cache.features:
        compare = "compares" if len(tapping) == 1 else "compare"
        yield (
            f"the teacher runs beside the students, since {listed} {compare} features; teacher: {{cache: {{features: "
            "true}} keeps them"
        )


def _of_teacher(recipe: Recipe) -> Iterator[str]:
    spec = recipe.teacher
    if spec.precision != "auto" and all_onnx(spec) and recipe.quantize.taught_by != "student":
        yield "'teacher.precision' does nothing, since an ONNX model answers in the precision of its file"
    if spec.fit != FitSpec() and not any(member.trained for member in spec.members):
        yield "'teacher.fit' does nothing, since no teacher is trained here"
    if spec.combine != TeacherSpec().combine and len(spec.members) == 1:
        yield "'teacher.combine' does nothing, since there is one teacher"
    if len(spec.members) == 1 and spec.members[0].weight != MemberSpec().weight:
        yield "the 'weight' in 'teacher.members' does nothing, since there is one teacher"


def _of_transfer(spec: DistillSpec) -> Iterator[str]:
    """Report parameters that every round holds fixed, so that training never changes them."""
    if spec.transfer is None:
        return
    rounds, hold = spec.transfer.rounds_in(spec.fit.epochs), spec.transfer.hold
    if spec.transfer.rounds not in (rounds, TransferSpec().rounds):
        yield f"'distill.transfer' has {rounds} of {spec.transfer.rounds} rounds, since a round is an epoch at least"
    if hold > 1 - 1 / rounds:
        in_all = "one round" if rounds == 1 else f"{rounds} rounds"
        least = "more epochs" if spec.transfer.rounds > rounds else "more rounds"
        yield (
            f"'distill.transfer' holds some parameters in all of {in_all}, so they stay as they came; {least}, or a "
            "smaller 'hold', train them all"
        )


def faster(recipe: Recipe, site: Site, cpu: Collection[str]) -> Iterator[str]:
    """Report settings that would make this run faster, but change its results, so that KDQ does not choose them itself.

    Args:
        recipe: the recipe that KDQ runs.
        site: where it runs.
        cpu: instruction sets of the CPU.
    """
    spec = recipe.teacher
    open_to_it = spec.precision == "auto" and spec.cache.form != "fp32" and not all_onnx(spec)
    if site.device == "cpu" and "amx_bf16" in cpu and open_to_it:
        yield (
            "the teacher answers in fp32; on this CPU, which has AMX, teacher: {precision: bf16} makes its answers "
            "faster, and rounds them to 8 bits"
        )
