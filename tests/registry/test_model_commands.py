import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from kdq_core.errors import RecipeError, StageError
from kdq_core.recipe.spec import Gate, Site
from kdq_core.store.records import ModelVersion
from kdq_flows.cli import app, main
from kdq_registry.environment import client
from kdq_registry.history import history
from kdq_registry.moving import move
from kdq_registry.promotion import promote


@pytest.fixture
def kdq(site: Site, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str]]:
    """Runs `kdq` on the site; gives exit code and stdout."""
    monkeypatch.setenv("KDQ_HOME", str(site.home))

    def run(*argv: str) -> tuple[int, str]:
        done = CliRunner().invoke(app, list(argv), catch_exceptions=False)
        return done.exit_code, done.stdout

    return run


def test_models_and_promote_speak_json(
    registered: Callable[..., ModelVersion], kdq: Callable[..., tuple[int, str]]
) -> None:
    registered()
    code, out = kdq("promote", "digits", "1", "--json")
    result = json.loads(out)
    assert (code, result["promoted"], result["before"], len(result["verdicts"])) == (0, True, None, 4)
    code, out = kdq("models", "--json")
    assert (code, json.loads(out)[0]["aliases"]) == (0, ["champion"])


def test_what_a_plugin_prints_before_a_promotion_corrupts_no_json(
    registered: Callable[..., ModelVersion], kdq: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kdq_core.plugins.catalog.Catalog.lifecycle", lambda *_, **__: [[print("hello") or "no"]])
    registered()
    code, out = kdq("promote", "digits", "1", "--json")
    assert (code, json.loads(out)["vetoes"]) == (1, ["no"])


def test_a_refused_promotion_lists_every_gate_and_fails(
    registered: Callable[..., ModelVersion], kdq: Callable[..., tuple[int, str]]
) -> None:
    registered(flips=3.0)
    code, out = kdq("promote", "digits", "1")
    assert code == 1
    words = [line.replace("│", " ").split() for line in out.splitlines()]
    assert ["int8", "parity_flips", "≤", "0", "3", "0", "not", "met"] in words
    assert ["int8", "coverage_macs", "≥", "1", "1", "1", "met"] in words
    assert out.splitlines()[-2:] == [
        "refused: int8 parity_flips ≤ 0 is not met: 3", "not promoted: 'champion' of 'digits' stays at nothing",
    ]  # fmt: skip


def test_promoting_the_champion_says_that_it_is(
    registered: Callable[..., ModelVersion], kdq: Callable[..., tuple[int, str]]
) -> None:
    registered()
    assert kdq("promote", "digits", "1")[1].endswith("'champion' of 'digits' is now version 1; before: nothing\n")
    code, out = kdq("promote", "digits", "1")
    assert code == 0
    assert out.splitlines()[-1] == "'champion' of 'digits' is version 1 already; nothing was changed"


def test_models_are_shown_as_a_table(
    registered: Callable[..., ModelVersion], kdq: Callable[..., tuple[int, str]]
) -> None:
    version = registered()
    code, out = kdq("models")
    assert code == 0
    assert version.file_sha256[:12] in out
    assert "0.97" in out


def test_an_empty_home_says_how_to_get_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kdq: Callable[..., tuple[int, str]]
) -> None:
    monkeypatch.setenv("KDQ_HOME", str(tmp_path / "empty"))
    assert kdq("models") == (
        0,
        f"no registered model in {str(tmp_path / 'empty')!r}; register one with `kdq run FILE`\n",
    )
    assert kdq("models", "--json") == (0, "[]\n")


