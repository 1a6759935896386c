"""A request: one recipe on one site, with each of its plug-ins built once. KDQ plans and runs stages with it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING

from pydantic import JsonValue

from kdq_core.plugins.choosing import Choosing
from kdq_core.plugins.kinds import Distiller, Evaluator, Plugin, Quantizer, Target, Workload

if TYPE_CHECKING:
    from kdq_core.plugins.kinds import Kind
    from kdq_core.recipe.explain import Where
    from kdq_core.recipe.spec import DistillerUse, Recipe, Site

Build = Callable[..., Plugin]
"""Makes a plug-in from kind, name, options and `where`, as `Catalog.build` does."""


class Asked:
    """One recipe on one site.

    Attributes:
        recipe: the recipe that KDQ runs.
        site: where it runs.
    """

    def __init__(self, recipe: Recipe, site: Site, build: Build, built: dict[str, Plugin] | None = None) -> None:
        """Take plug-ins from `build`; `built` keeps those it made."""
        self.recipe, self.site, self._build = recipe, site, build
        self._built: dict[str, Plugin] = {} if built is None else built

    def with_recipe(self, recipe: Recipe) -> Asked:
        """Copy this request with another form of the recipe; both share the plug-ins."""
        return Asked(recipe, self.site, self._build, self._built)

    def plugin(self, kind: Kind, name: str, options: Mapping[str, JsonValue], where: str | Where = "") -> Plugin:
        """Build a plug-in of the catalog with its options, or give the one built before; for `where` see `Catalog`."""
        asked = f"{kind} {name} {json.dumps(options, sort_keys=True) if options else ''}"
        if asked not in self._built:
            self._built[asked] = self._build(kind, name, options, where=where)
        return self._built[asked]

    @cached_property
    def workload(self) -> Workload:
        """The recipe's workload."""
        found = self.plugin("workload", self.recipe.workload.use, self.recipe.workload.options)
        assert isinstance(found, Workload)
        return found

    @cached_property
    def quantizer(self) -> Quantizer:
        """The recipe's quantizer."""
        found = self.plugin("quantizer", self.recipe.quantize.use, self.recipe.quantize.options)
        assert isinstance(found, Quantizer)
        return found

    @cached_property
    def ways(self) -> tuple[str, ...]:
        """Names of the quantizers that a run chooses among, the first to try first; empty if the recipe names one.

        What only training can give, `control` or a quantization loss, leaves the last one alone.
        """
        spec, quantizer = self.recipe.quantize, self.quantizer
        if not isinstance(quantizer, Choosing):
            return ()
        found = quantizer.ways(spec.fewest_bits)
        return found[-1:] if spec.control or spec.weight_loss else found

    def way(self, name: str) -> Quantizer:
        """The quantizer of one of the `ways`, with its defaults."""
        found = self.plugin("quantizer", name, {})
        assert isinstance(found, Quantizer)
        return found

    @cached_property
    def target(self) -> Target:
        """The recipe's target."""
        found = self.plugin("target", self.recipe.target.use, self.recipe.target.options)
        assert isinstance(found, Target)
        return found

    @cached_property
    def evaluators(self) -> tuple[Evaluator, ...]:
        """The recipe's evaluators, in order."""
        found = [self.plugin("evaluator", use.use, use.options) for use in self.recipe.evaluate]
        return tuple(plugin for plugin in found if isinstance(plugin, Evaluator))

    @cached_property
    def distillers(self) -> tuple[tuple[DistillerUse, Distiller], ...]:
        """The recipe's distillers, in order, each with its options at the start of a fit."""
        built = [(use, self.plugin("distiller", use.use, use.options_at(0))) for use in self.recipe.distill.distillers]
        return tuple((use, plugin) for use, plugin in built if isinstance(plugin, Distiller))

    @property
    def tapping(self) -> tuple[DistillerUse, ...]:
        """The recipe's distillers that compare features."""
        return tuple(use for use, distiller in self.distillers if distiller.features != "none")
