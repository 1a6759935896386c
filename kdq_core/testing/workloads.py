"""Conformance kit for workloads."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from kdq_core.errors import StageError
from kdq_core.plugins.kinds import Workload
from kdq_core.plugins.views import takes_views
from kdq_core.quantization.tracing import export_program
from kdq_core.recipe.spec import STUDENTS
from kdq_core.teachers.source import reading
from kdq_core.tensors import Batch, Outputs, Split, View
from kdq_core.testing.declared import Tell, described, promise, silent
from kdq_core.training.losses import check_names, outputs_of

if TYPE_CHECKING:
    from torch import Tensor, nn

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
BATCH = 16


def check_workload(workload: Workload, *, teacher_inputs: Sequence[str] = (), tell: Tell = silent) -> None:
    """Check the promises of a workload.

    - Each option has a description.
    - The fingerprint is a stable sha256.
    - Each pass gives every sample number 0..N-1 once.
    - The same seed and epoch give the same batches, whatever the state of torch's global generator. A sample looks the
      same in every batch.
    - Another epoch or seed gives another order of `train`.
    - A view gives each sample the same content for every seed and epoch; the default view is `View(seed, epoch)`.
    - `validation` and `test` ignore seed, epoch and view.
    - No sample of one split is in another (as far as inputs are unaugmented).
    - Teacher and student give finite logits of one shape `[B, C]`, or a dict of such logits by task. The same seed
      gives them the same weights, and they can be exported. In eval mode, a call gives what the last one gave.
    - The loss is a finite scalar with a gradient.
    - With several tasks, labels have names of outputs, and the loss of a batch is the sum of its losses with the labels
      of one task alone.

    The kit reads all the data several times: give it a small instance of the workload.

    Args:
        workload: the plug-in, with the options to check.
        teacher_inputs: names of the inputs that the teacher reads (`Batch.extra`), as in a recipe's 'teacher.inputs';
            empty if it reads the student's inputs.
        tell: hears of each promise that is kept.

    Raises:
        AssertionError: a promise is broken; the text says which.
    """
    described(workload)
    tell("each option has a description")
    for check in CHECKS:
        check(workload)
        tell(promise(check))
    usable_models(workload, teacher_inputs)
    tell(promise(usable_models))


def collect(
    workload: Workload,
    split: Split,
    *,
    size: int = BATCH,
    seed: int = 0,
    epoch: int = 0,
    view: View | None = None,
) -> list[Batch]:
    """Collect all batches of one pass. The global generator is reseeded first, since batches must not depend on it."""
    asked = {"batch_size": size, "seed": seed, "epoch": epoch} | ({} if view is None else {"view": view})
    with torch.random.fork_rng(devices=[]):
        torch.seed()
        return list(workload.batches(split, **asked))  # type: ignore[arg-type]


def samples(batches: list[Batch]) -> dict[int, bytes]:
    """Give the bytes of inputs, extra inputs and labels of each sample, by its number, in the order of the batches."""
    found = {}
    for batch in batches:
        extra = (batch.extra[name] for name in sorted(batch.extra))
        labels = (batch.targets, *(batch.tasks[name] for name in sorted(batch.tasks)))
        tensors = (*batch.inputs, *extra, *(x for x in labels if x is not None))
        for row, number in enumerate(batch.ids.tolist()):
            found[number] = b"".join(content(t[row]) for t in tensors)
    return found


def content(tensor: Tensor) -> bytes:
    """Give the raw bytes of a tensor of any type."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def stable_fingerprint(workload: Workload) -> None:
    """Check that the fingerprint is a sha256 in hex, and the same for an equal workload."""
    first, again = workload.fingerprint(), type(workload)(**workload.model_dump()).fingerprint()
    assert re.fullmatch(r"[0-9a-f]{64}", first), f"the fingerprint should be a sha256 in hex, but it is {first!r}"
    assert first == again, "the fingerprint of an equal workload should be the same, but it is another one"


