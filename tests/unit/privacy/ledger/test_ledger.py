"""The ledger: no kill, restart, copy or second process makes it count less than was executed."""

import multiprocessing
import os
import shutil
import signal
import sqlite3
import stat
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any

import pytest
from helpers.caps import cap_for
from hypothesis import given, settings
from hypothesis import strategies as st

from mediffusion_core.common.errors import UserError
from mediffusion_core.privacy.accounting.accountant import Charge, epsilon, merged
from mediffusion_core.privacy.accounting.filters import GaussianFilter, RenyiFilter
from mediffusion_core.privacy.ledger.ledger import Cap, Ledger, LedgerError, LedgerTip

DELTA = 1e-5
STEPS = Charge(0.1, 2.0, 10)
KINDS = (STEPS, Charge(0.2, 2.0, 3), Charge(1.0, 40.0, 1))
PATIENTS = tuple(f"patient {number}" for number in range(6))
TRACED = ("ledger.py", "storage.py", "tip.py", "pseudonyms.py")
FORK = multiprocessing.get_context("fork")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "ledger"


def tip_of(folder: Path) -> Path:
    return folder.with_name("ledger.head")


def at_line(count: int, act: Callable[[], None]) -> None:
    """Does something when so many lines of the ledger's modules have been run from here on."""
    left = count

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal left
        if os.path.basename(frame.f_code.co_filename) not in TRACED:
            return None
        if event == "line":
            left -= 1
            if left == 0:
                sys.settrace(None)
                act()
        return trace

    sys.settrace(trace)


def killed_at(line: int, act: Callable[[], object]) -> bool:
    """Does something in a process that is killed after so many lines; whether it ended before."""

    def child() -> None:
        at_line(line, lambda: os.kill(os.getpid(), signal.SIGKILL))
        act()
        sys.settrace(None)
        os._exit(0)

    process = FORK.Process(target=child)
    process.start()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode == 0


def charge(ledger: Ledger, units: tuple[str, ...] = PATIENTS, number: int = 1) -> LedgerTip:
    charged(ledger, units, number)
    return ledger.verify()


def charged(ledger: Ledger, units: tuple[str, ...] = PATIENTS, number: int = 1) -> set[str]:
    return set(ledger.charge(units, STEPS, "joint", "run", number))


# Charges


def test_charges_are_composed_and_survive(folder: Path) -> None:
    ledger = Ledger.open(folder)
    assert ledger.spent(PATIENTS, DELTA) == 0
    assert ledger.charge(PATIENTS, STEPS, "autoencoder", "first", 1) == set(PATIENTS)
    ledger.charge(PATIENTS, KINDS[2], "latents", "first", 1)
    ledger.charge(PATIENTS[:3], STEPS, "joint", "second", 1)
    again = Ledger.open(folder)
    whole = epsilon([STEPS, KINDS[2], STEPS], DELTA)
    assert again.spent(PATIENTS, DELTA) == again.worst(DELTA) == whole
    assert again.spent(PATIENTS[3:], DELTA) == epsilon([STEPS, KINDS[2]], DELTA)
    assert again.spent(["a newcomer"], DELTA) == again.spent([], DELTA) == 0
    alone = {"first": epsilon([STEPS, KINDS[2]], DELTA), "second": epsilon([STEPS], DELTA)}
    assert again.worst_by(DELTA, lambda entry: entry.run) == alone
    assert [(e.number, e.stage, e.run, e.units) for e in again.entries()] == [
        (1, "autoencoder", "first", 6),
        (2, "latents", "first", 6),
        (3, "joint", "second", 3),
    ]


def test_overlapping_data_inherits_spent_epsilon(folder: Path) -> None:
    """One image more, or a patient more, is a new data set with the old patients in it."""
    ledger = Ledger.open(folder)
    charge(ledger, PATIENTS[:4])
    charge(ledger, (*PATIENTS[3:], "a newcomer", "a newcomer"))
    assert ledger.compositions(["a newcomer"]) == [(STEPS,)]
    assert ledger.compositions([PATIENTS[3]]) == [merged([STEPS, STEPS])]
    assert ledger.compositions(PATIENTS) == [merged([STEPS, STEPS])]


