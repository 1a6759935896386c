"""Check that no page of the built site loads anything from elsewhere: `python docs/check_site.py build/site`.

Zensical's own check of links leaves out what its templates load: scripts, styles, fonts, frames and pictures.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

LOADS = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href", "object": "data"}
LINKS = ("alternate", "canonical", "next", "prev")
"""Kinds of `link` that load nothing."""


class Loaded(HTMLParser):
    """Collects the addresses of other hosts from which a page loads something."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note the address of an element that loads something."""
        given = dict(attrs)
        address = given.get(LOADS.get(tag, "")) or ""
        if is_foreign(address) and given.get("rel") not in LINKS:
            self.found.append(address)


def is_foreign(address: str) -> bool:
    """Whether an address names another host."""
    return address.startswith(("http:", "https:", "//"))


def foreign(site: Path) -> Iterator[str]:
    """One line for each thing that a page or a style sheet of `site` loads from another host."""
    for page in sorted(site.rglob("*.html")):
        parser = Loaded()
        parser.feed(page.read_text(encoding="utf-8"))
        yield from (f"{page.relative_to(site)} loads {address}" for address in parser.found)
    for sheet in sorted(site.rglob("*.css")):
        for address in re.findall(r"(?:url\(|@import )[\"']?([^\"')\s]+)", sheet.read_text(encoding="utf-8")):
            if is_foreign(address):
                yield f"{sheet.relative_to(site)} loads {address}"


if __name__ == "__main__":
    lines = list(foreign(Path(sys.argv[1])))
    sys.exit("\n".join(lines) or None)
