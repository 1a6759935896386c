"""The branches of a matrix: which there are, what each recipe holds, and what each is called."""

from __future__ import annotations

import re
from typing import Any

import pytest

from kdq_core.plugins.catalog import Catalog
from kdq_core.reading.matrix import names_of, written
from kdq_core.reading.recipe_file import document_from_text
from kdq_core.reading.studies import Study, read_study

CATALOG = Catalog.load()


def study(text: str) -> Study:
    head = "" if "workload:" in text else "name: x\nworkload: digits\n"
    return read_study(document_from_text(head + text, "r.yaml"), CATALOG)


def axes(text: str) -> list[dict[str, Any]]:
    return [dict(branch.axes) for branch in study(text).branches]


def names(text: str) -> list[str]:
    return [branch.name for branch in study(text).branches]


def test_the_branches_are_the_product_of_the_axes_in_the_order_of_the_file() -> None:
    found = study("matrix: {over: {quantize.weights: [8, 4], seed: [0, 1, 2]}}")
    pairs = [(bits, seed) for bits in (8, 4) for seed in (0, 1, 2)]
    assert [tuple(branch.axes.values()) for branch in found.branches] == pairs
    assert [(branch.recipe.quantize.weights, branch.recipe.seed) for branch in found.branches] == pairs
    assert {branch.recipe.name for branch in found.branches} == {"x"} == {found.name}


def test_what_is_excluded_is_no_branch_and_what_is_included_comes_last() -> None:
    found = axes(
        "matrix:\n  over: {quantize.weights: [8, 4], seed: [0, 1]}\n"
        "  exclude: [{quantize.weights: 4, seed: 1}]\n  include: [{quantize.use: lsq}]\n"
    )
    assert found == [
        {"quantize.weights": 8, "seed": 0},
        {"quantize.weights": 8, "seed": 1},
        {"quantize.weights": 4, "seed": 0},
        {"quantize.use": "lsq"},
    ]


def test_an_exclusion_of_one_axis_leaves_out_all_branches_with_that_value() -> None:
    text = "matrix: {over: {quantize.weights: [8, 4], seed: [0, 1]}, exclude: [{seed: 0}]}"
    assert axes(text) == [{"quantize.weights": 8, "seed": 1}, {"quantize.weights": 4, "seed": 1}]


def test_a_matrix_may_have_included_branches_alone() -> None:
    assert names("matrix: {include: [{seed: 3}, {quantize.weights: 4}]}") == ["seed=3", "weights=4"]


def test_an_axis_may_be_a_whole_section_and_replaces_it() -> None:
    one, other = study(
        "distill: {use: logit-kd, options: {alpha: 0.5}}\nmatrix: {over: {distill: [{use: dkd}, {fit: {epochs: 2}}]}}"
    ).branches
    assert (one.recipe.distill.use, one.recipe.distill.options) == ("dkd", {})
    assert (other.recipe.distill.use, other.recipe.distill.options) == ("logit-kd", {})
    assert other.recipe.distill.fit.epochs == 2
    assert (one.name, other.name) == ("distill=dkd", "distill=fit-epochs-2")


def test_an_axis_may_be_a_list_of_stages() -> None:
    short = "[quantize, export, evaluate]"
    found = study(
        "student: {source: checkpoint, file: s.safetensors}\nquantize: {use: static}\ngates: []\n"
        f"matrix: {{over: {{stages: [{short}, [quantize, export]]}}}}"
    )
    assert [len(branch.recipe.stages) for branch in found.branches] == [3, 2]
    assert [branch.name for branch in found.branches] == [
        "stages=quantize+export+evaluate", "stages=quantize+export",
    ]  # fmt: skip


def test_an_axis_may_name_an_item_of_a_list_by_its_index() -> None:
    found = study(
        "evaluate: [quality, {use: latency, options: {seconds: 0.1}}, size]\ngates: []\n"
        "matrix: {over: {evaluate.1.options.seconds: [0.2, 0.3]}}"
    )
    assert [branch.recipe.evaluate[1].options["seconds"] for branch in found.branches] == [0.2, 0.3]
    assert [branch.name for branch in found.branches] == ["seconds=0.2", "seconds=0.3"]


