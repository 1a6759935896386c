"""The page of results: one table for each net with the same columns, training steps, refusals, versions, machine."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from benchmarks.machine import machine
from benchmarks.peers.cases import teacher_of
from benchmarks.peers.environments import pins
from benchmarks.peers.nets import NETS, Budget
from benchmarks.peers.results import Record, case_of
from benchmarks.peers.rows import best, table

PACKAGES = ("kdq", "torch", "onnxruntime", "openvino")
HEAD = (
    "tool", "recipe", "bits", "teacher", "seeds", "float", "shipped", "minus KDQ", "simulated", "flips", "ties", "int8",
    "kB", "stripped", "batch 1", "batch 32", "CPU s", "MB", "lines",
)  # fmt: skip
BEST = ("bits", "teacher", "best of KDQ", "shipped", "best peer", "shipped", "peer minus KDQ")
ABOUT = """\
# KDQ beside its peers

Written by `python benchmarks/peers/run.py`. All tools have the same nets, data, teachers, seeds and numbers of epochs,
and one thread. A plain PyTorch loop trains the float students that the peers quantize; KDQ trains its own. Figures are
means over the seeds, with 95 % intervals by Student's t.

- *float*: the float student that was quantized. *shipped*: the file in its runtime. Both are top-1 in %, for ratings
  RMSE in stars (less is better), on the whole test split. *minus KDQ*: this file minus that of KDQ's `ptq` or `qat`
  with the same bits and teacher, paired over the seeds.
- *simulated*: the model in PyTorch that was exported, for ONNX Runtime's quantizer the same file with all optimisations
  off, for KDQ the trained model. *flips*: test samples, seed by seed, in which it names another class than the file,
  where neither side has a tie. *ties*: samples in which the two largest logits of the file are equal.
- *int8*: share of the convolutions and matrix products that int8 kernels compute, read from the runtime's own graph.
- *kB*: the file; *stripped*: without the exporter's metadata and annotations.
- *batch 1*, *batch 32*: time of the float student's file over time of this one in the same runtime, by `kdq bench`,
  with its 99 % interval: above 1 is faster. Measured for the first seed, without a teacher.
- *CPU s*: to the file, with the float student, without the teacher's training. *MB*: the largest process on the way.
- *lines*: what a user writes for the recipe: lines of code without data, training loop and evaluation, or of KDQ's
  recipe.
- The runtime is OpenVINO for recipes in `-openvino` and for NNCF's `ptq`, `ptq-uncorrected` and `qat`; else ONNX
  Runtime."""


def page(records: Sequence[Record], budget: Budget) -> str:
    """Format the records as Markdown."""
    parts = [ABOUT]
    if budget.tiny:
        parts.append("**A trial of one epoch over 512 samples: the figures mean nothing.**")
    for net in dict.fromkeys(record["net"] for record in records):
        own = [record for record in records if record["net"] == net]
        rows, won = table(own), best(own)
        if rows:
            epochs = "{} epochs in float, {} quantized; the teacher {}".format(*budget.epochs(NETS[net]))
            parts += [f"## {NETS[net].title}", f"{epochs}{_teacher(net, records)}."]
            parts += [grid(BEST, won)] if won else []
            parts.append(grid(HEAD, rows))
    parts += steps(records) + refusals(records)
    installed = ", ".join(sorted({name for names in pins().values() for name in names}))
    return "\n\n".join([*parts, f"Installed for the peers: {installed}.", machine(PACKAGES)]) + "\n"


def steps(records: Sequence[Record]) -> list[str]:
    """Make the section on training steps."""
    rows = [
        [
            NETS[one["net"]].title, one["peer"], f"{one['step']['float_ms']:.1f}", f"{one['step']['qat_ms']:.1f}",
            f"{one['step']['ratio']:.2f} ({one['step']['low']:.2f}-{one['step']['high']:.2f})",
        ]
        for one in records
        if "step" in one
    ]  # fmt: skip
    text = (
        "A step with fake quantization at 8 bits and the float step of the same net in turns, in the tool's own "
        "process: milliseconds, and the median of their ratio with its quartiles. KDQ lays out images channels last, "
        "in both steps, as its fits do."
    )
    return ["## Training step", text, grid(("net", "tool", "float ms", "QAT ms", "ratio"), rows)] if rows else []


def refusals(records: Sequence[Record]) -> list[str]:
    """Make the section on what a tool refuses, each request once."""
    told: dict[tuple[str, ...], str] = {}
    for record in records:
        if "refused" in record and record.get("as") != "below":
            told.setdefault(case_of(record).asked, _cell(record["refused"]))
        elif "refused" in record.get("latency", {}):
            told.setdefault(case_of(record).asked, _cell(f"kdq bench: {record['latency']['refused']}"))
    rows = [[*asked, message] for asked, message in told.items()]
    return ["## Refusals and crashes", grid(("net", "tool", "recipe", "bits", "message"), rows)] if rows else []


def _teacher(net: str, records: Sequence[Record]) -> str:
    wanted = teacher_of(net)
    found = [record["quality"] for record in records if case_of(record) == wanted and "quality" in record]
    return f" ({found[0]:.4g})" if found else ""


def _cell(text: str) -> str:
    return text[:400].replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def grid(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Format a table in Markdown."""
    return "\n".join([f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)])
