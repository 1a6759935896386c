"""Kill KDQ's processes at many points of a study with four branches, and look what is left.

Each point runs a toy study in the same home: inline, with Prefect, or by a schedule of `kdq serve`. At its moment one
process, or all, get SIGKILL. Then the same command runs again. At the end the store has the files of an undisturbed
run and the registry one version; nothing is there twice, no process is left, nothing is open in Prefect or MLflow.
The moments lie behind each call of the store and of MLflow's client, and at random times. A hook that only this script
puts on PYTHONPATH stops the process behind its call. `benchmarks/chaos.json` keeps the points. A second
start of the script runs the points that are missing, and writes `benchmarks/chaos.md` anew:

```
python benchmarks/chaos.py --points 100 [--minutes 30] [--output benchmarks/chaos]
```
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.client import HTTPException
from pathlib import Path
from typing import Any

import chaos_toy
import psutil
from chaos_house import House, until
from chaos_points import VICTIMS, Point, counted, points_of
from machine import machine

PACKAGES = ("kdq", "torch", "prefect", "mlflow")
YEARLY = ("--cron", "0 0 1 1 *")
INTERVAL, OUTAGE = 40, 100
PATIENCE = 1800.0
SOON = 0.1
"""A point at a smaller share of the time is not made earlier."""
AWAY = 3.0
"""Seconds for which a killed tracking server is away."""
FINAL = ("Completed", "NoNews", "Failed", "Crashed", "Cancelled")
GOOD = ("Completed", "NoNews")


class Serving:
    """`kdq serve` of a house, started when a point needs it."""

    def __init__(self, house: House) -> None:
        self._house, self._process = house, None

    def ensure(self) -> None:
        """Start it if it does not run, and wait for its worker; on a busy machine its server may need a second try."""
        for _ in range(5):
            if self._process is None or self._process.poll() is not None:
                self._process = self._house.start("serve", name="serve")
            until(lambda: self._works() or self._process.poll() is not None, "a worker of kdq serve", PATIENCE)
            if self._works():
                return
        raise TimeoutError(f"kdq serve ends at once: {self._house.said('serve')[-2000:]}")

    def _works(self) -> bool:
        return "\nworker " in (self._house.folder / "serve.out").read_text()

    def end(self) -> None:
        """End it as a user does."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            self._process.wait(PATIENCE)
        self._process = None


def command(mode: str, file: Path) -> list[str]:
    """The command of a point."""
    return ["run", str(file), "--json", *(["--no-server"] if mode == "inline" else [])]


def newest(house: House, name: str) -> str:
    """State of the newest run of a schedule that is due; empty if there is none."""
    asked = {
        "deployments": {"name": {"any_": [name]}},
        "flow_runs": {"expected_start_time": {"before_": datetime.now(UTC).isoformat()}},
        "sort": "EXPECTED_START_TIME_DESC",
    }
    with contextlib.suppress(OSError, RuntimeError, ValueError, HTTPException):  # the server may be the victim
        return next((str(one["state_name"]) for one in house.ask_prefect("flow_runs", asked)), "")
    return ""


def undisturbed(house: House, mode: str, serving: Serving) -> dict[str, Any]:
    """Run the toy to its end; gives seconds, calls, and what is in store and registry."""
    name = f"chaos-{mode}"
    file = chaos_toy.recipe(house.folder, name)
    house.forget()
    if mode == "serve":
        serving.ensure()
        succeed(house, "deploy", str(file), *YEARLY)
        house.forget()
    began = time.monotonic()
    if mode == "serve":
        succeed(house, "schedules", "run", name)
        until(lambda: newest(house, name) in FINAL, "the end of the scheduled run", PATIENCE)
        assert newest(house, name) in GOOD, house.said("serve")
    else:
        succeed(house, *command(mode, file))
    seconds = time.monotonic() - began
    calls = counted((house.tape / "calls").read_text())
    (version,) = house.versions(name)
    found = {"seconds": round(seconds, 1), "calls": calls, "stored": house.stored(), "version": version}
    found["stored"] = {key: entry for key, entry in found["stored"].items() if entry[0] != "register"}
    wrong = calm(house, name, found)
    assert not wrong, wrong
    return found


