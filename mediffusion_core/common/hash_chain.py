"""A chain of entries, each with a digest over the one before it, and the tip of the chain.

The tip is the number of entries and the last digest. Kept in a second place, it shows that entries
were cut off or that an older copy took the chain's place.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from mediffusion_core.common.files import write_durably


@dataclass(frozen=True)
class Tip:
    """Number of entries, and the last digest of their chain in 64 hexadecimal digits."""

    count: int
    digest: str

    def __str__(self) -> str:
        return f"{self.count}:{self.digest}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads COUNT:DIGEST, the form of `str`.

        Raises:
            ValueError: if the text has another form.
        """
        found = re.fullmatch(r"(\d{1,18}):([0-9a-f]{64})", text.strip())
        if found is None:
            raise ValueError("a tip is COUNT:DIGEST, with 64 hexadecimal digits")
        return cls(int(found[1]), found[2])


def first_digest(purpose: str, key: bytes = b"") -> str:
    """The digest of a chain without entries.

    Args:
        purpose: Name and format of the chain.
        key: Without it no entry can be changed; without a key, anyone can compute the chain.
    """
    return hashlib.blake2b(purpose.encode(), key=key, digest_size=32).hexdigest()


def next_digest(before: str, fields: Sequence[Any], key: bytes = b"") -> str:
    """The digest of an entry with the given fields, JSON values, after an entry's digest."""
    text = json.dumps([before, *fields])
    return hashlib.blake2b(text.encode(), key=key, digest_size=32).hexdigest()


def read_tip(path: Path) -> Tip | None:
    """The tip in a file, None if there is no file.

    Raises:
        OSError: if the file can't be read.
        ValueError: if it has another form.
    """
    try:
        return Tip.parse(path.read_text(encoding="ascii"))
    except FileNotFoundError:
        return None


def write_tip(path: Path, tip: Tip) -> None:
    """Replaces the tip in a file atomically; it is on disk when this returns."""
    write_durably(path, f"{tip}\n".encode())
