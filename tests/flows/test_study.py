"""A study through the command line, in child processes, as a user runs it."""

import json
import signal
import subprocess
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from kdq_core.recipe.spec import Site
from kdq_flows.seeing.runs import row_of, runs_of
from tests.flows.test_run import KDQ, environment, facts, versions
from tests.flows.test_run import kdq as run_kdq

pytestmark = [pytest.mark.slow, pytest.mark.rare, pytest.mark.timeout(900)]

TINY = """
name: tiny
workload: {use: digits, options: {teacher_width: 16}}
target: {use: onnxruntime-cpu, options: {placement: smallest}} # chosen by no measurement
teacher: {fit: {epochs: 1}}
distill: {fit: {epochs: 1}}
quantize: {use: minmax-qat, fit: {epochs: 1}}
evaluate: [quality, size]
gates: []
"""
OVER = "matrix: {over: {quantize.use: [minmax-qat, static], quantize.weights: [8, 4]}}\n"
RECIPE = TINY + OVER + "select: {minimise: [bytes], maximise: [top1]}\n"
NAMES = ["use=minmax-qat,weights=8", "use=minmax-qat,weights=4", "use=static,weights=8", "use=static,weights=4"]
Finished = tuple[Path, Path, dict[str, Any]]


kdq = partial(run_kdq, timeout=800)
"""Runs the command; four exports take minutes on a busy machine."""


def stored(home: Path) -> Counter[str]:
    """How many entries the store has of each stage."""
    return Counter(json.loads(path.read_bytes())["stage"] for path in (home / "store").glob("??/*/manifest.json"))


def run(home: Path, text: str, code: int = 0, *, server: bool = False) -> tuple[dict[str, Any], str]:
    """Run a recipe; gives its JSON object and stderr."""
    file = home.parent / "other.yaml"
    file.write_text(text)
    done = kdq(home, "run", str(file), "--json", *(() if server else ("--no-server",)))
    assert done.returncode == code, done.stderr
    return facts(done), " ".join(done.stderr.split())


