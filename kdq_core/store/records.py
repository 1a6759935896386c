"""KDQ's own records, which stages take and give. Models are in files of the entry; records hold the files' names."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, JsonValue

from kdq_core.frozen import Frozen
from kdq_core.store.family import AnyRecord, Measured, Record

TEACHER_GAIN = "teacher_gain_"
"""Begins the names of the metrics that say what the teacher brought."""
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class FileRef(Frozen):
    """A file inside a store entry."""

    path: str = Field(description="relative to the entry's folder")
    sha256: Digest
    bytes: int = Field(ge=0)


class EpochRecord(Frozen):
    """One point of the curves of a fit."""

    epoch: int = Field(ge=1)
    values: dict[str, Measured] = Field(description="curve name to value, such as 'train/loss' or 'validation/top1'")


class Gain(Frozen):
    """A student's gain from the teacher over its control, on the samples of the test split."""

    metric: str = Field(
        pattern=r"^(top1|loss)(/.+)?$",
        description="top1: share of right answers; loss: the workload's hard loss; after a slash: the task",
    )
    taught: float = Field(description="mean of the student with the teacher")
    control: float = Field(description="mean of the control, the student without the teacher")
    difference: float = Field(description="taught - control")
    low: float = Field(description="lower end of the 95 % interval of the difference")
    high: float = Field(description="upper end of the 95 % interval of the difference")
    samples: int = Field(ge=1, description="number of samples that both models were measured on")

    @property
    def metric_name(self) -> str:
        """Name of the gain as a metric of the report: `teacher_gain_top1` or `teacher_gain_loss`, with the task."""
        return f"{TEACHER_GAIN}{self.metric}"

    @property
    def higher_is_better(self) -> bool:
        """Whether a positive difference is a gain; for a loss, a negative one is."""
        return self.metric.startswith("top1")

    @property
    def verdict(self) -> Literal["better", "worse", "undecided"]:
        """`better` or `worse` if the whole interval is on one side of zero; for a loss, lower is better."""
        if not (self.low > 0 or self.high < 0):
            return "undecided"
        return "better" if (self.low > 0) == self.higher_is_better else "worse"


def gain_metrics(*controls: bool) -> set[str]:
    """Names of the metrics that say what the teacher brought: none if no stage trains a control."""
    return {f"{TEACHER_GAIN}{metric}" for metric in ("top1", "loss") if any(controls)}


class Surgery(Frozen):
    """How a stage changed the architecture of a model; that stage's `operate` makes the same change again."""

    use: str = Field(description="name of the stage")
    options: dict[str, JsonValue] = Field(default={}, description="its options")
    steps: JsonValue = Field(description="its own description of the change, as plain values")


class Choice(Frozen):
    """The quantizer that a run took among several, and why."""

    use: str = Field(description="name of the quantizer")
    why: str = Field(description="the reason in words, with the figures that decided")
    metric: Literal["top1", "loss", ""] = Field(
        description="what was compared on the validation split: top1, or the hard loss; empty: nothing"
    )
    values: dict[str, Measured] = Field(default={}, description="its value, by quantizer; `float` is the float student")
    samples: int = Field(default=0, ge=0, description="number of labels that were compared")
    tolerance: float = Field(ge=0, description="what calibration was allowed to lose")


class Kept(Frozen):
    """The weights of a float student before the last part of its schedule."""

    weights: str = Field(description="safetensors file in the entry")
    epoch: int = Field(ge=1, description="the epochs that it had trained")


class Checkpoint(Record):
    """Weights of a model that can still be trained."""

    type: str = "checkpoint"
    slot: str = Field(description="slot of the model, such as `student`")
    weights: str = Field(description="safetensors file in the entry")
    parameters: int = Field(ge=0, description="number of trainable values")
    history: tuple[EpochRecord, ...] = ()
    gains: tuple[Gain, ...] = Field(default=(), description="gains from the teacher, if the recipe asks for a control")
    untrained: dict[str, Measured] = Field(
        default={}, description="of a quantized student that was trained: its validation curves before, as calibrated"
    )
    compared: dict[str, tuple[tuple[str, str], ...]] = Field(
        default={}, description="modules of student and teacher whose features were compared, by distiller"
    )
    transferred: tuple[str, ...] = Field(default=(), description="parameters that KDQ started from the teacher's")
    surgery: tuple[Surgery, ...] = Field(default=(), description="changes of the architecture, by stage")
    answers: dict[str, JsonValue] = Field(
        default={}, description="for teachers: the settings that make answers of their weights"
    )
    choice: Choice | None = Field(
        default=None, description="of a quantized student: the quantizer, if the run chose it"
    )
    before_tail: Kept | None = Field(
        default=None, description="of a float student: where training with quantizers may begin"
    )

    def files_named(self) -> tuple[str, ...]:
        """The weights."""
        return (self.weights, *([self.before_tail.weights] if self.before_tail else []))


