"""A part of a plan, as the options `--only`, `--from`, `--until` and `--refresh` of `kdq run` name it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from kdq_core.errors import RecipeError, did_you_mean, listing
from kdq_core.frozen import Frozen
from kdq_core.plan.plan import Node, Plan


class Part(Frozen):
    """Which stages a run shall run.

    Attributes:
        only: these stages and no other.
        start: these stages and all that read from them.
        until: these stages and all that they read from.
        refresh: stages whose kept results KDQ throws away first.
    """

    only: tuple[str, ...] = ()
    start: tuple[str, ...] = ()
    until: tuple[str, ...] = ()
    refresh: tuple[str, ...] = ()

    def check(self, plans: dict[str, Plan]) -> None:
        """Refuse names that no plan has, and options that together leave no stage.

        Args:
            plans: the plan of each branch, by its name.

        Raises:
            RecipeError: with the nearest name, or what the options leave.
        """
        for asked in (*self.only, *self.start, *self.until, *self.refresh):
            stage, _, branch = asked.partition("@")
            if branch and branch not in plans:
                near = did_you_mean(branch, plans) or "."
                raise RecipeError(f"there is no branch {branch!r}{near} The recipe has: {listing(plans)}")
            names = {node.name for name, plan in plans.items() if branch in ("", name) for node in plan.nodes}
            if stage not in names:
                near = did_you_mean(stage, names) or "."
                raise RecipeError(f"the plan has no stage {stage!r}{near} It has: {listing(names)}")
        if not any(self.wanted(plan, name) for name, plan in plans.items()):
            given = {"--only": self.only, "--from": self.start, "--until": self.until}
            said = " ".join(f"{option} {name}" for option, names in given.items() for name in names)
            raise RecipeError(f"no stage is in all that {said} ask for, so nothing would run; leave one of them out")

    def wanted(self, plan: Plan, branch: str = "") -> frozenset[str]:
        """The stages of a plan to run: those that `only`, `start` and `until` all allow."""
        allowed = {node.name for node in plan.nodes}
        if self.only:
            allowed &= _of(self.only, branch)
        if self.start:
            allowed &= _closure(plan.nodes, _of(self.start, branch), down=True)
        if self.until:
            allowed &= _closure(plan.nodes, _of(self.until, branch), down=False)
        return frozenset(allowed)

    def refreshed(self, plan: Plan, branch: str = "") -> tuple[Node, ...]:
        """The stages of a plan whose results KDQ throws away."""
        asked = _of(self.refresh, branch)
        return tuple(node for node in plan.nodes if node.name in asked)


def check_reads(plan: Plan, left_out: Collection[str], not_asked: Collection[str], kept: Collection[str]) -> None:
    """Refuse a part with a stage that reads what is neither in the store nor in the part.

    Args:
        plan: the whole plan.
        left_out: stages that do not run now.
        not_asked: those of them that the part does not have.
        kept: stages whose results are in the store.

    Raises:
        RecipeError: names both stages.
    """
    for node in plan.nodes:
        missing = [name for name in node.parents.values() if name in left_out and name not in kept]
        if node.name not in not_asked and missing:
            raise RecipeError(
                f"stage {node.name!r} reads what {missing[0]!r} gives, which is not in the store and no part of this "
                f"run; run {missing[0]!r} too, or leave --from and --only out"
            )


def _of(asked: Sequence[str], branch: str) -> set[str]:
    """The names that are meant for a branch."""
    parts = (one.partition("@") for one in asked)
    return {stage for stage, _, of in parts if of in ("", branch)}


def _closure(nodes: Iterable[Node], names: set[str], *, down: bool) -> set[str]:
    """The names with all stages that read from them, or that they read from."""
    ordered = list(nodes) if down else list(nodes)[::-1]
    found = {node.name for node in ordered if node.name in names}
    for node in ordered:
        if down and found & set(node.parents.values()):
            found.add(node.name)
        elif not down and node.name in found:
            found |= set(node.parents.values())
    return found
