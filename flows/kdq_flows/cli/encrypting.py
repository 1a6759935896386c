"""`kdq encrypt` and `kdq decrypt`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kdq_flows.cli import common

KeyFile = Annotated[Path, typer.Option("--key", metavar="FILE", help="64 hex digits, or 32 bytes.")]
Source = Annotated[Path, typer.Argument(metavar="FILE", help="The file to read.")]
To = Annotated[Path, typer.Argument(metavar="TO", help="The file to write.")]


def encrypt(source: Source, to: To, key: KeyFile) -> None:
    """Encrypt a model file with AES-256-GCM, for a device that holds the key."""
    from kdq_registry.encrypting import encrypt as encrypted
    from kdq_registry.encrypting import read_key

    encrypted(source, to, read_key(key))
    common.say(f"{to} is {source}, encrypted")


def decrypt(source: Source, to: To, key: KeyFile) -> None:
    """Decrypt a file of `kdq encrypt`; nothing is written if it was changed or the key is another."""
    from kdq_registry.encrypting import decrypt as decrypted
    from kdq_registry.encrypting import read_key

    decrypted(source, to, read_key(key))
    common.say(f"{to} is {source}, decrypted")


def register_commands(app: typer.Typer) -> None:
    """Add `kdq encrypt` and `kdq decrypt`."""
    app.command("encrypt", rich_help_panel="Registry")(encrypt)
    app.command("decrypt", rich_help_panel="Registry")(decrypt)
