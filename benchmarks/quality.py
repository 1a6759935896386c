"""Measure the quality of the shipped file over paired seeds: float, post-training, QAT, and QAT with a teacher.

All variants of a seed start from the same weights. Variants that are compared train for as many epochs, on the same
samples in the same order. One teacher, of seed 0, teaches all seeds. KDQ does not repeat what is in the store already.

```
pip install ./examples
export KDQ_DATA_DIR=DIR # where the files of the data sets are; without it KDQ fetches those of Fashion-MNIST
python benchmarks/quality.py fashion-mnist --home DIR > benchmarks/quality-fashion-mnist.md
python benchmarks/quality.py clinc150 --home DIR > benchmarks/quality-clinc150.md
```
"""

from __future__ import annotations

import argparse
import math
import re
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from machine import machine

from kdq_core.recipe.site import Site
from kdq_core.recipe.spec import Recipe
from kdq_flows import compress

T_975 = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78}
"""97.5 % quantile of Student's t by degrees of freedom."""
PACKAGES = ("kdq", "torch", "onnxruntime", "openvino")
SILENT: dict[str, Any] = {"use": "logit-kd", "options": {"alpha": 0.0}}
LSQ, STATIC = {"use": "lsq", "freeze_batch_norm": 0.85}, {"use": "static"}
LOW = {"W8A8": {}, "W4A4": {"weights": 4, "activations": 4}, "W2A2": {"weights": 2, "activations": 2}}
ALONE, CONTROL, TAUGHT = ", alone", ", control", ", taught"


@dataclass(frozen=True)
class Fit:
    """How a student is trained, in float and then quantized.

    Attributes:
        batch: samples of a step.
        rates: learning rates, in float and quantized.
        epochs: number of epochs in float.
        qat: number of epochs quantized.
    """

    batch: int
    rates: tuple[float, float]
    epochs: int
    qat: int

    def section(self, epochs: int, **more: Any) -> dict[str, Any]:
        """Return a `fit` section of a recipe, in float."""
        return {
            "epochs": epochs,
            "batch_size": self.batch,
            "learning_rate": self.rates[0],
            "weight_decay": 5e-3,
            **more,
        }

    def quantized(self) -> dict[str, Any]:
        """Return the `fit` section of the quantized student."""
        return self.section(self.qat, learning_rate=self.rates[1], warmup=0.02)


@dataclass(frozen=True)
class Setting:
    """How one data set is trained.

    Attributes:
        about: data and models, for the page.
        workload: options of the workload.
        alone: fit of a student without a teacher; the float student trains for the sum of both numbers of epochs.
        taught: fit of a student with a teacher, and of its control.
        options: options of `logit-kd`.
        teacher_batch: samples of a step of the teacher.
        teacher_epochs: epochs of the teacher.
        views: number of views kept of each sample.
        few: number of labels; epochs over all samples, for the taught student; epochs over the labelled samples alone,
            for its control.
        longer: a longer fit and a larger number of views, for one more taught student and its control.
    """

    about: str
    workload: dict[str, Any]
    alone: Fit
    taught: Fit
    options: dict[str, float]
    teacher_batch: int
    teacher_epochs: int
    views: int
    few: tuple[int, int, int] | None = None
    longer: tuple[Fit, int] | None = None


SETTINGS = {
    "fashion-mnist": Setting(
        about="First 12,000 training images, 10,000 test images. Student: ResNet-8 of 78 thousand parameters. Teacher: "
        "ResNet-14 of 0.7 million, trained on all labels.",
        workload={"train_images": 12_000, "augment": True, "teacher_width": 32},
        alone=Fit(128, (3e-3, 3e-3), epochs=5, qat=15), taught=Fit(64, (2e-3, 1e-3), epochs=20, qat=6),
        options={"alpha": 0.5, "temperature": 2.0}, teacher_batch=128, teacher_epochs=16, views=6, few=(600, 12, 80),
        longer=(Fit(64, (2e-3, 1e-3), epochs=30, qat=10), 12),
    ),
    "clinc150": Setting(
        about="In-scope sentences: 15,000 to train on, 4,500 to test, 150 intents. Student: a transformer of one "
        "layer, 64 wide. Teacher: two layers, 128 wide.",
        workload={},
        alone=Fit(64, (3e-3, 3e-3), epochs=4, qat=12), taught=Fit(64, (3e-3, 1e-3), epochs=12, qat=6),
        options={"alpha": 0.5, "temperature": 2.0}, teacher_batch=64, teacher_epochs=16, views=1,
    ),
}  # fmt: skip


