"""The bill of materials of a version: CycloneDX 1.6 (ECMA-424) for machine learning, as JSON.

It names the model with its digest, figures and tensors, the data by its fingerprint, and the packages that decide
results. It has neither a time nor a serial number, so that the same version has the same bill.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from kdq_registry.seal import locked

if TYPE_CHECKING:
    from kdq_core.recipe.spec import Recipe
    from kdq_core.store.records import Artifact, EvaluationReport, TensorSpec

SPECIFICATION = "1.6"


def bill(recipe: Recipe, artifact: Artifact, report: EvaluationReport, lineage: Mapping[str, str], sha256: str) -> str:
    """Write the bill of a version.

    Args:
        recipe: names model, workload and data.
        artifact: inputs and outputs of the file.
        report: its figures.
        lineage: digests of everything the file was made from; `data` is the fingerprint of the data.
        sha256: digest of the ONNX file.
    """
    data = lineage.get("data", "")
    libraries = [
        {"type": "library", "bom-ref": f"pkg:pypi/{name}@{version}", "name": name, "version": version,
         "purl": f"pkg:pypi/{name}@{version}"}
        for name, version in locked().items()
    ]  # fmt: skip
    card: dict[str, Any] = {
        "modelParameters": {
            "task": recipe.workload.use,
            "datasets": [{"ref": "data"}],
            "inputs": [{"format": _format(one)} for one in artifact.inputs],
            "outputs": [{"format": _format(one)} for one in artifact.outputs],
        },
        "quantitativeAnalysis": {"performanceMetrics": list(_metrics(report))},
        "properties": [{"name": f"kdq:parent:{name}", "value": digest} for name, digest in sorted(lineage.items())],
    }
    model = {
        "type": "machine-learning-model", "bom-ref": "model", "name": recipe.model_name, "version": sha256[:12],
        "hashes": [{"alg": "SHA-256", "content": sha256}], "modelCard": card,
    }  # fmt: skip
    components: list[dict[str, Any]] = [
        {"type": "data", "bom-ref": "data", "name": f"data of {recipe.name}", "version": data[:12] or "unknown",
         "data": [{"type": "dataset", "name": recipe.workload.use}]},
        *libraries,
    ]  # fmt: skip
    document = {
        "$schema": f"http://cyclonedx.org/schema/bom-{SPECIFICATION}.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": SPECIFICATION,
        "version": 1,
        "metadata": {"component": model},
        "components": components,
        "dependencies": [{"ref": "model", "dependsOn": [str(one["bom-ref"]) for one in components]}],
    }
    return json.dumps(document, indent=1, sort_keys=True, ensure_ascii=True, allow_nan=False) + "\n"


def _format(tensor: TensorSpec) -> str:
    return f"{tensor.name}: {tensor.dtype} {list(tensor.shape)}"


def _metrics(report: EvaluationReport) -> Iterator[dict[str, Any]]:
    for metric in report.models.get("int8", ()):
        found: dict[str, Any] = {"type": metric.name, "value": f"{metric.value:.9g}", "slice": "test split"}
        if metric.low is not None and metric.high is not None and math.isfinite(metric.low + metric.high):
            found["confidenceInterval"] = {"lowerBound": f"{metric.low:.9g}", "upperBound": f"{metric.high:.9g}"}
        yield found
