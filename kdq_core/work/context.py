"""What a stage function is given."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kdq_core.distillation.combining import Part
from kdq_core.distillation.pairs import Taps
from kdq_core.errors import StageError
from kdq_core.plugins.catalog import Catalog
from kdq_core.plugins.kinds import Distiller, Evaluator, Quantizer, Target, Workload, takes_views
from kdq_core.recipe.spec import FitSpec, Recipe, Site
from kdq_core.store.records import Checkpoint, EpochRecord
from kdq_core.store.store import Entry
from kdq_core.teachers.source import reading
from kdq_core.tensors import Batch, View
from kdq_core.training.fit import FitHooks, Loss, fit
from kdq_core.training.losses import validation
from kdq_core.training.resume import tensors_of

Emit = Callable[[dict[str, Any]], None]
EVALUATION_BATCH = 256


@dataclass(frozen=True)
class StageContext:
    """One stage at work.

    Attributes:
        stage: its name.
        recipe: the whole recipe; a stage reads only the sections its key holds.
        site: device and threads.
        catalog: finds the plug-ins the recipe names.
        parents: verified store entries by stage name.
        draft: folder to write files to.
        scratch: file that holds the state of an unfinished fit.
        emit: sends a progress event.
        parts: of the stage's key.
        number: of the fit, from 0, in a stage that has several.
    """

    stage: str
    recipe: Recipe
    site: Site
    catalog: Catalog
    parents: Mapping[str, Entry]
    draft: Path
    scratch: Path
    emit: Emit
    parts: Mapping[str, Any]
    number: int = 0

    @property
    def workload(self) -> Workload:
        """The recipe's workload."""
        plugin = self.catalog.build("workload", self.recipe.workload.use, self.recipe.workload.options)
        return cast("Workload", plugin)

    @property
    def distillers(self) -> tuple[tuple[Part, Taps], ...]:
        """The recipe's distillers with their weights and schedules, each with the taps it asks for."""
        return tuple(
            (
                Part(
                    name=use.title,
                    distiller=cast("Distiller", self.catalog.build("distiller", use.use, use.options_at(0))),
                    weight=use.weight,
                    options=use.schedules,
                    task=use.task,
                ),
                use.taps,
            )
            for use in self.recipe.distill.distillers
        )

    @property
    def quantizer(self) -> Quantizer:
        """The recipe's quantizer."""
        plugin = self.catalog.build("quantizer", self.recipe.quantize.use, self.recipe.quantize.options)
        return cast("Quantizer", plugin)

    @property
    def target(self) -> Target:
        """The recipe's target."""
        return cast("Target", self.catalog.build("target", self.recipe.target.use, self.recipe.target.options))

    @property
    def evaluators(self) -> tuple[Evaluator, ...]:
        """The recipe's evaluators, in order."""
        built = [self.catalog.build("evaluator", use.use, use.options) for use in self.recipe.evaluate]
        return tuple(cast("Evaluator", plugin) for plugin in built)

    def accelerator(self) -> Accelerator:
        """Device and precision of this site."""
        check_device(self.site.device)
        with _plain_accelerate():
            return Accelerator(cpu=self.site.device == "cpu", mixed_precision=self.mixed_precision)

    @property
    def mixed_precision(self) -> Literal["bf16", "no"]:
        """Of the fits of this stage. In bf16 fake quantization would leave its grid, so QAT is in float32."""
        half = self.site.precision == "bf16" and self.site.device != "cpu" and self.stage != "quantize"
        return "bf16" if half else "no"

    def seeded(self, purpose: str) -> None:
        """Seed torch's generators for `purpose`, as a function of the recipe's seed."""
        torch.manual_seed(self.seed_of(purpose))

    def seed_of(self, purpose: str) -> int:
        """A seed for `purpose`, independent of the seeds for other purposes."""
        return int.from_bytes(hashlib.sha256(f"{self.recipe.seed}/{purpose}".encode()).digest()[:4], "big") >> 1

    def example(self) -> tuple[Tensor, ...]:
        """The inputs of `two_samples`, to trace a model with."""
        return self.two_samples().inputs

    def two_samples(self) -> Batch:
        """Two validation samples, to learn a model's graph, paths and shapes from; the same in each stage.

        Raises:
            StageError: there are not as many.
        """
        given = next(iter(self.workload.batches("validation", batch_size=2)), None)
        batch = None if given is None else checked(given, "validation")
        count = 0 if batch is None else len(batch.ids)
        if batch is None or count < 2:
            raise StageError(
                f"the workload's split 'validation' gives {count} of the two samples that tracing a model takes; "
                "put more into it"
            )
        return batch

    def view(self, epoch: int) -> View | None:
        """What training samples look like in an epoch; `None` leaves it to the order's seed and the epoch.

        With kept teacher outputs the kept views come in turn; a teacher that runs beside the student sees a new one
        in each epoch.
        """
        if self.stage == "train_teacher" or not takes_views(self.workload):
            return None
        spec, kept = self.recipe.teacher.cache, "cache_teacher" in self.parents
        return View(spec.seed, epoch % spec.views if kept else epoch)

    def batches(self, epoch: int, batch_size: int) -> Iterator[Batch]:
        """The training batches of one epoch of this stage, each with the number of its view."""
        asked: dict[str, Any] = {"seed": self.seed_of(f"{self.stage}/batches"), "epoch": epoch}
        view = self.view(epoch)
        asked |= {} if view is None else {"view": view}
        for batch in self.workload.batches("train", batch_size=batch_size, **asked):
            yield replace(self.read(checked(batch, "train")), view=epoch if view is None else view.number)

    def read(self, batch: Batch) -> Batch:
        """What the model of this stage reads of a batch: a teacher that is trained, its own inputs."""
        if self.stage != "train_teacher":
            return batch
        spec = self.recipe.teacher
        return reading(batch, spec.read_by(spec.members[self.number]))

    def trained(
        self,
        model: nn.Module,
        loss: Loss,
        spec: FitSpec,
        accelerator: Accelerator,
        scheduled: Mapping[str, float] | None = None,
        **hooks: Callable[..., None],
    ) -> tuple[EpochRecord, ...]:
        """Fit `model` on the training split with scoring, progress and resumption.

        What `scheduled` holds at the end of an epoch is added to its curves. The state of an unfinished fit stays in
        `scratch`; after the commit it is removed. Curves of the second fit of a stage are called `2/train/loss` and so
        on.
        """
        workload, number = self.workload, self.number
        measured = validation(workload, accelerator.device, EVALUATION_BATCH, self.read)

        def named(record: EpochRecord) -> EpochRecord:
            values = {f"{number + 1}/{name}": value for name, value in record.values.items()}
            return record.model_copy(update={"values": values}) if number else record

        history = fit(
            model,
            loss,
            lambda epoch: self.batches(epoch, spec.batch_size),
            spec,
            samples=workload.samples("train"),
            accelerator=accelerator,
            resume=self.scratch.with_stem(f"{self.scratch.stem}{number or ''}"),
            hooks=FitHooks(
                score=lambda fitted: {**measured(fitted), **(scheduled or {})},
                on_step=lambda done, total, value: self.emit(
                    {
                        "event": "progress",
                        "stage": self.stage,
                        "done": done,
                        "total": total,
                        "note": f"loss {value:.3f}",
                    }
                ),
                on_epoch=lambda record: self.emit(
                    {"event": "epoch", "stage": self.stage, "record": named(record).model_dump(mode="json")}
                ),
                **hooks,
            ),
        )
        return tuple(named(record) for record in history)

    def checkpoint(self, role: Any, model: nn.Module, history: tuple[EpochRecord, ...], **told: Any) -> Checkpoint:
        """Write the weights of `model` to the draft and describe them; `told` are further fields of the record."""
        save_file(tensors_of(model), self.draft / "weights.safetensors")
        count = sum(p.numel() for p in model.parameters())
        return Checkpoint(role=role, weights="weights.safetensors", parameters=count, history=history, **told)

    def load_into(self, model: nn.Module, stage: str) -> nn.Module:
        """Load the checkpoint of a parent stage into `model`; eval mode."""
        entry = self.parents[stage]
        assert isinstance(entry.record, Checkpoint)
        model.load_state_dict(load_file(entry.file(entry.record.weights)))
        return model.eval()