def test_an_option_axis_opens_a_plugin_that_is_written_as_its_bare_name() -> None:
    found = study("matrix: {over: {workload.options.teacher_width: [16, 32]}}")
    assert [branch.recipe.workload.use for branch in found.branches] == ["digits"] * 2
    assert [branch.recipe.workload.options for branch in found.branches] == [
        {"teacher_width": 16}, {"teacher_width": 32},
    ]  # fmt: skip


def test_options_of_the_files_plugin_do_not_go_to_another_plugin() -> None:
    found = study(
        "distill: {use: logit-kd, options: {temperature: 2.0}}\nmatrix: {over: {distill.use: [logit-kd, dkd]}}"
    )
    assert [branch.recipe.distill.options for branch in found.branches] == [{"temperature": 2.0}, {}]


def test_options_of_an_axis_stay_where_use_is_an_axis_too() -> None:
    found = study(
        "distill: {options: {alpha: 0.5}}\n"
        "matrix: {over: {distill.options.temperature: [2.0], distill.use: [logit-kd, dkd]}}"
    )
    assert [branch.recipe.distill.options for branch in found.branches] == [
        {"alpha": 0.5, "temperature": 2.0}, {"temperature": 2.0},
    ]  # fmt: skip


def test_a_setting_that_the_branchs_quantizer_ignores_is_left_out_of_that_branch() -> None:
    trained, static = study(
        "quantize: {fit: {epochs: 2}, freeze_observers: 0.4}\nmatrix: {over: {quantize.use: [minmax-qat, static]}}"
    ).branches
    assert trained.recipe.quantize.fit.epochs == 2
    assert {"fit", "freeze_observers"} <= trained.recipe.quantize.model_fields_set
    assert {"fit", "freeze_observers"} & static.recipe.quantize.model_fields_set == set()


def test_the_sections_of_the_study_are_no_part_of_a_branch() -> None:
    plain, (branch,) = study("matrix: {over: {seed: [4]}}\nlimits: {time: 1h}").document, study(
        "matrix: {over: {seed: [4]}}"
    ).branches  # fmt: skip
    assert branch.recipe.seed == 4
    assert branch.recipe.model_fields_set == {"name", "workload", "seed"}
    assert set(plain.value) == {"name", "workload", "matrix", "limits"}  # the document is as it was


def test_names_have_the_shortest_title_that_tells_axes_apart() -> None:
    text = "matrix: {over: {quantize.use: [lsq], distill.use: [dkd], quantize.weights: [4], seed: [0]}}"
    assert names(text) == ["quantize.use=lsq,distill.use=dkd,weights=4,seed=0"]


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (0.1, "a=0.1"), (True, "a=true"), (None, "a=null"), ("", "a=none"), ("a b/c", "a=a-b-c"), ([], "a=none"),
        ({"use": "lsq", "options": {}}, "a=lsq"), ({"name": "n", "use": "lsq"}, "a=n"), (["x", {"use": "y"}], "a=x+y"),
        ({"x": 1}, "a=x-1"), ("x" * 90, "a=" + "x" * 40), (-3, "a=-3"),
    ],
)  # fmt: skip
def test_a_value_in_a_name_has_letters_that_a_file_name_and_a_shell_may_hold(value: Any, name: str) -> None:
    assert names_of([{"a": value}]) == [name]


def test_names_are_unique_short_and_made_of_plain_letters() -> None:
    branches: list[dict[str, Any]] = [
        {"distill": {"use": "dkd", "options": {"beta": beta}}, "text": "x" * 50 + str(beta)} for beta in range(5)
    ]
    found = names_of([*branches, {"distill": "dkd", "text": "ä:{}"}])
    assert len(set(found)) == 6
    assert found[1] == found[0] + "+2"
    assert all(re.fullmatch(r"[\w.+=,-]{1,120}", name) for name in found)


def test_the_name_of_a_twin_is_no_name_of_another_branch() -> None:
    found = names_of([{"a": "x"}, {"a": "x "}, {"a": "x+2"}])
    assert len(set(found)) == 3


def test_axes_are_written_as_yaml_in_one_line() -> None:
    assert written({"seed": 1, "quantize.use": "lsq", "taps": [1]}) == '{seed: 1, quantize.use: "lsq", taps: [1]}'
