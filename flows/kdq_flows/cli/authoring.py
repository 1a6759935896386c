"""`kdq plugins new` and `kdq plugins check`: write a plug-in, and find which promise it breaks."""

import typer


def register_commands(app: typer.Typer) -> None:
    """Add the commands."""
