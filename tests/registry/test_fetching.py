"""The file of a registered version comes to the site once, and it is the one that was registered."""

import hashlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdq_core.errors import RecipeError, StageError
from kdq_core.recipe.spec import Site
from kdq_core.store.records import ModelVersion
from kdq_registry import fetching
from kdq_registry.environment import client
from kdq_registry.fetching import fetch
from kdq_registry.promotion import promote
from kdq_registry.pulling import sha256_of_version

Registered = Callable[..., ModelVersion]


def foreign(site: Site, folder: Path, save: Callable[[Path], None], name: str = "others") -> None:
    """Register a model folder as someone without KDQ would."""
    save(folder)
    mlflow = client(site)
    mlflow.create_registered_model(name)
    mlflow.create_model_version(name, folder.as_uri())


def test_a_version_and_an_alias_give_the_registered_bytes(
    site: Site, registered: Registered, onnx_file: Callable[[int], Path]
) -> None:
    registered(0), registered(1)
    client(site).set_registered_model_alias("digits", "champion", "2")
    for model, number in (("digits/1", 1), ("digits@champion", 2)):
        found, data = fetch(site, model), onnx_file(number - 1).read_bytes()
        assert (found.name, found.version, found.sha256) == ("digits", number, hashlib.sha256(data).hexdigest())
        assert found.path == site.home / "registered" / f"{found.sha256}.onnx"
        assert found.path.read_bytes() == data
    client(site).set_registered_model_alias("digits", "champion", "1")
    assert fetch(site, "digits@champion") == fetch(site, "digits/1")
    assert len(list((site.home / "registered").glob("*.onnx"))) == 2


def test_an_alias_that_was_moved_by_hand_is_told_and_the_chain_decides(site: Site, registered: Registered) -> None:
    registered(0), registered(1)
    fetch(site, "digits/1"), fetch(site, "digits/2")
    promote(site, "digits", 2)
    assert fetch(site, "digits@champion").said == fetch(site, "digits/2").said
    client(site).set_registered_model_alias("digits", "champion", "1")
    found = fetch(site, "digits@champion")
    assert found.version == 2
    assert found.said == (
        f"version 2 of 'digits', sha256 {found.sha256[:12]}; 'champion' of 'digits' was moved outside of KDQ, to "
        "version 1; the chain of promotions says version 2, so KDQ moved it back"
    )


def test_a_version_has_the_sha256_of_its_file_without_fetching_it(
    site: Site, registered: Registered, onnx_file: Callable[[int], Path], tmp_path: Path
) -> None:
    registered(0)
    client(site).set_registered_model_alias("digits", "champion", "1")
    sha256 = hashlib.sha256(onnx_file(0).read_bytes()).hexdigest()
    assert [sha256_of_version(site, asked) for asked in ("digits/1", "digits@champion")] == [sha256, sha256]
    assert not (site.home / "registered").exists()
    foreign(site, tmp_path / "m", lambda folder: folder.mkdir())
    with pytest.raises(RecipeError) as caught:
        sha256_of_version(site, "others/1")
    assert str(caught.value) == (
        "KDQ did not register version 'others/1': it has no tag 'kdq.sha256'; name a version of KDQ's"
    )
    with pytest.raises(RecipeError, match="no registered model named 'x'"):
        sha256_of_version(Site(home=tmp_path / "empty"), "x/1")


def test_a_file_is_downloaded_once_and_again_where_it_was_damaged(
    site: Site, registered: Registered, monkeypatch: pytest.MonkeyPatch
) -> None:
    registered()
    calls: list[str] = []
    download = fetching._download
    monkeypatch.setattr(fetching, "_download", lambda *words: calls.append("") or download(*words))
    first = fetch(site, "digits/1")
    assert fetch(site, "digits/1") == first
    assert len(calls) == 1
    first.path.write_bytes(b"half")
    assert hashlib.sha256(fetch(site, "digits/1").path.read_bytes()).hexdigest() == first.sha256
    assert len(calls) == 2


