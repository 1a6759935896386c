"""The golden batch of a version: inputs and answers, given again by a clean process with the runtime alone."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kdq_core.errors import StageError

if TYPE_CHECKING:
    import numpy as np

    from kdq_core.store.records import Artifact

SECONDS = 120
STEPS, SHARE = 2, 0.02
"""A quantized output may differ by two of its steps, a float one by 2 % of the range of its golden answers."""
READ = """
import sys
import numpy as np
model, given, answers = sys.argv[1:]
with np.load(given) as file:
    inputs = {name: file[name] for name in file.files}
"""
WRITE = """
for name, value in outputs.items():
    if not np.isfinite(value).all():
        sys.exit("it answers its golden batch with NaN or infinity")
np.savez(answers, **outputs)
"""
SCRIPTS = {
    "onnxruntime": """
import onnxruntime
session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
outputs = dict(zip([one.name for one in session.get_outputs()], session.run(None, inputs)))
""",
    "openvino": """
sys.modules["openvino_telemetry"] = None
import openvino
core = openvino.Core()
compiled = core.compile_model(core.read_model(model), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
given = compiled(inputs)
outputs = {port.any_name: given[port] for port in compiled.outputs}
""",
}
"""What runs in a process of its own, which sees neither KDQ nor the user's code."""


def runtime_of(target: str) -> str:
    """The package that runs the files of a target."""
    return "openvino" if target.startswith("openvino") else "onnxruntime"


def answers(runtime: str, model: Path, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Run a file in a clean process.

    Raises:
        StageError: the runtime cannot run it, or it answers with NaN. The message is a clause.
    """
    import numpy as np

    with tempfile.TemporaryDirectory() as folder:
        given, found = Path(folder) / "inputs.npz", Path(folder) / "answers.npz"
        np.savez(given, **inputs)  # type: ignore[arg-type]
        words = [sys.executable, "-I", "-c", READ + SCRIPTS[runtime] + WRITE, str(model), str(given), str(found)]
        try:
            done = subprocess.run(words, capture_output=True, text=True, timeout=SECONDS)
        except subprocess.TimeoutExpired:
            raise StageError(f"it does not answer its golden batch within {SECONDS} s") from None
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
            raise StageError(f"it does not answer its golden batch: {last[0][:300]}")
        with np.load(found) as file:
            return {name: file[name] for name in file.files}


def write_golden(path: Path, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]) -> None:
    """Write inputs and answers to one file."""
    import numpy as np
    from safetensors.numpy import save_file

    named = {f"input/{name}": value for name, value in inputs.items()}
    named |= {f"output/{name}": value for name, value in outputs.items()}
    save_file({name: np.ascontiguousarray(value) for name, value in named.items()}, path)


def tolerances(artifact: Artifact, outputs: Mapping[str, np.ndarray]) -> dict[str, float]:
    """By how much each output may differ on another machine."""
    steps: Sequence[float | None] = artifact.output_scales or [None] * len(artifact.outputs)
    scales = dict(zip([output.name for output in artifact.outputs], steps, strict=False))
    return {
        name: max(STEPS * (scales.get(name) or 0.0), SHARE * float(value.max() - value.min()), 1e-6)
        for name, value in outputs.items()
    }


def differing(path: Path, runtime: str, model: Path, allowed: Mapping[str, float]) -> Iterator[str]:
    """Run a model on a golden batch, and say where its answers are others.

    Raises:
        StageError: the model cannot be run.
    """
    import numpy as np
    from safetensors.numpy import load_file

    named = load_file(path)
    given = answers(runtime, model, {n.removeprefix("input/"): v for n, v in named.items() if n.startswith("input/")})
    for name, value in named.items():
        output = name.removeprefix("output/")
        if output == name:
            continue
        found = given.get(output)
        if found is None or found.shape != value.shape:
            yield f"it does not answer its golden batch: no output {output!r} of shape {value.shape}"
            continue
        most = float(np.abs(found.astype(np.float64) - value.astype(np.float64)).max(initial=0.0))
        if most > allowed.get(output, 0.0):
            yield (
                f"it answers its golden batch with another {output!r}: the largest difference is {most:.4g}, allowed "
                f"{allowed.get(output, 0.0):.4g}; this machine's {runtime} computes another result than the one that "
                "measured it"
            )
