"""A claim among machines is freed when its holder stops beating, by the clock of whoever waits."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from kdq_core.errors import TransientError
from kdq_core.store import beats
from kdq_core.store.atomic import objects_at
from kdq_core.store.beats import Heart, Token, beating
from kdq_core.store.objects import Objects

KEY = "ab" + "0" * 62
NAME = f"claims/{KEY}.json"


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("BEAT", 0.02), ("PATIENCE", 0.3), ("POLL", 0.01)):
        monkeypatch.setattr(beats, name, seconds)


@pytest.fixture
def objects() -> Objects:
    return objects_at(f"memory://{uuid.uuid4().hex}")


def held(objects: Objects, place: str = "here") -> Token:
    """A claim whose holder is dead."""
    token = Token(owner="dead", place=place, host="elsewhere", process=1)
    objects.create(NAME, token.text)
    return token


@contextmanager
def claim(
    objects: Objects, place: str = "there", told: list[str] | None = None, check: Callable[[], None] = lambda: None
) -> Iterator[Token]:
    waits = (lambda: told.append("waits")) if told is not None else (lambda: None)
    with beating(objects, KEY, place, on_wait=waits, check=check):
        yield holder(objects)


def holder(objects: Objects) -> Token:
    found = objects.read(NAME)
    assert found is not None
    return Token.model_validate_json(found[0])


def test_the_claim_of_a_holder_that_stopped_beating_is_taken_over_after_a_while(objects: Objects) -> None:
    held(objects)
    told, began = list[str](), time.monotonic()
    with claim(objects, told=told) as now:
        assert now.owner != "dead"
        assert time.monotonic() - began >= beats.PATIENCE
    assert told == ["waits"]
    assert objects.read(NAME) is None


def test_a_holder_that_beats_keeps_its_claim_though_others_wait_for_longer(objects: Objects) -> None:
    class TiredError(Exception):
        pass

    with claim(objects) as mine:
        end = time.monotonic() + 3 * beats.PATIENCE

        def check() -> None:
            if time.monotonic() > end:
                raise TiredError

        with pytest.raises(TiredError), claim(objects, "elsewhere", check=check):
            pytest.fail("two hold the same claim")
        assert holder(objects).owner == mine.owner
        assert holder(objects).beat > mine.beat


def test_a_dead_holder_of_the_same_home_is_replaced_at_once(objects: Objects, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beats, "PATIENCE", 1e9)
    held(objects, "here")
    told = list[str]()
    with claim(objects, "here", told):
        pass
    assert told == []


def test_a_claim_that_cannot_be_read_is_waited_for_and_taken_over(objects: Objects) -> None:
    objects.create(NAME, b"half a tok")
    told = list[str]()
    with claim(objects, told=told):
        pass
    assert told == ["waits"]


def test_of_many_that_wait_for_a_dead_holder_one_at_a_time_gets_the_claim(objects: Objects) -> None:
    held(objects)
    inside, most, turns = 0, 0, list[int]()

    def work(number: int) -> None:
        nonlocal inside, most
        with claim(objects, f"place {number}"):
            inside += 1
            most = max(most, inside)
            turns.append(number)
            time.sleep(0.02)
            inside -= 1

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for one in threads:
        one.start()
    for one in threads:
        one.join(20)
    assert (sorted(turns), most) == (list(range(8)), 1)


def test_a_holder_that_slept_finds_its_claim_lost_and_leaves_the_new_one_alone(objects: Objects) -> None:
    token = held(objects)
    found = objects.read(NAME)
    assert found is not None
    heart = Heart(objects, NAME, token, found[1])
    other = token.model_copy(update={"owner": "another"})
    assert objects.swap(NAME, other.text, found[1])
    heart.start()
    heart.join(5)
    assert heart.lost
    heart.end()
    assert holder(objects) == other


def test_a_beat_whose_answer_is_lost_loses_nothing(objects: Objects, monkeypatch: pytest.MonkeyPatch) -> None:
    swap, lost = objects.swap, list[bool]()

    def late(name: str, content: bytes | None, tag: str) -> str | None:
        done = swap(name, content, tag)
        if content is None or lost:
            return done
        lost.append(True)
        raise TransientError("the answer was lost")

    monkeypatch.setattr(objects, "swap", late)
    with claim(objects) as mine:
        until(lambda: holder(objects).beat > 2)
        assert holder(objects).owner == mine.owner
    assert lost == [True]
    assert objects.read(NAME) is None


def test_a_claim_whose_first_answer_is_lost_is_this_process_own(
    objects: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = objects.create
    monkeypatch.setattr(objects, "create", lambda name, content: (create(name, content), None)[1])
    told = list[str]()
    with claim(objects, told=told):
        pass
    assert told == []


def test_a_store_that_is_away_for_a_while_costs_no_claim(objects: Objects, monkeypatch: pytest.MonkeyPatch) -> None:
    swap, tries = objects.swap, list[str]()

    def away(name: str, _content: bytes | None, _tag: str) -> str | None:
        tries.append(name)
        raise TransientError("away")

    with claim(objects) as mine:
        with monkeypatch.context() as patched:
            patched.setattr(objects, "swap", away)
            until(lambda: len(tries) > 2)
        assert objects.swap == swap
        before = holder(objects).beat
        until(lambda: holder(objects).beat > before)
        assert holder(objects).owner == mine.owner


def test_a_claim_that_ends_while_the_store_is_away_is_given_back_when_it_answers(
    objects: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = list[str]()

    def away(name: str, _content: bytes | None, _tag: str) -> str | None:
        tries.append(name)
        raise TransientError("away")

    monkeypatch.setattr(beats, "LEAVE", 0.05)
    monkeypatch.setattr(beats, "PATIENCE", 20)
    with monkeypatch.context() as patched:
        with claim(objects):
            patched.setattr(objects, "swap", away)
        assert objects.read(NAME) is not None
        assert tries
    until(lambda: objects.read(NAME) is None)


def test_a_store_that_does_not_answer_holds_up_no_holder_for_long(
    objects: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer, swap = threading.Event(), objects.swap
    monkeypatch.setattr(objects, "swap", lambda *asked: answer.wait(20) and swap(*asked))
    monkeypatch.setattr(beats, "LEAVE", 0.1)
    with claim(objects):
        began = time.monotonic()
    assert time.monotonic() - began < 5
    answer.set()
    until(lambda: objects.read(NAME) is None)


def until(ready: Callable[[], bool], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end
        time.sleep(0.01)
