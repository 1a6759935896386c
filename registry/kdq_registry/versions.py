"""Look up models, versions and aliases, with errors that name the existing ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kdq_core.errors import RecipeError, did_you_mean, listing
from kdq_registry.environment import client, local_database, mlflow_errors

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from kdq_core.recipe.spec import Site


SHA_TAG = "kdq.sha256"
"""Tag of a version: the sha256 of its file."""


def nothing_yet(site: Site) -> bool:
    """Say whether the site uses a local database that does not exist yet."""
    database = local_database(site.mlflow_uri)
    return database is not None and not database.exists()


def models(mlflow: MlflowClient) -> list[Any]:
    """Return all registered models."""
    found: list[Any] = []
    token: str | None = None
    while token != "":
        page = mlflow.search_registered_models(max_results=100, page_token=token)
        found += page
        token = page.token or ""
    return found


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
    known = {str(model.name): model for model in models(mlflow)}
    if name not in known:
        raise unknown_model(name, list(known))
    return known[name]


def version_numbered(mlflow: MlflowClient, name: str, number: int) -> Any:
    """Return the version with this number.

    Raises:
        RecipeError: there is no such model or version; the message lists the existing versions.
    """
    model_named(mlflow, name)
    known = {int(version.version): version for version in versions(mlflow, name)}
    if number not in known:
        numbers = ", ".join(map(str, sorted(known))) or "none"
        todo = "name one of these" if known else "`kdq run FILE` registers one"
        raise RecipeError(f"model {name!r} has no version {number}. Versions: {numbers}; {todo}.")
    return known[number]


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


def sha256_of_version(site: Site, asked: str) -> str:
    """Return the sha256 of the file that KDQ registered as a version.

    Args:
        site: says where MLflow is.
        asked: `NAME/NUMBER` or `NAME@ALIAS`.

    Raises:
        RecipeError: there is no such version, or KDQ did not register it.
        TransientError: the tracking server cannot be reached.
    """
    name, mark, which = asked.partition("/") if "/" in asked else asked.partition("@")
    if nothing_yet(site):
        raise unknown_model(name, [])
    with mlflow_errors(site):
        mlflow = client(site)
        found = version_numbered(mlflow, name, int(which)) if mark == "/" else version_called(mlflow, name, which)
    sha256 = found.tags.get(SHA_TAG)
    if sha256 is None:
        raise RecipeError(f"KDQ did not register version {asked!r}: it has no tag {SHA_TAG!r}; name a version of KDQ's")
    return str(sha256)


def unknown_model(name: str, names: list[str]) -> RecipeError:
    """Make the error for a model that does not exist."""
    hint = did_you_mean(name, names) or "."
    todo = "name one of these (`kdq models` lists their versions)" if names else "`kdq run FILE` registers one"
    there = f"{listing(names)}; {todo}"
    return RecipeError(f"no registered model named {name!r}{hint} Registered: {there}.")
