"""The comparison with the peers: which cases it has, how it resumes, and what its table says. No peer is needed."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from benchmarks.peers import comparison
from benchmarks.peers.cases import BITS, RECIPES, Case, cases, steps, teacher_of
from benchmarks.peers.comparison import Comparison
from benchmarks.peers.environments import pins
from benchmarks.peers.kdq_peer import RECIPES as FOLDER
from benchmarks.peers.kdq_peer import variant, written
from benchmarks.peers.lanes import side_by_side
from benchmarks.peers.launch import launch
from benchmarks.peers.measuring import flips, ties
from benchmarks.peers.nets import NETS, Budget
from benchmarks.peers.results import Record, Results, case_of
from benchmarks.peers.rows import best, mean, table
from benchmarks.peers.table import page
from kdq_core.recipe.spec import Recipe

PTQ = Case("resnet8", "ort", "ptq", "W8A8", False, 0)
OURS = Case("resnet8", "kdq", "ptq", "W8A8", False, 0)


def test_each_case_stands_on_an_earlier_one_and_has_a_name_of_its_own() -> None:
    every = cases(list(NETS), [0, 1], list(RECIPES))
    for number, case in enumerate(every):
        assert case.stands_on() in {None, *every[:number]}
    assert len({case.name for case in every}) == len(every)
    assert {case.peer for case in every} == {*RECIPES, "float", "teacher"}
    asked = {(case.bits, case.taught, case.method) for case in every if case.peer in ("kdq", "torchao")}
    assert {(b, t, m) for b in BITS for t in (True, False) for m in ("ptq", "qat")} <= asked
    assert {case.peer for case in steps(["resnet8"], list(RECIPES))} == {"kdq", "torchao", "nncf", "modelopt"}


def test_two_nets_of_one_teacher_train_it_once_and_only_what_is_asked_for_is_listed() -> None:
    teacher, *others = cases(["resnet8", "depthwise"], [0], ["torchao"], ["W4A4"])
    assert teacher.name == "resnet8-teacher-teacher-float-alone-0"
    assert {(case.peer, case.bits) for case in others} == {("float", "float"), ("torchao", "W4A4")}
    assert not any(case.openvino for case in cases(["resnet8"], [0], ["kdq", "ort"]))
    assert any(case.peer == "kdq" and case.openvino for case in cases(["resnet8"], [0], ["kdq", "nncf"]))


def test_lanes_wait_for_what_a_case_stands_on_and_for_the_home_of_kdq() -> None:
    every = cases(["resnet8"], [0], ["kdq", "ort"])
    done: set[Case] = set()
    running: set[Case] = set()

    def solve(case: Case) -> None:
        assert case.stands_on() in {None, *done}
        assert case.home is None or case.home not in {other.home for other in running}
        running.add(case)
        time.sleep(0.001)
        running.remove(case)
        done.add(case)

    side_by_side(solve, every[::-1], 3)  # against the order of the list, so that lanes must wait
    assert done == set(every)


@pytest.mark.parametrize("net", list(NETS))
def test_the_recipes_of_kdq_are_valid_and_train_as_the_peers_do(net: str) -> None:
    text = (FOLDER / f"{net}.yaml").read_text(encoding="utf-8")
    whole = Recipe.model_validate(yaml.safe_load(text))
    ours = NETS[net]
    assert (whole.workload.use, whole.workload.options) == (ours.workload, dict(ours.options))
    assert whole.teacher.members[0].file == f"teachers/{ours.teacher}.onnx"
    fit = whole.distill.fit
    assert (fit.epochs, fit.batch_size, fit.learning_rate) == (ours.epochs[0], ours.batch, ours.rate)
    assert (fit.optimizer, fit.weight_decay) == ("sgd" if ours.sgd else "adamw", ours.decay)
    assert (whole.quantize.fit.epochs, whole.distill.options["alpha"]) == (ours.epochs[1], ours.alpha)
    assert written(net) == len([line for line in text.splitlines() if line and not line.startswith("#")])


@pytest.mark.parametrize("case", [case for case in cases(["resnet8"], [3], ["kdq", "nncf"]) if case.peer == "kdq"])
def test_each_variant_of_a_recipe_is_valid_and_differs_in_what_its_case_names(case: Case) -> None:
    recipe = Recipe.model_validate(variant(case, Budget(tiny=True)))
    assert recipe.seed == case.seed
    assert (recipe.distill.options["alpha"] > 0) == case.taught
    assert (recipe.quantize.use != "static") == (case.method == "qat")
    if case.method in ("ptq", "qat"):
        assert (recipe.quantize.weights, recipe.quantize.activations) == case.widths
    assert recipe.target.use == ("openvino" if case.openvino else "onnxruntime-cpu")
    assert (recipe.distill.fit.epochs, recipe.workload.options["train_images"]) == (1, Budget().samples)


def test_all_that_is_installed_is_pinned() -> None:
    assert {*RECIPES} - {"kdq", "ort"} | {"base"} == set(pins())
    assert [name for names in pins().values() for name in names if "==" not in name] == []


def test_a_process_is_measured_and_ends_at_its_limit(tmp_path: Path) -> None:
    code = "import time; x = bytearray(60_000_000); t = time.process_time()\nwhile time.process_time() - t < 0.2: pass"
    ended = launch([sys.executable, "-c", code], tmp_path / "log", 60, os.environ, tmp_path)
    assert (ended.code, ended.failure) == (0, "")
    assert ended.cpu >= 0.2
    assert ended.peak >= 60_000_000
    late = launch([sys.executable, "-c", "import time; time.sleep(60)"], tmp_path / "log", 0.2, os.environ, tmp_path)
    assert late.late
    assert late.failure.startswith("took longer than ")
    broken = launch([sys.executable, "-c", "raise ValueError('no')"], tmp_path / "log", 60, os.environ, tmp_path)
    assert broken.failure == "exit status 1: ValueError: no"


def test_a_finished_case_is_known_until_what_it_depends_on_changes(tmp_path: Path) -> None:
    Results(tmp_path / "results.json").put(PTQ, "a", quality=90.0)
    later = Results(tmp_path / "results.json")
    assert later.known(PTQ, "b") is None
    found = later.known(PTQ, "a")
    assert found is not None
    assert case_of(found) == PTQ
    assert later.put(PTQ, "a", latency={})["quality"] == 90.0
    assert "quality" not in later.put(PTQ, "b", refused="no")


def test_a_key_holds_the_case_its_budget_and_the_key_of_what_it_stands_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison, "kdq_sources", list)
    whole, tiny = (Comparison(tmp_path, tmp_path, None, Budget(tiny=tiny), 60) for tiny in (False, True))
    keys = {whole.key(PTQ), whole.key(OURS), whole.key(of_seed(PTQ, 1)), tiny.key(PTQ)}
    assert len(keys) == 4
    again = Comparison(tmp_path, tmp_path, None, Budget(), 60)
    assert again.key(PTQ) == whole.key(PTQ)
    again.keys = {Case("resnet8", "float", "float", "float", False, 0).name: "another float student"}
    assert again.key(PTQ) != whole.key(PTQ)


def test_a_page_of_this_machine_spares_its_cases_and_trains_a_student_again_that_a_new_case_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison, "kdq_sources", list)
    student = PTQ.stands_on()
    assert student is not None
    teacher, other = teacher_of("resnet8"), Case("resnet8", "ort", "ptq", "W4A8", False, 0)
    first = Comparison(tmp_path / "a", tmp_path, None, Budget(), 60)
    for case in (student, PTQ):
        first.results.put(case, first.key(case), quality=90.0)
    elsewhere = record(other, machine="Machine: another") | {"key": first.key(other)}
    file = tmp_path / "page.json"
    file.write_text(json.dumps([*first.results.records.values(), elsewhere]))

    later = Comparison(tmp_path / "b", tmp_path, None, Budget(), 60, known=file)
    made: list[Case] = []
    monkeypatch.setattr(later, "_made", lambda case: made.append(case) or {"quality": 91.0})
    later.asked = (student, PTQ)
    for case in later.asked:
        later.solve(case)
    assert made == []
    later.asked = (teacher, student, PTQ, other)
    for case in later.asked:
        later.solve(case)
    assert made == [teacher, student, other]


def test_a_refusal_holds_for_other_seeds_and_teachers_while_its_key_is_current(tmp_path: Path) -> None:
    results = Results(tmp_path / "results.json")
    results.put(PTQ, "a", refused="cannot")
    other = Case("resnet8", "ort", "ptq", "W8A8", True, 2)
    found = results.refusal(other, {PTQ.name: "a"})
    assert found is not None
    assert found["refused"] == "cannot"
    assert results.refusal(other, {PTQ.name: "b"}) is None
    assert results.refusal(Case("resnet8", "ort", "ptq", "W4A8", True, 2), {PTQ.name: "a"}) is None
    granted = of_seed(PTQ, 1)
    results.put(granted, "a", quality=90.0)
    assert results.refusal(other, {PTQ.name: "a", granted.name: "a"}) is None


def test_ties_and_flips_are_counted_apart() -> None:
    file = np.array([[1.0, 2.0, 0.0], [2.0, 2.0, 0.0], [0.0, 1.0, 2.0], [3.0, 1.0, 0.0]])
    simulated = np.array([[2.0, 1.0, 0.0], [1.0, 2.0, 0.0], [0.0, 2.0, 2.0], [3.0, 1.0, 0.0]])
    assert ties(file).tolist() == [False, True, False, False]
    assert flips(file, simulated) == 1


def record(case: Case, **facts: Any) -> Record:
    return {**case.__dict__, "key": "a", **facts}


def of_seed(case: Case, seed: int) -> Case:
    return Case(case.net, case.peer, case.recipe, case.bits, case.taught, seed)


def records() -> list[Record]:
    plain = {"cpu": 100.0, "peak": 3e8, "quality": 89.5}
    made = {
        "cpu": 10.0,
        "peak": 2e8,
        "lines": 14,
        "bytes": 122_000,
        "stripped": 98_000,
        "int8": 1.0,
        "flips": 1,
        "ties": 2,
    }
    at = [{"batch": batch, "ratio": 1.5, "low": 1.4, "high": 1.6, "verdict": "faster"} for batch in (1, 32)]
    found = [record(Case("resnet8", "teacher", "teacher", "float", False, 0), quality=90.79)]
    for seed, (theirs, ours) in enumerate(((89.0, 90.0), (89.5, 90.0), (89.3, 90.3))):
        found.append(record(Case("resnet8", "float", "float", "float", False, seed), **plain))
        found.append(record(of_seed(PTQ, seed), quality=theirs, simulated=theirs + 0.01, **made))
        found.append(record(of_seed(OURS, seed), quality=ours, student=90.2, **made))
    found[2]["latency"] = {"batches": at}
    return found


def test_a_row_has_means_differences_and_costs_to_the_file() -> None:
    rows = {(row[0], row[1]): row for row in table(records())}
    assert list(rows) == [("float", "float"), ("kdq", "ptq"), ("ort", "ptq")]
    assert rows["ort", "ptq"] == [
        "ort", "ptq", "W8A8", "no", "3", "89.50 ± 0.00", "89.27 ± 0.62", "-0.83 ± 0.72", "89.28 ± 0.62", "1/1/1",
        "2/2/2", "100%", "122", "98", "1.50 (1.40-1.60) faster", "1.50 (1.40-1.60) faster", "110", "300", "14",
    ]  # fmt: skip
    assert rows["kdq", "ptq"][5:8] == ["90.20 ± 0.00", "90.10 ± 0.43", "-"]
    assert best(records()) == [
        ["W8A8", "no", "kdq ptq", "90.10 ± 0.43", "ort ptq", "89.27 ± 0.62", "-0.83 ± 0.72"]
    ]  # fmt: skip
    assert mean([90.0]) == "90.00"


def test_the_page_tells_each_refusal_once_with_its_message() -> None:
    refused = Case("resnet8", "inc", "qat", "W8A8", False, 0)
    step = record(
        Case("resnet8", "kdq", "step", "W8A8", False, 0),
        step={"float_ms": 80.0, "qat_ms": 104.0, "ratio": 1.3, "low": 1.25, "high": 1.34},
    )
    told = [record(of_seed(refused, seed), refused="no | quantizer") for seed in (0, 1)]
    text = page([*records(), *told, step], Budget())
    assert text.count("| resnet8 | inc | qat | W8A8 | no \\| quantizer |") == 1
    assert "| inc | qat | W8A8 | no | 2 | 89.50 ± 0.00 | refuses |" in text
    assert "15 epochs in float, 3 quantized; the teacher 10 (90.79)." in text
    assert "| ResNet-8, Fashion-MNIST | kdq | 80.0 | 104.0 | 1.30 (1.25-1.34) |" in text
    assert "the figures mean nothing" not in text
    assert "the figures mean nothing" in page(records(), Budget(tiny=True))
