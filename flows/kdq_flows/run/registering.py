"""The register stage: hands the exported file and its report to the registry room."""

from __future__ import annotations

from collections.abc import Mapping

from kdq_core.plan.gates import check_required
from kdq_core.plan.plan import Plan
from kdq_core.store.hashing import canonical, sha256_of
from kdq_core.store.records import Artifact, EvaluationReport, ModelVersion
from kdq_core.store.store import Entry


def register(plan: Plan, entries: Mapping[str, Entry], run_id: str | None) -> ModelVersion:
    """Register the int8 file of the `export` entry; the same bytes are never registered twice.

    Raises:
        StageError: a required gate of the recipe is not met.
    """
    from safetensors.numpy import load_file

    from kdq_registry.registering import register as register_model

    exported, evaluated = entries["export"], entries["evaluate"]
    artifact, report = exported.record, evaluated.record
    assert isinstance(artifact, Artifact)
    assert isinstance(report, EvaluationReport)
    check_required(plan.recipe.gates, report, artifact.operators)
    return register_model(
        plan.site,
        recipe=plan.recipe,
        artifact_file=exported.file(artifact.path),
        artifact=artifact,
        report=report,
        lineage=lineage(plan, entries),
        run_id=run_id,
        example=load_file(exported.file(artifact.example)),
    )


def lineage(plan: Plan, entries: Mapping[str, Entry]) -> dict[str, str]:
    """Digests of everything the file came from."""
    stages = {name: entry.digest for name, entry in entries.items() if name != "register"}
    data = str(plan.node("train_teacher").parts["data"])
    return stages | {"data": data, "recipe": sha256_of(canonical(plan.recipe.model_dump(mode="json")))}
