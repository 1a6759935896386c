"""Write all generated pages of the documents: `python docs/make_pages.py`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import make_api
import make_cards
import make_cli
import make_fits
import make_gallery
import make_reference

PAGES: dict[str, Callable[[], str]] = {
    "recipe.md": make_reference.reference,
    "cli.md": make_cli.page,
    "plugin-cards.md": make_cards.page,
    "python.md": make_api.python_page,
    "api.md": make_api.api_page,
    "testing.md": make_api.testing_page,
    "gallery.md": make_gallery.page,
    "models.md": make_fits.page,
}

if __name__ == "__main__":
    for name, page in PAGES.items():
        Path(__file__).with_name(name).write_text(page(), encoding="utf-8")
