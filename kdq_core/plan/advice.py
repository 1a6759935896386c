"""Hints of `kdq plan`: where a recipe is known to be poor, with the figures that say so. Importable without torch."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

from kdq_core.plugins.asked import Asked
from kdq_core.plugins.budget import shared_schedule
from kdq_core.recipe.spec import Recipe
from kdq_core.store.records import Checkpoint
from kdq_core.store.store import Entry

ENOUGH = 30
"""Epochs from which on shifted and mirrored images paid for a student: at 15 they cost 0.9 to 1.0 points."""
CHANNELS, WIDTH = 32, 128
"""Widest convolution, and widest linear or recurrent layer, of a student for which int8 gains little time."""


def hints(asked: Asked) -> Iterator[str]:
    """What the recipe alone shows: which quantizer would be chosen how, and augmentation that does not pay."""
    recipe = asked.recipe
    listed = {use.use for use in recipe.stages}
    schedule = shared_schedule(asked)
    if "quantize" in listed and asked.ways:
        yield _choosing(asked)
    if not {"distill", "cache_teacher"} <= listed or not getattr(asked.workload, "augment", False):
        return
    epochs = recipe.distill.fit.epochs if schedule is None else schedule.epochs
    if epochs < ENOUGH:
        yield (
            f"the training samples are augmented, and the student has {epochs} epochs: on Fashion-MNIST a student of "
            f"15 epochs was 0.9 to 1.0 points better without; train for {ENOUGH} or more, or switch it off ('augment')"
        )
    yield from _views(recipe, epochs)


def _choosing(asked: Asked) -> str:
    schedule, ways = shared_schedule(asked), asked.ways
    last = asked.recipe.quantize.fit.epochs if schedule is None else schedule.tail
    of = "" if schedule is None else f"the last {last} of {schedule.epochs} epochs with "
    if len(ways) == 1:
        bits = asked.recipe.quantize.fewest_bits
        why = f"{bits} bits are few" if bits < 8 else "the recipe asks for what only training gives"
        return f"quantizer 'auto' trains {of}{ways[0]!r} at once, since {why}"
    return (
        f"quantizer 'auto' calibrates with {ways[0]!r}, and trains {of}{ways[-1]!r} only if that loses too much on the "
        "validation split"
    )


def _views(recipe: Recipe, epochs: int) -> Iterator[str]:
    cache = recipe.teacher.cache
    if cache.enabled and cache.views < epochs:
        yield (
            f"{cache.views} augmented views are kept, and the student has {epochs} epochs, so it sees each view "
            f"{math.ceil(epochs / cache.views)} times; teacher: {{cache: {{views: {epochs}}}}} gives each epoch its own"
        )


def learned(entries: Mapping[str, Entry]) -> Iterator[str]:
    """What kept entries show, by slot: a teacher with nothing to teach, a student too narrow for int8 to be faster."""
    records = {slot: entry.record for slot, entry in entries.items()}
    teacher, student = records.get("teacher"), records.get("student")
    if isinstance(teacher, Checkpoint) and isinstance(student, Checkpoint):
        yield from nothing_to_teach(teacher, student)
    if isinstance(student, Checkpoint):
        yield from narrow(entries["student"].file(student.weights))


def nothing_to_teach(teacher: Checkpoint, student: Checkpoint) -> Iterator[str]:
    """Compare the teacher with its student on the validation split, if both were watched there."""
    for gain in student.gains:
        if gain.metric == "top1" and gain.verdict != "better":
            yield (
                f"nothing to teach: alone the student has {100 * gain.control:.1f} % top-1, with the teacher "
                f"{100 * gain.taught:.1f} %; a better teacher, or none"
            )
            return
    best = [_last(record, "validation/top1") for record in (teacher, student)]
    if best[0] is not None and best[1] is not None and best[0] <= best[1]:
        yield (
            f"nothing to teach: the teacher has {100 * best[0]:.1f} % top-1 on the validation split and its student "
            f"{100 * best[1]:.1f} %; a better teacher, or none ('distill: {{control: true}}' shows the student alone)"
        )


def _last(record: Checkpoint, curve: str) -> float | None:
    return next((one.values[curve] for one in reversed(record.history) if curve in one.values), None)


def narrow(weights: Path) -> Iterator[str]:
    """Say of a narrow student that int8 gains little time; only the shapes in the file are read."""
    shapes = shapes_of(weights)
    channels = max((shape[0] for shape in shapes if len(shape) in (3, 4, 5)), default=0)
    width = max((min(shape) for shape in shapes if len(shape) == 2), default=0)  # not of a vocabulary
    if channels and channels < CHANNELS:
        yield (
            f"the student's widest convolution has {channels} channels: under {CHANNELS}, int8 gains little time over "
            "float, and may lose some at batch 1"
        )
    elif not channels and width and width < WIDTH:
        yield (
            f"the student's layers have at most {width} features: under {WIDTH}, int8 gains little time over float, "
            "and may lose some at batch 1"
        )


def shapes_of(weights: Path) -> list[tuple[int, ...]]:
    """The shapes of the tensors in a safetensors file, from its header alone."""
    with weights.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return [tuple(one["shape"]) for name, one in header.items() if name != "__metadata__"]
