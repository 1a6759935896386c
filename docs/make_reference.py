"""The page `recipe.md`, from the JSON Schema of a recipe."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Sequence
from typing import Any

from kdq_core.plugins.catalog import Catalog, CatalogEntry
from kdq_core.reading.schema import recipe_schema
from kdq_core.recipe.explain import allowed, resolve

Schema = dict[str, Any]

HEAD = """\
# The recipe, field by field

`docs/make_pages.py` writes this page from the JSON Schema that `kdq schema` prints. Do not edit it.

A recipe is a YAML file. It needs `name` and `workload`; every other field has a default:

```yaml
name: smallest
workload: digits
```

A recipe with the usual sections:

```yaml
name: usual
seed: 1
workload: {use: digits, options: {student_width: 48}}
teacher:
  fit: {epochs: 8}
distill:
  use: logit-kd
  options: {temperature: 3.0, alpha: 0.8}
  fit: {epochs: 10}
quantize: {fit: {epochs: 4}}
evaluate: [quality, size, {use: latency, options: {batch_size: 8}}, coverage, parity]
gates:
  - {metric: top1, at_least: 0.98, relative_to: student}
  - {metric: bytes, at_most: 300000}
register: {name: digits-small}
```

KDQ reads the file strictly. An unknown key, a value out of range, a duplicate key, a YAML tag or a merge key is an
error that names file and line. `2e-3` is a number; `yes` and `no` are text. A bare plug-in name stands for the plug-in
with its default options: `target: onnxruntime-cpu` is `target: {use: onnxruntime-cpu}`.

For completion in an editor, put this line at the top. `kdq schema --output recipe.schema.json` writes the schema:

```yaml
# yaml-language-server: $schema=recipe.schema.json
```
"""
GATES = """\
The list replaces the default one. Quantizers that compute in float by design have other default gates: `weight-only`
has none on `coverage_macs` and `speedup`, `dynamic` has one on `coverage_linear_macs` instead of `coverage_macs`.
Without a teacher to compare with, the default gates leave the comparison out. If the labels are numbers, the default
gate on `top1` becomes `{metric: rmse, at_most: 1.05, relative_to: teacher}`; if all of them are 0 or 1, it becomes
`{metric: label_accuracy, at_least: 0.95, relative_to: teacher}`.

Each gate is a rule that `kdq promote` checks. Give exactly one of `at_least` and `at_most`. If a metric was not
measured, its gate is not met, and the verdict names the evaluator that failed. With `bound: low` or `bound: high` the
gate judges that end of the metric's 95 % interval instead of its value, as in `{metric: top1, at_least: 0.99,
relative_to: teacher, bound: low}`. A gate relative to a value that is not above zero is not met, and KDQ says so.

The default gate on `speedup` asks that the file is not slower than the float student's. If it is slower, KDQ registers
it and says so, and `kdq promote` refuses it.

KDQ's evaluators give these metrics:

- `quality`, for classes: `top1`, `topk`, `precision`, `recall`, `f1`, `recall_worst`, `ece`, `nll`, `brier`,
  `prior_shift`, `agreement_teacher`; for all models but the student also `top1_difference`, `top1_mcnemar`,
  `f1_difference`, `nll_difference`, `agreement`. For numbers: `rmse`, `mae`; for labels of 0 and 1: `label_accuracy`,
  `label_f1`; each also as a difference
- `size`: `bytes`, `weight_bytes_int8`, `weight_bytes_float`, `parameters`, `compression`
- `latency`: `latency_p50_ms`, `latency_p95_ms`, `latency_p99_ms`, `throughput`; for all models but the student also
  `speedup`. At the further batch sizes: `throughput/8`, `throughput/32`, `speedup/8`, `speedup/32`
- `coverage`, for `int8` only: `int8_macs` (products with weights), `coverage_macs` (the same, without what is float
  [by choice](quantization.md#never-slower-than-float)), `coverage_all_macs` (also products between activations, such as
  attention), `coverage_linear_macs`, `coverage_weight_bytes`, `float_operators`
- `parity`, for `int8` only, against the converted model: `parity_flips`, `parity_ties`,
  `parity_agreement`, `parity_p50_lsb`, `parity_p99_lsb`, `parity_max_lsb`, `top1_converted`; against the trained model:
  `parity_prepared_flips` and so on, `top1_prepared`
- `ranking`, `detection`, `transcription`, `translation`, `cost` and `robustness`, which no recipe has by default:
  [Evaluation](evaluation.md) lists theirs

A metric of a further output or task ends in its name (`top1/price`)."""
LOSSES = """\
The list replaces `use` and `options`. Each entry is a distiller's name, or a mapping:

```yaml
distill:
  losses:
    - {use: logit-kd, options: {temperature: {schedule: linear, start: 8.0, end: 2.0}}}
    - {use: fitnet, weight: {schedule: cosine, start: 1.0, end: 0.0}, taps: [[blocks.*, "blocks.[12]"]]}
