"""Metrics of outputs whose labels are floating-point numbers: values to predict, or labels of 0 and 1."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdq_core.api import Metric
from kdq_evaluators.classes import safely
from kdq_evaluators.sampled import Sampled, mean_of

if TYPE_CHECKING:
    import numpy as np


def numeric(given: np.ndarray, truth: np.ndarray, other: np.ndarray | None = None) -> tuple[Metric, ...]:
    """`rmse` and `mae` of outputs against numbers; of labels that are all 0 or 1, `label_accuracy` and `label_f1`.

    Args:
        given: outputs `[N, ...]`; for labels of 0 and 1 they are logits.
        truth: labels `[N, ...]`.
        other: outputs of the baseline, for the differences from it; `None` without one.

    Returns:
        Nothing if the outputs are not one for each label.
    """
    import numpy as np

    if given.size != truth.size or (other is not None and other.size != truth.size):
        return ()
    truth = truth.reshape(len(truth), -1)
    measure = binary if np.isin(truth, (0.0, 1.0)).all() else errors
    ours = measure(given.reshape(len(truth), -1), truth)
    theirs = () if other is None else measure(other.reshape(len(truth), -1), truth)
    return (
        *(one.metric() for one in ours),
        *(one.difference(another) for one, another in zip(ours, theirs, strict=False)),
    )


def errors(given: np.ndarray, truth: np.ndarray) -> tuple[Sampled, ...]:
    """`rmse` and `mae`."""
    import numpy as np
    import torch
    from torchmetrics.functional import mean_absolute_error, mean_squared_error

    both = torch.from_numpy(given.astype(np.float64)), torch.from_numpy(truth.astype(np.float64))
    rmse, mae = float(mean_squared_error(*both, squared=False)), float(mean_absolute_error(*both))
    away = np.abs(given.astype(np.float64) - truth)
    squares = (away**2).mean(1)
    return (
        Sampled("rmse", rmse, safely(squares - rmse**2, np.asarray(2 * rmse)), "of the label", "lower"),
        Sampled("mae", mae, away.mean(1) - mae, "of the label", "lower"),
    )


def binary(logits: np.ndarray, truth: np.ndarray) -> tuple[Sampled, ...]:
    """`label_accuracy`, the share of labels that the sign of the logit gets right, and `label_f1`, macro-averaged."""
    import numpy as np
    import torch
    from torchmetrics.functional import classification

    chosen, labels = logits > 0, truth > 0.5
    asked = torch.from_numpy(chosen), torch.from_numpy(labels).long()
    f1 = (
        classification.binary_f1_score(asked[0].flatten(), asked[1].flatten())
        if labels.shape[1] == 1
        else classification.multilabel_f1_score(asked[0], asked[1], num_labels=labels.shape[1])
    )
    under = (chosen.sum(0) + labels.sum(0)) / 2
    each = safely((chosen & labels).sum(0), under)
    away = safely((chosen & labels) - each * (chosen.astype(np.float64) + labels) / 2, under)
    return (
        mean_of("label_accuracy", (chosen == labels).mean(1)),
        Sampled("label_f1", float(f1), len(truth) * away.mean(1)),
    )