def test_neither_of_two_compositions_hides_the_other(folder: Path) -> None:
    ledger = Ledger.open(folder)
    ledger.charge(PATIENTS[:2], KINDS[0], "joint", "run", 1)
    ledger.charge(PATIENTS[1:3], KINDS[1], "joint", "run", 2)
    ledger.charge(PATIENTS[3:], KINDS[2], "joint", "run", 3)
    found = ledger.compositions(PATIENTS)
    assert sorted(found) == sorted([merged(KINDS[:2]), (KINDS[2],)])
    assert ledger.spent(PATIENTS, DELTA) == max(epsilon(one, DELTA) for one in found)


operations = st.lists(
    st.tuples(
        st.sets(st.sampled_from(PATIENTS), min_size=1),
        st.sampled_from(KINDS),
        st.one_of(st.none(), st.integers(1, 260)),
        st.booleans(),
    ),
    max_size=9,
)


@settings(max_examples=25)
@given(operations)
def test_no_pattern_of_kills_restarts_and_overlaps_counts_less(
    pattern: list[tuple[set[str], Charge, int | None, bool]],
) -> None:
    """A process may be killed after any line of a charge; started and finished charges count."""
    with TemporaryDirectory() as place:
        folder = Path(place, "ledger")
        executed: set[int] = set()
        ledger = Ledger.open(folder)
        for number, (units, cost, killed_after, restart) in enumerate(pattern):
            act = partial(ledger.charge, sorted(units), cost, "joint", "run", number)
            if killed_at(killed_after, act) if killed_after else act():
                executed.add(number)
            if restart:
                ledger = Ledger.open(folder)
        recorded = {entry.round_number for entry in ledger.entries()}
        assert executed <= recorded
        assert len(ledger.entries()) == len(recorded)
        assert all(pattern[number][2] for number in recorded - executed)
        for unit in PATIENTS:
            held = [pattern[n][1] for n in sorted(recorded) if unit in pattern[n][0]]
            assert ledger.compositions([unit]) == ([merged(held)] if held else [])
        Ledger.open(folder).must_extend(ledger.verify())


# Kills


def test_a_real_kill_at_any_line_of_a_charge_is_survived(folder: Path) -> None:
    ledger = Ledger.open(folder)
    executed = counted = 0
    for line in (*range(1, 260, 9), 10**6):
        executed += killed_at(line, lambda: charge(ledger))
        after = Ledger.open(folder).verify().count
        assert after >= executed and after - counted in (0, 1)
        counted = after
    assert executed >= 1


