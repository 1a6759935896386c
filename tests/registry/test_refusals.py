"""What KDQ makes of a server that does not know the user, or does not allow the request."""

from __future__ import annotations

from pathlib import Path

import pytest
import requests

from kdq_core.errors import StageError
from kdq_core.recipe.spec import Site
from kdq_registry.environment import mlflow_errors

SERVER = "http://mlflow.example:5000"
VARIABLES = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"


def answered(status: int) -> requests.HTTPError:
    answer = requests.Response()
    answer.status_code = status
    return requests.HTTPError(response=answer)


@pytest.mark.parametrize(
    ("status", "user", "told"),
    [
        (401, None, f"asks for credentials, and none are set; set {VARIABLES}, or MLFLOW_TRACKING_TOKEN"),
        (401, "ci", f"asks for credentials, and those of 'ci' are wrong or expired; set {VARIABLES}, or "
                    "MLFLOW_TRACKING_TOKEN"),
        (403, "ci", f"does not allow this to 'ci'; ask its administrator for the right, or set {VARIABLES} to a user "
                    "who has it. To promote, a user needs EDIT on the model and on NAME.promotions"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("form", ["answer", "code", "cause"])
def test_a_refusal_names_the_variables_to_set(
    status: int, user: str | None, told: str, form: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import PERMISSION_DENIED, UNAUTHENTICATED

    monkeypatch.delenv("MLFLOW_TRACKING_USERNAME", raising=False)
    if user is not None:
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", user)
    site = Site(home=tmp_path, tracking_uri=SERVER)
    error: Exception = answered(status)
    if form == "code":
        error = MlflowException("refused", UNAUTHENTICATED if status == 401 else PERMISSION_DENIED)
    if form == "cause":
        error = MlflowException("refused")
        error.__cause__ = answered(status)
    with pytest.raises(StageError) as caught, mlflow_errors(site):
        raise error
    assert str(caught.value) == f"the tracking server at {SERVER!r} {told}"
