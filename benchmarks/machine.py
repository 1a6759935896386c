"""Describe the measuring machine for the result pages."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path


def cpu() -> str:
    """Return the CPU's model as the kernel names it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def machine(packages: tuple[str, ...]) -> str:
    """Return one line with CPU, cores, Python and package versions."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    return f"Machine: {cpu()}, {os.cpu_count()} cores; Python {platform.python_version()}; {versions}."


def busy(seconds: float = 2.0) -> float:
    """Measure how many cores other processes keep busy, while this one sleeps."""
    import psutil

    return float(psutil.cpu_percent(seconds)) / 100 * (os.cpu_count() or 1)
