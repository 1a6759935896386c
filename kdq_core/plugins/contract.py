"""What a stage declares: its inputs, what its result depends on, what it needs. Importable without torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, JsonValue

from kdq_core.frozen import Frozen
from kdq_core.plugins.kinds import Kind
from kdq_core.store.family import Record

TRAINING = ("torch", "numpy", "accelerate")
"""Distributions that whatever trains or runs a model computes with."""


class Port(Frozen):
    """One input of a stage: the slot it reads, as it stands at that point of the list of stages."""

    slot: str = Field(description="such as `teacher`, `outputs`, `student`, `quantized`, `artifact`, `report`")
    record: type[Record] = Field(default=Record, description="what must stand there; a subclass will do")
    optional: bool = Field(default=False, description="the stage runs without it where no stage before gives it")


class Section(Frozen):
    """A part of a section of the recipe that a stage reads."""

    name: str = Field(description="of the section, such as `quantize`")
    only: tuple[str, ...] | None = Field(default=None, description="the fields it reads, dotted; none: all")
    without: tuple[str, ...] = Field(default=(), description="fields it does not read, dotted")
    held: dict[str, JsonValue] | None = Field(
        default=None,
        description="what the key holds in place of these fields, where the result depends on less than their values",
    )


class Reads(Frozen):
    """All that the result of a stage depends on, beside its own options and what its inputs hold: this is its key."""

    sections: tuple[Section, ...] = Field(default=(), description="of the recipe")
    plugins: tuple[Kind, ...] = Field(default=(), description="kinds of the recipe's plug-ins whose code runs")
    libraries: tuple[str, ...] = Field(default=TRAINING, description="distributions whose version matters")
    files: tuple[str, ...] = Field(default=(), description="files it reads; the key holds their sha256")
    seeded: bool = Field(default=True, description="whether it uses the recipe's seed")
    data: bool = Field(default=True, description="whether it reads the workload's data")
    others: dict[str, JsonValue] = Field(default={}, description="further values that the result depends on, by name")
    device: bool = Field(default=True, description="whether device, threads and instruction set matter")


class Needs(Frozen):
    """What a stage needs of the machine while it runs."""

    device: Literal["site", "cpu", "none"] = Field(
        default="site",
        description="site: the site's device, in a worker process; cpu: a worker process; none: it computes nothing, "
        "and runs in the process of the run",
    )
    alone: bool = Field(default=False, description="it measures time: nothing else of KDQ may compute beside it")


class Model(Frozen):
    """A model of a run that is measured and told of."""

    slot: str = Field(description="its name in tables, gates and JSON, such as `teacher`, `student`, `int8`")
    form: Literal["weights", "file"] = Field(description="weights of a checkpoint, or a file for a runtime")
    title: str = Field(description="its row in the closing table")
