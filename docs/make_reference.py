"""Write docs/recipe.md from the JSON Schema of a recipe: `python docs/make_reference.py`.

Only KDQ's own plug-ins are described, whatever else is installed.
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from kdq_core.plugins.bases import KINDS
from kdq_core.plugins.catalog import Catalog
from kdq_core.reading.schema import recipe_schema
from kdq_core.recipe.explain import allowed, resolve

Schema = dict[str, Any]

PAGE = Path(__file__).with_name("recipe.md")
HEAD = """\
# The recipe, field by field

This page is written by `docs/make_reference.py` from the same JSON Schema that `kdq schema` prints. Do not edit it.

A recipe is a YAML file. It needs `name` and `workload`; every other field has a default:

```yaml
name: smallest
workload: digits
```

The same with the usual sections:

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
quantize:
  use: minmax-qat
  fit: {epochs: 4, learning_rate: 2.0e-4}
evaluate: [quality, size, {use: latency, options: {batch_size: 8}}, coverage, parity]
gates:
  - {metric: top1, at_least: 0.98, relative_to: student}
  - {metric: bytes, at_most: 300000}
register: {name: digits-small}
```

The file is strict. An unknown key, a value out of range, a duplicate key, a YAML tag or a merge key is an error that
names file and line. `2e-3` is a number; `yes` and `no` are text. A bare plug-in name stands for the plug-in with its
default options: `target: onnxruntime-cpu` is `target: {use: onnxruntime-cpu}`.

For completion in an editor, put this line on top; `kdq schema --output recipe.schema.json` writes the file:

```yaml
# yaml-language-server: $schema=recipe.schema.json
```
"""
GATES = """\
A list in place of the default one. Where the quantizer computes in float by design the default list is another:
`weight-only` does without the gate on `coverage_macs`, `dynamic` has `coverage_linear_macs` in its place.

Each is a rule that `kdq promote` checks. Give exactly one of `at_least` and `at_most`. A metric that was not
measured does not meet its gate. The evaluators of KDQ give these metrics:

- `quality`: `top1`, `precision`, `recall`, `f1`; but for the student also `top1_difference`, `agreement`
- `size`: `bytes`, `weight_bytes_int8`, `weight_bytes_float`, `parameters`, `compression`
- `latency`: `latency_p50_ms`, `latency_p95_ms`; but for the student also `speedup`
- `coverage`, for `int8` alone: `coverage_macs`, `coverage_linear_macs`, `coverage_weight_bytes`, `float_operators`
- `parity`, for `int8` alone, against the converted model: `parity_flips`, `parity_ties`,
  `parity_agreement`, `parity_p50_lsb`, `parity_p99_lsb`, `parity_max_lsb`, `top1_converted`; against the trained one:
  `parity_prepared_flips` and so on, `top1_prepared`; of a further output or task with its name behind (`top1/price`)"""
LOSSES = """\
A list in place of `use` and `options`. Each is a distiller's name, or a mapping:

```yaml
distill:
  losses:
    - {use: logit-kd, options: {temperature: {schedule: linear, start: 8.0, end: 2.0}}}
    - {use: fitnet, weight: {schedule: cosine, start: 1.0, end: 0.0}, taps: [[blocks.*, "blocks.[12]"]]}
