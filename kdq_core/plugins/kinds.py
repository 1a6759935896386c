"""The kinds of plug-in other than stages. A plug-in is a frozen, validated value: its fields are its options.

Importable without torch: plug-in modules that import torch only inside their methods keep `kdq validate` fast.
"""

from __future__ import annotations

import abc
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

from pydantic import Field

from kdq_core.errors import PluginError, StageError
from kdq_core.frozen import Frozen
from kdq_core.grids.place import Place
from kdq_core.store.records import Departure, Metric, OperatorCoverage, TensorSpec
from kdq_core.tensors import Batch, Batches, LossTerms, Outputs, Split, View

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn
    from torch.fx import GraphModule

    from kdq_core.grids.fake import FakeQuantize

Shapes = Mapping[str, tuple[int, ...]]
Kind = Literal["workload", "distiller", "quantizer", "target", "evaluator", "stage"]


class Plugin(Frozen):
    """Base of every plug-in. Fields are options; give each a bound and a description."""

    kind: ClassVar[Kind]
    environment: ClassVar[tuple[str, ...]] = ()
    """Names of environment variables that its results depend on; keys hold their values."""
    late_imports: ClassVar[tuple[str, ...]] = ()
    """Slow modules that its methods import, such as `torchmetrics`: a run imports them once for all stages."""

    def runs(self) -> tuple[str, ...]:
        """Give code outside of its package that it runs: `module:name` or `file.py:name`; keys hold that code."""
        return ()


class Workload(Plugin, abc.ABC):
    """Data, models and hard loss of a learning problem.

    Its models give a tensor of logits, or for several tasks a dict of tensors by task; `Batch.tasks` holds the labels.

    Promise: the same seed, epoch and view give the same batches; the splits are disjoint.
    """

    kind: ClassVar[Kind] = "workload"
    student_options: ClassVar[frozenset[str]] = frozenset()
    """Names of the options that only `student()` reads: another value of one leaves the teacher cached."""

    @abc.abstractmethod
    def fingerprint(self) -> str:
        """sha256 (hex) of the data and its split. Must be cheap, and import no torch."""

    def check(self) -> None:
        """Called by `kdq check`, and before the first fit of a run: refuse data that a run cannot read, in seconds.

        Raises:
            StageError: the data cannot be read.
        """

    @abc.abstractmethod
    def teacher(self) -> nn.Module:
        """A new, untrained teacher. Weights come from torch's global generator, which the stage has seeded."""

    @abc.abstractmethod
    def student(self) -> nn.Module:
        """A new, untrained student. Weights come from torch's global generator, which the stage has seeded."""

    @abc.abstractmethod
    def batches(
        self, split: Split, *, batch_size: int, seed: int = 0, epoch: int = 0, view: View | None = None
    ) -> Iterable[Batch]:
        """The batches of one pass over `split`.

        `train` is shuffled as a function of (seed, epoch) and augmented as a function of (view, sample) alone, so that
        KDQ can keep a teacher's outputs for a view; without `view` it is `View(seed, epoch)`. `validation` and `test`
        come in fixed order, unaugmented, and ignore all three.
        """

    def input_names(self) -> tuple[str, ...]:
        """Names that the file gives the student's inputs, in order; empty for the target's usual ones."""
        return ()

    def free_axes(self) -> Mapping[str, tuple[int, ...]]:
        """Axes whose size may change from batch to batch, by name of the input; the batch itself is always free."""
        return {}

    def columns(self, split: Split) -> Mapping[str, np.ndarray]:  # noqa: ARG002
        """Further values of each sample by name, `[N]` in the order of `batches(split)`, such as the speaker.

        `kdq explain` compares the groups that they make. Numbers or texts; no key depends on them.
        """
        return {}

    def text_of(self, inputs: tuple[Tensor, ...]) -> str:  # noqa: ARG002
        """Text of a sample for the report, from its inputs without the batch, each `[...]`; empty: shows the inputs."""
        return ""

    def samples(self, split: Split) -> int:
        """Number of samples of `split`; override it where counting is cheaper than reading."""
        return sum(len(batch.ids) for batch in self.batches(split, batch_size=1024))

    @abc.abstractmethod
    def loss(self, outputs: Outputs, batch: Batch) -> Tensor:
        """The mean loss of `outputs` against the hard labels of `batch` (a scalar tensor).

        With several tasks it is the sum over those that `batch.tasks` has labels for; KDQ also asks for one alone.
        """


TakenFor = Literal["classes", "labels", "numbers"]


