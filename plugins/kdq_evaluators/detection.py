"""Evaluator `detection`: mean average precision of boxes.

What: the mean over classes of the average precision: over IoU thresholds from 0.5 to 0.95 (`map`), at 0.5 (`map_50`)
    and at 0.75 (`map_75`), and the mean recall with at most 100 boxes an image (`mar`). Compared with the float student
    on the same images: `map_difference`.
Formula: that of COCO, as faster-coco-eval computes it.
Source: Lin et al. 2014, "Microsoft COCO", arXiv:1405.0312. Intervals (95 %): the jackknife over 20 groups of images
    (Kott 2001), paired for the difference.
Defaults and where they come from: thresholds and 100 boxes as for COCO.
Costs: twenty-one times the average precision of the test split, for candidate and baseline.
Limits: needs `pip install faster-coco-eval`. The first output is `[N, D, 6]`: x1, y1, x2, y2, score, class
    of D boxes, after non-maximum suppression, where a score of 0 or less marks an empty place. Of another head,
    `decode` makes that. Labels are `Batch.targets`, float `[B, G, 5]`: x1, y1, x2, y2, class, where a class below 0
    marks an empty place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from kdq_core.api import USER_CODE, Batches, Column, Evaluator, Field, Metric, StageError, Subject, user_object
from kdq_evaluators.answers import answers
from kdq_evaluators.sampled import Sampled, grouped, groups_of

if TYPE_CHECKING:
    import numpy as np

NAMES = {"map": "AP_all", "map_50": "AP_50", "map_75": "AP_75", "mar": "AR_third"}
"""The metrics, and what faster-coco-eval calls them."""


class Detection(Evaluator):
    """Mean average precision."""

    metrics: ClassVar[tuple[str, ...]] = ("map", "map_50", "map_75", "mar", "map_difference")
    columns: ClassVar[tuple[Column, ...]] = (Column(heading="mAP", metric="map", form="{:.2%}"),)
    decode: str | None = Field(
        default=None,
        pattern=USER_CODE,
        description="`file.py:function` or `module:function` that makes boxes `[N, D, 6]` of the outputs, a tuple of "
        "arrays; null: the first output is that",
    )

    def runs(self) -> tuple[str, ...]:
        """The user's function."""
        return () if self.decode is None else (self.decode,)

    def evaluate(self, candidate: Subject, baseline: Subject, batches: Batches) -> tuple[Metric, ...]:
        """Metrics in fractions; with the difference from the baseline if the candidate is another file.

        Raises:
            StageError: output or labels are no boxes, or a package is missing.
        """
        wanted = labels(batches)
        ours = scores(self._boxes(candidate, batches), wanted)
        found = tuple(one.metric() for one in ours)
        if candidate.path == baseline.path:
            return found
        return (*found, ours[0].difference(scores(self._boxes(baseline, batches), wanted)[0]))

    def _boxes(self, subject: Subject, batches: Batches) -> list[np.ndarray]:
        given = answers(subject, batches)
        rows: np.ndarray = given[0] if self.decode is None else user_object(self.decode)(given)
        if rows.ndim != 3 or rows.shape[2] != 6:
            raise StageError(
                "evaluator 'detection' reads boxes [N, D, 6] (x1, y1, x2, y2, score, class), but "
                f"{subject.path.name!r} gives {list(rows.shape)}; give its option 'decode' a function that makes boxes "
                "of the outputs, or leave 'detection' out of 'evaluate'"
            )
        return [one[one[:, 4] > 0] for one in rows]


def labels(batches: Batches) -> list[np.ndarray]:
    """The boxes of the labels by image, each `[G, 5]`.

    Raises:
        StageError: a batch has none.
    """
    found: list[np.ndarray] = []
    for batch in batches():
        given = batch.targets
        if given is None or given.ndim != 3 or given.shape[2] != 5:
            there = "none" if given is None else str(list(given.shape))
            raise StageError(
                "evaluator 'detection' compares with boxes [B, G, 5] (x1, y1, x2, y2, class) in `Batch.targets`, but a "
                f"test batch has {there}; give such labels, or leave 'detection' out of 'evaluate'"
            )
        found += [one[one[:, 4] >= 0] for one in given.numpy()]
    return found


def scores(given: list[np.ndarray], wanted: list[np.ndarray]) -> tuple[Sampled, ...]:
    """Each metric over all images, and without each group of them.

    Raises:
        StageError: faster-coco-eval is missing.
    """
    import numpy as np

    try:
        from faster_coco_eval import COCO
    except ModuleNotFoundError as error:
        raise StageError(
            "evaluator 'detection' computes with faster-coco-eval, which is not installed: "
            "`pip install faster-coco-eval`"
        ) from error
    truth = [boxed(image, row[:4], row[4]) for image, rows in enumerate(wanted) for row in rows.tolist()]
    answers = [
        boxed(image, row[:4], row[5]) | {"score": row[4]} for image, rows in enumerate(given) for row in rows.tolist()
    ]
    classes = sorted({one["category_id"] for one in truth})
    labelled = COCO(
        {
            "images": [{"id": image} for image in range(len(wanted))],
            "categories": [{"id": number} for number in classes],
            "annotations": [one | {"id": number, "iscrowd": 0} for number, one in enumerate(truth, start=1)],
        }
    )
    answered = labelled.loadRes([one for one in answers if one["category_id"] in classes])
    groups = groups_of(len(wanted))
    whole = computed(labelled, answered, list(range(len(wanted))))
    without = [
        computed(labelled, answered, np.flatnonzero(groups != group).tolist()) for group in range(groups.max() + 1)
    ]
    return tuple(grouped(name, whole[name], np.array([one[name] for one in without]), len(wanted)) for name in NAMES)


def boxed(image: int, corners: list[float], number: float) -> dict[str, Any]:
    """One box as COCO writes it."""
    x, y, right, low = corners
    width, height = right - x, low - y
    return {"image_id": image, "category_id": int(number), "bbox": [x, y, width, height], "area": width * height}


def computed(labelled: Any, answered: Any, images: list[int]) -> dict[str, float]:
    """The metrics over some images; without a labelled box they are 0."""
    from faster_coco_eval import COCOeval_faster

    judged = COCOeval_faster(labelled, answered, iouType="bbox", print_function=lambda *_: None)
    judged.params.imgIds = images
    judged.run()
    return {name: max(0.0, float(judged.stats_as_dict[theirs])) for name, theirs in NAMES.items()}
