"""The owner of a run: a tag for the process that drives it, so that KDQ notices later whether that process died.

A tag is `host:pid:start_time:boot_id`. The system reuses process numbers; with the start time and the id of the boot a
tag never names two processes.
"""

from __future__ import annotations

import functools
import os
import socket
from pathlib import Path

PREFECT_TAG = "kdq-owner="
"""Prefix of the Prefect tag that carries the owner of a flow run."""


@functools.cache
def boot_id() -> str:
    """An id that changes with every boot of this machine."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        import psutil

        return str(int(psutil.boot_time()))


def start_time(pid: int) -> str | None:
    """When the process started, in ticks of the kernel; `None` if it is dead or a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None if Path("/proc/self/stat").exists() else _start_time_elsewhere(pid)
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else fields[19]


def _start_time_elsewhere(pid: int) -> str | None:
    """`start_time` on systems without /proc."""
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else str(process.create_time())
    except psutil.NoSuchProcess:
        return None


def host() -> str:
    """Name of this machine, without the colon that separates the parts of a tag."""
    return socket.gethostname().replace(":", "-")


def owner_tag(pid: int | None = None) -> str:
    """Tag of a living process of this host; by default of this process.

    Raises:
        ProcessLookupError: there is no such process.
    """
    pid = os.getpid() if pid is None else pid
    started = start_time(pid)
    if started is None:
        raise ProcessLookupError(f"no process {pid}")
    return f"{host()}:{pid}:{started}:{boot_id()}"


def prefect_tag() -> str:
    """The tag that marks a flow run of this process in Prefect."""
    return PREFECT_TAG + owner_tag()


def is_alive(tag: str) -> bool:
    """Whether the tagged process still runs; true also for other hosts and malformed tags, as KDQ cannot know."""
    parts = tag.split(":")
    if len(parts) != 4 or not parts[1].isdigit() or parts[0] != host():
        return True
    return parts[3] == boot_id() and start_time(int(parts[1])) == parts[2]
