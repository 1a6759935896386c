"""The chain of promotions: appended by compare-and-set, hashed, signed; aliases follow it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kdq_core.errors import KdqError, LostError, RecipeError, StageError
from kdq_core.recipe.spec import Site
from kdq_core.store.hashing import canonical
from kdq_flows.cli import app
from kdq_registry import aliases, moving
from kdq_registry.chain import append, head, recent
from kdq_registry.entries import DIGEST_TAG, ENTRY_TAG, EXPECTED_TAG, SIGNATURE_TAG, Entry, new_entry, wrong_with
from kdq_registry.environment import client
from kdq_registry.history import Verified, history, verify_history
from kdq_registry.listing import list_models
from kdq_registry.promotion import promote
from kdq_registry.signing import signer_of

CHAIN = "digits.promotions"


@pytest.fixture
def bare(site: Site) -> Site:
    """A model with five versions that have no files: what is promoted does not matter to the chain."""
    mlflow = client(site)
    mlflow.create_registered_model("digits")
    for number in range(5):
        mlflow.create_model_version("digits", f"kdq://{number}", await_creation_for=0)
    return site


def moved(site: Site, to: int, *, seen: object = "head", kind: str = "move") -> Entry:
    mlflow = client(site)
    link = head(mlflow, "digits") if seen == "head" else seen
    return moving.move(site, mlflow, "digits", link, kind=kind, alias="champion", to=to).entry  # type: ignore[arg-type]


def aliases_of(site: Site) -> dict[str, int]:
    return aliases.read_aliases(client(site), "digits")


def test_each_entry_names_the_one_before_and_the_aliases_follow_the_last(bare: Site) -> None:
    first, second, third = moved(bare, 1), moved(bare, 2), moved(bare, 3)
    assert (first.previous, second.previous, third.previous) == ("none", first.digest, second.digest)
    assert [entry.sequence for entry in (first, second, third)] == [1, 2, 3]
    assert aliases_of(bare) == third.aliases == {"champion": 3, "previous": 2}
    whole = Verified(head=third.digest, unsigned=(1, 2, 3))
    assert verify_history(bare, "digits") == verify_history(bare, "digits", second.digest[:12]) == whole


def test_of_two_who_saw_the_same_head_the_second_is_told_whom_it_lost_to(bare: Site) -> None:
    moved(bare, 1)
    seen = head(client(bare), "digits")
    won = moved(bare, 2, seen=seen)
    with pytest.raises(LostError) as caught:
        moved(bare, 3, seen=seen)
    assert str(caught.value) == (
        f"version 3 of 'digits' did not become 'champion': {won.actor} promoted version 2 at the same moment (entry 2, "
        f"{won.time}); look at `kdq history digits`, then promote again if you still want to"
    )
    assert caught.value.exit_code == 3
    assert aliases_of(bare) == {"champion": 2, "previous": 1}
    rows, _ = history(bare, "digits")
    assert [(row["to"], row["lost_to"]) for row in rows] == [(1, None), (2, None), (3, 2)]
    assert verify_history(bare, "digits").wrong == ()
    moved(bare, 4)
    assert aliases_of(bare) == {"champion": 4, "previous": 2}


def test_who_saw_an_empty_chain_loses_to_a_move_behind_a_refusal(bare: Site) -> None:
    """The move also set the alias before the loser read it, so that both see the same aliases."""
    moving.refuse(bare, client(bare), "digits", alias="champion", to=4, reason="gates")
    won = moved(bare, 2)
    with pytest.raises(LostError) as caught:
        moved(bare, 3, seen=None)
    assert f"{won.actor} promoted version 2 at the same moment (entry 2, " in str(caught.value)
    assert aliases_of(bare) == {"champion": 2}


def test_a_refusal_in_between_takes_nothing_from_a_promotion(bare: Site) -> None:
    moved(bare, 1)
    seen = head(client(bare), "digits")
    moving.refuse(bare, client(bare), "digits", alias="champion", to=4, reason="worse")
    assert moved(bare, 2, seen=seen).sequence == 3
    assert [row["kind"] for row in history(bare, "digits")[0]] == ["move", "refuse", "move", "move"]  # one try lost


def test_an_alias_that_was_moved_by_hand_is_told_and_moved_back(bare: Site) -> None:
    moved(bare, 1), moved(bare, 2)
    client(bare).set_registered_model_alias("digits", "champion", "1")
    rows, notes = list_models(bare)
    assert notes == [
        "'champion' of 'digits' was moved outside of KDQ, to version 1; the chain of promotions says version 2, so KDQ "
        "moved it back"
    ]
    assert aliases_of(bare) == {"champion": 2, "previous": 1}
    last = history(bare, "digits")[0][-1]
    assert (last["kind"], last["from"], last["to"]) == ("outside", 2, 1)
    assert list_models(bare)[1] == []
    assert {row["name"] for row in rows} == {"digits"}


def test_a_champion_that_was_deleted_is_told_and_another_can_be_promoted(bare: Site) -> None:
    moved(bare, 1), moved(bare, 2)
    client(bare).delete_model_version("digits", "2")
    for _ in range(2):  # reading it again writes nothing
        assert list_models(bare)[1] == [
            "version 2 of 'digits', which was 'champion', was deleted in MLflow; promote another one"
        ]
    assert len(history(bare, "digits")[0]) == 2
    moved(bare, 3)
    assert aliases_of(bare) == {"champion": 3, "previous": 1}
    assert list_models(bare)[1] == []


def test_what_a_killed_promotion_left_is_completed_by_whoever_reads(
    bare: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved(bare, 1)
    with monkeypatch.context() as killed:
        killed.setattr(moving, "settle", lambda *_: None)
        moved(bare, 2)
    assert aliases_of(bare) == {"champion": 1}
    assert list_models(bare)[1] == []  # its writer may still be at it
    monkeypatch.setattr(aliases, "IN_FLIGHT_SECONDS", -1)
    assert list_models(bare)[1] == [
        "a promotion of 'digits' did not finish: 'champion' stood at version 1; it is version 2 now",
        "a promotion of 'digits' did not finish: 'previous' stood at no version; it is version 1 now",
    ]
    assert aliases_of(bare) == {"champion": 2, "previous": 1}
    assert list_models(bare)[1] == []
    assert history(bare, "digits")[0][-1]["kind"] == "repair"


def edits_an_entry(site: Site) -> None:
    entry = json.loads(client(site).get_model_version(CHAIN, "2").tags[ENTRY_TAG])
    client(site).set_model_version_tag(CHAIN, "2", ENTRY_TAG, canonical(entry | {"actor": "nobody@nowhere"}).decode())


def deletes_an_entry(site: Site) -> None:
    client(site).delete_model_version(CHAIN, "2")


def damages_an_entry(site: Site) -> None:
    client(site).set_model_version_tag(CHAIN, "2", ENTRY_TAG, "nonsense")


@pytest.mark.parametrize(
    ("tamper", "refused", "told"),
    [
        (edits_an_entry, "version 2 of 'digits.promotions' was changed: its digest is another",
         "version 2 of 'digits.promotions' was changed: its digest is another"),
        (damages_an_entry, "version 2 of 'digits.promotions' holds no entry that can be read",
         "version 2 of 'digits.promotions' holds no entry that can be read"),
        (deletes_an_entry, "version 3 of 'digits.promotions' follows an entry that is missing",
         "version 2 of 'digits.promotions' was deleted"),
    ],
)  # fmt: skip
def test_a_chain_that_was_tampered_with_moves_nothing_and_says_what_is_wrong(
    tamper: Callable[[Site], None], refused: str, told: str, bare: Site
) -> None:
    last = [moved(bare, number) for number in (1, 2, 3)][-1]
    tamper(bare)
    with pytest.raises(StageError) as caught:
        moved(bare, 4)
    assert str(caught.value) == (
        f"the chain of promotions of model 'digits' is broken: {refused}; nothing was moved. `kdq history digits "
        "--verify` lists all that is wrong; restore the database from a backup"
    )
    assert aliases_of(bare) == {"champion": 3, "previous": 2}
    wrong = verify_history(bare, "digits", last.digest).wrong
    assert told in wrong
    assert f"the chain has no entry {last.digest!r}: it was cut off, or written anew" in wrong


def test_a_chain_that_was_cut_off_is_found_by_the_digest_that_somebody_kept(bare: Site) -> None:
    moved(bare, 1)
    last = moved(bare, 2)
    client(bare).delete_model_version(CHAIN, "2")
    client(bare).set_registered_model_alias("digits", "champion", "1")
    client(bare).delete_registered_model_alias("digits", "previous")
    assert verify_history(bare, "digits").wrong == ()
    assert verify_history(bare, "digits", last.digest).wrong == (
        f"the chain has no entry {last.digest!r}: it was cut off, or written anew",
    )


def test_a_deleted_winner_does_not_let_a_loser_win(bare: Site) -> None:
    moved(bare, 1)
    seen = head(client(bare), "digits")
    moved(bare, 2, seen=seen)
    with pytest.raises(LostError):
        moved(bare, 3, seen=seen)
    client(bare).delete_model_version(CHAIN, "2")
    with pytest.raises(StageError, match=r"version 2 of 'digits.promotions' was deleted; nothing was moved"):
        head(client(bare), "digits")


def test_a_key_may_come_as_text_in_a_variable(bare: Site, key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    by_file = moved(bare.model_copy(update={"signing_key": key}), 1).signer
    assert moved(bare, 2).signer == ""
    monkeypatch.setenv("KDQ_SIGNING_KEY_PEM", key.read_text())
    assert moved(bare, 3).signer == by_file
    assert wrong_with("digits", client(bare).get_model_version(CHAIN, "3").tags) == ""
    monkeypatch.setenv("KDQ_SIGNING_KEY_PEM", "secret")
    with pytest.raises(RecipeError) as caught:
        moved(bare, 4)
    assert str(caught.value) == (
        "the text in KDQ_SIGNING_KEY_PEM is no unencrypted Ed25519 key in PEM form; make one with `openssl genpkey "
        "-algorithm ed25519 -out FILE`"
    )


def test_entries_are_signed_where_a_key_is_given(bare: Site, key: Path) -> None:
    signed = bare.model_copy(update={"signing_key": key})
    entry = moved(signed, 1)
    tags = client(bare).get_model_version(CHAIN, "1").tags
    assert len(entry.signer) == 64
    assert wrong_with("digits", tags) == ""
    wrong = f"has no signature of its signer {entry.signer[:12]}"
    assert wrong_with("digits", {k: v for k, v in tags.items() if k != SIGNATURE_TAG}) == wrong
    forged = entry.model_copy(update={"actor": "root@elsewhere"})
    assert wrong_with("digits", tags | {ENTRY_TAG: forged.data.decode(), DIGEST_TAG: forged.digest}) == wrong
    assert wrong_with("other", tags) == "is an entry of model 'digits'"


def test_a_verified_history_says_who_signed_which_entries(
    bare: Site, key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signed = bare.model_copy(update={"signing_key": key})
    for number, site in enumerate((signed, signed, bare, signed), start=1):
        moved(site, number)
    monkeypatch.setenv("KDQ_HOME", str(bare.home))
    done = CliRunner().invoke(app, ["history", "digits", "--verify"], catch_exceptions=False)
    assert (done.exit_code, done.stdout.splitlines()[1:]) == (
        0, [f"signed by {signer_of(signed)}: 3 entries (1-2, 4)", "signed by nobody: 1 entry (3)"]
    )  # fmt: skip
    done = CliRunner().invoke(app, ["history", "digits", "--verify", "--json"], catch_exceptions=False)
    found = json.loads(done.stdout)
    assert (found["wrong"], found["signed"], found["unsigned"]) == ([], {signer_of(signed): [1, 2, 4]}, [3])


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "which cannot be read (No such file or directory); name the file of an Ed25519 key in PEM form, or make "
            "one with `openssl genpkey -algorithm ed25519 -out FILE`"),
     ("hello", "which is no unencrypted Ed25519 key in PEM form; make one with `openssl genpkey -algorithm ed25519 "
               "-out FILE`")],
)  # fmt: skip
def test_a_key_that_is_none_is_told_before_anything_moves(
    text: str | None, message: str, bare: Site, tmp_path: Path
) -> None:
    path = tmp_path / "wrong.pem"
    if text:
        path.write_text(text)
    with pytest.raises(RecipeError) as caught:
        moved(bare.model_copy(update={"signing_key": path}), 1)
    assert str(caught.value) == f"KDQ_SIGNING_KEY names {str(path)!r}, {message}"
    assert aliases_of(bare) == {}


def test_a_name_that_a_history_needs_is_refused(bare: Site) -> None:
    moved(bare, 1)
    with pytest.raises(KdqError, match=r"no registered model named 'digits.promotions'. Registered: digits; name"):
        promote(bare, CHAIN, 1)


def test_the_head_is_found_without_reading_the_whole_chain(bare: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdq_registry.chain.PAGE", 3)
    last = [moved(bare, 1 + number % 5) for number in range(8)][-1]
    links = recent(client(bare), "digits")
    assert [link.entry.sequence for link in links] == [6, 7, 8]
    assert links[-1].digest == last.digest


def test_an_append_that_was_written_before_its_error_is_not_written_twice(
    bare: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    make, failed = MlflowClient.create_model_version, []

    def fails_afterwards(*args: object, **kwargs: object) -> object:
        made = make(*args, **kwargs)  # type: ignore[arg-type]
        if not failed:
            failed.append(made)
            raise MlflowException("database is locked")
        return made

    monkeypatch.setattr(MlflowClient, "create_model_version", fails_afterwards)
    mlflow = client(bare)
    entry = new_entry(
        bare, "digits", None, kind="move", alias="champion", aliases={"champion": 1}, came_from=None, to=1
    )
    assert append(bare, mlflow, entry).digest == entry.digest
    assert len(mlflow.search_model_versions(f"name = '{CHAIN}'")) == 1
    assert mlflow.get_model_version(CHAIN, "1").tags[EXPECTED_TAG] == "none"