```

[Several distillers](distillation.md#several-distillers) explains how losses add up, and taps."""
TRANSFER = """\
Each group of neighbouring channels in a teacher's layer becomes one channel in the student's layer. KDQ takes the mean
over output channels and the sum over input channels; it takes the mean of vectors that are added to features or scale
them. Then, in each round, it holds a random share of these tensors fixed and trains all others. The student's layers
must have the same kind and kernel as the teacher's, and be no wider; `auto` leaves out all others. KDQ copies no
buffers but the running statistics of batch norm."""
SCHEDULE = """\
A weight takes a number or a schedule, and so does every option of a distiller that is a real number. A schedule runs
once over the steps of `distill`, and again over the steps of `quantize`."""
STAGES = """\
The list replaces the default one, and its order counts. A stage reads slots (`teacher`, `outputs`, `student`,
`placement`, `quantized`, `artifact`, `report`) as the stages before it left them, and gives one slot. You can leave
stages out, add stages of other packages, or list a stage twice with a `name`:

```yaml
stages: [train_teacher, distill, {use: distill, name: polish, retry: {attempts: 1}}, place, quantize, export, evaluate]
```

Write the options of a stage in its `options`, or in a section of its name at the top level. If a slot is missing,
`kdq validate` names it and the stage that gives it. `kdq plugins list --kind stage` lists the installed stages."""
STUDENT = """\
With `source: checkpoint` a run begins with a trained student. This recipe quantizes a model at hand, without a teacher:

```yaml
name: mine
workload: digits
student: {source: checkpoint, file: student.safetensors}
stages: [place, quantize, export, evaluate, register]
quantize: {use: static}
```

KDQ passes the weights and batch-norm statistics to `quantize` bit for bit."""
MATRIX = """\
With `matrix`, a file has several branches. [One file, several branches](matrix.md) is the guide:

```yaml
name: small-digits
workload: digits
matrix:
  over:
    quantize.weights: [8, 4]
    quantize.use: [minmax-qat, lsq]
  exclude: [{quantize.weights: 8, quantize.use: lsq}]
  include: [{quantize.weights: 2, quantize.fit.epochs: 8}]
```

An axis is the dotted name of a field (`distill.options.temperature`), of an item of a list by its number from 0
(`evaluate.1.options.seconds`), or of a whole section (`distill`), which it replaces."""
SEARCH = """\
In place of a matrix: [Optuna](https://optuna.org) proposes the values of one branch after the other, each from what
the branches before gave. An axis has a list of choices, or a range (`low`, `high`, and `step` or `log`). `select` says
what a good branch is. `limits` says when the search ends. A second run of the same recipe continues the search.

```yaml
name: searched-digits
workload: digits
search:
  space:
    quantize.weights: {low: 3, high: 8}
    distill.options.temperature: {low: 1.0, high: 8.0, log: true}
select:
  goals: [{metric: top1, at_least: 0.99, relative_to: teacher}]
  minimise: [bytes]
