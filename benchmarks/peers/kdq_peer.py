"""KDQ: `kdq run` of the recipes beside this file, with its own KDQ_HOME below the output folder."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.peers.cases import FLOAT, Case
from benchmarks.peers.launch import Ended, launch
from benchmarks.peers.nets import NETS, Budget
from benchmarks.peers.workbench import Job, Made

if TYPE_CHECKING:
    from torch import nn

RECIPES = Path(__file__).with_name("recipes")
LIMIT = 7200.0
MEASURED = {
    "quality": ("top1", "rmse"),
    "simulated": ("top1_prepared",),
    "flips": ("parity_prepared_flips",),
}
"""What the table takes from KDQ's own evaluation, by the names of its metrics."""


def variant(case: Case, budget: Budget) -> dict[str, Any]:
    """Return the recipe of a case: that of its net, with other bits, without the teacher, or after training alone."""
    import yaml

    recipe: dict[str, Any] = yaml.safe_load((RECIPES / f"{case.net}.yaml").read_text(encoding="utf-8"))
    recipe["seed"] = case.seed
    if not case.taught:
        recipe["distill"]["options"]["alpha"] = 0.0
    quantize = recipe["quantize"]
    if case.method != "qat":
        recipe["quantize"] = quantize = {"use": "static"}
    if case.bits not in ("W8A8", FLOAT):
        quantize["weights"], quantize["activations"] = case.widths
    if case.openvino:
        recipe["target"] = "openvino"
    recipe["workload"]["options"] = budget.options(NETS[case.net])
    for section, epochs in zip(("distill", "quantize"), budget.epochs(NETS[case.net]), strict=False):
        if "fit" in recipe[section]:
            recipe[section]["fit"]["epochs"] = epochs
    return recipe


def written(net: str) -> int:
    """Count the lines of a net's recipe, without remarks."""
    lines = (RECIPES / f"{net}.yaml").read_text(encoding="utf-8").splitlines()
    return sum(1 for line in lines if line.strip() and not line.lstrip().startswith("#"))


def run(job: Job, until: str) -> tuple[Ended, dict[str, Any]]:
    """Run the recipe up to a stage; returns what it cost and what it found.

    Raises:
        RuntimeError: it failed.
    """
    recipe, log = job.folder / "recipe.yaml", job.folder / f"{until}.log"
    command = [sys.executable, "-m", "kdq_flows", "run", str(recipe), "--no-server", "--json", "--until", until]
    home = job.out / "kdq" / str(job.case.home)
    ended = launch(command, log, LIMIT, {**os.environ, "KDQ_HOME": str(home)}, job.out)
    found = [line for line in log.read_text(encoding="utf-8").splitlines() if line.startswith('{"run"')]
    if ended.failure or not found:
        raise RuntimeError(ended.failure or "kdq run gave no JSON")
    return ended, json.loads(found[-1])


def make(job: Job) -> Made:
    """Run the recipe to the float student, or to the file and then its evaluation, whose cost does not count."""
    import yaml

    text = yaml.safe_dump(variant(job.case, job.budget), sort_keys=False)
    (job.folder / "recipe.yaml").write_text(text, encoding="utf-8")
    if job.case.method == FLOAT:
        ended, _ = run(job, "distill")
        return Made(None, written(job.case.net), more=_cost(ended))
    ended, found = run(job, "export")
    path = job.folder / "model.onnx"
    shutil.copyfile(found["artifact"]["path"], path)
    _, found = run(job, "evaluate")
    told = found["models"]
    facts = {
        name: next((told["int8"][metric] for metric in metrics if metric in told["int8"]), None)
        for name, metrics in MEASURED.items()
    }
    student = next(told["student"][metric] for metric in MEASURED["quality"] if metric in told["student"])
    return Made(path, written(job.case.net), more={**_cost(ended), "told": {**facts, "student": student}})


def _cost(ended: Ended) -> dict[str, Any]:
    return {"cpu": ended.cpu, "peak": ended.peak, "seconds": ended.seconds}


def prepared(job: Job, model: nn.Module) -> nn.Module:
    """Return the model with KDQ's fake quantization, calibrated, in train mode."""
    import torch
    import yaml

    from kdq_core.plugins.catalog import Catalog
    from kdq_core.quantization.capture import capture
    from kdq_core.quantization.placing import placed
    from kdq_core.quantization.prepare import prepare, set_phase
    from kdq_core.recipe.spec import QuantizeSpec

    text = (RECIPES / f"{job.case.net}.yaml").read_text(encoding="utf-8")
    spec = QuantizeSpec.model_validate(yaml.safe_load(text)["quantize"])
    catalog = Catalog.load()
    target: Any = catalog.build("target", "onnxruntime-cpu")
    quantizer: Any = catalog.build("quantizer", spec.use, spec.options)
    graph = capture(model, job.sample)
    made = prepare(graph, placed(graph, target, quantizer, spec).places, quantizer)
    set_phase(made, observe=True, quantize=False, freeze_batch_norm=False)
    with torch.no_grad():
        for batch in job.calibration:
            made(*batch)
    set_phase(made, observe=True, quantize=True, freeze_batch_norm=False)
    return made.train()


def step(job: Job) -> dict[str, Any]:
    """Measure a training step, in the memory layout that KDQ's fit chooses for images."""
    import torch

    from benchmarks.peers.steps import beside_float

    torch.set_num_threads(1)
    return beside_float(job, lambda model: prepared(job, model), torch.channels_last)
