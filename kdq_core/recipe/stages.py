"""The recipe's list of stages, and how KDQ retries a stage. Importable without torch."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, Field, JsonValue, model_validator

from kdq_core.errors import RecipeError
from kdq_core.frozen import Frozen

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]

PluginName = Annotated[str, AfterValidator(lambda name: name.removeprefix("kdq/"))]
"""A plug-in's name in a recipe. One of KDQ's own has the same key whether its distribution is written or not."""

DEFAULT_STAGES = ("train_teacher", "cache_teacher", "distill", "place", "quantize", "export", "evaluate", "register")


class RetrySpec(Frozen):
    """How often KDQ retries a stage after a transient error, how long one try may take, and what it keeps."""

    attempts: int = Field(default=3, ge=1, le=20, description="tries in all; KDQ never retries a wrong request")
    backoff_seconds: float = Field(
        default=2.0, ge=0, le=3600, description="wait before the second try; each further wait is twice as long"
    )
    stage_timeout_seconds: float = Field(default=86_400.0, gt=0, description="KDQ kills a stage that runs longer")
    stall_seconds: float | None = Field(
        default=None,
        gt=0,
        description="KDQ ends a try that shows no progress for so long, and retries it; null: it waits for ever. Allow "
        "for the longest part without progress, such as a validation or an export",
    )
    checkpoint_seconds: float | None = Field(
        default=60.0,
        gt=0,
        description="KDQ keeps the state of a fit this often within an epoch, but spends at most 1 % of the time on "
        "that; null: only between epochs",
    )
    checkpoint_steps: int | None = Field(
        default=None, ge=1, description="KDQ also keeps the state of a fit after so many steps; null: by time alone"
    )


class StageUse(Frozen):
    """One stage of the list. A bare string in YAML means the stage with its defaults."""

    use: PluginName = Field(description="name of the stage, as `kdq plugins list --kind stage` shows it")
    name: Name | None = Field(
        default=None,
        description="name of this use in plans, tables and logs, if a stage is listed twice; default: `use`",
    )
    options: dict[str, JsonValue] = Field(
        default={}, description="the stage's own fields; a section named after the stage may hold them instead"
    )
    retry: RetrySpec | None = Field(
        default=None, description="how KDQ retries this stage; default: the recipe's 'retry'"
    )

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"use": value} if isinstance(value, str) else value

    @property
    def stage_name(self) -> str:
        """Its name in the catalog, without the distribution."""
        return self.use.rpartition(":" if ".py:" in self.use else "/")[2]

    @property
    def title(self) -> str:
        """What the stage is called in plans, tables and logs."""
        return self.name or self.stage_name


def with_sections(recipe: dict[str, Any], fields: frozenset[str]) -> dict[str, Any]:
    """A raw recipe in which each section named after a listed stage has become that stage's `options`.

    Args:
        recipe: the parsed recipe; without a list of stages, it comes back unchanged.
        fields: names of the recipe's own sections.

    Raises:
        RecipeError: a stage has both a section and `options`.
    """
    stages = recipe.get("stages")
    own = {name: value for name, value in recipe.items() if name not in fields} if stages else {}
    if not own or not isinstance(stages, list | tuple):
        return recipe
    listed = [_titled(stage) for stage in stages]
    found = {title for title, _ in listed if title in own and isinstance(own[title], dict)}
    for title, stage in listed:
        if title in found and stage.get("options"):
            raise RecipeError(f"stage {title!r} has 'options' in 'stages' and a section {title!r}; keep one of the two")
    filled = [stage | {"options": own[title]} if title in found else stage for title, stage in listed]
    return {name: value for name, value in recipe.items() if name not in found} | {"stages": filled}


def _titled(stage: Any) -> tuple[str, Any]:
    """Give a stage of the list with its title, as a mapping; a wrong form keeps its value and gets an empty title."""
    whole = {"use": stage} if isinstance(stage, str) else stage
    if not isinstance(whole, dict) or not isinstance(whole.get("use"), str):
        return "", stage
    return str(whole.get("name") or whole["use"].rpartition("/")[2]), whole
