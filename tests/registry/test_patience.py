"""What MLflow refuses only because others write at the same moment is tried again."""

from __future__ import annotations

import pytest
from mlflow.exceptions import MlflowException

from kdq_registry.patience import patient


@pytest.mark.parametrize(
    "text",
    [
        "(sqlite3.OperationalError) database is locked",
        "(sqlite3.IntegrityError) UNIQUE constraint failed: registered_model_aliases.workspace, "
        "registered_model_aliases.name, registered_model_aliases.alias",
        'duplicate key value violates unique constraint "registered_model_alias_pk"',
    ],
)
def test_a_writer_that_came_second_tries_again(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr("kdq_registry.patience.wait", lambda: None)
    errors = [MlflowException(text), MlflowException(text)]

    @patient
    def call() -> str:
        if errors:
            raise errors.pop()
        return "done"

    assert call() == "done"


def test_another_error_is_raised_at_once() -> None:
    @patient
    def call() -> None:
        raise MlflowException("UNIQUE constraint failed: model_versions.name, model_versions.version")

    with pytest.raises(MlflowException, match="model_versions"):
        call()
