"""A version whose files were changed is not promoted, and the reason is told and written down."""

from __future__ import annotations

import json
import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import onnx
import pytest

from kdq_core.errors import KdqError
from kdq_core.recipe.spec import Gate, Site
from kdq_core.store.hashing import canonical, sha256_file
from kdq_core.store.records import FileRef, ModelVersion
from kdq_registry.differences import differences
from kdq_registry.environment import client
from kdq_registry.fetching import fetch
from kdq_registry.history import history
from kdq_registry.listing import list_models
from kdq_registry.logged import SHA_TAG
from kdq_registry.policy import Policy
from kdq_registry.promotion import promote, rollback
from kdq_registry.pulling import pull, verify
from kdq_registry.registering import REPORT_TAG
from kdq_registry.seal import MANIFEST, SEAL_TAG, SIGNATURE, Seal
from kdq_registry.signing import sign, signer_of
from kdq_registry.watch import champion, golden_differences

REMEDY = "; promote another version, or register the model again"


def folder_of(site: Site, number: int = 1) -> Path:
    address = client(site).get_model_version_download_uri("digits", str(number))
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
        return open, ("exploded", "w")


HEARD: list[list[str]] = []
"""The list of the test that listens; Python removes no audit hook."""


def hears(event: str, found: tuple[object, ...]) -> None:
    if HEARD and event == "pickle.find_class":
        HEARD[-1].append(".".join(map(str, found)))


@pytest.fixture
def unpickled() -> Iterator[list[str]]:
    """The names of all that anybody unpickles in this process while the test runs."""
    sys.addaudithook(hears)
    HEARD.append([])
    yield HEARD[-1]
    HEARD.clear()


def smuggles_a_pickle(folder: Path) -> None:
    (folder / "python_model.pkl").write_bytes(pickle.dumps(Bomb()))


def smuggles_a_sealed_pickle(folder: Path) -> None:
    smuggles_a_pickle(folder)
    seals_again(folder)


def rewrites_the_flavour(folder: Path) -> None:
    text = (folder / "MLmodel").read_text()
    (folder / "MLmodel").write_text(text.replace("loader_module: mlflow.onnx", "loader_module: mlflow.pyfunc.model"))


def rewrites_and_seals_the_flavour(folder: Path) -> None:
    rewrites_the_flavour(folder)
    seals_again(folder)


def breaks_and_seals_the_description(folder: Path) -> None:
    (folder / "MLmodel").write_text("flavors: [")
    seals_again(folder)


def edits_the_report(folder: Path) -> None:
    text = (folder / "report.json").read_text()
    (folder / "report.json").write_text(text.replace("0.97", "0.99"))


def breaks_the_manifest(folder: Path) -> None:
    (folder / MANIFEST).write_text("{}")


def puts_a_link(folder: Path) -> None:
    (folder / "elsewhere.onnx").write_bytes((folder / "model.onnx").read_bytes())
    seals_again(folder)


def drops_the_gates(folder: Path) -> None:
    seal = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_bytes(canonical(seal | {"gates": []}))


def seals_again(folder: Path) -> None:
    """What somebody does who may write the files and knows KDQ."""
    seal = Seal.model_validate_json((folder / MANIFEST).read_bytes())
    names = [path.name for path in sorted(folder.iterdir()) if path.name not in (MANIFEST, SIGNATURE)]
    files = tuple(
        FileRef(path=name, sha256=sha256_file(folder / name), bytes=(folder / name).stat().st_size) for name in names
    )
    (folder / MANIFEST).write_bytes(canonical(seal.model_copy(update={"files": files}).model_dump(mode="json")))


def follow(site: Site) -> None:
    """Set the tags to what the changed files say."""
    folder = folder_of(site)
    client(site).set_model_version_tag("digits", "1", SEAL_TAG, sha256_file(folder / MANIFEST))
    client(site).set_model_version_tag("digits", "1", SHA_TAG, sha256_file(folder / "model.onnx"))


