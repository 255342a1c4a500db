"""The record at a site of the secret that dealt the units of a run.

With another secret other units train. A run that goes on with it would train on units that were
held out before, and an attack on the model would take members for non-members.
"""

import json
from pathlib import Path

from mediffusion_core.common.errors import UserError
from mediffusion_core.common.files import write_durably
from mediffusion_core.data.partitioning.keyed_dealing import UnitHash

FILE, DIGEST = "dealing.json", "secret"


def record_dealing(folder: Path, unit_hash: UnitHash) -> None:
    """Keeps the digest of the secret in the site's folder of a run."""
    write_durably(folder / FILE, json.dumps({DIGEST: unit_hash.digest()}).encode())


def require_recorded_dealing(folder: Path, unit_hash: UnitHash) -> None:
    """Checks that the units are dealt as when the site took part in the run first.

    Raises:
        UserError: if the secret is another one, or the record is missing or damaged.
    """
    path = folder / FILE
    try:
        kept = json.loads(path.read_bytes())[DIGEST]
    except FileNotFoundError:
        raise UserError(
            f"{path} is missing: an earlier version began this run, and dealt patients otherwise; "
            "start a new run"
        ) from None
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{path} is damaged; start a new run") from None
    if kept != unit_hash.digest():
        raise UserError(
            f"{path}: this run was dealt with another secret of the site; restore the secret (a "
            "simulation's is below $XDG_DATA_HOME, a site's with its ledger) or start a new run"
        )
