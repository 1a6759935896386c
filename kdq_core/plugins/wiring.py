"""Wires a recipe's list of stages: each input reads from the last earlier stage that gives its slot."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kdq_core.errors import KdqError, PluginError, RecipeError
from kdq_core.plugins.stage import Stage
from kdq_core.recipe.stages import StageUse
from kdq_core.store.family import Record

if TYPE_CHECKING:
    from kdq_core.plugins.asked import Asked
    from kdq_core.plugins.catalog import Catalog
    from kdq_core.plugins.contract import Model, Port
    from kdq_core.recipe.spec import Recipe

READ_STUDENT = "read_student"
"""The stage that reads a trained student; a recipe with `student.source: checkpoint` need not list it."""


@dataclass(frozen=True)
class Wired:
    """One stage of a recipe, with the stages that it reads from.

    Attributes:
        title: its name in the plan.
        use: its name in the catalog.
        stage: with its options.
        parents: titles of the stages it reads, by port.
    """

    title: str
    use: str
    stage: Stage
    parents: Mapping[str, str]

    @property
    def stage_name(self) -> str:
        """Its name in the catalog, without the distribution; seeds depend on it."""
        return self.use.rpartition("/")[2]

    @property
    def ports(self) -> frozenset[str]:
        """Names of the ports that have an input."""
        return frozenset(self.parents)


def wire(asked: Asked, catalog: Catalog, where: Callable[[StageUse], str] = lambda _use: "") -> tuple[Wired, ...]:
    """Wire the stages that a recipe lists and has work for, in order.

    Args:
        asked: the recipe with its plug-ins.
        catalog: the plug-ins installed.
        where: gives the start of a message about a stage, such as `recipe.yaml:3: `.

    Raises:
        RecipeError: a stage reads a slot that no stage before it gives, or that holds a record of another type.
        PluginError: there is no such stage.
    """
    giving: dict[str, Wired] = {}
    found: list[Wired] = []
    for use in listed(asked.recipe):
        try:
            one = _wired(use, giving, asked, catalog)
        except KdqError as error:
            raise type(error)(f"{where(use)}{error}") from None
        if one is not None:
            found.append(one)
            giving[one.stage.gives] = one
    return tuple(found)


def _wired(use: StageUse, giving: Mapping[str, Wired], asked: Asked, catalog: Catalog) -> Wired | None:
    """Wire one stage to the earlier stages that give its slots; `None` if the recipe has no work for it."""
    stage = asked.plugin("stage", use.use, use.options)
    assert isinstance(stage, Stage)
    if not stage.wanted(asked):
        return None
    parents: dict[str, str] = {}
    ports = stage.inputs(asked)
    for name, port in ports.items():
        giver = giving.get(port.slot)
        if giver is not None:
            _check_record(use.title, port, giver)
            parents[name] = giver.title
        elif not port.optional:
            raise RecipeError(_nobody_gives(use.title, port.slot, asked.recipe, catalog))
    _check_made_of(use.title, ports, parents, giving)
    return Wired(use.title, use.use, stage, parents)


def _check_made_of(
    title: str, ports: Mapping[str, Port], parents: Mapping[str, str], giving: Mapping[str, Wired]
) -> None:
    """Refuse two inputs that do not belong together: one was made of another model than stands at the other.

    Raises:
        RecipeError: with the stages that gave both.
    """
    for name, port in ports.items():
        other = ports.get(port.made_of)
        if other is None or name not in parents or port.made_of not in parents:
            continue
        source = giving[port.slot].parents.get(port.made_of)
        if source is not None and source != parents[port.made_of]:
            raise RecipeError(
                f"stage {title!r} reads the {other.slot!r} that stage {parents[port.made_of]!r} gives, but stage "
                f"{parents[name]!r} made its {port.slot!r} of the one that stage {source!r} gave; list "
                f"{parents[name]!r} behind {parents[port.made_of]!r}"
            )


def listed(recipe: Recipe) -> tuple[StageUse, ...]:
    """The stages of the recipe's list, with `read_student` first if the recipe names a trained student."""
    stages = recipe.stages
    if recipe.student.source != "checkpoint" or any(use.stage_name == READ_STUDENT for use in stages):
        return stages
    return (StageUse(use=READ_STUDENT), *stages)


def models_of(wired: Sequence[Wired], asked: Asked) -> tuple[Model, ...]:
    """The models whose files the stages give, in the order of the closing table; each slot once."""
    models = [model for one in wired for model in one.stage.models(asked, one.ports)]
    return tuple({model.slot: model for model in models}.values())


def measured_of(wired: Sequence[Wired], asked: Asked) -> tuple[Model, ...]:
    """The models that the run measures: those of `models_of`, or none if no stage gives a report."""
    return models_of(wired, asked) if any(one.stage.gives == "report" for one in wired) else ()


def _check_record(title: str, port: Port, giver: Wired) -> None:
    if not issubclass(giver.stage.record, port.record):
        raise RecipeError(
            f"stage {title!r} reads {_type_of(port.record)} from the slot {port.slot!r}, but stage {giver.title!r} "
            f"gives {_type_of(giver.stage.record)} there; put another stage before it, or change their order"
        )


def _type_of(record: type[Record]) -> str:
    field = record.model_fields["type"]
    return f"a {field.default!r}" if isinstance(field.default, str) else "a record"


def _nobody_gives(title: str, slot: str, recipe: Recipe, catalog: Catalog) -> str:
    """The message for a slot that no earlier stage gives: which stage gives it, and why that one does not help."""
    own = next(use.stage_name for use in recipe.stages if use.title == title)
    givers = [name for name in _givers(slot, catalog) if name not in (READ_STUDENT, own)]
    titles = [use.title for use in recipe.stages]
    others = [use.title for use in recipe.stages if use.stage_name in givers and use.title != title]
    start = f"stage {title!r} reads the slot {slot!r}, which no stage before it gives; "
    if others and titles.index(others[0]) > titles.index(title):
        return f"{start}{others[0]!r} gives it, but comes later: list it before {title!r}"
    if others:
        return f"{start}{others[0]!r} would give it, but the recipe has no work for it"
    advice = [f"list {' or '.join(map(repr, givers))}, which gives it, before {title!r}"] if givers else []
    if slot == "student":
        advice.append("name a trained student: student: {source: checkpoint, file: ...}")
    return start + (", or ".join(advice) or "no installed stage gives it")


def _givers(slot: str, catalog: Catalog) -> list[str]:
    """Names of the installed stages that give a slot; KDQ skips stages that it cannot load."""
    names = []
    for name, entry in catalog.names("stage").items():
        with contextlib.suppress(PluginError):
            found = catalog.load_class(entry)
            if issubclass(found, Stage) and found.gives == slot:
                names.append(name)
    return names