def test_a_kill_between_ledger_and_tip_counts_the_charge(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger.open(folder)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("mediffusion_core.privacy.ledger.ledger.write_tip", interrupted)
        charge(ledger)
    assert LedgerTip.parse(tip_of(folder).read_text()).count == 0
    again = Ledger.open(folder)
    assert again.compositions(PATIENTS) == [(STEPS,)]
    assert LedgerTip.parse(tip_of(folder).read_text()) == again.verify()


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def charging_forever(folder: Path, done: Path) -> None:
    ledger = Ledger.open(folder)
    while True:
        charge(ledger)
        with done.open("a") as file:
            file.write("x")


def test_kills_at_any_moment_of_writing_are_survived(folder: Path, tmp_path: Path) -> None:
    done = tmp_path / "done"
    done.touch()
    Ledger.open(folder)
    for attempt in range(6):
        process = FORK.Process(target=charging_forever, args=(folder, done))
        before = done.stat().st_size
        process.start()
        while done.stat().st_size == before and process.is_alive():
            time.sleep(0.001)
        time.sleep(0.0037 * attempt)
        process.kill()
        process.join()
        executed = done.stat().st_size
        assert executed <= Ledger.open(folder).verify().count <= executed + attempt + 1


def test_a_kill_while_a_ledger_is_begun_leaves_one_that_can_be_begun(tmp_path: Path) -> None:
    for line in range(1, 200, 7):
        folder = tmp_path / str(line) / "ledger"
        folder.parent.mkdir()
        killed_at(line, lambda folder=folder: Ledger.open(folder))  # type: ignore[misc]
        assert charge(Ledger.open(folder)).count == 1


# Two processes


def charging(folder: Path, times: int, cap: Cap | None) -> None:
    ledger = Ledger.open(folder, cap=cap)
    for number in range(times):
        charge(ledger, number=number)


def at_once(folder: Path, times: int, cap: Cap | None = None) -> Ledger:
    processes = [FORK.Process(target=charging, args=(folder, times, cap)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    return Ledger.open(folder)


def test_processes_at_once_take_turns_from_the_first_call_on(folder: Path) -> None:
    ledger = at_once(folder, 6)
    assert len(ledger.entries()) == 18
    assert ledger.compositions(PATIENTS) == [merged([STEPS] * 18)]


def test_processes_at_once_cannot_pass_the_cap_together(folder: Path) -> None:
    cap = Cap(cap_for([STEPS] * 3, DELTA), DELTA)
    assert sorted(entry.units for entry in at_once(folder, 2, cap).entries()) == [0, 0, 0, 6, 6, 6]


# The cap


def test_units_past_the_cap_are_left_out_alone_and_are_not_charged(folder: Path) -> None:
    cap = Cap(cap_for([STEPS] * 2, DELTA), DELTA)
    ledger = Ledger.open(folder, cap=cap)
    assert charged(ledger) == set(PATIENTS)
    assert charged(ledger, PATIENTS[:1]) == {PATIENTS[0]}
    assert charged(ledger, PATIENTS[:2]) == {PATIENTS[1]}
    assert charged(ledger, (*PATIENTS, "a newcomer")) == {*PATIENTS[2:], "a newcomer"}
    assert charged(ledger) == set()
    assert [entry.units for entry in ledger.entries()] == [6, 1, 1, 5, 0]
    assert ledger.worst(DELTA) == epsilon([STEPS] * 2, DELTA) < cap.max_epsilon


def test_a_charge_without_noise_exceeds_every_cap(folder: Path) -> None:
    ledger = Ledger.open(folder, cap=Cap(1e9, DELTA))
    assert not ledger.charge(PATIENTS, Charge(1.0, 0.0, 1), "joint", "run", 1)
    assert ledger.worst(DELTA) == 0


def test_charges_that_exact_composition_would_allow_are_refused_by_the_filter(
    folder: Path,
) -> None:
    """Which charges come next may depend on results of those before them."""
    most = epsilon([STEPS] * 9, DELTA)
    ledger = Ledger.open(folder, cap=Cap(most, DELTA))
    times = [bool(charged(ledger)) for _ in range(10)]
    assert times == sorted(times, reverse=True) and 6 < sum(times) < 9
    assert RenyiFilter(most, DELTA).admits([STEPS] * sum(times))
    assert not RenyiFilter(most, DELTA).admits([STEPS] * (sum(times) + 1))


WHOLE = [Charge(1.0, 8.0, 2), Charge(1.0, 20.0, 9)]
"""The charges of a run with steps of all units."""


def run_whole(ledger: Ledger, units: tuple[str, ...], run: str) -> list[int]:
    """Announces and charges such a run; the units of each entry."""
    ledger.announce(WHOLE, run)
    single = [Charge(c.sample_rate, c.noise_multiplier, 1) for c in WHOLE for _ in range(c.steps)]
    return [
        len(ledger.charge(units, cost, "joint", run, number)) for number, cost in enumerate(single)
    ]


def test_an_announced_run_passes_a_cap_that_equals_its_exact_composition(folder: Path) -> None:
    cap = Cap(epsilon(WHOLE, DELTA), DELTA)
    ledger = Ledger.open(folder, cap=cap)
    assert run_whole(ledger, PATIENTS, "one") == [6] * 11
    assert ledger.worst(DELTA) == cap.max_epsilon
    assert not ledger.charge(PATIENTS, Charge(1.0, 20.0, 1), "joint", "one", 12)
    assert ledger.entries()[0].stage == "announced" and ledger.entries()[0].units == 0


def test_a_units_filter_is_chosen_before_its_first_charge(folder: Path) -> None:
    """An adversary with a choice of filters passes the cap; `test_filters` computes by how much."""
    cap = Cap(epsilon(WHOLE, DELTA), DELTA)
    ledger = Ledger.open(folder, cap=cap)
    small = Charge(0.001, 40.0, 1)
    sampled, whole = PATIENTS[:3], PATIENTS[3:]
    assert len(ledger.charge(sampled, small, "joint", "before", 1)) == 3
    # Those with a charge from before stay with the Rényi filter, which is spent earlier.
    each = run_whole(ledger, PATIENTS, "one")
    assert each[0] == 6 and each[-1] == 3
    # Those whose first charge was announced take no sampled step, however much is left.
    begun = Ledger.open(folder.with_name("other"), cap=cap)
    begun.announce(WHOLE, "one")
    assert len(begun.charge(whole, WHOLE[0], "census", "one", 0)) == 3
    assert not begun.charge(whole, small, "joint", "another", 1)
    assert len(begun.charge(whole, Charge(1.0, 40.0, 1), "joint", "another", 1)) == 3
    # An announcement comes too late for units that the run has charged.
    assert len(begun.charge(sampled, small, "joint", "late", 1)) == 3
    begun.announce(WHOLE, "late")
    assert len(begun.charge(sampled, small, "joint", "late", 2)) == 3


def test_a_run_that_the_filter_admits_needs_no_announcement(folder: Path) -> None:
    for cap in (None, Cap(cap_for(WHOLE, DELTA), DELTA)):
        ledger = Ledger.open(folder, cap=cap)
        ledger.announce(WHOLE, "one")
        assert not ledger.entries()
    assert run_whole(ledger, PATIENTS, "one") == [6] * 11
    assert not GaussianFilter(1e9, DELTA).admits([STEPS])
    assert len(ledger.charge(PATIENTS[:1], Charge(0.001, 40.0, 1), "joint", "two", 1)) == 0


@settings(max_examples=40)
@given(
    st.lists(
        st.tuples(st.sets(st.sampled_from(PATIENTS)), st.sampled_from(KINDS)),
        min_size=1,
        max_size=8,
    ),
    st.floats(0.3, 3.0),
)
def test_whether_a_unit_is_left_out_depends_on_its_own_charges_alone(
    pattern: list[tuple[set[str], Charge]], most: float
) -> None:
    """The condition of the individual filter (arXiv 2008.11193)."""
    own: dict[str, list[Charge]] = {unit: [] for unit in PATIENTS}
    budget = RenyiFilter(most, DELTA)
    with TemporaryDirectory() as place:
        ledger = Ledger.open(Path(place, "ledger"), cap=Cap(most, DELTA))
        for number, (units, cost) in enumerate(pattern):
            expected = {unit for unit in units if budget.admits([*own[unit], cost])}
            assert ledger.charge(sorted(units), cost, "joint", "run", number) == expected
            for unit in expected:
                own[unit].append(cost)


# Other hands


def changed(folder: Path, *statements: str) -> None:
    with sqlite3.connect(folder / "ledger.sqlite") as connection:
        for statement in statements:
            connection.execute(statement)
    connection.close()


def older_copy(folder: Path) -> None:
    shutil.copy(folder.parent / "older.sqlite", folder / "ledger.sqlite")


def cut_off(folder: Path) -> None:
    path = folder / "ledger.sqlite"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2 + 100])


def other_ledger(folder: Path) -> None:
    """As many entries, all sound, but others: rolled back and charged anew."""
    older_copy(folder)
    kept = tip_of(folder).read_bytes()
    tip_of(folder).write_bytes((folder.parent / "older.head").read_bytes())
    charge(Ledger.open(folder), PATIENTS[:1], 77)
    tip_of(folder).write_bytes(kept)


def salt_of(folder: Path) -> Path:
    return next(path for path in folder.iterdir() if path.suffix == "")


def edits(table: str, change: str) -> Callable[[Path], None]:
    return lambda folder: changed(folder, f"UPDATE {table} SET {change}")


TAMPERINGS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "removed": (lambda f: (f / "ledger.sqlite").unlink(), "ledger-removed"),
    "folder removed": (shutil.rmtree, "ledger-removed"),
    "emptied": (lambda f: (f / "ledger.sqlite").write_bytes(b""), "ledger-removed"),
    "cut off": (cut_off, "ledger-unreadable"),
    "older": (older_copy, "ledger-behind"),
    "charged anew": (other_ledger, "ledger-other"),
    "last entry": (lambda f: changed(f, "DELETE FROM charges WHERE number = 2"), "ledger-edited"),
    "first entry": (lambda f: changed(f, "DELETE FROM charges WHERE number = 1"), "ledger-edited"),
    "all": (lambda f: changed(f, *(f"DELETE FROM {t}" for t in ("charges", "units",
                                                                "memberships"))), "ledger-behind"),
    "steps": (edits("charges", "steps = 1"), "ledger-edited"),
    "noise": (edits("charges", "noise_multiplier = 99"), "ledger-edited"),
    "text for a number": (edits("charges", "steps = 'many'"), "ledger-edited"),
    "run": (edits("charges", "run = 'another'"), "ledger-edited"),
    "time": (edits("charges", "time = '1970-01-01'"), "ledger-edited"),
    "members": (edits("memberships", "bits = randomblob(1)"), "ledger-edited"),
    "unit": (edits("units", "hash = randomblob(16)"), "ledger-edited"),
    "number of a unit": (edits("units", "number = number + 1000"), "ledger-edited"),
    "unit more": (lambda f: changed(f, "INSERT INTO units VALUES (6, randomblob(16))"),
                  "ledger-edited"),
    "later format": (lambda f: changed(f, "PRAGMA user_version = 9"), "ledger-format"),
    "no salt": (lambda f: salt_of(f).unlink(), "salt-removed"),
    "damaged salt": (lambda f: salt_of(f).write_bytes(b"short"), "salt-damaged"),
    "other salt": (lambda f: salt_of(f).write_bytes(bytes(32)), "ledger-edited"),
    "no tip": (lambda f: tip_of(f).unlink(), "tip-removed"),
    "damaged tip": (lambda f: tip_of(f).write_text("2"), "tip-unreadable"),
    "other tip": (lambda f: tip_of(f).write_text(f"2:{'0' * 64}"), "ledger-other"),
    "tip ahead": (lambda f: tip_of(f).write_text(f"3:{'0' * 64}"), "ledger-behind"),
}  # fmt: skip


