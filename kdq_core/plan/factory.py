"""The code of a factory, which makes the module for a checkpoint. KDQ reads the files and imports nothing."""

from __future__ import annotations

import hashlib

from kdq_core.errors import RecipeError
from kdq_core.plugins.code_version import code_of
from kdq_core.plugins.sources import module_file
from kdq_core.plugins.user_code import user_module
from kdq_core.reading.given import no_factory


def factory_code(factory: str, whose: str = "teacher") -> str:
    """`sha256:<16 hex>` over the package of a factory and all that it imports, by the rules of `code_of` for guests.

    Args:
        factory: `module:function`, such as `my_nets.make:small`, or the module alone.
        whose: `teacher` or `student`, for messages.

    Raises:
        RecipeError: there is no such module.
    """
    module = user_module(factory)
    if module_file(module) is None:
        raise RecipeError(no_factory(module, whose))
    code = code_of(module, "")
    libraries = "".join(f" {name}=={version}" for name, version in sorted(code.libraries.items()))
    return f"sha256:{hashlib.sha256((code.text + libraries).encode()).hexdigest()[:16]}"
