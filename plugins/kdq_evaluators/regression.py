"""Metrics of outputs whose labels are floating-point numbers: values to predict, or labels of 0 and 1."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from kdq_core.api import Z95, Metric, wilson

if TYPE_CHECKING:
    import numpy as np


def numeric(given: np.ndarray, truth: np.ndarray) -> tuple[Metric, ...]:
    """`rmse` and `mae` of outputs against numbers; of labels that are all 0 or 1, `label_accuracy` and `label_f1`.

    Args:
        given: outputs `[N, ...]`; for labels of 0 and 1 they are logits.
        truth: labels `[N, ...]`.

    Returns:
        Nothing if the outputs are not one for each label.
    """
    import numpy as np

    if given.size != truth.size:
        return ()
    given, truth = given.reshape(len(truth), -1).astype(np.float64), truth.reshape(len(truth), -1)
    return binary(given, truth) if set(np.unique(truth)) <= {0.0, 1.0} else errors(given, truth)


def errors(given: np.ndarray, truth: np.ndarray) -> tuple[Metric, ...]:
    """`rmse` and `mae`; intervals (95 %) are those of a mean over the samples, of the squared errors for `rmse`."""
    import numpy as np

    samples = len(truth)
    found = []
    for name, each in (("rmse", ((given - truth) ** 2).mean(1)), ("mae", np.abs(given - truth).mean(1))):
        middle = float(each.mean())
        half = Z95 * float(each.std(ddof=1)) / math.sqrt(samples) if samples > 1 else math.inf
        values = [middle, max(0.0, middle - half), middle + half]
        value, low, high = map(math.sqrt, values) if name == "rmse" else values
        found.append(
            Metric(name=name, value=value, unit="of the label", direction="lower", low=low, high=high, samples=samples)
        )
    return tuple(found)


def binary(logits: np.ndarray, truth: np.ndarray) -> tuple[Metric, ...]:
    """`label_accuracy`, the share of labels that the sign of the logit gets right, and `label_f1`, macro-averaged."""
    import torch
    from torchmetrics.functional import classification

    right, labels = int(((logits > 0) == (truth > 0.5)).sum()), truth.size
    low, high = wilson(right, labels)
    asked = torch.from_numpy(logits), torch.from_numpy(truth).long()
    f1 = (
        classification.binary_f1_score(asked[0].flatten().sigmoid(), asked[1].flatten())
        if truth.shape[1] == 1
        else classification.multilabel_f1_score(asked[0].sigmoid(), asked[1], num_labels=truth.shape[1])
    )
    return (
        Metric(
            name="label_accuracy", value=right / labels, unit="fraction", direction="higher", low=low, high=high,
            samples=labels,
        ),
        Metric(name="label_f1", value=float(f1), unit="fraction", direction="higher", samples=labels),
    )  # fmt: skip
