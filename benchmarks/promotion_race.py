"""Processes from four homes promote different versions of one model at the same moment.

`python benchmarks/promotion_race.py [--processes 32] [--rounds 20] [--uri URI]`; without a URI the homes share one
SQLite file. Every process reads the head of the chain, waits for the others, and appends. It prints, for each round,
who won, and checks: one champion, the chain whole, each loser told whom it lost to.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from kdq_core.errors import LostError
from kdq_core.recipe.spec import Site
from kdq_registry.aliases import read_aliases
from kdq_registry.chain import head
from kdq_registry.entries import MOVES
from kdq_registry.environment import client
from kdq_registry.history import history, verify_history
from kdq_registry.moving import move

HOMES = 4


def race(folder: Path, uri: str, processes: int, rounds: int, name: str = "raced") -> Iterator[dict[str, Any]]:
    """Let the processes race; this process opens no database, because it forks.

    Yields:
        A dict for each round: `won`, the versions that won; `told`, what each loser was told; `aliases`; `wrong`, what
            is wrong with the chain; `seconds`.
    """
    import mlflow.store.model_registry.sqlalchemy_store
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401

    homes = [folder / f"home {number}" for number in range(HOMES)]
    _child(lambda: _prepare(Site(home=homes[0], tracking_uri=uri), name, processes * rounds)).get()
    for turn in range(rounds):
        ready, go = os.pipe(), os.pipe()
        racing = [
            _child(partial(_promote, homes[number % HOMES], uri, name, turn * processes + number + 1, ready[1], go[0]))
            for number in range(processes)
        ]
        for _ in racing:
            os.read(ready[0], 1)
        started = time.monotonic()
        os.write(go[1], b"g" * processes)
        answers = [one.get() for one in racing]
        seconds = time.monotonic() - started
        for end in (*ready, *go):
            os.close(end)
        after = _child(lambda: _look(Site(home=homes[0], tracking_uri=uri), name)).get()
        told = [text for kind, text in answers if kind == "lost"]
        yield after | {"won": [v for kind, v in answers if kind == "won"], "told": told, "seconds": seconds}


class _child:  # noqa: N801 - it reads as a verb
    def __init__(self, work: Any) -> None:
        reading, writing = os.pipe()
        self.pid, self.reading = os.fork(), reading
        if self.pid == 0:
            try:
                os.write(writing, json.dumps(work()).encode())
                os._exit(0)
            except BaseException as error:
                os.write(writing, json.dumps({"error": f"{type(error).__name__}: {error}"}).encode())
                os._exit(1)
        os.close(writing)

    def get(self) -> Any:
        with os.fdopen(self.reading) as pipe:
            answer = json.loads(pipe.read() or "null")
        if os.waitpid(self.pid, 0)[1]:
            raise RuntimeError(answer)
        return answer


def _prepare(site: Site, name: str, versions: int) -> None:
    mlflow = client(site)
    mlflow.create_registered_model(name)
    for number in range(versions):
        mlflow.create_model_version(name, f"kdq://raced/{number}", await_creation_for=0)


def _promote(home: Path, uri: str, name: str, version: int, ready: int, go: int) -> tuple[str, Any]:
    site = Site(home=home, tracking_uri=uri)
    mlflow = client(site)
    seen = head(mlflow, name)
    os.write(ready, b"r")
    os.read(go, 1)
    try:
        move(site, mlflow, name, seen, kind="move", alias="champion", to=version)
    except LostError as error:
        return "lost", str(error)
    return "won", version


def _look(site: Site, name: str) -> dict[str, Any]:
    mlflow = client(site)
    wrong = list(verify_history(site, name).wrong)
    aliases = read_aliases(mlflow, name)
    rows = history(site, name)[0]
    odd = [row["kind"] for row in rows if row["kind"] not in MOVES]
    return {"aliases": aliases, "wrong": wrong + odd, "entries": sum(row["lost_to"] is None for row in rows)}


def main() -> None:
    """Race and print."""
    asked = argparse.ArgumentParser()
    asked.add_argument("--processes", type=int, default=32)
    asked.add_argument("--rounds", type=int, default=20)
    asked.add_argument("--uri")
    given = asked.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        uri = given.uri or f"sqlite:///{folder}/mlflow.db"
        took = []
        found = race(Path(folder), uri, given.processes, given.rounds, name=f"raced{os.getpid()}")
        for number, one in enumerate(found, start=1):
            fine = len(one["won"]) == 1 and not one["wrong"] and len(one["told"]) == given.processes - 1
            named = sum(f"promoted version {one['won'][0]} at the same moment" in text for text in one["told"])
            print(
                f"round {number}: won {one['won']}, champion {one['aliases'].get('champion')}, {named} losers told the "
                f"winner, {one['entries']} entries, {one['seconds']:.1f} s, {'fine' if fine else one['wrong']}",
                flush=True,
            )
            took.append(one["seconds"])
    took.sort()
    print(f"{len(took)} rounds of {given.processes}: median {took[len(took) // 2]:.1f} s, most {took[-1]:.1f} s")


if __name__ == "__main__":
    main()
