"""Run the tests marked `isa` as on CPUs with fewer instructions: `make test-isa`.

The kernels of torch choose their instructions when they start, and can be told to do with less. A setting under which
torch computes as it does here anyway is left out, so a CPU with AVX2 alone runs two, one with AMX five.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SETTINGS = (
    {"ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE"},
    {"ONEDNN_MAX_CPU_ISA": "SSE41"},
    {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
    {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"},
    {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_VNNI"},
    {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_AMX"},
)
ASKED = """
import torch
torch.nn.functional.conv2d(torch.ones(16, 16, 8, 8), torch.ones(16, 16, 3, 3))
print("ATen", torch.backends.cpu.get_cpu_capability())
"""


def used(setting: dict[str, str]) -> str:
    """Which instructions torch says it uses under this setting."""
    said = subprocess.run(
        [sys.executable, "-c", ASKED],
        env={**os.environ, **setting, "ONEDNN_VERBOSE": "1"},
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    onednn = next((line.rpartition(":")[2] for line in said if "cpu,isa:" in line), "unused")
    return f"{said[-1]}, oneDNN {onednn}"


def differing() -> Iterator[tuple[str, dict[str, str]]]:
    """The settings under which torch computes otherwise than it does here, each with what it then uses."""
    seen = {used({})}
    for setting in SETTINGS:
        if (now := used(setting)) not in seen:
            seen.add(now)
            yield now, setting


def main(words: list[str]) -> int:
    """Run the settings, two at a time; 0 if all pass."""
    # Only the files that have the mark: to collect all others takes longer than to run these.
    files = sorted(str(path) for path in Path("tests").rglob("test_*.py") if "pytest.mark.isa" in path.read_text())

    def run(case: tuple[str, dict[str, str]]) -> bool:
        now, setting = case
        pytest = [sys.executable, "-m", "pytest", "-m", "isa", "-q", *files, *words]
        done = subprocess.run(pytest, env={**os.environ, **setting}, check=False, capture_output=True, text=True)
        print(f"== {now}: {' '.join(map('='.join, setting.items()))}\n{done.stdout}{done.stderr}", flush=True)
        return done.returncode == 0

    with ThreadPoolExecutor(2) as pool:
        passed = [*pool.map(run, differing())]
    if len(passed) < 2 and platform.machine() == "x86_64":
        print("error: torch took no notice of the settings; correct their names in tests/isa.py", file=sys.stderr)
        return 1
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
