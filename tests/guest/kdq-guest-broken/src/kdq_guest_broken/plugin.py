"""Raises as soon as it is imported."""

import a_module_nobody_has  # noqa: F401
