"""Executors: what runs the heavy stages of a run. The run waits for each stage's future, and does the retries itself.

`kdq run --executor` or KDQ_EXECUTOR names one. An executor gets plain data and gives plain data, so a stage may run on
another machine, with the site (home, device, threads) of that machine.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, cast

from kdq_core.errors import RecipeError, StageError
from kdq_core.plugins.catalog import Catalog
from kdq_core.recipe.spec import Recipe, Site
from kdq_core.store.store import Entry, Store
from kdq_flows.run.leases import most_at_once
from kdq_flows.run.node import Driving, Heard, NodeAnswer, run_node
from kdq_flows.run.supervisor import TERMINATE_SECONDS, StageCancelledError
from kdq_flows.run.warm import WarmWorker, for_recipe

Say = Callable[[str], None]
ELSEWHERE = {
    "ray": "kdq_flows.run.on_ray:OnRay",
    "dask": "kdq_flows.run.on_dask:OnDask",
    "pool": "kdq_flows.prefect.on_pool:OnPool",
}
"""Executors that run stages in other processes or on other machines; imported where one is asked for."""


class Executor(Protocol):
    """Runs nodes.

    Attributes:
        width: the most nodes that run at once.
    """

    width: int

    def warm_up(self, recipe: Recipe, catalog: Catalog, log: Path, /) -> None:
        """Begin what takes long before the first stage; KDQ calls it if a heavy stage must run.

        Raises:
            KdqError: that is not possible.
        """

    def submit(self, request: dict[str, Any], heard: Heard) -> Future[dict[str, Any]]:
        """Begin a node. The future gives what `run_node` gives, and never retries.

        Args:
            request: a `NodeRequest` as plain data.
            heard: gets events as they happen, where there is a way; the answer holds the others.
        """

    def cancel(self) -> None:
        """End the nodes that run or wait; later ones do not begin."""

    def close(self) -> None:
        """Give back what the executor holds; whatever it started ends."""


class Here:
    """Runs each node in the thread that asks for it; the stage's child process belongs to this process."""

    def __init__(self, site: Site, width: int = 1) -> None:
        """Run on this machine, at this site."""
        self.width, self._site = width, site
        self._cancelled, self._warm = threading.Event(), cast("WarmWorker | None", None)

    def warm_up(self, recipe: Recipe, catalog: Catalog, log: Path) -> None:
        """Start the warm worker, which imports libraries beforehand and forks stages."""
        if self._warm is None:
            self._warm = for_recipe(recipe, self._site, catalog, log)

    def submit(self, request: dict[str, Any], heard: Heard) -> Future[dict[str, Any]]:
        """Run the node; the future is done."""
        done = Future[dict[str, Any]]()
        driving = Driving(heard, self._cancelled, self._warm)
        done.set_result(run_node(request | {"site": self._site.model_dump(mode="json")}, driving))
        return done

    def cancel(self) -> None:
        """End the children."""
        self._cancelled.set()

    def close(self) -> None:
        """End the warm worker."""
        if self._warm is not None:
            self._warm.close()
            self._warm = None


def answer_of(executor: Executor, request: dict[str, Any], heard: Heard) -> NodeAnswer:
    """Run a node and wait for it; afterwards `heard` has got each of its events once, in order.

    Raises:
        KdqError: the node failed or was cancelled.
    """
    future = executor.submit(request, heard)
    try:
        answer = NodeAnswer.model_validate(future.result())
    except CancelledError:
        raise StageCancelledError("the stage was cancelled") from None
    except KeyboardInterrupt:
        executor.cancel()
        wait([future], timeout=TERMINATE_SECONDS + 0.5)
        raise
    for event in answer.events:
        heard(event)
    answer.raise_error()
    return answer


def package(name: str, executor: str) -> Any:
    """Import the package of an executor.

    Raises:
        RecipeError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise RecipeError(
            f"the executor {executor!r} needs the package {name!r}, which is not installed; install it with "
            f"`pip install 'kdq[{executor}]'`, or choose another executor"
        ) from None


def entry_of(answer: NodeAnswer, store: Store) -> Entry:
    """The entry that a node gave.

    Raises:
        StageError: another machine put it into a store that this process does not see.
        StoreError: it is damaged, or cannot be read.
    """
    entry = store.lookup(answer.key)
    if entry is None:
        raise StageError(
            f"the worker {answer.by.split(':')[0]!r} put the result into its store {answer.store!r}, and this process "
            f"reads {str(store.root)!r}, which does not have it; let both use one store: set KDQ_STORE to an address, "
            "or KDQ_HOME to a folder that both see"
        )
    return entry


@contextmanager
def executor_of(site: Site, say: Say) -> Iterator[Executor]:
    """The executor that a site asks for; at the end it is closed.

    Raises:
        RecipeError: its package is missing, or its cluster cannot be reached.
    """
    executor: Executor
    if site.executor in ELSEWHERE:
        module, _, name = ELSEWHERE[site.executor].partition(":")
        executor = getattr(importlib.import_module(module), name)(site, say)
    else:
        executor = Here(site, 1 if site.executor == "inline" else site.workers or most_at_once(site))
    try:
        yield executor
    finally:
        executor.close()
