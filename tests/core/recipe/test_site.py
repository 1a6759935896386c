import os
from pathlib import Path

import pytest

from kdq_core.errors import RecipeError
from kdq_core.recipe.site import ENVIRONMENT, Site


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ENVIRONMENT.values():
        monkeypatch.delenv(variable, raising=False)


def test_every_field_of_a_site_has_its_variable() -> None:
    assert set(ENVIRONMENT) == set(Site.model_fields)


def test_the_environment_is_read_and_a_given_value_wins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KDQ_HOME", str(tmp_path))
    monkeypatch.setenv("KDQ_DEVICE", "cuda:1")
    monkeypatch.setenv("KDQ_THREADS", "3")
    assert Site.from_environment(threads=5, device=None) == Site(home=tmp_path, device="cuda:1", threads=5)


def test_an_empty_variable_is_as_good_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ENVIRONMENT.values():
        monkeypatch.setenv(variable, "")
    threads = min(os.cpu_count() or 1, 8)
    assert Site.from_environment() == Site(home=Path.cwd() / ".kdq", threads=threads)


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("KDQ_THREADS", "many", "a whole number, 1 to 1024"),
        ("KDQ_THREADS", "0", "a whole number, 1 to 1024"),
        ("KDQ_DEVICE", "gpu", "'cpu', 'cuda' or 'cuda:<number>'"),
        ("KDQ_TRACKING_WAIT_SECONDS", "-1", "a number, at least 0"),
        ("KDQ_PRECISION", "fp16", "'bf16' or 'fp32'"),
        ("KDQ_HOME", "~nobody_has_this_name/kdq", "the path of a folder (Could not determine home directory)"),
    ],
)
def test_a_wrong_variable_is_named_with_its_value_and_what_is_allowed(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, words: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(RecipeError) as caught:
        Site.from_environment()
    assert str(caught.value) == f"{variable} is {value!r}; allowed: {words}"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("bucket/prefix", "bucket/prefix"),
        ("/mnt/share", "/mnt/share"),
        ("file://share", "file://share"),
        ("simplecache::s3://bucket", "simplecache::s3://bucket"),
        ("s3://key:much-too@secret@bucket", "s3://***@bucket"),
        ("https://host/x?token=secret", "https://host/x"),
    ],
)
def test_a_wrong_address_of_a_store_is_shown_without_what_may_be_a_secret(
    monkeypatch: pytest.MonkeyPatch, value: str, shown: str
) -> None:
    monkeypatch.setenv("KDQ_STORE", value)
    with pytest.raises(RecipeError) as caught:
        Site.from_environment()
    assert str(caught.value) == (
        f"KDQ_STORE is {shown!r}; allowed: an fsspec address such as s3://bucket/prefix or file:///mnt/share/kdq, "
        "without user or password"
    )


def test_a_wrong_argument_is_not_blamed_on_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDQ_THREADS", "many")
    with pytest.raises(RecipeError) as caught:
        Site.from_environment(threads=0, speed=3)
    assert str(caught.value) == (
        "the site's 'threads' is 0; allowed: a whole number, 1 to 1024\n"
        "a site has no field 'speed'; it has: device, home, precision, prefect_api, signing_key, store_address, "
        "tensorboard, threads, tracking_uri, tracking_wait"
    )
