"""The coordinator's signed statement of a run; a site starts no code without it.

Flower passes the server's app bundle, kind of app, settings and bundle names to every site without
a signature. The statement covers the bundle's SHA-256, the part of the bundle that may run (the
ClientApp), the SHA-256 of the run's configuration, a rising version, and the time of expiry. The
run's configuration carries it under `signature`.

The signed bytes are a purpose and the statement as canonical JSON. The purpose excludes signatures
that were made for other programs. `deployment.admission` decides on the statement at a site.
"""

import base64
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PrivateFormat,
    PublicFormat,
    load_pem_public_key,
)
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from deployment.passphrase import Passphrase, encryption
from mediffusion_core.common.errors import UserError

PURPOSE = b"fed-mediffusion signed run\0"
SIGNATURE = "signature"
"""Key of the run's configuration that carries the signed statement."""
LARGEST = 2**63 - 1
"""Largest version and time: within the integers of both Flower and JSON."""

Settings = Mapping[str, bool | int | float | str]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Whole = Annotated[int, Field(ge=0, le=LARGEST)]


class BundleRefusedError(Exception):
    """The refusal of a bundle. The text may leave the site."""


class Statement(BaseModel):
    """A coordinator's statement of a run.

    Attributes:
        app: The only part of a bundle that runs at a site.
        bundle: SHA-256 of the app bundle.
        not_after: Last second of validity, since the epoch.
        settings: SHA-256 of the run's configuration, see `settings_digest`.
        version: A site that accepted it refuses lower versions of the same signer.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    app: Literal["clientapp"] = "clientapp"
    bundle: Sha256
    not_after: Whole
    settings: Sha256
    version: Whole

    def signed_by(self, key_file: Path, passphrase: Passphrase | None = None) -> str:
        """The statement and its signature, as text for the run's configuration.

        Raises:
            UserError: if the file holds no Ed25519 private key, or the passphrase is wrong.
        """
        key = (passphrase or Passphrase()).load(key_file)
        if not isinstance(key, Ed25519PrivateKey):
            raise UserError(f"{key_file} holds no signing key")
        text = _canonical(self.model_dump())
        return ".".join(_encode(part) for part in (text, key.sign(PURPOSE + text)))

    @classmethod
    def verified(cls, signature: str, key: Ed25519PublicKey) -> Self:
        """The statement in a text that the key's owner has signed.

        Raises:
            BundleRefusedError: for any other text.
        """
        if not signature:
            raise BundleRefusedError("the app bundle is not signed")
        try:
            text, proof = map(_decode, signature.split("."))
            key.verify(proof, PURPOSE + text)
            return cls.model_validate_json(text)
        except (InvalidSignature, ValidationError, ValueError):
            raise BundleRefusedError("the app bundle's signature does not fit") from None


def settings_digest(run_config: Settings) -> str:
    """SHA-256 of a run's configuration without the signature, in hexadecimal digits."""
    covered = {key: value for key, value in run_config.items() if key != SIGNATURE}
    return hashlib.sha256(_canonical(covered)).hexdigest()


def run_hash(bundle: str, settings: str) -> str:
    """The hash by which a site approves a run: of its bundle's and its settings' SHA-256."""
    return hashlib.sha256(_canonical({"bundle": bundle, "settings": settings})).hexdigest()


def new_signer(passphrase: bytes | None = None) -> tuple[bytes, bytes]:
    """A coordinator's private and public key as PEM (Ed25519, RFC 8032)."""
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption(passphrase))
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return private, public


def read_signer(key_file: Path) -> Ed25519PublicKey:
    """A signer's public key.

    Raises:
        OSError: if the file can't be read.
        UserError: if the file holds no such key.
    """
    return public_key(key_file.read_bytes(), key_file)


def public_key(pem: bytes, file: Path) -> Ed25519PublicKey:
    """A signer's public key, from a file.

    Raises:
        UserError: if the bytes are no such key.
    """
    try:
        key = load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise UserError(f"{file} is no public key of a signer")
    return key


def signer_name(key: Ed25519PublicKey) -> str:
    """SHA-256 of a public key: the signer's name in a site's record of accepted versions."""
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()


def _canonical(value: Mapping[str, object]) -> bytes:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return text.encode()


def _encode(part: bytes) -> str:
    return base64.urlsafe_b64encode(part).decode()


def _decode(part: str) -> bytes:
    return base64.b64decode(part, altchars=b"-_", validate=True)
