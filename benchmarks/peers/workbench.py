"""What a tool's recipe works with: data, nets, training and export are the same for all tools."""

from __future__ import annotations

import functools
import inspect
import re
import resource
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.peers.cases import FLOAT, Case
from benchmarks.peers.data import Data, read
from benchmarks.peers.launch import KIB
from benchmarks.peers.nets import NETS, QAT_RATE, Budget, student

if TYPE_CHECKING:
    from torch import Tensor, nn

COLOUR = re.compile("\x1b\\[[0-9;]*m")
CALIBRATION, CALIBRATION_BATCH = 512, 64


@dataclass(frozen=True)
class Made:
    """What a recipe made.

    Attributes:
        file: the file that ships; `None`: nothing ships yet.
        lines: lines that a user writes for it.
        simulated: gives the answers of the model that was exported; `None`: the tool has none.
        more: further facts, for the record.
    """

    file: Path | None
    lines: int
    simulated: Callable[..., Tensor] | None = None
    more: dict[str, Any] | None = None


class Job:
    """What a tool's recipe works with: data, nets, training and export are the same for all tools."""

    def __init__(self, case: Case, out: Path, budget: Budget) -> None:
        """Read the data of a case."""
        self.case, self.out, self.budget, self.net = case, out, budget, NETS[case.net]
        self.folder = out / "cases" / case.name
        self.folder.mkdir(parents=True, exist_ok=True)

    @functools.cached_property
    def data(self) -> Data:
        """The data of the net."""
        return read(self.case.net, self.out)

    @functools.cached_property
    def inputs(self) -> tuple[Tensor, ...]:
        """The inputs of all training samples."""
        import torch

        return tuple(map(torch.from_numpy, self.data.train.inputs))

    @property
    def sample(self) -> tuple[Tensor, ...]:
        """Two samples."""
        return tuple(part[:2] for part in self.inputs)

    @property
    def calibration(self) -> list[tuple[Tensor, ...]]:
        """Batches of the first training samples."""
        from benchmarks.peers.training import parts

        return list(parts(tuple(part[:CALIBRATION] for part in self.inputs), CALIBRATION_BATCH))

    @property
    def below(self) -> Path:
        """Folder of the float student that this case quantizes."""
        case = self.case.stands_on()
        assert case is not None
        return self.out / "cases" / case.name

    @property
    def teacher(self) -> Path:
        """The teacher's file, which KDQ and the peers ask."""
        return self.out / "teachers" / f"{self.net.teacher}.onnx"

    @functools.cached_property
    def answers(self) -> Tensor | None:
        """The teacher's answers to all training samples; `None` without a teacher."""
        import numpy as np
        import torch

        if not self.case.taught:
            return None
        kept = self.folder if self.case.method == FLOAT else self.below
        if not (kept / "answers.npy").is_file():
            from benchmarks.peers.training import ask, runs

            np.save(kept / "answers.npy", ask(runs(self.teacher, self.data.names), self.inputs))
        return torch.from_numpy(np.load(kept / "answers.npy"))

    def student(self) -> nn.Module:
        """The float student, trained; in eval mode."""
        return loaded(student(self.case.net, self.data.sizes), self.below / "weights.safetensors")

    def fit(
        self, model: nn.Module, epochs: int, rate: float | None = None, before: Callable[[int], None] | None = None
    ) -> None:
        """Train a model in place, by default at the rate of QAT."""
        import torch

        from benchmarks.peers.training import fit

        labels = torch.from_numpy(self.data.train.labels)
        fit(
            self.net, model, list(model.parameters()), self.inputs, labels, self.answers,
            epochs=epochs, rate=rate or QAT_RATE * self.net.rate, seed=self.case.seed, before=before,
        )  # fmt: skip

    @property
    def epochs(self) -> int:
        """Epochs of QAT."""
        return self.budget.epochs(self.net)[1]

    def export(self, model: nn.Module) -> Path:
        """Export a model to ONNX with the newer exporter of PyTorch."""
        from benchmarks.peers.training import to_onnx

        path = self.folder / "model.onnx"
        to_onnx(model, self.sample, path, self.data.names)
        return path


def loaded(model: nn.Module, weights: Path) -> nn.Module:
    """Load weights; returns the model in eval mode."""
    from safetensors.torch import load_file

    model.load_state_dict(load_file(weights))
    return model.eval()


def lines(*functions: Callable[..., Any]) -> int:
    """Count the lines that hold code in the functions of a recipe, without their heads."""
    source = [line.strip() for one in functions for line in inspect.getsource(one).splitlines()[1:]]
    return sum(1 for line in source if line and not line.startswith(("#", '"""', "@")))


def cost() -> dict[str, float]:
    """CPU seconds and peak memory of this process and its children so far."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    cpu = sum(one.ru_utime + one.ru_stime for one in used)
    return {"cpu": cpu, "peak": KIB * max(one.ru_maxrss for one in used)}


def message(error: BaseException) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {' '.join(COLOUR.sub('', str(error)).split())}"[:700]
