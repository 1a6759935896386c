"""The plan of a study: the plans of its branches, in which equal nodes are one.

The identity of a node is the sha256 of its stage, the parts of its key and the identities of its parents. KDQ knows it
before anything runs. Nodes of equal identity get equal keys, so KDQ runs them once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, TypeVar

from kdq_core.plan.plan import Node, Plan
from kdq_core.reading.matrix import names_of, unique
from kdq_core.recipe.study import Axes
from kdq_core.store.hashing import canonical, sha256_of

SEED = "seed"
"""The axis that makes several branches one candidate."""


@dataclass(frozen=True)
class PlannedBranch:
    """One branch of a study with its plan.

    Attributes:
        name: such as `use=lsq,weights=4`.
        axes: its values by dotted name of the recipe's field.
        plan: the plan of its recipe.
    """

    name: str
    axes: Axes
    plan: Plan

    @cached_property
    def identities(self) -> Mapping[str, str]:
        """The identity of each node, by its name in the plan."""
        found: dict[str, str] = {}
        for node in self.plan.nodes:
            parents = {port: found[name] for port, name in node.parents.items()}
            found[node.name] = sha256_of(canonical({"stage": node.use, "parts": node.parts, "parents": parents}))
        return found


@dataclass(frozen=True)
class SharedNode:
    """One node of a study, with the branches that it serves.

    Attributes:
        identity: see the module.
        title: its name in the study: `train_teacher`; of several such nodes `quantize@weights=8`, by what their
            branches have in common; of a node that serves one branch alone `export@use=lsq,weights=8`, by that branch.
        node: the node as its first branch has it.
        branches: names of the branches that it serves, in order.
        parents: identities of the nodes that it reads.
    """

    identity: str
    title: str
    node: Node
    branches: tuple[str, ...]
    parents: tuple[str, ...]


@dataclass(frozen=True)
class StudyPlan:
    """The branches of a study, planned.

    Attributes:
        name: of the study.
        branches: in the order of the matrix.
    """

    name: str
    branches: tuple[PlannedBranch, ...]

    @cached_property
    def nodes(self) -> Mapping[str, SharedNode]:
        """All nodes by identity, each once; the parents of a node come before it, and branches stay together."""
        serving: dict[str, list[str]] = {}
        first: dict[str, tuple[PlannedBranch, Node]] = {}
        for branch, node in self._each():
            identity = branch.identities[node.name]
            serving.setdefault(identity, []).append(branch.name)
            first.setdefault(identity, (branch, node))
        titles = self._titles({identity: node.name for identity, (_, node) in first.items()}, serving)
        return {
            identity: SharedNode(
                identity,
                titles[identity],
                node,
                tuple(serving[identity]),
                tuple(branch.identities[p] for p in node.parents.values()),
            )
            for identity, (branch, node) in first.items()
        }

    def _titles(self, names: Mapping[str, str], serving: Mapping[str, Sequence[str]]) -> Mapping[str, str]:
        """A title for each node by identity, no two alike."""
        found = {identity: f"{name}@{serving[identity][0]}" for identity, name in names.items()}
        axes = {branch.name: branch.axes for branch in self.branches}
        counted = Counter(names.values())
        shared: dict[str, list[str]] = {}
        for identity, name in names.items():
            if len(serving[identity]) > 1:
                shared.setdefault(name, []).append(identity)
        for name, several in shared.items():
            if counted[name] == 1:
                found[several[0]] = name
                continue
            common = names_of([_common([axes[branch] for branch in serving[identity]]) for identity in several])
            found |= {identity: f"{name}@{what}" for identity, what in zip(several, common, strict=True)}
        return dict(zip(found, unique(found.values()), strict=True))

    def branch(self, name: str) -> PlannedBranch:
        """The branch of that name."""
        return next(branch for branch in self.branches if branch.name == name)

    def _each(self) -> Iterator[tuple[PlannedBranch, Node]]:
        return ((branch, node) for branch in self.branches for node in branch.plan.nodes)


def _common(branches: Sequence[Axes]) -> Axes:
    """The values of axes that branches have in common."""
    first, *others = branches
    return {axis: value for axis, value in first.items() if all(other.get(axis) == value for other in others)}


class Branched(Protocol):
    """Something of one branch."""

    @property
    def axes(self) -> Axes:
        """Its values by dotted name of the recipe's field."""


B = TypeVar("B", bound=Branched)


def groups_of(branches: Sequence[B]) -> list[tuple[B, ...]]:
    """Branches that differ in their seed alone together, each group and its branches in order."""
    found: dict[bytes, list[B]] = {}
    for one in branches:
        rest = {axis: value for axis, value in one.axes.items() if axis != SEED}
        found.setdefault(canonical(rest), []).append(one)
    return [tuple(group) for group in found.values()]
