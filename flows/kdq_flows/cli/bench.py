"""`kdq bench`: which of two ONNX files is faster."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdq_flows.cli import common
from kdq_flows.cli.completion import targets

if TYPE_CHECKING:
    from kdq_flows.bench import AtBatch, Bench

JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON object: ratio, low, high, verdict, and further facts.")
]


def register_commands(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command("bench", rich_help_panel="Inspect")(bench)


def bench(
    first: Annotated[Path, typer.Argument(metavar="A", help="The ONNX file to compare with, such as the float one.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="The ONNX file to judge, such as the int8 one.")],
    batch: Annotated[
        list[int] | None,
        typer.Option("--batch", min=1, max=65_536, help="Samples in a call; may be repeated; default: 1."),
    ] = None,
    threads: Annotated[int, typer.Option("--threads", min=1, max=1024, help="CPU threads of the runtime.")] = 1,
    seconds: Annotated[
        float, typer.Option("--seconds", min=0.01, max=3600, help="Time of all calls at each batch size.")
    ] = 2.0,
    target: Annotated[
        str, typer.Option("--target", help="The runtime, such as openvino.", autocompletion=targets)
    ] = "onnxruntime-cpu",
    inputs: Annotated[
        Path | None,
        typer.Option("--inputs", metavar="FILE.npz", help="Inputs by name; default: random ones, integers 0 or 1."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Say whether ONNX file B is faster than A: ratio = time of A / time of B, with its 99 % interval.

    The verdict is about B: faster, slower, or no difference. KDQ says faster only if the whole interval is above 1, so
    a file compared with itself gives no difference in 99 of 100 tries. KDQ opens both files anew in ten rounds, warms
    them up, and lets them take turns in random order on the least busy CPUs.
    """
    from kdq_flows.bench import bench as measured

    found = measured(first, second, batches=batch or (), threads=threads, seconds=seconds, target=target, inputs=inputs)
    if as_json:
        typer.echo(found.model_dump_json())
        return
    _show(found)


def _show(found: Bench) -> None:
    rows: list[dict[str, object]] = [
        {
            "batch": at.batch,
            "file": file.file,
            "p50 ms": f"{file.p50_ms.value:.4g}",
            "p95 ms": f"{file.p95_ms.value:.4g}",
            "p99 ms": f"{file.p99_ms.value:.4g}",
            "samples/s": f"{file.throughput.value:,.0f}",
        }
        for at in found.batches
        for file in at.files
    ]
    common.show(rows, title=f"{found.target}, threads: {found.threads}", as_json=False)
    for at in found.batches:
        common.say(line_of(at))


def line_of(at: AtBatch) -> str:
    """The verdict in words."""
    one, other = (file.file for file in at.files)
    same = at.verdict == "no difference"
    said = f"no difference shown between {other} and {one}" if same else f"{other} is {at.verdict} than {one}"
    return f"batch {at.batch}: {said}, {at.ratio:.3g} times the speed ({at.low:.3g} to {at.high:.3g})"
