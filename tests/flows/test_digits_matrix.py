"""recipes/digits-matrix.yaml, a matrix of 2 x 2 x 3, gives equal digests wherever its nodes run."""

import json
import os
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from kdq_core.recipe.spec import Site
from kdq_core.store import open_store
from tests.flows.test_executors_real import background, left, where
from tests.flows.test_run import KDQ, facts, until
from tests.flows.test_run import kdq as run_kdq

pytestmark = [pytest.mark.slow, pytest.mark.rare, pytest.mark.timeout(1800)]

RECIPE = Path(__file__).parents[2] / "recipes" / "digits-matrix.yaml"
ONCE = Counter(
    train_teacher=3, cache_teacher=3, distill=3, quantize=12, export=12, evaluate=12, register=1
)  # three seeds; twelve branches, of which the best is registered
Files = dict[str, tuple[str, dict[str, str]]]


def files_of(entry: Path) -> tuple[str, dict[str, str]]:
    """Stage and digests of an entry of the store."""
    manifest = json.loads((entry / "manifest.json").read_bytes())
    return manifest["stage"], {one["path"]: one["sha256"] for one in manifest["files"]}


def stored(home: Path) -> Files:
    """Stage, and digests of the files, of every entry but those of `register`, by key."""
    found = {path.parent.name: files_of(path.parent) for path in home.glob("store/??/*/manifest.json")}
    return {key: one for key, one in found.items() if one[0] != "register"}


def run(home: Path, *words: str, **more: str) -> dict[str, Any]:
    home.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [KDQ, "run", str(RECIPE), "--json", *words], env=where(home) | more, cwd=home.parent,
        capture_output=True, text=True, timeout=1700,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return facts(done)


def artifacts(result: dict[str, Any]) -> dict[str, str]:
    return {one["branch"]: one["artifact"]["sha256"] for one in result["branches"]}


@pytest.fixture(scope="module")
def inline(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Files]:
    """Facts and files of the matrix, one node after another in this process."""
    home = tmp_path_factory.mktemp("inline") / "home"
    result = run(home, "--no-server", "--executor", "inline")
    return result, stored(home)


def test_each_node_is_computed_once_and_the_selection_compares_means_over_seeds(
    inline: tuple[dict[str, Any], Files],
) -> None:
    result, files = inline
    assert Counter(stage for stage, _ in files.values()) == ONCE - Counter(register=1)
    assert Counter(stage["name"].partition("@")[0] for stage in result["stages"]) == ONCE
    assert {stage["state"] for stage in result["stages"]} == {"ran"}
    assert len(result["branches"]) == 12
    chosen = result["selected"]
    assert "4 of 4 candidates of 3 seeds meet the goals; better in bytes than " in chosen["verdict"], chosen["verdict"]
    assert [one["branch"] for one in result["branches"] if one["version"]] == [chosen["branch"]]


@pytest.mark.parametrize("executor", ["threads", "ray", "dask"])
def test_an_executor_gives_the_same_files(executor: str, inline: tuple[dict[str, Any], Files], tmp_path: Path) -> None:
    user = tmp_path / "user"
    user.mkdir()
    result = run(tmp_path / "home", "--no-server", "--executor", executor, "--workers", "2", HOME=str(user))
    assert stored(tmp_path / "home") == inline[1]
    assert artifacts(result) == artifacts(inline[0])
    assert result["selected"] == inline[0]["selected"]


def test_prefect_gives_the_same_files(inline: tuple[dict[str, Any], Files], tmp_path: Path) -> None:
    try:
        result = run(tmp_path / "home")
    finally:
        run_kdq(tmp_path / "home", "down")
    assert "prefect" in result["links"]
    assert stored(tmp_path / "home") == inline[1]
    assert result["selected"] == inline[0]["selected"]


def test_two_workers_with_homes_of_their_own_and_one_store_give_the_same_files(
    inline: tuple[dict[str, Any], Files], tmp_path: Path, s3: str
) -> None:
    runs = []
    for name in ("one", "two"):
        home = tmp_path / name / "home"
        home.mkdir(parents=True)
        words = [str(KDQ), "run", str(RECIPE), "--no-server", "--json"]
        runs.append(subprocess.Popen(
            words, cwd=home.parent, env=where(home) | {"KDQ_STORE": s3, "KDQ_LEASES": str(home.parent / "leases")},
            text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        ))  # fmt: skip
    computed = Counter[str]()
    for one in runs:
        out, err = one.communicate(timeout=1700)
        assert one.returncode == 0, err
        result = facts(subprocess.CompletedProcess(one.args, 0, out, err))
        assert artifacts(result) == artifacts(inline[0])
        computed.update(stage["key"] for stage in result["stages"] if stage["state"] == "ran")
    assert set(computed.values()) == {1}
    store = open_store(Site(home=tmp_path / "three", store_address=s3))
    found = {key: store.lookup(key) for key in inline[1]}
    assert {key: files_of(entry.folder) for key, entry in found.items() if entry} == inline[1]


def test_interrupted_in_the_middle_it_has_the_best_so_far_and_goes_on(
    inline: tuple[dict[str, Any], Files], tmp_path: Path
) -> None:
    home, log = tmp_path / "home", tmp_path / "said.txt"

    def kept() -> list[dict[str, Any]]:
        return [json.loads(path.read_bytes()) for path in home.glob("studies/*.json")]

    def ended() -> int:
        return sum(one["status"] == "completed" for study in kept() for one in study["branches"])

    with background(str(KDQ), "run", str(RECIPE), "--no-server", home=home, log=log) as child:
        until(lambda: ended() >= 3, "three branches have ended", 900)
        began = time.monotonic()
        os.killpg(child.pid, signal.SIGINT)  # as a terminal does
        assert child.wait(60) == 130, log.read_text()
        assert time.monotonic() - began < 10
    until(lambda: not left(home), f"all processes have ended: {left(home)}", 10)
    (study,) = kept()
    assert study["selected"]["branch"] in {one["branch"] for one in study["branches"] if one["status"] == "completed"}
    before = stored(home)
    assert 0 < len(before) < len(inline[1])
    result = run(home, "--no-server")
    assert stored(home) == inline[1]
    states = Counter(stage["state"] for stage in result["stages"] if stage["name"] != "register")
    assert states["cached"] >= len(before), states
    assert result["selected"] == inline[0]["selected"]
