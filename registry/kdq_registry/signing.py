"""Ed25519 signatures: KDQ signs seals and entries of the chain if the site names a key (KDQ_SIGNING_KEY)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdq_core.errors import RecipeError

if TYPE_CHECKING:
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from kdq_core.recipe.spec import Site

HOW = "make one with `openssl genpkey -algorithm ed25519 -out FILE`"


def signer_of(site: Site) -> str:
    """The public key of the site's signing key, as 64 hex digits; empty if the site has none.

    Raises:
        RecipeError: the file of the key is missing or has no Ed25519 key.
    """
    return "" if site.signing_key is None else _public(_private(site.signing_key))


def sign(site: Site, data: bytes) -> str:
    """Sign with the site's key: 128 hex digits; empty if the site has none.

    Raises:
        RecipeError: the file of the key is missing or has no Ed25519 key.
    """
    return "" if site.signing_key is None else _private(site.signing_key).sign(data).hex()


def signed_by(signer: str, signature: str, data: bytes) -> bool:
    """Say whether `signature` is the signature of `data` by `signer`; both are hex digits."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(signer)).verify(bytes.fromhex(signature), data)
    except (InvalidSignature, ValueError):
        return False
    return True


def _public(key: Ed25519PrivateKey) -> str:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw).hex()


def _private(path: Path) -> Ed25519PrivateKey:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(path.read_bytes(), None)
    except OSError as error:
        raise RecipeError(
            f"KDQ_SIGNING_KEY names {str(path)!r}, which cannot be read ({error.strerror}); name the file of an "
            f"Ed25519 key in PEM form, or {HOW}"
        ) from None
    except (ValueError, TypeError):  # not PEM, damaged, or encrypted
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise RecipeError(
            f"KDQ_SIGNING_KEY names {str(path)!r}, which is no unencrypted Ed25519 key in PEM form; {HOW}"
        )
    return key
