"""A distiller's terms for logits written as lists or arrays, and logits to try them on."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from kdq_core.api import Batch, Distiller, LossTerms, Outputs


@pytest.fixture
def terms() -> Callable[..., LossTerms]:
    """Gives `LossTerms` for a distiller, student logits, teacher logits and perhaps labels."""

    def call(distiller: Distiller, student, teacher, labels=None) -> LossTerms:
        student, teacher = torch.as_tensor(student), torch.as_tensor(teacher)
        targets = None if labels is None else torch.as_tensor(labels)
        batch = Batch(inputs=(torch.zeros(len(student), 1),), targets=targets, ids=torch.arange(len(student)))
        return distiller.loss(Outputs(student), Outputs(teacher), batch)

    return call


@pytest.fixture
def pair() -> tuple[np.ndarray, np.ndarray]:
    """Logits `[64, 10]` in float32 of a student and a teacher."""
    student, teacher = np.random.default_rng(0).normal(0, 3, (2, 64, 10)).astype(np.float32)
    return student, teacher