def variants(setting: Setting) -> dict[str, dict[str, Any]]:
    """Return the recipe sections of each variant."""
    alone, taught = setting.alone, setting.taught
    part = {**SILENT, "fit": alone.section(alone.epochs, schedule="constant")}  # the rate falls in QAT, once
    whole = {"distill": {**SILENT, "fit": alone.section(alone.epochs + alone.qat)}, "quantize": STATIC}
    made: dict[str, dict[str, Any]] = {}
    for bits, section in LOW.items():
        quantize = {**LSQ, **section, "fit": alone.quantized()}
        made[f"{bits} lsq{ALONE}"] = {"distill": part, "quantize": quantize}
    made[f"W8A8 static{ALONE}"] = whole
    made[f"W8A8 static in OpenVINO{ALONE}"] = {**whole, "target": {"use": "openvino"}}
    for who, distiller in ((CONTROL, SILENT), (TAUGHT, {"use": "logit-kd", "options": setting.options})):
        float_ = {**distiller, "fit": taught.section(taught.epochs)}
        for bits in ("W8A8", "W4A4"):
            quantize = {**LSQ, **LOW[bits], "fit": taught.quantized()}
            made[f"{bits} lsq{who}"] = {"distill": float_, "quantize": quantize}
        if setting.longer is not None:
            fit, views = setting.longer
            float_ = {**distiller, "fit": fit.section(fit.epochs)}
            for bits in ("W8A8", "W4A4"):
                quantize = {**LSQ, **LOW[bits], "fit": fit.quantized()}
                made[f"{bits} lsq, longer{who}"] = {"distill": float_, "quantize": quantize, "views": views}
        if setting.few is not None:
            labels, epochs, without = setting.few
            few = {"distill": {**distiller, "fit": taught.section(without if who == CONTROL else epochs)}}
            options = {"train_images" if who == CONTROL else "labelled": labels}
            made[f"{labels} labels, W8A8 static{who}"] = {**few, "quantize": STATIC, "options": options}
    return made


def recipe(asked: argparse.Namespace, seed: int, teacher: dict[str, Any], sections: dict[str, Any]) -> Recipe:
    """Build the recipe of one run. In `sections`, `options` are the workload's and `views` the cache's."""
    rest = {name: section for name, section in sections.items() if name not in ("options", "views")}
    setting = SETTINGS[asked.data]
    options, views = setting.workload | sections.get("options", {}), sections.get("views", setting.views)
    return Recipe.model_validate({
        "name": asked.data,
        "seed": seed,
        "workload": {"use": asked.data, "options": options},
        "teacher": {"cache": {"views": views}, **teacher},
        "evaluate": ["quality", "size", "coverage", "parity"],
        "gates": [],
        **rest,
    })  # fmt: skip


def nobody(setting: Setting) -> dict[str, Any]:
    """Return a teacher section with a student as the teacher, which is 9 times smaller, for runs without a teacher."""
    fit = {"epochs": 1, "batch_size": setting.teacher_batch, "weight_decay": 5e-3}
    return {"members": [{"source": "student"}], "fit": fit}


def teacher(asked: argparse.Namespace, site: Site) -> tuple[dict[str, Any], float]:
    """Train the one teacher in a run of its own with seed 0; return its checkpoint section and its top-1."""
    setting = SETTINGS[asked.data]
    fit = {"epochs": setting.teacher_epochs, "batch_size": setting.teacher_batch, "weight_decay": 5e-3}
    sections = {"distill": {**SILENT, "fit": {"epochs": 1}}, "quantize": STATIC}
    result = compress(recipe(asked, 0, {"fit": fit, "cache": {"enabled": False}}, sections), site, server=False)
    key = next(stage.key for stage in result.stages if stage.name == "train_teacher")
    (weights,) = (site.home / "store" / key[:2] / key).glob("*.safetensors")
    return {"members": [{"source": "checkpoint", "file": str(weights)}]}, result.models["teacher"]["top1"]


def interval(values: list[float]) -> str:
    """Format the mean over seeds and its 95 % interval, in points."""
    mean = statistics.mean(values)
    if len(values) < 2:
        return f"{mean:+.2f}"
    half = T_975[len(values) - 1] * statistics.stdev(values) / math.sqrt(len(values))
    return f"{mean:+.2f} ± {half:.2f}"


