"""A model file is encrypted in chunks, and every change of it is noticed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from kdq_core.errors import RecipeError, StageError
from kdq_flows.cli import app
from kdq_registry import encrypting
from kdq_registry.encrypting import MAGIC, PREFIX, TAG, decrypt, encrypt, read_key

KEY = bytes(range(32))
HEAD = len(MAGIC) + PREFIX


@pytest.fixture
def encrypted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three chunks of 8 bytes and one of 6."""
    monkeypatch.setattr(encrypting, "CHUNK", 8)
    (tmp_path / "model.onnx").write_bytes(b"a model of thirty bytes, really"[:30])
    encrypt(tmp_path / "model.onnx", tmp_path / "model.enc", KEY)
    return tmp_path / "model.enc"


@given(size=st.integers(0, 40), chunk=st.integers(1, 16))
def test_what_is_encrypted_comes_back(size: int, chunk: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder, data = tmp_path_factory.mktemp("sizes"), bytes(range(size))
    (folder / "in").write_bytes(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encrypting, "CHUNK", chunk)
        encrypt(folder / "in", folder / "enc", KEY)
        decrypt(folder / "enc", folder / "out", KEY)
    assert (folder / "out").read_bytes() == data
    assert size < 4 or data not in (folder / "enc").read_bytes()


def flips(data: bytes) -> bytes:
    return data[:-3] + bytes([data[-3] ^ 1]) + data[-2:]


def cuts_a_chunk(data: bytes) -> bytes:
    return data[: HEAD + 3 * (8 + TAG)]


def swaps_chunks(data: bytes) -> bytes:
    one, other = data[HEAD : HEAD + 8 + TAG], data[HEAD + 8 + TAG : HEAD + 2 * (8 + TAG)]
    return data[:HEAD] + other + one + data[HEAD + 2 * (8 + TAG) :]


def appends(data: bytes) -> bytes:
    return data + data[HEAD : HEAD + 8 + TAG]


def empties(data: bytes) -> bytes:
    return data[:HEAD]


@pytest.mark.parametrize("change", [flips, cuts_a_chunk, swaps_chunks, appends, empties])
def test_a_file_that_was_changed_is_refused_and_nothing_is_written(
    change: Callable[[bytes], bytes], encrypted: Path, tmp_path: Path
) -> None:
    encrypted.write_bytes(change(encrypted.read_bytes()))
    with pytest.raises(StageError) as caught:
        decrypt(encrypted, tmp_path / "out", KEY)
    assert str(caught.value).startswith(
        f"{str(encrypted)!r} cannot be decrypted: the key is another, or the file was changed or cut off (chunk "
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.enc", "model.onnx"]


def test_another_key_and_another_file_are_told(encrypted: Path, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="the key is another"):
        decrypt(encrypted, tmp_path / "out", bytes(32))
    with pytest.raises(StageError, match="was not encrypted by `kdq encrypt`; name such a file"):
        decrypt(tmp_path / "model.onnx", tmp_path / "out", KEY)
    with pytest.raises(RecipeError, match="is there already; name another file, or remove it"):
        encrypt(tmp_path / "model.onnx", encrypted, KEY)
    with pytest.raises(RecipeError, match="cannot be opened"):
        encrypt(tmp_path / "nothing", tmp_path / "out", KEY)


def test_a_key_is_64_hex_digits_or_32_bytes(tmp_path: Path) -> None:
    path = tmp_path / "key"
    for data in (KEY, KEY.hex().encode() + b"\n"):
        path.write_bytes(data)
        assert read_key(path) == KEY
    path.write_text("short")
    with pytest.raises(RecipeError) as caught:
        read_key(path)
    assert str(caught.value) == (
        f"the file {str(path)!r} holds no key of 256 bits (64 hex digits, or 32 bytes); make one with `openssl rand "
        "-hex 32 > FILE`"
    )
    with pytest.raises(RecipeError, match=r"cannot be read \(No such file or directory\); make one with"):
        read_key(tmp_path / "none")


def test_the_commands_encrypt_and_decrypt(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(KEY.hex())
    (tmp_path / "in").write_bytes(b"model")
    for command, source, to in (("encrypt", "in", "enc"), ("decrypt", "enc", "out")):
        words = [command, str(tmp_path / source), str(tmp_path / to), "--key", str(tmp_path / "key")]
        assert CliRunner().invoke(app, words, catch_exceptions=False).exit_code == 0
    assert (tmp_path / "out").read_bytes() == b"model"