class StoredTensor(Frozen):
    """One flat, memory-mapped file of rows: sample i in view v has row v * samples + i."""

    name: str = Field(
        description="'logits', or under 'top_k' the names of what replaces them; for a task, 'tasks/<task>/' and such "
        "a name; for features, 'features/<path>'"
    )
    path: str = Field(description="file in the entry: values in little-endian order, nothing else")
    dtype: str = Field(description="as NumPy writes it, such as '<f2'")
    shape: tuple[int, ...] = Field(description="of one row")


class TeacherOutputs(Record):
    """A teacher's outputs for every training sample, in each kept view."""

    type: str = "teacher_outputs"
    teacher: Digest = Field(description="digest of the teacher's entry")
    data: Digest = Field(description="fingerprint of the data")
    seed: int = Field(description="seed of the views")
    views: int = Field(ge=1)
    samples: int = Field(ge=1, description="number of samples in one view")
    classes: int = Field(ge=1, description="length of the last axis of the logits; with several tasks, of the first")
    tasks: dict[str, int] = Field(
        default={}, description="with several tasks, that length for each task, in the teacher's order"
    )
    tensors: tuple[StoredTensor, ...]

    def files_named(self) -> tuple[str, ...]:
        """One file a tensor."""
        return tuple(tensor.path for tensor in self.tensors)


class TensorSpec(Frozen):
    """One input or output of a shipped file; -1 stands for the free batch size."""

    name: str
    dtype: str
    shape: tuple[int, ...]


class TimedForm(Frozen):
    """One form of the file that the stage `place` wrote and measured."""

    name: str = Field(description="such as 'gru in float'")
    floats: int = Field(default=0, ge=0, description="number of operators that compute in float in it by choice")
    milliseconds: Measured = Field(description="median time of a call")
    speedup: Measured = Field(description="time of the float file / its time")
    low: Measured = Field(description="lower end of the 99 % interval of that")
    high: Measured = Field(description="upper end of the 99 % interval of that")


class ChosenForm(Record):
    """The form of the file that is the fastest on a machine; what stands on it has the same form.

    The measured times do not count for the digest: two measurements with the same choice are the same entry.
    """

    type: str = "placement"
    form: str = Field(description="name of the form; 'int8' if all is int8 that can be")
    options: dict[str, JsonValue] = Field(default={}, description="options of the target that give this form")
    floats: tuple[str, ...] = Field(
        default=(), description="operators that compute in float because int8 was measured slower, as `path:type`"
    )
    batch_size: int = Field(description="samples in a call")
    timings: tuple[TimedForm, ...] = Field(default=(), description="every form that was measured; the first is 'int8'")

    def said(self) -> str:
        """What was chosen, and why."""
        at = f"at batch {self.batch_size}"
        if not self.timings:
            return f"all int8; nothing is in doubt {at}"
        mine = next(one for one in self.timings if one.name == self.form)
        slower = "; no form is as fast as float" if mine.high < 1 else ""
        if not self.options:
            return f"all int8, {_times_float(mine)} {at}; {_measured(self.timings)}{slower}"
        return f"{self.form}: {_times_float(mine)} {at}, all int8 {_times_float(self.timings[0])}{slower}"


def _times_float(one: TimedForm) -> str:
    return f"{one.speedup:.3g}x the speed of float ({one.low:.3g} to {one.high:.3g})"


def _measured(timings: tuple[TimedForm, ...]) -> str:
    others = ", ".join(one.name for one in timings[1:])
    return f"no faster: {others}" if others else "nothing is in doubt"


class OperatorCoverage(Frozen):
    """How one operator of the original graph runs in the runtime's own optimised graph."""

    path: str = Field(description="module path in the PyTorch model")
    operator: str = Field(description="conv, linear, add, ...")
    kernel: str = Field(description="operator type in the optimised graph, such as QLinearConv")
    int8: bool
    reason: str = Field(default="", description="why it is float; empty for int8")
    by_choice: bool = Field(default=False, description="whether it is float because int8 was measured slower")
    macs: int = Field(default=0, ge=0, description="multiply-accumulates with weights, for one sample")
    activation_macs: int = Field(
        default=0, ge=0, description="multiply-accumulates between activations, for one sample, as in attention"
    )
    weight_bytes: int = Field(default=0, ge=0, description="bytes of the weights in the file")
    weight_bits: int | None = Field(default=None, description="bits of the weights; null: float, or no weights")
    activation_bits: int | None = Field(default=None, description="bits of the result; null: float")


class Departure(Frozen):
    """A tensor of integers that differs between a shipped file and its simulation."""

    path: str = Field(description="module path of the operator that makes it")
    operator: str = Field(description="name of that operator in the captured graph, such as conv2d_3")
    share: float = Field(description="share of its elements that differ")
    most: int = Field(description="largest difference, in integers (LSB)")


class Artifact(Record):
    """A shippable file with its description, and the float files for the same runtime."""

    type: str = "artifact"
    path: str = Field(description="the int8 file in the entry")
    example: str = Field(description="safetensors file in the entry: two samples by input name")
    baselines: dict[str, str] = Field(description="float files in the entry by model, such as teacher, student")
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    output_scales: tuple[float | None, ...] = Field(description="LSB of each output; null for a float output")
    weight_bits_used: int = Field(description="7 where the CPU lacks VNNI and 8-bit products could saturate")
    operators: tuple[OperatorCoverage, ...] = ()
    quantizer: str = Field(default="", description="its quantizer, if KDQ chose it; empty: the recipe's")

    def file_of(self, model: str) -> str | None:
        """Name of a model's file in the entry."""
        return self.path if model == "int8" else self.baselines.get(model)

    def files_named(self) -> tuple[str, ...]:
        """The file to ship, its example, and its float companions."""
        return (self.path, self.example, *self.baselines.values())


