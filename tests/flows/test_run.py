"""The whole chain through the command line, in child processes, as a user runs it."""

import contextlib
import hashlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from kdq_core.reading.checks import load_recipe
from kdq_core.recipe.spec import Site
from kdq_flows.facts.parts import VersionFacts
from kdq_flows.facts.state import states as states_of
from kdq_flows.run.pipeline import Pipeline

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

KDQ = Path(sys.executable).with_name("kdq")
STAGES = ["train_teacher", "cache_teacher", "distill", "quantize", "export", "evaluate", "register"]
RECIPE = """
name: tiny
workload: {use: digits, options: {teacher_width: 16}}
target: {use: onnxruntime-cpu, options: {placement: smallest}} # chosen by no measurement
teacher: {fit: {epochs: 1}}
distill: {fit: {epochs: 1}}
quantize: {use: minmax-qat, fit: {epochs: 3}}
evaluate: [quality, size, {use: latency, options: {seconds: 0.02}}, coverage, parity]
gates: [{metric: coverage_macs, at_least: 1.0}, {metric: parity_flips, at_most: 0}]
"""


def environment(home: Path) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "KDQ_", "MLFLOW_"))}
    kept.pop("MPLCONFIGDIR", None)
    own = {"KDQ_HOME": str(home), "KDQ_THREADS": "1", "KDQ_LEASES": os.environ["KDQ_LEASES"]}
    return kept | own | {"HOME": str(home.parent / "user")}


def kdq(home: Path, *words: str, timeout: float = 300, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [KDQ, *words], env=environment(home), cwd=home.parent, capture_output=True, text=True, timeout=timeout,
        **options,
    )  # fmt: skip


def facts(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.stdout, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def states(result: dict[str, Any]) -> dict[str, str]:
    return {stage["name"]: stage["state"] for stage in result["stages"]}


def versions(home: Path) -> int:
    with contextlib.closing(sqlite3.connect(home / "mlflow" / "mlflow.db")) as database:
        return int(database.execute("select count(*) from model_versions").fetchone()[0])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, Any]]:
    """Home, recipe file and facts of a run without a server."""
    folder = tmp_path_factory.mktemp("chain")
    recipe = folder / "tiny.yaml"
    recipe.write_text(RECIPE)
    done = kdq(folder / "home", "run", str(recipe), "--no-server", "--json")
    assert done.returncode == 0, done.stderr
    return folder / "home", recipe, facts(done)


def test_a_run_gives_the_facts_of_a_proven_int8_file(finished: tuple[Path, Path, dict[str, Any]]) -> None:
    _, _, result = finished
    assert list(result) == [
        "run", "status", "seconds", "stages", "models", "table", "gains", "notes", "gates", "weights", "artifact",
        "coverage", "version", "error", "links", "verdict", "anomalies", "choice", "report",
    ]  # fmt: skip
    assert result["status"] == "completed"
    assert states(result) == dict.fromkeys(STAGES, "ran")
    int8, student = result["models"]["int8"], result["models"]["student"]
    assert int8["coverage_macs"] == 1.0
    assert sum(one["macs_share"] for one in result["coverage"] if one["int8"]) == pytest.approx(1.0)
    assert sum(one["weight_share"] for one in result["coverage"]) == pytest.approx(1.0)
    assert int8["parity_flips"] == 0
    assert int8["parity_p99_lsb"] <= 1
    assert student["parameters"] >= 100_000
    assert student["bytes"] / int8["bytes"] >= 3.7
    assert int8["weight_bytes_float"] == 0
    assert 0 < int8["latency_p50_ms"] <= int8["latency_p99_ms"]
    assert min(int8["speedup"], int8["speedup/32"], int8["throughput/8"]) > 0
    assert result["models"]["teacher"]["top1"] > 0.2  # one epoch; a guess gives 0.1
    file = Path(result["artifact"]["path"])
    assert hashlib.sha256(file.read_bytes()).hexdigest() == result["artifact"]["sha256"]
    assert file.stat().st_size == result["artifact"]["bytes"] == int8["bytes"]
    assert result["version"] == {"name": "tiny", "version": 1}


def test_other_commands_see_the_run_and_its_logs(finished: tuple[Path, Path, dict[str, Any]]) -> None:
    home, _, result = finished
    (state,) = [one for one in states_of(Site(home=home)) if one.run == result["run"]]
    assert (state.seen, state.recipe, state.version) == ("completed", "tiny", VersionFacts(name="tiny", version=1))
    assert [stage.key for stage in state.stages] == [stage["key"] for stage in result["stages"]]
    words = (home / "logs" / result["run"] / "run.log").read_text()
    assert "train_teacher started\n" in words
    assert words.endswith("the run completed\n")
    assert " epoch 1: " in (home / "logs" / result["run"] / "train_teacher.log").read_text()


