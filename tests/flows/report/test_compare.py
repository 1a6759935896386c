"""Runs side by side."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import save_file

from kdq_core.errors import RecipeError
from kdq_core.plan.view import RunView
from kdq_core.recipe.spec import Site
from kdq_core.store.predictions import write_array
from kdq_core.store.records import Anomaly, EvaluationReport, FileRef, Metric, StoredPredictions
from kdq_core.store.store import Entry
from kdq_flows.cli.report import _rows
from kdq_flows.report import kept
from kdq_flows.report.compare import compare

TRUTH = np.zeros(40, np.int64)


def with_files(view: RunView, name: str) -> RunView:
    """The view, with files of the export: the baselines of all runs are the same."""
    entry = view.entries["export"]
    own = {"student.onnx": "a" * 64, "teacher.onnx": "b" * 64, "int8.onnx": name[-1] * 64}
    files = tuple(FileRef(path=path, sha256=sha256, bytes=1) for path, sha256 in own.items())
    manifest = entry.manifest.model_copy(update={"files": files})
    return RunView(view.plan, {**view.entries, "export": Entry(entry.folder, manifest)})


@pytest.fixture
def run(records: dict[str, Any], view_of: Any, tmp_path: Path) -> Callable[..., tuple[str, RunView]]:
    """Makes a run whose int8 file answers the first `wrong` of 40 samples wrong, and those of `also`."""

    def made(name: str, wrong: int, also: int = 0, truth: np.ndarray = TRUTH) -> tuple[str, RunView]:
        folder = tmp_path / name
        (folder / "predictions").mkdir(parents=True)
        stored = []
        for model in ("student", "int8"):
            answers = np.zeros(40, int)
            if model == "int8":
                answers[:wrong] = 1
                answers[len(answers) - also :] = 1
            array = write_array(folder, "logits", f"predictions/{model}.bin", np.float32(np.eye(2)[answers]))
            stored.append(
                StoredPredictions(
                    model=model, split="test", output="logits", path=array.path, dtype=array.dtype, shape=array.shape
                )
            )
        labels = (write_array(folder, "logits", "predictions/labels.bin", truth),)
        report: EvaluationReport = records["evaluate"]
        changed = report.model_copy(update={"predictions": tuple(stored), "labels": labels, "shown": None})
        view = with_files(view_of(**{**records, "evaluate": changed}), name)
        entry = view.entries["evaluate"]
        return name, RunView(view.plan, {**view.entries, "evaluate": Entry(folder, entry.manifest)})

    return made


def test_the_paired_test_is_mcnemars_on_the_samples_of_both(run: Any) -> None:
    found = compare([run("x-1", 0, 2), run("x-2", 9, 0)])
    assert found.frame["run"].tolist() == ["x-1", "x-1", "x-1", "x-2"]
    last = found.frame.iloc[-1]
    assert last["paired_difference"] == pytest.approx(-7 / 40)
    assert last["paired_p"] == pytest.approx(2 * (1 + 11 + 55) / 2**11)  # 9 lost and 2 gained: two-sided binomial
    assert last["paired_low"] < -7 / 40 < last["paired_high"] < 0.01
    assert found.frame["paired_p"].isna().tolist() == [True, True, True, False]


def test_a_file_that_runs_share_counts_once_and_the_front_is_marked(run: Any) -> None:
    found = compare([run("x-1", 0), run("x-2", 9)])
    assert found.notes == (
        "the teacher of x-2 is the teacher of x-1: the same file",
        "the float student of x-2 is the float student of x-1: the same file",
    )
    front = dict(zip(found.frame["model"], found.frame["front"]))
    assert front == {"teacher": True, "float student": False, "int8 student": True}


def test_other_samples_are_not_paired_and_the_reason_is_told(run: Any) -> None:
    found = compare([run("x-1", 0), run("x-2", 9, truth=np.eye(40, dtype=np.int64)[0])])
    assert "paired_p" not in found.frame
    assert found.notes[-1] == "x-2 against x-1: no paired test, because the runs have other test samples"


def test_without_classes_the_paired_bootstrap_compares_what_was_kept_of_each_sample(run: Any) -> None:
    def numbers(name: str, errors: np.ndarray, kept: bool = True) -> tuple[str, RunView]:
        _, view = run(name, 0)
        entry = view.entries["evaluate"]
        found = {
            slot: (Metric(name="mae", value=float(errors.mean()), unit="of the label", direction="lower"),)
            for slot in ("student", "int8")
        }
        path = "files/quality/int8/outcomes.safetensors"
        files = (FileRef(path=path, sha256="0" * 64, bytes=1),) if kept else ()
        (entry.folder / path).parent.mkdir(parents=True)
        save_file({"mae": errors.astype(np.float32)}, entry.folder / path)
        record = entry.record.model_copy(update={"models": found, "labels": ()})
        manifest = entry.manifest.model_copy(update={"record": record, "files": files})
        return name, RunView(view.plan, {**view.entries, "evaluate": Entry(entry.folder, manifest)})

    errors = np.random.default_rng(0).random(40)
    found = compare([numbers("x-1", errors), numbers("x-2", errors + 0.25), numbers("x-3", errors, kept=False)])
    row = found.frame[found.frame["run"] == "x-2"].iloc[-1]
    assert row["paired_difference"] == pytest.approx(0.25)
    assert (row["paired_low"], row["paired_high"]) == (pytest.approx(0.25), pytest.approx(0.25))  # each sample alike
    assert "paired_p" not in found.frame
    assert _rows(found)[-2]["paired"] == "+0.25 (0.25 to 0.25)"
    assert found.notes[-1] == "x-3 against x-1: no paired test, because no evaluator kept 'mae' of each test sample"
    fewer = compare([numbers("x-4", errors), numbers("x-5", errors[:39])])
    assert fewer.notes[-1] == "x-5 against x-4: no paired test, because the runs have other test samples"


def test_a_run_whose_models_cannot_be_compared_is_named_and_not_tested(run: Any) -> None:
    odd = Anomaly(rule="student top1 on 'test'", value=0.1, bound=0.83, model="student", note="mend the test split")
    name, view = run("x-2", 9)
    entry = view.entries["evaluate"]
    manifest = entry.manifest.model_copy(update={"record": entry.record.model_copy(update={"anomalies": (odd,)})})
    found = compare(
        [run("x-1", 0), (name, RunView(view.plan, {**view.entries, "evaluate": Entry(entry.folder, manifest)}))]
    )
    assert (
        "the models of x-2 cannot be compared: student top1 on 'test' is 0.1, bound 0.83; mend the test split"
        in found.notes
    )
    assert (
        found.notes[-1] == "x-2 against x-1: no paired test, because the models of one of the runs cannot be compared"
    )
    assert "paired_p" not in found.frame


def test_a_run_without_measurements_is_an_error(run: Any, view_of: Any) -> None:
    with pytest.raises(RecipeError) as caught:
        compare([run("x-1", 0), ("x-2", view_of())])
    assert str(caught.value) == (
        "run 'x-2' has no results of 'evaluate': it did not get so far, or the store lost them or found them damaged; "
        "run its recipe again"
    )
    plan = view_of().plan
    without = plan.model_copy(update={"nodes": tuple(node for node in plan.nodes if node.gives != "report")})
    with pytest.raises(RecipeError) as caught:
        compare([run("x-3", 0), ("x-2", RunView(without, {}))])
    assert str(caught.value) == (
        "run 'x-2' measured no int8 file beside a float student, so there is nothing to compare; name a run whose "
        "recipe lists the stages 'export' and 'evaluate'"
    )


def test_the_command_prints_a_table_and_writes_all_metrics(
    run: Any, record_of: Any, call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    views = dict([run("x-1", 0, 2), run("x-2", 9)])
    for name, view in views.items():
        kept.keep(Site(home=tmp_path / "home"), record_of(view, name))
    monkeypatch.setattr(kept.RunRecord, "view", lambda self, _store: views[self.result.run])
    monkeypatch.setenv("COLUMNS", "200")
    code, out, err = call("compare", "x-1", "x-2", "--csv", "all.csv", "--parquet", "all.parquet")
    assert (code, err) == (0, "")
    assert "-17.50 points (-32." in out
    assert "Models of 2 runs" in out
    for frame in (pd.read_csv(tmp_path / "all.csv"), pd.read_parquet(tmp_path / "all.parquet")):
        assert frame["bytes"].tolist() == [9e5, 4e5, 1e5, 1e5]
    code, out, _ = call("compare", "x-1", "x-2", "--json")
    assert [row["model"] for row in json.loads(out)] == ["teacher", "float student", "int8 student", "int8 student"]
    assert call("compare", "x-1", "x-2", "--csv", "No/all.csv")[::2] == (
        2, "error: 'No/all.csv' cannot be written: cannot save file into a non-existent directory: 'No'\n"
    )  # fmt: skip
    code, _, err = call("compare", "x-3")
    assert (code, err.partition(";")[0]) == (2, "error: no run named 'x-3'")