@contextlib.contextmanager
def _plain_accelerate() -> Iterator[None]:
    """Hide the variables that Accelerate reads: they would change results that a key does not tell apart."""
    hidden = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("ACCELERATE_")}
    try:
        yield
    finally:
        os.environ.update(hidden)


def checked(given: object, split: str) -> Batch:
    """A batch of the workload, if it is one.

    Raises:
        StageError: it is something else, or not of tensors.
    """
    if not isinstance(given, Batch):
        wrong = f"a {type(given).__name__!r}"
    elif not isinstance(given.inputs, tuple) or not all(isinstance(x, Tensor) for x in given.inputs):
        wrong = f"a batch whose inputs are a {type(given.inputs).__name__!r}, not a tuple of tensors"
    elif not isinstance(given.ids, Tensor):
        wrong = f"a batch whose ids are a {type(given.ids).__name__!r}, not a tensor"
    else:
        return given
    raise StageError(
        f"the workload's batches({split!r}) gave {wrong}; it must give Batch(inputs=(tensor, ...), targets=tensor "
        "or None, ids=tensor of sample numbers) of kdq_core.api"
    )


def check_device(device: str) -> None:
    """Refuse a GPU that is not there: falling back to the CPU would store its results under the GPU's key.

    Raises:
        StageError: torch sees no such device.
    """
    if device != "cpu" and not torch.cuda.is_available():
        raise StageError(
            f"the device {device!r} was asked for, but torch {torch.__version__} sees no CUDA device here; "
            "set KDQ_DEVICE=cpu, or install a CUDA build of torch and a driver"
        )