def test_what_is_there_is_told_without_importing_mlflow(site: Site, registered: Registered) -> None:
    registered(0), registered(1)
    client(site).set_registered_model_alias("digits", "champion", "2")
    found = [fetch(site, model) for model in ("digits/1", "digits@champion")]
    code = (
        "import sys\nfrom kdq_core.recipe.spec import Site\nfrom kdq_registry.fetching import fetch\n"
        "found = [fetch(Site(home=sys.argv[1]), model) for model in sys.argv[2:]]\n"
        "print([one.version for one in found], [one.sha256[:8] for one in found], 'mlflow' in sys.modules)"
    )
    words = [sys.executable, "-c", code, str(site.home), "digits/1", "digits@champion"]
    said = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert said == f"[1, 2] {[one.sha256[:8] for one in found]} False\n"
    client(site).delete_model_version("digits", "2")
    with pytest.raises(RecipeError, match=r"^model 'digits' has no alias 'champion'\. Aliases: none; name a version"):
        fetch(site, "digits@champion")


def test_a_file_that_was_changed_after_it_was_registered_is_refused(site: Site, registered: Registered) -> None:
    version = registered()
    (file,) = (site.home / "mlflow" / "artifacts").rglob("model.onnx")
    file.write_bytes(file.read_bytes() + b"\0")
    changed = hashlib.sha256(file.read_bytes()).hexdigest()
    with pytest.raises(StageError) as caught:
        fetch(site, "digits/1")
    assert str(caught.value) == (
        f"the file of version 1 of model 'digits' has the sha256 {changed[:12]}, but its tag 'kdq.sha256' says "
        f"{version.file_sha256[:12]}: it was changed after it was registered; use another version, or register the "
        "model again"
    )
    assert not list((site.home / "registered").glob("*.onnx"))


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (
            "digit/1",
            "no registered model named 'digit'; did you mean 'digits'? Registered: digits; "
            "name one of these (`kdq models` lists their versions).",
        ),
        ("digits/3", "model 'digits' has no version 3. Versions: 1; name one of these."),
        (
            "digits@champio",
            "model 'digits' has no alias 'champio'; did you mean 'champion'? Aliases: champion; "
            "name one of these, or a version as digits/NUMBER (`kdq models` lists them), or make one 'champion' with "
            "`kdq promote`.",
        ),
    ],
)
def test_what_is_not_registered_is_named_with_what_is(
    site: Site, registered: Registered, model: str, told: str
) -> None:
    registered()
    client(site).set_registered_model_alias("digits", "champion", "1")
    with pytest.raises(RecipeError) as caught:
        fetch(site, model)
    assert str(caught.value) == told


def test_a_site_without_a_registry_has_no_models_and_gets_none_made(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        fetch(Site(home=tmp_path), "digits/1")
    assert str(caught.value) == "no registered model named 'digits'. Registered: none; `kdq run FILE` registers one."
    assert not list(tmp_path.iterdir())


def test_a_model_from_elsewhere_is_taken_with_the_weights_beside_its_file(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow puts weights of 1 kB and more into files beside the model's, unless it is told not to."""
    import mlflow.onnx
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    weight = np.random.default_rng(3).normal(size=(64, 10)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 10])],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    folder = tmp_path / "from elsewhere"
    foreign(site, folder, lambda path: mlflow.onnx.save_model(model, path, pip_requirements=["onnxruntime"]))
    assert (folder / "model.onnx").stat().st_size < weight.nbytes
    found = fetch(site, "others/1")
    x = np.ones((3, 64), np.float32)
    session = onnxruntime.InferenceSession(found.path.read_bytes(), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"x": x})[0], x @ weight, rtol=1e-5)
    assert onnx.load(found.path, load_external_data=False).graph.initializer[0].raw_data
    monkeypatch.setattr(fetching, "_download", None)  # its digest is known by now, though no tag says it
    assert fetch(site, "others/1") == found


def test_a_model_that_is_no_onnx_is_refused_with_its_flavors(site: Site, tmp_path: Path) -> None:
    def save(path: Path) -> None:
        from mlflow.models import Model

        path.mkdir()
        described: Any = Model()
        described.add_flavor("python_function", loader_module="mlflow.sklearn")
        described.add_flavor("sklearn", serialization_format="cloudpickle")
        described.save(str(path / "MLmodel"))

    foreign(site, tmp_path / "model", save)
    with pytest.raises(RecipeError) as caught:
        fetch(site, "others/1")
    assert str(caught.value) == (
        "version 1 of model 'others' is asked for as a teacher, and it has no flavor 'onnx'; it has: python_function, "
        "sklearn. Export the model to ONNX and register that (mlflow.onnx), or give its weights as source: checkpoint."
    )
