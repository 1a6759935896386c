"""The declarations of a stage: inputs, dependencies of its result, needs, models. Importable without torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, JsonValue

from kdq_core.frozen import Frozen
from kdq_core.plugins.kinds import Kind
from kdq_core.store.family import Record

TRAINING = ("torch", "numpy", "accelerate")
"""Distributions that a stage computes with if it trains or runs a model."""


class Port(Frozen):
    """One input of a stage: the slot that it reads, as the last earlier stage left it."""

    slot: str = Field(description="such as `teacher`, `outputs`, `student`, `quantized`, `artifact`, `report`")
    record: type[Record] = Field(default=Record, description="class of the record in the slot; a subclass fits too")
    made_of: str = Field(default="", description="another port of the stage: what stands here must be made of that")
    optional: bool = Field(default=False, description="true: the stage also runs if no earlier stage gives the slot")


class Section(Frozen):
    """A part of a section of the recipe that a stage reads."""

    name: str = Field(description="name of the section, such as `quantize`")
    only: tuple[str, ...] | None = Field(default=None, description="dotted names of the fields it reads; null: all")
    without: tuple[str, ...] = Field(default=(), description="dotted names of fields it does not read")
    held: dict[str, JsonValue] | None = Field(
        default=None,
        description="what the key holds in place of these fields, if the result does not depend on all of their values",
    )


class Reads(Frozen):
    """Everything that the result of a stage depends on, beside its options and inputs. The stage's key holds it."""

    sections: tuple[Section, ...] = Field(default=(), description="the sections of the recipe that it reads")
    plugins: tuple[Kind, ...] = Field(default=(), description="kinds of the recipe's plug-ins whose code it runs")
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
        description="site: the site's device, in a worker process; cpu: the CPU, in a worker process; none: it "
        "computes nothing, and runs in the process of the run",
    )
    alone: bool = Field(
        default=False, description="true: it measures time, so no other stage computes on this machine's CPU beside it"
    )
    memory: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="share of a GPU's memory that it takes; stages whose shares fit run on one GPU; null: the site's",
    )
    precision: Literal["site", "fp32"] = Field(
        default="fp32",
        description="site: its fits compute in the site's precision (KDQ_PRECISION), which its key holds; fp32: in "
        "float32 whatever the site asks for, as quantization needs it",
    )
    devices: int = Field(default=1, ge=1, description="how many devices it computes on; KDQ sets it from the recipe")


class Model(Frozen):
    """A model that a run measures and reports."""

    slot: str = Field(description="its name in tables, gates and JSON, such as `teacher`, `student`, `int8`")
    form: Literal["weights", "file"] = Field(description="weights of a checkpoint, or a file for a runtime")
    title: str = Field(description="its row in the closing table")