```

How they add up, and what taps are: [how it works](how-it-works.md#several-distillers)."""
TRANSFER = """\
Each group of neighbouring channels of a teacher's layer becomes one channel of the student's: the mean of outputs, the
sum of inputs; what is added to features or scales them takes means. Then, in each round, a random share of these
tensors is held fixed while all others train. The student's layers must be of the same kind, no wider, and of the same
kernel; `auto` leaves out those that are not. Of buffers only the running statistics of batch norm are taken."""
SCHEDULE = """\
A weight, and every option of a distiller that is a real number, takes a number or a schedule. It runs once over the
steps of `distill`, and again over those of `quantize`."""
STAGES = """\
A list in place of the default one, in order. A stage reads each slot (`teacher`, `outputs`, `student`, `quantized`,
`artifact`, `report`) as the stages before it left it, and gives one. Leave stages out, add those of other packages, or
list one twice with a `name`:

```yaml
stages: [train_teacher, distill, {use: distill, name: polish, retry: {attempts: 1}}, quantize, export, evaluate]
```

The options of a stage stand in its `options`, or in a section of its name at the top level. `kdq validate` says which
slot is missing, and which stage gives it. What KDQ brings: `kdq plugins list --kind stage`."""
STUDENT = """\
With `source: checkpoint` a run begins with a student that is trained already. This recipe quantizes a model at hand,
without a teacher:

```yaml
name: mine
workload: digits
student: {source: checkpoint, file: student.safetensors}
stages: [quantize, export, evaluate, register]
quantize: {use: static}
```

Not one bit of the given weights or batch-norm statistics changes before `quantize`."""
SECTIONS = {
    "": ("Top level", ""),
    "stages": ("`stages`", STAGES),
    "student": ("`student`", STUDENT),
    "teacher": ("`teacher`", "One teacher or several; by default the workload's, trained on hard labels."),
    "teacher.members": (
        "`teacher.members`",
        "A list of teachers that answer as one. A relative `file` is sought in the folder `kdq` runs in. What it\n"
        "holds is part of the keys, where it lies is not. `kdq validate` looks for files and\n"
        "for the packages of factories, not for registered models.",
    ),
    "teacher.members.normalize": ("`teacher.members[].normalize`", ""),
    "teacher.cache": (
        "`teacher.cache`",
        "What is kept of the teacher for every student to read: its logits, and if asked for its features, for each\n"
        "training sample in each view. See [how it works](how-it-works.md#what-is-kept-of-a-teacher).",
    ),
    "distill": ("`distill`", "The float student, trained with the teacher's outputs: by one distiller, or by several."),
    "distill.losses": ("`distill.losses`", LOSSES),
    "distill.losses.weight": ("A schedule", SCHEDULE),
    "distill.transfer": ("`distill.transfer`", TRANSFER),
    "quantize": ("`quantize`", "Quantization-aware training of that student; the teacher is still teaching."),
    "gates": ("`gates`", GATES),
    "register": ("`register`", "Where the int8 model is registered."),
    "retry": ("`retry`", "What happens after an error that may pass by itself. It is in no key."),
}
NOTES = {
    "name": "names the experiment and, without `register.name`, the registered model",
    "stages": "see `stages` below",
    "seed": "every random choice follows from it",
    "workload": "data and models: a plug-in's name, or `use` and `options`",
    "teacher": "see `teacher` below",
    "student": "see `student` below",
    "distill": "see `distill` below",
    "quantize": "see `quantize` below",
    "target": "the runtime: a plug-in's name, or `use` and `options`",
    "evaluate": "evaluators, each a plug-in's name, or `use` and `options`; none twice",
    "gates": "see `gates` below; `[]` lets every version pass",
    "register": "see `register` below",
    "retry": "see `retry` below",
    "fit": "see `fit` below",
    "epochs": "passes over the training split",
    "batch_size": "samples in a step",
    "learning_rate": "the highest one, after the warm-up",
    "weight_decay": "of matrices and kernels; vectors and scalars are not decayed",
    "metric": "name of a metric, as `kdq run --json` gives it",
    "of": "the model that is judged",
    "at_least": "lower bound",
    "at_most": "upper bound",
    "register.name": "name of the registered model; without it the recipe's name",
}
FIT = """\
`teacher`, `distill` and `quantize` each have a `fit`. What a `fit` leaves out takes the default of its section.
"""


OPTIONS = """\
All options of a workload are part of the key of every stage: a change of one trains the teacher again. Those that only
the student reads, which the workload names, leave the teacher as it is."""


def reference() -> str:
    """The page."""
    own = importlib.metadata.distribution("kdq").entry_points.select(group="kdq")
    catalog = Catalog.load(own)
    schema = recipe_schema(catalog)
    parts = [HEAD]
    for name, (title, text) in SECTIONS.items():
        section = _section(schema, name)
        parts.append("\n\n".join(filter(None, (f"## {title}", text, _table(section, schema, name)))) + "\n")
    parts.append(f"## `fit`\n\n{FIT}\n{_table(schema['$defs']['FitSpec'], schema, 'fit')}\n\n{_whole_fits(schema)}\n")
    parts.append("\n\n".join(("## Options of the plug-ins that come with KDQ", OPTIONS, *_plugins(catalog))) + "\n")
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
    return _markdown(("field", "allowed", "default", "meaning"), rows)


def _note(path: str, field: str, value: Schema) -> str:
    return str(value.get("description") or NOTES.get(path) or NOTES[field])


def _allowed(field: str, value: Schema, root: Schema) -> str:
    if field in ("workload", "target"):
        return "a plug-in"
    if field == "taps":
        return "'auto' or a list of pairs"
    words = allowed(value, root)
    return "a list" if words.startswith("a list") else words


def _written(value: Any, field: str) -> str:
    """A default as YAML would have it; long ones are shown in their own section."""
    if field == "stages":
        return "the usual seven"
    if field in ("teacher", "student", "members", "cache", "distill", "quantize", "fit", "register", "retry"):
        return "see below"
    if field == "gates":
        return "three: " + "; ".join(f"`{_gate(gate)}`" for gate in value)
    if field == "evaluate":
        return "`[" + ", ".join(use["use"] for use in value) + "]`"
    if field == "target":
        return "`onnxruntime-cpu`"
    return f"`{json.dumps(value)}`"


def _gate(gate: Schema) -> str:
    given = {key: value for key, value in gate.items() if value is not None and (key, value) != ("of", "int8")}
    return "{" + ", ".join(f"{key}: {value}" for key, value in given.items()) + "}"


def _whole_fits(schema: Schema) -> str:
    """What a section's own default `fit` has otherwise."""
    usual = {name: field.get("default") for name, field in schema["$defs"]["FitSpec"]["properties"].items()}
    rows = []
    for name, owner in (("teacher", "TeacherSpec"), ("distill", "DistillSpec"), ("quantize", "QuantizeSpec")):
        whole = schema["$defs"][owner]["properties"]["fit"]["default"]  # as validated: every field is there
        other = ", ".join(f"{key}: {value}" for key, value in whole.items() if value != usual[key])
        rows.append((f"`{name}.fit`", f"`{other}`, else as above" if other else "as above"))
    return _markdown(("section", "defaults"), rows)


def _plugins(catalog: Catalog) -> Iterator[str]:
    for kind in KINDS:
        for entry in catalog.of_kind(kind):
            options = catalog.options_schema(entry)
            yield f"### {kind} `{entry.name}`"
            yield entry.summary[0].upper() + entry.summary[1:] + "."
            yield _table(options, options, entry.name) if options.get("properties") else "It has no options."


def _markdown(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


if __name__ == "__main__":
    PAGE.write_text(reference(), encoding="utf-8")
