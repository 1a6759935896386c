"""The table of classes: precision, recall and F1 of each, with exact intervals, as a file of the entry."""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING

from kdq_core.api import Subject, exact
from kdq_evaluators.classes import Said, counts

if TYPE_CHECKING:
    from collections.abc import Iterator


def write(subject: Subject, one: Said, number: int) -> None:
    """Write `classes.csv`; of a further output, with its number. A subject without a folder gets none."""
    if subject.folder is None:
        return
    path = subject.file(f"classes-{number}.csv" if number else "classes.csv")
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns())
        writer.writerows(rows(one))


def columns() -> tuple[str, ...]:
    """The headings of the table."""
    measured = (f"{name}{end}" for name in ("precision", "recall", "f1") for end in ("", "_low", "_high"))
    return ("class", "labels", "predicted", "right", *measured)


def rows(one: Said) -> Iterator[tuple[int | float, ...]]:
    """Yield the row of each class that is a label or predicted.

    F1 is 2 J / (1 + J) with J = right / (labels + predicted - right), which is a share of samples: its exact interval
    gives that of F1.
    """
    for number, (labels, predicted, right) in enumerate(zip(*(x.tolist() for x in counts(one)), strict=True)):
        if not labels + predicted:
            continue
        found: list[float] = []
        for under in (predicted, labels):
            found += [right / under if under else 0.0, *exact(right, under)]
        union = labels + predicted - right
        found += [2 * j / (1 + j) for j in (right / union, *exact(right, union))]
        yield (number, labels, predicted, right, *(round(value, 6) for value in found))
