"""The state of a fit between two steps, as one safetensors file: no pickle, renamed into place.

It keeps weights, buffers, optimizer moments, the random generators and the place within the epoch. So KDQ resumes a
killed fit with the same bits as a fit without interruption.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from kdq_core.store.records import EpochRecord

COST = 100
"""An unfinished epoch is kept again after this many times the seconds that keeping it took: 1 % of the time."""


@dataclass
class Partial:
    """An unfinished epoch: the steps that are done, and the sum and number of each term's values in them."""

    steps: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)

    def add(self, values: Mapping[str, float]) -> None:
        """Count one step with its values by term."""
        self.steps += 1
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
            self.counts[name] += 1


@dataclass
class Progress:
    """How far a fit is: the records of its finished epochs, and the unfinished one."""

    history: list[EpochRecord] = field(default_factory=list)
    partial: Partial = field(default_factory=Partial)


class Due:
    """Says after which steps of an epoch the state is kept."""

    def __init__(self, seconds: float | None = None, steps: int | None = None) -> None:
        """Keep it after so many seconds or steps, whichever comes first; `None` for both: only between epochs."""
        self._seconds, self._steps = seconds, steps
        self._since, self._done, self._wait = time.monotonic(), 0, 0.0

    def __call__(self) -> bool:
        """Count one step; whether the state is due after it."""
        self._done += 1
        passed = time.monotonic() - self._since
        by_time = self._seconds is not None and passed >= max(self._seconds, self._wait)
        return by_time or (self._steps is not None and self._done >= self._steps)

    def keep(self, save: Callable[[], None]) -> None:
        """Call `save`, and count anew from its end."""
        began = time.monotonic()
        save()
        self._since, self._done = time.monotonic(), 0
        self._wait = COST * (self._since - began)


def random_states() -> dict[str, Tensor]:
    """Give the states of torch's random generators."""
    states = {"rng/cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states |= {f"rng/cuda/{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    return states


def set_random_states(states: Mapping[str, Tensor]) -> None:
    """Set torch's random generators to what `random_states` gave."""
    torch.set_rng_state(states["rng/cpu"])
    if torch.cuda.is_available():
        kept = {int(n.rpartition("/")[2]): t for n, t in states.items() if n.startswith("rng/cuda/")}
        torch.cuda.set_rng_state_all([kept[index] for index in sorted(kept)])


def save_state(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    random: Mapping[str, Tensor] | None = None,
) -> None:
    """Write the state of a fit to `path`.

    Args:
        path: of the file.
        model: the model.
        optimizer: its optimizer.
        progress: how far the fit is.
        random: states of the random generators; by default those of now.
    """
    tensors = {f"model/{name}": tensor for name, tensor in tensors_of(model).items()}
    scalars: dict[str, Any] = {}
    for index, moments in optimizer.state_dict()["state"].items():
        for name, value in moments.items():
            where = f"optimizer/{index}/{name}"
            if isinstance(value, Tensor):
                tensors[where] = value.detach().cpu().clone().contiguous()
            else:
                scalars[where] = value
    tensors |= random_states() if random is None else random
    history = [record.model_dump() for record in progress.history]
    note = {"history": history, "partial": vars(progress.partial), "scalars": scalars}
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    save_file(tensors, draft, metadata={"kdq": json.dumps(note)})
    with draft.open("rb") as file:
        os.fsync(file.fileno())
    draft.replace(path)


def load_state(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> Progress:
    """Load the state of `path` into `model`, `optimizer` and the random generators, and give the progress.

    If the file was cut short, for example by a failing disk, nothing is loaded and the progress is empty.
    """
    try:
        with safe_open(path, framework="pt") as file:
            note = json.loads(file.metadata()["kdq"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except SafetensorError:
        return Progress()
    model.load_state_dict({n.removeprefix("model/"): t for n, t in tensors.items() if n.startswith("model/")})
    moments: dict[int, dict[str, Any]] = {}
    for name, value in {**tensors, **note["scalars"]}.items():
        if name.startswith("optimizer/"):
            _, index, field_ = name.split("/", 2)
            moments.setdefault(int(index), {})[field_] = value
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    set_random_states(tensors)
    partial = Partial(**note["partial"] | {"counts": Counter(note["partial"]["counts"])})
    return Progress([EpochRecord.model_validate(record) for record in note["history"]], partial)


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Give the state dict as detached, contiguous copies on the CPU, as safetensors needs them."""
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in model.state_dict().items()}
