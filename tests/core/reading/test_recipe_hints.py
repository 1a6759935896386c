"""A right thing in a wrong form is met with the right form."""

from __future__ import annotations

import pytest

from kdq_core.errors import RecipeError
from kdq_core.plugins.catalog import Catalog
from kdq_core.reading.recipe_file import document_from_text, recipe_from_document

CATALOG = Catalog.load()
LOSSES = "several distillers are written as"
EACH = "each with a 'weight' if it needs one"


def refusal(text: str, catalog: Catalog | None = CATALOG) -> str:
    document = document_from_text(text if "workload" in text else f"name: x\nworkload: digits\n{text}", "r.yaml")
    with pytest.raises(RecipeError) as caught:
        recipe_from_document(document, catalog)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("distill:\n  use: logit-kd\n  temperature: 3", "r.yaml:5: unknown key 'temperature' in 'distill'; it is an "
         "option of 'logit-kd': write options: {temperature: 3}"),
        ("distill: {temperature: 3}", "r.yaml:3: unknown key 'temperature' in 'distill'; it is an option of "
         "'logit-kd': write options: {temperature: 3}"),
        ("distill: {temperature: 3, options: {alpha: 1.0}}", "r.yaml:3: unknown key 'temperature' in 'distill'; it is "
         "an option of 'logit-kd': move it into its 'options'"),
        ("distill: {losses: [{use: fitnet, beta: {schedule: linear, start: 2, end: 1}}]}", "r.yaml:3: unknown key "
         "'beta' in 'distill.losses[0]'; it is an option of 'fitnet': write options: {beta: {schedule: linear, start: "
         "2, end: 1}}"),
        ("quantize: {use: minmax-qat, averaging: 0.1}", "r.yaml:3: unknown key 'averaging' in 'quantize'; it is an "
         "option of 'minmax-qat': write options: {averaging: 0.1}"),
        ("evaluate: [size, {use: latency, batch_size: 8}]", "r.yaml:3: unknown key 'batch_size' in 'evaluate[1]'; it "
         "is an option of 'latency': write options: {batch_size: 8}"),
        ("name: x\nworkload: {use: digits, student_width: 48}", "r.yaml:2: unknown key 'student_width' in "
         "'workload'; it is an option of 'digits': write options: {student_width: 48}"),
        ("target: {use: onnxruntime-cpu, zzz: 8}", "r.yaml:3: unknown key 'zzz' in 'target'; allowed: options, use"),
        ("target: {use: no-such-target, zzz: 8}", "r.yaml:3: unknown key 'zzz' in 'target'; allowed: options, use"),
    ],
)  # fmt: skip
def test_an_option_beside_use_is_told_from_an_unknown_key(text: str, message: str) -> None:
    assert refusal(text) == message


