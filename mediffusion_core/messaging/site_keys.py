"""The registered sites of a federation: a folder of public keys, `SITE.pub`, at the server."""

from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
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
