"""The ledger tip: number of entries and last link of the chain, kept in a second place."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from mediffusion_core.common.errors import LedgerError
from mediffusion_core.common.files import sync


@dataclass(frozen=True)
class LedgerTip:
    """Number of entries, and the last link of their hash chain in 64 hexadecimal digits."""

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
            raise ValueError("a ledger tip is COUNT:DIGEST, with 64 hexadecimal digits")
        return cls(int(found[1]), found[2])


def read_tip(path: Path) -> LedgerTip | None:
    """The tip in a file, None if there is no file.

    Raises:
        LedgerError: if the file cannot be read or has another form.
    """
    try:
        return LedgerTip.parse(path.read_text(encoding="ascii"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise LedgerError(
            "head-unreadable", f"the ledger tip {path} cannot be read ({error})"
        ) from None


def write_tip(path: Path, tip: LedgerTip) -> None:
    """Replaces the tip in a file atomically; it is on disk when this returns."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.new")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(f"{tip}\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync(path.parent)
