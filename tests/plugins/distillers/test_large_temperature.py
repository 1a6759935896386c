"""Hinton et al. 2015, section 2.1: at a high temperature, learning soft targets is matching logits.

There, softmax(z / T) is (1 + z / T) / C but for terms of second order, for logits of zero mean, and the gradient of the
divergence, (q - p) / T, becomes (z_s - z_t) / (C T^2); the losses here carry T^2. Each `limit_*` has the same step for
one distiller, in float64, for the gradient of the mean over `N` samples; logits need no zero mean, because a softmax
takes it off. Expected are the limits themselves, and that the distance to them falls with 1 / T.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from kdq_core.api import Batch, Outputs
from kdq_core.plugins.catalog import Catalog

CATALOG = Catalog.load()
LABELS = np.arange(64) % 10
REAL = np.arange(64).reshape(8, 8) % 8 <= np.arange(8)[:, None]  # of 8 sequences, 1 to 8 positions are no padding
GROUPS, FREE = ((0, 2), (5, 8)), [3, 4, 9]
NO_LIMIT = {"dist": "correlations do not shrink with T, so T^2 makes them grow without end"}


def centred(z: np.ndarray) -> np.ndarray:
    found: np.ndarray = z - z.mean(-1, keepdims=True)
    return found


def limit_of_softmax(student: np.ndarray, teacher: np.ndarray) -> np.ndarray:
    """(z_s - z_t) / C of centred logits."""
    found: np.ndarray = centred(student - teacher) / student.shape[-1] / len(student)
    return found


def limit_of_standardized(student: np.ndarray, teacher: np.ndarray) -> np.ndarray:
    """That of u = (z - mean) / s, handed back through u: (g - mean g - u mean(g u)) / s."""
    u, other = (centred(z) / z.std(-1, keepdims=True) for z in (student, teacher))
    g = limit_of_softmax(u, other)
    found: np.ndarray = (centred(g) - u * (g * u).mean(-1, keepdims=True)) / student.std(-1, keepdims=True)
    return found


def limit_of_sigmoids(student: np.ndarray, teacher: np.ndarray) -> np.ndarray:
    """The slope of a sigmoid at 0 is 1/4, and nothing is centred."""
    found: np.ndarray = (student - teacher) / 4 / len(student)
    return found


def limit_of_positions(student: np.ndarray, teacher: np.ndarray) -> np.ndarray:
    """That of softmax over the real positions, with their number for N; zero at padding."""
    found = np.zeros_like(student)
    found[REAL] = limit_of_softmax(student[REAL], teacher[REAL])
    return found


def limit_of_groups(student: np.ndarray, teacher: np.ndarray) -> np.ndarray:
    """Softmax in each group, sigmoids in the others."""
    found = np.zeros_like(student)
    for first, last in GROUPS:
        at = slice(first, last + 1)
        found[:, at] = limit_of_softmax(student[:, at], teacher[:, at])
    found[:, FREE] = limit_of_sigmoids(student[:, FREE], teacher[:, FREE])
    return found


def limit_of_decoupled(student: np.ndarray, teacher: np.ndarray) -> np.ndarray:
    """With weights 2 and 3, as in `CASES`.

    The label against the others is a coin with the logit m = (z_y - mean of the others) / T - log(C - 1), which shows y
    with a probability of 1/C and has the slope 1/C (1 - 1/C); m moves by 1/T with z_y, by -1 / (T (C - 1)) with each
    other. Among the others it is softmax of C - 1 classes.
    """
    samples, classes = student.shape
    others = np.arange(classes) != LABELS[:, None]
    among = [z[others].reshape(samples, classes - 1) for z in (student, teacher)]
    against = [z[~others] - rest.mean(-1) for z, rest in zip((student, teacher), among)]
    slope = (classes - 1) / classes**2 * (against[0] - against[1]) / samples
    found: np.ndarray = np.where(others, -1 / (classes - 1), 1.0) * (2.0 * slope)[:, None]
    found[others] += 3.0 * limit_of_softmax(*among).ravel()
    return found


@dataclass(frozen=True)
class Case:
    """A distiller with its limit."""

    name: str
    options: dict[str, Any]
    limit: Callable[[np.ndarray, np.ndarray], np.ndarray]


WHOLE: dict[str, Any] = {"alpha": 1.0}
CASES = {
    "logit-kd": Case("logit-kd", WHOLE, limit_of_softmax),
    "logit-kd, standardized": Case("logit-kd", WHOLE | {"standardize": True}, limit_of_standardized),
    "multi-label-kd": Case("multi-label-kd", WHOLE, limit_of_sigmoids),
    "token-kd": Case("token-kd", WHOLE | {"padding_input": 0}, limit_of_positions),
    "mixed-kd": Case("mixed-kd", WHOLE | {"groups": GROUPS}, limit_of_groups),
    "dkd": Case("dkd", {"alpha": 2.0, "beta": 3.0}, limit_of_decoupled),
}


def distance(case: Case, student: np.ndarray, teacher: np.ndarray, temperature: float) -> float:
    """Length of what the gradient lacks of its limit, as a share of the limit's."""
    distiller: Any = CATALOG.build("distiller", case.name, {**case.options, "temperature": temperature})
    ours, theirs = torch.tensor(student, dtype=torch.float32, requires_grad=True), torch.tensor(teacher)
    inputs = torch.from_numpy(REAL.astype(np.int64)) if student.ndim == 3 else torch.zeros(len(student), 1)
    labels = torch.from_numpy(LABELS) if student.ndim == 2 else None
    given = distiller.loss(Outputs(ours), Outputs(theirs), Batch((inputs,), labels, torch.arange(len(student))))
    sum(given.terms.values()).backward()
    assert ours.grad is not None
    limit = case.limit(student, teacher)
    return float(np.linalg.norm(ours.grad.double().numpy() - limit) / np.linalg.norm(limit))


@pytest.mark.parametrize("name", CASES)
def test_at_a_high_temperature_the_gradient_is_that_of_matching_logits(name: str) -> None:
    """The logits have means of their own, up to 3 away from zero."""
    draw = np.random.default_rng(3)
    shape = (8, 8, 10) if name == "token-kd" else (64, 10)
    student, teacher = draw.normal(0, 1, (2, *shape)) + draw.uniform(-3, 3, (2, *shape[:-1], 1))
    far, near = (distance(CASES[name], student, teacher, temperature) for temperature in (10.0, 100.0))
    assert near < 0.01, (far, near)
    assert near < 0.2 * far, (far, near)


def test_every_distiller_with_a_temperature_has_its_limit_here() -> None:
    """One that is added comes with its limit, or with the reason why it has none."""
    named = {case.name for case in CASES.values()} | NO_LIMIT.keys()
    built: dict[str, Any] = {name: CATALOG.build("distiller", name) for name in CATALOG.names("distiller")}
    assert {name for name, distiller in built.items() if "temperature" in type(distiller).model_fields} == named
