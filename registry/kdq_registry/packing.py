"""The folder of a version: MLflow's files, the report, the golden batch, outcomes by sample, and the seal over all."""

from __future__ import annotations

import importlib.metadata
import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdq_core.errors import StageError
from kdq_core.store.hashing import sha256_file
from kdq_registry.bom import bill
from kdq_registry.golden import answers, runtime_of, tolerances, write_golden
from kdq_registry.page import BILL, CARD, LOCK
from kdq_registry.seal import GOLDEN, MODEL, REPORT, SAMPLES, write_seal

if TYPE_CHECKING:
    import numpy as np
    from mlflow.entities import LoggedModel

    from kdq_core.recipe.spec import Recipe, Site
    from kdq_core.store.records import Artifact, EvaluationReport, TensorSpec

REQUIREMENTS = ("onnxruntime", "mlflow-skinny", "pandas")
"""Packages that loading the model as a pyfunc needs (tried in an empty environment)."""


@dataclass(frozen=True)
class Package:
    """All that becomes a version.

    Attributes:
        recipe: names the model, and holds the gates its promotion must meet.
        file: the ONNX file; KDQ registers it byte for byte.
        artifact: names, types and shapes of its inputs and outputs become the signature.
        report: the metrics of the file.
        lineage: digests of everything the file was made from; `data` is the fingerprint of the data.
        example: one batch, input name to array (dtype and shape of `artifact.inputs`); the golden batch.
        samples: what the file did on each sample of the test split `[N]`, by metric, such as 1 for a right answer.
        card: the model card in Markdown.
        lock: the lock of the run, if there is one.
    """

    recipe: Recipe
    file: Path
    artifact: Artifact
    report: EvaluationReport
    lineage: Mapping[str, str]
    example: Mapping[str, np.ndarray]
    samples: Mapping[str, np.ndarray] = field(default_factory=dict)
    card: str = ""
    lock: str | None = None


def pack(package: Package, logged: LoggedModel, folder: Path) -> None:
    """Write all files of a version but its seal.

    Raises:
        StageError: the file does not run in its runtime.
    """
    from safetensors.numpy import save_file

    _save(folder, package, logged)
    (folder / REPORT).write_text(package.report.model_dump_json(), encoding="utf-8")
    try:
        found = answers(runtime_of(package.recipe.target.use), package.file, package.example)
    except StageError as error:
        raise StageError(f"model {package.recipe.model_name!r} is not registered: {error}") from None
    write_golden(folder / GOLDEN, package.example, found)
    (folder / CARD).write_text(package.card, encoding="utf-8")
    parts = bill(package.recipe, package.artifact, package.report, package.lineage, sha256_file(package.file))
    (folder / BILL).write_text(parts, encoding="utf-8")
    if package.lock is not None:
        (folder / LOCK).write_text(package.lock, encoding="utf-8")
    if package.samples:
        save_file(dict(package.samples), folder / SAMPLES)


def seal(site: Site, package: Package, folder: Path) -> str:
    """Seal the files of a folder; gives the digest of the manifest."""
    from safetensors.numpy import load_file

    golden = load_file(folder / GOLDEN)
    outputs = {name.removeprefix("output/"): v for name, v in golden.items() if name.startswith("output/")}
    return write_seal(
        site,
        folder,
        name=package.recipe.model_name,
        parents={name: digest for name, digest in package.lineage.items() if name != "data"},
        data=package.lineage.get("data", ""),
        recipe=package.recipe.model_dump(mode="json"),
        runtime=runtime_of(package.recipe.target.use),
        gates=package.recipe.gates,
        tolerances=tolerances(package.artifact, outputs),
    )


def _save(path: Path, package: Package, logged: LoggedModel) -> None:
    """Write the MLflow model folder with the file's own bytes, because MLflow re-serialises the graph."""
    import onnx

    artifact = package.artifact
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # `import mlflow.onnx` warns of MLflow's own type hints
        import mlflow.onnx
        from mlflow.models import Model, ModelSignature

        mlflow.onnx.save_model(
            onnx.load(package.file),
            path,
            mlflow_model=Model(run_id=logged.source_run_id, model_id=logged.model_id, model_uuid=logged.model_id),
            signature=ModelSignature(inputs=_schema(artifact.inputs), outputs=_schema(artifact.outputs)),
            input_example=dict(package.example),
            pip_requirements=[f"{name}=={importlib.metadata.version(name)}" for name in REQUIREMENTS],
            onnx_execution_providers=["CPUExecutionProvider"],
            save_as_external_data=False,
        )
    shutil.copyfile(package.file, path / MODEL)


def _schema(tensors: Sequence[TensorSpec]) -> Any:
    import numpy as np
    from mlflow.types import Schema
    from mlflow.types import TensorSpec as MlflowTensor

    return Schema([MlflowTensor(np.dtype(tensor.dtype), tensor.shape, tensor.name) for tensor in tensors])