def every_sample_once(workload: Workload) -> None:
    """Check that sample numbers are int64, from 0 to N-1, each once, and that batches have the size asked for.

    The last batch may be smaller. In a split with and without labels, the last labelled and the last unlabelled batch
    may be.
    """
    for split in SPLITS:
        batches = collect(workload, split)
        numbers = [number for batch in batches for number in batch.ids.tolist()]
        assert numbers, f"split {split!r} should have samples, but it is empty"
        assert sorted(numbers) == list(range(len(numbers))), (
            f"split {split!r} should give each sample number from 0 to N-1 once, but it does not"
        )
        assert all(b.ids.dtype == torch.int64 for b in batches), f"sample numbers of {split!r} should be int64"
        for labelled in (True, False):
            sizes = [len(batch.ids) for batch in batches if batch.labelled == labelled]
            assert set(sizes[:-1]) <= {BATCH}, f"batches of {split!r} should have {BATCH} samples, but have {sizes}"
            assert max(sizes[-1:], default=0) <= BATCH, (
                f"the last batch of {split!r} should have at most {BATCH} samples"
            )


def same_seed_same_batches(workload: Workload) -> None:
    """Check that (seed, epoch) alone decide the batches, and that another of either gives another order of train."""
    for split in SPLITS:
        first = samples(collect(workload, split))
        again = samples(collect(workload, split))
        assert list(first.items()) == list(again.items()), f"the same seed should give the same batches of {split!r}"
        small = samples(collect(workload, split, size=7))
        assert small == first, f"a sample of {split!r} should look the same whatever batch it is in, but it does not"
    train, test = list(samples(collect(workload, "train"))), samples(collect(workload, "test"))
    for name, seed, epoch in (("seed", 1, 0), ("epoch", 0, 1)):
        moved = samples(collect(workload, "train", seed=seed, epoch=epoch))
        assert list(moved) != train, f"another {name} should shuffle train anew"
        other = samples(collect(workload, "test", seed=seed, epoch=epoch))
        assert list(other.items()) == list(test.items()), f"the test split should ignore the {name}, but it does not"


def a_view_decides_what_a_sample_looks_like(workload: Workload) -> None:
    """Check that seed and epoch decide the order and the view the content, so that teacher outputs can be kept."""
    assert takes_views(workload), (
        "batches() should take `view: View | None = None`, which decides how train samples are augmented"
    )
    view = View(3, 1)
    first = samples(collect(workload, "train", view=view))
    later = samples(collect(workload, "train", view=view, seed=5, epoch=2))
    moved = sum(first[number] != later[number] for number in first)
    assert not moved, f"a sample of a view should look the same in every epoch, but {moved} samples do not"
    assert list(first) == list(samples(collect(workload, "train"))), "another view should not change the order of train"
    alone = samples(collect(workload, "train", seed=3, epoch=1))
    moved = sum(first[number] != alone[number] for number in first)
    assert not moved, f"without a view it should be View(seed, epoch), but {moved} samples look different"
    test = [list(samples(collect(workload, "test", view=at)).items()) for at in (None, view)]
    assert test[0] == test[1], "the test split should ignore the view, but it does not"


def disjoint_splits(workload: Workload) -> None:
    """Check that no sample of one split is in another."""
    found = {split: set(samples(collect(workload, split)).values()) for split in SPLITS}
    for one, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
        shared = len(found[one] & found[other])  # type: ignore[index]
        assert not shared, f"splits should be disjoint, but {shared} samples of {one!r} are in {other!r} too"


