"""The ledger's file: SQLite tables with entries in a chain of keyed hashes.

`charges` has one row per entry. `memberships` has one row per unit set, with one bit per unit;
entries of the same units share it. `units` has one row per unit: the number of its bit, and its
hash. An entry's digest is BLAKE2b, keyed with the ledger's salt, over the digest before it, its own
fields, the bits, and the hashes of the units that it adds. Without the salt, no row can be changed,
added or removed without breaking the chain.
"""

import hashlib
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mediffusion_core.common.errors import LedgerError
from mediffusion_core.common.hash_chain import first_digest, next_digest
from mediffusion_core.privacy.accounting.accountant import Charge
from mediffusion_core.privacy.ledger.tip import LedgerTip
from mediffusion_core.privacy.ledger.unit_sets import as_bits, from_bits

FORMAT = 1
ANNOUNCED = "announced"
"""Stage of an entry without units that announces a run; see `Ledger.announce`."""
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
    """One charge in the ledger.

    Attributes:
        number: From 1, in the order of writing.
        time: UTC, ISO 8601.
        run: Name of the run.
        stage: Stage of training, or kind of message.
        round_number: Round of the stage.
        charge: Cost of the steps.
        unit_set: Id of the charged units.
        units: Number of charged units.
        digest: Link of the chain, in hexadecimal digits.
    """

    number: int
    time: str
    run: str
    stage: str
    round_number: int
    charge: Charge
    unit_set: int
    units: int
    digest: str


@dataclass(frozen=True)
class Content:
    """The verified content of a ledger.

    Attributes:
        entries: In order.
        numbers: Number of each unit's bit, by the unit's hash.
        unit_sets: Bits of the charged units, by id.
        digests: The chain: the digest of the empty ledger, then the digest of each entry.
    """

    entries: tuple[Entry, ...]
    numbers: dict[bytes, int]
    unit_sets: dict[int, bytes]
    digests: tuple[str, ...]

    @property
    def tip(self) -> LedgerTip:
        """Number of entries, and last link of the chain."""
        return LedgerTip(len(self.entries), self.digests[-1])

    def memberships(self, units: Sequence[bytes]) -> NDArray[np.bool_]:
        """Membership of each unit in each unit set, (U, M); of a unit without a charge in none."""
        numbers = [self.numbers.get(unit, -1) for unit in units]
        held = np.zeros((len(units), len(self.unit_sets)), dtype=bool)
        for column, bits in enumerate(self.unit_sets.values()):
            known = from_bits(bits, len(self.numbers))
            held[:, column] = np.append(known, False)[numbers]  # -1 takes the last
        return held

    def announced(self, held: NDArray[np.bool_], run: str) -> NDArray[np.bool_]:
        """Whether the first charge of each unit is one of a run that was announced before, (U,).

        Args:
            held: Of `memberships`, (U, M).
            run: Of the charge that is to be made: the first one of units without a charge.
        """
        known: set[str] = set()
        column = {key: number for number, key in enumerate(self.unit_sets)}
        first = np.full(held.shape[1] + 1, len(self.entries))  # entry of each set, then of no set
        said = np.zeros(len(self.entries) + 1, dtype=bool)
        for number, entry in enumerate(self.entries):
            if entry.stage == ANNOUNCED:
                known.add(entry.run)
            said[number] = entry.run in known
            place = column[entry.unit_set]
            first[place] = min(first[place], number)
        said[-1] = run in known
        by_set = np.where(held, first[:-1], len(self.entries))  # (U, M)
        found: NDArray[np.bool_] = said[by_set.min(axis=1, initial=len(self.entries))]
        return found

    def charged(self, entries: Sequence[Entry]) -> list[tuple[int, Charge]]:
        """By entry, the column of its unit set in `memberships`, and its charge."""
        columns = {key: column for column, key in enumerate(self.unit_sets)}
        return [(columns[entry.unit_set], entry.charge) for entry in entries]


