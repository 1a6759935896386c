"""Keep what a run of an example recipe measured, and write the page `examples/RESULTS.md`.

```
kdq run recipes/clinc150.yaml --json | tail -n 1 > result.json
python examples/results.py result.json
```

KDQ's home, from `KDQ_HOME`, must be that of the run: the intervals are in its report. `--cpu-minutes` adds the CPU time
of the run, as `time` prints it; on a machine that others use it says more than the wall time.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

from machine import machine

from kdq_core.recipe.site import Site
from kdq_core.store import open_store
from kdq_core.store.records import EvaluationReport
from kdq_core.store.store import Store
from kdq_flows.facts.result import RunResult

HERE = Path(__file__).resolve().parent
KEPT, PAGE = HERE / "results.json", HERE / "RESULTS.md"
MODELS = ("teacher", "student", "int8")
QUALITY = (
    "top1", "rmse", "hr_at_10", "ndcg_at_10", "eer", "phoneme_error_rate", "phoneme_error_rate_to_float",
)  # fmt: skip
"""Metrics of quality; a row shows each that was measured."""
SHOWN = ("parameters", "bytes", "top1_difference")
PACKAGES = ("kdq", "torch", "onnxruntime", "openvino")
HEAD = """\
# Results of the example recipes

Written by `python examples/results.py`. Each row is one run of `kdq run recipes/NAME.yaml` on the CPU with the recipe's
seed, measured on the test split in the files that the run exported. In brackets: 95 % intervals over the samples of the
test split; another seed gives another model. *Against float* is int8 minus float student, over the same samples. Bytes
are those of the float and of the int8 file. *Minutes* are the wall time of all stages, also of those whose result KDQ
kept from another recipe. Where other work shared the machine, the CPU minutes, summed over cores, say more.

| recipe | metric | teacher | float student | int8 student | against float | parameters | bytes | minutes | CPU |
|---|---|---|---|---|---|---:|---:|---:|---:|"""


def facts(result: RunResult, store: Store, known: dict[str, Any]) -> dict[str, Any]:
    """What is kept of one run.

    Args:
        result: the run.
        store: the store of its home.
        known: what is kept of other runs.

    Raises:
        SystemExit: the run failed, or KDQ kept a stage whose time is not known.
    """
    if result.status == "failed":
        raise SystemExit(f"the run {result.run!r} failed: {result.error}")
    keys = {stage.name: stage.key for stage in result.stages}
    seconds = {key: time for row in known.values() for key, time in row["seconds"].items()}
    own = {stage.key: stage.seconds for stage in result.stages if stage.state == "ran"}
    missing = [name for name, key in keys.items() if key not in own and key not in seconds]
    if missing:
        raise SystemExit(f"KDQ kept {', '.join(missing)} from a run whose time is not known; run it in a new home")
    report = store.get(keys["evaluate"]).record_as(EvaluationReport)
    metrics = {model: {m.name: [m.value, m.low, m.high] for m in found} for model, found in report.models.items()}
    return {
        "metrics": {
            model: {name: metrics[model][name] for name in (*QUALITY, *SHOWN) if name in metrics[model]}
            for model in MODELS
            if model in metrics
        },
        "gates": {gate.rule: gate.met for gate in result.gates},
        "seconds": {key: own.get(key, seconds.get(key)) for key in keys.values()},
        "machine": machine(PACKAGES),
    }


def line_of(recipe: str, row: dict[str, Any]) -> Iterator[str]:
    """The rows of one recipe: one for each metric of quality."""
    metrics = row["metrics"]
    minutes = f"{sum(row['seconds'].values()) / 60:.1f}"
    size = f"{metrics['student']['bytes'][0]:,.0f} to {metrics['int8']['bytes'][0]:,.0f}"
    for name in (name for name in QUALITY if name in metrics["int8"]):
        cells = [cell(name, metrics[model].get(name)) if model in metrics else "" for model in MODELS]
        against = cell(name, metrics["int8"].get(f"{name}_difference"), signed=True)
        count = f"{metrics['student']['parameters'][0]:,.0f}"
        rest = [count, size, minutes, f"{row['cpu_minutes']:.1f}" if row["cpu_minutes"] else ""]
        yield f"| `{recipe}` | {name} | {' | '.join([*cells, against, *rest])} |"


def cell(name: str, given: list[float] | None, *, signed: bool = False) -> str:
    """A value with its interval; fractions in percent."""
    if given is None:
        return ""
    scale, form = (1, ".3f") if name in ("rmse", "mae") else (100, ".2f")
    value, *ends = (None if x is None else format(scale * x, ("+" if signed else "") + form) for x in given)
    return f"{value} ({ends[0]} to {ends[1]})" if None not in ends else str(value)


def page(rows: dict[str, Any]) -> str:
    """The results as Markdown."""
    ordered = sorted(rows.items())
    table = [line for recipe, row in ordered for line in line_of(recipe, row)]
    failed = [f"`{recipe}`: {rule}" for recipe, row in ordered for rule, met in row["gates"].items() if not met]
    gates = "Each int8 file meets all gates of its recipe."
    if failed:
        gates = f"Gates that are not met: {'; '.join(failed)}."
    notes = [f"`{recipe}`: {row['note']}" for recipe, row in ordered if row["note"]]
    machines = [f"`{recipe}`: {row['machine']}" for recipe, row in ordered]
    if len({row["machine"] for row in rows.values()}) == 1:
        machines = [row["machine"] for row in list(rows.values())[:1]]
    return "\n".join([HEAD, *table, "", "\n\n".join([gates, *notes, *machines]), ""])


def main() -> None:
    """Add runs to what is kept, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="*", type=Path, help="JSON of `kdq run --json`; none: write the page anew")
    parser.add_argument("--cpu-minutes", type=float, help="CPU time of the run")
    parser.add_argument("--note", help="a sentence on how the run was made, for the page")
    asked = parser.parse_args()
    rows = json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.is_file() else {}
    for file in asked.results:
        result = RunResult.model_validate_json(file.read_text(encoding="utf-8").splitlines()[-1])
        name = re.sub(r"-\d{8}-\d{6}$", "", result.run)
        given = {"cpu_minutes": asked.cpu_minutes, "note": asked.note}
        rows[name] = facts(result, open_store(Site.from_environment()), rows) | given
    KEPT.write_text(json.dumps(rows, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    PAGE.write_text(page(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
