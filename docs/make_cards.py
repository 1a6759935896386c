"""The page `plugin-cards.md`: method card and options of each plug-in that comes with KDQ."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator

from make_reference import own_catalog, plugin_options, table
from prose import card, escaped

from kdq_core.plugins.bases import KINDS
from kdq_core.plugins.catalog import Catalog, CatalogEntry

HEAD = """\
# Plug-ins

`docs/make_pages.py` writes this page from the method cards and the options of the plug-ins that come with KDQ. Do not
edit it. `kdq plugins show NAME` prints the same for every installed plug-in, also for those of other packages.

A recipe names a plug-in, or gives `use` and `options`. The keys of all stages that read the workload hold its options,
so a change of one trains the teacher again. The workload names the options that only its student reads; they leave the
teacher cached."""


def page() -> str:
    """The page."""
    catalog = own_catalog()
    parts = [HEAD]
    for kind in KINDS:
        entries = list(catalog.of_kind(kind))
        rows = [(f"[`{entry.name}`](#{anchor(entry)})", escaped(entry.summary)) for entry in entries]
        parts += [f"## {kind.capitalize()}s", table((kind, "what it does"), rows)]
        parts += [text for entry in entries for text in _plugin(catalog, entry)]
    return "\n\n".join(parts) + "\n"


def anchor(entry: CatalogEntry) -> str:
    """The anchor of a plug-in's heading."""
    return f"{entry.kind}-{entry.name}"


def _plugin(catalog: Catalog, entry: CatalogEntry) -> Iterator[str]:
    found = catalog.load_class(entry)
    yield f"### {entry.kind} `{entry.name}`"
    yield escaped(entry.summary[0].upper() + entry.summary[1:]) + "."
    yield card(inspect.cleandoc(sys.modules[found.__module__].__doc__ or ""))
    yield plugin_options(catalog, entry)
