import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from kdq_core.errors import RecipeError
from kdq_core.recipe.spec import Recipe, Site
from kdq_flows.prefect.schedules import check_schedule, deploy

BAD = [
    ({}, "a schedule is either '--cron' or '--interval', and neither was given; give one, or '--on data' alone"),
    (
        {"cron": "0 3 * * *", "interval_seconds": 60.0},
        "a schedule is either '--cron' or '--interval', and both were given; give one",
    ),
    ({"interval_seconds": 0.0}, "the interval is 0.0; give a number of seconds from 1 to 31622400"),
    ({"interval_seconds": -5.0}, "the interval is -5.0; give a number of seconds from 1 to 31622400"),
    ({"interval_seconds": float("nan")}, "the interval is nan; give a number of seconds from 1 to 31622400"),
    ({"interval_seconds": float("inf")}, "the interval is inf; give a number of seconds from 1 to 31622400"),
    (
        {"interval_seconds": 60.0, "timezone": "Mars/Base"},
        "no time zone named 'Mars/Base'; give an IANA name such as 'Europe/Berlin'",
    ),
    (
        {"interval_seconds": 60.0, "timezone": "Europe/Berlni"},
        "no time zone named 'Europe/Berlni'; did you mean 'Europe/Berlin'?",
    ),
    (
        {"cron": "0 3 * *"},
        "the cron expression '0 3 * *' has 4 fields; it needs five: minute, hour, day of month, month, day of week",
    ),
    (
        {"cron": "0 25 * * *"},
        "'0 25 * * *' is not a cron expression; give minute, hour, day of month, month and day of week, "
        "such as '0 3 * * 1' for Mondays at 3:00",
    ),
    (
        {"cron": "0 0 30 2 *"},
        "the cron expression '0 0 30 2 *' is never due, as there is no such date; change its day or month",
    ),
]


@pytest.mark.parametrize(("asked", "message"), BAD)
def test_an_impossible_schedule_is_refused_with_its_remedy(asked: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        check_schedule(**({"cron": None, "interval_seconds": None, "timezone": None} | asked))  # type: ignore[arg-type]
    assert str(caught.value) == message


def test_a_cron_schedule_is_computed_in_its_zone() -> None:
    schedule = check_schedule(cron="30 3 * * 1", interval_seconds=None, timezone="Europe/Berlin")
    first = schedule.next_runs[0].astimezone(ZoneInfo("Europe/Berlin"))
    assert (first.hour, first.minute, first.isoweekday()) == (3, 30, 1)
    assert first > datetime.now(UTC)
    assert schedule.text == "cron '30 3 * * 1', Europe/Berlin"


def test_a_run_is_skipped_by_default_when_the_next_one_is_due() -> None:
    daily = check_schedule(cron="0 3 * * *", interval_seconds=None, timezone=None)
    assert daily.default_lag == 86_400
    assert check_schedule(cron=None, interval_seconds=7200, timezone=None).default_lag == 7200
    assert check_schedule(cron=None, interval_seconds=5, timezone=None).default_lag == 60


def test_a_lag_that_is_no_duration_is_refused_before_anything_is_started(site: Site) -> None:
    with pytest.raises(RecipeError, match=r"^the allowed lag is -1; give a number of seconds above 0$"):
        deploy(site, Recipe(name="r", workload="digits"), interval_seconds=60, allowed_lag_seconds=-1)
    assert not (site.home / "servers").exists()


def test_checking_a_schedule_writes_nothing_into_the_users_home(site: Site, tmp_path: Path) -> None:
    script = """
import sys
from pathlib import Path
from kdq_core.recipe.spec import Recipe, Site
from kdq_flows.prefect.schedules import deploy
try:
    deploy(Site(home=Path(sys.argv[1])), Recipe(name="r", workload="digits"), cron="0 0 30 2 *")
except Exception as error:
    print(type(error).__name__)
"""
    env = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT")} | {"HOME": str(tmp_path / "user")}
    argv = [sys.executable, "-c", script, str(site.home)]
    done = subprocess.run(argv, env=env, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "RecipeError\n"
    assert not (tmp_path / "user").exists()


def test_deploying_again_replaces_the_schedule(prefect_site: Site, tiny_flow: str) -> None:
    from prefect.client.orchestration import get_client

    recipe = Recipe(name="twice", workload="digits", quantize={"use": "weight-only"})
    first = deploy(prefect_site, recipe, interval_seconds=3600, module_path=tiny_flow)
    second = deploy(
        prefect_site, recipe, cron="0 3 * * *", timezone="Europe/Berlin", allowed_lag_seconds=90, missed="none",
        overlap="queue", module_path=tiny_flow,
    )  # fmt: skip
    assert [(facts["missed"], facts["overlap"]) for facts in (first, second)] == [("one", "skip"), ("none", "queue")]
    assert (first["deployment"], first["id"]) == ("tiny/twice", second["id"])
    with get_client(sync_client=True) as client:
        deployment = client.read_deployment_by_name("tiny/twice")
        assert [schedule.schedule.cron for schedule in deployment.schedules] == ["0 3 * * *"]
        assert deployment.schedules[0].schedule.timezone == "Europe/Berlin"
        assert deployment.entrypoint == "tiny_flow.tiny_flow"
        assert not deployment.pull_steps
        assert deployment.path is None
        assert deployment.work_pool_name == "kdq"
        assert deployment.global_concurrency_limit is None
        deployed = Recipe.model_validate(deployment.parameters["recipe"])
        assert deployed.model_copy(update={"gates": recipe.gates}) == recipe
        assert [gate.metric for gate in deployed.gates] == ["top1", "parity_flips"]  # those that fit the quantizer
        assert "site" not in deployment.parameters
        assert [deployment.parameters[name] for name in ("allowed_lag_seconds", "missed", "overlap")] == [
            90, "none", "queue"
        ]  # fmt: skip
        client.delete_deployment(deployment.id)
