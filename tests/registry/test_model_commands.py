import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kdq_core.recipe.spec import Site
from kdq_core.store.records import ModelVersion
from kdq_flows.cli import app


@pytest.fixture
def kdq(site: Site, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str]]:
    """Runs `kdq` on the site; gives exit code and stdout."""
    monkeypatch.setenv("KDQ_HOME", str(site.home))

    def run(*argv: str) -> tuple[int, str]:
        done = CliRunner().invoke(app, list(argv), catch_exceptions=False)
        return done.exit_code, done.stdout

    return run


def test_models_and_promote_speak_json(
    registered: Callable[..., ModelVersion], kdq: Callable[..., tuple[int, str]]
) -> None:
    registered()
    code, out = kdq("promote", "digits", "1", "--json")
    result = json.loads(out)
    assert (code, result["promoted"], result["previous"], len(result["verdicts"])) == (0, True, None, 4)
    code, out = kdq("models", "--json")
    assert (code, json.loads(out)[0]["aliases"]) == (0, ["champion"])


def test_what_a_plugin_prints_before_a_promotion_corrupts_no_json(
    registered: Callable[..., ModelVersion], kdq: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kdq_core.plugins.catalog.Catalog.lifecycle", lambda *_, **__: [[print("hello") or "no"]])
    registered()
    code, out = kdq("promote", "digits", "1", "--json")
    assert (code, json.loads(out)["vetoes"]) == (1, ["no"])


def test_a_refused_promotion_lists_every_gate_and_fails(
    registered: Callable[..., ModelVersion], kdq: Callable[..., tuple[int, str]]
) -> None:
    registered(flips=3.0)
    code, out = kdq("promote", "digits", "1")
    assert code == 1
    words = [line.replace("│", " ").split() for line in out.splitlines()]
    assert ["int8", "parity_flips", "≤", "0", "3", "0", "not", "met"] in words
    assert ["int8", "coverage_macs", "≥", "1", "1", "1", "met"] in words
    assert out.splitlines()[-1] == "not promoted: 'champion' of 'digits' stays at nothing"


def test_promoting_the_champion_says_that_it_is(
    registered: Callable[..., ModelVersion], kdq: Callable[..., tuple[int, str]]
) -> None:
    registered()
    assert kdq("promote", "digits", "1")[1].endswith("'champion' of 'digits' is now version 1; before: nothing\n")
    code, out = kdq("promote", "digits", "1")
    assert code == 0
    assert out.splitlines()[-1] == "'champion' of 'digits' is version 1 already; nothing was changed"


def test_models_are_shown_as_a_table(
    registered: Callable[..., ModelVersion], kdq: Callable[..., tuple[int, str]]
) -> None:
    version = registered()
    code, out = kdq("models")
    assert code == 0
    assert version.file_sha256[:12] in out
    assert "0.97" in out


def test_an_empty_home_says_how_to_get_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kdq: Callable[..., tuple[int, str]]
) -> None:
    monkeypatch.setenv("KDQ_HOME", str(tmp_path / "empty"))
    assert kdq("models") == (
        0,
        f"no registered model in {str(tmp_path / 'empty')!r}; register one with `kdq run FILE`\n",
    )
    assert kdq("models", "--json") == (0, "[]\n")
