"""Make, measure and time the cases that are not finished yet, each in a process of its own."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.peers.cases import FLOAT, Case
from benchmarks.peers.environments import BASE, pins, python_of, quiet
from benchmarks.peers.launch import launch
from benchmarks.peers.nets import NETS, Budget
from benchmarks.peers.results import Record, Results

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
BATCHES = (1, 32)
SHARED = ("nets.py", "data.py", "training.py", "workbench.py", "job.py", "measuring.py")
"""Sources that each case depends on, beside those of its tool."""


class Comparison:
    """One run of the command.

    Args:
        out: folder of all files; what is finished there is not computed again.
        venvs: folder of the environments.
        data: folder of the data sets' files; `None`: KDQ fetches them.
        budget: what each fit may use.
        limit: seconds that a case may take.
        known: the JSON file of a page; what it holds of this machine is finished.

    Attributes:
        asked: the cases of this run.
    """

    def __init__(
        self, out: Path, venvs: Path, data: Path | None, budget: Budget, limit: float, known: Path | None = None
    ) -> None:
        """Read the results of an earlier run."""
        self.out, self.venvs, self.budget, self.limit = out, venvs, budget, limit
        out.mkdir(parents=True, exist_ok=True)
        venvs.mkdir(parents=True, exist_ok=True)
        self.results = Results(out / "results.json", known)
        self.asked: Collection[Case] = ()
        self.keys: dict[str, str] = {}
        self._environment = environment(out, venvs, data)
        kept = os.environ.get("PYTHONPATH")  # a peer does not see what the caller adds to KDQ's environment
        paths = [self._environment["PYTHONPATH"], *([kept] if kept else [])]
        self._ours = {**self._environment, "PYTHONPATH": os.pathsep.join(paths)}
        self._pythons: dict[str, Path | str] = {}

    def python(self, peer: str) -> Path:
        """Return the Python of a tool, whose environment is made at its first call.

        Raises:
            RuntimeError: pip could not make it.
        """
        if peer not in self._pythons:
            try:
                self._pythons[peer] = Path(sys.executable) if peer == "kdq" else python_of(peer, self.venvs)
            except subprocess.CalledProcessError as error:
                self._pythons[peer] = f"no environment: {(error.stderr or str(error)).strip().splitlines()[-1][:500]}"
        found = self._pythons[peer]
        if isinstance(found, str):
            raise RuntimeError(found)
        return found

    def key(self, case: Case) -> str:
        """Hash what a case depends on: its fields, sources, versions and budget, and the case that it stands on."""
        if case.name not in self.keys:
            known, below = pins(), case.stands_on()
            files = [HERE / name for name in (*SHARED, f"{case.peer}_peer.py")]
            files += [HERE / "recipes" / f"{case.net}.yaml", *kdq_sources()] if case.peer == "kdq" else []
            parts = [
                asdict(case), asdict(NETS[case.net]), asdict(self.budget), known[BASE], known.get(case.peer),
                [digest(file) for file in files], self.key(below) if below else None,
            ]  # fmt: skip
            self.keys[case.name] = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
        return self.keys[case.name]

    def write_data(self, net: str) -> None:
        """Write the data of a net for the tools.

        Raises:
            SystemExit: KDQ cannot read it.
        """
        wanted = json.dumps([asdict(NETS[net]), asdict(self.budget)])
        mark = self.out / "data" / f"{net}.made"
        if mark.is_file() and mark.read_text(encoding="utf-8") == wanted:
            return
        failure = self._launch(Path(sys.executable), "data", net, log=self.out / "data" / f"{net}.log").failure
        if failure:
            raise SystemExit(f"the data of {net!r} cannot be read: {failure}")
        mark.write_text(wanted, encoding="utf-8")

    def _launch(self, python: Path, module: str, argument: str, log: Path) -> Any:
        command = [str(python), "-m", f"benchmarks.peers.{module}", argument, str(self.out)]
        size = "tiny" if self.budget.tiny else "whole"
        path = os.pathsep.join((str(python.parent), os.environ.get("PATH", "")))
        ours = self._ours if python == Path(sys.executable) else {**self._environment, "PATH": path}
        return launch([*command, size], log, self.limit, ours, self.out)

    def solve(self, case: Case) -> None:
        """Make and measure the file of a case, unless that is finished."""
        key, below = self.key(case), case.stands_on()
        if self.results.known(case, key) and not self._missed(case):
            return
        on = self.results.known(below, self.key(below)) if below else {}
        if on is None or "refused" in on:
            record = self.results.put(case, key, refused="what it stands on was not made", **{"as": "below"})
        elif refusal := self.results.refusal(case, self.keys):
            record = self.results.put(case, key, refused=refusal["refused"], **{"as": "another seed or teacher"})
        else:
            record = self.results.put(case, key, **self._made(case))
        told = record.get("refused") or record.get("quality") or record.get("step") or "made"
        print(f"{case.name}: {told}", file=sys.stderr, flush=True)

    def _missed(self, case: Case) -> bool:
        """Whether a finished student or teacher is not in this folder, and a case that is not finished needs it."""
        if case.method in ("ptq", "qat", "step") or (self.out / "cases" / case.name / "made.json").is_file():
            return False
        above = [other for other in self.asked if other.stands_on() == case]
        return any(not self.results.known(other, self.key(other)) or self._missed(other) for other in above)

    def _made(self, case: Case) -> Record:
        """Run the job of a case, and measure its file."""
        folder, argument = self.out / "cases" / case.name, json.dumps(asdict(case))
        facts: Record = {}
        steps = {"job": ("made.json", case.peer), "measuring": ("measured.json", "kdq")}
        for module, (name, peer) in steps.items():
            (folder / name).unlink(missing_ok=True)
            try:
                ended = self._launch(self.python(peer), module, argument, folder / f"{module}.log")
            except RuntimeError as error:
                return {"refused": str(error)}
            if ended.failure or not (folder / name).is_file():
                return {**facts, "refused": ended.failure or f"wrote no {name}"}
            facts |= json.loads((folder / name).read_text(encoding="utf-8"))
            if "refused" in facts or "file" not in facts:
                break
        return facts

    def time(self, case: Case) -> None:
        """Measure a file against the float student's with `kdq bench`, if it is not measured yet."""
        key = self.key(case)
        record = self.results.known(case, key)
        if record is None or "quality" not in record or "latency" in record:
            return
        if not (self.out / record["file"]).is_file():
            return  # another folder had it
        plain = self.out / "cases" / Case(case.net, FLOAT, FLOAT, FLOAT, False, case.seed).name / "model.onnx"
        command = [sys.executable, "-m", "kdq_flows", "bench", str(plain), str(self.out / record["file"]), "--json"]
        command += [part for batch in BATCHES for part in ("--batch", str(batch))]
        command += ["--inputs", str(self.out / "data" / f"{case.net}-inputs.npz")]
        command += ["--target", "openvino"] if case.openvino else []
        log = self.out / "cases" / case.name / "bench.log"
        ended = launch(command, log, self.limit, self._ours, self.out)
        found = [line for line in log.read_text(encoding="utf-8").splitlines() if line.startswith("{")]
        if ended.failure or not found:
            self.results.put(case, key, latency={"refused": ended.failure or "kdq bench gave no JSON"})
            return
        names = ("batch", "ratio", "low", "high", "verdict")
        rows = [{name: at[name] for name in names} for at in json.loads(found[-1])["batches"]]
        self.results.put(case, key, latency={"load": os.getloadavg()[0], "batches": rows})
        print(f"{case.name}: {[(row['batch'], round(row['ratio'], 2)) for row in rows]}", file=sys.stderr, flush=True)


@functools.cache
def digest(path: Path) -> str:
    """Hash a source, once."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


@functools.cache
def kdq_sources() -> list[Path]:
    """List KDQ's modules: its files depend on all of them."""
    rooms = ("kdq_core", "plugins", "flows", "registry", "examples/src")
    return sorted(path for room in rooms for path in (ROOT / room).rglob("*.py"))


def environment(out: Path, venvs: Path, data: Path | None) -> dict[str, str]:
    """Return the variables of all children: one thread, where modules and data are, and no site of KDQ but this one."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("KDQ_") or name == "KDQ_DATA_DIR"}
    home = out / "kdq"
    ours = {
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "examples" / "src"))),
        "OMP_NUM_THREADS": "1", "KDQ_THREADS": "1", "KDQ_HOME": str(home / "bench"), "KDQ_LEASES": str(home / "leases"),
    }  # fmt: skip
    return {**kept, **ours, **quiet(venvs), **({"KDQ_DATA_DIR": str(data)} if data else {})}
