"""The claim of a key: one holder at a time; whoever waits can be stopped, and is told that it waits."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kdq_core.errors import StoreError
from kdq_core.store.store import Store


class StopError(Exception):
    """Ends a waiting."""


def stop() -> None:
    raise StopError


def test_a_key_has_one_claim_at_a_time_and_whoever_waits_is_told_and_can_be_stopped(tmp_path: Path) -> None:
    store, other, waits = Store(tmp_path), Store(tmp_path), list[str]()
    with store.claim("key") as claim:
        assert [os.fstat(number).st_ino for number in claim.descriptors] == [
            (tmp_path / "claims" / "key.lock").stat().st_ino
        ]
        with other.claim("another key"):
            pass
        with pytest.raises(StopError), other.claim("key", on_wait=lambda: waits.append("waits"), check=stop):
            pytest.fail("two hold the same claim")
    assert waits == ["waits"]
    with other.claim("key", on_wait=lambda: pytest.fail("nobody holds it")):
        pass
    assert list((tmp_path / "claims").iterdir()) == []


def test_a_claim_is_free_after_an_error_of_its_holder(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(StopError), store.claim("key"):
        stop()
    with store.claim("key", on_wait=lambda: pytest.fail("nobody holds it")):
        pass


def test_a_store_that_cannot_be_written_has_no_claims(tmp_path: Path) -> None:
    (tmp_path / "claims").write_text("")
    with pytest.raises(StoreError, match="cannot write to the store"), Store(tmp_path).claim("key"):
        pytest.fail("a claim without a lock file")


def test_the_claim_of_a_killed_process_is_swept_and_a_held_one_stays(tmp_path: Path) -> None:
    store = Store(tmp_path)
    left = tmp_path / "claims" / "left.lock"
    with store.claim("held"):
        left.touch()
        store.sweep()
        assert [one.name for one in (tmp_path / "claims").iterdir()] == ["held.lock"]
    left.touch()
    with store.claim("left", on_wait=lambda: pytest.fail("nobody holds it")):
        store.sweep()
        assert left.exists()
