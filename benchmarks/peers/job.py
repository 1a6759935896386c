"""Make one file, in the environment of its tool: `python -m benchmarks.peers.job CASE OUT SIZE`.

Writes below `OUT/cases/NAME`: the file, `made.json` with what it cost, and `simulated.npy` with the answers of the
model that the tool exported. If the tool refuses, `made.json` has its message.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import signal
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

from benchmarks.peers.cases import Case
from benchmarks.peers.nets import Budget
from benchmarks.peers.workbench import Job, Made, cost, message


def work(job: Job) -> dict[str, Any]:
    """Make the file of a case; returns its record."""
    tool = importlib.import_module(f"benchmarks.peers.{job.case.peer}_peer")
    began = time.monotonic()
    if job.case.method == "step":
        return {"step": tool.step(job)}
    made: Made = tool.make(job)
    record: dict[str, Any] = {**cost(), "seconds": time.monotonic() - began, "lines": made.lines}
    if made.file is not None:
        record["file"] = str(made.file.relative_to(job.out))
    if made.simulated is not None:
        import numpy as np
        import torch

        from benchmarks.peers.training import ask

        outputs = ask(made.simulated, tuple(map(torch.from_numpy, job.data.test.inputs)))
        np.save(job.folder / "simulated.npy", outputs)
    return {**record, **(made.more or {})}


def main() -> None:
    """Make the file; a refusal is a result too."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what it launched ends too
    job = Job(Case(**json.loads(sys.argv[1])), Path(sys.argv[2]), Budget(tiny=sys.argv[3] == "tiny"))
    if job.case.peer != "kdq":
        import torch

        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        torch.manual_seed(job.case.seed)
        torch.backends.mha.set_fastpath_enabled(False)  # one fused operator, which no peer quantizes or exports
    try:
        record = work(job)
    except Exception as error:
        traceback.print_exc()
        record = {"refused": message(error)}
    (job.folder / "made.json").write_text(json.dumps(record), encoding="utf-8")


if __name__ == "__main__":
    main()
