"""A store for several machines: the read cache, what is half put, what is lost on the way, the network."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from kdq_core.errors import StoreError, TransientError
from kdq_core.recipe.site import Site
from kdq_core.store import beats, open_store
from kdq_core.store.hashing import sha256_of
from kdq_core.store.records import Checkpoint
from kdq_core.store.remote import RemoteStore
from kdq_core.store.store import Entry
from kdq_core.store.tidying import left_behind

KEY, OTHER = "ab" + "0" * 62, "cd" + "1" * 62
RECORD = Checkpoint(slot="teacher", weights="weights.bin", parameters=3)


def opened(home: Path, address: str) -> RemoteStore:
    store = open_store(Site(home=home, store_address=address))
    assert isinstance(store, RemoteStore)
    return store


@pytest.fixture
def drive(tmp_path: Path) -> str:
    return (tmp_path / "drive").as_uri()


@pytest.fixture
def one(tmp_path: Path, drive: str) -> RemoteStore:
    return opened(tmp_path / "one", drive)


@pytest.fixture
def two(tmp_path: Path, drive: str) -> RemoteStore:
    return opened(tmp_path / "two", drive)


def written(store: RemoteStore, key: str = KEY, content: bytes = b"weights") -> Entry:
    with store.draft(key) as draft:
        (draft / "weights.bin").write_bytes(content)
        return store.commit(draft, stage="train_teacher", key=key, parts={"a": 1}, record=RECORD)


def test_another_home_finds_the_entry_and_keeps_a_copy(one: RemoteStore, two: RemoteStore) -> None:
    entry = written(one)
    found = two.lookup(KEY)
    assert found is not None
    assert (found.digest, found.folder) == (entry.digest, two.root / "ab" / KEY)
    assert found.file("weights.bin").read_bytes() == b"weights"
    assert list(two.parts("train_teacher")) == [{"a": 1}]
    assert (two.root / "index" / "train_teacher" / KEY).is_file()


@pytest.mark.parametrize("harm", ["changed", "missing", "manifest", "cache deleted"])
def test_a_damaged_copy_is_fetched_again_without_a_word(one: RemoteStore, harm: str) -> None:
    file, told = written(one).file("weights.bin"), list[str]()
    if harm == "changed":
        file.write_bytes(b"weightz")
    elif harm == "missing":
        file.unlink()
    elif harm == "manifest":
        (file.parent / "manifest.json").write_text("{}")
    else:
        shutil.rmtree(one.root)
    found = one.get(KEY) if harm == "changed" else one.lookup_or_discard(KEY, told.append)
    assert found is not None
    assert found.file("weights.bin").read_bytes() == b"weights"
    assert told == []


def test_what_another_home_discards_or_writes_anew_is_not_read_from_the_copy(
    one: RemoteStore, two: RemoteStore
) -> None:
    written(one)
    two.discard(KEY)
    assert one.lookup(KEY) is None
    anew = written(two, content=b"anew")
    found = one.lookup(KEY)
    assert found is not None
    assert found.digest == anew.digest
    assert found.file("weights.bin").read_bytes() == b"anew"


def test_a_parent_is_read_from_the_copy_alone(one: RemoteStore, two: RemoteStore, monkeypatch: Any) -> None:
    written(one)
    assert two.lookup(KEY)

    def away(_name: str) -> None:
        raise TransientError("away")

    monkeypatch.setattr(two.objects, "read", away)
    assert two.get(KEY).file("weights.bin").read_bytes() == b"weights"
    with pytest.raises(TransientError, match="away"):
        two.lookup(KEY)


HALF = """
import os, signal, sys
from pathlib import Path
from kdq_core.recipe.site import Site
from kdq_core.store import beats, open_store
from kdq_core.store.records import Checkpoint

store = open_store(Site(home=Path(sys.argv[1]), store_address=sys.argv[2]))
with store.claim(sys.argv[3]), store.draft(sys.argv[3]) as draft:
    (draft / "weights.bin").write_bytes(b"half")
    store.objects.create = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    store.objects.check = lambda: None
    store.commit(draft, stage="train_teacher", key=sys.argv[3], parts={}, record=Checkpoint(
        slot="teacher", weights="weights.bin", parameters=3))