def test_a_worse_version_needs_force_and_a_reason_and_a_rollback_brings_the_old_one_back(
    registered: Callable[..., ModelVersion], kdq: Callable[..., tuple[int, str]]
) -> None:
    samples = {share: {"top1": (np.arange(200) < share * 200).astype(np.uint8)} for share in (0.95, 0.5)}
    (
        registered(0, samples=samples[0.95]),
        registered(1, gates=(Gate(metric="top1", at_least=0.1),), samples=samples[0.5]),
    )
    assert kdq("promote", "digits", "1")[0] == 0
    code, out = kdq("promote", "digits", "2")
    assert code == 1
    assert "Against the champion, version 1" in out
    told = out[out.index("Against the champion") : out.index("refused: ")].replace("│", " ").split()
    assert {"top1", "0.5", "0.95", "McNemar", "worse"} <= set(told)  # a table, or a list where it does not fit
    assert "refused: int8 top1 0.5 is worse than the champion's 0.95 on the same 200 samples (McNemar, p = " in out
    with pytest.raises(RecipeError, match="--force needs --reason TEXT, which stays in the history"):
        kdq("promote", "digits", "2", "--force")
    with pytest.raises(RecipeError, match="--reason says why a promotion is forced; add --force, or leave it out"):
        kdq("promote", "digits", "2", "--reason", "x")
    code, out = kdq("promote", "digits", "2", "--force", "--reason", "the old one leaks")
    assert code == 0
    assert out.splitlines()[-2:] == [
        "'champion' of 'digits' is now version 2; before: version 1",
        "'previous' is now version 1; before: nothing",
    ]
    code, out = kdq("rollback", "digits", "--reason", "enough", "--json")
    assert (code, json.loads(out)["version"]) == (0, 1)
    rows = json.loads(kdq("history", "digits", "--json")[1])
    assert [(row["kind"], row["from"], row["to"]) for row in rows] == [
        ("move", None, 1), ("refuse", 1, 2), ("force", 1, 2), ("rollback", 2, 1),
    ]  # fmt: skip
    assert rows[2]["reason"].startswith("the old one leaks; int8 top1 0.5 is worse")
    head = rows[-1]["digest"]
    assert kdq("history", "digits", "--verify", "--head", head) == (
        0, f"the chain of 'digits' is whole; its head is {head}\nsigned by nobody: 4 entries (1-4)\n",
    )  # fmt: skip
    code, out = kdq("history", "digits", "--verify", "--head", "f" * 64)
    assert code == 1
    assert out.startswith(f"the chain has no entry '{'f' * 64}': it was cut off, or written anew\n")
    with pytest.raises(RecipeError, match="--head names an entry to look for, and only --verify looks for it"):
        kdq("history", "digits", "--head", head)
    assert "rollback" in kdq("history", "digits")[1]


