"""The toy of benchmarks/chaos.py: a data file, two small nets and a recipe of four branches that takes seconds."""

from __future__ import annotations

from pathlib import Path

MODELS = """\
from torch import nn


def net(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(16, width), nn.ReLU(), nn.Linear(width, 4))


def student() -> nn.Module:
    return net(16)


def teacher() -> nn.Module:
    return net(64)
"""
RECIPE = """\
name: {name}
workload: {{use: arrays, options: {{file: "{folder}/toy.npz", model: "{folder}/toy.py:student",
  teacher: "{folder}/toy.py:teacher"}}}}
teacher: {{fit: {{epochs: 3}}}}
distill: {{fit: {{epochs: 3}}}}
quantize: {{use: minmax-qat, fit: {{epochs: 2}}}}
target: {{use: onnxruntime-cpu, options: {{placement: smallest}}}}
evaluate: [size]
matrix: {{over: {{quantize.weights: [8, 4], gates: [[], [{{metric: bytes, at_most: 1000000}}]]}}}}
select: {{minimise: [bytes]}}
"""
EPOCHS = {"train_teacher": 3, "distill": 3, "quantize": 2}
"""How many points a curve of each stage's run in MLflow may have at most."""


def write(folder: Path) -> None:
    """Write models and data; the recipes of the points lie beside them."""
    import numpy as np

    random = np.random.default_rng(0)
    y = np.arange(600) % 4
    x = random.normal(size=(600, 16)) + np.eye(4)[y].repeat(4, 1)
    np.savez(folder / "toy.npz", x=x.astype(np.float32), y=y)
    (folder / "toy.py").write_text(MODELS)


def recipe(folder: Path, name: str) -> Path:
    """The recipe file of a point; only its name differs from the others, so all its results must be equal."""
    file = folder / f"{name}.yaml"
    file.write_text(RECIPE.format(name=name, folder=folder))
    return file
