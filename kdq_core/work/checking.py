"""The checks before the first fit of a run: KDQ runs `Stage.check` of each stage in order, with untrained models."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kdq_core.plugins.asked import Asked
from kdq_core.plugins.contract import Reads, Section
from kdq_core.plugins.wiring import Wired
from kdq_core.store.store import Entry
from kdq_core.work.shown import OPTIONS_IN, section_of
from kdq_core.work.work import StageWork

EVERYTHING = Reads(
    sections=tuple(Section(name=name) for name in OPTIONS_IN.values()),
    plugins=("workload", "distiller", "quantizer", "target", "evaluator"),
)


@dataclass(frozen=True)
class CheckWork(StageWork):
    """The `Work` that KDQ passes to `Stage.check`: the whole recipe, and untrained models in place of inputs.

    Attributes:
        givers: the `CheckWork` of each stage that it reads from, by port.
        memo: values that the checks of one run share, such as built models.
    """

    givers: Mapping[str, CheckWork] = field(default_factory=dict)
    memo: dict[str, Any] = field(default_factory=dict)

    @property
    def reads(self) -> Reads:
        """A check may read everything, because no result depends on it."""
        return EVERYTHING

    def section(self, name: str) -> Any:
        """A whole section of the recipe."""
        return section_of(self._asked, name)

    def may_read(self, name: str, field: str) -> bool:  # noqa: ARG002
        """A check may read every field."""
        return True

    def has(self, port: str) -> bool:
        """Whether the stage behind that input can give an untrained model."""
        return port in self.givers and self.givers[port].untrained() is not None

    def model(self, port: str) -> nn.Module:
        """An untrained model of the architecture that this input will have."""
        model = self.givers[port].untrained()
        assert model is not None
        return model.eval()

    def untrained(self) -> nn.Module | None:
        """An untrained model as this stage would give; each call builds a new one, because checks may change it."""
        return self.wired.stage.untrained(self)

    @property
    def rehearsed(self) -> bool:
        """Whether the check of an earlier stage has rehearsed with teacher and student already."""
        return bool(self.memo.get("rehearsed"))


def check_all(
    wired: Iterable[Wired],
    asked: Asked,
    scratch: Path,
    emit: Callable[[dict[str, Any]], None],
    *,
    titles: Sequence[str],
) -> None:
    """Run the checks of the workload and of the stages `titles`; afterwards, torch's random state is as before.

    Raises:
        KdqError: a stage refuses the recipe, the data or the models.
    """
    with torch.random.fork_rng():
        asked.workload.check()
        for title, work in check_works(wired, asked, scratch, emit).items():
            if title in titles:
                work.wired.stage.check(work)
    gc.collect()


def check_works(
    wired: Iterable[Wired], asked: Asked, scratch: Path, emit: Callable[[dict[str, Any]], None]
) -> dict[str, CheckWork]:
    """Make the `CheckWork` of each stage, by title."""
    works: dict[str, CheckWork] = {}
    memo: dict[str, Any] = {}
    for one in wired:
        nothing: dict[str, Entry] = {}
        works[one.title] = CheckWork(
            wired=one,
            _asked=asked,
            parents=nothing,
            draft=scratch,
            scratch=scratch,
            emit=emit,
            givers={port: works[title] for port, title in one.parents.items() if title in works},
            memo=memo,
        )
    return works