@pytest.mark.parametrize("name", TAMPERINGS)
def test_a_changed_ledger_is_found_and_refused(folder: Path, name: str) -> None:
    tamper, code = TAMPERINGS[name]
    ledger = Ledger.open(folder)
    charge(ledger, PATIENTS[:4])
    shutil.copy(folder / "ledger.sqlite", folder.parent / "older.sqlite")
    shutil.copy(tip_of(folder), folder.parent / "older.head")
    charge(ledger)
    tamper(folder)
    for act in (lambda: Ledger.open(folder), lambda: charge(ledger), lambda: ledger.worst(DELTA)):
        with pytest.raises(LedgerError) as caught:
            act()
        assert caught.value.code == code
        assert "\n" not in str(caught.value) and isinstance(caught.value, UserError)


def test_ledger_and_tip_rolled_back_together_show_against_a_tip_kept_elsewhere(
    folder: Path,
) -> None:
    ledger = Ledger.open(folder)
    charge(ledger)
    copies = [(path, path.read_bytes()) for path in (folder / "ledger.sqlite", tip_of(folder))]
    at_the_server = charge(ledger)
    for path, content in copies:
        path.write_bytes(content)
    with pytest.raises(LedgerError, match="the tip that this process read before"):
        ledger.verify()
    again = Ledger.open(folder)
    with pytest.raises(LedgerError, match="a tip kept elsewhere") as caught:
        again.must_extend(LedgerTip.parse(str(at_the_server)))
    assert caught.value.code == "ledger-behind"
    again.must_extend(LedgerTip.parse(copies[1][1].decode()))


