"""A pulled folder is signed in the form that OpenSSF's model_signing verifies."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from kdq_core.errors import RecipeError
from kdq_core.recipe.spec import Site
from kdq_core.store.records import ModelVersion
from kdq_flows.cli import app
from kdq_registry.openssf import check_key


@pytest.fixture
def curve(tmp_path: Path) -> Path:
    """The file of an elliptic-curve key; its public key lies beside it."""
    path = tmp_path / "ec.pem"
    make = ["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", path]
    for words in (make, ["openssl", "ec", "-in", path, "-pubout", "-out", tmp_path / "ec.pub"]):
        subprocess.run(words, check=True, capture_output=True)
    return path


def test_a_missing_package_and_another_key_are_told_before_anything_is_pulled(
    curve: Path, key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Half(SimpleNamespace):
        """The package without one that it imports."""

        def __getattr__(self, name: str) -> object:
            raise ModuleNotFoundError(name="OpenSSL") if name == "signing" else AttributeError(name)

    for there, missing in ((None, "model_signing"), (Half(), "OpenSSL")):
        monkeypatch.setitem(sys.modules, "model_signing", there)  # type: ignore[arg-type]
        with pytest.raises(RecipeError) as caught:
            check_key(curve)
        assert str(caught.value) == (
            f"a signature for OpenSSF needs the Python package {missing!r}, which is not installed; run `pip install "
            "'kdq[openssf]'`"
        )
    monkeypatch.setitem(sys.modules, "model_signing", SimpleNamespace(signing=None))  # type: ignore[arg-type]
    check_key(curve)
    for path, told in (
        (key, "holds no unencrypted elliptic-curve key"),
        (key / "x", "cannot be read (Not a directory)"),
    ):
        with pytest.raises(RecipeError) as caught:
            check_key(path)
        assert f"{told}" in str(caught.value)
        assert "make one with `openssl ecparam -name prime256v1 -genkey -noout -out FILE`" in str(caught.value)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_model_signing_verifies_a_pulled_folder_and_finds_a_change(
    site: Site, curve: Path, registered: Callable[..., ModelVersion], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    verifying = pytest.importorskip("model_signing.verifying", reason="pip install 'kdq[openssf]'")
    monkeypatch.setenv("KDQ_HOME", str(site.home))
    registered()
    folder = tmp_path / "model"
    words = ["pull", "digits/1", str(folder), "--sign-with", str(curve)]
    assert CliRunner().invoke(app, words, catch_exceptions=False).exit_code == 0
    check = verifying.Config().use_elliptic_key_verifier(public_key=tmp_path / "ec.pub")
    check.verify(folder, tmp_path / "model.sig")
    (folder / "MLmodel").write_text("changed")
    with pytest.raises(ValueError, match=r"Signature mismatch: .*MLmodel"):
        check.verify(folder, tmp_path / "model.sig")
