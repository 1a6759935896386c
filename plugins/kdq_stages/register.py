"""Register the int8 file as a version of a model in MLflow.

What: gives the registry the file, its report, the gates, and the digests of everything that the file was made from.
    KDQ never registers the same bytes twice. A manifest seals every file of the version, with KDQ_SIGNING_KEY signed.
Defaults: the model has the recipe's name; `register: {name: ...}` gives it another.
Limits: if a gate marked `required` is not met, the stage fails and registers nothing.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from kdq_core.api import Artifact, Asked, EvaluationReport, Needs, Port, Reads, Record, Section, Stage
from kdq_core.store.hashing import canonical, sha256_of
from kdq_core.store.records import ModelVersion
from kdq_core.work.shown import request_of
from kdq_core.work.slots import ARTIFACT, REPORT

if TYPE_CHECKING:
    from kdq_core.recipe.spec import Site
    from kdq_core.work.work import StageWork


class Register(Stage):
    """A version in the registry."""

    gives: ClassVar[str] = "version"
    record: ClassVar[type[Record]] = ModelVersion
    needs: ClassVar[Needs] = Needs(device="none")

    def inputs(self, asked: Asked) -> Mapping[str, Port]:  # noqa: ARG002
        """The int8 file and its evaluation report."""
        return {"artifact": ARTIFACT, "report": REPORT}

    def reads(self, asked: Asked, wired: frozenset[str]) -> Reads:  # noqa: ARG002
        """The model's name, its gates, and the address of the registry."""
        return Reads(
            sections=(Section(name="register"), Section(name="gates")),
            libraries=("mlflow",),
            others={"tracking": _registry(asked.site)},
            seeded=False,
            data=False,
            device=False,
        )

    def run(self, work: StageWork) -> Record:  # type: ignore[override]
        """Register the file as a version.

        Raises:
            StageError: a required gate of the recipe is not met.
        """
        from safetensors.numpy import load_file

        from kdq_core.plan.gates import check_required
        from kdq_core.store.predictions import outcomes_of
        from kdq_registry.registering import register

        exported, artifact = work.input("artifact"), work.record("artifact", Artifact)
        report, recipe = work.record("report", EvaluationReport), request_of(work).recipe
        check_required(work.section("gates"), report, artifact.operators)
        lineage = {
            **work.lineage,
            "data": request_of(work).workload.fingerprint(),
            "recipe": sha256_of(canonical(recipe.model_dump(mode="json"))),
        }
        return register(
            request_of(work).site,
            recipe=recipe,
            artifact_file=exported.file(artifact.path),
            artifact=artifact,
            report=report,
            lineage=lineage,
            run_id=work.tracking_run,
            example=load_file(exported.file(artifact.example)),
            samples=outcomes_of(work.input("report")),
            lock=work.lock,
        )

    def still_there(self, record: Record, site: Site) -> bool:
        """Whether the registry still has the version."""
        from kdq_registry.registering import version_exists

        assert isinstance(record, ModelVersion)
        return version_exists(record, site)


def _registry(site: Site) -> str:
    """The address of the registry. Homes that share a store must not share the versions of their own registries."""
    if site.store_address is not None and site.mlflow_uri.startswith("sqlite:"):
        return f"{site.mlflow_uri} on {platform.node()}"
    return site.mlflow_uri if site.tracking_uri else "the site's own"
