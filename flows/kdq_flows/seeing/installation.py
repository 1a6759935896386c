"""What `kdq doctor` looks at besides the servers: versions, disk, devices, leases, clock. Each check gives a text."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import time
import urllib.request
from email.utils import parsedate_to_datetime

from packaging.requirements import Requirement

from kdq_core.errors import RecipeError, StageError
from kdq_core.plan import machine
from kdq_core.plan.cpu import cpu_name, instruction_sets
from kdq_core.plan.precision import why
from kdq_core.recipe.spec import Site
from kdq_core.store import open_store
from kdq_flows.facts.state import running
from kdq_flows.run.holders import holders
from kdq_flows.seeing.status import pid_of

TOLD = ("kdq", "torch", "onnxruntime", "openvino", "prefect", "mlflow")
MOST_SECONDS = 5.0
"""By how much clocks may differ."""


def check_versions() -> str:
    """Compare the installed packages with those that KDQ asks for.

    Raises:
        RecipeError: one is missing, or of another version.
    """
    wrong = []
    for text in importlib.metadata.requires("kdq") or ():
        asked = Requirement(text)
        if asked.marker is not None and not asked.marker.evaluate({"extra": ""}):
            continue
        found = _version(asked.name)
        if found is None or not asked.specifier.contains(found, prereleases=True):
            wrong.append(f"{asked.name} is {found or 'not installed'}, KDQ asks for {asked.specifier or 'any'}")
    if wrong:
        raise RecipeError(f"{'; '.join(wrong)}; install them with `pip install -c constraints.txt kdq`")
    told = [f"{name} {found}" for name in TOLD if (found := _version(name))]
    return ", ".join([*told, f"Python {platform.python_version()}"])


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def check_store(site: Site) -> str:
    """Ask the store whether it can be used; a store for several machines also whether it has conditional writes.

    Raises:
        KdqError: it cannot.
    """
    began = time.monotonic()
    told = open_store(site).check()
    return told if site.store_address is None else f"{told}; it answered in {(time.monotonic() - began) * 1000:.0f} ms"


def check_devices(site: Site) -> str:
    """Name the devices that stages run on, and the precision of fits in float.

    Raises:
        RecipeError: one is not there.
    """
    machine.check_devices(site)
    slots = "" if site.cpu_slots == 1 else f", {site.cpu_slots} CPU slots"
    share = "" if site.gpu_share == 1 else f", {site.gpu_share:g} of a GPU a stage"
    cores = f"{site.threads} of {os.cpu_count()} cores a stage"
    return f"{', '.join(site.all_devices)}{slots}{share}, {cores}, {cpu_name()}; {why(site, instruction_sets())}"


def check_leases(site: Site) -> str:
    """Tell who holds the devices of this machine.

    Raises:
        StageError: a device is held, and the process that took it is gone.
    """
    runs, told = {one.owner: one.run for one in running(site)}, []
    for one in holders(site):
        if one.owner == "":
            raise StageError(
                f"device {one.device!r} is held, and the process that took it is gone or unknown; find who has its "
                f"lock file open with `fuser {one.file}`, and end that process if nobody needs it"
            )
        part = "" if one.share == 1 else f"{one.share:g} of "
        by = runs.get(one.owner or "", f"process {pid_of(one.owner or '')} of another home")
        told.append(f"{part}{one.device} is {'free' if one.owner is None else f'held by {by}'}")
    return f"{'; '.join(told)}; lock files in {site.leases}"


def check_clock(api: str, most: float = MOST_SECONDS) -> str:
    """Compare this machine's clock with that of the Prefect server.

    Raises:
        StageError: they differ by more than `most` seconds.
    """
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    before = time.time()
    with opener.open(f"{api}/health", timeout=10) as answer:
        date = answer.headers["date"]
    after = time.time()
    if date is None:
        return "the server does not tell its time"
    theirs = parsedate_to_datetime(date).timestamp()  # whole seconds, cut off
    off = max(before - theirs - 1, theirs - after, 0.0)
    if off > most:
        raise StageError(
            f"the clock of this machine differs by {off:.0f} s from that of the Prefect server at {api}; set both by "
            "NTP, or schedules fire at other times than you read"
        )
    return f"within {max(off, 1):.0f} s of the Prefect server's"
