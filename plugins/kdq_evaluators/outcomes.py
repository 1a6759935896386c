"""What the int8 file did on each sample of the test split; a promotion compares it with the champion's."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from kdq_core.api import Subject

FILE = "outcomes.safetensors"


def of_classes(given: np.ndarray, truth: np.ndarray) -> dict[str, np.ndarray]:
    """`top1`: 1 for a right class, else 0, uint8 `[N]`; both arguments are classes `[N]`."""
    return {"top1": (given == truth).astype("uint8")}


def of_numbers(given: np.ndarray, truth: np.ndarray) -> dict[str, np.ndarray]:
    """Outcomes `[N]` whose mean is the metric: `label_accuracy` of labels of 0 and 1, else `rmse` (squared) and `mae`.

    Args:
        given: outputs `[N, ...]`; for labels of 0 and 1 they are logits.
        truth: labels `[N, ...]`.
    """
    import numpy as np

    if given.size != truth.size:
        return {}
    given, truth = given.reshape(len(truth), -1).astype(np.float64), truth.reshape(len(truth), -1)
    if set(np.unique(truth)) <= {0.0, 1.0}:
        return {"label_accuracy": ((given > 0) == (truth > 0.5)).mean(1).astype(np.float32)}
    off = given - truth
    return {"rmse": (off**2).mean(1).astype(np.float32), "mae": np.abs(off).mean(1).astype(np.float32)}


def keep(subject: Subject, outcomes: dict[str, np.ndarray]) -> None:
    """Write the outcomes beside the report, if KDQ gave the evaluator a folder."""
    from safetensors.numpy import save_file

    if subject.folder is not None and outcomes:
        save_file(outcomes, subject.file(FILE))