class Metric(Frozen):
    """One number with its unit and, where it was sampled, its interval."""

    name: str
    value: Measured
    unit: str = Field(description="fraction, bytes, ms, count, lsb, macs, ...")
    direction: Literal["higher", "lower", "neither"] = Field(description="which way is better")
    low: Measured | None = Field(default=None, description="lower end of the 95 % interval")
    high: Measured | None = Field(default=None, description="upper end of the 95 % interval")
    samples: int | None = Field(default=None, ge=0, description="number of measurements behind the value")
    note: str = Field(default="", description="remark for the reader, such as why a value is bad")


class StoredPredictions(Frozen):
    """One flat, memory-mapped file: one output of a model's file for each sample of a split, in its order."""

    model: str = Field(description="whose file it is, such as `int8`")
    split: str
    output: str = Field(description="name of the output in the model's file")
    path: str = Field(description="file in the entry: values in little-endian order, nothing else")
    dtype: str = Field(description="as NumPy writes it, such as '<f4'")
    shape: tuple[int, ...] = Field(description="`(N, ...)`, samples first")


class Failure(Frozen):
    """An evaluator that raised an exception for one model."""

    evaluator: str = Field(description="its name in the recipe")
    model: str = Field(description="the model that it was asked about, such as int8")
    error: str
    metrics: tuple[str, ...] = Field(default=(), description="the metrics that its class names; empty if it names none")


class Anomaly(Frozen):
    """A reason why the models of a run cannot be compared, such as a test split that was trained on."""

    rule: str = Field(description="what was to hold, such as 'student top1 on the test split ≥ 0.83'")
    value: Measured
    bound: Measured
    model: str = Field(default="", description="the model that it concerns; empty: all of them")
    note: str = Field(description="what is true, and what to do")


class StoredArray(Frozen):
    """One flat, memory-mapped file: one array."""

    name: str = Field(description="of an output of the files, or of an input")
    path: str = Field(description="file in the entry: values in little-endian order, nothing else")
    dtype: str = Field(description="as NumPy writes it, such as '<f4'")
    shape: tuple[int, ...]


class ShownSamples(Frozen):
    """A few samples of the test split to show beside the report: those whose answer changed, then close calls."""

    rows: tuple[int, ...] = Field(description="numbers of the samples, in the order of the split")
    inputs: tuple[StoredArray, ...] = Field(description="each input of these samples, samples first")
    texts: tuple[str, ...] = Field(default=(), description="each sample as text, if the workload tells it")


class EvaluationReport(Record):
    """The metrics of the exported files, measured in their runtime."""

    type: str = "report"
    models: dict[str, tuple[Metric, ...]] = Field(description="by name of the model, such as teacher, student, int8")
    predictions: tuple[StoredPredictions, ...] = Field(
        default=(), description="predictions of each model, if an evaluator read them"
    )
    failures: tuple[Failure, ...] = Field(default=(), description="evaluators that raised, in order")
    anomalies: tuple[Anomaly, ...] = Field(default=(), description="what forbids a comparison of the models")
    labels: tuple[StoredArray, ...] = Field(
        default=(), description="labels of the test split by output, if predictions are kept and labels are classes"
    )
    shown: ShownSamples | None = Field(default=None, description="samples to show, if predictions are kept")

    def unmeasured(self, model: str, metric: str) -> str:
        """Why `metric` of `model` was not measured: the failure of the evaluator that gives it, or nothing known."""
        name = metric.partition("/")[0]
        failed = [one for one in self.failures if one.model == model and (not one.metrics or name in one.metrics)]
        return "; ".join(f"evaluator {one.evaluator!r} failed on {model}: {one.error}" for one in failed)

    def value(self, model: str, metric: str) -> float | None:
        """The value of `metric` for `model`, or `None` where it was not measured."""
        found = self.metric(model, metric)
        return None if found is None else found.value

    def metric(self, model: str, name: str) -> Metric | None:
        """The metric `name` of `model`, or `None` where it was not measured."""
        return next((metric for metric in self.models.get(model, ()) if metric.name == name), None)


class ModelVersion(Record):
    """A registered model version."""

    type: str = "version"
    name: str
    version: int = Field(ge=1)
    uri: str = Field(description="`models:/name/version`")
    tracking_uri: str
    run_id: str
    file_sha256: Digest


class Manifest(Frozen):
    """The table of contents of a store entry; its own sha256 is the entry's digest."""

    format: Literal[1] = 1
    stage: str
    key: Digest
    parts: dict[str, JsonValue] = Field(description="the values that the key is a hash of")
    record: AnyRecord
    files: tuple[FileRef, ...]
