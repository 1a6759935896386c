"""`kdq encrypt` and `kdq decrypt`."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Annotated

import typer

from kdq_flows.cli import common

KeyFile = Annotated[
    Path | None, typer.Option("--key", metavar="FILE", help="64 hex digits, or 32 bytes; default: KDQ_ENCRYPTION_KEY.")
]
Source = Annotated[Path, typer.Argument(metavar="FILE", help="The file to read.")]
To = Annotated[Path, typer.Argument(metavar="TO", help="The file to write.")]


def encrypt(
    source: Source,
    to: To,
    key: KeyFile = None,
    kms: Annotated[
        str | None, typer.Option(metavar="NAME", help="The key service of a plug-in wraps a new key.")
    ] = None,
) -> None:
    """Encrypt a model file with AES-256-GCM, for a device that holds the key."""
    from kdq_core.errors import RecipeError
    from kdq_core.plugins.catalog import Catalog
    from kdq_registry.encrypting import encrypt as encrypted
    from kdq_registry.keys import new_key, own_key

    if kms is None:
        encrypted(source, to, own_key(key))
    elif key is not None:
        raise RecipeError("--key and --kms name two keys; leave one of them out")
    else:
        with contextlib.redirect_stdout(sys.stderr):  # what a plug-in prints
            found = new_key(Catalog.load(), kms)
        encrypted(source, to, *found)
    common.say(f"{to} is {source}, encrypted")


def decrypt(source: Source, to: To, key: KeyFile = None) -> None:
    """Decrypt a file of `kdq encrypt`; nothing is written if it was changed or the key is another."""
    from kdq_core.plugins.catalog import Catalog
    from kdq_registry.encrypting import decrypt as decrypted
    from kdq_registry.encrypting import key_of
    from kdq_registry.keys import own_key, unwrapped

    of = key_of(source)
    if of.kms and key is None:
        with contextlib.redirect_stdout(sys.stderr):
            found = unwrapped(Catalog.load(), of)
    else:
        found = own_key(key)
    decrypted(source, to, found)
    common.say(f"{to} is {source}, decrypted")


def register_commands(app: typer.Typer) -> None:
    """Add `kdq encrypt` and `kdq decrypt`."""
    app.command("encrypt", rich_help_panel="Registry")(encrypt)
    app.command("decrypt", rich_help_panel="Registry")(decrypt)