def usable_models(workload: Workload, teacher_inputs: Sequence[str] = ()) -> None:
    """Check the models (repeatable, one shape, finite logits, exportable) and the loss (has a gradient)."""
    batches, shapes = collect(workload, "train"), {}
    models = (("teacher", workload.teacher, tuple(teacher_inputs)), ("student", workload.student, ()))
    for name, make, reads in models:
        try:
            batch, *later = (reading(one, reads) for one in batches)
        except StageError as error:
            raise AssertionError(str(error)) from error
        model, twin = seeded(make), seeded(make)
        for key, value in model.state_dict().items():
            assert torch.equal(value, twin.state_dict()[key]), f"the same seed should give the same {name}: {key!r}"
        outputs = answered(name, model, batch, reads)
        given = outputs.tasks or {"": outputs.logits}
        for logits in given.values():
            assert logits.isfinite().all(), f"the {name}'s logits should be finite, but they are not"
        shapes[name] = {task: tuple(logits.shape) for task, logits in given.items()}
        try:
            check_names(outputs, batch)
        except StageError as error:
            raise AssertionError(str(error)) from error
        loss = workload.loss(outputs, batch)
        richest = max((batch, *later), key=lambda one: len(one.tasks))
        additive_over_tasks(workload, outputs_of(model, richest), richest)
        assert loss.ndim == 0, f"the loss should be a scalar, but it has shape {tuple(loss.shape)}"
        assert loss.isfinite(), f"the loss of the {name} should be finite, but it is {float(loss.detach())}"
        loss.backward()  # type: ignore[no-untyped-call]
        for other in later:  # other batches may have labels of other tasks
            if other.tasks:
                workload.loss(outputs_of(model, other), other).backward()  # type: ignore[no-untyped-call]
        without = [key for key, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert not without, f"every parameter of the {name} should get a gradient, but {without} get none"
        repeats(name, model.eval(), batch)
        export_program(model, batch.inputs)
    said = {name: given.get("", given) for name, given in shapes.items()}
    assert shapes["teacher"] == shapes["student"], f"teacher and student should give one shape, but give {said}"


@torch.no_grad()
def repeats(name: str, model: nn.Module, batch: Batch) -> None:
    """Check that a model in eval mode gives the same logits at each call."""
    once, again = (outputs_of(model, batch) for _ in range(2))
    tasks = once.tasks or {"": once.logits}
    same = all(torch.equal(logits, (again.tasks or {"": again.logits})[task]) for task, logits in tasks.items())
    assert same, (
        f"random in eval mode: the {name} gives other logits for the same samples at each call; draw random numbers "
        "only while `training` is set"
    )


def answered(name: str, model: nn.Module, batch: Batch, reads: Sequence[str]) -> Outputs:
    """Call a model on a batch, and report an exception with the names of the inputs in `reads`."""
    try:
        return outputs_of(model, batch)
    except StageError as error:
        raise AssertionError(str(error)) from error
    except Exception as error:
        own = " and ".join(
            repr(given) if given != STUDENTS else "the student's inputs" for given in reads or (STUDENTS,)
        )
        shapes = ", ".join(str(tuple(x.shape)) for x in batch.inputs)
        hint = "; where a recipe names others in 'teacher.inputs', give check_workload their names as 'teacher_inputs'"
        raise AssertionError(
            f"the {name} should answer for {own}, of shape {shapes}, but it raises {error!r}"
            f"{hint if name == 'teacher' else ''}"
        ) from error


def additive_over_tasks(workload: Workload, outputs: Outputs, batch: Batch) -> None:
    """Check that the loss is the sum of the tasks' losses; KDQ gives each task's hard loss a weight of its own."""
    if not batch.tasks:
        return
    parts = sum(float(workload.loss(outputs, batch.task(name)).detach()) for name in batch.tasks)
    whole = float(workload.loss(outputs, batch).detach())
    assert abs(parts - whole) <= 1e-4 * max(1.0, abs(whole)), (
        f"the loss of a batch should be the sum of its losses with the labels of one task alone, but it is {whole:g} "
        f"and they sum to {parts:g}"
    )


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    """Make a model after seeding, then restore the global generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make()


CHECKS: tuple[Callable[[Workload], None], ...] = (
    stable_fingerprint,
    every_sample_once,
    same_seed_same_batches,
    a_view_decides_what_a_sample_looks_like,
    disjoint_splits,
)
