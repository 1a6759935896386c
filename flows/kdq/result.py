"""The result of a run: metrics, the int8 file, and the file's answers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdq_core.errors import RecipeError
from kdq_core.recipe.spec import Recipe, Site
from kdq_flows.facts.result import RunResult

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from kdq_core.plugins.kinds import Session


class Result:
    """A finished run.

    Attributes:
        recipe: what KDQ ran, with every default.
        facts: what `kdq run --json` prints.
    """

    def __init__(self, recipe: Recipe, facts: RunResult, site: Site) -> None:
        self.recipe, self.facts, self._site = recipe, facts, site
        self._session: Session | None = None

    @property
    def path(self) -> Path:
        """The int8 file.

        Raises:
            RecipeError: the recipe has no stage that exports one.
        """
        if self.facts.artifact is None:
            raise RecipeError("the run exported no file; list the stage 'export' in 'stages'")
        return Path(self.facts.artifact.path)

    @property
    def metrics(self) -> dict[str, dict[str, float]]:
        """Metrics by model (`teacher`, `student`, `int8`) and name."""
        return {model: dict(values) for model, values in self.facts.models.items()}

    @property
    def table(self) -> pd.DataFrame:
        """The closing table, one row for each model."""
        import pandas as pd

        return pd.DataFrame([dict(row) for row in self.facts.table])

    def predict(self, *inputs: Any) -> np.ndarray | tuple[np.ndarray, ...]:
        """Run the int8 file in its runtime.

        Args:
            *inputs: the model's inputs, each an array or a tensor `[B, ...]`.

        Returns:
            The output `[B, ...]`, or a tuple if the model has several.
        """
        import numpy as np

        arrays = tuple(np.asarray(one.detach().cpu() if hasattr(one, "detach") else one) for one in inputs)
        arrays = tuple(one.astype(np.float32) if one.dtype == np.float64 else one for one in arrays)
        outputs = self._open().run(arrays)
        return outputs[0] if len(outputs) == 1 else outputs

    def report(self) -> str:
        """The report as Markdown."""
        from kdq_flows.facts.report import report, yaml_of

        return report(self.facts, yaml_of(self.recipe.model_dump(mode="json", by_alias=True, exclude_unset=True)))

    def _open(self) -> Session:
        if self._session is None:
            from kdq_core.plan.plan import asked_of
            from kdq_core.plugins.catalog import Catalog

            target = asked_of(self.recipe, self._site, Catalog.load()).target
            self._session = target.session(self.path, threads=self._site.threads)
        return self._session

    def __repr__(self) -> str:
        return f"{self.facts.run}: {self.facts.status}\n{self.table.to_string(index=False)}"

    def _repr_html_(self) -> str:
        """The table, for notebooks."""
        html: str = self.table.to_html(index=False)
        return html
