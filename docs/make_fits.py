"""The page `models.md`: which models fit, from what the zoo of tests measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
MEASURED = ROOT / "tests" / "plugins" / "targets" / "zoo" / "measured.json"
TARGETS = {"onnxruntime-cpu": "ONNX Runtime", "openvino": "OpenVINO"}
FAMILIES = {
    "attention": "Vision transformers",
    "classic": "Classic convolutional networks",
    "dense": "Detection, segmentation, images from images",
    "language": "Language",
    "mobile": "Mobile networks",
    "sound": "Sound and time series",
    "tables": "Tables, graphs and the odd ones",
}
HEAD = """\
# What models fit

KDQ takes small versions of {count} model families through both targets: by calibration (`static`) and by two steps of
QAT (`minmax-qat`). Each of the {files} files passed these checks:

- The float file gives what the model gives in torch.
- The int8 file gives what its simulation gives. The table has the largest departure of 256 samples, in steps of the
  output's 8-bit grid (LSB), at the 99th percentile of the values.
- Coverage tells for each layer whether it runs in int8, and the runtime's own graph agrees.

*int8* is the share of all products that run in int8, those of attention included. Weights are random, so the page says
nothing of quality. `tests/plugins/targets/zoo` has the models; `docs/make_pages.py` writes this page from what they
measured. Do not edit it. Of your own model, `kdq check` tells the same in seconds."""
REASONS = """\
## Why an operator stays in float

Neither runtime has an int8 kernel for {neither}.

| operator | what KDQ says |
|---|---|"""


def page() -> str:
    """The page."""
    known = json.loads(MEASURED.read_text(encoding="utf-8"))
    models = [ways for family in known["models"].values() for ways in family.values()]
    head = HEAD.format(count=len(models), files=sum(map(len, models)))
    parts = [f"## {title}\n\n{_table(known['models'][name])}" for name, title in FAMILIES.items()]
    plain = {kind: {f"{one} has no int8 kernel for {kind}" for one in TARGETS.values()} for kind in known["reasons"]}
    neither = ", ".join(f"`{kind}`" for kind, said in sorted(known["reasons"].items()) if set(said) == plain[kind])
    rows = [f"| {k} | {'; '.join(said)} |" for k, said in sorted(known["reasons"].items()) if set(said) != plain[k]]
    return "\n\n".join([head, *parts, "\n".join([REASONS.format(neither=neither), *rows])]) + "\n"


def _table(family: dict[str, Any]) -> str:
    columns = [f"{title}: int8 | LSB" for title in TARGETS.values()]
    lines = [f"| model | {' | '.join(columns)} | in float |", f"|---|{'---:|' * 2 * len(TARGETS)}---|"]
    for name, ways in sorted(family.items()):
        cells = []
        for target in TARGETS:
            own = [measured for way, measured in ways.items() if way.startswith(f"{target} ")]
            cells += [f"{100 * min(one['products'] for one in own):.0f} %", f"{max(one['parity'] for one in own):.2f}"]
        kinds = sorted({kind for measured in ways.values() for kind in measured["float"]})
        lines.append(f"| {name} | {' | '.join(cells)} | {', '.join(kinds)} |")
    return "\n".join(lines)