def main() -> None:
    """Run the variants that are not in the store yet, and print the page."""
    parser = argparse.ArgumentParser()
    parser.add_argument("data", choices=sorted(SETTINGS))
    parser.add_argument("--home", required=True, help="KDQ_HOME; what is there already is not computed again")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", default="", help="variants whose name this regular expression is found in")
    asked = parser.parse_args()
    site, setting = Site(home=Path(asked.home), threads=asked.threads), SETTINGS[asked.data]
    chosen = {name: s for name, s in variants(setting).items() if re.search(asked.only, name)}
    taught, teaches = {}, math.nan
    if any(name.endswith(TAUGHT) for name in chosen):
        taught, teaches = teacher(asked, site)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in chosen}
    for seed in asked.seeds:
        for name, sections in chosen.items():
            began = time.monotonic()
            who = taught if name.endswith(TAUGHT) else nobody(setting)
            result = compress(recipe(asked, seed, who, sections), site, server=False)
            found[name].append(result.models)
            top1 = {role: round(m["top1"], 4) for role, m in result.models.items()}
            print(f"seed {seed}, {name}: {top1} in {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    print(page(asked, found, teaches))


def page(asked: argparse.Namespace, found: dict[str, list[dict[str, Any]]], teaches: float) -> str:
    """Format the result as Markdown."""
    setting = SETTINGS[asked.data]
    alone, taught = setting.alone, setting.taught
    shipped = {name: [100 * models["int8"]["top1"] for models in runs] for name, runs in found.items()}
    floats = {name: [100 * models["student"]["top1"] for models in runs] for name, runs in found.items()}
    whole = floats.get(f"W8A8 static{ALONE}")
    rows = []
    for name, runs in found.items():
        against = interval(differences(shipped[name], whole)) if whole and name.endswith(ALONE) else ""
        twin = shipped.get(name.replace(TAUGHT, CONTROL)) if name.endswith(TAUGHT) else None
        gain = interval(differences(shipped[name], twin)) if twin else ""
        each = ", ".join(f"{value:.2f}" for value in shipped[name])
        flips, prepared = (", ".join(f"{m['int8'][k]:.0f}" for m in runs) for k in FLIPS)
        lsb = max(models["int8"]["parity_p99_lsb"] for models in runs)
        ratio = statistics.mean(models["student"]["bytes"] / models["int8"]["bytes"] for models in runs)
        mean = statistics.mean(shipped[name])
        before = "" if name.endswith(ALONE) else f"{statistics.mean(floats[name]):.2f}"
        rows.append(
            f"| {name} | {before} | {mean:.2f} | {each} | {against} | {gain} | {flips} | {prepared} | {lsb:g} "
            f"| {ratio:.2f} |"
        )
    few, only = "", ""
    if setting.few:
        labels, epochs, without = setting.few
        few = f". With {labels} labels: {epochs} epochs in float over all images, without labels for the others"
        only = f". With {labels} labels: {without} epochs over the labelled images alone"
    if setting.longer:
        fit, views = setting.longer
        only += f". *Longer*: {fit.epochs} epochs in float and {fit.qat} quantized, over {views} views of a sample "
        only += f"instead of {setting.views}"
    teacher = "" if math.isnan(teaches) else f", top-1 {100 * teaches:.2f} %, one for all seeds"
    lines = [
        f"# Quality on {asked.data}",
        "",
        f"Written by `python benchmarks/quality.py {asked.data} --home DIR`. {setting.about}",
        "",
        *([
            f"- *alone*: no teacher. {alone.epochs} epochs in float and {alone.qat} quantized (`static`: "
            f"{alone.epochs + alone.qat} in float), batch {alone.batch}. Compared with a float student of as many "
            "epochs."
        ] if whole else []),
        f"- *taught*: {taught.epochs} epochs distilled in float, then {taught.qat} quantized with the same teacher, "
        f"batch {taught.batch}; `logit-kd`, {', '.join(f'{k} {v:g}' for k, v in setting.options.items())}"
        f"{few}. The teacher trains {setting.teacher_epochs} epochs{teacher}.",
        f"- *control*: the same samples, order, first weights and epochs as *taught*, without a teacher{only}.",
        "",
        "Top-1 on the test split, of the float student before quantization and of the shipped file, in ONNX Runtime",
        "unless the row names another. Flips: samples whose predicted class differs (exact ties aside) between the",
        "file and the converted model, and between the file and the trained model. p99: difference between file and",
        "converted model, in LSBs. Size: bytes of the float student's file over bytes of the shipped file. Intervals:",
        "95 %, Student's t over paired seeds.",
        "",
        "| variant | float student % | top-1 % | each seed | against float, points | gain of the teacher "
        "| flips: converted | trained | p99 LSB | size |",
        "|---|---:|---:|---|---:|---:|---:|---:|---:|---:|",
        *rows,
        "",
        *([f"Float student alone, each seed: {', '.join(f'{value:.2f}' for value in whole)} %.", ""] if whole else []),
        machine(PACKAGES),
    ]  # fmt: skip
    return "\n".join(lines)


FLIPS = ("parity_flips", "parity_prepared_flips")


def differences(ours: list[float], theirs: list[float]) -> list[float]:
    """Subtract seed by seed."""
    return [a - b for a, b in zip(ours, theirs, strict=True)]


if __name__ == "__main__":
    main()
