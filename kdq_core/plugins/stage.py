"""The sixth kind of plug-in: a stage, one kind of work in a plan.

A stage declares the slots it reads, the slot and the record it gives, the parts of the recipe its result depends on,
and its needs of the machine. KDQ makes its key from that, and `Work` lets it read nothing else.

Importable without torch.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

from pydantic import JsonValue

from kdq_core.plugins.contract import Model, Needs, Port, Reads
from kdq_core.plugins.kinds import Plugin, Quantizer, Target, Workload
from kdq_core.store.family import Record
from kdq_core.store.records import Checkpoint, EpochRecord

if TYPE_CHECKING:
    from torch import Tensor, nn

    from kdq_core.plugins.asked import Asked
    from kdq_core.recipe.spec import FitSpec, Site
    from kdq_core.store.store import Entry
    from kdq_core.tensors import Batch

R = TypeVar("R", bound=Record)
Loss = Callable[["nn.Module", "Batch"], Mapping[str, "Tensor"]]


class Work(Protocol):
    """The argument of `Stage.run` and `Stage.check`: everything that a stage may read, and where it writes.

    If a stage reads something that its `reads()` or `inputs()` does not name, KDQ raises, so that no key is incomplete.
    """

    @property
    def title(self) -> str:
        """The stage's name in the plan."""

    @property
    def site(self) -> Site:
        """Device and threads."""

    @property
    def draft(self) -> Path:
        """An empty folder; the files written to it become the entry's."""

    @property
    def scratch(self) -> Path:
        """A folder that stays after a killed try: the next try finds its files."""

    def section(self, name: str) -> Any:
        """A section of the recipe, such as `quantize`, with the fields that `reads()` names.

        Raises:
            PluginError: `reads()` does not name the section; or, on access, the field.
        """

    @property
    def workload(self) -> Workload:
        """The recipe's workload."""

    @property
    def quantizer(self) -> Quantizer:
        """The recipe's quantizer."""

    @property
    def target(self) -> Target:
        """The recipe's target; with an input `placement`, in the form that the stage `place` chose."""

    def has(self, port: str) -> bool:
        """Whether an optional input is there."""

    def input(self, port: str) -> Entry:
        """The verified entry at an input: its record and its files.

        Raises:
            PluginError: `inputs()` does not name the port.
        """

    def record(self, port: str, of: type[R]) -> R:
        """The record at an input."""

    def model(self, port: str) -> nn.Module:
        """The model at an input, with its weights, in eval mode, on the CPU."""

    def quantized(self) -> nn.Module:
        """The student with its quantizers, from the inputs `student` and `quantized`; in eval mode, it rounds."""

    def seeded(self, purpose: str) -> None:
        """Seed torch's generators for `purpose`, as a function of the recipe's seed."""

    def example(self) -> tuple[Tensor, ...]:
        """Inputs of two validation samples, each of shape `[2, ...]`, to trace a model with."""

    def batches(self, epoch: int, batch_size: int) -> Iterator[Batch]:
        """The training batches of one epoch of this stage."""

    def fit(
        self,
        model: nn.Module,
        loss: Loss,
        spec: FitSpec,
        *,
        before_step: Callable[[int, int], None] | None = None,
        after_step: Callable[[int, int], None] | None = None,
    ) -> tuple[EpochRecord, ...]:
        """Train `model` in place on the training split, on the site's device; KDQ resumes a killed fit.

        Args:
            model: moved to the site's device, and left there.
            loss: gives named scalar terms for a batch; the fit minimises their sum.
            spec: epochs, batch size, optimizer.
            before_step: called with the steps done and the steps in all before each step.
            after_step: the same after each step, such as to keep pruned weights at zero.

        Returns:
            The curves, for the checkpoint.
        """

    def checkpoint(
        self,
        model: nn.Module,
        history: tuple[EpochRecord, ...] = (),
        *,
        of: type[Checkpoint] | None = None,
        surgery: JsonValue = None,
        **fields: Any,
    ) -> Checkpoint:
        """Write the weights of `model` to the draft, and describe them.

        Args:
            model: on any device.
            history: curves of its fit.
            of: the class of the record; by default `Checkpoint`.
            surgery: how this stage changed the architecture of the model at its input `student`, as plain values;
                KDQ passes it to `Stage.operate` whenever it builds the model again.
            **fields: further fields of the record.
        """

    def progress(self, done: int, total: int, note: str = "") -> None:
        """Report how far the stage is."""


class Stage(Plugin, abc.ABC):
    """One kind of work. Its fields are its options, which a recipe gives in `stages` or in a section of its name.

    Promise: the same inputs, sections and options give the same record and files; it writes nowhere but to its draft
    and its scratch; a try that was killed can be tried again.
    """

    kind = "stage"
    gives: ClassVar[str]
    """The slot it gives; a stage may replace a slot that it reads."""
    record: ClassVar[type[Record]]
    """The class of the record it gives."""
    needs: ClassVar[Needs] = Needs()

    def wanted(self, asked: Asked) -> bool:  # noqa: ARG002
        """Whether the recipe has work for it; if not, KDQ leaves the stage out of the plan."""
        return True

    def inputs(self, asked: Asked) -> Mapping[str, Port]:  # noqa: ARG002
        """Its inputs by name of the port."""
        return {}

    def devices(self, asked: Asked) -> int:  # noqa: ARG002
        """How many devices its fits share; each of so many processes runs the stage, and one keeps its result."""
        return 1

    @abc.abstractmethod
    def reads(self, asked: Asked, wired: frozenset[str]) -> Reads:
        """Declare what its result depends on.

        Args:
            asked: the recipe with its plug-ins.
            wired: names of the ports that have an input.
        """

    def models(self, asked: Asked, wired: frozenset[str]) -> tuple[Model, ...]:  # noqa: ARG002
        """The models whose files it gives, in the order of the closing table."""
        return ()

    def untrained(self, work: Work) -> nn.Module | None:  # noqa: ARG002
        """Make a model as it would give, with any weights, for the checks of later stages; else `None`."""
        return None

    def check(self, work: Work) -> None:
        """Refuse a wrong request before the first fit of a run.

        Here `work` lets the stage read the whole recipe. `work.model` gives untrained models, and `work.has` is false
        for an input without one. There are no other inputs yet.

        Raises:
            RecipeError: the recipe does not fit the stage.
            StageError: data or models do not fit.
        """

    @abc.abstractmethod
    def run(self, work: Work) -> Record:
        """Do the work: read inputs, write files to the draft, give the record. Import torch here.

        Raises:
            StageError: it failed; KDQ keeps nothing of it.
            TransientError: it failed, and another try may succeed.
        """

    def operate(self, model: nn.Module, surgery: JsonValue) -> nn.Module:  # noqa: ARG002
        """Change the architecture of `model` as `run` did, by the `surgery` that `run` passed to `work.checkpoint`."""
        return model

    def still_there(self, record: Record, site: Site) -> bool:  # noqa: ARG002
        """Whether all that a kept record points to outside of the store still exists; if not, the stage runs again."""
        return True
