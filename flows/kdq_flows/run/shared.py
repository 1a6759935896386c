"""What the branches of a study have in common, so that KDQ computes it once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kdq_core.plan.keys import Memo
from kdq_core.plugins.catalog import Catalog
from kdq_flows.facts.uploader import Uploader

if TYPE_CHECKING:
    from kdq_flows.run.executors import Executor
    from kdq_registry.fetching import Fetched


@dataclass(frozen=True)
class Shared:
    """What several pipelines share.

    Attributes:
        catalog: the installed plug-ins.
        memo: what their plans have in common.
        fetched: teachers from the registry, by the name in the recipe.
        uploader: sends what they tell MLflow; who made it closes it.
        executor: runs their heavy stages; who made it closes it. By default each has its own, on this machine.
    """

    catalog: Catalog = field(default_factory=Catalog.load)
    memo: Memo = field(default_factory=Memo)
    fetched: dict[str, Fetched] = field(default_factory=dict)
    uploader: Uploader | None = None
    executor: Executor | None = None
