"""Look up models, versions and aliases, with errors that name the existing ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kdq_core.errors import RecipeError, did_you_mean, listing
from kdq_registry.environment import local_database

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from kdq_core.recipe.spec import Site

SHOWN = 20
"""How many versions a message names."""
CHAIN_SUFFIX = ".promotions"


def is_chain(model: str) -> bool:
    """Say whether a registered model holds the chain of promotions of another, instead of versions."""
    return model.endswith(CHAIN_SUFFIX)


def nothing_yet(site: Site) -> bool:
    """Say whether the site uses a local database that does not exist yet."""
    database = local_database(site.mlflow_uri)
    return database is not None and not database.exists()


def models(mlflow: MlflowClient) -> list[Any]:
    """Return all registered models; the chains of their promotions are none."""
    found: list[Any] = []
    token: str | None = None
    while token != "":
        page = mlflow.search_registered_models(max_results=100, page_token=token)
        found += page
        token = page.token or ""
    return [model for model in found if not is_chain(model.name)]


def versions(mlflow: MlflowClient, name: str) -> list[Any]:
    """Return all versions of a model, newest first."""
    found: list[Any] = []
    token: str | None = None
    while token != "":
        page = mlflow.search_model_versions(f"name = '{name}'", max_results=1000, page_token=token)
        found += page
        token = page.token or ""
    return sorted(found, key=lambda version: -int(version.version))


def model_named(mlflow: MlflowClient, name: str) -> Any:
    """Return the model with this name.

    Raises:
        RecipeError: there is none; the message gives the nearest name.
    """
    found = [model for model in mlflow.search_registered_models(f"name = '{_quoted(name)}'") if model.name == name]
    if not found or is_chain(name):
        raise unknown_model(name, [str(model.name) for model in models(mlflow)])
    return found[0]


def version_numbered(mlflow: MlflowClient, name: str, number: int) -> Any:
    """Return the version with this number; of the model's other versions it reads none.

    Raises:
        RecipeError: there is no such model or version; the message lists the newest versions.
    """
    from mlflow.exceptions import MlflowException

    try:
        if not is_chain(name):
            return mlflow.get_model_version(name, str(number))
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
    model_named(mlflow, name)
    page = mlflow.search_model_versions(f"name = '{name}'", max_results=SHOWN + 1, order_by=["version_number DESC"])
    newest = [str(version.version) for version in page]
    numbers = ", ".join(reversed(newest[:SHOWN])) or "none"
    more = "..., " if len(newest) > SHOWN else ""
    todo = "name one of these" if newest else "`kdq run FILE` registers one"
    raise RecipeError(f"model {name!r} has no version {number}. Versions: {more}{numbers}; {todo}.")


def version_called(mlflow: MlflowClient, name: str, alias: str) -> Any:
    """Return the version that has the alias now.

    Raises:
        RecipeError: there is no such model or alias; the message lists the existing aliases.
    """
    aliases = {str(known): int(number) for known, number in model_named(mlflow, name).aliases.items()}
    if alias not in aliases:
        near = did_you_mean(alias, aliases) or "."
        these = "one of these, or " if aliases else ""
        raise RecipeError(
            f"model {name!r} has no alias {alias!r}{near} Aliases: {listing(aliases)}; name {these}a version as "
            f"{name}/NUMBER (`kdq models` lists them), or make one 'champion' with `kdq promote`."
        )
    return version_numbered(mlflow, name, aliases[alias])


def direct(mlflow: MlflowClient) -> Any:
    """What has the methods of `MlflowClient` for models, and does not read all versions of the model first.

    MLflow's own methods ask first whether the model is a prompt, and read every version for that: 1 s for 10,000. There
    is no public way around it. Without the private one, KDQ is slower and right; a test tells that it is gone.
    """
    return getattr(mlflow, "_get_registry_client", lambda: mlflow)()


def unknown_model(name: str, names: list[str]) -> RecipeError:
    """Make the error for a model that does not exist."""
    hint = did_you_mean(name, names) or "."
    todo = "name one of these (`kdq models` lists their versions)" if names else "`kdq run FILE` registers one"
    there = f"{listing(names)}; {todo}"
    return RecipeError(f"no registered model named {name!r}{hint} Registered: {there}.")


def _quoted(name: str) -> str:
    return name.replace("'", "")  # no model of KDQ has one; MLflow's filters cannot say it