def test_each_command_says_what_becomes_of_every_alias(
    registered: Callable[..., ModelVersion], kdq: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kdq_registry.blessing.answering", lambda *_: iter(()))

    def told(*words: str) -> list[str]:
        code, out = kdq(*words)
        assert code == 0, out
        return [line for line in out.splitlines() if line.startswith("'")]

    registered(0), registered(1), registered(2)
    assert told("promote", "digits", "1") == ["'champion' of 'digits' is now version 1; before: nothing"]
    assert told("promote", "digits", "2", "--to", "challenger") == [
        "'challenger' of 'digits' is now version 2; before: nothing"
    ]
    assert told("promote", "digits", "3", "--to", "challenger") == [
        "'challenger' of 'digits' is now version 3; before: version 2"
    ]
    assert told("promote", "digits", "2") == [
        "'champion' of 'digits' is now version 2; before: version 1",
        "'challenger' stays at version 3",
        "'previous' is now version 1; before: nothing",
    ]
    assert told("promote", "digits", "1", "--to", "challenger") == [
        "'challenger' of 'digits' is now version 1; before: version 3"
    ]
    assert told("rollback", "digits") == [
        "'champion' of 'digits' is now version 1; before: version 2",
        "'challenger' is now nothing; before: version 1, which is 'champion' now",
        "'previous' is now version 2; before: version 1",
    ]


def test_a_history_without_promotions_says_so(
    registered: Callable[..., ModelVersion], kdq: Callable[..., tuple[int, str]]
) -> None:
    registered()
    assert kdq("history", "digits") == (0, "nothing was promoted in 'digits' yet; `kdq promote digits VERSION` does\n")


def test_a_version_is_copied_to_another_model_seal_and_all(
    site: Site, registered: Callable[..., ModelVersion], kdq: Callable[..., tuple[int, str]]
) -> None:
    registered(0), registered(1)
    code, out = kdq("promote", "digits", "2", "--to", "prod.digits@champion")
    assert (code, out.splitlines()[-1]) == (0, "'champion' of 'prod.digits' is now version 1; before: nothing")
    assert kdq("promote", "digits", "2", "--to", "prod.digits@champion")[0] == 0  # the same bytes are copied once
    ours, theirs = client(site).get_model_version("digits", "2"), client(site).get_model_version("prod.digits", "1")
    assert (ours.tags["kdq.seal"], ours.source == theirs.source) == (theirs.tags["kdq.seal"], False)
    assert theirs.tags["kdq.copied_from"] == "digits/2"
    assert len(client(site).search_model_versions("name = 'prod.digits'")) == 1
    with pytest.raises(RecipeError) as caught:
        kdq("promote", "digits", "1", "--to", "champoin")
    assert str(caught.value) == (
        "a promotion moves 'champion' or 'challenger', not 'champoin'; did you mean 'champion'?; 'previous' follows "
        "'champion'"
    )
    with pytest.raises(RecipeError, match=r"names that end in '.promotions' are histories; name another"):
        kdq("promote", "digits", "1", "--to", "x.promotions@champion")


def test_a_model_is_pulled_verified_and_compared(
    registered: Callable[..., ModelVersion], kdq: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    version = registered(0)
    registered(1, top1=0.99)
    kdq("promote", "digits", "1")
    folder = tmp_path / "model"
    code, out = kdq("pull", "digits@champion", str(folder))
    assert (code, out.split(" files as sealed (")[0]) == (0, "version 1 of model 'digits': 11")
    assert hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest() == version.file_sha256
    with pytest.raises(RecipeError, match="is there already and is not an empty folder; name another, or remove it"):
        kdq("pull", "digits/1", str(folder))
    assert kdq("verify", str(folder))[0] == kdq("verify", "digits@champion")[0] == 0
    found = json.loads(kdq("verify", "digits/1", "--json")[1])
    assert (found["name"], found["files"], found["sha256"], found["signer"]) == ("digits", 11, version.file_sha256, "")
    (folder / "MLmodel").write_text("changed")
    with pytest.raises(StageError) as caught:
        kdq("verify", str(folder))
    assert str(caught.value).startswith(
        f"the files in {str(folder)!r} are not as registered: 'MLmodel' has the sha256 "
    )
    with pytest.raises(RecipeError) as wrong:
        kdq("verify", "digits")
    assert str(wrong.value) == (
        "'digits' names neither a folder nor a version; write a folder, NAME@ALIAS or NAME/NUMBER, such as "
        "'digits@champion' or 'digits/3'"
    )
    with pytest.raises(RecipeError, match="model 'digits' has no alias 'winner'"):
        kdq("pull", "digits@winner", str(tmp_path / "other"))
    rows = json.loads(kdq("diff", "digits", "1", "2", "--json")[1])
    assert rows[0] == {"part": "metric", "what": "int8 top1", "1": 0.97, "2": 0.99}
    assert {row["what"] for row in rows if row["part"] == "file"} >= {"model.onnx", "report.json"}
    assert kdq("diff", "digits", "1", "1") == (0, "versions 1 and 1 of 'digits' have the same seal\n")


def test_old_versions_that_were_never_promoted_are_listed_and_deleted_only_when_asked(
    site: Site, registered: Callable[..., ModelVersion], kdq: Callable[..., tuple[int, str]]
) -> None:
    registered(0), registered(1), registered(2)
    kdq("promote", "digits", "1")
    assert kdq("gc") == (0, "nothing to delete\n")
    rows = json.loads(kdq("gc", "--keep", "1", "--json")[1])
    assert [(row["what"], row["version"]) for row in rows] == [("version", 2)]
    assert len(client(site).search_model_versions("name = 'digits'")) == 3
    kdq("gc", "--keep", "1", "--delete")
    assert sorted(int(one.version) for one in client(site).search_model_versions("name = 'digits'")) == [1, 3]
    assert len(list((site.home / "mlflow" / "artifacts" / "digits" / "models").iterdir())) == 2
    assert kdq("verify", "digits@champion")[0] == 0


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ("promote digits 2", 1, "not promoted: 'champion' of 'digits' stays at version 1"),
        ("promote digit 2", 2, "no registered model named 'digit'; did you mean 'digits'? Registered: digits;"),
        ("promote digits 9", 2, "model 'digits' has no version 9. Versions: 1, 2; name one of these."),
        ("promote digits 2 --to champoin", 2, "not 'champoin'; did you mean 'champion'?"),
        ("promote digits 2 --to prod.digits", 2, "--to 'prod.digits' is no alias; write champion, challenger, or "
         "prod.digits@champion to copy the version into the model 'prod.digits'"),
        ("promote digits 2 --policy near.yaml", 2, "does not have; did you mean 'top1'?"),
        ("promote digits 2 --policy none.yaml", 2, "no policy file 'none.yaml'; check the path"),
        ("promote digits 1 --to challenger", 2, "version 1 of 'digits' is its champion, and a challenger is tried"),
        ("pull digits@winner out", 2, "model 'digits' has no alias 'winner'"),
        ("verify digits/9", 2, "model 'digits' has no version 9"),
        ("rollback digits", 2, "model 'digits' has no 'previous' to roll back to"),
    ],
)  # fmt: skip
def test_the_exit_code_tells_a_refusal_from_a_wrong_request_and_nothing_moves(
    words: str, code: int, said: str, site: Site, registered: Callable[..., ModelVersion], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    registered(0), registered(1, top1=0.1)
    promote(site, "digits", 1)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "near.yaml").write_text("gates: [{metric: topl, at_least: 0.5}]\n")
    found, told = called(site, words, monkeypatch, capsys)
    assert (found, said in told) == (code, True), told
    assert client(site).get_registered_model("digits").aliases == {"champion": 1}
    assert [row["kind"] for row in history(site, "digits")[0]] == ["move", "refuse"][: 2 if code == 1 else 1]


