"""What a shell offers for a word that is begun; typer calls these functions when the user presses tab."""

from __future__ import annotations

import typer


def kinds(incomplete: str) -> list[str]:
    """The kinds of plug-ins."""
    from kdq_core.plugins.bases import KINDS

    return [kind for kind in KINDS if kind.startswith(incomplete)]


def shown(context: typer.Context, incomplete: str) -> list[str]:
    """The names that `kdq plugins show` takes, of the kind that the line asks for."""
    from kdq_core.plugins.catalog import Catalog

    catalog, kind = Catalog.load(), context.params.get("kind")
    names = {entry.name for entry in catalog.entries if kind in (None, entry.kind)}
    names |= set() if kind else {one.entry_point for one in catalog.quarantined}
    return sorted(name for name in names if name.startswith(incomplete))


def quantizers(incomplete: str) -> list[str]:
    """The quantizers that a recipe may name."""
    from kdq_core.plugins.catalog import Catalog

    return sorted(name for name in Catalog.load().names("quantizer") if name.startswith(incomplete))


def targets(incomplete: str) -> list[str]:
    """The targets that a recipe may name."""
    from kdq_core.plugins.catalog import Catalog

    return sorted(name for name in Catalog.load().names("target") if name.startswith(incomplete))
