"""The home in which benchmarks/chaos.py runs and kills: its servers, its processes, and what is wrong with it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import chaos_toy
import psutil

HOOK = Path(__file__).with_name("chaos_hook")
KDQ = Path(sys.executable).with_name("kdq")
OPEN = ["RUNNING", "PENDING", "CANCELLING"]
Store = dict[str, tuple[str, dict[str, str]]]


def until(true: Callable[[], Any], what: str, seconds: float) -> Any:
    """Wait for something.

    Raises:
        TimeoutError: it never happened.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := true():
            return found
        time.sleep(0.05)
    raise TimeoutError(f"never happened in {seconds:g} s: {what}")


def kind_of(words: list[str], parent: list[str]) -> str:
    """Which of KDQ's processes has this command line, given that of its parent process."""
    line = " ".join(words)
    if "kdq_core.worker.warm" in line:
        return "child" if "kdq_core.worker.warm" in " ".join(parent) else "warm"
    if "kdq_core.worker.main" in line:
        return "child"
    if "kdq_flows.servers.guard" in line:
        return "prefect"
    if "prefect worker start" in line:
        return "worker"
    if words[-1:] == ["serve"]:
        return "serve"
    if "prefect.flow_engine" in line or "prefect.engine" in line or "flow-run execute" in line:
        return "parent"
    return "parent" if "run" in words else "other"


