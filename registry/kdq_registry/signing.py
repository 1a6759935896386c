"""Ed25519 signatures: KDQ signs seals and entries of the chain if there is a key.

KDQ_SIGNING_KEY names its file; KDQ_SIGNING_KEY_PEM holds the key itself, for machines that keep secrets in variables
alone. The text of a key is in no site, so it reaches neither a worker's request nor Prefect.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from kdq_core.errors import RecipeError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from kdq_core.recipe.spec import Site

TEXT = "KDQ_SIGNING_KEY_PEM"
"""The variable that holds the key itself; a file that the site names comes first."""
HOW = "make one with `openssl genpkey -algorithm ed25519 -out FILE`"


def signer_of(site: Site) -> str:
    """The public key of the site's signing key, as 64 hex digits; empty if the site has none.

    Raises:
        RecipeError: the file of the key is missing, or is no Ed25519 key.
    """
    key = _key_of(site)
    return "" if key is None else _public(key)


def sign(site: Site, data: bytes) -> str:
    """Sign with the site's key: 128 hex digits; empty if the site has none.

    Raises:
        RecipeError: the file of the key is missing, or is no Ed25519 key.
    """
    key = _key_of(site)
    return "" if key is None else key.sign(data).hex()


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


def _key_of(site: Site) -> Ed25519PrivateKey | None:
    if site.signing_key is not None:
        try:
            data = site.signing_key.read_bytes()
        except OSError as error:
            raise RecipeError(
                f"KDQ_SIGNING_KEY names {str(site.signing_key)!r}, which cannot be read ({error.strerror}); name the "
                f"file of an Ed25519 key in PEM form, or {HOW}"
            ) from None
        return _private(data, f"KDQ_SIGNING_KEY names {str(site.signing_key)!r}, which is")
    text = os.environ.get(TEXT, "")
    return _private(text.encode(), f"the text in {TEXT} is") if text else None


def _private(data: bytes, what: str) -> Ed25519PrivateKey:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(data, None)
    except (ValueError, TypeError):  # not PEM, damaged, or encrypted
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise RecipeError(f"{what} no unencrypted Ed25519 key in PEM form; {HOW}")
    return key
