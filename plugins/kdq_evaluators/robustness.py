"""Evaluator `robustness`: does int8 lose more than float when the inputs get worse?

What: corrupts the first samples of the test split in several ways and five severities, and measures top-1 on them
    (`robust_top1`), or the mean absolute error if labels are numbers (`robust_mae`). `robust_drop` is how much worse
    that is than on the same samples uncorrupted. `robust_drop_difference` is the drop of this file minus that of the
    float student: above 0, int8 suffers more. Each is the mean over all corruptions and severities; with a name behind
    a slash, as in `robust_drop_difference/noise`, over the severities of one. The file `robustness.csv` of the entry
    has each severity. The corruptions fit the input: images get noise, blur, brightness, shift; sound gets noise, gain,
    speed; token numbers get replaced and dropped tokens; tables get missing values and shifted columns.
Formula: in the module `kdq_evaluators.corruptions`, with their sources.
Source: Hendrycks and Dietterich 2019, arXiv:1903.12261. Intervals (95 %): over samples, whose corruptions are averaged
    first; paired for the difference, with one sample added each way as in Bonett and Price 2012.
Defaults and where they come from: 1,000 samples give the difference to about a point; all files see the same
    corruptions, which follow `seed`.
Costs: five passes of the samples for each corruption, of candidate and baseline. It is in no recipe by default.
Limits: the first output, with labels that are classes `[N]`, or numbers of its size. `modality: auto` goes by type and
    shape of the first input: integers `[B, L]` are text, floats `[B, C, H, W]` an image, `[B, 1, T]` or `[B, T]` with
    at least 1,000 values sound, `[B, F]` a table. Other inputs stay as they are.
"""

from __future__ import annotations

import csv
import math
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal

from kdq_core.api import Batch, Batches, Column, Evaluator, Field, Metric, StageError, Subject
from kdq_evaluators.corruptions import KINDS, corrupted, facts, kind_of
from kdq_evaluators.sampled import Sampled, mean_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np

SEVERITIES = (1, 2, 3, 4, 5)
Scores = dict[tuple[str, int], "np.ndarray"]


