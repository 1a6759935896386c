"""Samples that KDQ can ask for by number, and the batches made of them."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from kdq_core.api import Batch, StageError, View

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

LABELS = ("y", "label", "labels", "target", "targets")
"""Names under which a dict has the labels."""


class Samples(Protocol):
    """A split whose samples have numbers."""

    def __len__(self) -> int:
        """How many there are."""

    def batch(self, ids: np.ndarray, view: View | None) -> Batch:
        """The batch of these samples, as a view shows them."""

    def classes(self) -> np.ndarray | None:
        """Class numbers `[N]`, if the samples have some that are known without reading all of them."""

    def columns(self) -> Mapping[str, np.ndarray]:
        """Further values of the samples by name, each `[N]`."""


@dataclass(frozen=True)
class ArraySamples:
    """Arrays in memory, or memory-mapped ones.

    Attributes:
        inputs: each `[N, ...]`.
        labels: `[N, ...]`, by task `[N, ...]`, or `None`.
        others: further values of each sample by name, each `[N]`.
    """

    inputs: Sequence[Any]
    labels: Any
    others: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        """How many there are."""
        return len(self.inputs[0])

    def batch(self, ids: np.ndarray, view: View | None) -> Batch:  # noqa: ARG002
        """The batch of these samples; arrays have one view."""
        labels: Any = self.labels
        if isinstance(labels, Mapping):
            labels = {name: array[ids] for name, array in labels.items()}
        elif labels is not None:
            labels = labels[ids]
        return batch_of([array[ids] for array in self.inputs], labels, ids)

    def classes(self) -> np.ndarray | None:
        """The labels, if they are class numbers."""
        labels: Any = self.labels
        plain = not isinstance(labels, Mapping) and labels is not None
        found: np.ndarray | None = labels if plain and labels.ndim == 1 and labels.dtype.kind in "iub" else None
        return found

    def columns(self) -> Mapping[str, np.ndarray]:
        """The attribute `others`."""
        return self.others


@dataclass(frozen=True)
class DatasetSamples:
    """A map-style data set. Random numbers that it draws depend on (view, sample) alone.

    Attributes:
        dataset: has `__len__` and `__getitem__`.
        collate: makes a batch from a list of items.
        names: order of the inputs, if items have names.
    """

    dataset: Any
    collate: Any
    names: tuple[str, ...] = ()

    def __len__(self) -> int:
        """How many there are."""
        return len(self.dataset)

    def batch(self, ids: np.ndarray, view: View | None) -> Batch:
        """Fetch the samples one by one, and collate them."""
        items = []
        with seeds_kept():
            for number in ids.tolist():
                if view is not None:
                    seed_for(view, number)
                items.append(self.dataset[number])
        return parted(self.collate(items), ids, self.names)

    def classes(self) -> None:
        """Unknown: all samples would have to be read."""

    def columns(self) -> Mapping[str, np.ndarray]:
        """None: an item has inputs and labels alone."""
        return {}


@contextmanager
def seeds_kept() -> Iterator[None]:
    """Restore the random state of Python, NumPy and torch at the end."""
    import numpy as np
    import torch

    own, numbers = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            random.setstate(own)
            np.random.set_state(numbers)


def seed_for(view: View, sample: int) -> None:
    """Seed every generator that a data set may use, from (view, sample)."""
    import numpy as np
    import torch

    seed = int(np.random.SeedSequence([view.seed, view.number, sample]).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def parted(given: Any, ids: np.ndarray, names: tuple[str, ...] = ()) -> Batch:
    """Make a batch of what a data set or a loader gives for one.

    A dict has its labels under one of `LABELS`, and inputs under all other names. Of a tuple, the last is the labels
    and all others are inputs. A tensor alone has no labels.

    Raises:
        StageError: it is something else.
    """
    labels: Any = None
    if isinstance(given, Mapping):
        found = dict(given)
        labels = next((found.pop(name) for name in LABELS if name in found), None)
        inputs = _named(found, names)
    elif isinstance(given, tuple | list):
        *inputs, labels = given if len(given) > 1 else (*given, None)
        if len(inputs) == 1 and isinstance(inputs[0], Mapping):
            inputs = _named(inputs[0], names)
    else:
        inputs = [given]
    return batch_of(inputs, labels, ids, names)


def _named(found: Mapping[str, Any], names: tuple[str, ...]) -> list[Any]:
    missing = [name for name in names if name not in found]
    if missing:
        raise StageError(
            f"a batch of the data lacks the input {missing[0]!r}, which the first one has; it has: "
            f"{', '.join(map(str, found))}; give every sample the same inputs"
        )
    return [found[name] for name in (names or tuple(found))]


def input_names(given: Any) -> tuple[str, ...]:
    """Names of the inputs, if what a data set gives has names."""
    if isinstance(given, tuple | list) and given:
        given = given[0]
    return tuple(str(name) for name in given if name not in LABELS) if isinstance(given, Mapping) else ()


def batch_of(inputs: Sequence[Any], labels: Any, ids: Any, names: tuple[str, ...] = ()) -> Batch:
    """Make a batch of arrays or tensors; floating-point numbers become float32, whole labels int64.

    Raises:
        StageError: an input or the labels are no numbers, or of another length.
    """
    import torch

    called = [repr(name) for name in names] if len(names) == len(inputs) else [str(n) for n in range(len(inputs))]
    made = tuple(tensor_of(one, f"input {name}") for name, one in zip(called, inputs, strict=True))
    tasks, targets = {}, None
    if isinstance(labels, Mapping):
        tasks = {name: label_of(one) for name, one in labels.items()}
    elif labels is not None:
        targets = label_of(labels)
    numbers = torch.as_tensor(ids, dtype=torch.int64)
    for one in (*made, *tasks.values(), *(() if targets is None else (targets,))):
        if one.ndim == 0 or len(one) != len(numbers):
            raise StageError(
                f"a batch of {len(numbers)} samples has inputs or labels of shape {tuple(one.shape)}; the first axis "
                "must be the samples"
            )
    return Batch(inputs=made, targets=targets, ids=numbers, tasks=tasks)


def tensor_of(given: Any, what: str) -> Tensor:
    """A tensor on the CPU; floating-point numbers become float32."""
    import torch

    try:
        found = torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError):
        several = isinstance(given, list | tuple) or bool(getattr(given, "ndim", 0))
        first = given[0] if several and len(given) else given
        kind = "text" if isinstance(first, str) or getattr(given, "dtype", None) is not None else type(first).__name__
        how = "turn it into a tensor in the data's own code"
        if kind == "text" and "label" in what:
            how = "number the classes in the data's own code, such as np.unique(labels, return_inverse=True)[1]"
        raise StageError(f"{what} of the data is {kind} ({str(first)[:40]!r}); KDQ needs numbers: {how}") from None
    found = on_cpu(found, what)
    return found.float() if found.is_floating_point() and found.dtype != torch.float32 else found


def on_cpu(tensor: Tensor, what: str) -> Tensor:
    """The same tensor on the CPU, without a gradient.

    Raises:
        StageError: it cannot be copied there.
    """
    try:
        return tensor.detach().cpu()
    except (NotImplementedError, RuntimeError) as error:
        raise StageError(
            f"{what} of the data is on the device {str(tensor.device)!r} and cannot be copied to the CPU: "
            f"{str(error).splitlines()[0]}; give tensors on the CPU, KDQ moves them to the device of the site"
        ) from None


def label_of(given: Any) -> Tensor:
    """Labels as a tensor: float32 or int64."""
    found = tensor_of(given, "the label")
    return found if found.is_floating_point() else found.long()
