"""The documents and what stands in them, for the tests that check them."""

from __future__ import annotations

import re
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = (".", "docs", "kdq_core", "plugins", "flows", "registry", "tests", "recipes", "benchmarks", "examples")
PAGES = sorted(path for folder in FOLDERS for path in (ROOT / folder).glob("*.md"))
BLOCK = re.compile(r"(?:<!-- (file|example): (\S+) -->\n)?```(\w*)\n(.*?)```\n", re.DOTALL)
LINK = re.compile(r"(?<!`)\]\(([^)\s]+)\)")
COMMAND = re.compile(r"`(kdq [a-z][^`]*)`")


def blocks(page: Path, language: str) -> list[str]:
    return [text for _, _, lang, text in BLOCK.findall(page.read_text(encoding="utf-8")) if lang == language]


def titled(page: Path, mark: str) -> dict[str, str]:
    found = BLOCK.findall(page.read_text(encoding="utf-8"))
    return {name: text for kind, name, _, text in found if kind == mark}


def prose(page: Path) -> str:
    return BLOCK.sub("", page.read_text(encoding="utf-8"))


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def script(name: str) -> ModuleType:
    """A module of docs/."""
    if str(ROOT / "docs") not in sys.path:
        sys.path.append(str(ROOT / "docs"))
    return import_module(name)


def commands(page: Path) -> set[str]:
    """The commands that the prose names; `test_code_blocks.py` parses those of shell blocks."""
    return set(COMMAND.findall(prose(page)))
