"""Print what `kdq synergy` found as a page of results.

```
pip install ./examples
export KDQ_DATA_DIR=DIR # where the files of the data sets are; without it KDQ fetches those of Fashion-MNIST
kdq synergy benchmarks/synergy.yaml --seeds 3 --bits 8,4,2 --json > synergy.json
python benchmarks/synergy.py synergy.json > benchmarks/synergy.md
```
"""

from __future__ import annotations

import sys
from pathlib import Path

from machine import machine

from kdq_flows.facts.synergy import Cell, Synergy

PACKAGES = ("kdq", "torch", "onnxruntime")
ABOUT = """\
# Distillation and quantization, alone and together

Written by `python benchmarks/synergy.py` from `kdq synergy benchmarks/synergy.yaml --seeds 3 --bits 8,4,2`: the first
12,000 training images of Fashion-MNIST, 10,000 test images. A ResNet-14 of 175 thousand parameters teaches a ResNet-8
of 20 thousand. Each student trains for {epochs} epochs in all: *float* and *ptq* in float, *qat* in float and then
quantized. Activations have 8 bits. Figures are the top-1 of the shipped file in %, means over the seeds with 95 %
intervals by Student's t. Effects are paired over the seeds; the interaction is (KD+QAT) - (QAT) - (KD) + (float)."""


def page(found: Synergy) -> str:
    """The page in Markdown."""
    columns = dict.fromkeys(sorted((cell.path != "float", -cell.bits, cell.path) for cell in found.cells))
    names = ["float" if not later else f"{path} W{-bits}" for later, bits, path in columns]
    rows = [f"| distiller | {' | '.join(names)} |", f"|---|{'---:|' * len(names)}"]
    for distiller in dict.fromkeys(cell.distiller for cell in found.cells):
        cells = {(c.path != "float", -c.bits, c.path): c for c in found.cells if c.distiller == distiller}
        rows.append(f"| {distiller} | {' | '.join(map(_cell, map(cells.__getitem__, columns)))} |")
    effects = ["| effect | distiller | bits | points | 95 % | verdict |", "|---|---|---:|---:|---|---|"]
    for one in found.effects:
        ends = f"{100 * one.low:+.2f} to {100 * one.high:+.2f}"
        effects.append(
            f"| {one.name} | {one.distiller} | {one.bits} | {100 * one.mean:+.2f} | {ends} | {one.verdict} |"
        )
    said = [f"- {sentence}" for sentence in found.sentences]
    parts = [ABOUT.format(epochs=found.epochs), *map("\n".join, (rows, effects, said)), machine(PACKAGES)]
    return "\n\n".join(parts)


def _cell(cell: Cell) -> str:
    return f"{100 * cell.mean:.2f} ({100 * cell.low:.2f} to {100 * cell.high:.2f})"


if __name__ == "__main__":
    print(page(Synergy.model_validate_json(Path(sys.argv[1]).read_text(encoding="utf-8").splitlines()[-1])))
