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
        ("KDQ_DEVICES", "gpu,cpu", "'auto', 'cpu', or names such as 'cuda:0,cuda:1'"),
        (
            "KDQ_DEVICES",
            "cpu,cuda",
            "'cpu' alone, or GPUs alone; for several stages on the CPU set KDQ_CPU_SLOTS",
        ),
        ("KDQ_DEVICES", "cuda,cuda:0", "each GPU once; for several stages on one GPU set KDQ_GPU_SHARE"),
        ("KDQ_CPU_SLOTS", "0", "a whole number, 1 to 1024"),
        ("KDQ_GPU_SHARE", "2", "a number, above 0 and at most 1"),
        ("KDQ_TRACKING_WAIT_SECONDS", "-1", "a number, at least 0"),
        ("KDQ_PRECISION", "fp16", "'auto' or 'bf16' or 'fp32'"),
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
        ("memory://kdq", "memory://kdq"),
    ],
)
def test_a_wrong_address_of_a_store_is_shown_without_what_may_be_a_secret(
    monkeypatch: pytest.MonkeyPatch, value: str, shown: str
) -> None:
    monkeypatch.setenv("KDQ_STORE", value)
    with pytest.raises(RecipeError) as caught:
        Site.from_environment()
    assert str(caught.value) == (
        f"KDQ_STORE is {shown!r}; allowed: an fsspec address that other processes can read, such as s3://bucket/prefix "
        "or file:///mnt/share/kdq, without user or password"
    )


def test_a_wrong_argument_is_not_blamed_on_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDQ_THREADS", "many")
    with pytest.raises(RecipeError) as caught:
        Site.from_environment(threads=0, speed=3)
    assert str(caught.value) == (
        "the site's 'threads' is 0; allowed: a whole number, 1 to 1024\n"
        "a site has no field 'speed'; it has: cpu_slots, device, devices, executor, gpu_share, home, leases, pool, "
        "precision, prefect_api, signing_key, store_address, tensorboard, threads, tracking_uri, tracking_wait, workers"
    )


def test_several_devices_have_the_first_as_their_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDQ_DEVICES", "cuda:1, cuda:0")
    site = Site.from_environment()
    assert (site.device, site.all_devices) == ("cuda:1", ("cuda:1", "cuda:0"))
    assert Site.model_validate(site.model_dump(mode="json")) == site
    assert site.at("cuda:0") == Site.from_environment(device="cuda:0")
    monkeypatch.setenv("KDQ_DEVICES", "cpu")
    assert Site.from_environment().all_devices == ("cpu",)


def test_one_device_and_several_together_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDQ_DEVICE", "cuda")
    monkeypatch.setenv("KDQ_DEVICES", "auto")
    with pytest.raises(RecipeError) as caught:
        Site.from_environment()
    assert str(caught.value) == (
        "KDQ_DEVICE is 'cuda' and KDQ_DEVICES is 'auto'; unset one of them: KDQ_DEVICE names one device, KDQ_DEVICES "
        "one or several"
    )
    assert Site.from_environment(device="cpu").all_devices == ("cpu",)
