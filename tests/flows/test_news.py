"""Runs that begin because the data changed."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdq_core.errors import RecipeError
from kdq_core.recipe.spec import Recipe, Site
from kdq_flows.prefect.deployed import schedules
from kdq_flows.prefect.due import runs_of
from kdq_flows.prefect.news import COMMAND, News, fingerprint
from kdq_flows.prefect.pools import POOL
from kdq_flows.prefect.schedules import deploy


def write(file: Path, first: float) -> None:
    x = np.arange(40, dtype=np.float32).reshape(20, 2)
    x[0] = first
    np.savez(file, x=x, y=np.arange(20) % 2)


def arrays(file: Path) -> dict[str, Any]:
    return {"name": "own", "workload": {"use": "arrays", "options": {"file": str(file), "model": "net.py:net"}}}


def test_the_fingerprint_follows_the_data_of_all_branches(tmp_path: Path) -> None:
    one, other = tmp_path / "one.npz", tmp_path / "other.npz"
    write(one, 0)
    write(other, 1)
    recipe, files = arrays(one), [str(one), str(other)]
    over = {"workload.options.file": files, "seed": [0, 1]}
    study = arrays(one) | {"matrix": {"over": over}, "select": {"minimise": ["bytes"]}}
    before = fingerprint(recipe), fingerprint(study)
    assert fingerprint(recipe | {"seed": 7, "quantize": {"use": "static"}}) == before[0]
    write(other, 2)
    assert fingerprint(recipe) == before[0]
    assert fingerprint(study) != before[1]
    write(one, 3)
    assert fingerprint(recipe) != before[0]


def looked(news: News, client: Any, until: Callable[[list[str]], Any] = bool) -> list[str]:
    """The lines of looks until there are some, or until a look has ended without any."""
    lines: list[str] = []
    deadline = time.monotonic() + 60
    while not until(lines) and time.monotonic() < deadline:
        lines += news.look(client, POOL)
        if not lines and all(one.child is None for one in news._all.values()):
            break
        time.sleep(0.02)
    return lines


def test_a_change_is_one_run_whoever_looks_and_a_look_that_fails_is_told_once(
    prefect_site: Site, tiny_flow: str, tmp_path: Path
) -> None:
    from prefect.client.orchestration import get_client

    data, now = tmp_path / "data", [0.0]
    code = f"import sys; print(open({str(data)!r}).read())"
    facts = deploy(prefect_site, Recipe(name="news", workload="digits"), look_seconds=60, module_path=tiny_flow)
    assert (facts["schedule"], facts["next_run"]) == ("on new data, looked at every 60 s", None)
    with get_client(sync_client=True) as client:
        try:
            news = News(prefect_site, (sys.executable, "-c", code), lambda: now[0])
            (shown,) = [one for one in schedules(client, POOL) if one.name == "news"]
            assert (shown.schedule, shown.next_run) == ("on new data, looked at every 60 s", None)

            def next_look(answer: str) -> list[str]:
                data.write_text(answer)
                now[0] += 61
                return looked(news, client)

            (line,) = next_look('{"fingerprint": "a"}')
            (run,) = runs_of(client, facts["id"])
            assert line == f"the data of 'news' are new; run {run.name!r} begins"
            assert not run.auto_scheduled
            assert looked(news, client) == []  # it is not time yet
            assert next_look('{"fingerprint": "a"}') == []
            other = News(prefect_site, (sys.executable, "-c", code))
            assert looked(other, client) == []
            assert len(next_look('{"fingerprint": "b"}')) == 1
            assert len(runs_of(client, facts["id"])) == 2
            assert next_look('{"error": "no file"}') == ["KDQ cannot look at the data of 'news': no file"]
            assert next_look('{"error": "no file"}') == []
            (line,) = next_look("no JSON")
            assert f"its process ended with code 0; its log is {str(prefect_site.home / 'logs' / 'news.log')!r}" in line
            assert len(runs_of(client, facts["id"])) == 2
            again = deploy(
                prefect_site, Recipe(name="news", workload="digits"), cron="0 3 * * *", look_seconds=5,
                module_path=tiny_flow,
            )  # fmt: skip
            assert (again["id"], again["schedule"]) == (
                facts["id"], "cron '0 3 * * *', UTC, on new data, looked at every 5 s",
            )  # fmt: skip
            assert len(client.read_deployment(again["id"]).schedules) == 1
            deploy(prefect_site, Recipe(name="news", workload="digits"), look_seconds=5, module_path=tiny_flow)
            assert client.read_deployment(again["id"]).schedules == []
        finally:
            client.delete_deployment(facts["id"])
    data.write_text("")
    news.close()


def test_the_process_of_a_look_gives_the_fingerprint_or_an_error(tmp_path: Path) -> None:
    file = tmp_path / "data.npz"
    write(file, 0)
    answers = []
    for recipe in (arrays(file), arrays(tmp_path / "gone.npz")):
        done = subprocess.run(COMMAND, input=json.dumps(recipe), capture_output=True, text=True, cwd=tmp_path)
        answers.append(json.loads(done.stdout))
    assert answers[0] == {"fingerprint": fingerprint(arrays(file))}
    assert answers[1]["error"].startswith(f"the data file {str(tmp_path / 'gone.npz')!r} is not there")


def test_an_impossible_look_is_refused_before_a_server_starts(site: Site, call: Any, tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        deploy(site, Recipe(name="r", workload="digits"), look_seconds=0)
    assert str(caught.value) == "'--look' is 0; give a number of seconds from 1 to 31622400"
    (tmp_path / "r.yaml").write_text("name: r\nworkload: digits\n")
    code, _, err = call("deploy", "r.yaml", "--cron", "0 3 * * *", "--look", "60")
    assert (code, " ".join(err.split())) == (
        2, "error: '--look' says how often KDQ looks at the data, and belongs to '--on data'; give both",
    )  # fmt: skip
    assert not (site.home / "servers").exists()
