"""Recurring compressions: checks a schedule, and makes the Prefect deployment that follows it."""

from __future__ import annotations

import importlib
import math
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from kdq_core.errors import RecipeError, did_you_mean
from kdq_core.frozen import Frozen
from kdq_core.plan.plan import fitted
from kdq_core.plugins.catalog import Catalog
from kdq_core.reading.studies import Study
from kdq_core.recipe.spec import Recipe, Site
from kdq_flows.prefect.due import TAG
from kdq_flows.prefect.news import LOOK
from kdq_flows.prefect.policy import Missed, Overlap, Policy
from kdq_flows.prefect.pools import ensure_pool, name_in, pool_of
from kdq_flows.servers.environment import apply_environment
from kdq_flows.servers.servers import ensure_prefect

if TYPE_CHECKING:
    from prefect.schedules import Schedule

MODULE_PATH = "kdq_flows.prefect.scheduled:scheduled_flow"
LONGEST_INTERVAL = 366 * 86_400.0
SHORTEST_LAG = 60.0


class RecurringSchedule(Frozen):
    """A checked schedule; exactly one of `cron` and `interval_seconds` is set."""

    cron: str | None
    interval_seconds: float | None
    timezone: str
    next_runs: tuple[datetime, datetime]

    @property
    def text(self) -> str:
        """The schedule in words, for the user."""
        what = f"cron '{self.cron}'" if self.cron else f"every {self.interval_seconds:g} s"
        return f"{what}, {self.timezone}"

    @property
    def default_lag(self) -> float:
        """Seconds by which a run may start late: the time to the next run, but at least a minute."""
        return max(SHORTEST_LAG, (self.next_runs[1] - self.next_runs[0]).total_seconds())


def check_schedule(*, cron: str | None, interval_seconds: float | None, timezone: str | None) -> RecurringSchedule:
    """Check a schedule with the code by which Prefect will compute the runs. Call `apply_environment` first.

    Args:
        cron: five fields, such as `0 3 * * *`.
        interval_seconds: from 1 s to 366 days.
        timezone: IANA name; `None` means UTC.

    Raises:
        RecipeError: the user gives neither or both; the interval is out of range; `cron` is not a cron expression or is
            never due; or the time zone is unknown.
    """
    if (cron is None) == (interval_seconds is None):
        wrong = "neither was given; give one, or '--on data' alone" if cron is None else "both were given; give one"
        raise RecipeError(f"a schedule is either '--cron' or '--interval', and {wrong}")
    zone = _check_timezone(timezone)
    runs = _check_cron(cron, zone) if cron is not None else _check_interval(float(interval_seconds or 0))
    return RecurringSchedule(cron=cron, interval_seconds=interval_seconds, timezone=zone, next_runs=runs)


def deploy(
    site: Site,
    recipe: Recipe | Study,
    *,
    cron: str | None = None,
    interval_seconds: float | None = None,
    timezone: str | None = None,
    allowed_lag_seconds: float | None = None,
    missed: Missed = "one",
    overlap: Overlap = "skip",
    look_seconds: float | None = None,
    module_path: str = MODULE_PATH,
) -> dict[str, Any]:
    """Create or replace the deployment of the recipe in the site's pool. Starts the site's own server if needed.

    Check the recipe with its plug-ins first: Prefect accepts any options here and fails later.

    Args:
        site: its pool takes the runs. The deployment holds nothing else of it: the machine that works has its own.
        recipe: what to run, with or without branches.
        cron: see `check_schedule`.
        interval_seconds: see `check_schedule`.
        timezone: see `check_schedule`.
        allowed_lag_seconds: a run that would start later than this is missed; `None` allows the time to the next run.
        missed: see `kdq_flows.prefect.policy.Policy`.
        overlap: see `kdq_flows.prefect.policy.Policy`.
        look_seconds: also run when the data have changed, and look at them so often; then a schedule may be missing.
        module_path: `module:flow` of a flow that takes `recipe` and the fields of `Policy`.

    Returns:
        deployment, id, schedule, next_run, allowed_lag_seconds, missed, overlap, pool, url.

    Raises:
        RecipeError: the schedule or the lag is not possible.
    """
    apply_environment(site, site.prefect_api)
    schedule = None
    if look_seconds is None or (cron, interval_seconds, timezone) != (None, None, None):
        schedule = check_schedule(cron=cron, interval_seconds=interval_seconds, timezone=timezone)
    looks = {} if look_seconds is None else {LOOK: _check_look(look_seconds)}
    policy = Policy(missed=missed, overlap=overlap, allowed_lag_seconds=_lag(allowed_lag_seconds, schedule))
    api, _ = ensure_prefect(site)
    apply_environment(site, api)
    pool = pool_of(site)
    ensure_pool(pool)
    asked = {"recipe": _deployed(recipe, site), **policy.model_dump(), **looks}
    deployment, identity = _apply(module_path, recipe.name, schedule, asked, pool)
    return {
        "deployment": deployment,
        "id": identity,
        "schedule": ", ".join([*([schedule.text] if schedule else []), *map(on_news, looks.values())]),
        "next_run": schedule.next_runs[0].isoformat(timespec="seconds") if schedule else None,
        **policy.model_dump(),
        "pool": pool,
        "url": f"{api.removesuffix('/api')}/deployments/deployment/{identity}",
    }