@pytest.mark.parametrize(
    ("tamper", "reason"),
    [
        (flips_a_byte, "'model.onnx' has the sha256 "),
        (deletes_the_file, "its file 'model.onnx' is missing"),
        (deletes_everything, "its file 'manifest.json' is missing, so nothing says which bytes KDQ registered"),
        (smuggles_a_pickle, "it has files that KDQ did not register: python_model.pkl"),
        (smuggles_a_sealed_pickle, "it has files that KDQ did not register: python_model.pkl"),
        (puts_a_link, "it has files that KDQ did not register: elsewhere.onnx"),
        (rewrites_the_flavour, "'MLmodel' has the sha256 "),
        (rewrites_and_seals_the_flavour,
         "its file 'MLmodel' describes another kind of model than KDQ registers (flavours onnx, python_function, "
         "loader 'mlflow.pyfunc.model', data 'model.onnx')"),
        (breaks_and_seals_the_description, "its file 'MLmodel' cannot be read (ParserError)"),
        (edits_the_report, "'report.json' has the sha256 "),
        (breaks_the_manifest, "its file 'manifest.json' cannot be read (Field required)"),
        (drops_the_gates, "its file 'manifest.json' was not written by KDQ"),
    ],
)  # fmt: skip
def test_a_version_that_was_tampered_with_is_refused_with_the_reason(
    tamper: Callable[[Path], None], reason: str, site: Site, registered: Callable[..., ModelVersion],
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    registered()
    tamper(folder_of(site))
    if (folder_of(site) / "model.onnx").exists() and tamper is not flips_a_byte:
        follow(site)
    with pytest.raises(KdqError) as caught:
        promote(site, "digits", 1, force="because I say so")
    assert str(caught.value).startswith(f"version 1 of model 'digits' cannot be promoted: {reason}")
    assert str(caught.value).endswith(REMEDY)
    assert client(site).get_registered_model("digits").aliases == {}
    assert not (tmp_path / "exploded").exists()
    (row,) = history(site, "digits")[0]
    assert (row["kind"], row["to"], row["reason"], row["aliases"]) == ("refuse", 1, str(caught.value), {})


def test_no_command_unpickles_anything(
    site: Site, registered: Callable[..., ModelVersion], unpickled: list[str], tmp_path: Path
) -> None:
    registered(0), registered(1)
    assert promote(site, "digits", 1).promoted
    assert promote(site, "digits", 2).promoted
    assert rollback(site, "digits").promoted
    pull(site, "digits@champion", tmp_path / "pulled")
    verify(site, str(tmp_path / "pulled")), verify(site, "digits/2")
    fetch(site, "digits/1")
    assert differences(site, "digits", 1, 2)
    golden_differences(champion(site, "digits@champion", tmp_path / "watched")[0])
    assert unpickled == []
    pickle.loads(pickle.dumps(Bomb))  # the fixture hears it
    assert unpickled == [f"{__name__}.Bomb"]


def test_registering_the_same_bytes_again_mends_damaged_files(
    site: Site, registered: Callable[..., ModelVersion]
) -> None:
    first = registered()
    flips_a_byte(folder_of(site))
    smuggles_a_pickle(folder_of(site))
    assert registered() == first
    assert promote(site, "digits", 1).promoted


def divided_by_zero(path: Path) -> None:
    model = onnx.load(path)
    model.graph.initializer.append(onnx.helper.make_tensor("zero", onnx.TensorProto.FLOAT, [1], [0.0]))
    last = model.graph.output[0].name
    for node in model.graph.node:
        node.output[:] = ["before" if name == last else name for name in node.output]
    model.graph.node.append(onnx.helper.make_node("Div", ["before", "zero"], [last]))
    onnx.save(model, path)


def with_other_weights(path: Path) -> None:
    model = onnx.load(path)
    weight = model.graph.initializer[0]
    weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) * 2, weight.name))
    onnx.save(model, path)


def with_nothing_in_it(path: Path) -> None:
    path.write_bytes(b"no model")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (divided_by_zero, "it does not answer its golden batch: it answers its golden batch with NaN or infinity"),
        (with_other_weights, "it answers its golden batch with another 'logits': the largest difference is "),
        (with_nothing_in_it, "it does not answer its golden batch: "),
    ],
)
def test_a_model_that_does_not_answer_as_sealed_is_refused(
    change: Callable[[Path], None], reason: str, site: Site, registered: Callable[..., ModelVersion]
) -> None:
    registered()
    change(folder_of(site) / "model.onnx")
    seals_again(folder_of(site))
    follow(site)
    with pytest.raises(KdqError) as caught:
        promote(site, "digits", 1)
    assert str(caught.value).startswith(f"version 1 of model 'digits' cannot be promoted: {reason}")


@pytest.mark.parametrize("tag", [SEAL_TAG, SHA_TAG])
def test_a_tag_that_contradicts_the_files_is_refused(
    tag: str, site: Site, registered: Callable[..., ModelVersion]
) -> None:
    registered()
    client(site).set_model_version_tag("digits", "1", tag, "0" * 64)
    with pytest.raises(KdqError, match=f"its tag '{tag}' says '000000000000', but its files say '[0-9a-f]{{12}}'; "):
        promote(site, "digits", 1)


def test_gates_come_from_the_seal_and_no_tag_changes_them(site: Site, registered: Callable[..., ModelVersion]) -> None:
    registered(top1=0.1)
    client(site).set_model_version_tag("digits", "1", "kdq.gates", "[]")
    client(site).set_model_version_tag("digits", "1", REPORT_TAG, '{"models": {}}')
    assert promote(site, "digits", 1).against == ("int8 top1 ≥ 0.95 x teacher top1 is not met: 0.1",)


