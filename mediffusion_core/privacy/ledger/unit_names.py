"""A note beside a ledger: the unit that its names name, and the key of these names.

Charges are matched by name. Where the names change their meaning or their key, no unit is found
again and every budget starts anew; a ledger with other names is refused instead.
"""

import json
from dataclasses import asdict
from pathlib import Path

from filelock import FileLock

from mediffusion_core.common.errors import LedgerError
from mediffusion_core.common.files import write_durably
from mediffusion_core.data.dataset import UnitNames
from mediffusion_core.data.pseudonyms import hashed
from mediffusion_core.privacy.ledger.ledger import Ledger
from mediffusion_core.privacy.ledger.salt import ledger_salt

FILE, LOCK, SEAL = "names.json", "names.lock", "seal"


def require_names(ledger: Ledger, names: UnitNames) -> None:
    """Checks that a ledger's units have these names, and notes them at an empty ledger.

    A ledger that an earlier version wrote has no note. It is taken with the data's own names, which
    did not change. It is refused with pseudonyms, which depended on the folder of the images.

    Raises:
        LedgerError: `names-other` for other names, `names-edited` for a note that was changed.
    """
    with FileLock(ledger.folder / LOCK):  # simulated sites may share the ledger
        _require_names(ledger, names)


def _require_names(ledger: Ledger, names: UnitNames) -> None:
    kept = read_names(ledger.folder)
    if kept == names:
        return
    if kept is not None:
        which = (
            f"units are named by {kept.unit}, those of the data by {names.unit}"
            if kept.unit != names.unit
            else "pseudonyms have another key than those of the data"
        )
        raise LedgerError("names-other", f"the ledger in {ledger.folder}: its {which}")
    if names.key and ledger.verify().count:
        raise LedgerError(
            "names-other",
            f"the ledger in {ledger.folder} has no {FILE}: an earlier version wrote it, whose "
            "pseudonyms depended on the folder of the images, so its charges cannot be matched; "
            "begin a new ledger for patients without charges",
        )
    content = asdict(names)
    seal = _seal(ledger.folder, content)
    write_durably(ledger.folder / FILE, json.dumps({**content, SEAL: seal}).encode())


def read_names(folder: Path) -> UnitNames | None:
    """The note beside a ledger; None where an earlier version wrote the ledger.

    Raises:
        LedgerError: `names-edited` for a note that was changed.
    """
    path = folder / FILE
    try:
        content = json.loads(path.read_bytes())
        if content.pop(SEAL) != _seal(folder, content):
            raise ValueError
        return UnitNames(**content)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise LedgerError("names-edited", f"{path} is damaged or was changed") from None


def _seal(folder: Path, content: dict[str, str]) -> str:
    return hashed(json.dumps(content, sort_keys=True), ledger_salt(folder, draw=False))
