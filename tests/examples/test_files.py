"""The files of the examples: where they are looked for, how they are fetched, and what is refused."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import pytest

from kdq_core.errors import PluginError
from kdq_examples import files
from kdq_examples.rebuild import intents
from kdq_examples.table import TABLE
from tests.examples.conftest import Listed, put

CONTENT = b"split,text\n" * 20
WRAPPED = gzip.compress(CONTENT, mtime=0)  # each process collects the same bytes


def refusal(path: Path, entry_name: str, why: str, expected: str, remedy: str) -> str:
    return re.escape(f"'{path}' is not the file {entry_name!r}: {why}; expected: {expected}; {remedy}")


def test_a_file_of_the_users_folder_is_given_whatever_wraps_its_content(listed: Listed, folders: Path) -> None:
    listed("small/rows.csv.gz", CONTENT)
    path = put(folders, "small/rows.csv.gz", CONTENT)
    assert files.file("small/rows.csv.gz") == path
    path.write_bytes(gzip.compress(CONTENT, compresslevel=1, mtime=7))
    assert files.file("small/rows.csv.gz") == path
    assert files.content("small/rows.csv.gz") == CONTENT


def test_a_file_is_looked_for_in_the_cache_after_the_users_folder(
    listed: Listed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed("small/rows.csv", CONTENT)
    path = put(tmp_path / "cache", "small/rows.csv", CONTENT)
    assert files.file("small/rows.csv") == path
    monkeypatch.delenv("KDQ_DATA_DIR")
    assert files.content("small/rows.csv") == CONTENT


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (CONTENT[:-5], "it ends after 215 bytes, so it is truncated"),
        (CONTENT.replace(b"text", b"tExt", 1), "its sha256 is [0-9a-f]{64}, so it was altered"),
        (CONTENT * 10_000, "it has more than 220 bytes"),
    ],
)
@pytest.mark.parametrize("name", ["small/rows.csv", "small/rows.csv.gz"])
def test_other_content_is_refused(listed: Listed, folders: Path, name: str, given: bytes, why: str) -> None:
    entry = listed(name, CONTENT)
    path = put(folders, name, given)
    of = "inflated bytes" if name.endswith(".gz") else "bytes"
    remedy = "put the file of https://publisher.example in its place"
    text = refusal(path, name, "WHY", f"220 {of} with sha256 {entry.sha256}", remedy).replace("WHY", why)
    with pytest.raises(PluginError, match=f"^{text}$"):
        files.file(name)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (WRAPPED[:-20], "it ends after 0 bytes, so it is truncated"),
        (b"no gzip at all", "it is no sound gzip file (Not a gzipped file (b'no'))"),
        (
            WRAPPED[:10] + b"\xff" * 30,
            "it is no sound gzip file (Error -3 while decompressing data: ",
        ),
    ],
)
def test_a_damaged_wrapper_is_refused(listed: Listed, folders: Path, given: bytes, why: str) -> None:
    listed("small/rows.csv.gz", CONTENT, address="https://publisher.example/rows.csv.gz")
    path = put(folders, "small/rows.csv.gz", b"")
    path.write_bytes(given)
    with pytest.raises(PluginError) as caught:
        files.file("small/rows.csv.gz")
    text = str(caught.value)
    assert text.startswith(f"'{path}' is not the file 'small/rows.csv.gz': {why}")
    assert text.endswith("; delete it, and KDQ fetches https://publisher.example/rows.csv.gz")


def test_a_bomb_is_inflated_no_further_than_the_table_says(
    listed: Listed, folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed("small/rows.csv.gz", CONTENT)
    put(folders, "small/rows.csv.gz", bytes(100_000_000))
    read: list[int] = []
    inflate = gzip.GzipFile.read

    def counted(self: gzip.GzipFile, size: int | None = -1) -> bytes:
        read.append(len(chunk := inflate(self, size)))
        return chunk

    monkeypatch.setattr(gzip.GzipFile, "read", counted)
    with pytest.raises(PluginError, match="it has more than 220 bytes; expected: 220 inflated bytes with sha256 "):
        files.file("small/rows.csv.gz")
    assert sum(read) <= 1 << 20


def test_a_changed_file_is_looked_at_again(listed: Listed, folders: Path) -> None:
    listed("small/rows.csv", CONTENT)
    path = put(folders, "small/rows.csv", CONTENT)
    files.file("small/rows.csv")
    path.write_bytes(CONTENT + b"one more")
    with pytest.raises(PluginError, match="has more than 220 bytes"):
        files.file("small/rows.csv")


def test_a_published_file_is_fetched_once_into_the_users_folder(
    listed: Listed, publisher: tuple[Path, str], folders: Path
) -> None:
    published, address = publisher
    listed("small/rows.csv.gz", CONTENT, address=address + "rows.csv.gz")
    source = put(published, "rows.csv.gz", CONTENT)
    assert files.file("small/rows.csv.gz") == folders / "small" / "rows.csv.gz"
    source.unlink()
    assert files.content("small/rows.csv.gz") == CONTENT
    assert [path.name for path in (folders / "small").iterdir()] == ["rows.csv.gz"]


def test_a_damaged_file_in_the_cache_is_fetched_anew(
    listed: Listed, publisher: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published, address = publisher
    monkeypatch.delenv("KDQ_DATA_DIR")
    listed("small/rows.csv", CONTENT, address=address + "rows.csv")
    put(published, "rows.csv", CONTENT)
    damaged = put(tmp_path / "cache", "small/rows.csv", CONTENT[:9])
    assert files.file("small/rows.csv") == damaged
    assert damaged.read_bytes() == CONTENT


def test_a_publisher_with_another_file_is_told_and_nothing_stays(
    listed: Listed, publisher: tuple[Path, str], folders: Path
) -> None:
    published, address = publisher
    entry = listed("small/rows.csv", CONTENT, address=address + "rows.csv")
    put(published, "rows.csv", CONTENT[:9])
    with pytest.raises(PluginError) as caught:
        files.file("small/rows.csv")
    assert str(caught.value) == (
        f"{address}rows.csv gave another file than 'small/rows.csv': it ends after 9 bytes, so it is truncated; "
        f"expected: 220 bytes with sha256 {entry.sha256}; try again, or set KDQ_DATA_DIR to the folder that has "
        "'small/rows.csv'"
    )
    assert list((folders / "small").iterdir()) == []


def test_a_file_that_cannot_be_fetched_names_both_ways_out(listed: Listed, publisher: tuple[Path, str]) -> None:
    _, address = publisher
    listed("small/rows.csv", CONTENT, address=address + "rows.csv")
    text = (
        f"'small/rows.csv' is not there, and KDQ could not fetch it from {address}rows.csv: 404 Client Error: File not "
        f"found for url: {address}rows.csv; set KDQ_DATA_DIR to the folder that has 'small/rows.csv', or allow this "
        "machine to download it"
    )
    with pytest.raises(PluginError, match=f"^{re.escape(text)}$"):
        files.file("small/rows.csv")


def test_a_file_without_an_address_is_only_the_users(listed: Listed) -> None:
    listed("small/rows.csv", CONTENT)
    text = (
        "'small/rows.csv' is not there, and KDQ cannot fetch it, because no published address has these bytes; set "
        "KDQ_DATA_DIR to the folder that has 'small/rows.csv' (made from the data of https://publisher.example, CC0)"
    )
    with pytest.raises(PluginError, match=f"^{re.escape(text)}$"):
        files.file("small/rows.csv")


def test_a_rebuilt_file_is_made_from_the_published_one(
    listed: Listed, publisher: tuple[Path, str], folders: Path
) -> None:
    published, address = publisher
    splits = {"oos_val": [["no, never", "oos"]], "val": [["hi", "greeting"]]}
    rows = b'split,text,label\nval,"no, never",oos\nval,hi,greeting\n'
    assert intents(json.dumps(splits).encode()) == rows
    listed("clinc150/data_full.json", json.dumps(splits).encode(), address=address + "data_full.json")
    listed("clinc150/clinc150.csv.gz", rows)
    put(published, "data_full.json", json.dumps(splits).encode())
    assert files.content("clinc150/clinc150.csv.gz") == rows
    assert (folders / "clinc150" / "clinc150.csv.gz").is_file()


def test_a_name_outside_of_the_table_is_refused(listed: Listed, folders: Path) -> None:
    listed("small/rows.csv", CONTENT)
    put(folders, "../secret", CONTENT)
    with pytest.raises(PluginError, match=r"^the examples have no file '\.\./secret'; they have: small/rows\.csv$"):
        files.file("../secret")


def test_a_folder_that_is_none_is_told(listed: Listed, monkeypatch: pytest.MonkeyPatch) -> None:
    listed("small/rows.csv", CONTENT)
    monkeypatch.setenv("KDQ_DATA_DIR", "/nowhere/at/all")
    text = "KDQ_DATA_DIR is '/nowhere/at/all', which is no folder; make it, or name the one that has the files"
    with pytest.raises(PluginError, match=f"^{text}$"):
        files.file("small/rows.csv")


def test_the_table_has_a_hash_a_size_and_a_licence_for_each_file() -> None:
    assert len(TABLE) >= 13
    for name, entry in TABLE.items():
        assert re.fullmatch(r"[0-9a-f]{64}", entry.sha256), name
        assert entry.size > 0, name
        assert entry.licence, name
        assert entry.source.startswith("https://"), name
        assert re.fullmatch(rf"https://\S+/{re.escape(Path(name).name)}|", entry.address), name
        assert (entry.inflated > 0) == name.endswith((".zip", ".whl")), name
