"""The recipe as a DAG of stages, and the key of each: the sha256 of its parts and of its parents' digests."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import JsonValue

from kdq_core.errors import RecipeError
from kdq_core.frozen import Frozen
from kdq_core.plan import precision
from kdq_core.plan.cpu import instruction_sets
from kdq_core.plan.gates import with_fitting_gates
from kdq_core.plan.keys import KeyParts, Memo
from kdq_core.plan.notes import faster, without_effect
from kdq_core.plugins.asked import Asked
from kdq_core.plugins.catalog import Catalog
from kdq_core.plugins.contract import Model, Needs
from kdq_core.plugins.wiring import Wired, measured_of, models_of, wire
from kdq_core.recipe.gpus import CPU
from kdq_core.recipe.spec import Recipe, Site
from kdq_core.store.hashing import canonical, sha256_of


class Node(Frozen):
    """One stage of a plan: its parents, and the parts of its key without the parents' digests."""

    name: str
    use: str
    gives: str
    needs: Needs
    parents: dict[str, str]
    parts: dict[str, JsonValue]

    @property
    def heavy(self) -> bool:
        """Whether it runs in a worker process, because it computes."""
        return self.needs.device != "none"

    def full_parts(self, digests: Mapping[str, str]) -> dict[str, JsonValue]:
        """All parts of the key, from the digests of earlier entries by name of the stage."""
        return {**self.parts, "parents": {port: digests[name] for port, name in self.parents.items()}}

    def key(self, digests: Mapping[str, str]) -> str:
        """The key, from the digests of earlier entries by name of the stage."""
        return sha256_of(canonical({"stage": self.use, **self.full_parts(digests)}))


class Plan(Frozen):
    """The DAG in an order in which it can run, with its recipe and site.

    Attributes:
        recipe: the recipe, with default gates that fit it.
        site: where it runs.
        nodes: one for each stage.
        models: the models of the closing table, in its order.
        note: notes for the user, such as settings without effect.
    """

    recipe: Recipe
    site: Site
    nodes: tuple[Node, ...]
    models: tuple[Model, ...] = ()
    note: str = ""

    def node(self, name: str) -> Node:
        """The node of that name."""
        return next(node for node in self.nodes if node.name == name)

    def giving(self, slot: str) -> Node | None:
        """The last node that gives `slot`, or `None`."""
        return next((node for node in reversed(self.nodes) if node.gives == slot), None)


def asked_of(recipe: Recipe, site: Site, catalog: Catalog, memo: Memo | None = None) -> Asked:
    """Join the recipe with its site and the plug-ins of the catalog."""
    built = None if memo is None else memo.plugins
    return Asked(recipe, site, catalog.build, built)


def make_plan(recipe: Recipe, site: Site, catalog: Catalog, memo: Memo | None = None) -> Plan:
    """Build every plug-in the recipe names once, and make the DAG. Imports no torch for house plug-ins.

    Args:
        recipe: what to run.
        site: where.
        catalog: the installed plug-ins.
        memo: what the plans of one study have in common; by default nothing.

    Raises:
        RecipeError: the list of stages does not fit together, or the recipe asks for something impossible.
        PluginError: a plug-in is missing or broken.
    """
    memo = memo or Memo()
    asked = asked_of(recipe, site, catalog, memo)
    wired = wire(asked, catalog)
    models = models_of(wired, asked)
    recipe, note = with_fitting_gates(asked, measured_of(wired, asked))
    asked = asked.with_recipe(recipe)
    notes = [note, *without_effect(asked, wired)]
    if any(one.stage.gives == "teacher" for one in wired):
        notes += faster(recipe, site, instruction_sets())
    if any(one.stage.needs.precision == "site" for one in wired):
        notes.append(precision.note(site, instruction_sets()))
    return Plan(
        recipe=recipe,
        site=site,
        nodes=nodes_of(wired, asked, catalog, memo),
        models=models,
        note="; ".join(filter(None, notes)),
    )


def fitted(recipe: Recipe, site: Site, catalog: Catalog) -> Recipe:
    """Give the recipe with the default gates that its plan would have; reads no file that it names.

    Raises:
        RecipeError: the list of stages does not fit together.
        PluginError: a plug-in is missing or broken.
    """
    asked = asked_of(recipe, site, catalog)
    return with_fitting_gates(asked, measured_of(wire(asked, catalog), asked))[0]


def needs_of(wired: Wired, asked: Asked) -> Needs:
    """What a stage needs of the machine.

    Raises:
        RecipeError: it asks for more devices than the site has.
    """
    needs, site = wired.stage.needs, asked.site
    needs = needs.model_copy(update={"devices": max(needs.devices, wired.stage.devices(asked))})
    on_cpu = site.device == CPU or needs.device == "cpu"
    there = site.cpu_slots if on_cpu else len(site.all_devices)
    if needs.device != "none" and needs.devices > there:
        have = f"{there} CPU {'slot' if there == 1 else 'slots'}" if on_cpu else ", ".join(site.all_devices)
        remedy = f"set KDQ_CPU_SLOTS={needs.devices}" if on_cpu else "name more of them in KDQ_DEVICES"
        raise RecipeError(
            f"stage {wired.title!r} asks for {needs.devices} devices, but this site has {have}; {remedy}, or lower "
            "'devices' in the stage's 'fit'"
        )
    return needs


def nodes_of(wired: tuple[Wired, ...], asked: Asked, catalog: Catalog, memo: Memo | None = None) -> tuple[Node, ...]:
    """Make the nodes of a plan; the parts of their keys hold the present state of code and files."""
    parts, before = KeyParts(asked, catalog, memo), {one.title: one for one in wired}
    return tuple(
        Node(
            name=one.title,
            use=one.use,
            gives=one.stage.gives,
            needs=needs_of(one, asked),
            parents=dict(one.parents),
            parts=parts.of(one, before),
        )
        for one in wired
    )