def on_news(look_seconds: float) -> str:
    """The trigger by news in words, for the user."""
    return f"on new data, looked at every {look_seconds:g} s"


def _check_look(seconds: float) -> float:
    if not 1 <= seconds <= LONGEST_INTERVAL:
        raise RecipeError(f"'--look' is {seconds!r}; give a number of seconds from 1 to {LONGEST_INTERVAL:.0f}")
    return seconds


def _lag(asked: float | None, schedule: RecurringSchedule | None) -> float | None:
    if asked is not None and not 0 < asked < math.inf:
        raise RecipeError(f"the allowed lag is {asked!r}; give a number of seconds above 0")
    return schedule.default_lag if asked is None and schedule is not None else asked


def _deployed(recipe: Recipe | Study, site: Site) -> dict[str, Any]:
    """A recipe spells out every field. One with branches stays as in its file, because axes may name any field."""
    if isinstance(recipe, Study):
        return dict(recipe.document.value)
    return fitted(recipe, site, Catalog.load()).model_dump(mode="json", by_alias=True)


def _apply(
    module_path: str, recipe: str, schedule: RecurringSchedule | None, parameters: dict[str, Any], pool: str
) -> tuple[str, str]:
    from prefect.deployments.runner import EntrypointType

    module, _, name = module_path.partition(":")
    flow = getattr(importlib.import_module(module), name)
    deployment = flow.to_deployment(
        name=name_in(pool, recipe),
        schedules=[_prefect_schedule(schedule)] if schedule else [],
        parameters=parameters,
        work_pool_name=pool,
        entrypoint_type=EntrypointType.MODULE_PATH,
        tags=[TAG],
    )
    return deployment.full_name, str(deployment.apply())


def _prefect_schedule(schedule: RecurringSchedule) -> Schedule:
    from prefect.schedules import Cron, Interval

    if schedule.cron is not None:
        return Cron(schedule.cron, timezone=schedule.timezone)
    return Interval(timedelta(seconds=schedule.interval_seconds or 0), timezone=schedule.timezone)


def _check_timezone(timezone: str | None) -> str:
    from zoneinfo import available_timezones

    zone = "UTC" if timezone is None else timezone
    zones = available_timezones()
    if zone not in zones:
        near = did_you_mean(zone, zones) or "; give an IANA name such as 'Europe/Berlin'"
        raise RecipeError(f"no time zone named {zone!r}{near}")
    return zone


def _check_interval(seconds: float) -> tuple[datetime, datetime]:
    if not 1 <= seconds <= LONGEST_INTERVAL:
        raise RecipeError(f"the interval is {seconds!r}; give a number of seconds from 1 to {LONGEST_INTERVAL:.0f}")
    first = datetime.now(UTC) + timedelta(seconds=seconds)
    return first, first + timedelta(seconds=seconds)


def _check_cron(cron: str, zone: str) -> tuple[datetime, datetime]:
    from prefect.server.schemas.schedules import CronSchedule
    from prefect.utilities.asyncutils import run_coro_as_sync

    if len(cron.split()) != 5:
        raise RecipeError(
            f"the cron expression {cron!r} has {len(cron.split())} fields; it needs five: "
            "minute, hour, day of month, month, day of week"
        )
    try:
        schedule = CronSchedule(cron=cron, timezone=zone)
    except ValueError:
        raise RecipeError(
            f"{cron!r} is not a cron expression; give minute, hour, day of month, month and day of week, "
            "such as '0 3 * * 1' for Mondays at 3:00"
        ) from None
    try:
        runs = run_coro_as_sync(schedule.get_dates(2))
    except ValueError:  # CroniterBadDateError
        runs = []
    if len(runs) < 2:
        raise RecipeError(
            f"the cron expression {cron!r} is never due, as there is no such date; change its day or month"
        )
    return runs[0], runs[1]