class Distiller(Plugin, abc.ABC):
    """A distillation loss.

    Promise: zero soft loss for equal models, finite gradients, none into the teacher, continuous in every weight.
    """

    kind: ClassVar[Kind] = "distiller"
    zero_for_equal_models: ClassVar[bool] = True
    """False for a loss that equal models do not bring to zero, such as hard labels; the method card says why."""
    needs_labels: ClassVar[bool] = False
    """True for a loss that needs hard labels; a batch without them is then an error."""
    reads: ClassVar[TakenFor] = "classes"
    """How it reads outputs `[B, ..., C]`: as logits of exclusive classes (softmax), as logits of independent labels
    (sigmoid), or as numbers. Schedules that follow the gap between student and teacher read them alike."""
    features: ClassVar[Literal["none", "pairs"]] = "none"
    """`pairs`: `Outputs.features` of both models hold the tapped tensors, under the same names on both sides."""

    def takes_top_k(self) -> bool:
        """Whether the teacher's k largest probabilities and the sum of the others are enough (`teacher.cache.top_k`).

        True fits a loss that compares softmax distributions, or no logits at all. Any other loss needs all logits.
        """
        return False

    @abc.abstractmethod
    def loss(self, student: Outputs, teacher: Outputs, batch: Batch) -> LossTerms:
        """Compute the soft terms, and give the weight of the hard loss. Teacher tensors carry no gradient."""

    def projectors(self, student: Shapes, teacher: Shapes) -> Mapping[str, nn.Module]:  # noqa: ARG002
        """Make projectors for the student's features, by name of the pair; `loss` gets the projected features.

        KDQ trains them with the student, and does not ship them. A pair without a projector is compared directly.
        Weights come from torch's global generator, which the stage has seeded.

        Args:
            student: shape of each of the student's features without the batch, such as `(C, H, W)`.
            teacher: shape of each of the teacher's features.
        """
        return {}


class Quantizer(Plugin, abc.ABC):
    """Decides ranges, rounding and gradients. The target decides where quantizers go.

    Promise: the prepared model trains; the converted one gives the prepared one's outputs within `tolerance_lsb`; it
    exports.
    """

    kind: ClassVar[Kind] = "quantizer"
    tolerance_lsb: ClassVar[float] = 1.0
    trains: ClassVar[bool] = True
    """False for post-training quantization: the ranges see calibration data, and no weight is trained."""
    idempotent: ClassVar[bool] = True
    """False if rounding a rounded value again with the same state changes it, such as after a tanh before rounding; the
    method card says why."""
    activations: ClassVar[Literal["static", "dynamic", "none"]] = "static"
    """`static`: ranges are fixed before the file is shipped; `dynamic`: measured by the runtime for each batch;
    `none`: activations stay float and only weights are stored as integers."""

    @abc.abstractmethod
    def fake_quantizer(self, place: Place) -> FakeQuantize:
        """A new fake-quantizer for `place`; never called for a place that shares another's."""


