"""A trial of the export: KDQ quantizes an untrained student on two samples, writes its files and runs each once.

So a model that cannot be exported is refused in seconds, not after its training.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from kdq_core.errors import StageError
from kdq_core.plan.gates import COVERAGE, check_required
from kdq_core.plugins.kinds import Subject
from kdq_core.quantization.convert import convert
from kdq_core.quantization.prepare import set_phase
from kdq_core.store.records import EvaluationReport
from kdq_core.work.data import two_samples
from kdq_core.work.quantized import check_student, placement, prepared

if TYPE_CHECKING:
    from kdq_core.work.checking import CheckWork

NOISE = 1e-2
NEAR = {"float": 0.01, "int8": 0.1}
"""Largest difference between the outputs in torch and in the runtime, relative to the largest output."""


def untrained_student(work: CheckWork) -> tuple[nn.Module, GraphModule]:
    """Give the untrained student of the input `student` and its graph; the checks of a run share them.

    Its weights have some noise, so that no two layers are equal: a runtime would merge them.

    Raises:
        RecipeError: a rule matches nothing, or the rules skip every operator.
        StageError: the student cannot be captured, or has nothing to quantize.
    """
    key = f"student of {work.givers['student'].title}"
    if key not in work.memo:
        student = work.model("student")
        with torch.no_grad():
            for parameter in student.parameters():
                parameter.add_(NOISE * torch.randn_like(parameter))
        work.memo[key] = student, check_student(work, student)
    student, graph = work.memo[key]
    return student, graph


def try_export(work: CheckWork, others: Mapping[str, nn.Module]) -> None:
    """Write and run the files of the untrained student, and of `others` by name.

    Raises:
        StageError: a model cannot be converted, written or run, a float file gives other outputs than its model, or too
            little of the student runs in int8 for a required gate.
    """
    student, graph = untrained_student(work)
    example = two_samples(work.workload).inputs
    keep_float = placement(work, graph).keep_float
    with tempfile.TemporaryDirectory(dir=work.scratch) as folder:
        for name, model in {"student": student, **others}.items():
            _try(work, model, example, Path(folder) / f"{name}.onnx", f"float {name}")
        path = Path(folder) / "int8.onnx"
        _try(work, _converted(work, graph, example), example, path, "int8 student")
        operators = work.target.coverage(path, graph, keep_float=keep_float)
        subject = Subject("int8", path, work.target, work.site.threads, operators=operators)
        _check_coverage(work, subject)


def _converted(work: CheckWork, graph: GraphModule, example: tuple[Tensor, ...]) -> GraphModule:
    model = prepared(work, graph).eval()
    set_phase(model, observe=True, quantize=False, freeze_batch_norm=True)
    with torch.no_grad():
        model(*example)
    set_phase(model, observe=False, quantize=True, freeze_batch_norm=True)
    return convert(model)


def _try(work: CheckWork, model: nn.Module, example: tuple[Tensor, ...], path: Path, title: str) -> None:
    work.target.export(model, example, path)
    answers = work.target.session(path, threads=work.site.threads).run(tuple(x.numpy() for x in example))
    with torch.no_grad():
        outputs = model(*example)
    for index, (mine, given) in enumerate(zip(_listed(outputs), answers, strict=True)):
        wanted = mine.numpy()
        away = np.abs(wanted - given).max() if wanted.shape == given.shape else np.inf
        most = np.abs(wanted).max()
        if not away <= NEAR[title.partition(" ")[0]] * most + 1e-6:
            raise StageError(
                f"the file of the {title}, not trained yet, gives other outputs than torch on two samples: output "
                f"{index} differs by up to {away:.3g}, and its largest value is {most:.3g}; replace the operators that "
                "the runtime computes in another way, layer by layer, and report them to KDQ"
            )


def _listed(outputs: Any) -> Iterable[Tensor]:
    if isinstance(outputs, Mapping):
        return tuple(outputs.values())
    return tuple(outputs) if isinstance(outputs, tuple | list) else (outputs,)


def _check_coverage(work: CheckWork, subject: Subject) -> None:
    """Refuse a student of which too little runs in int8 for a required gate: training changes nothing about that."""
    evaluator = next((one for one in work.evaluators if COVERAGE in one.metrics), None)
    gates = [gate for gate in work.section("gates") if gate.required and gate.of == "int8"]
    if evaluator is None:
        return
    measured = evaluator.evaluate(subject, subject, tuple)
    names = {metric.name for metric in measured}
    asked = [gate for gate in gates if gate.metric in names and gate.relative_to is None]
    check_required(asked, EvaluationReport(models={"int8": measured}), subject.operators)
