"""A wrong study is refused before anything runs, with file, line and branch."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdq_core.errors import PluginError, RecipeError
from kdq_core.plugins.catalog import Catalog
from kdq_core.reading.checks import load_recipe
from kdq_core.reading.recipe_file import document_from_text, recipe_from_document
from kdq_core.reading.studies import Study, load, read_study
from kdq_core.recipe.spec import Recipe
from kdq_core.recipe.study import LimitsSpec

CATALOG = Catalog.load()
HEAD = "name: x\nworkload: digits\n"
ONE = "matrix: {over: {seed: [0]}}\n"
KEYS = (
    "allowed: budget, distill, evaluate, gates, kdq, name, quantize, register, retry, seed, stages, student, target, "
    "teacher, workload"
)


def refusal(text: str, kind: type[Exception] = RecipeError) -> str:
    with pytest.raises(kind) as caught:
        read_study(document_from_text(HEAD + text, "r.yaml"), CATALOG)
    return str(caught.value)


def numbers(count: int) -> str:
    return ",".join(map(str, range(count)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("matrix:\n  over:\n    quantise.weights: [8]", "branch weights=8: r.yaml:5: unknown key 'quantise'; did you "
         f"mean 'quantize'? {KEYS}"),
        ("matrix: {over: {seed: []}}", "r.yaml:3: key 'matrix.over.seed' is []; allowed: a list, at least 1 long"),
        ("matrix:\n  over:\n    seed: 3", "r.yaml:5: key 'matrix.over.seed' is 3; allowed: a list, at least 1 long"),
        ("seed: 1\nmatrix: {over: {seed.x: [1]}}", "branch x=1: r.yaml:4: the axis 'seed.x' goes into 'seed', which is "
         "1 and has no fields; name another field, or the whole section"),
        ("matrix: {}", "r.yaml:3: key 'matrix': a matrix has axes in 'over', or branches in 'include'"),
        ("matrix: {ovr: {seed: [1]}}", "r.yaml:3: unknown key 'ovr' in 'matrix'; did you mean 'over'? allowed: "
         "exclude, include, over"),
        ("matrix: {over: {seed: [0, 0]}}", "r.yaml:3: two branches are {seed: 0}; name each combination once"),
        ("matrix: {over: {seed: [0]}, include: [{seed: 0}]}", "r.yaml:3: two branches are {seed: 0}; name each "
         "combination once"),
        ("matrix:\n  over: {seed: [0, 1]}\n  exclude:\n    - {sead: 0}", "r.yaml:6: 'exclude' names the axis 'sead'; "
         "did you mean 'seed'? 'over' has: seed"),
        ("matrix:\n  over: {seed: [0, 1]}\n  exclude:\n    - {seed: 0}\n    - {seed: 2}", "r.yaml:7: 'exclude' has 2 "
         "for 'seed', whose values are: 0, 1"),
        ("matrix: {over: {seed: [0, 1]}, exclude: [{seed: 0}, {seed: 1}]}", "r.yaml:3: 'exclude' leaves no branch of "
         "2; exclude less"),
        ("evaluate: [quality]\nmatrix: {over: {evaluate.7: [size]}}", "branch 7=size: r.yaml:4: the axis 'evaluate.7' "
         "names item 7 of a list of 1; count from 0"),
        ("matrix: {over: {select: [1]}}", "branch select=1: r.yaml:3: the axis 'select' is about the branches; name a "
         "field that each branch has"),
        (ONE + "selct: {minimise: [bytes]}", "branch seed=0: r.yaml:4: unknown key 'selct'; did you mean 'select'?"),
    ],
)  # fmt: skip
def test_a_wrong_matrix_is_refused(text: str, message: str) -> None:
    assert refusal(text) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"matrix: {{over: {{seed: [{numbers(257)}]}}}}", "r.yaml:3: the matrix has 257 branches, and KDQ allows 256 "
         "without limits; write limits: {trials: 257} or fewer, or leave out values"),
        (f"matrix: {{over: {{quantize.options.a: [{numbers(1000)}], seed: [{numbers(1000)}]}}}}",
         "r.yaml:3: the matrix has 1,000,000 branches, and KDQ allows 100,000; leave out values"),
        (f"limits: {{trials: 9}}\nmatrix: {{over: {{a: [{numbers(1000)}], seed: [{numbers(1000)}]}}}}",
         "r.yaml:4: the matrix has 1,000,000 branches, and KDQ allows 100,000; leave out values"),
    ],
)  # fmt: skip
def test_too_many_branches_are_refused_before_any_is_made(text: str, message: str) -> None:
    assert refusal(text) == message


def test_257_branches_are_taken_with_limits() -> None:
    values = "{over: {seed: [" + numbers(257) + "]}}"
    found = read_study(document_from_text(f"{HEAD}matrix: {values}\nlimits: {{time: 1h}}", "r.yaml"), CATALOG)
    assert len({branch.name for branch in found.branches}) == 257


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("matrix:\n  over:\n    quantize.weights: [8, 4, 99]\n    seed: [0, 1]", "branch weights=99,seed=0: r.yaml:5: "
         "key 'quantize.weights' is 99; allowed: a whole number, 2 to 8\n1 more of 6 branches have mistakes"),
        ("matrix:\n  over:\n    distill.options.temperature: [2.0, -1.0]", "branch temperature=-1.0: r.yaml:5: option "
         "'temperature' of distiller 'logit-kd' is -1.0; allowed: a number, 0.01 to 100"),
        ("matrix: {over: {quantize.use: [static], quantize.fit.epochs: [1]}}", "branch use=static,epochs=1: r.yaml:3: "
         "quantizer 'static' does not train, so 'quantize.fit' means nothing to it; leave it out, or use one that "
         "trains"),
    ],
)  # fmt: skip
def test_a_wrong_branch_is_named_by_its_axes_with_the_line_of_the_axis(text: str, message: str) -> None:
    assert refusal(text) == message


def test_an_axis_with_an_unknown_plugin_names_the_branch_and_what_is_installed() -> None:
    message = refusal("matrix:\n  over:\n    quantize.use: [lsq, nothing]", PluginError)
    assert message.startswith("branch use=nothing: r.yaml:5: no quantizer named 'nothing'. Installed: ")


@pytest.mark.parametrize(
    ("select", "message"),
    [
        ("{minimise: [byts]}", "r.yaml:4: no evaluator of the recipe gives the metric 'byts' of 'select'; did you mean "
         "'bytes'? Given: "),
        ("\n  minimise: [bytes]\n  goals:\n    - {metric: top7, at_least: 1}", "r.yaml:7: no evaluator of the recipe "
         "gives the metric 'top7' of 'select'; did you mean 'topk'? Given: "),
        ("\n  maximise: [toop1]", "r.yaml:5: no evaluator of the recipe gives the metric 'toop1' of 'select'; did you "
         "mean 'top1'? Given: "),
    ],
)  # fmt: skip
def test_an_unknown_metric_of_select_is_refused(select: str, message: str) -> None:
    assert refusal(f"{ONE}select: {select}").startswith(message)


@pytest.mark.parametrize(
    ("select", "message"),
    [
        ("{minimise: [bytes], of: int4}", "r.yaml:4: 'select' names the model 'int4', but the recipe's stages give: "
         "int8, student, teacher; did you mean 'int8'?"),
        ("{minimise: [bytes], goals: [{metric: top1, at_least: 1, relative_to: techer}]}", "r.yaml:4: 'select' names "
         "the model 'techer', but the recipe's stages give: int8, student, teacher; did you mean 'teacher'?"),
        ("{minimise: [bytes], goals: [{metric: top1, at_least: 1, of: stdent}]}", "r.yaml:4: 'select' names the model "
         "'stdent', but the recipe's stages give: int8, student, teacher; did you mean 'student'?"),
        ("{goals: [{metric: top1, at_least: 1}]}", "r.yaml:4: key 'select': 'select' names a metric in 'minimise' or "
         "'maximise', such as minimise: [bytes]"),
        ("{minimise: [bytes], maximise: [bytes]}", "r.yaml:4: key 'select': metric 'bytes' is in 'minimise' and in "
         "'maximise'; keep one of the two"),
        ("{minimise: [bytes], goals: [{metric: top1, at_least: 1.0, relative_to: champion}]}", "r.yaml:4: key "
         "'select.goals': a goal cannot be relative to the champion, which is judged at a promotion: write a gate"),
        ("{minimise: [bytes], goals: [{metric: top1, at_least: 1.0, required: true}]}", "r.yaml:4: key 'select.goals': "
         "a goal needs no 'required': a branch that does not meet it is never selected"),
        ("{minimise: [bytes], goals: [{metric: top1}]}", "r.yaml:4: key 'select.goals[0]': a gate has exactly one of "
         "'at_least' and 'at_most'"),
        ("{minimize: [bytes]}", "r.yaml:4: unknown key 'minimize' in 'select'; did you mean 'minimise'? allowed: "
         "goals, maximise, minimise, of"),
    ],
)  # fmt: skip
def test_a_wrong_select_is_refused(select: str, message: str) -> None:
    assert refusal(f"{ONE}select: {select}") == message


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ("{time: 4 hours}", "key 'limits.time': 'time' is '4 hours'; write a number above 0 with s, m, h or d, such as "
         "4h"),
        ("{time: 0h}", "key 'limits.time': 'time' is '0h'; write a number above 0 with s, m, h or d, such as 4h"),
        ("{time: 4}", "key 'limits.time' is 4; allowed: text or null"),
        ("{trials: 0}", "key 'limits.trials' is 0; allowed: a whole number or null, 1 to 100000"),
        ("{}", "key 'limits': 'limits' has 'time' or 'trials'"),
    ],
)  # fmt: skip
def test_wrong_limits_are_refused(limits: str, message: str) -> None:
    assert refusal(f"{ONE}limits: {limits}") == f"r.yaml:4: {message}"


@pytest.mark.parametrize(("time", "seconds"), [("90s", 90), ("30m", 1800), ("1.5h", 5400), ("2d", 172_800)])
def test_a_time_is_read_in_seconds(time: str, seconds: float) -> None:
    assert LimitsSpec(time=time).seconds == seconds


@pytest.mark.parametrize("section", ["select: {minimise: [bytes]}", "limits: {trials: 3}"])
def test_a_section_about_branches_needs_branches(section: str) -> None:
    name = section.partition(":")[0]
    assert refusal(section) == (
        f"r.yaml: '{name}' is about branches, and the recipe has no 'matrix' or 'search'; add one"
    )


SEARCH = "search: {space: {quantize.weights: {low: 2, high: 8}}}\n"


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (SEARCH + "limits: {trials: 3}", "r.yaml: 'search' needs 'select', which says what a good branch is"),
        (
            SEARCH + "select: {minimise: [bytes]}",
            "r.yaml: 'search' has no end; write limits: {trials: 40} or {time: 4h}",
        ),
        (
            SEARCH + "matrix: {over: {seed: [0]}}",
            "r.yaml: 'matrix' and 'search' both make branches; leave one of them out",
        ),
        (
            "search: {space: {seed: {low: 9, high: 1}}}\nselect: {minimise: [bytes]}\nlimits: {trials: 3}",
            "'low' is 9 and 'high' is 1; 'low' must be below 'high'",
        ),
        (
            "search: {space: {quantize.wights: [8]}}\nselect: {minimise: [bytes]}\nlimits: {trials: 3}",
            "unknown key 'wights' in 'quantize'; did you mean 'weights'?",
        ),
        (
            SEARCH + "select: {minimise: [byts]}\nlimits: {trials: 3}",
            "the metric 'byts' of 'select'; did you mean 'bytes'?",
        ),
    ],
)
def test_a_search_that_cannot_run_is_refused(text: str, error: str) -> None:
    assert error in refusal(text)


def test_a_search_has_no_branches_before_it_runs() -> None:
    document = document_from_text(f"{HEAD}{SEARCH}select: {{minimise: [bytes]}}\nlimits: {{trials: 3}}", "r.yaml")
    assert read_study(document, Catalog.load()).branches == ()


@pytest.mark.parametrize(("key", "near"), [("matirx", "matrix"), ("selects", "select"), ("limit", "limits")])
def test_a_typo_of_a_section_of_a_study_is_met_with_its_name(key: str, near: str) -> None:
    document = document_from_text(f"{HEAD}{key}: {{over: {{seed: [0]}}}}", "r.yaml")
    with pytest.raises(RecipeError) as caught:
        recipe_from_document(document, CATALOG)
    assert str(caught.value) == f"r.yaml:3: unknown key {key!r}; did you mean {near!r}?"


def test_a_file_is_a_study_if_it_has_branches_and_a_command_for_one_recipe_refuses_it(tmp_path: Path) -> None:
    plain, several = tmp_path / "plain.yaml", tmp_path / "several.yaml"
    plain.write_text(HEAD)
    several.write_text(HEAD + ONE)
    assert isinstance(load(plain), Recipe)
    assert isinstance(load(several), Study)
    with pytest.raises(RecipeError) as caught:
        load_recipe(several)
    assert str(caught.value) == (
        f"{several}:3: the recipe has branches ('matrix'), and this command takes one recipe; 'kdq run', 'kdq plan' "
        "and 'kdq validate' take all branches, or write a file without that section"
    )


def test_files_of_the_branches_are_looked_for_before_anything_runs(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    student = "student: {source: checkpoint, file: a.safetensors}\nquantize: {use: static}\n"
    file.write_text(HEAD + student + "stages: [quantize, export, evaluate]\ngates: []\n" + ONE)
    assert isinstance(load(file), Study)
    with pytest.raises(RecipeError, match=r"^branch seed=0: .*r\.yaml:3: the student's file 'a\.safetensors' is not"):
        load(file, files=True)
