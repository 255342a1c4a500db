"""The ledger's file: SQLite tables whose entries are chained by a keyed hash.

`charges` has one row an entry. Who was charged stands once in `memberships`, as one bit a unit, and
is shared by all entries that charge the same units; a unit's hash stands once, in `units`, under
the number of its bit. An entry's digest is BLAKE2b, keyed with the ledger's salt, over the digest
before it, its own fields, the bits and the hashes of the units that came with it. So no row can be
changed, added or taken away without the chain showing it, unless the salt is known.
"""

import hashlib
import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mediffusion_core.common.errors import LedgerError
from mediffusion_core.privacy.accounting.accountant import Charge
from mediffusion_core.privacy.ledger.tip import Head
from mediffusion_core.privacy.ledger.unit_sets import as_bits

FORMAT = 1
_TABLES = (
    "CREATE TABLE units (number INTEGER PRIMARY KEY, hash BLOB NOT NULL UNIQUE)",
    "CREATE TABLE memberships (id INTEGER PRIMARY KEY, bits BLOB NOT NULL UNIQUE)",
    "CREATE TABLE charges (number INTEGER PRIMARY KEY, time TEXT NOT NULL, run TEXT NOT NULL, "
    "stage TEXT NOT NULL, round INTEGER NOT NULL, sample_rate REAL NOT NULL, "
    "noise_multiplier REAL NOT NULL, steps INTEGER NOT NULL, membership INTEGER NOT NULL, "
    "known INTEGER NOT NULL, digest TEXT NOT NULL)",
    f"PRAGMA user_version = {FORMAT}",
)
_COLUMNS = (
    "number, time, run, stage, round, sample_rate, noise_multiplier, steps, membership, known"
)


@dataclass(frozen=True)
class Entry:
    """One charge as it stands in the ledger; `units` is how many were charged."""

    number: int
    time: str
    run: str
    stage: str
    round_number: int
    charge: Charge
    membership: int
    units: int
    digest: str


@dataclass(frozen=True)
class Content:
    """All that a ledger holds, verified.

    Attributes:
        entries: In order.
        numbers: By a unit's hash the number of its bit.
        memberships: By id the bits of the units that were charged.
        digests: The chain: that of the empty ledger, then that of each entry.
    """

    entries: tuple[Entry, ...]
    numbers: dict[bytes, int]
    memberships: dict[int, bytes]
    digests: tuple[str, ...]

    @property
    def head(self) -> Head:
        """How many entries, and the chain's last link."""
        return Head(len(self.entries), self.digests[-1])