class Robustness(Evaluator):
    """Quality on corrupted inputs."""

    metrics: ClassVar[tuple[str, ...]] = ("robust_top1", "robust_mae", "robust_drop", "robust_drop_difference")
    columns: ClassVar[tuple[Column, ...]] = (
        Column(heading="robust top-1", metric="robust_top1", form="{:.2%}"),
        Column(heading="robust MAE", metric="robust_mae", form="{:.4g}"),
    )

    modality: Literal["auto", "image", "audio", "text", "table"] = Field(
        default="auto", description="what the first input is; auto: by type and shape"
    )
    samples: int = Field(default=1000, ge=1, le=10_000_000, description="how many test samples, from the first")
    pad: int = Field(default=0, description="token that fills up a text")
    seed: int = Field(default=0, ge=0, le=2**31 - 1, description="of the corruptions")

    def evaluate(self, candidate: Subject, baseline: Subject, batches: Batches) -> tuple[Metric, ...]:
        """Quality on corrupted inputs; with the difference of the drops if the candidate is another file.

        Raises:
            StageError: the inputs are of no known kind, or labels fit the output in no known way.
        """
        given = self._first(batches)
        kind = self._kind(given[0])
        ours, unit = self._scores(candidate, given, kind)
        same = candidate.path == baseline.path
        theirs = None if same else self._scores(baseline, given, kind)[0]
        write(candidate, ours, theirs)
        found: list[Metric] = []
        for name in ("", *KINDS[kind]):
            found += told(ours, theirs, name, unit)
        return tuple(found)

    def _first(self, batches: Batches) -> list[Batch]:
        """The labelled first samples."""
        found, count = [], 0
        for batch in batches():
            if batch.targets is None:
                raise StageError(
                    "evaluator 'robustness' compares with labels, but a test batch has no `targets`; give them, or "
                    "leave 'robustness' out of 'evaluate'"
                )
            left = self.samples - count
            inputs = tuple(x[:left] for x in batch.inputs)
            found.append(replace(batch, inputs=inputs, targets=batch.targets[:left], ids=batch.ids[:left]))
            count += len(found[-1].ids)
            if count >= self.samples:
                break
        if not found:
            raise StageError("the evaluators need the workload's test split, which is empty; give it samples")
        return found

    def _kind(self, batch: Batch) -> str:
        found = kind_of(batch.inputs[0].numpy()) if self.modality == "auto" else self.modality
        if found is None:
            x = batch.inputs[0]
            raise StageError(
                f"evaluator 'robustness' corrupts images, sound, token numbers and tables, but the first input is "
                f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)}; say what it is with the option 'modality', or "
                "leave 'robustness' out of 'evaluate'"
            )
        return found

    def _scores(self, subject: Subject, given: list[Batch], kind: str) -> tuple[Scores, str]:
        """How good each answer is, `[N]`, by corruption and severity, and the unit; `("", 0)` is without corruption."""
        found: Scores = {}
        clean, unit = self._measured(subject, given)
        found["", 0] = clean
        for number, name in enumerate(KINDS[kind]):
            for severity in SEVERITIES:
                worse = list(self._worse(given, kind, name, severity, number))
                found[name, severity] = self._measured(subject, worse)[0]
        return found, unit

    def _worse(self, given: list[Batch], kind: str, name: str, severity: int, number: int) -> Iterator[Batch]:
        import numpy as np
        import torch

        known = facts(given[0].inputs[0].numpy(), kind, self.pad, self.seed)
        for place, batch in enumerate(given):
            random = np.random.default_rng((self.seed, number, severity, place))
            first = torch.from_numpy(corrupted(batch.inputs[0].numpy(), kind, name, severity, random, known))
            yield replace(batch, inputs=(first, *batch.inputs[1:]))

    def _measured(self, subject: Subject, given: list[Batch]) -> tuple[np.ndarray, str]:
        import numpy as np

        outputs = np.concatenate([parts[0] for parts in subject.run_alike(lambda: given)])
        truth = np.concatenate([batch.targets.numpy() for batch in given if batch.targets is not None])
        if outputs.ndim == 2 and outputs.shape[1] > 1 and truth.ndim == 1 and truth.dtype.kind in "iu":
            known = truth >= 0
            return (outputs.argmax(1) == truth)[known].astype(np.float64), "fraction"
        if outputs.size == truth.size and truth.dtype.kind == "f":
            away = np.abs(outputs.reshape(len(truth), -1) - truth.reshape(len(truth), -1))
            return -away.mean(1, dtype=np.float64), "of the label"
        raise StageError(
            f"evaluator 'robustness' measures classes and numbers, but the first output of {subject.path.name!r} is "
            f"{list(outputs.shape)} and its labels are {truth.dtype} {list(truth.shape)}; leave it out of 'evaluate'"
        )


def mean_over(scores: Scores, name: str) -> np.ndarray:
    """Mean score of each sample over the severities of a corruption, or of all, `[N]`."""
    import numpy as np

    chosen = [values for (corruption, _), values in scores.items() if corruption and name in ("", corruption)]
    found: np.ndarray = np.mean(chosen, axis=0)
    return found


def told(ours: Scores, theirs: Scores | None, name: str, unit: str) -> list[Metric]:
    """The metrics of one corruption, or of all."""
    suffix, worse = f"/{name}" if name else "", mean_over(ours, name)
    quality = (
        mean_of(f"robust_top1{suffix}", worse)
        if unit == "fraction"
        else mean_of(f"robust_mae{suffix}", -worse, unit, "lower")
    )
    mine = drop(f"robust_drop{suffix}", ours, name, unit)
    found = [quality.metric(), mine.metric()]
    if theirs is not None:
        difference = mine.difference(drop("", theirs, name, unit))
        found.append(difference.model_copy(update={"name": f"robust_drop_difference{suffix}"}))
    return found


def drop(title: str, scores: Scores, name: str, unit: str) -> Sampled:
    """How much worse the corrupted samples are answered."""
    each, shares = scores["", 0] - mean_over(scores, name), unit == "fraction"
    return mean_of(title, each, "share lost" if shares else unit, "lower")._replace(least=-math.inf, pair=shares)


def write(subject: Subject, ours: Scores, theirs: Scores | None) -> None:
    """Write `robustness.csv`; a subject without a folder gets none."""
    if subject.folder is None:
        return
    with subject.file("robustness.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("corruption", "severity", "score", "float_score"))
        for (name, severity), values in ours.items():
            other = "" if theirs is None else f"{theirs[name, severity].mean():.6g}"
            writer.writerow((name or "none", severity, f"{values.mean():.6g}", other))
