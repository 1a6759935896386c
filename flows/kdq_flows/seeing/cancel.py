"""End a run from outside, as Ctrl-C does: `kdq cancel`."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

from kdq_core.errors import RecipeError, StageError
from kdq_core.recipe.spec import Site
from kdq_core.store.store import explained
from kdq_flows.facts.state import GONE, RunState, file_of
from kdq_flows.owner import host, is_alive
from kdq_flows.report.kept import write
from kdq_flows.seeing.runs import find, not_running
from kdq_flows.seeing.status import pid_of

SECONDS = 20.0
"""How long KDQ waits for the process to leave; a run leaves within 5 s of a signal."""
_POLL_SECONDS = 0.05


def cancel(site: Site, asked: str, *, seconds: float = SECONDS, sleep: Callable[[float], object] = time.sleep) -> str:
    """Send SIGTERM to the process that drives a run, and wait until the run has ended.

    Args:
        site: its home has the run.
        asked: the run, or a recipe for its last run.
        seconds: how long to wait.
        sleep: waits.

    Returns:
        What is kept.

    Raises:
        RecipeError: there is no such run, it is not running, or it runs on another machine.
        StageError: it did not end in time.
    """
    state = find(site, asked)
    if state.seen != "running":
        raise not_running(state)
    there, pid = state.owner.partition(":")[0], pid_of(state.owner)
    if pid is None or there != host():
        raise RecipeError(
            f"run {state.run!r} is driven by a process on the machine {there!r}, and this is {host()!r}; call "
            "`kdq cancel` there"
        )
    if not _terminate(pid, state.owner):
        raise not_running(_again(site, state))
    until = time.monotonic() + seconds
    while (now := _again(site, state)).seen == "running":
        if time.monotonic() >= until:
            raise StageError(
                f"run {state.run!r} was asked to leave {seconds:g} s ago, and its process {pid} still runs; "
                f"end it with `kill -9 {pid}`: finished stages are kept in any case"
            )
        sleep(_POLL_SECONDS)
    if now.seen == GONE:  # the process had to leave before it could say so itself
        now = now.model_copy(update={"status": "interrupted", "ended": time.time()})
        with explained(file_of(site, now.run), "write the state of the run to"):
            write(file_of(site, now.run), now.model_copy(update={"now": ()}).model_dump_json())
    return kept(now)


def kept(state: RunState) -> str:
    """What an ended run leaves behind, and how to go on."""
    done = [one.name for one in state.stages if one.state in ("ran", "cached", "shared")]
    stages = f"{', '.join(done)} in the store" if done else "no stage had finished"
    stopped = [one.name for one in state.stages if one.state not in ("ran", "cached", "shared")]
    stopped += [one.name for one in state.now if one.name not in stopped]
    where = f" in {' and '.join(stopped)}" if stopped else ""
    if state.seen in ("completed", "no-news"):
        return f"run {state.run!r} ended by itself before the signal: {state.seen}"
    return f"run {state.run!r} was ended{where}; kept: {stages}; run the same command to resume"


def _again(site: Site, state: RunState) -> RunState:
    """The state as it is on disk now; without one, the run ended before a stage began."""
    try:
        return RunState.model_validate_json(file_of(site, state.run).read_bytes())
    except OSError:
        return state.model_copy(update={"status": "interrupted", "now": ()})


def _terminate(pid: int, owner: str) -> bool:
    """Send SIGTERM to the tagged process, and to no other that got its number meanwhile; whether there was one."""
    try:
        if not hasattr(os, "pidfd_open"):
            if is_alive(owner):
                os.kill(pid, signal.SIGTERM)
                return True
            return False
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        if not is_alive(owner):
            return False
        signal.pidfd_send_signal(handle, signal.SIGTERM)
    except ProcessLookupError:
        return False
    finally:
        os.close(handle)
    return True
