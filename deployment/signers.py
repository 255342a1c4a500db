"""The trusted signers of a federation, each with a role: a file in every kit and at the server.

The file has public keys as PEM, each below a line `ROLE NAME`, which readers of PEM skip. A file
with a single key and no line is that of a coordinator.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from deployment.signing import public_key, signer_name
from mediffusion_core.common.errors import UserError
from mediffusion_core.settings.site_file import NAME

_BLOCK = re.compile(
    rf"(?:^(?P<role>[a-z]+) (?P<name>{NAME})\n)?"
    r"(?P<key>-----BEGIN PUBLIC KEY-----\n[A-Za-z0-9+/=\n]+-----END PUBLIC KEY-----\n?)",
    re.MULTILINE,
)


class Role(StrEnum):
    """The rights of a person."""

    COORDINATOR = "coordinator"
    """Makes keys and kits, and signs runs."""
    RESEARCHER = "researcher"
    """Signs runs."""
    AUDITOR = "auditor"
    """Signs nothing: a run signed with this key is refused. Reading takes no key."""


@dataclass(frozen=True)
class Signer:
    """A person's name, role and public key."""

    name: str
    role: Role
    key: Ed25519PublicKey

    @property
    def digest(self) -> str:
        """SHA-256 of the public key."""
        return signer_name(self.key)

    def __str__(self) -> str:
        return f"{self.role.value} {self.name}"


def read_signers(file: Path) -> list[Signer]:
    """The signers in a file.

    Raises:
        OSError: if the file can't be read.
        UserError: if it has no key, another text beside its keys, or a key without a role beside
            others.
    """
    try:
        text = file.read_text(encoding="ascii")
    except UnicodeDecodeError:
        raise UserError(f"{file} is no file of trusted signers") from None
    blocks = list(_BLOCK.finditer(text))
    if not blocks or _BLOCK.sub("", text).strip():
        raise UserError(f"{file} is no file of trusted signers")
    if len(blocks) == 1 and blocks[0]["role"] is None:
        return [
            Signer("coordinator", Role.COORDINATOR, public_key(blocks[0]["key"].encode(), file))
        ]
    found = []
    for block in blocks:
        if block["role"] not in {*Role}:
            raise UserError(f"{file}: a key has no role; allowed are {', '.join(Role)}")
        key = public_key(block["key"].encode(), file)
        found.append(Signer(block["name"], Role(block["role"]), key))
    return found


def write_signers(signers: Sequence[Signer]) -> bytes:
    """The content of a file of trusted signers."""
    pem = (one.key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo) for one in signers)
    return b"".join(f"{one}\n".encode() + key for one, key in zip(signers, pem, strict=True))