def test_a_tip_restored_from_a_backup_is_updated(folder: Path) -> None:
    ledger = Ledger.open(folder)
    charge(ledger)
    older = tip_of(folder).read_bytes()
    newest = charge(ledger)
    tip_of(folder).write_bytes(older)
    assert Ledger.open(folder).verify() == newest
    assert LedgerTip.parse(tip_of(folder).read_text()) == newest


def test_a_lost_tip_is_restored_only_against_one_kept_elsewhere(folder: Path) -> None:
    ledger = Ledger.open(folder)
    charge(ledger)
    older = (folder / "ledger.sqlite").read_bytes()
    newest = charge(ledger)
    tip_of(folder).unlink()
    with pytest.raises(LedgerError, match="is gone"):
        Ledger.open(folder)
    assert Ledger.restore_tip(folder, None, newest) == newest
    assert Ledger.open(folder).verify() == newest
    tip_of(folder).unlink()
    (folder / "ledger.sqlite").write_bytes(older)
    with pytest.raises(LedgerError, match="ledger-behind"):
        Ledger.restore_tip(folder, None, newest)
    assert not tip_of(folder).exists()


def test_looking_begins_no_ledger(folder: Path) -> None:
    with pytest.raises(LedgerError, match="ledger-removed"):
        Ledger.open(folder, begin=False)
    assert not folder.exists()


