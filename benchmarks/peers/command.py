"""The command line of the comparison: what `run.py` starts."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers.cases import BITS, RECIPES, Case, cases, steps
from benchmarks.peers.comparison import Comparison
from benchmarks.peers.lanes import side_by_side
from benchmarks.peers.nets import NETS, Budget
from benchmarks.peers.results import Record
from benchmarks.peers.table import page

HERE = Path(__file__).resolve().parent


def named(known: Sequence[str]) -> Any:
    """Return the type of an option that takes names, with commas between them."""

    def names(text: str) -> list[str]:
        wrong = [name for name in text.split(",") if name not in known]
        if wrong:
            raise argparse.ArgumentTypeError(f"{wrong[0]!r} is unknown; known: {', '.join(known)}")
        return text.split(",")

    return names


def options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="run.py", description="Compare KDQ with its peers; see benchmarks/README.md.")
    folder = Path("build") / "peers"
    parser.add_argument("--seeds", type=lambda text: [int(seed) for seed in text.split(",")], default=[0, 1, 2])
    parser.add_argument("--only", type=named(list(RECIPES)), default=list(RECIPES), metavar="NAME,...", help="tools")
    parser.add_argument("--nets", type=named(list(NETS)), default=list(NETS), metavar="NAME,...")
    parser.add_argument("--bits", type=named(BITS), default=list(BITS), metavar="NAME,...", help="widths")
    parser.add_argument("--data", type=Path, help="folder of the data sets' files; default: KDQ_DATA_DIR, or fetched")
    parser.add_argument("--out", type=Path, default=folder, help="results and files; what is there is not run again")
    parser.add_argument("--venvs", type=Path, default=folder / "venvs", help="environments of the peers")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="cases side by side, one thread each")
    parser.add_argument("--limit", type=float, default=3600.0, help="seconds that a case may take")
    parser.add_argument("--tiny", action="store_true", help="one epoch of 512 samples: do all tools still run?")
    parser.add_argument("--known", type=Path, help="JSON file of a page; what it has of this machine is not run again")
    parser.add_argument("--page", type=Path, help="the table; default: here if all is compared, else below --out")
    asked = parser.parse_args()
    whole = (asked.only, asked.nets, asked.bits, asked.tiny) == (list(RECIPES), list(NETS), list(BITS), False)
    asked.page = asked.page or (HERE if whole else asked.out) / "peers.md"
    return asked


def main() -> None:
    """Run the stages one after another, and write the page."""
    asked = options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    data = asked.data.resolve() if asked.data else None
    ours = Comparison(asked.out.resolve(), asked.venvs.resolve(), data, Budget(asked.tiny), asked.limit, asked.known)
    files = cases(asked.nets, asked.seeds, asked.only, asked.bits)
    every = files + steps(asked.nets, asked.only)
    ours.asked = every
    try:
        for net in dict.fromkeys(case.net for case in every):
            ours.write_data(net)
        for peer in dict.fromkeys(case.peer for case in every):
            _made(ours, peer)
        for case in every:
            ours.key(case)
        side_by_side(ours.solve, files, asked.jobs)
        side_by_side(ours.solve, every[len(files) :], 1)
        for case in files:
            if case.method in ("ptq", "qat") and not case.taught and case.seed == asked.seeds[0]:
                ours.time(case)
    finally:
        found = ours.results.records
        records = [found[case.name] for case in (_all(ours, found) if asked.known else every) if case.name in found]
        if records:
            asked.page.with_suffix(".json").write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
            asked.page.write_text(page(records, ours.budget), encoding="utf-8")


def _all(ours: Comparison, found: dict[str, Record]) -> list[Case]:
    """List the cases of all tools, nets, bits and seeds whose records are of today's sources."""
    seeds = sorted({record["seed"] for record in found.values()})
    every = cases(list(NETS), seeds, list(RECIPES)) + steps(list(NETS), list(RECIPES))
    return [case for case in every if ours.results.known(case, ours.key(case))]


def _made(ours: Comparison, peer: str) -> None:
    """Make an environment before the lanes start; if that fails, each of its cases reports the failure."""
    try:
        ours.python(peer)
    except RuntimeError as error:
        print(f"{peer}: {error}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
