"""Patients' names as hashes with a secret that never leaves its site."""

import contextlib
import hashlib
import os
import secrets
from pathlib import Path
from tempfile import TemporaryDirectory

from mediffusion_core.common.errors import UserError
from mediffusion_core.common.files import data_folder

_SALT_BYTES = 32


def hashed(patient: str, salt: bytes) -> str:
    """A patient's or lesion's name as manifest and ledger have it: keyed BLAKE2b, 32 digits."""
    return hashlib.blake2b(
        patient.encode("utf-8", "surrogateescape"), key=salt, digest_size=16
    ).hexdigest()


def salt_path(folder: Path, site: str) -> Path:
    """Where a site's salt stands in a folder of salts."""
    return folder / hashlib.sha256(site.encode()).hexdigest()[:16]


def site_salt(folder: Path, site: str) -> bytes:
    """The site's salt, drawn at the first call, of several processes too.

    Raises:
        UserError: if it is damaged; without a key a hash could be looked up.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = salt_path(folder, site)
    if not path.exists():
        with TemporaryDirectory(prefix=".drawing-", dir=folder) as drawing:
            drawn = Path(drawing, "salt")
            drawn.touch(mode=0o600)
            with drawn.open("wb") as file:
                file.write(secrets.token_bytes(_SALT_BYTES))
                file.flush()
                os.fsync(file.fileno())
            with contextlib.suppress(FileExistsError):  # another process was first
                os.link(drawn, path)
    salt = path.read_bytes()
    if len(salt) != _SALT_BYTES:
        raise UserError(f"{path}: the salt of site {site} is damaged; restore it, or delete it")
    return salt


def user_secret() -> bytes:
    """The secret of all simulated sites of this user, in the user's data folder; drawn once.

    A deployed site has a secret of its own, see `privacy.ledger.site_ledger.site_secret`.

    Raises:
        UserError: if it is damaged, or its folder can't be written.
    """
    folder = data_folder() / "secrets"
    try:
        return site_salt(folder, "simulated sites")
    except OSError as error:
        raise UserError(
            f"{folder}: {error.strerror}; it keeps the secret of simulated sites, "
            "set $XDG_DATA_HOME to a folder that can be written"
        ) from None
