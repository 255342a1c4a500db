"""The ledger's salt, the key of its hashes."""

from pathlib import Path

from mediffusion_core.common.errors import LedgerError, UserError
from mediffusion_core.data.pseudonyms import salt_path, site_salt

SALT_NAME = "ledger"


def ledger_salt(folder: Path, *, draw: bool) -> bytes:
    """The salt of the ledger in a folder.

    Args:
        folder: Of the ledger.
        draw: Whether to draw a missing salt, where there is no ledger yet.

    Raises:
        LedgerError: if the salt is gone or damaged.
    """
    path = salt_path(folder, SALT_NAME)
    if not draw and not path.is_file():
        raise LedgerError(
            "salt-removed", f"the ledger's salt {path} is gone: units cannot be matched"
        )
    try:
        return site_salt(folder, SALT_NAME)
    except UserError:
        raise LedgerError("salt-damaged", f"the ledger's salt {path} is damaged") from None
