"""`kdq schedules` on a real Prefect server."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from kdq_core.errors import RecipeError
from kdq_core.recipe.spec import Recipe, Site
from kdq_flows.cli.schedules import register_commands
from kdq_flows.prefect.due import runs_of
from kdq_flows.prefect.schedules import deploy

app = typer.Typer()
register_commands(app)


@pytest.fixture
def nightly(prefect_site: Site, tiny_flow: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Recipe]:
    """A schedule on the server of the tests, which this process's environment names too."""
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound

    monkeypatch.setenv("KDQ_HOME", str(prefect_site.home))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    recipe = Recipe(name="nightly", workload="digits")
    facts = deploy(prefect_site, recipe, cron="0 3 * * *", timezone="Europe/Berlin", module_path=tiny_flow)
    yield recipe
    with get_client(sync_client=True) as client:
        try:
            client.delete_deployment(facts["id"])
        except ObjectNotFound:
            return


def kdq(*words: str) -> str:
    result = CliRunner().invoke(app, ["schedules", *words])
    if result.exception is not None:
        raise result.exception
    return result.stdout


def listed() -> dict[str, dict[str, object]]:
    return {one["name"]: one for one in json.loads(kdq("ls", "--json"))}


@pytest.mark.usefixtures("nightly")
def test_a_schedule_is_listed_paused_resumed_run_and_removed(prefect_site: Site, tiny_flow: str) -> None:
    from prefect.client.orchestration import get_client
    from prefect.states import Completed

    found = listed()["nightly"]
    next_run = found.pop("next_run")
    assert next_run is None or datetime.fromisoformat(str(next_run)) > datetime.now(UTC)
    assert found == {
        "name": "nightly", "recipe": "nightly", "schedule": "cron '0 3 * * *', Europe/Berlin", "paused": False,
        "last_run": None, "missed": "one", "overlap": "skip",
    }  # fmt: skip
    assert kdq("pause", "nightly") == "nightly is paused; `kdq schedules resume nightly` goes on\n"
    assert (listed()["nightly"]["paused"], listed()["nightly"]["next_run"]) == (True, None)
    assert kdq("resume", "nightly") == "nightly is resumed\n"
    assert listed()["nightly"]["paused"] is False
    kdq("pause", "nightly")
    deploy(prefect_site, Recipe(name="nightly", workload="digits"), interval_seconds=9e5, module_path=tiny_flow)
    assert (listed()["nightly"]["paused"], listed()["nightly"]["schedule"]) == (False, "every 900000 s, UTC")
    told = kdq("run", "nightly")
    with get_client(sync_client=True) as client:
        (run,) = runs_of(client, client.read_deployment_by_name("tiny/nightly").id)
        assert told == f"nightly runs as soon as `kdq serve` has a free worker; the flow run is {run.name!r}\n"
        assert not run.auto_scheduled
        client.set_flow_run_state(run.id, Completed(), force=True)
    last = listed()["nightly"]["last_run"]
    assert isinstance(last, dict)
    assert (last["run"], last["state"]) == (run.name, "Completed")
    assert "Completed" in kdq("ls")
    assert kdq("rm", "nightly") == "nightly is removed\n"
    assert "nightly" not in listed()


@pytest.mark.usefixtures("nightly")
def test_an_unknown_schedule_is_told_with_the_nearest_name() -> None:
    for command in ("pause", "resume", "rm", "run"):
        with pytest.raises(RecipeError, match=r"^no schedule named 'nigthly'; did you mean 'nightly'\?$"):
            kdq(command, "nigthly")
    with pytest.raises(RecipeError, match=r"^no schedule named 'zzz'; 'kdq schedules ls' lists them$"):
        kdq("rm", "zzz")


def test_without_schedules_the_list_says_how_to_make_one(monkeypatch: pytest.MonkeyPatch, prefect_site: Site) -> None:
    monkeypatch.setenv("KDQ_HOME", str(prefect_site.home))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setattr("kdq_flows.prefect.deployed.deployments", lambda _client, _pool: [])
    assert kdq("ls") == "no schedules; `kdq deploy FILE` makes one\n"
    with pytest.raises(RecipeError, match=r"^no schedule named 'a'; there is none yet$"):
        kdq("run", "a")


def test_a_recipe_with_branches_is_deployed_as_its_file_says(
    prefect_site: Site, tiny_flow: str, tmp_path: Path
) -> None:
    from kdq_core.plugins.catalog import Catalog
    from kdq_core.reading.recipe_file import document_from_text
    from kdq_core.reading.studies import Study, load, read_study
    from kdq_flows.facts.report import yaml_of
    from kdq_flows.prefect.deployed import connected, remove

    file = tmp_path / "grid.yaml"
    file.write_text("name: grid\nworkload: digits\nmatrix: {over: {quantize.weights: [8, 4]}}\n")
    study = load(file)
    assert isinstance(study, Study)
    deploy(prefect_site, study, interval_seconds=9e5, module_path=tiny_flow)
    with connected(prefect_site) as client:
        recipe = client.read_deployment_by_name("tiny/grid").parameters["recipe"]
        remove(client, "kdq", "grid")
    again = read_study(document_from_text(yaml_of(recipe), "the deployed recipe"), Catalog.load())
    assert [one.recipe for one in again.branches] == [one.recipe for one in study.branches]


def test_two_sites_with_one_server_keep_their_schedules_apart(
    prefect_site: Site, tiny_flow: str, tmp_path: Path
) -> None:
    """Their recipes have the same name; sites that name one pool share its schedules."""
    from prefect.client.orchestration import get_client

    from kdq_flows.prefect.deployed import remove, schedules
    from kdq_flows.prefect.pools import pool_of
    from kdq_flows.servers.servers import running_prefect

    address = running_prefect(prefect_site)
    here, there = (Site(home=tmp_path / name, prefect_api=address) for name in ("here", "there"))
    team = here.model_copy(update={"pool": "team"})
    recipe = Recipe(name="same", workload="digits")
    facts = [
        deploy(site, recipe, interval_seconds=every, module_path=tiny_flow)
        for site, every in ((here, 1e5), (there, 2e5), (team, 3e5))
    ]
    assert len({one["id"] for one in facts}) == len({one["pool"] for one in facts}) == 3
    assert facts[2]["deployment"] == "tiny/same@team"
    with get_client(sync_client=True) as client:
        found = [schedules(client, pool_of(site)) for site in (here, there, team)]
        assert [[(one.name, one.schedule) for one in ones] for ones in found] == [
            [("same", "every 100000 s, UTC")], [("same", "every 200000 s, UTC")], [("same", "every 300000 s, UTC")]
        ]  # fmt: skip
        for one in (here, there, team):
            remove(client, pool_of(one), "same")
