"""The coordinator's signature of an app bundle, without which a site starts no code.

Flower hands whatever bundle a run brings to every site. A site that knows the coordinator's public
key starts only bundles of which that key has signed the hash. What is signed is code, not a run:
settings may differ, and are the business of the site's own policy.
"""

import base64
import binascii
import hashlib
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from mediffusion_core.common.errors import UserError

PURPOSE = b"fed-mediffusion app bundle\0"
"""Goes before the hash, so that a signature made for something else does not fit."""


class BundleRefusedError(Exception):
    """A bundle that the coordinator has not signed. Its text may leave the site."""


def new_signer() -> tuple[bytes, bytes]:
    """A coordinator's private and public key as PEM (Ed25519, RFC 8032)."""
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return private, public


def sign(bundle: bytes, key_file: Path) -> str:
    """The signature of a bundle, in base64.

    Raises:
        UserError: if the file holds no private key of this kind.
    """
    try:
        key = load_pem_private_key(key_file.read_bytes(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise UserError(f"{key_file} holds no signing key")
    return base64.b64encode(key.sign(_signed(bundle))).decode()


def check(bundle: bytes, signature: str, key_file: Path) -> None:
    """Lets a bundle pass that the key's owner has signed.

    Raises:
        BundleRefusedError: for any other.
    """
    key = load_pem_public_key(key_file.read_bytes())
    if not isinstance(key, Ed25519PublicKey):
        raise BundleRefusedError("the site has no key to check the app bundle with")
    if not signature:
        raise BundleRefusedError("the app bundle is not signed")
    try:
        key.verify(base64.b64decode(signature, validate=True), _signed(bundle))
    except (InvalidSignature, binascii.Error):
        raise BundleRefusedError("the app bundle's signature does not fit") from None


def _signed(bundle: bytes) -> bytes:
    return PURPOSE + hashlib.sha256(bundle).digest()
