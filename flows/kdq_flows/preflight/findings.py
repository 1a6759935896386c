"""The findings of a preflight, in order: the recipe, the place where it runs, the data, the models, the file."""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from kdq_core.errors import RecipeError
from kdq_core.frozen import Frozen
from kdq_core.plan.forecast import forecast
from kdq_core.plan.plan import asked_of, make_plan
from kdq_core.plugins.catalog import Catalog
from kdq_core.plugins.wiring import listed, wire
from kdq_core.recipe.spec import Recipe, Site
from kdq_core.store import open_store
from kdq_core.worker.main import named
from kdq_flows.run.teachers import resolved
from kdq_flows.running import check_disk, check_home


class Finding(Frozen):
    """What one check found: `says` is a fact if it is `ok`, else KDQ's error."""

    check: str
    ok: bool
    says: str


def findings(load: Callable[[], Recipe], site: Site) -> Iterator[Finding]:
    """Run all checks; a check that needs what a failed one should have given is left out.

    Args:
        load: gives the checked recipe.
        site: where the recipe would run.

    Yields:
        A finding for each check, and one for each kind of operator that stays in float.
    """
    given: list[Recipe] = []

    def recipe() -> str:
        given.append(load())
        return f"{given[0].name!r} with the stages {', '.join(use.title for use in listed(given[0]))}"

    yield (first := tried("recipe", recipe))
    if not first.ok:
        return
    (asked,) = given
    yield tried("home", lambda: home(site))
    yield tried("device", lambda: device(site))
    if any(use.stage_name == "register" for use in listed(asked)):
        yield tried("tracking", lambda: tracking(site))
    yield (planned := tried("plan", lambda: plan(asked, site)))
    if planned.ok:
        yield from rehearsed(asked, site)


def tried(check: str, run: Callable[[], str]) -> Finding:
    """Run one check; what the user's code prints goes to stderr."""
    try:
        with contextlib.redirect_stdout(sys.stderr):
            return Finding(check=check, ok=True, says=run())
    except Exception as error:
        return Finding(check=check, ok=False, says=str(named(error)))


def home(site: Site) -> str:
    """Write to the home, and look at the free space.

    Raises:
        KdqError: KDQ cannot write there, or the disk is almost full.
    """
    check_home(site)
    return f"{str(site.home)!r} can be written, {check_disk(site)}"


def device(site: Site) -> str:
    """Ask torch for the device.

    Raises:
        KdqError: it is not there.
    """
    from kdq_core.work.fitting import check_device

    check_device(site.device)
    return f"{site.device}, {site.threads} threads"


def tracking(site: Site) -> str:
    """Ask the tracking server, for a recipe that registers.

    Raises:
        TransientError: it cannot be reached.
    """
    if site.tracking_uri is None:
        return f"MLflow's database below {str(site.home)!r}"
    from kdq_registry.environment import client, mlflow_errors

    with mlflow_errors(site):
        client(site).search_experiments(max_results=1)
    return f"{site.tracking_uri} answers"


def plan(recipe: Recipe, site: Site) -> str:
    """Make the plan, and count the stages that are cached.

    Raises:
        KdqError: a file that it names is not there, or the data cannot be hashed.
    """
    made = make_plan(resolved(recipe, site), site, Catalog.load())
    cached = sum(line.state == "cached" for line in forecast(made, open_store(site)))
    return f"{len(made.nodes)} stages, {cached} of them cached"


def rehearsed(recipe: Recipe, site: Site) -> Iterator[Finding]:
    """Read the data, make the models, and export an untrained student; stops at the first check that fails."""
    from kdq_core.training.backend import plain_torch
    from kdq_flows.preflight.models import Rehearsal

    plain_torch(site.threads)
    catalog = Catalog.load()
    with tempfile.TemporaryDirectory(prefix="kdq-check-") as folder:

        def wired() -> Rehearsal:
            asked = asked_of(resolved(recipe, site), site, catalog)
            return Rehearsal(asked, wire(asked, catalog), Path(folder))

        try:
            rehearsal = wired()
        except RecipeError as error:
            yield Finding(check="stages", ok=False, says=str(error))
            return
        for name, check in rehearsal.checks():
            found = tried(name, check)
            yield found
            if not found.ok:
                return
        for line in rehearsal.float_lines:
            yield Finding(check="in float", ok=True, says=line)
