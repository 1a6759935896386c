"""Run stages of a recipe in this process."""

from pathlib import Path
from typing import Any

import pytest

from kdq_core.catalog import Catalog
from kdq_core.plan import make_plan
from kdq_core.spec import Recipe, Site
from kdq_core.stages.context import StageContext
from kdq_core.stages.run import STAGES
from kdq_core.store import Entry, Store

CATALOG = Catalog.load()


class Run:
    """The stages of one recipe; entries by stage name, and the events they sent."""

    def __init__(self, home: Path, catalog: Catalog = CATALOG, **recipe: Any) -> None:
        self.recipe = Recipe.model_validate({"name": "tiny", **recipe})
        self.site, self.catalog = Site(home=home, threads=1), catalog
        self.plan = make_plan(self.recipe, self.site, catalog)
        self.entries: dict[str, Entry] = {}
        self.events: list[dict[str, Any]] = []

    def context(self, name: str, draft: Path) -> StageContext:
        """What the stage function is given."""
        node, scratch = self.plan.node(name), self.site.home / "scratch" / name
        scratch.mkdir(parents=True, exist_ok=True)
        return StageContext(
            stage=name,
            recipe=self.recipe,
            site=self.site,
            catalog=self.catalog,
            parents={parent: self.entries[parent] for parent in node.parents},
            draft=draft,
            scratch=scratch / "fit.safetensors",
            emit=self.events.append,
        )

    def stage(self, name: str) -> Entry:
        """Run one stage, whose parents ran, and commit its entry."""
        node, store = self.plan.node(name), Store(self.site.store)
        digests = {parent: self.entries[parent].digest for parent in node.parents}
        key = node.key(digests)
        with store.draft(key) as draft:
            record = STAGES[name](self.context(name, draft))
            parts = node.full_parts(digests)
            self.entries[name] = store.commit(draft, stage=name, key=key, parts=parts, record=record)
        return self.entries[name]


@pytest.fixture(scope="session")
def stages_of() -> type[Run]:
    """Makes a `Run` from a home and the sections of a recipe."""
    return Run
