"""The model card of a version: what it is, what it was made from, its figures, gates and limits, and how to load it."""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from kdq_core.plan.cpu import cpu_name
from kdq_core.plan.gates import judge
from kdq_registry.environment import redacted

if TYPE_CHECKING:
    from kdq_core.recipe.spec import Recipe, Site
    from kdq_core.store.records import Artifact, EvaluationReport, Metric, TensorSpec

DESCRIPTION_LIMIT = 5000
"""Characters that MLflow's tables hold of a version's description."""
FLOATS_NAMED = 5
"""How many operators in float a card names."""


def card(
    site: Site,
    recipe: Recipe,
    artifact: Artifact,
    report: EvaluationReport,
    lineage: Mapping[str, str],
    *,
    limit: int | None = None,
) -> str:
    """Write the card in Markdown.

    Args:
        site: names the registry that a program loads the model from.
        recipe: what was asked for.
        artifact: the int8 file.
        report: its figures, beside those of the other models.
        lineage: digests of everything the file was made from.
        limit: most characters. The table then has the figures with an interval, those of gates, and the size, and loses
            its last rows until the card fits.
    """
    rows = list(_figures(report, None if limit is None else _headlines(recipe, report)))
    while True:
        text = "\n".join(_lines(site, recipe, artifact, report, lineage, rows)) + "\n"
        if limit is None or len(text) <= limit:
            return text
        if len(rows) <= 3:
            return text[: limit - 4].rsplit("\n", 1)[0] + "\n...\n"
        del rows[-1]


def _lines(site: Site, recipe: Recipe, artifact: Artifact, report: EvaluationReport, lineage: Mapping[str, str],
           rows: Sequence[str]) -> Iterator[str]:  # fmt: skip
    yield f"# {recipe.model_name}"
    yield ""
    yield (
        f"An int8 model for `{recipe.target.use}`, which KDQ {importlib.metadata.version('kdq')} made by distillation "
        f"and quantization. Recipe `{recipe.name}`, seed {recipe.seed}."
    )
    yield from ("", "## Made from", "")
    yield from _origin(recipe, artifact.quantizer or recipe.quantize.use, lineage)
    yield from ("", "## Figures", "")
    if rows:
        yield from rows
        yield ""
        yield f"Test split; 95 % intervals in brackets. Measured with {_measured_with()}."
    else:
        yield "None: the run measured nothing."
    yield from ("", "## Gates", "")
    yield from [
        f"- {'met' if one.met else '**not met**'}: {one.rule} (it is {_number(one.value)})"
        for one in judge(recipe.gates, report)
    ] or ["None: nothing says that the model is good enough."]
    yield from ("", "## Limits", "")
    yield from _limits(recipe, artifact, report)
    yield from ("", "## Licence", "")
    yield recipe.register_as.license or "Not stated. Write `register: {license: ...}` into the recipe."
    yield from ("", "## Load it", "")
    yield from _loading(site, recipe, artifact)


def _origin(recipe: Recipe, quantizer: str, lineage: Mapping[str, str]) -> Iterator[str]:
    data = f", fingerprint `{lineage['data'][:12]}`" if "data" in lineage else ""
    yield f"- data: workload `{recipe.workload.use}`{data}"
    titles = [stage.title for stage in recipe.stages]
    made = ", ".join(f"`{title}`" for title in titles if title in lineage) or "none that KDQ ran"
    yield f"- stages: {made}"
    losses = " + ".join(f"`{one.use}`" for one in recipe.distill.distillers)
    yield f"- distillers: {losses}" if "distill" in titles else "- no distillation"
    bits = f"{recipe.quantize.weights}-bit weights, {recipe.quantize.activations}-bit activations"
    yield f"- quantizer: `{quantizer}`, {bits}"


def _headlines(recipe: Recipe, report: EvaluationReport) -> set[str] | None:
    """The metrics that a short card shows; `None` for all."""
    asked = {gate.metric for gate in recipe.gates} | {"bytes"}
    found = {one.name for one in report.models.get("int8", ()) if one.name in asked or one.low is not None}
    return found or None


def _figures(report: EvaluationReport, wanted: set[str] | None) -> Iterator[str]:
    """The table: one row a metric of the int8 file, one column a model."""
    if "int8" not in report.models:
        return
    others = [slot for slot in report.models if slot != "int8"]
    yield f"| | {' | '.join(['int8', *others])} |"
    yield f"|---|---{'|---' * len(others)}|"
    values = {slot: {one.name: one for one in metrics} for slot, metrics in report.models.items()}
    for metric in report.models["int8"]:
        if wanted is not None and metric.name not in wanted:
            continue
        cells = [_cell(metric), *(_cell(values[slot].get(metric.name)) for slot in others)]
        unit = "" if metric.unit in ("fraction", "count") or metric.unit in metric.name else f", {metric.unit}"
        yield f"| {metric.name}{unit} | {' | '.join(cells)} |"


def _cell(metric: Metric | None) -> str:
    if metric is None:
        return ""
    if metric.low is None or metric.high is None:
        return _number(metric.value)
    return f"{_number(metric.value)} [{_number(metric.low, 3)}, {_number(metric.high, 3)}]"


def _number(value: float | None, digits: int = 4) -> str:
    if value is None:
        return "not measured"
    if not math.isfinite(value):
        return str(value)
    return f"{value:,.0f}" if value == int(value) else f"{value:.{digits}g}"


def _measured_with() -> str:
    packages = [f"{name} {importlib.metadata.version(name)}" for name in ("onnxruntime", "torch")]
    return f"{' and '.join(packages)} on {cpu_name()}"


def _limits(recipe: Recipe, artifact: Artifact, report: EvaluationReport) -> Iterator[str]:
    yield recipe.register_as.limits or "The recipe states none (`register: {limits: ...}`). What KDQ knows:"
    yield ""
    yield "- The figures hold for data like the test split; KDQ measured no other data unless a row above says so."
    if artifact.weight_bits_used < recipe.quantize.weights:
        yield f"- The file has {artifact.weight_bits_used}-bit weights, because the CPU that made it lacks VNNI."
    floats = [one for one in artifact.operators if not one.int8]
    for one in floats[:FLOATS_NAMED]:
        yield f"- `{one.path or one.operator}` runs in float: {one.reason}"
    if len(floats) > FLOATS_NAMED:
        yield f"- {len(floats) - FLOATS_NAMED} more operators run in float"
    for metric in report.models.get("int8", ()):
        if metric.note:
            yield f"- {metric.name} is {_number(metric.value)}: {metric.note}"


def _loading(site: Site, recipe: Recipe, artifact: Artifact) -> Iterator[str]:
    yield "```python"
    yield "import mlflow"
    yield ""
    yield f'mlflow.set_tracking_uri("{redacted(site.mlflow_uri)}")'
    yield f'model = mlflow.pyfunc.load_model("models:/{recipe.model_name}@champion")  # or models:/NAME/NUMBER'
    given = ", ".join(f'"{one.name}": {one.name}' for one in artifact.inputs)
    yield f"model.predict({{{given}}})"
    yield "```"
    yield ""
    for word, tensors in (("Input", artifact.inputs), ("Output", artifact.outputs)):
        for tensor in tensors:
            yield f"- {word} `{tensor.name}`: {tensor.dtype} {_shape(tensor)}"


def _shape(tensor: TensorSpec) -> str:
    return f"[{', '.join('N' if size == -1 else str(size) for size in tensor.shape)}]"