"""


def killed_in_mid_put(home: Path, address: str) -> None:
    child = subprocess.run([sys.executable, "-c", HALF, str(home), address, KEY], capture_output=True, timeout=60)
    assert child.returncode == -9, child.stderr.decode()


def test_an_entry_that_is_half_put_by_a_killed_process_is_not_there_and_its_files_are_found(
    one: RemoteStore, two: RemoteStore, drive: str
) -> None:
    killed_in_mid_put(one.root.parent, drive)
    assert two.lookup(KEY) is None
    assert [name.split("/")[0] for name in two.objects.listed("entries")] == [KEY]
    assert list(two.objects.listed("claims")) == [f"{KEY}.json"]
    with opened(one.root.parent, drive).claim(KEY, on_wait=lambda: pytest.fail("its holder of this home is dead")):
        assert two.lookup(KEY) is None
    assert two.objects.listed("claims") == {}
    written(two)
    assert left_behind(two).names == ()  # somebody may be putting them now
    left = left_behind(two, seconds=0)
    assert [name.split("/")[1] for name in left.names if name.startswith("entries/")] == [KEY]
    assert left.bytes == len(b"half")
    two.objects.remove(*left.names)
    assert opened(one.root.parent, drive).lookup(KEY) is not None
    assert left_behind(two, seconds=0).names == ()


def test_another_home_takes_over_the_claim_of_a_killed_process(
    one: RemoteStore, two: RemoteStore, drive: str, monkeypatch: Any
) -> None:
    for name, seconds in (("PATIENCE", 0.3), ("POLL", 0.02)):
        monkeypatch.setattr(beats, name, seconds)
    killed_in_mid_put(one.root.parent, drive)
    told = list[str]()
    with two.claim(KEY, on_wait=lambda: told.append("waits")):
        entry = written(two)
    assert told == ["waits"]
    assert one.lookup(KEY) is not None
    assert one.get(KEY).digest == entry.digest


def test_a_manifest_whose_answer_is_lost_makes_this_attempt_the_entry(
    one: RemoteStore, two: RemoteStore, monkeypatch: Any
) -> None:
    create = one.objects.create
    one.check()
    monkeypatch.setattr(one.objects, "create", lambda name, content: (create(name, content), None)[1])
    entry = written(one)
    assert one.lookup(KEY) == entry
    found = two.lookup(KEY)
    assert found is not None
    assert found.digest == entry.digest
    assert left_behind(one, seconds=0).names == ()


def test_an_entry_that_is_removed_while_it_is_fetched_is_a_miss(one: RemoteStore, two: RemoteStore) -> None:
    written(one)
    download = two.objects.download

    def late(name: str, file: Path) -> bool:
        one.discard(KEY)
        return download(name, file)

    two.objects.download = late  # type: ignore[method-assign]
    assert two.lookup(KEY) is None


def test_an_entry_that_is_mended_while_it_is_discarded_is_kept(one: RemoteStore, two: RemoteStore) -> None:
    written(one)
    (name,) = (name for name in one.objects.listed("entries") if not name.endswith(".json"))
    one.objects.write(f"entries/{name}", b"weightz")
    told, swap = list[str](), two.objects.swap

    def late(name: str, content: bytes | None, tag: str) -> str | None:
        one.discard(KEY)
        written(one, content=b"mended")
        return swap(name, content, tag)

    two.objects.swap = late  # type: ignore[method-assign]
    found = two.lookup_or_discard(KEY, told.append)
    assert found is not None
    assert found.file("weights.bin").read_bytes() == b"mended"
    assert told == []


def republished(store: RemoteStore, **changes: Any) -> None:
    """Another manifest with its seal."""
    name = f"entries/{KEY}/manifest.json"
    found = store.objects.read(name)
    assert found is not None
    sheet = json.loads(found[0])
    text = json.dumps(json.loads(sheet["manifest"]) | changes)
    sheet |= {"manifest": text, "seal": sha256_of(text.encode())} if "seal" not in changes else changes
    store.objects.write(name, json.dumps(sheet).encode())


@pytest.mark.parametrize(
    ("changes", "name", "fact"),
    [
        ({"key": OTHER}, "manifest.json", "it belongs to the entry cd1111111111, not to ab0000000000"),
        ({"seal": "0" * 64}, "manifest.json", "its sha256 is not 000000000000, as its seal says"),
        ({"record": {}}, "manifest.json", "it was written by another version of KDQ or of a plug-in"),
        ({"files": [{"path": "../../x", "sha256": "0" * 64, "bytes": 1}]}, "../../x", "it leads out of the entry"),
        ({"files": [{"path": "/etc/x", "sha256": "0" * 64, "bytes": 1}]}, "/etc/x", "it leads out of the entry"),
    ],
)
def test_a_manifest_that_cannot_be_trusted_is_damage_and_writes_nothing(
    one: RemoteStore, two: RemoteStore, drive: str, changes: dict[str, Any], name: str, fact: str
) -> None:
    written(one)
    republished(one, **changes)
    said, told = f"the file {name!r} of the store entry '{drive}/entries/{KEY}' is damaged: {fact}", list[str]()
    with pytest.raises(StoreError) as caught:
        two.lookup(KEY)
    assert str(caught.value) == f"{said}; KDQ computes it anew"
    with pytest.raises(StoreError):
        two.peek(KEY)
    assert list(two.manifests("train_teacher")) == []
    assert two.lookup_or_discard(KEY, told.append) is None
    assert told == [f"{said}; KDQ computes it anew"]
    assert [path for path in two.root.rglob("*") if path.is_file()] == []


def test_two_homes_that_commit_a_key_at_once_get_one_entry(tmp_path: Path, drive: str) -> None:
    race(tmp_path, drive, rounds=10)


def test_of_many_homes_that_commit_a_key_to_s3_at_once_one_wins_and_the_others_take_its_entry(
    tmp_path: Path, s3: str
) -> None:
    stores = [opened(tmp_path / str(number), s3) for number in range(5)]
    stores[0].check()
    with ThreadPoolExecutor(5) as pool:
        made = list(pool.map(lambda one: written(one, content=one.root.parent.name.encode()), stores))
    assert len({one.digest for one in made}) == 1
    assert len({one.file("weights.bin").read_bytes() for one in made}) == 1
    assert left_behind(stores[0], seconds=0).names == ()


@pytest.mark.rare
@pytest.mark.parametrize("kind", ["drive", "s3"])
def test_two_homes_that_commit_many_keys_at_once_get_one_entry_of_each(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    race(tmp_path, request.getfixturevalue(kind), rounds=200)


RACE = """
import sys, time
from pathlib import Path
from kdq_core.recipe.site import Site
from kdq_core.store import beats, open_store
from kdq_core.store.records import Checkpoint