class House:
    """A home with a tracking server of its own, whose processes can be killed.

    Attributes:
        folder: has the home, the recipes, the server's files and the tape of the calls.
        home: KDQ_HOME.
        tape: what `chaos_hook` writes.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.home, self.tape = folder.resolve(), folder.resolve() / "home", folder.resolve() / "tape"
        self.home.mkdir(parents=True, exist_ok=True)
        self.tape.mkdir(exist_ok=True)
        chaos_toy.write(self.folder)
        self._port, self._mlflow = free_port(), None

    @property
    def environment(self) -> dict[str, str]:
        """Variables of every `kdq` command."""
        mine = ("KDQ_", "MLFLOW_", "PREFECT_", "OMP_")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(mine)}
        return kept | {
            "KDQ_HOME": str(self.home),
            "KDQ_LEASES": str(self.folder / "leases"),  # it waits for no run of another home
            "KDQ_THREADS": "1",
            "KDQ_TRACKING_URI": f"http://127.0.0.1:{self._port}",
            "HOME": str(self.folder / "user"),
            "CHAOS_FOLDER": str(self.tape),
            "PYTHONPATH": os.pathsep.join(filter(None, (str(HOOK), os.environ.get("PYTHONPATH")))),
        }

    def start(self, *words: str, name: str = "command") -> subprocess.Popen[bytes]:
        """Start a `kdq` command; its output goes to files."""
        with (self.folder / f"{name}.out").open("wb") as out, (self.folder / f"{name}.err").open("ab") as err:
            return subprocess.Popen([KDQ, *words], env=self.environment, cwd=self.folder, stdout=out, stderr=err)

    def call(self, *words: str, seconds: float = 1800) -> int:
        """Run a `kdq` command to its end; gives the exit code."""
        return self.start(*words).wait(seconds)

    def said(self, name: str) -> str:
        """What a command wrote to stderr and stdout."""
        files = (self.folder / f"{name}.err", self.folder / f"{name}.out")
        return "\n".join(file.read_text(errors="replace") for file in files if file.exists())

    def ensure_mlflow(self) -> None:
        """Start the tracking server if it is not running, on the port that it had, and wait until it answers."""
        if self._mlflow is None or self._mlflow.poll() is not None:
            served = self.folder / "served"
            served.mkdir(exist_ok=True)
            words = ["--host", "127.0.0.1", "--port", str(self._port), "--workers", "1"]
            with (served / "server.log").open("ab") as log:
                self._mlflow = subprocess.Popen(
                    [sys.executable, "-m", "mlflow", "server", *words],
                    env=self.environment | {
                        "KDQ_HOME": "",
                        "MLFLOW_BACKEND_STORE_URI": f"sqlite:///{served / 'mlflow.db'}",
                        "MLFLOW_ARTIFACTS_DESTINATION": str(served / "artifacts"),
                        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
                        "MLFLOW_DISABLE_TELEMETRY": "true",
                        "DO_NOT_TRACK": "1",
                    },
                    cwd=served, stdout=log, stderr=log, start_new_session=True,
                )  # fmt: skip
        until(lambda: self._answers("/health"), "the tracking server answers", 600)

    def kill_mlflow(self) -> None:
        """Kill the tracking server with its children."""
        if self._mlflow is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._mlflow.pid, signal.SIGKILL)
            self._mlflow.wait()

    def processes(self) -> dict[int, str]:
        """The kind of every process of the home, by pid."""
        found = {}
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get("KDQ_HOME") == str(self.home) and process.status() != psutil.STATUS_ZOMBIE:
                    parent = process.parent()
                    found[process.pid] = kind_of(process.cmdline(), parent.cmdline() if parent else [])
        return found

    def kill(self, victims: tuple[str, ...]) -> list[str]:
        """Kill processes by kind, `all` for all; gives the kinds that were there."""
        dead = []
        for pid, kind in self.processes().items():
            if kind in victims or "all" in victims:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    dead.append(kind)
        if {"mlflow", "all"} & set(victims):
            self.kill_mlflow()
            dead.append("mlflow")
        return sorted(set(dead))

    def orphans(self) -> list[str]:
        """Processes of the home that should have ended: all but servers, worker and `kdq serve`, and their children."""
        found, kept = self.processes(), set[int]()
        for pid, kind in found.items():
            if kind in ("prefect", "worker", "serve"):
                kept.add(pid)
                with contextlib.suppress(psutil.Error):
                    kept |= {one.pid for one in psutil.Process(pid).children(recursive=True)}
        return [f"process {pid} ({kind}) is left" for pid, kind in found.items() if pid not in kept]

    def forget(self) -> None:
        """Empty the store, so that the next run computes everything anew, and begin a new tape."""
        for name in ("store", "scratch", "micro-batches"):
            shutil.rmtree(self.home / name, ignore_errors=True)
        shutil.rmtree(self.tape)
        self.tape.mkdir()

    def stored(self) -> Store:
        """Stage and digests of the files of every entry, by key; the file of a damaged entry has the digest it has."""
        found: Store = {}
        for path in sorted(self.home.glob("store/??/*/manifest.json")):
            manifest, folder = json.loads(path.read_bytes()), path.parent
            files = {one["path"]: hashlib.sha256((folder / one["path"]).read_bytes()).hexdigest()
                     for one in manifest["files"]}  # fmt: skip
            found[folder.name] = (manifest["stage"], files)
        return found

    def left_over(self) -> list[str]:
        """Files that a finished run must not leave: drafts, scratch, locks, events for MLflow."""
        patterns = ("store/drafts/*", "store/claims/*", "scratch/*", "locks/*", "tracking/*/events.jsonl")
        return [str(path.relative_to(self.home)) for pattern in patterns for path in self.home.glob(pattern)]

    def versions(self, name: str) -> list[dict[str, str]]:
        """The tags of the registered versions of a model; `version` and `status` beside them."""
        found = self._mlflow_api(f"model-versions/search?filter=name%3D%27{name}%27").get("model_versions", [])
        return [{tag["key"]: tag["value"] for tag in one.get("tags", [])}
                | {"version": str(one["version"]), "status": one["status"]} for one in found]  # fmt: skip

    def tracked(self, name: str) -> Iterator[tuple[str, str, dict[str, list[int]]]]:
        """Name, status and steps of each curve of every MLflow run of a recipe."""
        experiment = self._mlflow_api(f"experiments/get-by-name?experiment_name={name}")["experiment"]
        asked = {"experiment_ids": [experiment["experiment_id"]], "max_results": 1000}
        for run in self._mlflow_api("runs/search", asked).get("runs", []):
            info, curves = run["info"], {}
            for metric in run["data"].get("metrics", []):
                if metric["key"].startswith("train/"):
                    asked_for = f"metrics/get-history?run_id={info['run_id']}&metric_key={metric['key']}"
                    curves[metric["key"]] = [int(one["step"]) for one in self._mlflow_api(asked_for)["metrics"]]
            yield info["run_name"], info["status"], curves

    def ask_prefect(self, what: str, question: dict[str, Any]) -> list[dict[str, Any]]:
        """Ask the home's Prefect server for objects, such as `flow_runs`."""
        url, me = json.loads((self.home / "servers" / "prefect.json").read_text())["url"], str(uuid.uuid4())
        token = _json(f"{url}/api/csrf-token?client={me}")["token"]
        told = {"Prefect-Csrf-Token": token, "Prefect-Csrf-Client": me}
        found: list[dict[str, Any]] = _json(f"{url}/api/{what}/filter", question, told)
        return found

    def prefect_is_up(self) -> bool:
        """Whether the home's Prefect server runs."""
        return "prefect" in self.processes().values()

    def wrong(self, name: str, reference: dict[str, Any]) -> list[str]:
        """All that is not as after an undisturbed run, in words.

        Args:
            name: the recipe.
            reference: `stored` and `version` of the undisturbed run.
        """
        return [*self._wrong_results(name, reference), *self._wrong_states(name), *self.orphans()]

    def _wrong_results(self, name: str, reference: dict[str, Any]) -> Iterator[str]:
        stored = self.stored()
        once = Counter(stage for stage, _ in reference["stored"].values()) + Counter(["register"])
        if counted := Counter(stage for stage, _ in stored.values()) - once:
            yield f"the store has more entries than after one run: {dict(counted)}"
        mine = {key: entry for key, entry in stored.items() if entry[0] != "register"}
        for key in mine.keys() ^ reference["stored"].keys():
            yield f"entry {key[:12]} of {(mine.get(key) or reference['stored'][key])[0]} is not in both stores"
        for key in mine.keys() & reference["stored"].keys():
            if mine[key][1] != reference["stored"][key][1]:
                yield f"entry {key[:12]} of {mine[key][0]} has other files"
        versions = self.versions(name)
        if len(versions) != 1:
            yield f"{len(versions)} versions are registered"
        for version in versions:
            if fixed(version) != fixed(reference["version"]):
                yield f"version {version['version']} differs: {fixed(version)}"

    def _wrong_states(self, name: str) -> Iterator[str]:
        yield from (f"{path} is left" for path in self.left_over())
        for run, status, curves in self.tracked(name):
            if status == "RUNNING":
                yield f"run {run!r} is RUNNING in MLflow"
            for curve, steps in curves.items():
                if len(steps) != len(set(steps)) or len(steps) > chaos_toy.EPOCHS.get(run, 0):
                    yield f"curve {curve!r} of run {run!r} has the steps {steps}"
        if self.prefect_is_up():
            asked = {"flow_runs": {"state": {"type": {"any_": OPEN}}}}
            for one in self.ask_prefect("flow_runs", asked):
                yield f"flow run {one['name']!r} is {one['state_name']} in Prefect"

    def _answers(self, path: str) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._port}{path}", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def _mlflow_api(self, path: str, question: dict[str, Any] | None = None) -> dict[str, Any]:
        found: dict[str, Any] = _json(f"http://127.0.0.1:{self._port}/api/2.0/mlflow/{path}", question)
        return found

    def close(self) -> None:
        """End everything of the home."""
        self.kill(("all",))


def fixed(version: dict[str, str]) -> dict[str, str]:
    """What must be equal in the versions of equal runs: status, digests and figures."""
    return {name: value for name, value in version.items() if name == "status" or "sha256" in name}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _json(url: str, question: Any = None, headers: dict[str, str] | None = None) -> Any:
    body = None if question is None else json.dumps(question).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"} | (headers or {}))
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        raise RuntimeError(f"{url}: {error.read()[:500]!r}") from error