def test_without_a_catalog_it_is_an_unknown_key() -> None:
    assert refusal("target: {use: onnxruntime-cpu, threads: 8}", None) == (
        "r.yaml:3: unknown key 'threads' in 'target'; allowed: options, use"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("distill:\n  use: fitnet\n  taps: [[a.b, 'b[12]']]", "r.yaml:5: unknown key 'taps' in 'distill'; a distiller "
         "in 'losses' has it: write losses: [{use: fitnet, taps: [[a.b, \"b[12]\"]]}]; several may stand there"),
        ("distill: {weight: 3}", "r.yaml:3: unknown key 'weight' in 'distill'; a distiller in 'losses' has it: write "
         "losses: [{use: logit-kd, weight: 3}]; several may stand there"),
        ("distill: {losses: [dkd], weight: 3}", "r.yaml:3: unknown key 'weight' in 'distill'; a distiller in 'losses' "
         "has it: move it there"),
        ("distill: {use: [logit-kd, fitnet]}", "r.yaml:3: key 'distill.use' is ['logit-kd', 'fitnet']; "
         f"{LOSSES} losses: [{{use: logit-kd}}, {{use: fitnet}}], {EACH}"),
        ("distill: [{use: dkd, weight: 0.5}, fitnet]", "r.yaml:3: key 'distill' is [{'use': 'dkd', 'weight': 0.5}, "
         f"'fitnet']; {LOSSES} distill: {{losses: [{{use: dkd, weight: 0.5}}, {{use: fitnet}}]}}, {EACH}"),
        ("distill: [3]", f"r.yaml:3: key 'distill' is [3]; {LOSSES} distill: {{losses: [{{use: ...}}, ...]}}, {EACH}"),
    ],
)  # fmt: skip
def test_several_distillers_are_shown_where_they_belong(text: str, message: str) -> None:
    assert refusal(text) == message


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ("[pipeline, student]", "' is ['pipeline', 'student']; write members: [{source: pipeline}, {source: student}]"),
        ("[{weight: 2}, student]", "' is [{'weight': 2}, 'student']; write members: [{weight: 2}, {source: student}]"),
        ("student", "' is 'student'; write members: [{source: student}]"),
        ("{source: student}", "' is {'source': 'student'}; write members: [{source: student}]"),
        ("[teacher]", "[0]' is 'teacher'; allowed: a mapping"),
        ("[]", "' is []; allowed: a list, at least 1 long"),
        ("[{source: onnx}]", "[0]': a teacher from 'onnx' needs a 'file'"),
        ("[{source: registered, model: digits}]",
         "[0].model' is 'digits'; write NAME/VERSION or NAME@ALIAS, such as digits/3 or digits@champion"),
        ("[{source: checkpoint, file: a, factory: big}]", "[0].factory' is 'big'; write module:function or "
         "file.py:function"),
        ("[{source: chekpoint, file: a}]", "[0].source' is 'chekpoint'; did you mean 'checkpoint'? allowed: "
         "'checkpoint' or 'onnx' or 'pipeline' or 'registered' or 'student'"),
        ("[{}, {source: Student}]", "[1].source' is 'Student'; did you mean 'student'? allowed: "
         "'checkpoint' or 'onnx' or 'pipeline' or 'registered' or 'student'"),
        ("[{weight: abc}]", "[0].weight' is 'abc'; allowed: a number, above 0 and at most 1000"),
        ("[{source: onnx, file: a, tasks: kind}]", "[0].tasks' is 'kind'; allowed: a list"),
        ("[{normalize: {mean: [0.5]}}]", "[0].normalize.std' is missing; it must be a list, at least 1 long"),
        ("[{normalize: {mean: [1], std: [0]}}]",
         "[0].normalize': a 'std' is not above 0; give the standard deviation of each channel"),
        ("[{normalize: {mean: [1], std: [-1]}}]",
         "[0].normalize': a 'std' is not above 0; give the standard deviation of each channel"),
        ("[{normalize: 3}]", "[0].normalize' is 3; allowed: a mapping or null"),
    ],
)  # fmt: skip
def test_teachers_are_shown_in_their_form(members: str, message: str) -> None:
    assert refusal(f"teacher: {{members: {members}}}") == f"r.yaml:3: key 'teacher.members{message}"


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ("{source: checkpoint, file: x.st}", "'source' in 'teacher'; a teacher in 'members' has it: write members: "
         "[{source: checkpoint, file: x.st}]"),
        ("{weight: 2}", "'weight' in 'teacher'; a teacher in 'members' has it: write members: [{weight: 2}]"),
        ("{members: [student], normalize: {mean: [1], std: [1]}}",
         "'normalize' in 'teacher'; a teacher in 'members' has it: move it there"),
        ("{sauce: student}", "'sauce' in 'teacher'; allowed: cache, combine, fit, inputs, members, precision"),
    ],
)  # fmt: skip
def test_what_one_teacher_has_is_shown_where_it_belongs(teacher: str, message: str) -> None:
    assert refusal(f"teacher: {teacher}").splitlines()[-1] == f"r.yaml:3: unknown key {message}"