home, address, rounds = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
store = open_store(Site(home=home, store_address=address))
store.check()
for number in range(rounds):
    key = f"{number:064x}"
    with store.draft(key) as draft:
        (draft / "weights.bin").write_text(f"{home.name} {number}")
        print(f"round {number}", flush=True)
        sys.stdin.readline()
        record = Checkpoint(slot="teacher", weights="weights.bin", parameters=3)
        entry = store.commit(draft, stage="train_teacher", key=key, parts={}, record=record)
        print(entry.digest, entry.file("weights.bin").read_text(), flush=True)
"""


def race(tmp_path: Path, address: str, rounds: int) -> None:
    """Two processes with a home each put the same key at the same moment, with other files, again and again."""
    command = [sys.executable, "-c", RACE]
    both = [
        subprocess.Popen([*command, str(tmp_path / name), address, str(rounds)], stdin=subprocess.PIPE,
                         stdout=subprocess.PIPE, text=True, env=os.environ.copy())
        for name in ("one", "two")
    ]  # fmt: skip
    winners = set()
    try:
        for number in range(rounds):
            assert answers(both) == [f"round {number}\n"] * 2
            go(both)
            first, second = answers(both)
            assert first == second
            winners.add(first.split()[1])
    finally:
        for one in both:
            one.kill()
            one.communicate()
    store = opened(tmp_path / "three", address)
    keys = {name.split("/")[0] for name in store.objects.listed("entries")}
    assert len(keys) == rounds
    assert left_behind(store, seconds=0).names == ()
    assert all(store.damage(key) is None for key in keys)
    if rounds >= 100:
        assert winners == {"one", "two"}


def go(both: list[subprocess.Popen[str]]) -> None:
    for one in both:
        assert one.stdin is not None
        one.stdin.write("\n")
        one.stdin.flush()


def answers(both: list[subprocess.Popen[str]]) -> list[str]:
    return [one.stdout.readline() for one in both if one.stdout is not None]
