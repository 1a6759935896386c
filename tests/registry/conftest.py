"""A real, migrated SQLite database a test, and a small real ONNX model to register."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kdq_core.recipe.spec import DEFAULT_GATES, Gate, Recipe, Site
from kdq_core.store.records import Artifact, EvaluationReport, Metric, ModelVersion, TensorSpec
from kdq_registry.environment import client
from kdq_registry.registering import register


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with MLflow's schema; making one takes seconds, copying it nothing."""
    site = Site(home=tmp_path_factory.mktemp("migrated"))
    client(site)
    return site.home / "mlflow" / "mlflow.db"


@pytest.fixture
def site(tmp_path: Path, migrated: Path) -> Site:
    """A site whose home has a space in its name."""
    site = Site(home=tmp_path / "the home")
    (site.home / "mlflow").mkdir(parents=True)
    shutil.copyfile(migrated, site.home / "mlflow" / "mlflow.db")
    return site


@pytest.fixture
def recipe() -> Recipe:
    return Recipe(name="digits", workload="digits")


@pytest.fixture
def artifact() -> Artifact:
    return Artifact(
        path="int8.onnx",
        baselines={},
        example="example.safetensors",
        inputs=(TensorSpec(name="image", dtype="float32", shape=(-1, 4)),),
        outputs=(TensorSpec(name="logits", dtype="float32", shape=(-1, 3)),),
        output_scales=(None,),
        weight_bits_used=8,
    )


def metric(name: str, value: float) -> Metric:
    samples = 200 if name == "top1" else None
    return Metric(name=name, value=value, unit="fraction", direction="higher", samples=samples)


@pytest.fixture
def report_of() -> Callable[..., EvaluationReport]:
    """Makes a report: top-1 of the teacher is 0.98, that of the int8 model is the argument."""

    def make(top1: float = 0.97, coverage: float = 1.0, flips: float = 0.0) -> EvaluationReport:
        int8 = {"top1": top1, "coverage_macs": coverage, "parity_flips": flips, "bytes": 1234.0}
        speedup = Metric(name="speedup", value=1.5, unit="ratio", direction="higher", low=1.4, high=1.6)
        return EvaluationReport(
            models={
                "teacher": (metric("top1", 0.98),),
                "int8": (*(metric(name, value) for name, value in int8.items()), speedup),
            }
        )

    return make


@pytest.fixture
def onnx_file(tmp_path: Path) -> Callable[[int], Path]:
    """Writes a linear model with weights of the given seed; other seeds, other bytes."""

    def write(seed: int = 0) -> Path:
        from onnx import TensorProto, helper, numpy_helper, save

        weight = np.random.default_rng(seed).normal(size=(4, 3)).astype(np.float32)
        graph = helper.make_graph(
            [helper.make_node("MatMul", ["image", "weight"], ["logits"])],
            "linear",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 4])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
            [numpy_helper.from_array(weight, "weight")],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
        path = tmp_path / f"linear-{seed}.onnx"
        save(model, path)
        return path

    return write


@pytest.fixture
def registered(
    site: Site,
    recipe: Recipe,
    artifact: Artifact,
    report_of: Callable[..., EvaluationReport],
    onnx_file: Callable[[int], Path],
) -> Callable[..., ModelVersion]:
    """Registers the model of a seed, with a report as `report_of` makes it; `gates` stand in for the recipe's."""

    def make(
        seed: int = 0,
        gates: tuple[Gate, ...] = DEFAULT_GATES,
        samples: dict[str, np.ndarray] | None = None,
        data: str = "b" * 64,
        site: Site = site,
        **figures: float,
    ) -> ModelVersion:
        return register(
            site,
            recipe=recipe.model_copy(update={"gates": gates}),
            artifact_file=onnx_file(seed),
            artifact=artifact,
            report=report_of(**figures),
            lineage={"teacher": "a" * 64, "data": data},
            run_id=None,
            example={one.name: np.ones((2, *one.shape[1:]), np.float32) for one in artifact.inputs},
            samples=samples,
        )

    return make


@pytest.fixture
def key(tmp_path: Path) -> Path:
    """The file of an Ed25519 key."""
    path = tmp_path / "key.pem"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", path], check=True, capture_output=True)
    return path
