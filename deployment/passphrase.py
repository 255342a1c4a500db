"""The passphrase of the coordinator's private keys, and how a key file is read with it."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import typer
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    KeySerializationEncryption,
    NoEncryption,
    load_pem_private_key,
)

from mediffusion_core.common.errors import UserError


@dataclass(frozen=True)
class Passphrase:
    """The source of a passphrase.

    It is never an argument, which other users of the machine can read.

    Attributes:
        source: `file:PATH` or `env:NAME`; None to ask at the terminal.
    """

    source: str | None = None

    def read(self, purpose: str, confirm: bool = False) -> bytes:
        """The passphrase.

        Args:
            purpose: Shown where it is asked for.
            confirm: Whether a person must type it twice.

        Raises:
            UserError: if it is empty or can't be read, or there is no terminal to ask at.
        """
        kind, _, place = (self.source or "").partition(":")
        if kind == "file":
            text = Path(place).read_text(encoding="utf-8").rstrip("\r\n")
        elif kind == "env":
            text = os.environ.get(place, "")
        elif self.source is not None:
            raise UserError("--passphrase takes file:PATH or env:NAME, never the passphrase itself")
        elif sys.stdin.isatty():
            asked = f"passphrase {purpose}"
            text = typer.prompt(asked, hide_input=True, confirmation_prompt=confirm)
        else:
            raise UserError(
                f"a passphrase {purpose} is needed: --passphrase file:PATH or --passphrase env:NAME"
            )
        if not text:
            raise UserError(f"the passphrase {purpose} is empty")
        return text.encode()

    def load(self, key_file: Path) -> PrivateKeyTypes | None:
        """A private key, which may be encrypted; None if the file holds none.

        Raises:
            UserError: if the file can't be read, or the passphrase is wrong.
        """
        try:
            content = key_file.read_bytes()
        except OSError as error:
            raise UserError(f"{key_file}: {error.strerror}") from None
        try:
            return load_pem_private_key(content, password=None)
        except (ValueError, UnsupportedAlgorithm):
            return None
        except TypeError:  # the key is encrypted
            given = self.read(f"of {key_file}")
        try:
            return load_pem_private_key(content, password=given)
        except ValueError:
            raise UserError(f"{key_file}: the passphrase is wrong") from None


def encryption(passphrase: bytes | None) -> KeySerializationEncryption:
    """How a private key is written: encrypted, or without a passphrase protected by its mode."""
    return BestAvailableEncryption(passphrase) if passphrase else NoEncryption()
