"""The teacher in plain PyTorch: one for KDQ, all peers and all seeds."""

from __future__ import annotations

from benchmarks.peers.float_peer import trained
from benchmarks.peers.nets import teacher
from benchmarks.peers.workbench import Job, Made, lines


def make(job: Job) -> Made:
    """Train a teacher and export it."""
    new, epochs = teacher(job.case.net, job.data.sizes), job.budget.epochs(job.net)[2]
    model = trained(job, new, epochs, job.out / "teachers" / f"{job.net.teacher}.safetensors")
    return Made(job.export(model), lines(trained), model)