@contextmanager
def opened(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection with one open transaction, which excludes all other writers.

    The transaction is rolled back unless the block commits it. A commit is on disk when it returns:
    EXTRA also waits for the folder of the journal.

    Raises:
        LedgerError: if the file is no intact database, or another process holds it for a minute.
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
        # Errors that Python's module raises itself have no SQLite code.
        if getattr(error, "sqlite_errorcode", None) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise LedgerError("ledger-busy", f"{path} is in use by another process") from None
        raise LedgerError("ledger-unreadable", f"{path}: {error}") from None
    finally:
        connection.close()


def has_tables(path: Path) -> bool:
    """Whether the file is a ledger with tables; a killed `create_tables` leaves an empty file.

    Raises:
        LedgerError: if the file is no intact database, or has a later format.
    """
    if not path.exists():
        return False
    with opened(path) as connection:
        version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > FORMAT:
        raise LedgerError("ledger-format", f"{path} was written by a later version ({version})")
    return bool(version)


def create_tables(path: Path) -> None:
    """Creates an empty ledger in one transaction, readable by its owner alone."""
    path.touch(mode=0o600)
    with opened(path) as connection:
        for statement in _TABLES:
            connection.execute(statement)
        connection.commit()


def read(connection: sqlite3.Connection, salt: bytes) -> Content:
    """Reads and verifies all entries.

    Raises:
        LedgerError: `ledger-edited` if the chain is broken.
    """
    try:
        return _read(connection, salt)
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise LedgerError(
            "ledger-edited", f"the ledger was changed by another program ({error})"
        ) from None


def _read(connection: sqlite3.Connection, salt: bytes) -> Content:
    hashes = _numbered(connection.execute("SELECT number, hash FROM units ORDER BY number"))
    unit_sets = dict(connection.execute("SELECT id, bits FROM memberships"))
    sizes = {
        key: int(np.bitwise_count(np.frombuffer(bits, np.uint8)).sum())
        for key, bits in unit_sets.items()
    }
    entries: list[Entry] = []
    digests, known = [empty_digest(salt)], 0
    for row in connection.execute(f"SELECT {_COLUMNS}, digest FROM charges ORDER BY number"):
        *fields, digest = row
        number, time, run, stage, round_number, rate, noise, steps, unit_set, after = fields
        link = _link(salt, digests[-1], fields, unit_sets[unit_set], hashes[known:after])
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
                unit_set,
                sizes[unit_set],
                digest,
            )
        )
        digests.append(digest)
        known = after
    if known != len(hashes) or len({entry.unit_set for entry in entries}) != len(unit_sets):
        raise ValueError("units or unit sets without an entry")
    numbers = {value: number for number, value in enumerate(hashes)}
    return Content(tuple(entries), numbers, unit_sets, tuple(digests))


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
) -> LedgerTip:
    """Writes one entry into the open transaction; the caller commits.

    Args:
        connection: Of `opened`.
        content: The ledger before this entry.
        salt: Key of the chain's hashes.
        units: Hashes of the charged units.
        charge: Cost of the steps.
        labels: Time, run, stage and round.

    Returns:
        The ledger tip after the commit.
    """
    new = sorted(units - content.numbers.keys())
    known = len(content.numbers)
    numbers = {**content.numbers, **{value: known + index for index, value in enumerate(new)}}
    connection.executemany("INSERT INTO units VALUES (?, ?)", ((numbers[one], one) for one in new))
    bits = as_bits(np.array([numbers[one] for one in units], dtype=np.int64))
    connection.execute("INSERT OR IGNORE INTO memberships (bits) VALUES (?)", (bits,))
    unit_set = connection.execute("SELECT id FROM memberships WHERE bits = ?", (bits,))
    parts = charge.sample_rate, charge.noise_multiplier, charge.steps
    fields = [
        len(content.entries) + 1,
        *labels,
        *map(float, parts[:2]),
        charge.steps,
        unit_set.fetchone()[0],
        len(numbers),
    ]
    digest = _link(salt, content.digests[-1], fields, bits, new)
    marks = ", ".join("?" * (len(fields) + 1))
    connection.execute(
        f"INSERT INTO charges ({_COLUMNS}, digest) VALUES ({marks})", (*fields, digest)
    )
    return LedgerTip(len(content.entries) + 1, digest)


def empty_digest(salt: bytes) -> str:
    """The first link of the chain: the digest of a ledger without entries."""
    return first_digest("fed-mediffusion ledger 1", salt)


def _link(salt: bytes, before: str, fields: list[Any], bits: bytes, new: list[bytes]) -> str:
    lasting = [hashlib.sha256(part).hexdigest() for part in (bits, b"".join(new))]
    return next_digest(before, [*fields, *lasting], salt)
