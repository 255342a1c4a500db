"""The ledger tip: number of entries and last link of the chain, kept in a second place."""

from pathlib import Path

from mediffusion_core.common import hash_chain
from mediffusion_core.common.errors import LedgerError
from mediffusion_core.common.hash_chain import Tip as LedgerTip
from mediffusion_core.common.hash_chain import write_tip

__all__ = ["LedgerTip", "read_tip", "write_tip"]


def read_tip(path: Path) -> LedgerTip | None:
    """The tip in a file, None if there is no file.

    Raises:
        LedgerError: if the file cannot be read or has another form.
    """
    try:
        return hash_chain.read_tip(path)
    except (OSError, ValueError) as error:
        raise LedgerError(
            "tip-unreadable", f"the ledger tip {path} cannot be read ({error})"
        ) from None
