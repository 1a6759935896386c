"""The teacher in plain PyTorch: one for KDQ, all peers and all seeds."""

from __future__ import annotations

import shutil

from benchmarks.peers.float_peer import trained
from benchmarks.peers.nets import teacher
from benchmarks.peers.workbench import Job, Made, lines


def make(job: Job) -> Made:
    """Train a teacher and export it."""
    new, epochs = teacher(job.case.net, job.data.sizes), job.budget.epochs(job.net)[2]
    model = trained(job, new, epochs, job.folder / "weights.safetensors")
    file = job.export(model)
    job.teacher.parent.mkdir(exist_ok=True)
    shutil.copyfile(file, job.teacher)
    return Made(file, lines(trained), model)
