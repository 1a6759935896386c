"""`kdq watch` on a real version: its golden batch and its figures, then and now."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from kdq_core.errors import StageError
from kdq_core.recipe.spec import Gate, Recipe, Site, Use
from kdq_core.store.records import Artifact, EvaluationReport, Metric, TensorSpec
from kdq_flows.cli import app
from kdq_flows.watch import Tolerances, compared, watch


def metric(name: str, value: float, unit: str = "fraction", direction: str = "higher", **ends: float) -> Metric:
    return Metric.model_validate({"name": name, "value": value, "unit": unit, "direction": direction, **ends})


THEN = (
    metric("top1", 0.9),
    metric("flips", 1, "count", "lower"),
    metric("p50", 2.0, "ms", "lower", low=1.9, high=2.1),
    metric("speedup", 3.0, "ratio"),
    metric("samples", 10, "count", "neither"),
)


@pytest.mark.parametrize(
    ("now", "worse"),
    [
        ({}, []),
        ({"top1": 0.896}, []),
        ({"top1": 0.894}, ["top1"]),
        ({"top1": float("nan")}, ["top1"]),
        ({"top1": None}, ["top1"]),
        ({"flips": 2}, ["flips"]),
        ({"flips": 0}, []),
        ({"p50": 2.4}, []),
        ({"p50": 2.6}, ["p50"]),
        ({"speedup": 2.5}, []),
        ({"speedup": 2.0}, ["speedup"]),
        ({"samples": 2}, []),
    ],
)
def test_a_figure_is_worse_beyond_its_tolerance_only(now: dict[str, float | None], worse: list[str]) -> None:
    found = [
        one.model_copy(update={"value": now.get(one.name, one.value), "low": None})
        for one in THEN
        if now.get(one.name, 0.0) is not None
    ]
    rows = list(compared(THEN, found, Tolerances()))
    assert [row.what for row in rows if row.verdict == "worse"] == worse
    assert [row.what for row in rows if row.verdict == "told"] == ["samples"]


def test_times_whose_intervals_meet_are_not_worse() -> None:
    slow = metric("p50", 2.6, "ms", "lower", low=2.0, high=3.5)
    assert next(compared(THEN[2:3], [slow], Tolerances())).verdict == "ok"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home whose champion is a linear model of the digits."""
    from kdq_registry.promotion import promote
    from kdq_registry.registering import register

    folder = tmp_path_factory.mktemp("watched")
    site = Site(home=folder / "home", threads=1)
    shape = (-1, 1, 8, 8)
    artifact = Artifact(
        path="int8.onnx", baselines={}, example="example.safetensors", output_scales=(None,), weight_bits_used=8,
        inputs=(TensorSpec(name="input", dtype="float32", shape=shape),),
        outputs=(TensorSpec(name="logits", dtype="float32", shape=(-1, 10)),),
    )  # fmt: skip
    top1 = Metric(name="top1", value=0.05, unit="fraction", direction="higher")
    version = register(
        site, recipe=Recipe(name="digits", workload="digits", evaluate=(Use(use="quality"), Use(use="size")),
                            gates=(Gate(metric="top1", at_least=0.0),)),
        artifact_file=linear(folder / "linear.onnx"), artifact=artifact,
        report=EvaluationReport(models={"int8": (top1,)}), lineage={}, run_id=None,
        example={"input": np.random.default_rng(0).random((2, 1, 8, 8), dtype=np.float32)},
    )  # fmt: skip
    promote(site, "digits", version.version)
    return site.home


def linear(path: Path) -> Path:
    from onnx import TensorProto, helper, numpy_helper, save

    weight = np.random.default_rng(0).normal(size=(64, 10)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["input"], ["flat"]),
            helper.make_node("MatMul", ["flat", "weight"], ["logits"]),
        ],
        "linear",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 1, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])],
        [numpy_helper.from_array(weight, "weight")],
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path


@pytest.fixture
def site(home: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.setenv("KDQ_HOME", str(home))
    monkeypatch.setenv("KDQ_THREADS", "1")
    for old in (home / "watch").glob("*.json"):
        old.unlink()
    return Site(home=home, threads=1)


def test_a_first_look_measures_and_a_second_one_only_if_something_changed(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = watch(site, "digits@champion")
    assert first.measured
    assert {row.what: row.verdict for row in first.look.rows} == {"golden batch, logits": "ok", "top1": "ok"}
    assert {"top1", "bytes"} <= {one.name for one in first.look.metrics}
    assert not watch(site, "digits@champion").measured
    monkeypatch.setattr("kdq_flows.watch.cpu_name", lambda: "another CPU")
    again = watch(site, "digits@champion")
    assert again.measured
    assert list(again.changed) == ["cpu"]
    assert again.changed["cpu"][1] == "another CPU"
    assert {row.what for row in again.look.rows} >= {"golden batch, logits", "top1", "bytes"}


def test_what_is_worse_is_told_with_exit_code_1_until_it_is_accepted(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told(*words: str) -> tuple[int, str]:
        done = CliRunner().invoke(app, ["watch", "digits@champion", *words])
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return done.exit_code, done.output

    assert told()[0] == 0
    kept = site.home / "watch" / "digits@champion.json"
    record = json.loads(kept.read_text())
    for part in ("last", "good"):
        for one in record[part]["metrics"]:
            one["value"] = 0.99 if one["name"] == "top1" else one["value"]
    kept.write_text(json.dumps(record))
    monkeypatch.setattr("kdq_flows.watch.cpu_name", lambda: "another CPU")
    code, said = told()
    assert code == 1
    assert "digits@champion is worse than before: top1" in said
    code, said = told()
    assert (code, "nothing changed since" in said) == (1, True)
    assert told("--accept")[0] == 0
    assert told()[0] == 0
    assert told("--again")[0] == 0
    code, said = told("--json")
    assert json.loads(said)["worse"] == []


def test_a_runtime_that_answers_otherwise_is_worse(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    from kdq_registry import watch as registry

    real: Callable[..., dict[str, np.ndarray]] = registry.answers
    monkeypatch.setattr(registry, "answers", lambda *args: {name: v + 5 for name, v in real(*args).items()})
    found = watch(site, "digits@champion")
    assert [row.what for row in found.look.worse] == ["golden batch, logits"]
    assert found.look.worse[0].now == pytest.approx(5, abs=1e-4)


def test_a_changed_file_and_a_damaged_record_are_refused(site: Site) -> None:
    watch(site, "digits/1")
    kept = site.home / "watch" / "digits version 1.json"
    kept.write_text("{}")
    with pytest.raises(StageError) as caught:
        watch(site, "digits/1")
    assert str(caught.value) == (
        f"the record of the watch {str(kept)!r} cannot be read (Field required); remove it to begin anew"
    )
    file = next((site.home / "mlflow").rglob("model.onnx"))
    before = file.read_bytes()
    file.write_bytes(before + b" ")
    try:
        with pytest.raises(StageError, match=r"^version 1 of model 'digits' is not as registered: 'model.onnx' has"):
            watch(site, "digits/1")
    finally:
        file.write_bytes(before)