def by_name(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {one["branch"]: one for one in result["branches"]}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Home, recipe file and facts of a study without a server."""
    folder = tmp_path_factory.mktemp("study")
    recipe = folder / "tiny.yaml"
    recipe.write_text(RECIPE)
    done = kdq(folder / "home", "run", str(recipe), "--no-server", "--json")
    assert done.returncode == 0, done.stderr
    return folder / "home", recipe, facts(done)


def test_what_the_branches_share_is_computed_once(finished: Finished) -> None:
    home, _, result = finished
    once = dict.fromkeys(("train_teacher", "cache_teacher", "distill"), 1)
    assert stored(home) == once | dict.fromkeys(("quantize", "export", "evaluate"), 4) | {"register": 1}
    ran = [stage["name"] for stage in result["stages"]]
    assert [name for name in ran if "@" not in name] == ["train_teacher", "cache_teacher", "distill"]
    assert {name for name in ran if name.startswith("export@")} == {f"export@{name}" for name in NAMES}
    assert {stage["state"] for stage in result["stages"]} == {"ran"}


def test_the_json_object_has_the_branches_and_the_selection(finished: Finished) -> None:
    _, _, result = finished
    fields = ["branch", "axes", "models", "gains", "gates", "artifact", "version", "status", "error", "run"]
    assert [list(one) for one in result["branches"]] == [fields] * 4
    assert list(result["selected"]) == ["branch", "pareto", "verdict"]
    assert [one["branch"] for one in result["branches"]] == NAMES
    assert by_name(result)["use=static,weights=4"]["axes"] == {"quantize.use": "static", "quantize.weights": 4}
    assert {(one["status"], one["error"]) for one in result["branches"]} == {("completed", None)}
    assert len({one["run"] for one in result["branches"]}) == 4
    assert all(Path(one["artifact"]["path"]).is_file() for one in result["branches"])


def test_the_smallest_file_is_selected_and_it_alone_is_registered(finished: Finished) -> None:
    home, _, result = finished
    values = {name: one["models"]["int8"] for name, one in by_name(result).items()}
    best = min(NAMES, key=lambda name: (values[name]["bytes"], -values[name]["top1"]))
    selected = result["selected"]
    assert selected["branch"] == best
    assert best in selected["pareto"]
    assert selected["verdict"].startswith(f"{best}: bytes {values[best]['bytes']:.6g}, top1 ")
    assert result["version"] == {"name": "tiny", "version": 1}
    assert {name: one["version"] for name, one in by_name(result).items()} == dict.fromkeys(NAMES) | {
        best: result["version"]
    }
    assert versions(home) == 1
    assert result["artifact"] == by_name(result)[best]["artifact"]


def test_the_study_and_each_branch_have_facts_and_a_page(finished: Finished) -> None:
    home, _, result = finished
    kept = json.loads((home / "studies" / f"{result['run']}.json").read_bytes())
    assert (kept["branches"], kept["selected"]) == (result["branches"], result["selected"])
    page = Path(result["report"])
    assert page == home / "studies" / f"{result['run']}.html"
    html = page.read_text().replace("<wbr>", "")
    assert f'<p class="verdict">{result["selected"]["verdict"]}</p>' in html
    assert all(name in html for name in NAMES)
    for one in result["branches"]:
        assert (home / "runs" / one["run"] / "report.html").is_file()
    (row,) = [row_of(one) for one in runs_of(Site(home=home)) if one.run == result["run"]]
    assert (row["branches"], row["version"]) == (len(NAMES), result["version"])


def test_a_second_run_is_no_news_computes_nothing_and_selects_the_same(finished: Finished) -> None:
    home, recipe, first = finished
    warmed, before = sorted(home.glob("logs/*/warm-worker.log")), stored(home)
    done = kdq(home, "run", str(recipe), "--no-server", "--json")
    assert done.returncode == 0, done.stderr
    result = facts(done)
    assert result["status"] == "no-news"
    assert {stage["state"] for stage in result["stages"]} == {"cached"}
    assert {one["status"] for one in result["branches"]} == {"no-news"}
    assert (result["selected"], result["version"]) == (first["selected"], first["version"])
    assert (stored(home), versions(home)) == (before, 1)
    assert sorted(home.glob("logs/*/warm-worker.log")) == warmed  # nothing is imported for nothing


def test_a_failing_branch_stops_no_other_and_the_run_exits_with_1(finished: Finished) -> None:
    home, _, _ = finished
    wrong = "{fit: {epochs: 1}, losses: [{use: fitnet, taps: [[cnov, cnov]]}]}"
    matrix = f"matrix: {{over: {{distill: [{wrong}, {{fit: {{epochs: 1}}}}], quantize.weights: [8]}}}}\n"
    result, told = run(home, TINY + matrix + "select: {minimise: [bytes]}\n", 1)
    bad, good = result["branches"]
    assert (bad["status"], good["status"]) == ("failed", "completed")
    assert "no module of the student" in bad["error"]
    assert bad["artifact"] is None
    assert result["selected"]["branch"] == good["branch"]
    assert good["version"] == result["version"]
    assert good["version"] is not None
    assert f"1 of 2 branches failed; {bad['branch']}: " in told
    assert result["status"] == "failed"


def test_goals_that_nobody_meets_exit_with_3_name_the_nearest_and_register_nothing(finished: Finished) -> None:
    home, _, first = finished
    before = versions(home)
    goal = "select: {goals: [{metric: top1, at_least: 2.0}], minimise: [bytes]}\n"
    result, told = run(home, TINY + OVER + goal, 3)
    best = max(NAMES, key=lambda name: by_name(first)[name]["models"]["int8"]["top1"])
    top1 = by_name(first)[best]["models"]["int8"]["top1"]
    assert (result["selected"]["branch"], result["selected"]["pareto"]) == (None, [])
    nearest = f"none of 4 branches meets the goals; the nearest is {best}: int8 top1 ≥ 2: it is {top1:.6g}, bound 2"
    assert nearest in told
    assert (result["status"], result["error"]) == ("completed", nearest)
    assert (result["version"], versions(home)) == (None, before)


def test_a_limit_of_trials_runs_the_first_branches_and_skips_the_others(finished: Finished) -> None:
    home, _, _ = finished
    result, _ = run(home, RECIPE + "limits: {trials: 2}\n")
    assert [one["status"] for one in result["branches"]] == ["no-news", "no-news", "skipped", "skipped"]
    assert result["selected"]["branch"] in NAMES[:2]


@pytest.mark.rare
@pytest.mark.parametrize("which", ["all", "pareto"])
def test_more_branches_than_the_selected_one_are_registered_on_request(finished: Finished, which: str) -> None:
    home, _, first = finished
    result, _ = run(home, RECIPE + f"register: {{name: {which}-of-them, branches: {which}}}\n")
    registered = {name for name, one in by_name(result).items() if one["version"]}
    assert registered == set(NAMES if which == "all" else first["selected"]["pareto"])
    found = [one["version"] for one in result["branches"] if one["version"]]
    assert {one["name"] for one in found} == {f"{which}-of-them"}
    assert result["version"] == by_name(result)[result["selected"]["branch"]]["version"]


@pytest.mark.rare
def test_an_interrupted_study_has_the_best_so_far_and_goes_on(finished: Finished, tmp_path: Path) -> None:
    home, recipe = tmp_path / "home", finished[1]
    with (tmp_path / "out").open("w") as out:
        words = [KDQ, "run", str(recipe), "--no-server"]
        child = subprocess.Popen(words, env=environment(home), cwd=tmp_path, stdout=out, stderr=out)
        until = time.monotonic() + 400
        while not list(home.glob("studies/*.json")) and time.monotonic() < until:
            time.sleep(0.1)
        child.send_signal(signal.SIGINT)
        assert child.wait(120) == 130
    (file,) = home.glob("studies/*.json")
    kept = json.loads(file.read_bytes())
    done = [one["branch"] for one in kept["branches"] if one["status"] == "completed"]
    assert done
    assert kept["selected"]["branch"] in done
    before = stored(home)
    result, _ = run(home, RECIPE)
    assert {one["status"] for one in result["branches"]} <= {"completed", "no-news"}
    assert stored(home) - before == Counter({"quantize": 4, "export": 4, "evaluate": 4, "register": 1}) - before


@pytest.mark.rare
def test_the_same_study_on_prefect_gives_the_same_digests(finished: Finished, tmp_path: Path) -> None:
    _, _, inline = finished
    home = tmp_path / "home"
    try:
        result, _ = run(home, RECIPE, server=True)
        assert sorted(result["links"]) == ["mlflow", "prefect"]
        assert digests(result) == digests(inline)
        assert result["selected"] == inline["selected"]
    finally:
        kdq(home, "down")


def digests(result: dict[str, Any]) -> tuple[dict[str, str], dict[str, str]]:
    """Keys of the stages, which hold the digests of their parents, and the files of the branches."""
    keys = {stage["name"]: stage["key"] for stage in result["stages"]}
    return keys, {name: one["artifact"]["sha256"] for name, one in by_name(result).items()}


def test_a_search_shares_stages_tells_what_it_refuses_and_goes_on(finished: Finished) -> None:
    """The teacher and the student are those of the study; a second run tries one more value."""
    home, _, _ = finished
    before = stored(home)
    space = "search: {space: {quantize.weights: [8, 5, 99], quantize.use: [static]}, sampler: grid}\n"
    text = TINY + space + "select: {minimise: [bytes]}\n"
    first, _ = run(home, text + "limits: {trials: 1}\n")
    assert [(one["branch"], one["status"]) for one in first["branches"]] == [("weights=8,use=static", "completed")]
    again, _ = run(home, text)
    assert {one["branch"]: one["status"] for one in again["branches"]} == {
        "weights=8,use=static": "no-news", "weights=5,use=static": "completed", "weights=99,use=static": "failed",
    }  # fmt: skip
    assert (
        "key 'quantize.weights' is 99; allowed: a whole number, 2 to 8"
        in by_name(again)["weights=99,use=static"]["error"]
    )
    assert again["selected"]["branch"] == "weights=5,use=static"
    _, told = run(home, text + "limits: {trials: 1}\n")
    assert "2 trials were done before, and 'limits.trials' is 1; raise it to go on" in told
    assert stored(home) - before == Counter({"quantize": 1, "export": 1, "evaluate": 1, "register": 2})
    assert kdq(home, "run", str(home.parent / "other.yaml"), "--until", "distill").stderr == (
        "error: a search runs whole; leave --only, --from, --until and --refresh out, or write a matrix\n"
    )
