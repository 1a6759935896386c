"""A model file is encrypted in chunks, and every change of it is noticed."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from kdq_core.errors import RecipeError, StageError
from kdq_flows.cli import app
from kdq_registry import encrypting
from kdq_registry.encrypting import MAGIC, PREFIX, TAG, decrypt, encrypt
from kdq_registry.keys import own_key

KEY = bytes(range(32))
HEAD = len(MAGIC + b'{"kms":"","wrapped":""}\n') + PREFIX
GUEST = """
from cryptography.hazmat.primitives.keywrap import aes_key_unwrap, aes_key_wrap
from kdq_core.api import hookimpl

MASTER = bytes(32)

@hookimpl
def kdq_wrap_key(kms, key):
    print("wrapping")
    if kms == "vault:forgetful":
        return aes_key_wrap(MASTER, bytes(32))
    if kms == "vault:away":
        raise OSError("the vault is away")
    return "text" if kms == "vault:text" else aes_key_wrap(MASTER, key) if kms == "vault:models" else None

@hookimpl
def kdq_unwrap_key(kms, wrapped):
    if kms.startswith("vault:"):
        return aes_key_unwrap(MASTER, wrapped)
"""


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
        assert own_key(path) == KEY
    path.write_text("short")
    with pytest.raises(RecipeError) as caught:
        own_key(path)
    assert str(caught.value) == (
        f"the file {str(path)!r} holds no key of 256 bits (64 hex digits, or 32 bytes); make one with `openssl rand "
        "-hex 32 > FILE`"
    )
    with pytest.raises(RecipeError, match=r"cannot be read \(No such file or directory\); make one with"):
        own_key(tmp_path / "none")


def test_a_key_may_be_in_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KDQ_ENCRYPTION_KEY", raising=False)
    with pytest.raises(RecipeError) as caught:
        own_key(None)
    assert str(caught.value) == (
        "no key was given; name a file with --key, a key service with --kms, or set KDQ_ENCRYPTION_KEY to 64 hex digits"
    )
    monkeypatch.setenv("KDQ_ENCRYPTION_KEY", "x" * 32)
    with pytest.raises(RecipeError, match=r"^the variable KDQ_ENCRYPTION_KEY holds no key of 256 bits \(64 hex d"):
        own_key(None)
    monkeypatch.setenv("KDQ_ENCRYPTION_KEY", KEY.hex())
    assert own_key(None) == KEY
    (tmp_path / "in").write_bytes(b"model")
    for words in (["encrypt", "in", "enc"], ["decrypt", "enc", "out"]):
        assert kdq(tmp_path, *words)[0] == 0
    assert (tmp_path / "out").read_bytes() == b"model"


def kdq(folder: Path, command: str, source: str, to: str, *words: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, [command, str(folder / source), str(folder / to), *words])
    return done.exit_code, str(done.exception) if done.exit_code else done.stdout


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model; an installed plug-in is the key service `vault:`."""
    module = f"guest_{uuid.uuid4().hex}"  # an imported module outlives its test
    folder = tmp_path / "guest"
    (folder / "kdq_vault-1.0.dist-info").mkdir(parents=True)
    (folder / f"{module}.py").write_text(GUEST)
    (folder / "kdq_vault-1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: kdq-vault\nVersion: 1.0\n"
    )
    (folder / "kdq_vault-1.0.dist-info" / "entry_points.txt").write_text(f"[kdq]\nvault = {module}\n")
    monkeypatch.syspath_prepend(str(folder))
    (tmp_path / "in").write_bytes(b"model")
    return tmp_path


def test_a_key_service_of_a_guest_wraps_a_key_of_each_file(service: Path) -> None:
    for name in ("enc", "again"):
        assert kdq(service, "encrypt", "in", name, "--kms", "vault:models")[0] == 0
    heads = [json.loads((service / name).read_bytes().split(b"\n")[1]) for name in ("enc", "again")]
    assert [head["kms"] for head in heads] == ["vault:models"] * 2
    assert heads[0]["wrapped"] != heads[1]["wrapped"]
    assert kdq(service, "decrypt", "enc", "out") == (0, f"{service / 'out'} is {service / 'enc'}, decrypted\n")
    assert (service / "out").read_bytes() == b"model"
    data = (service / "enc").read_bytes()
    (service / "renamed").write_bytes(data.replace(b"vault:models", b"vault:others"))
    code, said = kdq(service, "decrypt", "renamed", "no")
    assert (code, "cannot be decrypted: the key is another, or the file was changed" in said) == (1, True)


@pytest.mark.parametrize(
    ("kms", "said"),
    [
        ("vault:away", "the key service 'vault:away' refused: plug-in 'kdq-vault' failed in kdq_wrap_key: OSError: the "
                       "vault is away"),
        ("vault:forgetful", "the key service 'vault:forgetful' unwraps another key than it wrapped; mend its plug-in"),
        ("vault:text", "the key service 'vault:text' refused: plug-in 'kdq-vault' gave str in kdq_wrap_key, not bytes"),
        ("aws:models", "no plug-in knows the key service 'aws:models'; install one that implements 'kdq_wrap_key' for "
                       "this name"),
    ],
)  # fmt: skip
def test_a_key_service_that_refuses_is_told_and_nothing_is_written(service: Path, kms: str, said: str) -> None:
    code, told = kdq(service, "encrypt", "in", "enc", "--kms", kms)
    assert (code, told) == (1, said)
    assert not (service / "enc").exists()
    assert "--key and --kms name two keys" in kdq(service, "encrypt", "in", "enc", "--kms", kms, "--key", "k")[1]


def test_the_commands_encrypt_and_decrypt(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(KEY.hex())
    (tmp_path / "in").write_bytes(b"model")
    for command, source, to in (("encrypt", "in", "enc"), ("decrypt", "enc", "out")):
        words = [command, str(tmp_path / source), str(tmp_path / to), "--key", str(tmp_path / "key")]
        assert CliRunner().invoke(app, words, catch_exceptions=False).exit_code == 0
    assert (tmp_path / "out").read_bytes() == b"model"