def test_a_run_ends_with_a_page_of_its_own_in_its_home_and_in_mlflow(
    finished: tuple[Path, Path, dict[str, Any]],
) -> None:
    home, recipe, result = finished
    page = Path(result["report"])
    assert page == home / "runs" / result["run"] / "report.html"
    html = page.read_text()
    assert result["verdict"].startswith("int8: ")
    assert f'<p class="verdict">{result["verdict"]}</p>' in html
    assert html.count("<img src=") >= 12  # digits to look at
    for title in ("Models", "Gates", "Stages", "Training curves", "Where int8 answers differently", "Layers"):
        assert f">{title}</h2>" in html
    assert len(html) < 1_000_000
    (artifact,) = home.glob("mlflow/artifacts/tiny/*/artifacts/report.html")
    assert artifact.read_text() == html
    page.unlink()
    done = kdq(home, "report", str(recipe))
    assert (done.stdout.strip(), done.stderr) == (str(page), "")
    assert page.read_text() == html


@pytest.mark.rare
def test_a_run_is_explained_from_its_kept_results(finished: tuple[Path, Path, dict[str, Any]], tmp_path: Path) -> None:
    home, _, result = finished
    done = kdq(home, "explain", result["run"], "--samples", "64", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["samples"] == 64
    layers = {(one["layer"], one["role"]) for one in found["effects"]}
    assert {("blocks.0.conv1", "weights"), ("head", "weights"), ("head", "activations")} <= layers
    assert kdq(home, "report", "tiny").returncode == 0
    assert "Where quality is lost" in Path(result["report"]).read_text()


def test_a_run_writes_nothing_to_the_users_home(finished: tuple[Path, Path, dict[str, Any]]) -> None:
    home, _, _ = finished
    assert list((home.parent / "user").rglob("*")) == []


def test_a_second_run_is_no_news_and_registers_nothing(finished: tuple[Path, Path, dict[str, Any]]) -> None:
    home, recipe, first = finished
    warmed = sorted(home.glob("logs/*/warm-worker.log"))
    result = facts(kdq(home, "run", str(recipe), "--no-server", "--json"))
    assert result["status"] == "no-news"
    assert sorted(home.glob("logs/*/warm-worker.log")) == warmed  # nothing is imported for nothing
    assert states(result) == dict.fromkeys(STAGES, "cached")
    assert result["version"] == first["version"]
    assert result["models"] == first["models"]
    assert result["report"] == first["report"]
    assert versions(home) == 1


@pytest.mark.rare
def test_a_forked_stage_gave_the_bytes_that_one_started_anew_gives(
    finished: tuple[Path, Path, dict[str, Any]], tmp_path: Path
) -> None:
    home, recipe, result = finished
    assert (home / "logs" / result["run"] / "warm-worker.log").read_text() == ""
    forked, anew = (Pipeline(load_recipe(recipe), Site(home=at, threads=1)) for at in (home, tmp_path / "home"))
    digest, cached = anew.run_stage("train_teacher", {})
    assert (forked.run_stage("train_teacher", {}), cached) == ((digest, True), False)
    for pipeline in (forked, anew):
        pipeline.finish()
    assert not (anew.logs / "warm-worker.log").exists()


@pytest.mark.rare
def test_an_evaluators_option_runs_evaluation_alone_as_the_plan_says(
    finished: tuple[Path, Path, dict[str, Any]], tmp_path: Path
) -> None:
    home, _, first = finished
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(RECIPE.replace("seconds: 0.02", "seconds: 0.03"))
    plan = {row["stage"]: row for row in json.loads(kdq(home, "plan", str(recipe), "--json").stdout)}
    assert [plan[name]["state"] for name in STAGES] == ["cached"] * 5 + ["run"] * 2
    assert plan["evaluate"]["why"] == "recipe.evaluate.latency.seconds changed"
    result = facts(kdq(home, "run", str(recipe), "--no-server", "--json"))
    assert states(result) == {**dict.fromkeys(STAGES, "cached"), "evaluate": "ran", "register": "ran"}
    assert result["version"] == first["version"]
    assert versions(home) == 1


def test_the_registered_model_and_the_file_give_the_same_numbers(
    finished: tuple[Path, Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    home, _, result = finished
    script = (
        "import mlflow, numpy as np, sys\n"
        "mlflow.set_tracking_uri(sys.argv[1])\n"
        "model = mlflow.pyfunc.load_model('models:/tiny/1')\n"
        "x = np.load(sys.argv[2])\n"
        "np.save(sys.argv[3], model.predict({'input': x})['logits'])\n"
    )
    x = np.random.default_rng(0).random((5, 1, 8, 8), dtype=np.float32)
    np.save(home / "x.npy", x)
    uri = f"sqlite:///{home / 'mlflow' / 'mlflow.db'}"
    words = [sys.executable, "-c", script, uri, str(home / "x.npy"), str(home / "y.npy")]
    subprocess.run(words, check=True, env=environment(home), cwd=home, timeout=120)
    bare = onnxruntime.InferenceSession(result["artifact"]["path"]).run(None, {"input": x})[0]
    assert np.array_equal(np.load(home / "y.npy"), bare)


@pytest.mark.rare
@pytest.mark.rare
def test_a_registered_version_is_reproduced_byte_by_byte_or_what_differs_is_told(
    finished: tuple[Path, Path, dict[str, Any]],
) -> None:
    home, _, _ = finished
    done = kdq(home, "replay", "tiny/1", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["ran"], result["reproduced"], result["differences"], result["bytes"]) == (True, True, [], [])
    assert result["files"] >= 6  # weights of three fits, the teacher's outputs, the int8 file, predictions
    assert versions(home) == 1


def test_a_version_is_not_replayed_where_something_that_decides_its_bytes_has_changed(
    finished: tuple[Path, Path, dict[str, Any]],
) -> None:
    home, _, _ = finished
    code = (
        "import importlib.metadata as metadata, sys\n"
        "real = metadata.version\n"
        "metadata.version = lambda name: '1.0' if name == 'torch' else real(name)\n"
        "from kdq_flows.cli import main\n"
        "sys.argv = ['kdq', 'replay', 'tiny/1', '--json']\n"
        "main()"
    )
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, env=environment(home), cwd=home.parent, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1, done.stderr
    result = json.loads(done.stdout)
    assert (result["ran"], result["reproduced"]) == (False, False)
    (torch,) = [one for one in result["differences"] if one["what"] == "torch"]
    assert (torch["kind"], torch["now"]) == ("package", "1.0")
    assert {"train_teacher", "distill", "quantize"} <= set(torch["stages"])


@pytest.mark.rare
def test_gates_that_change_and_change_back_are_the_versions_gates(
    finished: tuple[Path, Path, dict[str, Any]], tmp_path: Path
) -> None:
    home, recipe, first = finished
    other = tmp_path / "tiny.yaml"
    other.write_text(RECIPE.replace("gates: [", "gates: [{metric: top1, at_least: 1.0}, "))
    number = str(first["version"]["version"])
    for file, exit_code in ((other, 1), (recipe, 0)):
        result = facts(kdq(home, "run", str(file), "--no-server", "--json"))
        assert states(result)["register"] == "ran"
        assert result["version"] == first["version"]
        assert kdq(home, "promote", "tiny", number).returncode == exit_code


@pytest.mark.rare
def test_a_damaged_file_in_the_store_is_told_and_computed_anew(
    finished: tuple[Path, Path, dict[str, Any]],
) -> None:
    home, recipe, result = finished
    file = Path(result["artifact"]["path"])
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + b"!")
    done = kdq(home, "run", str(recipe), "--no-server", "--json")
    assert file.read_bytes() == whole
    became = states(facts(done)) | {"register": ""}  # another test may have registered another report
    assert became == dict.fromkeys(states(result), "cached") | {"export": "ran", "register": ""}
    told = "".join(done.stderr.split())  # the screen breaks lines
    began = f"the file 'int8.onnx' of the store entry {str(file.parent)!r} is damaged: its sha256 is "
    assert "".join(began.split()) in told
    assert "; KDQ computes it anew".replace(" ", "") in told


def test_a_home_that_cannot_be_written_is_one_paragraph_and_exit_code_1(tmp_path: Path) -> None:
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(RECIPE)
    (tmp_path / "home").write_text("a file where the folder should be")
    done = kdq(tmp_path / "home", "run", str(recipe), "--no-server")
    assert done.returncode == 1
    assert done.stderr == (
        f"error: cannot write to KDQ_HOME {str(tmp_path / 'home')!r}: Not a directory; check the folder, "
        "then run again. Nothing was half-written: finished stages are kept\n"
    )


@pytest.mark.parametrize(("taps", "code"), [("conv", 2), pytest.param("[[cnov, cnov]]", 1, marks=pytest.mark.rare)])
def test_a_wrong_request_is_exit_code_2_where_nothing_ran_and_1_where_a_stage_began(
    tmp_path: Path, taps: str, code: int
) -> None:
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(RECIPE.replace("distill: {", f"distill: {{losses: [{{use: fitnet, taps: {taps}}}], "))
    done = kdq(tmp_path / "home", "run", str(recipe), "--no-server", "--json")
    assert (done.returncode, list(states(facts(done)))) == (code, ["train_teacher"] if code == 1 else [])
    (error,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert ("no module of the student" in error) == (code == 1)
    assert "Traceback" not in done.stderr


@pytest.mark.rare
def test_the_guests_quantizer_is_used_by_a_recipe(
    finished: tuple[Path, Path, dict[str, Any]], guests: Path, tmp_path: Path
) -> None:
    home, _, _ = finished
    recipe = tmp_path / "guest.yaml"
    once = RECIPE.replace("epochs: 3", "epochs: 1").replace(
        "[quality, size, {use: latency, options: {seconds: 0.02}}, ", "["
    )
    recipe.write_text(once.replace("use: minmax-qat", "use: guest-rounding"))
    words = [KDQ, "run", str(recipe), "--no-server", "--json"]
    path = os.pathsep.join(filter(None, (str(guests), os.environ.get("PYTHONPATH"))))
    env = environment(home) | {"PYTHONPATH": path}
    done = subprocess.run(words, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    result = facts(done)
    assert states(result) == {**dict.fromkeys(STAGES, "ran"), **dict.fromkeys(STAGES[:3], "cached")}
    assert result["models"]["int8"]["coverage_macs"] == 1.0
    assert result["models"]["int8"]["parity_flips"] == 0


@contextlib.contextmanager
def begun(home: Path, recipe: Path) -> Iterator[subprocess.Popen[bytes]]:
    with (home.parent / "out").open("ab") as out:
        process = subprocess.Popen(
            [KDQ, "run", str(recipe), "--json"], env=environment(home), cwd=home.parent, stdout=out, stderr=out
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def until(true: Callable[[], Any], what: str, seconds: float = 120) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = true()
        if found:
            return found
        time.sleep(0.1)
    raise AssertionError(f"never happened in {seconds} s: {what}")


def processes(home: Path) -> list[psutil.Process]:
    """Warm workers and stages of runs in `home`."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            ours = {"kdq_core.worker.main", "kdq_core.worker.warm"} & set(process.cmdline())
            if ours and process.environ().get("KDQ_HOME") == str(home):
                found.append(process)
    return found


def workers(home: Path) -> list[psutil.Process]:
    """Stages at work: forked from a warm worker, or started anew."""
    found = processes(home)
    pids = {process.pid for process in found}
    stages = []
    for process in found:
        with contextlib.suppress(psutil.Error):
            if process.ppid() in pids or "kdq_core.worker.main" in process.cmdline():
                stages.append(process)
    return stages


def in_the_middle_of_qat(
    home: Path, run: subprocess.Popen[bytes], besides: psutil.Process | None = None
) -> psutil.Process:
    """The worker of the quantize stage, once its first epoch is kept."""

    def found() -> psutil.Process | None:
        assert run.poll() is None, (home.parent / "out").read_text()
        logs = list(home.glob("logs/tiny-*/quantize.log"))
        kept = list(home.glob("scratch/*/fit.safetensors"))
        alive = [w for w in workers(home) if w != besides]
        return alive[0] if logs and kept and alive else None

    return until(found, "a worker in the middle of QAT")


def ask_prefect(home: Path, what: str, question: dict[str, Any]) -> list[dict[str, Any]]:
    url = json.loads((home / "servers" / "prefect.json").read_text())["url"]
    me = str(uuid.uuid4())
    with urllib.request.urlopen(f"{url}/api/csrf-token?client={me}", timeout=30) as answer:
        token = json.load(answer)["token"]
    told = {"Content-Type": "application/json", "Prefect-Csrf-Token": token, "Prefect-Csrf-Client": me}
    request = urllib.request.Request(f"{url}/api/{what}/filter", json.dumps(question).encode(), told)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def running_in_prefect(home: Path) -> list[dict[str, Any]]:
    states = {"type": {"any_": ["RUNNING", "PENDING", "CANCELLING"]}}
    return ask_prefect(home, "flow_runs", {"flow_runs": {"state": states}})


def running_in_mlflow(home: Path) -> int:
    with contextlib.closing(sqlite3.connect(home / "mlflow" / "mlflow.db")) as database:
        return int(database.execute("select count(*) from runs where status = 'RUNNING'").fetchone()[0])


@pytest.mark.rare
def test_a_run_killed_in_the_middle_of_qat_goes_on_to_the_same_bytes(
    finished: tuple[Path, Path, dict[str, Any]], tmp_path: Path
) -> None:
    """kdq is interrupted; the worker, then kdq, then both are killed; also: two homes give byte-identical files."""
    undisturbed, home = finished[2], tmp_path / "home"
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(RECIPE)
    try:
        with begun(home, recipe) as run:
            in_the_middle_of_qat(home, run)
            run.send_signal(signal.SIGTERM)
            asked = time.monotonic()
            assert run.wait(30) == 130
            assert time.monotonic() - asked < 6
        told = json.loads((tmp_path / "out").read_text().splitlines()[-1])
        text = "interrupted in quantize; run the same command to resume"
        assert (told["status"], told["error"]) == ("interrupted", text)
        assert told["run"].startswith("tiny-2")
        assert list(home.glob("scratch/*/fit.safetensors"))
        assert processes(home) == []
        (flow_run,) = ask_prefect(home, "flow_runs", {})
        assert (flow_run["state_type"], flow_run["state"]["message"]) == ("CANCELLED", text)
        with contextlib.closing(sqlite3.connect(home / "mlflow" / "mlflow.db")) as database:
            ended = database.execute("select name, status from runs where status != 'FINISHED'").fetchall()
        assert sorted(ended) == [("quantize", "KILLED"), (flow_run["name"], "KILLED")]
        with begun(home, recipe) as run:
            worker = in_the_middle_of_qat(home, run)
            worker.kill()
            again = in_the_middle_of_qat(home, run, besides=worker)
            run.kill()
            run.wait()
            until(lambda: not again.is_running() or again.status() == psutil.STATUS_ZOMBIE, "the worker dies with kdq")
        assert running_in_prefect(home)
        with begun(home, recipe) as run:
            worker = in_the_middle_of_qat(home, run)
            os.kill(run.pid, signal.SIGKILL)
            with contextlib.suppress(psutil.NoSuchProcess):
                worker.kill()
        until(lambda: not processes(home), "no worker is left")
        done = kdq(home, "run", str(recipe), "--json")
        assert done.returncode == 0, done.stderr
        result = facts(done)
        assert states(result) == {
            **dict.fromkeys(STAGES, "ran"), **dict.fromkeys(STAGES[:3], "cached")
        }  # fmt: skip
        assert result["artifact"]["sha256"] == undisturbed["artifact"]["sha256"]
        assert processes(home) == []
        assert running_in_prefect(home) == []
        assert running_in_mlflow(home) == 0
        assert list(home.glob("scratch/*")) == []
        assert list(home.glob("store/drafts/*")) == []
        assert sorted(result["links"]) == ["mlflow", "prefect"]
        tasks = ask_prefect(home, "task_runs", {"flow_runs": {"name": {"any_": [result["run"]]}}})
        shown = dict.fromkeys(STAGES, "Completed") | dict.fromkeys(STAGES[:3], "Cached")
        assert {task["name"]: task["state_name"] for task in tasks} == shown
        tables = ask_prefect(home, "artifacts", {"artifacts": {"key": {"any_": ["tiny-result"]}}})
        assert [row["model"] for row in json.loads(tables[0]["data"])] == ["teacher", "float student", "int8 student"]
    finally:
        kdq(home, "down")


@pytest.mark.rare
def test_a_deployed_recipe_fires_twice_by_itself_and_says_no_news(finished: tuple[Path, Path, dict[str, Any]]) -> None:
    home, recipe, _ = finished
    before = versions(home)
    with (home.parent / "serve.log").open("ab") as out:
        serve = subprocess.Popen([KDQ, "serve"], env=environment(home), cwd=home.parent, stdout=out, stderr=out)
        try:
            until((home / "servers" / "prefect.json").exists, "the site's server")
            done = kdq(home, "deploy", str(recipe), "--interval", "8", "--json")
            assert done.returncode == 0, done.stderr
            quiet = {"flow_runs": {"state": {"name": {"any_": ["NoNews"]}}}}
            runs = until(lambda: (found := ask_prefect(home, "flow_runs", quiet))[1:] and found, "two runs", 180)
            assert all(run["auto_scheduled"] for run in runs)
            assert versions(home) == before
        finally:
            serve.send_signal(signal.SIGTERM)
            serve.wait(60)
            kdq(home, "down")
    assert processes(home) == []
