"""A workload of random numbers, and teachers to learn from."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from kdq_core.plugins.kinds import Workload
from kdq_core.teachers.source import OnlineTeacher


class Numbers(Workload):
    """Cross entropy on whatever batch it is asked about, also at each position; it has no data of its own."""

    def fingerprint(self):
        return "0" * 64

    def teacher(self):
        raise NotImplementedError

    def student(self):
        raise NotImplementedError

    def batches(self, split, *, batch_size, seed=0, epoch=0, view=None):
        raise NotImplementedError

    def loss(self, outputs, batch):
        return F.cross_entropy(outputs.logits.flatten(0, -2), batch.targets.flatten())  # -100 is left out


@pytest.fixture
def numbers() -> Workload:
    return Numbers()


@pytest.fixture
def online():
    """Makes a teacher of a model."""
    return lambda model: OnlineTeacher(model)


@pytest.fixture
def seeded():
    """Makes a model with the weights of a seed."""

    def make(model, seed=0):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return model()

    return make
