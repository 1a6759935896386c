"""A plug-in that raises on import."""
