"""The section `register` of a recipe, and the word for the version that programs load. Importable without torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from kdq_core.frozen import Frozen
from kdq_core.recipe.stages import Name

CHAMPION = "champion"
"""The alias of the version that programs load; a gate may be relative to it."""


class RegisterSpec(Frozen):
    """Where the int8 model is registered, and what its model card says that no measurement can."""

    name: Name | None = Field(default=None, description="name of the registered model; default: the recipe's name")
    license: str | None = Field(
        default=None, min_length=1, max_length=200, description="licence of the model, such as an SPDX identifier"
    )
    limits: str | None = Field(
        default=None, min_length=1, max_length=1000, description="what the model is not for, in Markdown"
    )
    branches: Literal["selected", "all", "pareto"] = Field(
        default="selected", description="which branches of a matrix or search KDQ registers"
    )