class Session(Protocol):
    """A loaded file, ready to answer."""

    def run(self, inputs: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
        """Outputs for one batch, each of shape `[B, ...]`."""


class Target(Plugin, abc.ABC):
    """Decides which tensors a runtime wants quantized, and writes, loads and runs the file.

    Promise: the exported file runs in the runtime; coverage says per operator int8 or float, and why.
    """

    kind: ClassVar[Kind] = "target"

    @abc.abstractmethod
    def resolved(self) -> dict[str, str | int | bool]:
        """The values of `auto` options on this machine; keys hold them. Imports no torch."""

    @abc.abstractmethod
    def places(self, graph: GraphModule, *, keep_float: Sequence[str] = ()) -> tuple[Place, ...]:
        """Where quantizers go in an exported (ATen) graph; weights and activations, at the runtime's full width.

        Args:
            graph: from `capture`.
            keep_float: operators that the recipe's rules leave in float, as `path:type`; the model's own have no path:
                `:add`.
        """

    @abc.abstractmethod
    def export(self, model: nn.Module, example: tuple[Tensor, ...], path: Path) -> None:
        """Write `model` (float, or converted) to `path`, with a free batch size."""

    @abc.abstractmethod
    def signature(self, path: Path) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        """Inputs and outputs of the file."""

    @abc.abstractmethod
    def session(self, path: Path, *, threads: int) -> Session:
        """Load the file into the runtime."""

    @abc.abstractmethod
    def coverage(
        self, path: Path, graph: GraphModule, *, keep_float: Sequence[str] = ()
    ) -> tuple[OperatorCoverage, ...]:
        """For each operator of `graph`, such as conv and linear: int8 or float in the runtime's own optimised graph.

        Args:
            path: the exported file.
            graph: from `capture`.
            keep_float: as given to `places`.
        """

    def departures(
        self,
        path: Path,  # noqa: ARG002
        simulation: GraphModule,  # noqa: ARG002
        inputs: tuple[np.ndarray, ...],  # noqa: ARG002
        *,
        threads: int,  # noqa: ARG002
    ) -> tuple[Departure, ...] | None:
        """Find where the file departs from its simulation: the integer tensors that differ, first to last.

        Args:
            path: the exported file.
            simulation: the converted model it was written from.
            inputs: one batch.
            threads: CPU threads.

        Returns:
            `None` if the target cannot look inside its files.
        """
        return None


@dataclass(frozen=True)
class Subject:
    """A shipped file under evaluation.

    Attributes:
        role: teacher, student or int8.
        path: the file; its size is what a user ships.
        target: the target that wrote it.
        threads: CPU threads of the stage.
        operators: coverage, for an int8 file.
        output_scales: LSB of each output, for an int8 file with quantized outputs.
        simulation: what the file must agree with in PyTorch: the converted model of an int8 file, the model of a float
            file; `None` if there is none, as for a teacher that is an ONNX file.
        prepared: the model with fake quantization that was trained, for an int8 file.
        kept: gives the predictions that KDQ keeps, or `None` for other batches; `predict` calls it first.
        folder: folder for the files of one evaluator; see `file`.
        beside: the files of all models of the run, by slot, such as `teacher`.
    """

    role: str
    path: Path
    target: Target
    threads: int
    operators: tuple[OperatorCoverage, ...] = ()
    output_scales: tuple[float | None, ...] = ()
    simulation: nn.Module | None = None
    prepared: nn.Module | None = None
    kept: Callable[[Subject, Batches], tuple[np.ndarray, ...] | None] | None = None
    folder: Path | None = None
    beside: Mapping[str, Subject] = field(default_factory=dict)

    def predict(self, batches: Batches) -> tuple[np.ndarray, ...]:
        """Every output of the file for every sample, in order, each `[N, ...]` and read-only.

        Over the batches that `evaluate` is given, KDQ runs the file once for all evaluators: the outputs are kept in
        the entry and memory-mapped. Over other batches, and outside of a run, each call runs the file.

        Raises:
            StageError: there is no sample, or an output has another shape in a later batch; use `run` for those.
        """
        import numpy as np

        found = None if self.kept is None else self.kept(self, batches)
        if found is None:
            found = tuple(np.concatenate(parts) for parts in zip(*self.run_alike(batches), strict=True))
            for values in found:
                values.setflags(write=False)
        return found

    def run(self, batches: Batches) -> Iterator[tuple[np.ndarray, ...]]:
        """Run the file, and yield its outputs for each batch, each `[B, ...]`. KDQ keeps none of them."""
        session = self.target.session(self.path, threads=self.threads)
        for batch in batches():
            yield session.run(tuple(x.numpy() for x in batch.inputs))

    def run_alike(self, batches: Batches) -> Iterator[tuple[np.ndarray, ...]]:
        """Run the file as `run` does, and check that the outputs of all batches can be concatenated.

        Raises:
            StageError: there is no sample, or an output has another shape in a later batch.
        """
        first: list[tuple[int, ...]] | None = None
        for outputs in self.run(batches):
            shapes = [values.shape[1:] for values in outputs]
            if shapes != (first := first or shapes):
                raise StageError(
                    f"{self.role} model {self.path.name!r} gives samples of the shapes {first} in the first batch and "
                    f"{shapes} in a later one, so its predictions are no one array; let the workload pad its test "
                    "split to one length, or leave out the evaluators that compare sample by sample"
                )
            yield outputs
        if first is None:
            raise StageError("the evaluators need the workload's test split, which is empty; give it samples")

    def file(self, name: str) -> Path:
        """Give the path for an evaluator's file about this model; KDQ keeps the file in the entry beside the report.

        In the entry it is `files/<evaluator>/<model>/<name>`.

        Args:
            name: such as `reliability.svg`; no folder.

        Raises:
            PluginError: the name is not a plain file name, or the subject has no folder.
        """
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise PluginError(
                f"an evaluator asked for a file called {name!r}, but a name has letters, digits, '_', '-' and '.' only "
                "and no folder; give it a plain name such as 'curve.svg'"
            )
        if self.folder is None:
            raise PluginError(
                f"an evaluator asked for a file {name!r}, but its subject has no folder to write to; "
                "make it with Subject(..., folder=...)"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        return self.folder / name


class Column(Frozen):
    """A column of the closing table that an evaluator brings."""

    heading: str
    metric: str = Field(description="name of the metric it shows")
    form: str = Field(default="{:.3g}", description="format of the value, as for Python's `str.format`")
    by_task: bool = Field(default=False, description="true: one more column for each further task of the model")
    interval: bool = Field(default=False, description="true: the ends of the interval follow the value")


class Evaluator(Plugin, abc.ABC):
    """Measures a shipped file.

    Promise: it never changes the model; every metric has a unit and a direction; it writes only to `Subject.file`.
    """

    kind: ClassVar[Kind] = "evaluator"
    metrics: ClassVar[tuple[str, ...]] = ()
    """Names of the metrics it may give. If all evaluators of a recipe declare theirs, a gate on another is an error."""
    columns: ClassVar[tuple[Column, ...]] = ()
    """The columns that it adds to the closing table of a run."""

    @abc.abstractmethod
    def evaluate(self, candidate: Subject, baseline: Subject, batches: Batches) -> tuple[Metric, ...]:
        """Measure `candidate`; give `()` if this evaluator does not apply to it.

        Args:
            candidate: the file to measure.
            baseline: the float student's file in the same runtime.
            batches: gives the test split anew at each call.
        """
