"""A version whose files were changed is not promoted, and the reason is told."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote

import onnx
import pytest

from kdq_core.errors import KdqError
from kdq_core.recipe.spec import Site
from kdq_core.store.records import ModelVersion
from kdq_registry.environment import client
from kdq_registry.promotion import list_models, promote
from kdq_registry.registering import GATES_TAG, REPORT_TAG
from kdq_registry.versions import SHA_TAG

REMEDY = "; promote another version, or register the model again"


def folder_of(site: Site) -> Path:
    address = client(site).get_model_version_download_uri("digits", "1")
    return Path(unquote(address.removeprefix("file://")))


def flips_a_byte(folder: Path) -> None:
    data = bytearray((folder / "model.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "model.onnx").write_bytes(data)


def deletes_the_file(folder: Path) -> None:
    (folder / "model.onnx").unlink()


def deletes_everything(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return open, ("exploded",)


def smuggles_a_pickle(folder: Path) -> None:
    (folder / "python_model.pkl").write_bytes(pickle.dumps(Bomb()))


def rewrites_the_flavour(folder: Path) -> None:
    text = (folder / "MLmodel").read_text()
    (folder / "MLmodel").write_text(text.replace("loader_module: mlflow.onnx", "loader_module: mlflow.pyfunc.model"))


def breaks_the_description(folder: Path) -> None:
    (folder / "MLmodel").write_text("flavors: [")


@pytest.mark.parametrize(
    ("tamper", "reason"),
    [
        (flips_a_byte, "'model.onnx' has the sha256 "),
        (deletes_the_file, "its file 'model.onnx' is missing"),
        (deletes_everything, "its file 'MLmodel' is missing"),
        (smuggles_a_pickle, "it has files that KDQ did not register: python_model.pkl"),
        (rewrites_the_flavour,
         "its file 'MLmodel' describes another kind of model than KDQ registers (flavours onnx, python_function, "
         "loader 'mlflow.pyfunc.model', data 'model.onnx')"),
        (breaks_the_description, "its file 'MLmodel' cannot be read (ParserError)"),
    ],
)  # fmt: skip
def test_a_version_that_was_tampered_with_is_refused_with_the_reason(
    tamper: Callable[[Path], None], reason: str, site: Site, registered: Callable[..., ModelVersion],
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    registered()
    tamper(folder_of(site))
    with pytest.raises(KdqError) as caught:
        promote(site, "digits", 1)
    assert str(caught.value).startswith(f"version 1 of model 'digits' cannot be promoted: {reason}")
    assert str(caught.value).endswith(REMEDY)
    assert client(site).get_registered_model("digits").aliases == {}
    assert not (tmp_path / "exploded").exists()


def test_a_model_that_does_not_answer_its_example_is_refused(
    site: Site, registered: Callable[..., ModelVersion]
) -> None:
    registered()
    path = folder_of(site) / "model.onnx"
    model = onnx.load(path)
    zero = onnx.helper.make_tensor("zero", onnx.TensorProto.FLOAT, [1], [0.0])
    model.graph.initializer.append(zero)
    last = model.graph.output[0].name
    for node in model.graph.node:
        node.output[:] = ["before" if name == last else name for name in node.output]
    model.graph.node.append(onnx.helper.make_node("Div", ["before", "zero"], [last]))
    onnx.save(model, path)
    from kdq_core.store.hashing import sha256_file

    client(site).set_model_version_tag("digits", "1", SHA_TAG, sha256_file(path))
    with pytest.raises(KdqError) as caught:
        promote(site, "digits", 1)
    assert str(caught.value) == (
        "version 1 of model 'digits' cannot be promoted: it does not answer its example: it answers its example with "
        f"NaN or infinity{REMEDY}"
    )


@pytest.mark.parametrize(
    ("tag", "value", "message"),
    [
        (GATES_TAG, "[]",
         "version 1 of model 'digits' has no gates, so nothing says that it is good enough; write 'gates' into its "
         "recipe and run it again"),
        (GATES_TAG, "nonsense",
         "version 1 of model 'digits' has a damaged tag 'kdq.gates' or 'kdq.report' (Invalid JSON: "),
        (REPORT_TAG, '{"models": 3}',
         "version 1 of model 'digits' has a damaged tag 'kdq.gates' or 'kdq.report' ("),
    ],
)  # fmt: skip
def test_an_edited_tag_is_refused_and_costs_the_list_one_row(
    tag: str, value: str, message: str, site: Site, registered: Callable[..., ModelVersion]
) -> None:
    registered(0), registered(1)
    client(site).set_model_version_tag("digits", "1", tag, value)
    with pytest.raises(KdqError) as caught:
        promote(site, "digits", 1)
    assert str(caught.value).startswith(message)
    rows = {row["version"]: row["top1"] for row in list_models(site)}
    assert rows == {2: 0.97, 1: None if tag == REPORT_TAG else 0.97}
    assert promote(site, "digits", 2).promoted