@contextmanager
def opened(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection with one transaction that keeps all other writers out.

    It is rolled back unless the block commits it. What is committed is on the disk: EXTRA also
    waits for the folder in which the journal stood.

    Raises:
        LedgerError: if the file is no sound database.
    """
    connection = sqlite3.connect(path, timeout=60.0, isolation_level=None)
    try:
        connection.execute("PRAGMA synchronous = EXTRA")
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield connection
        finally:
            if connection.in_transaction:
                connection.rollback()
    except sqlite3.DatabaseError as error:
        # Python's own errors about a value carry no code of SQLite's.
        if getattr(error, "sqlite_errorcode", None) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise LedgerError("ledger-busy", f"{path} is held by another process") from None
        raise LedgerError("ledger-unreadable", f"{path}: {error}") from None
    finally:
        connection.close()


def has_tables(path: Path) -> bool:
    """Whether a ledger stands there, and not just an empty file of one that was begun.

    Raises:
        LedgerError: if the file is no sound database, or of a later format.
    """
    if not path.exists():
        return False
    with opened(path) as connection:
        version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > FORMAT:
        raise LedgerError("ledger-format", f"{path} was written by a later version ({version})")
    return bool(version)


def create_tables(path: Path) -> None:
    """Makes an empty ledger, readable by its owner alone, all at once."""
    path.touch(mode=0o600)
    with opened(path) as connection:
        for statement in _TABLES:
            connection.execute(statement)
        connection.commit()


def read(connection: sqlite3.Connection, salt: bytes) -> Content:
    """Reads and verifies all entries.

    Raises:
        LedgerError: `ledger-edited` where the chain does not hold.
    """
    try:
        return _read(connection, salt)
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise LedgerError(
            "ledger-edited", f"the ledger was changed by other hands ({error})"
        ) from None


def _read(connection: sqlite3.Connection, salt: bytes) -> Content:
    hashes = _numbered(connection.execute("SELECT number, hash FROM units ORDER BY number"))
    memberships = dict(connection.execute("SELECT id, bits FROM memberships"))
    sizes = {
        key: int(np.bitwise_count(np.frombuffer(bits, np.uint8)).sum())
        for key, bits in memberships.items()
    }
    entries: list[Entry] = []
    digests, known = [empty_digest(salt)], 0
    for row in connection.execute(f"SELECT {_COLUMNS}, digest FROM charges ORDER BY number"):
        *fields, digest = row
        number, time, run, stage, round_number, rate, noise, steps, membership, after = fields
        link = _link(salt, digests[-1], fields, memberships[membership], hashes[known:after])
        if number != len(entries) + 1 or not known <= after <= len(hashes) or link != digest:
            raise ValueError(f"entry {len(entries) + 1} does not follow from those before it")
        charge = Charge(rate, noise, steps)
        entries.append(
            Entry(
                number,
                time,
                run,
                stage,
                round_number,
                charge,
                membership,
                sizes[membership],
                digest,
            )
        )
        digests.append(digest)
        known = after
    if known != len(hashes) or len({entry.membership for entry in entries}) != len(memberships):
        raise ValueError("it names units of which no entry tells")
    numbers = {value: number for number, value in enumerate(hashes)}
    return Content(tuple(entries), numbers, memberships, tuple(digests))


def _numbered(rows: Iterator[tuple[int, bytes]] | sqlite3.Cursor) -> list[bytes]:
    hashes = []
    for expected, (number, value) in enumerate(rows):
        if number != expected or not isinstance(value, bytes):
            raise ValueError(f"unit {expected} is missing")
        hashes.append(value)
    return hashes


def append(
    connection: sqlite3.Connection,
    content: Content,
    salt: bytes,
    units: frozenset[bytes],
    charge: Charge,
    labels: tuple[str, str, str, int],
) -> Head:
    """Writes one entry into the open transaction; the caller commits.

    Args:
        connection: Of `opened`.
        content: What the ledger holds so far.
        salt: The ledger's.
        units: Hashes of the units that are charged.
        charge: What they are charged.
        labels: Time, run, stage and round.

    Returns:
        The head that the ledger has once this is committed.
    """
    new = sorted(units - content.numbers.keys())
    known = len(content.numbers)
    numbers = {**content.numbers, **{value: known + index for index, value in enumerate(new)}}
    connection.executemany("INSERT INTO units VALUES (?, ?)", ((numbers[one], one) for one in new))
    bits = as_bits(np.array([numbers[one] for one in units], dtype=np.int64))
    connection.execute("INSERT OR IGNORE INTO memberships (bits) VALUES (?)", (bits,))
    membership = connection.execute("SELECT id FROM memberships WHERE bits = ?", (bits,))
    parts = charge.sample_rate, charge.noise_multiplier, charge.steps
    fields = [
        len(content.entries) + 1,
        *labels,
        *map(float, parts[:2]),
        charge.steps,
        membership.fetchone()[0],
        len(numbers),
    ]
    digest = _link(salt, content.digests[-1], fields, bits, new)
    marks = ", ".join("?" * (len(fields) + 1))
    connection.execute(
        f"INSERT INTO charges ({_COLUMNS}, digest) VALUES ({marks})", (*fields, digest)
    )
    return Head(len(content.entries) + 1, digest)


def empty_digest(salt: bytes) -> str:
    """The chain's first link, that of a ledger without entries."""
    return hashlib.blake2b(b"fed-mediffusion ledger 1", key=salt, digest_size=32).hexdigest()


def _link(salt: bytes, before: str, fields: list[Any], bits: bytes, new: list[bytes]) -> str:
    lasting = [hashlib.sha256(part).hexdigest() for part in (bits, b"".join(new))]
    text = json.dumps([before, *fields, *lasting])
    return hashlib.blake2b(text.encode(), key=salt, digest_size=32).hexdigest()