# Files


def test_names_of_patients_are_not_on_the_disk_and_files_are_the_owners(folder: Path) -> None:
    charge(Ledger.open(folder))
    for path in (*folder.iterdir(), tip_of(folder)):
        assert b"patient" not in path.read_bytes()
        assert not stat.S_IMODE(path.stat().st_mode) & 0o077 or path.name == "ledger.lock"


def test_a_hundred_thousand_units_are_stored_once(folder: Path) -> None:
    units = [f"patient {number}" for number in range(100_000)]
    ledger = Ledger.open(folder)
    charge(ledger, tuple(units))
    before = (folder / "ledger.sqlite").stat().st_size
    for number in range(2, 5):
        charge(ledger, tuple(units), number)
    charge(ledger, tuple(units[1:]), 5)
    assert (folder / "ledger.sqlite").stat().st_size - before < 50_000
    assert ledger.compositions(units[:1]) == [merged([STEPS] * 4)]
    assert ledger.compositions(units) == [merged([STEPS] * 5)]


def test_a_charge_without_units_lengthens_the_chain_and_costs_nothing(folder: Path) -> None:
    """Otherwise a ledger tip would reveal that a site has no patients."""
    ledger = Ledger.open(folder)
    charge(ledger, ())
    assert ledger.verify().count == 1 and ledger.worst(1e-5) == 0.0
    charge(ledger, ("a",), 2)
    charge(ledger, (), 3)
    again = Ledger.open(folder)
    assert [entry.units for entry in again.entries()] == [0, 1, 0]
    assert again.compositions(["a"]) == [(STEPS,)]
