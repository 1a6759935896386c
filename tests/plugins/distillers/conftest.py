"""A distiller's terms for logits or features written as lists or arrays, and some of both to try them on."""

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
def feature_terms() -> Callable[..., LossTerms]:
    """Gives `LossTerms` for a distiller, student features and teacher features by name, and perhaps labels."""

    def call(distiller: Distiller, student: dict, teacher: dict, labels=None) -> LossTerms:
        ours, theirs = ({n: torch.as_tensor(f) for n, f in side.items()} for side in (student, teacher))
        samples = len(next(iter(ours.values()), ()))
        logits = torch.zeros(samples, 2)
        targets = None if labels is None else torch.as_tensor(labels)
        batch = Batch(inputs=(logits,), targets=targets, ids=torch.arange(samples))
        return distiller.loss(Outputs(logits, ours), Outputs(logits, theirs), batch)

    return call


@pytest.fixture
def pair() -> tuple[np.ndarray, np.ndarray]:
    """Logits `[64, 10]` in float32 of a student and a teacher."""
    student, teacher = np.random.default_rng(0).normal(0, 3, (2, 64, 10)).astype(np.float32)
    return student, teacher


@pytest.fixture
def maps() -> tuple[np.ndarray, np.ndarray]:
    """Maps `[8, 3, 4, 4]` in float32 of a student, and `[8, 5, 4, 4]` of a teacher."""
    draw = np.random.default_rng(1)
    return draw.normal(0, 2, (8, 3, 4, 4)).astype(np.float32), draw.normal(0, 2, (8, 5, 4, 4)).astype(np.float32)
