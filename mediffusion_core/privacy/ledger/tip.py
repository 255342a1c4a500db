"""The head of a ledger: how many entries it has and what they hash to, kept in a second place."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from mediffusion_core.common.errors import LedgerError
from mediffusion_core.common.files import sync


@dataclass(frozen=True)
class Head:
    """`count` entries, of which `digest` (64 hexadecimal digits) is the hash chain's last link."""

    count: int
    digest: str

    def __str__(self) -> str:
        return f"{self.count}:{self.digest}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads what `str` wrote.

        Raises:
            ValueError: if it is no head.
        """
        found = re.fullmatch(r"(\d{1,18}):([0-9a-f]{64})", text.strip())
        if found is None:
            raise ValueError("a ledger's head is COUNT:DIGEST, with 64 hexadecimal digits")
        return cls(int(found[1]), found[2])


def read_head(path: Path) -> Head | None:
    """The head in the second place, None where there is none.

    Raises:
        LedgerError: if something else stands there.
    """
    try:
        return Head.parse(path.read_text(encoding="ascii"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise LedgerError(
            "head-unreadable", f"the ledger's head {path} cannot be read ({error})"
        ) from None


def write_head(path: Path, head: Head) -> None:
    """Replaces the head in the second place; on disk, whole, when this returns."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.new")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(f"{head}\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync(path.parent)
