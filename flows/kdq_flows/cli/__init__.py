"""The `kdq` command."""