def test_an_edited_tag_costs_the_list_one_row(site: Site, registered: Callable[..., ModelVersion]) -> None:
    registered(0), registered(1)
    client(site).set_model_version_tag("digits", "1", REPORT_TAG, '{"models": 3}')
    assert {row["version"]: row["top1"] for row in list_models(site)[0]} == {2: 0.97, 1: None}
    assert promote(site, "digits", 2).promoted


def test_a_policy_trusts_signers_and_no_others(site: Site, key: Path, registered: Callable[..., ModelVersion]) -> None:
    signed = site.model_copy(update={"signing_key": key})
    signer = signer_of(signed)
    registered(0), registered(1, site=signed)
    policy = Policy(signers=(signer,))
    with pytest.raises(KdqError) as caught:
        promote(site, "digits", 1, policy=policy)
    assert str(caught.value) == (
        f"version 1 of model 'digits' cannot be promoted: nobody signed it, and the policy trusts {signer[:12]}; set "
        "KDQ_SIGNING_KEY to the file of a trusted key and run `kdq run RECIPE --refresh register`, which signs the "
        "version; then promote it again"
    )
    with pytest.raises(
        KdqError, match=f"cannot be promoted: {signer[:12]} signed it, and the policy trusts 000000000000; set KDQ_SIG"
    ):
        promote(site, "digits", 2, policy=Policy(signers=("0" * 64,)))
    assert promote(site, "digits", 2, policy=policy).promoted
    promote(site, "digits", 1)
    assert rollback(site, "digits", policy=policy).version == 2
    with pytest.raises(KdqError, match="nobody signed it, and the policy trusts"):
        rollback(site, "digits", policy=policy)


def test_a_key_that_is_text_in_a_variable_signs_the_version_too(
    site: Site, key: Path, registered: Callable[..., ModelVersion], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KDQ_SIGNING_KEY_PEM", key.read_text())
    registered(0)
    policy = Policy(signers=(signer_of(site.model_copy(update={"signing_key": key})),))
    assert promote(site, "digits", 1, policy=policy).promoted


def test_a_seal_that_its_signer_did_not_sign_is_refused(
    site: Site, key: Path, registered: Callable[..., ModelVersion]
) -> None:
    signed = site.model_copy(update={"signing_key": key})
    registered(site=signed)
    folder, signer = folder_of(site), signer_of(signed)
    seals_again(folder)
    (folder / "report.json").write_text((folder / "report.json").read_text().replace("0.97", "0.99"))
    seals_again(folder)
    follow(site)
    with pytest.raises(KdqError, match=f"cannot be promoted: its seal is not what {signer[:12]} signed; "):
        promote(site, "digits", 1)
    text = {"signer": "0" * 64, "signature": sign(signed, (folder / MANIFEST).read_bytes())}
    (folder / SIGNATURE).write_bytes(canonical(text))
    with pytest.raises(KdqError, match="its seal is not what 000000000000 signed; "):
        promote(site, "digits", 1)
    (folder / SIGNATURE).write_text("{}")
    with pytest.raises(KdqError, match=r"its file 'manifest.sig' cannot be read; "):
        promote(site, "digits", 1)


def test_an_empty_set_of_gates_is_a_refusal(site: Site, registered: Callable[..., ModelVersion]) -> None:
    registered(gates=())
    refused = promote(site, "digits", 1)
    assert (refused.promoted, refused.against) == (
        False,
        ("it has no gates, so nothing says that it is good enough; write 'gates' into its recipe and run it again, or "
         "give a policy with --policy",),
    )  # fmt: skip
    assert not promote(site, "digits", 1, policy=Policy(gates=())).promoted
    assert promote(site, "digits", 1, policy=Policy(gates=(Gate(metric="top1", at_least=0.9),))).promoted


def test_the_seal_says_what_the_model_was_made_from(site: Site, registered: Callable[..., ModelVersion]) -> None:
    version = registered(samples={"top1": np.ones(5, np.uint8)})
    folder = folder_of(site)
    seal = Seal.model_validate_json((folder / MANIFEST).read_bytes())
    assert {file.path for file in seal.files} == {path.name for path in folder.iterdir()} - {MANIFEST}
    assert (seal.name, seal.model, seal.data, seal.parents) == (
        "digits", version.file_sha256, "b" * 64, {"teacher": "a" * 64},
    )  # fmt: skip
    assert seal.runtime == "onnxruntime"
    assert seal.lock["onnxruntime"]
    assert seal.recipe["workload"] == {"use": "digits", "options": {}}
    assert client(site).get_model_version("digits", "1").tags[SEAL_TAG] == sha256_file(folder / MANIFEST)
