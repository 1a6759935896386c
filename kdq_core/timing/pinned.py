"""Keep a measurement on the least busy CPUs, where the operating system lets a process choose."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

LOOKED = 0.05
"""Seconds in which KDQ looks how busy each CPU is."""


@contextmanager
def pinned(threads: int) -> Iterator[tuple[int, ...]]:
    """Keep this thread, and the threads that it starts meanwhile, on the least busy CPUs; collect no garbage.

    Afterwards this thread may use the CPUs that it could use before, and Python collects garbage if it did before.
    Threads that a runtime started meanwhile stay where they are, so close its sessions before.

    Args:
        threads: number of CPUs; all that the process may use, if there are no more.

    Yields:
        The CPUs; `()` where the operating system cannot pin a thread.
    """
    collects = gc.isenabled()
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_setaffinity") else set()
    chosen = chosen_cpus(sorted(allowed), busy_shares(), threads) if allowed else ()
    gc.collect()
    gc.disable()
    try:
        if chosen:
            os.sched_setaffinity(0, chosen)
        yield chosen
    finally:
        if chosen:
            os.sched_setaffinity(0, allowed)
        if collects:
            gc.enable()


def chosen_cpus(allowed: Sequence[int], busy: Sequence[float], count: int) -> tuple[int, ...]:
    """The `count` least busy of the allowed CPUs, in order of their numbers.

    Args:
        allowed: numbers of the CPUs that the process may use.
        busy: percent of time that each CPU of the machine is busy, by its number; a missing one counts as idle.
        count: how many to choose.
    """
    load = {cpu: busy[cpu] if cpu < len(busy) else 0.0 for cpu in allowed}
    return tuple(sorted(sorted(allowed, key=lambda cpu: load[cpu])[:count]))


def busy_shares() -> list[float]:
    """Percent of time that each CPU of the machine is busy."""
    import psutil

    return psutil.cpu_percent(LOOKED, percpu=True)
