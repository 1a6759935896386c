"""`kdq validate`, `kdq plan` and `kdq synergy` of a recipe with branches; nothing runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kdq_flows.cli.studies import show_branches
from kdq_flows.facts.result import RunResult
from kdq_flows.facts.study import BranchFacts, SelectedFacts

RECIPE = "name: x\nworkload: digits\nmatrix: {over: {quantize.use: [lsq, static], quantize.weights: [8, 4]}}\n"
NAMES = ["use=lsq,weights=8", "use=lsq,weights=4", "use=static,weights=8", "use=static,weights=4"]


@pytest.fixture(autouse=True)
def recipe(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(RECIPE)


def test_validate_tells_the_branches_and_every_plugin_that_one_names(call: Any) -> None:
    code, out, err = call("validate", "r.yaml")
    assert (code, err) == (0, "")
    assert " ".join(out.split()).startswith("r.yaml is valid: 4 branches; workload digits; distiller logit-kd; ")
    assert "quantizers lsq, static;" in " ".join(out.split())
    (row,) = json.loads(call("validate", "r.yaml", "--json")[1])
    assert row["branches"] == NAMES


def test_plan_shows_a_shared_stage_once_with_the_number_of_branches_that_it_serves(call: Any) -> None:
    code, out, _ = call("plan", "r.yaml", "--json")
    rows = json.loads(out)
    assert code == 0
    assert [(row["stage"], row["branches"]) for row in rows[:4]] == [
        (name, NAMES) for name in ("train_teacher", "cache_teacher", "distill", "place")
    ]
    assert [row["branches"] for row in rows if row["stage"] == "export"] == [[name] for name in NAMES]
    assert {row["state"] for row in rows} == {"run"}
    shown = call("plan", "r.yaml")[1]
    assert "4 branches, 20 stages" in shown


def test_plan_draws_the_graph_for_mermaid(call: Any) -> None:
    code, out, _ = call("plan", "r.yaml", "--mermaid")
    lines = out.splitlines()
    assert (code, lines[0]) == (0, "graph LR")
    assert '  n0["train_teacher<br/>4 branches"]' in lines
    assert f'  n4["quantize<br/>{NAMES[0]}"]' in lines
    assert "  n2 --> n4" in lines
    assert len([line for line in lines if '["' in line]) == 20


def test_a_wrong_branch_is_told_before_anything_runs_as_one_paragraph(call: Any, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(RECIPE.replace("[8, 4]", "[8, 1]"))
    for command in (("validate",), ("plan",), ("run", "--no-server")):
        code, out, err = call(command[0], "r.yaml", *command[1:])
        assert (code, out) == (2, "")
        assert " ".join(err.split()) == (
            "error: branch use=lsq,weights=1: r.yaml:3: key 'quantize.weights' is 1; allowed: a whole number, 2 to 8 1 "
            "more of 4 branches have mistakes"
        )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["r.yaml"], "error: r.yaml:3: 'kdq synergy' makes branches of its own; leave 'matrix' out"),
        (["plain.yaml", "--bits", "8,nine"], "error: --bits is '8,nine'; write numbers from 2 to 8 with commas, such "
         "as 8,4,2"),
        (["plain.yaml", "--bits", "1"], "error: --bits is '1'; write numbers from 2 to 8 with commas, such as 8,4,2"),
        (["plain.yaml", "--distillers", "logit-kd"], "error: distiller 'logit-kd' is asked for twice; the recipe's own "
         "is 'logit-kd'"),
        (["plain.yaml", "--output", "no/s.html"], "error: --output: there is no folder 'no'; make it, or name another "
         "file"),
        (["plain.yaml", "--distillers", "logit-kdd"], "error: no distiller named 'logit-kdd'; did you mean 'logit-kd'? "
         "Installed: "),
    ],
)  # fmt: skip
def test_a_wrong_request_for_synergy_is_refused(call: Any, tmp_path: Path, words: list[str], message: str) -> None:
    (tmp_path / "plain.yaml").write_text("name: x\nworkload: digits\n")
    code, out, err = call("synergy", *words)
    assert (code, out) == (2, "")
    assert " ".join(err.split()).startswith(message)


def test_the_table_marks_the_selected_branch_and_those_of_the_front(capsys: pytest.CaptureFixture[str]) -> None:
    branches = [
        BranchFacts(branch=name, axes={}, status="completed", models={"int8": {"top1": 0.5, "bytes": 10}})
        for name in ("a", "b", "c")
    ]
    branches.append(BranchFacts(branch="d", axes={}, status="failed", error="it broke"))
    selected = SelectedFacts(branch="b", pareto=("b", "c"), verdict="b: bytes 10; of 3 branches")
    show_branches(
        RunResult(
            run="x-1", status="failed", seconds=1.0, stages=(), models={}, branches=tuple(branches), selected=selected
        )
    )
    out = capsys.readouterr().out
    lines = [line.strip("│").split("│") for line in out.splitlines() if line.startswith("│")]
    assert "4 branches (3 completed, 1 failed)" in out
    assert [[cell.strip() for cell in cells] for cells in lines] == [
        ["a", "", "completed", "0.5", "10"],
        ["b", "selected", "completed", "0.5", "10"],
        ["c", "front", "completed", "0.5", "10"],
        ["d", "", "failed", "", ""],
    ]
    assert "failed    d: it broke" in out
    assert "selected  b: bytes 10; of 3 branches" in out
