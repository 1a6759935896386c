"""Write the teacher's outputs for every training sample to disk, in several augmented views.

What: runs the teacher once over each view and writes its logits, and the features that distillers compare, as
    memory-mapped files. Every student and the quantized student read them. After a kill, KDQ resumes the writing.
Defaults: four views in fp16; `teacher.cache` changes that. KDQ leaves the stage out if `teacher.cache.enabled` is
    false, or if a distiller compares features and `teacher.cache.features` is false.
Limits: the workload must be able to repeat a view: the same view number gives the same augmented samples.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from kdq_core.api import Asked, PluginError, Port, Reads, Record, Section, Stage, TeacherOutputs
from kdq_core.plan.sections import taps_of
from kdq_core.plugins.views import takes_views
from kdq_core.reading.teachers import check_fused
from kdq_core.work.shown import request_of
from kdq_core.work.slots import MEMBERS, TEACHER
from kdq_stages.train_teacher import workload_of_teachers

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kdq_core.tensors import Batch, Outputs
    from kdq_core.work.checking import CheckWork
    from kdq_core.work.work import StageWork


class CacheTeacher(Stage):
    """The teacher's outputs on disk."""

    gives: ClassVar[str] = "outputs"
    record: ClassVar[type[Record]] = TeacherOutputs

    def wanted(self, asked: Asked) -> bool:
        """Whether the recipe enables the cache, and the cache will hold all that the distillers read.

        Raises:
            RecipeError: the recipe asks for the mean over cached views, but caches none.
            PluginError: the `batches` of the workload takes no `view`.
        """
        cache, features = asked.recipe.teacher.cache, bool(asked.tapping)
        check_fused(asked.recipe, features=features)
        if not cache.enabled or (features and not cache.features):
            return False
        if not takes_views(asked.workload):
            raise PluginError(
                f"workload {asked.recipe.workload.use!r} cannot be asked for the same view of a sample twice, so a "
                "teacher's outputs cannot be kept: its batches() takes no 'view'; add `view: View | None = None`, "
                "which decides the augmentation, or write teacher: {cache: {enabled: false}}"
            )
        return True

    def inputs(self, asked: Asked) -> Mapping[str, Port]:  # noqa: ARG002
        """The teacher."""
        return {"teacher": TEACHER}

    def reads(self, asked: Asked, wired: frozenset[str]) -> Reads:  # noqa: ARG002
        """The fields that decide the cached values; `taps: auto` adds the student's, whose shapes decide the pairs."""
        fields = ("cache.views", "cache.seed", "cache.form", "cache.top_k", "precision")
        sections = [workload_of_teachers(asked), Section(name="teacher", only=fields)]
        if asked.tapping:
            taps = taps_of(asked.tapping)
            sections[0] = Section(name="workload") if "auto" in taps else sections[0]
            sections += [
                Section(name="teacher", only=("cache.features",), held={"cache": {"features": taps}}),
                Section(name="student", only=("factory",)),
            ]
        limit = Section(name="teacher", only=("cache.limit_gb", "cache.enabled"), held={})  # changes no cached value
        return Reads(sections=(*sections, limit, MEMBERS), plugins=("workload",), seeded=False)

    def check(self, work: CheckWork) -> None:  # type: ignore[override]
        """Refuse teacher outputs that the recipe's cache settings cannot hold."""
        from kdq_core.teachers.encoding import layout
        from kdq_core.work.rehearsal import first_samples, teacher_of

        if work.has("teacher"):
            layout(teacher_of(work)(first_samples(work)), work.section("teacher").cache)

    def run(self, work: StageWork) -> Record:  # type: ignore[override]
        """Run the teacher over every view; after a kill, resume from the rows that were written."""
        from kdq_core.teachers.build import build_outputs
        from kdq_core.training.rows import to_device
        from kdq_core.work.data import EVALUATION_BATCH, view_of
        from kdq_core.work.teaching import answers_in_half, online_teacher, tapped_paths

        spec, workload, device = work.section("teacher").cache, work.workload, work.accelerator().device
        half = answers_in_half(work, device, exact=spec.form == "fp32")
        teacher = online_teacher(work, device, half=half)
        paths = tapped_paths(work, teacher, device) if request_of(work).tapping else ()
        samples, folder = workload.samples("train"), work.scratch / "outputs"

        def batches(number: int) -> Iterable[Batch]:
            for batch in workload.batches("train", batch_size=EVALUATION_BATCH, view=view_of(work, number)):
                yield replace(batch, view=number)

        def ask(batch: Batch) -> Outputs:
            return teacher(to_device(batch, device), paths)

        def tell(done: int, total: int) -> None:
            work.progress(done, total, "samples")

        build = build_outputs(ask, batches, spec, samples=samples, folder=folder, on_batch=tell)
        for tensor in build.tensors:
            shutil.move(folder / tensor.path, work.draft / tensor.path)
        return TeacherOutputs(
            teacher=work.input("teacher").digest,
            data=workload.fingerprint(),
            seed=spec.seed,
            views=spec.views,
            samples=samples,
            classes=build.classes,
            tasks=build.tasks,
            tensors=build.tensors,
        )
