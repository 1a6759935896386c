"""Evaluator `my-plugin`: how sure the file is of its answers.

What: the mean of the largest softmax probability over the test split.
Formula: 1/N * sum over samples of max softmax(z).
Source: Guo et al. 2017, "On Calibration of Modern Neural Networks", arXiv:1706.04599, section 2.
Defaults: temperature 1, which leaves the logits.
Costs: one pass over predictions that KDQ keeps.
Limits: models with one output of classes.
"""

from typing import ClassVar

from kdq_core.api import Evaluator, Field, Metric


class MyPlugin(Evaluator):
    """Its fields are the options of a recipe."""

    metrics: ClassVar[tuple[str, ...]] = ("confidence",)  # so that KDQ refuses a gate on a misspelt metric
    temperature: float = Field(default=1.0, ge=0.1, le=10, description="divides the logits")

    def evaluate(self, candidate, baseline, batches):
        """Measure one file: the teacher's, the float student's, the int8 student's; () if it does not apply."""
        import numpy as np

        logits = candidate.predict(batches)[0].astype(np.float64) / self.temperature
        if logits.ndim != 2 or logits.shape[1] < 2:
            return ()
        odds = np.exp(logits - logits.max(1, keepdims=True))
        sure = float((odds.max(1) / odds.sum(1)).mean())
        return (Metric(name="confidence", value=sure, unit="fraction", direction="neither", samples=len(logits)),)
