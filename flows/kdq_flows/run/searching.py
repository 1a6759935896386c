"""Proposes the branches of a search with Optuna: KDQ asks for values and tells what they gave.

Optuna keeps the trials in `KDQ_HOME/searches/optuna.db`. A second run of the same recipe continues the search.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdq_core.errors import RecipeError
from kdq_core.recipe.study import Axes, Range, SearchSpec, SelectSpec
from kdq_core.store.store import explained

if TYPE_CHECKING:
    import optuna


class Searcher:
    """A study of Optuna for one recipe."""

    def __init__(self, search: SearchSpec, select: SelectSpec, document: Mapping[str, Any], home: Path) -> None:
        """Open the study of a recipe, or begin it.

        Args:
            search: axes and sampler.
            select: what a good branch is.
            document: the recipe's raw document; a recipe that differs in more than `limits` has a study of its own.
            home: the site's home.

        Raises:
            RecipeError: the sampler `grid` has a range without steps.
            StoreError: the file of the studies cannot be written.
        """
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._space, self._select = search.space, select
        asked = {name: part for name, part in document.items() if name != "limits"}
        digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:12]
        file = home / "searches" / "optuna.db"
        with explained(file, "write the trials of the search"):
            file.parent.mkdir(parents=True, exist_ok=True)
        storage = f"sqlite:///{file}"
        self._grid = {axis: _choices(axis, values) for axis, values in search.space.items()} if _is_grid(search) else {}
        self._left = [dict(zip(self._grid, numbers)) for numbers in product(*map(range, map(len, self._grid.values())))]
        self._study = optuna.create_study(
            study_name=f"{document.get('name')}-{digest}", storage=storage, load_if_exists=True,
            directions=["minimize"] * len(select.metrics),
        )  # fmt: skip
        seed = int(document.get("seed") or 0) + len(self._study.trials)
        sampler = optuna.samplers.TPESampler if search.sampler == "tpe" else optuna.samplers.RandomSampler
        self._study.sampler = sampler(seed=seed)
        done = [trial.params for trial in self._done()]
        self._left = [numbers for numbers in self._left if numbers and numbers not in done]

    def _done(self) -> list[optuna.trial.FrozenTrial]:
        import optuna

        return self._study.get_trials(states=[optuna.trial.TrialState.COMPLETE])

    def known(self) -> list[Axes]:
        """The values of the trials that earlier runs finished, in order; each once."""
        found = [self._axes(trial.params) for trial in self._done()]
        return [axes for index, axes in enumerate(found) if axes not in found[:index]]

    @property
    def exhausted(self) -> bool:
        """Whether a grid has no further combination."""
        return bool(self._grid) and not self._left

    def ask(self) -> tuple[optuna.Trial, Axes]:
        """Propose the next values."""
        if self._left:
            self._study.enqueue_trial(self._left.pop(0))
        trial = self._study.ask()
        for axis, values in self._space.items():
            if axis in self._grid or not isinstance(values, Range):
                number = len(self._grid.get(axis, values if not isinstance(values, Range) else ()))
                trial.suggest_categorical(axis, range(number))
            elif _whole(values):
                step = int(values.step or 1)
                trial.suggest_int(axis, int(values.low), int(values.high), step=step, log=values.log)
            else:
                trial.suggest_float(axis, values.low, values.high, step=values.step, log=values.log)
        return trial, self._axes(trial.params)

    def tell(self, trial: optuna.Trial, values: Sequence[float] | None, short: Mapping[str, float]) -> None:
        """Say what a proposal gave.

        Args:
            trial: the proposal.
            values: its objectives, less is better; `None` if the branch failed.
            short: how far each goal is missed.
        """
        import optuna

        if values is None:
            self._study.tell(trial, state=optuna.trial.TrialState.FAIL)
            return
        for goal, by in short.items():
            trial.set_constraint(goal, min(by, 1e9))
        self._study.tell(trial, list(values))

    def _axes(self, params: Mapping[str, Any]) -> Axes:
        """Values of the axes; Optuna keeps a choice as its number, because a choice may be a whole section."""
        found: Axes = {}
        for axis, value in params.items():
            values = self._space[axis]
            choices = self._grid.get(axis, () if isinstance(values, Range) else values)
            found[axis] = choices[value] if choices else value
        return found


def _is_grid(search: SearchSpec) -> bool:
    return search.sampler == "grid"


def _whole(values: Range) -> bool:
    return all(isinstance(one, int) for one in (values.low, values.high)) and not isinstance(values.step, float)


def _choices(axis: str, values: Sequence[Any] | Range) -> tuple[Any, ...]:
    """All values of an axis of a grid.

    Raises:
        RecipeError: a range has endless many.
    """
    if not isinstance(values, Range):
        return tuple(values)
    if values.log or (values.step is None and not _whole(values)):
        raise RecipeError(
            f"the sampler 'grid' needs all values of {axis!r}, and a range without 'step' has endless many; write a "
            "'step' or a list"
        )
    step = values.step or 1
    number = int((values.high - values.low) / step + 1e-9) + 1
    return tuple(values.low + step * index for index in range(number))
