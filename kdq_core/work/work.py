"""A stage at work, as `kdq_core.plugins.stage.Work` describes it.

Importable without torch: a stage that computes nothing runs in the process of the run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import JsonValue

from kdq_core.store.records import Checkpoint, EpochRecord
from kdq_core.work.shown import Shown

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor, nn
    from torch.fx import GraphModule

    from kdq_core.recipe.spec import FitSpec
    from kdq_core.tensors import Batch
    from kdq_core.training.fit import Loss


@dataclass(frozen=True)
class StageWork(Shown):
    """The `Work` that KDQ passes to `Stage.run`."""

    def model(self, port: str) -> nn.Module:
        """The model at an input, with its weights, in eval mode, on the CPU."""
        from kdq_core.work.models import loaded

        return loaded(self, port)

    def quantized(self) -> GraphModule:
        """The quantized student, from the inputs `student` and `quantized`; it rounds."""
        from kdq_core.work.quantized import prepared_student

        return prepared_student(self)

    def seeded(self, purpose: str) -> None:
        """Seed torch's generators for `purpose`, as a function of the recipe's seed."""
        import torch

        torch.manual_seed(self.seed_of(purpose))

    def example(self) -> tuple[Tensor, ...]:
        """The inputs of `two_samples`, to trace a model with."""
        return self.two_samples().inputs

    def two_samples(self) -> Batch:
        """Two validation samples, to find a model's graph, paths and shapes with; each stage gets the same two."""
        from kdq_core.work.data import two_samples

        self._check_data()
        return two_samples(self.workload)

    def batches(self, epoch: int, batch_size: int) -> Iterator[Batch]:
        """The training batches of one epoch of this stage, each with the number of its view."""
        from kdq_core.work.data import training_batches

        self._check_data()
        return training_batches(self, epoch, batch_size)

    def accelerator(self) -> Accelerator:
        """The device of this site."""
        from kdq_core.work.fitting import accelerator

        return accelerator(self.site)

    def fit(
        self,
        model: nn.Module,
        loss: Loss,
        spec: FitSpec,
        *,
        accelerator: Accelerator | None = None,
        scheduled: Mapping[str, float] | None = None,
        read: Callable[[Batch], Batch] = lambda batch: batch,
        before_step: Callable[[int, int], None] | None = None,
        after_step: Callable[[int, int], None] | None = None,
        hooks: Mapping[str, Callable[..., None]] | None = None,
        first: int = 0,
        last: int | None = None,
    ) -> tuple[EpochRecord, ...]:
        """Train `model` in place with scoring, progress and resumption; see `kdq_core.work.fitting.fitted`."""
        from kdq_core.work.fitting import fitted

        where = accelerator or self.accelerator()
        own = {"before_step": before_step, "after_step": after_step}
        given = {name: hook for name, hook in own.items() if hook is not None}
        hooks = {**(hooks or {}), **given}
        return fitted(
            self, model, loss, spec, where, scheduled=scheduled, read=read, hooks=hooks, first=first, last=last
        )

    def checkpoint(
        self,
        model: nn.Module,
        history: tuple[EpochRecord, ...] = (),
        *,
        of: type[Checkpoint] | None = None,
        surgery: JsonValue = None,
        **fields: Any,
    ) -> Checkpoint:
        """Write the weights of `model` to the draft, and describe them."""
        from kdq_core.work.models import saved

        return saved(self, model, history, of=of or Checkpoint, surgery=surgery, **fields)
