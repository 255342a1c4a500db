"""The privacy ledger of a site: what its patients have spent, over all runs, on the site's disk.

The budget belongs to the patients. The ledger is keyed by unit, the salted hash of a patient's or
lesion's name, so a data set that overlaps an earlier one inherits what was spent. A charge is made
for every unit that training might have drawn, before it trains. Names must be those that the unit
has in every data set: where images are protected one by one, charge the patients that they are of
all the same, or later runs that protect patients would not see it.

**Order of writes.** `charge` first commits the entry to the ledger's file, then writes the head
(count and chain digest) to the second place, then returns; only after that may anything be computed
of which a part can leave. A process killed

- before or during the commit leaves the ledger as it was (SQLite rolls back), and nothing ran;
- between the two writes leaves a ledger that is ahead of its head. It still contains the chain that
  the head tells of, so it is accepted and the head is brought up to it. The entry counts though
  nothing ran: more is counted than was executed, never less;
- after both has charged for what may or may not have run.

The other order could not be told from tampering: a head ahead of its ledger is just what an older
copy of the ledger leaves behind. Where a ledger has fewer entries than the head, or another entry
in the head's place, it is refused. If it is gone while the head stands, or the head while the
ledger stands, too. An older copy of both together can be seen only against a head kept elsewhere:
the server's (`must_extend`). On a site that is cut off from it nothing can be seen.

Processes take turns by a lock on the folder, and by SQLite's own, on a local disk.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from sqlite3 import Connection
from typing import Self, TypeVar

import numpy as np
from filelock import FileLock

from mediffusion_core.common.errors import BudgetSpent, LedgerError, UserError
from mediffusion_core.common.files import sync
from mediffusion_core.data.pseudonyms import hashed, salt_path, site_salt
from mediffusion_core.privacy.accounting.accountant import Charge, epsilon, within
from mediffusion_core.privacy.ledger import storage
from mediffusion_core.privacy.ledger.storage import Content, Entry
from mediffusion_core.privacy.ledger.tip import Head, read_head, write_head
from mediffusion_core.privacy.ledger.unit_sets import from_bits, largest_compositions

__all__ = ["BudgetSpent", "Cap", "Charge", "Entry", "Head", "Ledger", "LedgerError"]

Key = TypeVar("Key")
FILE, LOCK, SALT_NAME = "ledger.sqlite", "ledger.lock", "ledger"


@dataclass(frozen=True)
class Cap:
    """The most that a unit may spend over all runs: `max_epsilon` at `delta`."""

    max_epsilon: float
    delta: float


class Ledger:
    """One site's ledger. Every call reads and verifies the whole of it."""

    def __init__(self, folder: Path, head: Path, cap: Cap | None) -> None:
        """Takes where things stand; `open` is how a ledger is had."""
        self.folder, self.cap = folder, cap
        self._path, self._head_path = folder / FILE, head
        self._seen: Head | None = None

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        head: Path | None = None,
        cap: Cap | None = None,
        begin: bool = True,
    ) -> Self:
        """Opens the ledger in a folder, and begins it where there never was one.

        Args:
            folder: On a local disk of the site, its owner's alone.
            head: File in a second place that keeps count and digest; by default beside the folder.
                The further away it is, the less one restored backup takes both back.
            cap: What the site allows.
            begin: Whether to begin one; to look at a ledger needs none.

        Raises:
            LedgerError: if the ledger is missing, older than its head, damaged or edited.
        """
        ledger = cls(folder, head or folder.with_name(f"{folder.name}.head"), cap)
        if begin:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with ledger._turn():
                ledger._begin_if_new()
        ledger.verify()
        return ledger

    def charge(
        self, units: Sequence[str], charge: Charge, stage: str, run: str, round_number: int
    ) -> Head:
        """Charges units for steps that are about to be made; on disk when this returns.

        Args:
            units: Names of the patients or lesions among whom the steps draw, however often each;
                maybe none.
            charge: What they cost.
            stage: Of training, or the kind of message.
            run: Whose steps they are.
            round_number: Of the stage.

        Returns:
            The ledger's new head, for the server to keep.

        Raises:
            BudgetSpent: if a unit would be past the site's cap; nothing is charged then.
            LedgerError: if the ledger is not to be trusted.
        """
        labels = _now(), run, stage, round_number
        with self._content() as (connection, salt, content):
            charged = _hashes(units, salt)
            self._refuse_past_cap(content, charged, charge)
            head = storage.append(connection, content, salt, charged, charge, labels)
            connection.commit()
            write_head(self._head_path, head)
            self._seen = head
        return head

    def spent(self, units: Sequence[str], delta: float) -> float:
        """The largest ε at δ that one of these units has spent, over all stages and runs.

        Raises:
            LedgerError: if the ledger is not to be trusted.
        """
        return max((epsilon(one, delta) for one in self.compositions(units)), default=0.0)

    def worst(self, delta: float) -> float:
        """The largest ε at δ of any unit, over all entries.

        Raises:
            LedgerError: if the ledger is not to be trusted.
        """
        return max(self.worst_by(delta, lambda entry: "all").values(), default=0.0)

    def worst_by(self, delta: float, key: Callable[[Entry], Key]) -> dict[Key, float]:
        """The largest ε at δ of any unit, over the entries of each key alone.

        Raises:
            LedgerError: if the ledger is not to be trusted.
        """
        with self._content() as (_, _, content):
            groups: dict[Key, list[Entry]] = {}
            for entry in content.entries:
                groups.setdefault(key(entry), []).append(entry)
            units = frozenset(content.numbers)
            found = {name: _compositions(content, units, group) for name, group in groups.items()}
        return {
            name: max((epsilon(one, delta) for one in group), default=0.0)
            for name, group in found.items()
        }

    def compositions(self, units: Sequence[str]) -> list[tuple[Charge, ...]]:
        """The compositions that some of these units have and no other's contains.

        Raises:
            LedgerError: if the ledger is not to be trusted.
        """
        with self._content() as (_, salt, content):
            return _compositions(content, _hashes(units, salt))

    def entries(self) -> tuple[Entry, ...]:
        """All entries, in order.

        Raises:
            LedgerError: if the ledger is not to be trusted.
        """
        with self._content() as (_, _, content):
            return content.entries

    def verify(self) -> Head:
        """The ledger's head, after all of it was checked against its chain and the second place.

        Raises:
            LedgerError: if the ledger is not to be trusted.
        """
        with self._content() as (_, _, content):
            return content.head

    def must_extend(self, head: Head) -> None:
        """Refuses a ledger that is older than a head kept elsewhere, such as the server's.

        Raises:
            LedgerError: if it does not contain that head, or is not to be trusted.
        """
        with self._content() as (_, _, content):
            _refuse_unless_extends(content, head, "a head kept elsewhere")

    @classmethod
    def restore_head(cls, folder: Path, head: Path | None, known: Head) -> Head:
        """Writes the second place anew where it was lost; the server, say, must know a head.

        Args:
            folder: The ledger's.
            head: As for `open`.
            known: A head that was kept elsewhere: no older ledger passes for this one.

        Raises:
            LedgerError: if the ledger does not contain `known`, or is itself not sound.
        """
        ledger = cls(folder, head or folder.with_name(f"{folder.name}.head"), None)
        with ledger._sound() as (_, _, content):
            _refuse_unless_extends(content, known, "a head kept elsewhere")
            write_head(ledger._head_path, content.head)
            return content.head

    @contextmanager
    def _content(self) -> Iterator[tuple[Connection, bytes, Content]]:
        with self._sound() as (connection, salt, content):
            kept = read_head(self._head_path)
            if kept is None:
                raise LedgerError("head-removed", f"the ledger's head {self._head_path} is gone")
            _refuse_unless_extends(content, kept, f"its head {self._head_path}")
            if self._seen is not None:
                _refuse_unless_extends(content, self._seen, "what this process has seen")
            if content.head != kept:  # killed between the two writes
                write_head(self._head_path, content.head)
            self._seen = content.head
            yield connection, salt, content

    @contextmanager
    def _sound(self) -> Iterator[tuple[Connection, bytes, Content]]:
        """The content, its chain verified, while all other processes wait."""
        if not self.folder.is_dir():  # a lock would be looked for in it
            raise LedgerError("ledger-removed", f"there is no folder {self.folder}")
        with self._turn():
            if not storage.has_tables(self._path):
                raise LedgerError("ledger-removed", f"there is no ledger in {self.folder}")
            salt = self._salt()
            with storage.opened(self._path) as connection:
                yield connection, salt, storage.read(connection, salt)

    def _turn(self) -> FileLock:
        """Held by one process at a time; made anew, since a forked process may not use it."""
        return FileLock(self.folder / LOCK)

    def _begin_if_new(self) -> None:
        kept = read_head(self._head_path)
        if storage.has_tables(self._path):
            if kept is None:
                self._head_of_nothing()
            return
        if kept is not None and kept.count:
            raise LedgerError(
                "ledger-removed",
                f"there is no ledger in {self.folder}, but its head tells of {kept.count} entries",
            )
        salt = site_salt(self.folder, SALT_NAME)
        storage.create_tables(self._path)
        sync(self.folder)
        write_head(self._head_path, Head(0, storage.empty_digest(salt)))

    def _head_of_nothing(self) -> None:
        """Writes the head of a ledger that was begun and never charged."""
        salt = self._salt()
        with storage.opened(self._path) as connection:
            content = storage.read(connection, salt)
        if not content.head.count:
            write_head(self._head_path, content.head)

    def _salt(self) -> bytes:
        path = salt_path(self.folder, SALT_NAME)
        if not path.is_file():
            raise LedgerError(
                "salt-removed", f"the ledger's salt {path} is gone: its units cannot be found"
            )
        try:
            return site_salt(self.folder, SALT_NAME)
        except UserError:
            raise LedgerError("salt-damaged", f"the ledger's salt {path} is damaged") from None

    def _refuse_past_cap(self, content: Content, units: frozenset[bytes], charge: Charge) -> None:
        if self.cap is None:
            return
        before = _compositions(content, units) or [()]
        for composition in before:
            if not within([*composition, charge], self.cap.max_epsilon, self.cap.delta):
                asked = epsilon([*composition, charge], self.cap.delta)
                spent = epsilon(composition, self.cap.delta)
                raise BudgetSpent(
                    f"the site allows ε = {self.cap.max_epsilon:g} at δ = {self.cap.delta:g}; a "
                    f"patient has spent {spent:.3g} and would have spent {asked:.3g}"
                )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _hashes(units: Sequence[str], salt: bytes) -> frozenset[bytes]:
    return frozenset(bytes.fromhex(hashed(unit, salt)) for unit in set(units))


def _compositions(
    content: Content, units: frozenset[bytes], entries: Sequence[Entry] | None = None
) -> list[tuple[Charge, ...]]:
    """The largest compositions of the given units, over all entries or those given."""
    known = np.fromiter(
        (content.numbers[unit] for unit in units if unit in content.numbers), dtype=np.int64
    )
    columns = {key: column for column, key in enumerate(content.memberships)}
    held = np.zeros((len(known), len(columns)), dtype=bool)  # (U, M)
    for key, column in columns.items():
        held[:, column] = from_bits(content.memberships[key], len(content.numbers))[known]
    charged = content.entries if entries is None else entries
    return largest_compositions(held, [(columns[e.membership], e.charge) for e in charged])


def _refuse_unless_extends(content: Content, head: Head, whose: str) -> None:
    if head.count > content.head.count:
        raise LedgerError(
            "ledger-behind",
            f"the ledger has {content.head.count} entries, {whose} tells of {head.count}: "
            "it was cut off, or is an older copy",
        )
    if content.digests[head.count] != head.digest:
        raise LedgerError("ledger-other", f"the ledger is not the one that {whose} tells of")
