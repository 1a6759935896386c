"""Run cases side by side: each as soon as what it stands on is done, and one of KDQ at a time in each of its homes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from benchmarks.peers.cases import Case
from benchmarks.peers.launch import end_all


def side_by_side(solve: Callable[[Case], None], given: Sequence[Case], jobs: int) -> None:
    """Solve all cases in `jobs` lanes; if the command is interrupted, what runs ends too and is no refusal."""
    waiting, running = list(given), dict[Future[None], Case]()
    with ThreadPoolExecutor(jobs) as pool:
        try:
            while waiting or running:
                while len(running) < jobs and (case := ready(waiting, running.values())):
                    waiting.remove(case)
                    running[pool.submit(solve, case)] = case
                finished, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    del running[future]
                    future.result()
        except BaseException:
            end_all()
            raise


def ready(waiting: Sequence[Case], running: Collection[Case]) -> Case | None:
    """Return the first case that stands on none which still waits or runs, and whose home of KDQ is free."""
    undone, homes = {*waiting, *running}, {case.home for case in running} - {None}
    return next((case for case in waiting if case.stands_on() not in undone and case.home not in homes), None)
