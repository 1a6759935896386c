"""What plug-ins hear of promotions, and how they forbid them: a guest distribution in the test's folder."""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kdq_core.recipe.spec import Site
from kdq_core.store.records import ModelVersion
from kdq_flows.cli import app
from kdq_registry.environment import client
from kdq_registry.history import history

GUEST = """
import json, pathlib
from kdq_core.api import hookimpl

HERE = pathlib.Path(__file__).parent

@hookimpl
def kdq_before_promotion(name, version, report):
    mood = (HERE / "mood").read_text()
    if mood == "raise":
        raise OSError("the audit is away")
    if mood == "veto":
        yield f"no audit of {name} {version}, top1 {report.value('int8', 'top1')}"

@hookimpl
def kdq_after_promotion(name, version, alias, before, kind, entry):
    if (HERE / "mood").read_text() == "fail afterwards":
        raise OSError("nobody listens")
    with (HERE / "heard").open("a") as heard:
        heard.write(json.dumps([name, version, alias, before, kind, entry]) + "\\n")
"""


@pytest.fixture
def guest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, site: Site) -> Path:
    """An installed plug-in; its file `mood` says what it does, its file `heard` what it heard."""
    folder = tmp_path / "guest"
    folder.mkdir()
    module = f"guest_{uuid.uuid4().hex}"  # an imported module outlives its test
    (folder / f"{module}.py").write_text(GUEST)
    (folder / "mood").write_text("")
    info = folder / "kdq_audit-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: kdq-audit\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[kdq]\naudit = {module}\n")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("KDQ_HOME", str(site.home))
    return folder


def kdq(*words: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, list(words), catch_exceptions=False)
    return done.exit_code, done.stdout


def test_a_guest_forbids_a_promotion_with_its_reason_and_hears_of_every_move(
    site: Site, guest: Path, registered: Callable[..., ModelVersion]
) -> None:
    registered(0), registered(1)
    assert kdq("promote", "digits", "1")[0] == 0
    assert kdq("promote", "digits", "1")[0] == 0  # already champion: nothing moved, so nobody hears of it
    (guest / "mood").write_text("veto")
    code, out = kdq("promote", "digits", "2", "--force", "--reason", "now")
    assert code == 1
    assert "no audit of digits 2, top1 0.97" in out
    rows, _ = history(site, "digits")
    assert (rows[-1]["kind"], rows[-1]["reason"]) == ("refuse", "now; veto: no audit of digits 2, top1 0.97")
    (guest / "mood").write_text("")
    assert kdq("promote", "digits", "2")[0] == 0
    assert kdq("rollback", "digits")[0] == 0
    heard = [json.loads(line) for line in (guest / "heard").read_text().splitlines()]
    entries = [row["digest"] for row in history(site, "digits")[0] if row["kind"] != "refuse"]
    assert heard == [
        ["digits", 1, "champion", None, "move", entries[0]],
        ["digits", 2, "champion", 1, "move", entries[1]],
        ["digits", 1, "champion", 2, "rollback", entries[2]],
    ]


def test_a_guest_that_raises_before_a_promotion_vetoes_it_and_is_named(
    site: Site, guest: Path, registered: Callable[..., ModelVersion]
) -> None:
    registered()
    (guest / "mood").write_text("raise")
    code, out = kdq("promote", "digits", "1", "--json")
    assert (code, json.loads(out)["vetoes"]) == (
        1, ["plug-in 'kdq-audit' failed in kdq_before_promotion: OSError: the audit is away"],
    )  # fmt: skip
    assert client(site).get_registered_model("digits").aliases == {}


def test_a_guest_that_raises_afterwards_undoes_nothing(
    site: Site, guest: Path, registered: Callable[..., ModelVersion], caplog: pytest.LogCaptureFixture
) -> None:
    registered()
    (guest / "mood").write_text("fail afterwards")
    with caplog.at_level(logging.WARNING, "kdq"):
        assert kdq("promote", "digits", "1")[0] == 0
    assert "plug-in 'kdq-audit' failed in kdq_after_promotion: OSError: nobody listens" in caplog.messages
    assert client(site).get_model_version_by_alias("digits", "champion").version == 1
