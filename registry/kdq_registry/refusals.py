"""Tell from an error of MLflow whether the server is away, does not know the user, or does not allow the request."""

from __future__ import annotations

import os

from kdq_core.errors import StageError


def denied(error: BaseException | None, address: str) -> StageError | None:
    """Make the error for a server that does not know the user, or does not allow the request; else `None`."""
    import requests

    user, coded = os.environ.get("MLFLOW_TRACKING_USERNAME"), {"UNAUTHENTICATED": 401, "PERMISSION_DENIED": 403}
    while error is not None:
        answer = error.response if isinstance(error, requests.HTTPError) else None
        status = coded.get(getattr(error, "error_code", "")) if answer is None else answer.status_code
        if status == 401:
            whose = f"those of {user!r} are wrong or expired" if user else "none are set"
            return StageError(
                f"the tracking server at {address!r} asks for credentials, and {whose}; set MLFLOW_TRACKING_USERNAME "
                "and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
            )
        if status == 403:
            return StageError(
                f"the tracking server at {address!r} does not allow this to {user or 'you'!r}; ask its administrator "
                "for the right, or set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD to a user who has it. To "
                "promote, a user needs EDIT on the model and on NAME.promotions"
            )
        error = error.__cause__ or error.__context__
    return None


def unreachable(error: BaseException | None) -> bool:
    """Whether a lost connection is among the causes of `error`."""
    import requests
    import sqlalchemy.exc

    while error is not None:
        if isinstance(error, requests.ConnectionError | requests.Timeout | requests.exceptions.RetryError):
            return True
        if isinstance(error, sqlalchemy.exc.OperationalError) and "sqlite" not in type(error.orig).__module__:
            return True
        error = error.__cause__ or error.__context__
    return False
