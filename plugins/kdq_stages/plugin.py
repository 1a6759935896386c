"""The stages that come with KDQ, in the order in which they usually run."""

from collections.abc import Iterable

from kdq_core.api import PluginSpec, hookimpl


@hookimpl
def kdq_stages() -> Iterable[PluginSpec]:
    """List the stages by name; KDQ imports their modules when it plans a recipe."""
    return [
        PluginSpec(
            name="read_student",
            target="kdq_stages.read_student:ReadStudent",
            summary="reads a trained student from a checkpoint",
        ),
        PluginSpec(
            name="train_teacher",
            target="kdq_stages.train_teacher:TrainTeacher",
            summary="trains the recipe's teachers, or reads those that are trained already",
        ),
        PluginSpec(
            name="cache_teacher",
            target="kdq_stages.cache_teacher:CacheTeacher",
            summary="keeps what the teacher says of every training sample",
        ),
        PluginSpec(
            name="distill",
            target="kdq_stages.distill:Distill",
            summary="trains the student with the teacher's outputs",
        ),
        PluginSpec(
            name="place",
            target="kdq_stages.place:Placing",
            summary="measures which operators are slower in int8 here; they stay float",
        ),
        PluginSpec(
            name="quantize",
            target="kdq_stages.quantize:Quantize",
            summary="quantizes the student, with the teacher still teaching",
        ),
        PluginSpec(
            name="export",
            target="kdq_stages.export:Export",
            summary="writes the int8 file and its float companions",
        ),
        PluginSpec(
            name="evaluate",
            target="kdq_stages.evaluate:Evaluate",
            summary="measures those files in their runtime",
        ),
        PluginSpec(
            name="register",
            target="kdq_stages.register:Register",
            summary="registers the int8 file in MLflow",
        ),
    ]
