"""Sign a pulled folder in the form that OpenSSF's `model_signing` verifies offline: a Sigstore bundle beside it."""

from __future__ import annotations

from pathlib import Path

from kdq_core.errors import RecipeError

HOW = "make one with `openssl ecparam -name prime256v1 -genkey -noout -out FILE`"


def bundle_of(folder: Path) -> Path:
    """Where the bundle of a folder lies: beside it."""
    return folder.with_name(f"{folder.name}.sig")


def check_key(key: Path) -> None:
    """Refuse a key that cannot sign, before anything is downloaded.

    Raises:
        RecipeError: the package is not installed, or the file holds no elliptic-curve key.
    """
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        from model_signing import signing  # noqa: F401
    except ImportError as error:
        raise RecipeError(
            f"a signature for OpenSSF needs the Python package {error.name or 'model_signing'!r}, which is not "
            "installed; run `pip install 'kdq[openssf]'`"
        ) from None
    try:
        found = load_pem_private_key(key.read_bytes(), None)
    except OSError as error:
        raise RecipeError(f"the key {str(key)!r} cannot be read ({error.strerror}); {HOW}") from None
    except (ValueError, TypeError):
        found = None
    if not isinstance(found, EllipticCurvePrivateKey):
        raise RecipeError(f"{str(key)!r} holds no unencrypted elliptic-curve key in PEM form; {HOW}")


def sign_folder(folder: Path, key: Path) -> Path:
    """Sign all files of a folder; gives the bundle."""
    from model_signing import signing

    bundle = bundle_of(folder)
    signing.Config().use_elliptic_key_signer(private_key=key).sign(folder, bundle)
    return bundle
