"""Archives of the examples: members that escape, links, bombs and damage are refused."""

from __future__ import annotations

import io
import re
import stat
import zipfile
from pathlib import Path

import pytest

from kdq_core.errors import PluginError
from kdq_examples import files
from tests.examples.conftest import Listed, put

NAME = "sounds/all.zip"


def packed(*members: tuple[str | zipfile.ZipInfo, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return out.getvalue()


def refused(listed: Listed, folder: Path, data: bytes, *, inflated: int, why: str) -> None:
    """The archive has the hash of the table, and is refused all the same."""
    entry = listed(NAME, data, inflated=inflated)
    path = put(folder, NAME, data)
    text = (
        f"'{path}' is not the file {NAME!r}: {why}; expected: {entry.expected}; put the file of "
        "https://publisher.example in its place"
    )
    with pytest.raises(PluginError, match=f"^{re.escape(text)}$"):
        files.archive(NAME)


def test_the_members_of_an_archive_are_given_by_name(listed: Listed, folders: Path) -> None:
    data = packed(("a/", b""), ("a/0.wav", b"one"), ("a/1.wav", b"three"))
    listed(NAME, data, inflated=8)
    put(folders, NAME, data)
    assert files.archive(NAME) == {"a/0.wav": b"one", "a/1.wav": b"three"}


@pytest.mark.parametrize("name", ["../out", "a/../../out", "/etc/out", "C:/out", "a\\..\\..\\out"])
def test_a_member_that_leads_out_is_refused(listed: Listed, folders: Path, name: str) -> None:
    data = packed((name, b"one"))
    refused(listed, folders, data, inflated=3, why=f"its member {name!r} leads out of the archive")


def test_a_link_is_refused(listed: Listed, folders: Path) -> None:
    link = zipfile.ZipInfo("a/link")
    link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    refused(listed, folders, packed((link, b"/etc")), inflated=4, why="its member 'a/link' is a link")


def test_members_that_declare_more_than_the_table_are_refused(listed: Listed, folders: Path) -> None:
    why = "its members inflate to 10,000,000 bytes instead of 8"
    refused(listed, folders, packed(("a", bytes(10_000_000))), inflated=8, why=why)


def test_a_member_that_inflates_to_more_than_it_declares_is_refused(listed: Listed, folders: Path) -> None:
    size = 10_000_000
    data = packed(("a", bytes(size))).replace(size.to_bytes(4, "little"), (8).to_bytes(4, "little"))
    refused(listed, folders, data, inflated=8, why="it is no sound zip archive (Bad CRC-32 for file 'a')")


def test_a_cut_archive_is_refused(listed: Listed, folders: Path) -> None:
    data = packed(("a", b"one"))[:-9]
    refused(listed, folders, data, inflated=3, why="it is no sound zip archive (File is not a zip file)")
