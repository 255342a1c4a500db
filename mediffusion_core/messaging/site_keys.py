"""The registered sites of a federation: a folder of public keys, `SITE.pub`, at the server."""

import base64
import hashlib
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_public_key,
    load_ssh_public_key,
)

from mediffusion_core.common.errors import UserError

SITES = "FED_MEDIFFUSION_SITES"
"""Environment variable with the path of the folder, at a server that authenticates its sites."""


def read_keys(folder: Path) -> dict[str, bytes]:
    """Public keys in a folder by site, as PEM, the form in which Flower has a node's key.

    Raises:
        UserError: for a file that is no public key, and for a folder without keys. A revocation
            cannot be undone, and a folder that is not mounted must not revoke all sites.
    """
    keys = {}
    for path in sorted(folder.glob("*.pub")):
        try:
            key = load_ssh_public_key(path.read_bytes())
        except (OSError, ValueError, UnsupportedAlgorithm):
            key = None
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise UserError(f"{path.name} is no public key of a site")
        keys[path.stem] = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    if not keys:
        raise UserError(f"no key in {folder}")
    return keys


def fingerprint(key: bytes) -> str:
    """SHA-256 of a public key, as PEM or in OpenSSH's format; as `ssh-keygen -l` has it.

    Empty for other bytes: without authentication Flower has no key of a node.
    """
    load = load_pem_public_key if key.startswith(b"-----") else load_ssh_public_key
    try:
        line = load(key).public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    except (ValueError, UnsupportedAlgorithm):
        return ""
    digest = hashlib.sha256(base64.b64decode(line.split()[1])).digest()
    return f"SHA256:{base64.b64encode(digest).decode().rstrip('=')}"
