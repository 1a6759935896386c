import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from kdq_core.errors import RecipeError
from kdq_core.recipe.spec import Site
from kdq_flows.cli.servers import register_commands

app = typer.Typer()
register_commands(app)


@pytest.fixture(autouse=True)
def _home(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDQ_HOME", str(site.home))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)


def test_down_and_reconcile_in_a_new_home_say_that_there_is_nothing_to_do(site: Site) -> None:
    assert CliRunner().invoke(app, ["down"]).stdout == "nothing was running\n"
    assert CliRunner().invoke(app, ["reconcile"]).stdout == "nothing to upload or close\n"
    assert json.loads(CliRunner().invoke(app, ["down", "--json"]).stdout) == []
    assert not site.home.exists()


def test_the_doctor_ends_with_code_1_when_something_is_broken(site: Site) -> None:
    site.home.write_text("not a folder")
    result = CliRunner().invoke(app, ["doctor", "--json"])
    assert result.exit_code == 1
    assert json.loads(result.stdout)[0]["verdict"] == "broken"


def test_deploy_without_a_schedule_is_refused(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("name: r\nworkload: digits\n")
    result = CliRunner().invoke(app, ["deploy", str(recipe)])
    assert isinstance(result.exception, RecipeError)
    assert str(result.exception) == (
        "a schedule is either '--cron' or '--interval', and neither was given; give one, or '--on data' alone"
    )
