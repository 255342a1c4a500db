"""The privacy ledger of a site: the spent budget of its patients, over all runs, on its own disk.

The budget belongs to the patients. The ledger is keyed by unit: the salted hash of a patient's or
lesion's name. A dataset that overlaps an earlier one inherits the charges. A charge covers every
unit that training may draw, and is written before training. A unit needs the same name in every
dataset. If single images are protected, the charge still goes to their patients: later runs that
protect patients would otherwise miss it.

**Spent budgets.** A unit whose charge would pass the cap is left out of it, alone: the other units
are charged and trained on. This is the individual filter of arXiv 2008.11193. Its theorem needs
that the decision for a unit depends on that unit's own charges alone, so that one unit more or less
changes no decision for another. Decision and charge are one transaction.

**Two filters.** A unit has the Rényi filter of the cap. It has the Gaussian filter if its first
charge is one of an announced run, whose charges are Gaussian mechanisms on all units; any other
charge is then past its cap. Either filter holds if it decides on all charges of a unit.

**Order of writes.** `charge` commits the entry to the ledger's file, then writes the ledger tip
(count and chain digest) to the second place, then returns. Only then may a result be computed that
can leave the site. If the process is killed

- before or during the commit, SQLite rolls back: the ledger is unchanged, and nothing was trained;
- between the two writes, the ledger is ahead of its tip. It still contains the chain up to the tip,
  so it is accepted and the tip is updated. The entry counts although nothing was trained: the
  ledger may count too much, never too little;
- after both, the charge counts, whether or not training ran.

The other order would look like tampering: an older copy of the ledger also leaves a tip that is
ahead. The ledger is refused if it has fewer entries than the tip, or another entry at the tip's
place, or if only one of ledger and tip exists. An older copy of both together shows only against a
tip kept elsewhere, such as the server's (`must_extend`). A site without a server cannot detect it.

A lock on the folder and SQLite's own lock serialise processes. Both need a local disk.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from sqlite3 import Connection
from typing import Self, TypeVar

import numpy as np
from filelock import FileLock

from mediffusion_core.common.errors import LedgerError
from mediffusion_core.common.files import sync
from mediffusion_core.data.pseudonyms import hashed, site_salt
from mediffusion_core.privacy.accounting.accountant import Charge, epsilon
from mediffusion_core.privacy.accounting.filters import GaussianFilter, RenyiFilter
from mediffusion_core.privacy.ledger import storage
from mediffusion_core.privacy.ledger.salt import SALT_NAME, ledger_salt
from mediffusion_core.privacy.ledger.storage import Content, Entry
from mediffusion_core.privacy.ledger.tip import LedgerTip, read_tip, write_tip
from mediffusion_core.privacy.ledger.unit_sets import largest_compositions, unit_compositions

__all__ = ["Cap", "Charge", "Entry", "Ledger", "LedgerError", "LedgerTip"]

Key = TypeVar("Key")
FILE, LOCK = "ledger.sqlite", "ledger.lock"


@dataclass(frozen=True)
class Cap:
    """The largest budget of a unit over all runs: ε ≤ `max_epsilon` at δ = `delta`."""

    max_epsilon: float
    delta: float


def _default_tip(folder: Path) -> Path:
    """File of the tip beside the folder. Its ending is that of the ledgers that exist."""
    return folder.with_name(f"{folder.name}.head")


class Ledger:
    """One site's ledger. Every call reads and verifies all entries."""

    def __init__(self, folder: Path, tip: Path, cap: Cap | None) -> None:
        """Takes folder, file of the tip, and cap; callers use `open`."""
        self.folder, self.cap = folder, cap
        self._path, self._tip_path = folder / FILE, tip
        self._seen: LedgerTip | None = None

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        tip: Path | None = None,
        cap: Cap | None = None,
        begin: bool = True,
    ) -> Self:
        """Opens the ledger in a folder, and creates it on first use.

        Args:
            folder: On a local disk of the site, readable by its owner alone.
            tip: File of the ledger tip, in a second place; by default beside the folder. On
                another volume, one restored backup does not roll both back.
            cap: The site's limit; None for no limit.
            begin: Whether to create a ledger if none exists.

        Raises:
            LedgerError: if the ledger is missing, older than its tip, damaged or edited.
        """
        ledger = cls(folder, tip or _default_tip(folder), cap)
        if begin:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with ledger._turn():
                ledger._begin_if_new()
        ledger.verify()
        return ledger

    def charge(
        self, units: Sequence[str], charge: Charge, stage: str, run: str, round_number: int
    ) -> frozenset[str]:
        """Charges units for the steps that follow. The entry is on disk when this returns.

        Args:
            units: Names of the patients or lesions to sample; may repeat, may be empty.
            charge: Cost of the steps.
            stage: Stage of training, or kind of message.
            run: Name of the run.
            round_number: Round of the stage.

        Returns:
            The charged units, which the steps may sample: those that stay within the site's cap.

        Raises:
            LedgerError: if the ledger fails verification.
        """
        labels = _now(), run, stage, round_number
        with self._content() as (connection, salt, content):
            names = {_hash(unit, salt): unit for unit in units}
            charged = self._within_cap(content, list(names), charge, run)
            tip = storage.append(connection, content, salt, charged, charge, labels)
            connection.commit()
            write_tip(self._tip_path, tip)
            self._seen = tip
        return frozenset(names[one] for one in charged)

    def announce(self, planned: Sequence[Charge], run: str) -> None:
        """Gives units whose first charge is one of this run the Gaussian filter, if they need it.

        They do if there is a cap, and the Rényi filter does not admit all planned charges.

        Args:
            planned: All charges of the run for a unit, the largest last. They must follow from the
                run's settings alone, and be of the Gaussian mechanism on all units.
            run: Name of the run.

        Raises:
            LedgerError: if the ledger fails verification.
        """
        cap = self.cap
        if cap is not None and not RenyiFilter(cap.max_epsilon, cap.delta).admits(planned):
            self.charge((), planned[-1], storage.ANNOUNCED, run, 0)

    def spent(self, units: Sequence[str], delta: float) -> float:
        """The largest ε at δ of these units, over all stages and runs.

        Raises:
            LedgerError: if the ledger fails verification.
        """
        return max((epsilon(one, delta) for one in self.compositions(units)), default=0.0)

    def worst(self, delta: float) -> float:
        """The largest ε at δ of any unit, over all entries.

        Raises:
            LedgerError: if the ledger fails verification.
        """
        return max(self.worst_by(delta, lambda entry: "all").values(), default=0.0)

    def worst_by(self, delta: float, key: Callable[[Entry], Key]) -> dict[Key, float]:
        """The largest ε at δ of any unit, for the entries of each key separately.

        Raises:
            LedgerError: if the ledger fails verification.
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
        """The compositions of these units' charges that no other composition contains.

        Raises:
            LedgerError: if the ledger fails verification.
        """
        with self._content() as (_, salt, content):
            return _compositions(content, {_hash(unit, salt) for unit in units})

    def entries(self) -> tuple[Entry, ...]:
        """All entries, in order.

        Raises:
            LedgerError: if the ledger fails verification.
        """
        with self._content() as (_, _, content):
            return content.entries

    def verify(self) -> LedgerTip:
        """Checks all entries against the chain and the tip in the second place.

        Returns:
            The ledger tip.

        Raises:
            LedgerError: if the ledger fails verification.
        """
        with self._content() as (_, _, content):
            return content.tip

    def must_extend(self, tip: LedgerTip) -> None:
        """Refuses a ledger that is older than a tip kept elsewhere, such as the server's.

        Raises:
            LedgerError: if the ledger does not contain that tip, or fails verification.
        """
        with self._content() as (_, _, content):
            _refuse_unless_extends(content, tip, "a tip kept elsewhere")

    @classmethod
    def restore_tip(cls, folder: Path, tip: Path | None, known: LedgerTip) -> LedgerTip:
        """Writes a lost tip again, if the ledger contains a tip kept elsewhere.

        Args:
            folder: Of the ledger.
            tip: File of the tip, as for `open`.
            known: A tip kept elsewhere, such as the server's. A ledger older than it is refused.

        Raises:
            LedgerError: if the ledger does not contain `known`, or its chain is broken.
        """
        ledger = cls(folder, tip or _default_tip(folder), None)
        with ledger._sound() as (_, _, content):
            _refuse_unless_extends(content, known, "a tip kept elsewhere")
            write_tip(ledger._tip_path, content.tip)
            return content.tip

    @contextmanager
    def _content(self) -> Iterator[tuple[Connection, bytes, Content]]:
        with self._sound() as (connection, salt, content):
            kept = read_tip(self._tip_path)
            if kept is None:
                raise LedgerError("tip-removed", f"the ledger tip {self._tip_path} is gone")
            _refuse_unless_extends(content, kept, f"the tip in {self._tip_path}")
            if self._seen is not None:
                _refuse_unless_extends(content, self._seen, "the tip that this process read before")
            if content.tip != kept:  # killed between the two writes
                write_tip(self._tip_path, content.tip)
            self._seen = content.tip
            yield connection, salt, content

    @contextmanager
    def _sound(self) -> Iterator[tuple[Connection, bytes, Content]]:
        """The content with a verified chain, under the lock."""
        if not self.folder.is_dir():  # the lock file is in it
            raise LedgerError("ledger-removed", f"there is no folder {self.folder}")
        with self._turn():
            if not storage.has_tables(self._path):
                raise LedgerError("ledger-removed", f"there is no ledger in {self.folder}")
            salt = self._salt()
            with storage.opened(self._path) as connection:
                yield connection, salt, storage.read(connection, salt)

    def _turn(self) -> FileLock:
        """A lock for one process; a new object per call, since forks cannot share one."""
        return FileLock(self.folder / LOCK)

    def _begin_if_new(self) -> None:
        kept = read_tip(self._tip_path)
        if storage.has_tables(self._path):
            if kept is None:
                self._write_first_tip()
            return
        if kept is not None and kept.count:
            raise LedgerError(
                "ledger-removed",
                f"there is no ledger in {self.folder}, but its tip has {kept.count} entries",
            )
        salt = site_salt(self.folder, SALT_NAME)
        storage.create_tables(self._path)
        sync(self.folder)
        write_tip(self._tip_path, LedgerTip(0, storage.empty_digest(salt)))

    def _write_first_tip(self) -> None:
        """Writes the missing tip of a ledger without entries."""
        salt = self._salt()
        with storage.opened(self._path) as connection:
            content = storage.read(connection, salt)
        if not content.tip.count:
            write_tip(self._tip_path, content.tip)

    def _salt(self) -> bytes:
        return ledger_salt(self.folder, draw=False)

    def _within_cap(
        self, content: Content, units: Sequence[bytes], charge: Charge, run: str
    ) -> frozenset[bytes]:
        """The units that the charge leaves within the cap, each by its own charges."""
        if self.cap is None:
            return frozenset(units)
        held = content.memberships(units)
        compositions, of_unit = unit_compositions(held, content.charged(content.entries))
        announced = content.announced(held, run)
        fits = np.zeros((2, len(compositions)), dtype=bool)
        for row, kind in enumerate((RenyiFilter, GaussianFilter)):
            budget = kind(self.cap.max_epsilon, self.cap.delta)
            for number in np.unique(of_unit[announced == row]):
                fits[row, number] = budget.admits([*compositions[number], charge])
        fitting = fits[announced.astype(int), of_unit]
        return frozenset(unit for unit, fit in zip(units, fitting, strict=True) if fit)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _hash(unit: str, salt: bytes) -> bytes:
    return bytes.fromhex(hashed(unit, salt))


def _compositions(
    content: Content, units: Iterable[bytes], entries: Sequence[Entry] | None = None
) -> list[tuple[Charge, ...]]:
    """The largest compositions of the given units, over all entries or the given ones."""
    charged = content.charged(content.entries if entries is None else entries)
    return largest_compositions(content.memberships(list(units)), charged)


def _refuse_unless_extends(content: Content, tip: LedgerTip, whose: str) -> None:
    if tip.count > content.tip.count:
        raise LedgerError(
            "ledger-behind",
            f"the ledger has {content.tip.count} entries, {whose} has {tip.count}: the ledger was "
            "cut off, or is an older copy",
        )
    if content.digests[tip.count] != tip.digest:
        raise LedgerError("ledger-other", f"entry {tip.count} of the ledger differs from {whose}")
