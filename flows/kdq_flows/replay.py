"""Replay a run from its lock: compute everything again in an empty store, and compare the bytes."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from kdq_core.errors import RecipeError, did_you_mean, listing
from kdq_core.frozen import Frozen
from kdq_core.plan.lock import SUFFIX, Difference, Lock, differences, lock_of, read_lock, unlike
from kdq_core.plan.machine import check_devices
from kdq_core.plan.plan import Plan
from kdq_core.recipe.spec import Recipe, Site
from kdq_core.store.store import explained
from kdq_flows.observer import Observer, Silent
from kdq_flows.run.pipeline import Pipeline


class Replay(Frozen):
    """How a replay ended.

    Attributes:
        run: name of the recipe.
        ran: whether KDQ computed the stages again.
        reproduced: whether every file has the bytes of the lock.
        files: number of files that were compared.
        differences: what decides results, and is another now than in the lock.
        bytes: files with other bytes, in the order of the plan: the first one is where to look.
    """

    run: str
    ran: bool
    reproduced: bool
    files: int = 0
    differences: tuple[Difference, ...] = ()
    bytes: tuple[Difference, ...] = ()


def replay(
    lock: Lock, site: Site, *, anyway: bool = False, home: Path | None = None, observer: Observer | None = None
) -> Replay:
    """Compute the stages of a lock again, if nothing that decides their results has changed.

    Args:
        lock: of a run that finished.
        site: has the registry of the teachers, and the place for the empty store.
        anyway: compute them also if something has changed.
        home: keep the new results in this folder, which must be empty; by default KDQ removes them.
        observer: hears of stages and messages.

    Raises:
        RecipeError: the lock has no results, `home` is not empty, or the recipe cannot be planned here.
        StageError: a stage failed.
    """
    if not lock.ran:
        raise RecipeError(
            "the lock holds no results to compare with, because its recipe had not run; `kdq run` it, then lock it"
        )
    with _empty(site, home) as place:
        here = Site(home=place, device=lock.device, precision=lock.precision, threads=lock.threads)
        check_devices(here)
        pipeline = Pipeline(_recipe(lock, site), here, observer or Silent(), tracked=False)
        found = differences(lock, pipeline.plan)
        if found and not anyway:
            return Replay(run=lock.recipe.name, ran=False, reproduced=False, differences=found)
        _choose(lock, pipeline)
        try:
            pipeline.warm_up()
            pipeline.run_inline(_computing(pipeline.plan))
        finally:
            pipeline.finish()
        if pipeline.error is not None:
            raise pipeline.error
        other = unlike(lock, pipeline.entries)
        return Replay(
            run=lock.recipe.name,
            ran=True,
            reproduced=not other,
            files=sum(len(stage.files) for stage in lock.stages),
            differences=found,
            bytes=other,
        )


def _choose(lock: Lock, pipeline: Pipeline) -> None:
    """Put what the locked run chose by measuring into the empty store: a second measurement might choose otherwise."""
    nodes = {node.name: node for node in pipeline.plan.nodes}
    for stage in lock.stages:
        node = nodes.get(stage.name)
        if stage.chosen is None or node is None or node.parents:
            continue
        key = node.key({})
        with pipeline.store.draft(key) as draft:
            pipeline.store.commit(draft, stage=node.use, key=key, parts=node.full_parts({}), record=stage.chosen)


def find_lock(site: Site, asked: str) -> Lock:
    """Find the lock that a user names.

    Args:
        site: has the locks of its runs, and the registry.
        asked: a lock file, a version (`NAME/NUMBER`, `NAME@ALIAS`), or the name of a run.

    Raises:
        RecipeError: there is none.
    """
    if asked.endswith(".json") or Path(asked).is_file():
        return read_lock(Path(asked))
    from kdq_registry.lock import lock_of_run, lock_of_version

    if "/" in asked or "@" in asked:
        return lock_of(lock_of_version(site, asked), f"the lock of {asked!r}")
    kept = site.home / "runs" / f"{asked}{SUFFIX}"
    if kept.is_file():
        return read_lock(kept)
    text = lock_of_run(site, asked)
    if text is not None:
        return lock_of(text, f"the lock of run {asked!r}")
    names = sorted(path.name.removesuffix(SUFFIX) for path in kept.parent.glob(f"*{SUFFIX}"))
    raise RecipeError(
        f"no run named {asked!r} has a lock{did_you_mean(asked, names) or '.'} Runs: {listing(names[-10:])}; name one "
        "of these, a version as NAME/NUMBER or NAME@ALIAS, or a file that `kdq lock` wrote"
    )


def _recipe(lock: Lock, site: Site) -> Recipe:
    """The recipe of the lock; files of teachers that a registry has, and this home has not, are fetched."""

    def there(member: dict[str, object]) -> dict[str, object]:
        file = member.get("file")
        model = lock.teachers.get(str(file))
        if model is None or Path(str(file)).is_file():
            return member
        from kdq_registry.fetching import fetch

        return member | {"file": str(fetch(site, model).path)}

    fields = lock.recipe.model_dump(mode="json")
    fields["teacher"]["members"] = [there(member) for member in fields["teacher"]["members"]]
    return Recipe.model_validate(fields)


def _computing(plan: Plan) -> set[str]:
    """The stages that compute, and those that they read; the registry gets nothing."""
    wanted: set[str] = set()
    for node in reversed(plan.nodes):
        if node.heavy or node.name in wanted:
            wanted |= {node.name, *node.parents.values()}
    return wanted


@contextlib.contextmanager
def _empty(site: Site, home: Path | None) -> Iterator[Path]:
    """An empty home, which goes afterwards unless the user named it."""
    if home is not None:
        if home.exists() and (not home.is_dir() or any(home.iterdir())):
            raise RecipeError(f"the folder {str(home)!r} is not empty, and a replay begins with an empty store; name "
                              "another one")  # fmt: skip
        with explained(home, "write to the folder of the replay"):
            home.mkdir(parents=True, exist_ok=True)
        yield home.resolve()
        return
    with explained(site.home, "write to KDQ_HOME"):
        site.home.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.TemporaryDirectory(dir=site.home, prefix="replay-", ignore_cleanup_errors=True)
    with scratch as name:
        yield Path(name)