def succeed(house: House, *words: str) -> None:
    code = house.call(*words)
    assert code == 0, (words, code, house.said("command"))


def calm(house: House, name: str, reference: dict[str, Any], seconds: float = 20) -> list[str]:
    """What is wrong when all has come to rest; processes may need some seconds to end."""
    return rested(lambda: house.wrong(name, reference), seconds)


def rested(look: Callable[[], list[str]], seconds: float = 20) -> list[str]:
    """What a look finds when it finds nothing, or after some seconds; a server that does not answer is a finding."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            wrong = look()
        except (OSError, RuntimeError, ValueError, HTTPException) as error:
            wrong = [f"{type(error).__name__}: {error}"]
        if not wrong or time.monotonic() > deadline:
            return wrong
        time.sleep(0.5)


def disturb(house: House, point: Point, references: dict[str, Any], serving: Serving) -> dict[str, Any]:
    """Make one point; gives whether its moment came, what was killed, exit codes, and what is wrong afterwards."""
    house.ensure_mlflow()
    began, file = time.monotonic(), chaos_toy.recipe(house.folder, point.name)
    if point.mode == "serve":
        serving.ensure()
        succeed(house, "deploy", str(file), *YEARLY)
    else:
        serving.end()
    house.forget()
    if point.call:
        process, _, call = point.call.partition(" ")
        (house.tape / "point").write_text(json.dumps({"role": process, "call": call, "number": point.number}))
    run = None if point.mode == "serve" else house.start(*command(point.mode, file), name="run")
    if run is None:
        succeed(house, "schedules", "run", point.name)
    killed = strike(house, point, run, references[point.mode]["seconds"])
    if {"mlflow", "all"} & {point.victim}:
        time.sleep(AWAY)
        house.ensure_mlflow()
    codes = finish_serve(house, point, serving) if run is None else finish(house, point, run, file)
    wrong = calm(house, point.name, references["inline"])
    return {"killed": killed, "codes": codes, "seconds": round(time.monotonic() - began, 1), "wrong": wrong}


def strike(house: House, point: Point, run: subprocess.Popen[bytes] | None, usual: float) -> list[str]:
    """Wait for the moment of a point and kill; gives what was killed, or nothing if the moment never came."""
    began, hit = time.monotonic(), house.tape / "hit"

    def over() -> bool:
        return run.poll() is not None if run is not None else newest(house, point.name) in FINAL

    while True:
        if point.call and (stopped := _stopped(hit)):
            dead = house.kill((point.victim,))
            (house.tape / "point").unlink()
            with contextlib.suppress(ProcessLookupError):
                os.kill(stopped, signal.SIGCONT)
            return dead
        late = not point.call and time.monotonic() - began > point.share * usual
        if late and (dead := house.kill((point.victim,))):  # otherwise the victim is not there yet
            return dead
        if (not point.call or not hit.exists()) and over():
            (house.tape / "point").unlink(missing_ok=True)
            return []
        if time.monotonic() - began > PATIENCE:
            raise TimeoutError(f"the run neither ended nor came to its point: {house.said('run')[-2000:]}")
        time.sleep(0.02 if run is not None else 0.2)


def _stopped(hit: Path) -> int:
    """The process that has stopped itself, or 0."""
    with contextlib.suppress(OSError, ValueError, psutil.Error):
        pid = int(hit.read_text())
        return pid if psutil.Process(pid).status() == psutil.STATUS_STOPPED else 0
    return 0


def finish(house: House, point: Point, run: subprocess.Popen[bytes], file: Path) -> list[int]:
    """Wait for the run and run the same command again, until it succeeds; gives the exit codes."""
    codes = [run.wait(PATIENCE)]
    while len(codes) < 4:
        codes.append(house.call(*command(point.mode, file)))
        if codes[-1] == 0:
            break
    return codes


def finish_serve(house: House, point: Point, serving: Serving) -> list[int]:
    """Wait until the scheduled run has ended well; gives how often it had to be asked for again, as ones."""
    asked, since = [], time.monotonic()
    serving.ensure()
    while newest(house, point.name) not in GOOD:
        if newest(house, point.name) in FINAL and time.monotonic() - since > 60:  # KDQ has had time to resume it
            succeed(house, "schedules", "run", point.name)
            asked, since = [*asked, 1], time.monotonic()
        if time.monotonic() - since > PATIENCE:
            raise TimeoutError(f"the scheduled run did not end: {house.said('serve')[-2000:]}")
        time.sleep(0.5)
    succeed(house, "schedules", "rm", point.name)
    return [*asked, 0]


def outage(house: House, point: Point, serving: Serving) -> dict[str, Any]:
    """Kill all while an interval schedule runs, wait for two ticks, and see that one run catches up."""
    house.ensure_mlflow()
    serving.ensure()
    house.forget()
    file, began = chaos_toy.recipe(house.folder, point.name), time.monotonic()
    succeed(house, "deploy", str(file), "--interval", str(INTERVAL))
    until(lambda: newest(house, point.name) in GOOD, "a first run", PATIENCE)
    killed, at = house.kill(("all",)), datetime.now(UTC)
    time.sleep(OUTAGE)
    house.ensure_mlflow()
    back = datetime.now(UTC)
    serving.ensure()
    there = datetime.now(UTC)
    until(lambda: newest(house, point.name) in GOOD, "a run after the outage", PATIENCE)
    asked = {"deployments": {"name": {"any_": [point.name]}}}
    due = [(datetime.fromisoformat(one["expected_start_time"]), one["state_name"])
           for one in house.ask_prefect("flow_runs", asked)]  # fmt: skip
    succeed(house, "schedules", "rm", point.name)
    missed = [state for when, state in due if at < when < back]
    wrong = caught_up([one for one in due if one[0] > at], there)
    return {"killed": killed, "codes": [0], "seconds": round(time.monotonic() - began, 1), "missed": missed,
            "wrong": [*wrong, *rested(house.orphans)]}  # fmt: skip


def caught_up(due: list[tuple[datetime, str]], there: datetime) -> list[str]:
    """What is wrong with the runs that were due since the outage began, given when the worker was there again.

    One run makes up for all that were missed: the one that was due last when its process had started. On a busy machine
    the next tick may come before that, but not a second one.
    """
    worked = sorted(when for when, state in due if state in (*GOOD, "Running"))
    early = [when for when in worked if when < there]
    if len(early) <= 1 and worked and worked[0] < there + timedelta(seconds=INTERVAL):
        return []
    return [f"since the outage these were due: {[(str(when), state) for when, state in sorted(due)]}, and the worker "
            f"was there at {there}"]  # fmt: skip


def page(kept: dict[str, Any]) -> str:
    """Format the points as Markdown."""
    done = [one for one in kept["points"] if one.get("result")]
    hit = [one for one in done if one["result"]["killed"]]
    rows = []
    for mode in (*VICTIMS, "outage"):
        for victim in VICTIMS.get(mode, ("all",)):
            mine = [one for one in hit if (one["mode"], one["victim"]) == (mode, victim)]
            bad = sum(bool(one["result"]["wrong"]) for one in mine)
            behind = sum(bool(one["call"]) for one in mine)
            if mine:
                rows.append(f"| {mode} | {victim} | {len(mine)} | {behind} | {bad} |")
    covered = Counter(one["call"] for one in hit if one["call"])
    calls = sorted({call for found in kept["calls"].values() for call in found})
    open_calls = [call for call in calls if call not in covered]
    bad_points = [f"- {Point(**_place(one)).text}: {'; '.join(one['result']['wrong'])}" for one in hit
                  if one["result"]["wrong"]]  # fmt: skip
    return "\n".join((
        "# Killing KDQ",
        "",
        "Written by `python benchmarks/chaos.py`. The target: 100 points, nothing wrong after any of them.",
        "",
        f"{len(hit)} kills of {len(kept['points'])} planned; at {len(done) - len(hit)} more points the run had ended "
        f"before the moment came. After {len(bad_points)} of them something was wrong.",
        "",
        "| way to run | killed | points | of these behind a call | something wrong |",
        "|---|---|---:|---:|---:|",
        *rows,
        "",
        *bad_points,
        *([""] if bad_points else []),
        f"A kill lies behind {len(calls) - len(open_calls)} of the {len(calls)} pairs of process and call of the "
        f"store or of MLflow's client that a run makes{'.' if not open_calls else '; not yet behind:'}",
        *([f"{', '.join(open_calls)}."] if open_calls else []),
        "",
        machine(PACKAGES),
        "",
        "A study with four branches and tiny nets runs inline, with Prefect, or by a schedule of `kdq serve`, and",
        "writes to an MLflow server. At the point, the victim gets SIGKILL; `all` are the processes of the home and",
        f"MLflow's server, which is back after {AWAY:g} s. Then the same command runs again; `kdq serve`, if it is",
        "dead, starts again and resumes the run itself. Wrong would be: an entry of the store that differs from the",
        "undisturbed run, or is there twice; not exactly one registered version, or one with other digests; an",
        "epoch that is twice on a curve in MLflow; a run that is RUNNING in MLflow or Prefect; a process, a lock, a",
        f"draft, scratch or an event for MLflow that is left. In `outage` a schedule of every {INTERVAL} s is dead",
        f"for {OUTAGE} s, and one run must catch up.",
    ))  # fmt: skip


def _place(one: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in one.items() if name != "result"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=100)
    parser.add_argument("--minutes", type=float, default=1e9)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(""))
    parser.add_argument("--modes", nargs="+", default=list(VICTIMS), choices=list(VICTIMS))
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the processes of the home must end too
    results, deadline = asked.output.with_suffix(".json"), time.monotonic() + asked.minutes * 60
    with tempfile.TemporaryDirectory(prefix="kdq-chaos-", ignore_cleanup_errors=True) as folder:
        house = House(Path(folder))
        serving = Serving(house)
        try:
            house.ensure_mlflow()
            references = {mode: undisturbed(house, mode, serving) for mode in asked.modes}
            serving.end()
            calls = {mode: found["calls"] for mode, found in references.items()}
            if results.exists():
                kept = json.loads(results.read_text())
            else:
                kept = {"calls": calls, "points": [one.facts for one in points_of(calls, asked.points)]}
            modes = {*asked.modes, *(["outage"] if "serve" in asked.modes else [])}
            for one in kept["points"]:
                if one.get("result") or one["mode"] not in modes or time.monotonic() > deadline:
                    continue
                one |= in_time(Point(**_place(one)), lambda point: made(house, point, references, serving))
                results.write_text(json.dumps(kept, indent=1) + "\n")
                asked.output.with_suffix(".md").write_text(page(kept) + "\n")
        finally:
            serving.end()
            house.close()


def in_time(point: Point, make: Callable[[Point], dict[str, Any]]) -> dict[str, Any]:
    """Make a point; if the run ends before the moment comes, make it again, earlier. Gives its share and result."""
    result = make(point)
    while not result["killed"] and not point.call and point.share >= SOON:
        point = replace(point, share=round(point.share / 2, 2))
        result = make(point)
    return {"share": point.share, "result": result}


def made(house: House, point: Point, references: dict[str, Any], serving: Serving) -> dict[str, Any]:
    """Make a point and print a line about it; one that gets stuck is wrong, and all is killed before the next."""
    try:
        result = outage(house, point, serving) if point.mode == "outage" else disturb(house, point, references, serving)
    except Exception as error:
        house.close()
        result = {"killed": [point.victim], "codes": [], "seconds": 0.0, "wrong": [f"{type(error).__name__}: {error}"]}
    print(f"{point.name} {point.text}: killed {result['killed']}, exit codes {result['codes']}, "
          f"{result['seconds']} s, wrong: {result['wrong'] or 'nothing'}", flush=True)  # fmt: skip
    return result


if __name__ == "__main__":
    main()