limits: {trials: 20}
```"""
SELECT = """\
`goals` are written as [gates](#gates) are. A goal has no `required`, and is not relative to `champion`. Of the branches
that meet all goals KDQ keeps those that no other one beats in everything, the Pareto front, and selects the first: the
best in the first metric of `minimise`, or of `maximise` if nothing is minimised."""
LIMITS = """\
At a limit KDQ starts no further branch, finishes the one that runs, and selects among those that are done. A matrix of
more than 256 branches needs `limits`; 100,000 is the most."""
QUANTIZE = """\
Quantization of the student. Quantizers that train use the distillation loss.

By default (`use: auto`) KDQ calibrates the float student with `static`, which takes seconds, and compares both on the
labelled samples of the validation split. If calibration loses more than the option `tolerance` there, KDQ trains with
`minmax-qat` and takes the better of both. If the recipe asks for fewer than 8 bits anywhere, KDQ trains with `lsq` at
once, because calibration loses too much then. The closing lines of a run say what KDQ chose and why, with the figures
of both; so do `choice` in its JSON, the tags `kdq.quantizer` and `kdq.quantizer.why` in MLflow, and its report."""
BUDGET = """\
The epochs of a student in all. With a budget, or with `quantize: {use: auto}`, the stages `distill` and `quantize` have
one learning-rate schedule, that of `distill.fit`:

```yaml
name: sixteen
workload: digits
budget: {epochs: 16}
quantize: {fit: {epochs: 4}}
```

The float student trains for 16 epochs. If a quantizer must train, it starts from the float weights of epoch 12 and
trains epochs 13 to 16 at the learning rates of these epochs, with the batch size and the optimizer of `distill.fit`.
So every student has seen 16 epochs, whichever way KDQ took. If it is known beforehand that a quantizer will train,
because bits are few or the recipe names one that trains, the float student stops after epoch 12.

Without a budget `auto` takes the epochs of `distill.fit` and `quantize.fit` together as the budget. A recipe that names
a quantizer and has no budget keeps two schedules. So does one whose `stages` have a stage between `distill` and
`quantize` that changes the student."""
SECTIONS = {
    "": ("Top level", ""),
    "stages": ("`stages`", STAGES),
    "student": ("`student`", STUDENT),
    "teacher": ("`teacher`", "One teacher or several. By default KDQ trains the workload's teacher on hard labels."),
    "teacher.members": (
        "`teacher.members`",
        "A list of teachers that KDQ combines into one. A relative `file` is a path from the folder that `kdq` runs\n"
        "in. Keys hold the content of the file, not its path. `kdq validate` checks that files and the packages of\n"
        "factories exist; it does not look for registered models.",
    ),
    "teacher.members.normalize": ("`teacher.members[].normalize`", ""),
    "teacher.cache": (
        "`teacher.cache`",
        "The teacher's kept logits for each training sample in each view; on request also its features. Every\n"
        "student reads them. See [what is kept of a teacher](distillation.md#what-is-kept-of-a-teacher).",
    ),
    "distill": ("`distill`", "Training of the float student on the teacher's outputs, by one distiller or several."),
    "distill.losses": ("`distill.losses`", LOSSES),
    "distill.losses.weight": ("A schedule", SCHEDULE),
    "distill.transfer": ("`distill.transfer`", TRANSFER),
    "quantize": ("`quantize`", QUANTIZE),
    "budget": ("`budget`", BUDGET),
    "gates": ("`gates`", GATES),
    "register": ("`register`", "The name under which KDQ registers the int8 model."),
    "matrix": ("`matrix`", MATRIX),
    "search": ("`search`", SEARCH),
    "select": ("`select`", SELECT),
    "limits": ("`limits`", LIMITS),
    "retry": ("`retry`", "How KDQ retries a stage after an error that may pass by itself. No key holds this section."),
}
SECTIONED = ("teacher", "student", "members", "cache", "distill", "quantize", "fit", "register", "retry")
NOTES = {
    "name": "names the experiment and, without `register.name`, the registered model",
    "stages": "see `stages` below",
    "seed": "decides every random choice",
    "workload": "data and models: a plug-in's name, or `use` and `options`",
    "teacher": "see `teacher` below",
    "student": "see `student` below",
    "distill": "see `distill` below",
    "quantize": "see `quantize` below",
    "target": "the runtime: a plug-in's name, or `use` and `options`",
    "evaluate": "evaluators, each a plug-in's name, or `use` and `options`; none may occur twice",
    "gates": "see `gates` below; `[]` lets every version pass",
    "register": "see `register` below",
    "retry": "see `retry` below",
    "fit": "see `fit` below",
    "epochs": "passes over the training split",
    "batch_size": "samples in a step",
    "learning_rate": "the highest learning rate, reached after the warm-up",
    "weight_decay": "of matrices and kernels; vectors and scalars are not decayed",
    "metric": "name of a metric, as `kdq run --json` gives it",
    "of": "the model that is judged",
    "at_least": "lower bound",
    "at_most": "upper bound",
    "register.name": "name of the registered model; without it the recipe's name",
}
OPTIONS = """\
[Plug-ins](plugin-cards.md) lists each plug-in that comes with KDQ, with its method card and its options."""
FIT = """\
`teacher`, `distill` and `quantize` each have a `fit`. A field that a `fit` leaves out has the default of its section.
"""
ADVICE = """\
Measured one factor at a time; the first two with a ResNet-8 on Fashion-MNIST (12,000 images, 15 epochs in float):

| what | effect on the student |
|---|---|
| images shifted and mirrored (`augment`) | 0.9 to 1.0 points worse at 15 epochs; it pays at about twice as many |
| AdamW with batches of 128 | 0.5 points worse: too few steps; no loss with batches of 64 |
| QAT at 8 bits behind an annealed float schedule | 2.6 (text) and 4 points (speech) worse than these epochs in float |
| the same at 4 bits | far better |

So, for a first recipe:

- Without augmentation keep one view (`teacher: {cache: {views: 1}}`), because all views are alike. With it, keep as
  many views as the student has epochs, and train for 30 epochs or more.
- AdamW: batches of 64 and a learning rate of 2e-3, the defaults. A net with batch norm: `optimizer: sgd`,
  `learning_rate: 0.1`, `weight_decay: 5.0e-4`, `batch_size: 128`, with `temperature: 4.0` and `alpha: 0.9`;
  `recipes/batch-norm.yaml` is such a recipe.
- Leave the quantizer to KDQ, and give `budget: {epochs: ...}` in place of epochs for each part.

`kdq plan` hints where a recipe departs from this; where kept results show that the teacher is no better than its
student; and where a student is so narrow (convolutions under 32 channels, layers under 128 features) that int8 gains
little time."""


def reference() -> str:
    """The page."""
    schema = recipe_schema(own_catalog())
    parts = [HEAD]
    for name, (title, text) in SECTIONS.items():
        section = _section(schema, name)
        text = f"{_default_gates(schema)}\n\n{text}" if name == "gates" else text
        parts.append("\n\n".join(filter(None, (f"## {title}", text, _table(section, schema, name)))) + "\n")
    parts.append(f"## `fit`\n\n{FIT}\n{_table(schema['$defs']['FitSpec'], schema, 'fit')}\n\n{_whole_fits(schema)}\n")
    parts.append(f"## Which fit, how many views, how long\n\n{ADVICE}\n")
    parts.append(f"## Options of the plug-ins\n\n{OPTIONS}\n")
    return "\n".join(parts)


def _section(schema: Schema, name: str) -> Schema:
    section = schema
    for step in name.split(".") if name else ():
        field = section["properties"][step]
        field = next((kind for kind in field.get("anyOf", ()) if "$ref" in kind), field)
        section = resolve(field.get("items", field), schema)
        section = next(
            (resolve(o, schema) for o in section.get("anyOf", ()) if "properties" in resolve(o, schema)), section
        )
    return section


def _table(section: Schema, root: Schema, name: str) -> str:
    rows = []
    for field, value in section["properties"].items():
        needed = field in section.get("required", ())
        default = "needed" if needed else _written(value.get("default"), field)
        rows.append((f"`{field}`", _allowed(field, value, root), default, _note(f"{name}.{field}", field, value)))
    return table(("field", "allowed", "default", "meaning"), rows)


def _note(path: str, field: str, value: Schema) -> str:
    return str(value.get("description") or NOTES.get(path) or NOTES[field])


def _allowed(field: str, value: Schema, root: Schema) -> str:
    if field in ("workload", "target"):
        return "a plug-in"
    if field == "taps":
        return "'auto' or a list of pairs"
    words, _, pattern = allowed(value, root).partition(", matching ")
    if pattern:
        return f"{words}, as described" if "|" in pattern else f"{words}, matching `{pattern}`"
    return "a list" if words.startswith("a list") else words


def _written(value: Any, field: str) -> str:
    """A default as YAML would have it; long ones are shown in their own section."""
    if field == "stages":
        return "the usual seven"
    if value is not None and field in SECTIONED:
        return "see below"
    if field == "gates":
        return "see below"
    if field == "evaluate":
        return "`[" + ", ".join(use["use"] for use in value) + "]`"
    if field == "target":
        return "`onnxruntime-cpu`"
    return f"`{json.dumps(value)}`"


def _default_gates(schema: Schema) -> str:
    """The default list of gates, as YAML."""
    lines = []
    for gate in schema["properties"]["gates"]["default"]:
        told = {key: value for key, value in gate.items() if value is not None and (key, value) != ("of", "int8")}
        given = {key: value for key, value in told.items() if value is not False}
        lines.append("  - {" + ", ".join(f"{key}: {_yaml(value)}" for key, value in given.items()) + "}")
    return "The default:\n\n```yaml\ngates:\n" + "\n".join(lines) + "\n```"


def _yaml(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _whole_fits(schema: Schema) -> str:
    """What a section's own default `fit` has otherwise."""
    usual = {name: field.get("default") for name, field in schema["$defs"]["FitSpec"]["properties"].items()}
    rows = []
    for name, owner in (("teacher", "TeacherSpec"), ("distill", "DistillSpec"), ("quantize", "QuantizeSpec")):
        whole = schema["$defs"][owner]["properties"]["fit"]["default"]  # as validated: every field is there
        other = ", ".join(f"{key}: {value}" for key, value in whole.items() if value != usual[key])
        rows.append((f"`{name}.fit`", f"`{other}`, else as above" if other else "as above"))
    return table(("section", "defaults"), rows)


def own_catalog() -> Catalog:
    """KDQ's own plug-ins, whatever else is installed."""
    return Catalog.load(importlib.metadata.distribution("kdq").entry_points.select(group="kdq"))


def plugin_options(catalog: Catalog, entry: CatalogEntry) -> str:
    """The table of a plug-in's options."""
    options = catalog.options_schema(entry)
    return _table(options, options, entry.name) if options.get("properties") else "It has no options."


def table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """A table in Markdown."""
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