def test_who_lost_to_another_promotion_is_told_with_exit_code_3(
    site: Site, registered: Callable[..., ModelVersion], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    registered(0), registered(1)

    def second(*args: Any, **fields: Any) -> Any:
        monkeypatch.setattr("kdq_registry.promotion.move", move)
        promote(site, "digits", 1)  # between the decision and the entry
        return move(*args, **fields)

    monkeypatch.setattr("kdq_registry.promotion.move", second)
    code, told = called(site, "promote digits 2", monkeypatch, capsys)
    assert (code, "version 2 of 'digits' did not become 'champion': " in told) == (3, True)
    assert " promoted version 1 at the same moment (entry 1, " in told
    assert client(site).get_registered_model("digits").aliases == {"champion": 1}


def test_a_wrong_signing_key_is_told_before_a_version_is_copied(
    site: Site, registered: Callable[..., ModelVersion], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    registered(0)
    monkeypatch.setenv("KDQ_SIGNING_KEY", "nokey.pem")
    code, told = called(site, "promote digits 1 --to prod.digits@champion", monkeypatch, capsys)
    assert code == 2
    assert "KDQ_SIGNING_KEY names 'nokey.pem', which cannot be read" in told
    assert [model.name for model in client(site).search_registered_models()] == ["digits"]


def called(
    site: Site, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str]:
    """Exit code of a command, and all that it said on one line."""
    monkeypatch.setenv("KDQ_HOME", str(site.home))
    monkeypatch.setattr(sys, "argv", ["kdq", *words.split()])
    with pytest.raises(SystemExit) as caught:
        main()
    said = capsys.readouterr()
    return int(caught.value.code or 0), " ".join((said.out + said.err).split())
